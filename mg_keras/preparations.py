"""How a network wants photos brought to a resolution s*: a property of the network, which travels with its weights."""

ASPECT = "aspect"
"""Nothing is distorted: up to the training resolution a square crop, beyond it the largest side (sections 3.5, 4.2)."""

SQUASH = "squash"
"""Every photo becomes a square of s*: all have one shape, and batches are full whatever photos there are."""

PREPARATIONS = (ASPECT, SQUASH)


def checked(preparation: str) -> str:
    """The preparation itself.

    Raises:
        ValueError: it is none.
    """
    if preparation not in PREPARATIONS:
        raise ValueError(f"preparation must be one of {', '.join(PREPARATIONS)}, received {preparation!r}")
    return preparation
