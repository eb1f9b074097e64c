"""What all pictures share: colours, marks, a frame, and writing a PNG whole or not at all."""

import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mg_keras.files import atomic_path

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, GREEN, RED, ORANGE, PURPLE = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#AA5599"
LINE_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "black", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def plain_frame(axes: Axes) -> None:
    """Light lines to read values by, and no box."""
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120, facecolor="white")
