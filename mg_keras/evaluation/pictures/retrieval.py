"""Queries and what they find."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from mg_keras.data.pillow_photos import eight_bits, upright
from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import BLUE, GREEN, RED

_PHOTO_SIDE = 240
_FRAMES = {"same instance": BLUE, "same class": GREEN, "another class": RED}


@dataclass(frozen=True)
class Photo:
    """A photo in a picture of retrieval.

    Attributes:
        image: uint8 [H, W, 3] RGB, or the path of a photo.
        class_name: what its caption says; None when not known.
        instance: the same for all photos of one object, or for a photo and its copies; None when not known.
        caption: what its caption says in place of `class_name`; None: that.
    """

    image: np.ndarray | str | os.PathLike
    class_name: str | None
    instance: str | None = None
    caption: str | None = None

    def kinship(self, other: "Photo") -> str:
        """Say how `other` relates to this photo: "same instance", "same class" or "another class".

        Photos of which no class is known are of another one each.
        """
        if self.instance is not None and self.instance == other.instance:
            return "same instance"
        known = self.class_name is not None
        return "same class" if known and self.class_name == other.class_name else "another class"


def retrieval_picture(
    path: str | os.PathLike,
    queries: Sequence[Photo],
    neighbours: Sequence[Sequence[tuple[Photo, float]]],
    title: str = "Queries (left) and their nearest neighbours",
    words: Mapping[str, str] | None = None,
) -> None:
    """Draw each query and its nearest neighbours in a row, framed by what they share with it.

    The frame is blue when a neighbour shows the query's instance (or is its copy), green when only the class is the
    same, red otherwise; the caption gives the neighbour's class and its cosine similarity.

    Args:
        path: the PNG to write, whole or not at all.
        queries: one a row.
        neighbours: for each query its neighbours with their similarity, nearest first.
        title: the line at the top.
        words: what `Photo.kinship` says -> what the legend calls it, for kinds of kinship that there are; None: all of
            them, as they are.

    Raises:
        ValueError: no queries, or not one list of neighbours a query.

    Example:
        >>> from mg_keras.evaluation.search import nearest
        >>> photos = [Photo(np.full([30, 40, 3], 20 * i, np.uint8), "cup") for i in range(4)]
        >>> embeddings = np.eye(4) + 0.1
        >>> similarities, indices = nearest(embeddings[:2], embeddings, k=3)
        >>> rows = [[(photos[i], s) for i, s in zip(*row)] for row in zip(indices[:, 1:], similarities[:, 1:])]
        >>> retrieval_picture("retrieval.png", photos[:2], rows)
    """
    if not queries or len(queries) != len(neighbours):
        raise ValueError(
            "neighbours must hold one list a query, for at least one query, "
            f"received {len(neighbours)} for {len(queries)} queries"
        )
    columns = 1 + max(len(found) for found in neighbours)
    # The title and the legend need five inches. An empty narrow column sets the queries apart from what they found.
    figure = Figure(figsize=(max(5.0, 1.5 * columns + 0.4), 1.75 * len(queries) + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.04, hspace=0.02)
    grid = figure.add_gridspec(len(queries), columns + 1, width_ratios=[1, 0.12, *[1] * (columns - 1)])
    for row, (query, found) in enumerate(zip(queries, neighbours, strict=True)):
        _draw_photo(figure.add_subplot(grid[row, 0]), query, "black", 1.5, "query")
        for column, (photo, similarity) in enumerate(found, start=2):
            frame = _FRAMES[query.kinship(photo)]
            _draw_photo(figure.add_subplot(grid[row, column]), photo, frame, 4.0, f"{similarity:.2f}")
    figure.suptitle(title, fontsize=13, parse_math=False)
    words = {kind: kind for kind in _FRAMES} if words is None else words
    handles = [Line2D([], [], color=_FRAMES[kind], linewidth=4, label=word) for kind, word in words.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    drawing.save(figure, path)


def _draw_photo(axes: Axes, photo: Photo, frame: str, width: float, note: str) -> None:
    """A photo in its frame, its class and a note below."""
    axes.imshow(_pixels(photo.image))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("S")
    for spine in axes.spines.values():
        spine.set(edgecolor=frame, linewidth=width)
    name = photo.caption or photo.class_name or ""
    name = name if len(name) <= 18 else name[:17] + "…"
    axes.set_xlabel(f"{name}\n{note}", fontsize=8, labelpad=4, parse_math=False)


def _pixels(image: np.ndarray | str | os.PathLike) -> np.ndarray:
    """A small upright RGB version of a photo."""
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as opened:
            picture = eight_bits(upright(opened)).convert("RGB")
    else:
        picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
