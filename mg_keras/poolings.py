"""Poolings as values: an exponent p* > 0 of `GeM`, or `RMAC`."""

import numpy as np

RMAC = "rmac"
"""Regional maxima (`mg_keras.layers.RMAC`), which has no exponent."""


def checked(pooling: float | str) -> float | str:
    """A pooling, its exponent as a float.

    Raises:
        ValueError: it is neither a number > 0 nor `RMAC`.
    """
    if pooling == RMAC:
        return RMAC
    if not (isinstance(pooling, int | float | np.number) and pooling > 0):
        raise ValueError(f"a pooling must be a number > 0 or {RMAC!r}, received {pooling!r}")
    return float(pooling)
