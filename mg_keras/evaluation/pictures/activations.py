"""Where in a photo the values come from that an embedding is pooled of."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mg_keras.evaluation.pictures import drawing


def contributions(activations: np.ndarray, exponent: float, epsilon: float = 1e-6) -> tuple[np.ndarray, float]:
    """Of one channel, how much each place adds to its generalized mean, `x^p / sum x^p` (eq. 1).

    Args:
        activations: [h, w], the channel's map.
        exponent: p > 0.
        epsilon: what activations are clamped to at least.

    Returns:
        (float64 [h, w] of sum 1, the mean divided by the largest activation).
    """
    values = np.maximum(np.asarray(activations, np.float64), epsilon)
    powers = (values / values.max()) ** exponent
    return powers / powers.sum(), float(powers.mean() ** (1 / exponent))


def activation_picture(
    path: str | os.PathLike, photo: np.ndarray, maps: Mapping[int, np.ndarray], exponents: Sequence[float], channel: str
) -> None:
    """Draw one channel's map of a photo: a row a resolution, a column an exponent (MultiGrain, Figure 3).

    Each place is as bright as what it adds to the pooled value; above each stands that value, divided by the largest
    activation of the map.

    Args:
        path: the PNG to write, whole or not at all.
        photo: uint8 [H, W, 3], RGB.
        maps: resolution in pixels -> [h, w], the channel's activations.
        exponents: p > 0, the columns.
        channel: its name, for the title.

    Raises:
        ValueError: no map, or no exponent.
    """
    if not maps or not exponents:
        raise ValueError(f"maps and exponents must not be empty, received {sorted(maps)} and {list(exponents)}")
    count = len(exponents)
    figure = Figure(figsize=(2.4 * (2 + count), 2.7 * len(maps)), layout="constrained")
    figure.suptitle(f"{channel}: what each place adds to its generalized mean, and that mean / the largest activation")
    rows = figure.subplots(len(maps), 2 + count, squeeze=False)
    for row, (resolution, activations) in zip(rows, sorted(maps.items()), strict=True):
        row[0].imshow(photo)
        row[0].set_ylabel(f"{resolution} px", fontsize=12)
        row[1].imshow(np.maximum(activations, 0), cmap="gray")
        row[1].set_title("activations", fontsize=10)
        for axes, exponent in zip(row[2:], exponents, strict=True):
            shares, pooled = contributions(activations, exponent)
            axes.imshow(shares, cmap="magma", vmin=0)
            axes.set_title(f"p = {exponent:g}: {pooled:.2f}", fontsize=10)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    drawing.save(figure, path)
