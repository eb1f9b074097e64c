"""What a person looks at after a run: pictures as PNG and the table of scores.

`scores` is everywhere the same dictionary, as it lies in a run's `metrics.json`:

    {
        "resolutions": {
            "64": {"p_star": 3.0, "top1": 0.61, "top5": 0.93, "instance": 4.4, "copies": 0.71},
            "96": {...},
        },
        "chance": {"top1": 0.06, "top5": 0.31, "instance": 1.02, "copies": 0.005},
    }

Resolutions are pixels (JSON makes them strings; numbers serve as well); `top1` and `top5` are shares of the test
photos; `instance` is the IN-aug score, the mean number of an image's own five augmented versions among its five nearest
(1 to 5); `copies` is the mAP of copy detection. A score that was not measured is left out or None.
"""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageOps
from rich.table import Table

from mg_keras.errors import UserError
from mg_keras.files import atomic_path

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_BLUE, _GREEN, _RED, _ORANGE, _PURPLE = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#AA5599"
_PHOTO_SIDE = 240

_FRAMES = {"same instance": _BLUE, "same class": _GREEN, "another class": _RED}


@dataclass(frozen=True)
class Photo:
    """A photo in a picture of retrieval.

    Attributes:
        image: uint8 [H, W, 3] RGB, or the path of a photo.
        class_name: what its caption says.
        instance: the same for all photos of one object, or for a photo and its copies; None when not known.
    """

    image: np.ndarray | str | os.PathLike
    class_name: str
    instance: str | None = None

    def kinship(self, other: "Photo") -> str:
        """Say how `other` relates to this photo: "same instance", "same class" or "another class"."""
        if self.instance is not None and self.instance == other.instance:
            return "same instance"
        return "same class" if self.class_name == other.class_name else "another class"


def retrieval_picture(
    path: str | os.PathLike,
    queries: Sequence[Photo],
    neighbours: Sequence[Sequence[tuple[Photo, float]]],
    title: str = "Queries (left) and their nearest neighbours",
) -> None:
    """Draw each query and its nearest neighbours in a row, framed by what they share with it.

    The frame is blue when a neighbour shows the query's instance (or is its copy), green when only the class is the
    same, red otherwise; the caption gives the neighbour's class and its cosine similarity.

    Args:
        path: the PNG to write, whole or not at all.
        queries: one a row.
        neighbours: for each query its neighbours with their similarity, nearest first.
        title: the line at the top.

    Raises:
        ValueError: no queries, or not one list of neighbours a query.

    Example:
        >>> similarities, indices = nearest(embeddings[:5], embeddings, k=7)
        >>> rows = [[(photos[i], s) for i, s in zip(*row)] for row in zip(indices[:, 1:], similarities[:, 1:])]
        >>> retrieval_picture("retrieval.png", photos[:5], rows)
    """
    if not queries or len(queries) != len(neighbours):
        raise ValueError(
            f"neighbours must hold one list a query, for at least one, got {len(neighbours)} for {len(queries)} queries"
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
    handles = [Line2D([], [], color=colour, linewidth=4, label=kind) for kind, colour in _FRAMES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    _save(figure, path)


def scores_picture(path: str | os.PathLike, scores: Mapping) -> None:
    """Draw class, instance and copy scores by resolution, side by side, with the levels of chance.

    Args:
        path: the PNG to write, whole or not at all.
        scores: as this module's docstring says.

    Raises:
        ValueError: `scores` holds no resolution.
    """
    rows, chance = _by_resolution(scores), scores.get("chance", {})
    panels = [
        ("top1", "Classes", "top-1 accuracy (%)", 100.0, 100, _GREEN),
        ("instance", "Instances", "own versions among the 5 nearest", 1.0, 5, _BLUE),
        ("copies", "Copies", "mAP of copy detection (%)", 100.0, 100, _PURPLE),
    ]
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    names = [_resolution_and_exponent(resolution, row) for resolution, row in rows.items()]
    for axes, (key, title, unit, scale, best, colour) in zip(figure.subplots(1, 3), panels, strict=True):
        values = [_number(row.get(key)) * scale for row in rows.values()]
        bars = axes.bar(names, np.nan_to_num(values), color=colour, width=0.6)
        digits = 1 if scale > 1 else 2
        labels = [f"{value:.{digits}f}" if math.isfinite(value) else "not\nmeasured" for value in values]
        axes.bar_label(bars, labels, padding=3, fontsize=10)
        level = _number(chance.get(key)) * scale
        if math.isfinite(level):
            axes.axhline(level, color="black", linestyle="--", linewidth=1.2, label=f"chance {level:.{digits}f}")
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=9, borderaxespad=0)
        axes.set(title=title, ylabel=unit, xlim=(-0.7, len(names) - 0.3), ylim=(0, best * 1.1))
        axes.set_yticks(np.linspace(0, best, 6))
        _plain_frame(axes)
    _save(figure, path)


def exponent_picture(
    path: str | os.PathLike,
    table: Mapping[int, Mapping[float, float]],
    p_star: Mapping[int, float],
    score: str = "IN-aug score (of 5)",
) -> None:
    """Draw the score by pooling exponent for each resolution, the chosen p* marked (MultiGrain, Figure 4's shape).

    Args:
        path: the PNG to write, whole or not at all.
        table: resolution in pixels -> exponent -> score.
        p_star: resolution -> the chosen exponent, one of its exponents in `table`.
        score: what the vertical axis says.

    Raises:
        ValueError: an empty table, or a p* that is not in it.
    """
    if not table or not all(table.values()):
        raise ValueError(f"table must hold at least one exponent for each of its resolutions, got {table!r}")
    for resolution, by_exponent in table.items():
        if p_star.get(resolution) not in by_exponent:
            raise ValueError(
                f"p_star must name one of the exponents {sorted(by_exponent)} for {resolution} px, "
                f"got {p_star.get(resolution)}"
            )
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = [_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, "black"]
    for number, (resolution, by_exponent) in enumerate(sorted(table.items())):
        colour, chosen = colours[number % len(colours)], p_star[resolution]
        exponents = sorted(by_exponent)
        label = f"{resolution} px, p* = {chosen:g}"
        axes.plot(exponents, [by_exponent[p] for p in exponents], "o-", color=colour, markersize=4, label=label)
        axes.plot(chosen, by_exponent[chosen], "*", color=colour, markersize=17, markeredgecolor="black")
    every_exponent = sorted({p for by_exponent in table.values() for p in by_exponent})
    axes.set(xlabel="pooling exponent p", ylabel=score, title="Score by pooling exponent (star: chosen p*)")
    axes.set_xticks(every_exponent, [f"{p:g}" for p in every_exponent])
    axes.legend(frameon=False)
    _plain_frame(axes)
    _save(figure, path)


def training_curves(csv_path: str | os.PathLike, png_path: str | os.PathLike) -> None:
    """Draw the losses, accuracies, beta and learning rate of a run by iteration.

    Args:
        csv_path: a run's `metrics.csv`, with a column `step` (the iterations done) and any of `loss`,
            `classification_loss`, `retrieval_loss`, `top1`, `top5`, `val_top1`, `val_top5` (shares), `active_share`,
            `beta` and `learning_rate`. Fields may be empty.
        png_path: the PNG to write, whole or not at all.

    Raises:
        UserError: the file cannot be read, has no column `step` or no rows, or holds something that is no number.
    """
    columns = _read_columns(Path(csv_path))
    figure = Figure(figsize=(11, 7), layout="constrained")
    (losses, accuracies), (margin, rate) = figure.subplots(2, 2, sharex=True)
    curves = [
        (losses, "loss", "joint", _BLUE, "-"),
        (losses, "classification_loss", "classes", _RED, "-"),
        (losses, "retrieval_loss", "margin", _GREEN, "-"),
        (accuracies, "top1", "top-1, training", _BLUE, "-"),
        (accuracies, "val_top1", "top-1, test", _BLUE, "--"),
        (accuracies, "top5", "top-5, training", _RED, "-"),
        (accuracies, "val_top5", "top-5, test", _RED, "--"),
        (margin, "beta", "beta", _BLUE, "-"),
        (margin, "active_share", "share of active triplets", _RED, "-"),
        (rate, "learning_rate", "learning rate", _BLUE, "-"),
    ]
    for axes, name, label, colour, style in curves:
        measured = np.isfinite(columns.get(name, []))
        if measured.any():
            values = columns[name][measured] * (100 if axes is accuracies else 1)
            axes.plot(columns["step"][measured], values, style, marker=".", color=colour, label=label)
    losses.set(title="Losses", ylabel="loss")
    accuracies.set(title="Accuracy (training: on augmented crops)", ylabel="%", ylim=(0, 102))
    margin.set(title="Margin loss", xlabel="iteration")
    rate.set(title="Learning rate", xlabel="iteration")
    for axes in (losses, accuracies, margin, rate):
        _plain_frame(axes)
        if axes.lines:
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
    _save(figure, png_path)


def scores_table(scores: Mapping, title: str = "Scores by resolution") -> Table:
    """Lay out class, instance and copy scores by resolution and p*, with the levels of chance below.

    Args:
        scores: as this module's docstring says.
        title: the line at the top.

    Returns:
        A table for `rich.print`.

    Raises:
        ValueError: `scores` holds no resolution.
    """
    rows, chance = _by_resolution(scores), scores.get("chance", {})
    table = Table(title=title)
    table.add_column("resolution")
    for name in ("p*", "top-1 %", "top-5 %", "instance /5", "copies mAP %"):
        table.add_column(name, justify="right")
    for number, (resolution, row) in enumerate(rows.items(), start=1):
        p_star = _number(row.get("p_star"))
        cells = _cells(row)
        table.add_row(
            f"{resolution} px", f"{p_star:g}" if math.isfinite(p_star) else "–", *cells, end_section=number == len(rows)
        )
    table.add_row("chance", "", *_cells(chance), style="dim")
    return table


def _cells(row: Mapping) -> list[str]:
    """The four scores as the table prints them."""
    scales = {"top1": (100, 1), "top5": (100, 1), "instance": (1, 2), "copies": (100, 1)}
    values = {key: (_number(row.get(key)) * scale, digits) for key, (scale, digits) in scales.items()}
    return [f"{value:.{digits}f}" if math.isfinite(value) else "–" for value, digits in values.values()]


def _by_resolution(scores: Mapping) -> dict[int, Mapping]:
    """The rows of scores, smallest resolution first."""
    rows = {int(resolution): row for resolution, row in scores.get("resolutions", {}).items()}
    if not rows:
        raise ValueError(f"scores must hold at least one resolution under 'resolutions', got the keys {list(scores)}")
    return dict(sorted(rows.items()))


def _resolution_and_exponent(resolution: int, row: Mapping) -> str:
    p_star = _number(row.get("p_star"))
    return f"{resolution} px\np* = {p_star:g}" if math.isfinite(p_star) else f"{resolution} px"


def _number(value: float | None) -> float:
    """A missing score as NaN."""
    return math.nan if value is None else float(value)


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV of numbers; empty fields are NaN."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the metrics {path} cannot be read: {error}") from error
    if "step" not in names or not rows:
        raise UserError(f"the metrics {path} must hold a column 'step' and at least one row; columns found: {names}")
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    except ValueError as error:
        raise UserError(f"the metrics {path} must hold numbers only: {error}") from error


def _draw_photo(axes: Axes, photo: Photo, frame: str, width: float, note: str) -> None:
    """A photo in its frame, its class and a note below."""
    axes.imshow(_pixels(photo.image))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("S")
    for spine in axes.spines.values():
        spine.set(edgecolor=frame, linewidth=width)
    name = photo.class_name if len(photo.class_name) <= 18 else photo.class_name[:17] + "…"
    axes.set_xlabel(f"{name}\n{note}", fontsize=8, labelpad=4, parse_math=False)


def _pixels(image: np.ndarray | str | os.PathLike) -> np.ndarray:
    """A small upright RGB version of a photo."""
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    else:
        picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _plain_frame(axes: Axes) -> None:
    """Light lines to read values by, and no box."""
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120, facecolor="white")
