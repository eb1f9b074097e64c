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
import itertools
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
from mg_keras.evaluation.scores import METRICS, MISSING, Metric
from mg_keras.files import atomic_path
from mg_keras.metric import TrainingMetric

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_BLUE, _GREEN, _RED, _ORANGE, _PURPLE = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#AA5599"
_LINE_COLOURS = (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, "black")
# marks of chosen exponents, above all curves and axes
_STAR = {"marker": "*", "linestyle": "none", "markersize": 17, "markeredgecolor": "black", "zorder": 4}
_DIAMOND = {"marker": "D", "linestyle": "none", "markersize": 9, "markeredgecolor": "black", "zorder": 4}
_PHOTO_SIDE = 240

_FRAMES = {"same instance": _BLUE, "same class": _GREEN, "another class": _RED}


@dataclass(frozen=True)
class Photo:
    """A photo in a picture of retrieval.

    Attributes:
        image: uint8 [H, W, 3] RGB, or the path of a photo.
        class_name: what its caption says; None when not known.
        instance: the same for all photos of one object, or for a photo and its copies; None when not known.
    """

    image: np.ndarray | str | os.PathLike
    class_name: str | None
    instance: str | None = None

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
        >>> from mg_keras.evaluation.search import nearest
        >>> photos = [Photo(np.full([30, 40, 3], 20 * i, np.uint8), "cup") for i in range(4)]
        >>> embeddings = np.eye(4) + 0.1
        >>> similarities, indices = nearest(embeddings[:2], embeddings, k=3)
        >>> rows = [[(photos[i], s) for i, s in zip(*row)] for row in zip(indices[:, 1:], similarities[:, 1:])]
        >>> retrieval_picture("retrieval.png", photos[:2], rows)
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
        ("top1", "Classes", "top-1 accuracy (%)", 100, _GREEN),
        ("instance", "Instances", "own versions among the 5 nearest", 5, _BLUE),
        ("copies", "Copies", "mAP of copy detection (%)", 100, _PURPLE),
    ]
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    names = [_resolution_and_exponent(resolution, row) for resolution, row in rows.items()]
    for axes, (key, title, unit, best, colour) in zip(figure.subplots(1, 3), panels, strict=True):
        metric, values = METRICS[key], [row.get(key) for row in rows.values()]
        heights = [0.0 if value is None else value * metric.factor for value in values]
        bars = axes.bar(names, heights, color=colour, width=0.6)
        labels = ["not\nmeasured" if value is None else metric.text(value) for value in values]
        axes.bar_label(bars, labels, padding=3, fontsize=10)
        level = chance.get(key)
        if level is not None:
            label = f"chance {metric.text(level)}"
            axes.axhline(level * metric.factor, color="black", linestyle="--", linewidth=1.2, label=label)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=9, borderaxespad=0)
        axes.set(title=title, ylabel=unit, xlim=(-0.7, len(names) - 0.3), ylim=(0, best * 1.1))
        axes.set_yticks(np.linspace(0, best, 6))
        _plain_frame(axes)
    _save(figure, path)


def exponent_picture(
    path: str | os.PathLike,
    table: Mapping[int, Mapping[float, float]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
    score: str = "IN-aug score (of 5)",
) -> None:
    """Draw the score by pooling exponent for each resolution, the chosen p* marked (MultiGrain, Figure 4's shape).

    Args:
        path: the PNG to write, whole or not at all.
        table: resolution in pixels -> exponent -> score.
        p_star: resolution -> the chosen exponent, one of its exponents in `table`.
        fine_tuned: resolution -> a learnt exponent, marked on the horizontal axis since its score is not known.
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
    fine_tuned = fine_tuned or {}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, resolution in enumerate(sorted({*table, *fine_tuned})):
        colour, names = _LINE_COLOURS[number % len(_LINE_COLOURS)], []
        learnt, line = fine_tuned.get(resolution), None
        if resolution in table:
            by_exponent, chosen = table[resolution], p_star[resolution]
            names.append(f"p* = {chosen:g}")
            line = _exponent_line(axes, by_exponent, colour)
            axes.plot(chosen, by_exponent[chosen], color=colour, **_STAR)
        if learnt is not None:
            names.append(f"fine-tuned p = {learnt:.2f}")
            mark = axes.axvline(learnt, color=colour, linestyle=":", linewidth=1.2)
            axes.plot(learnt, 0, color=colour, transform=axes.get_xaxis_transform(), clip_on=False, **_DIAMOND)
            line = line or mark
        line.set_label(f"{resolution} px, {', '.join(names)}")
    marks = "star: chosen p*" + (", diamond: fine-tuned p" if fine_tuned else "")
    axes.set(xlabel="pooling exponent p", ylabel=score, title=f"Score by pooling exponent ({marks})")
    _exponent_ticks(axes, {p for by_exponent in table.values() for p in by_exponent})
    axes.legend(facecolor="white", edgecolor="none", framealpha=1)
    _plain_frame(axes)
    _save(figure, path)


def sweep_picture(
    path: str | os.PathLike,
    sweep: Mapping[int, Mapping[float, Mapping]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
) -> None:
    """Draw top-1 accuracy and IN-aug score by pooling exponent, side by side, a line a resolution.

    Args:
        path: the PNG to write, whole or not at all.
        sweep: resolution in pixels -> exponent -> `{"top1": share, "instance": 1 to 5}`, as `exponent_sweep` of
            `mg_keras.finishing.pooling_exponent` gives it.
        p_star: resolution -> the exponent that cross-validation chose, a star where it is in `sweep`.
        fine_tuned: resolution -> the exponent that was learnt, a diamond where it is in `sweep`.

    Raises:
        ValueError: `sweep` holds no resolution, or one without exponents.
    """
    if not sweep or not all(sweep.values()):
        raise ValueError(f"sweep must hold at least one exponent for each of its resolutions, got {sweep!r}")
    fine_tuned = fine_tuned or {}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    panels = [
        ("top1", "Classes", "top-1 accuracy (%)"),
        ("instance", "Instances", "IN-aug score (of 5)"),
    ]
    for axes, (key, title, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, (resolution, by_exponent) in enumerate(sorted(sweep.items())):
            colour = _LINE_COLOURS[number % len(_LINE_COLOURS)]
            values = {p: scores[key] * METRICS[key].factor for p, scores in by_exponent.items()}
            _exponent_line(axes, values, colour).set_label(f"{resolution} px")
            for exponent, mark in ((p_star.get(resolution), _STAR), (fine_tuned.get(resolution), _DIAMOND)):
                if exponent in values:
                    axes.plot(exponent, values[exponent], color=colour, **mark)
        axes.set(title=title, xlabel="pooling exponent p", ylabel=unit)
        # learnt exponents are no round numbers, and would crowd the axis
        _exponent_ticks(axes, {p for size, found in sweep.items() for p in found if p != fine_tuned.get(size)})
        _plain_frame(axes)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    marks = [(_STAR, "p* by cross-validation on IN-aug"), (_DIAMOND, "p fine-tuned")]
    handles += [Line2D([], [], color="0.6", label=name, **mark) for mark, name in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    _save(figure, path)


def sweep_table(
    sweep: Mapping[int, Mapping[float, Mapping]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
) -> Table:
    """Lay out what `sweep_picture` draws, with top-5: a row for each resolution and exponent.

    Args:
        sweep: as for `sweep_picture`, with `"top5"` beside.
        p_star: resolution -> the exponent that cross-validation chose.
        fine_tuned: resolution -> the exponent that was learnt.

    Returns:
        A table for `rich.print`.
    """
    table = Table(title="Scores by resolution and pooling exponent")
    table.add_column("resolution")
    scored = ("top1", "top5", "instance")
    for name in ("p", *(METRICS[score].heading for score in scored)):
        table.add_column(name, justify="right")
    table.add_column("chosen by")
    for resolution, by_exponent in sorted(sweep.items()):
        choices = {"cross-validation": p_star.get(resolution), "fine-tuning": (fine_tuned or {}).get(resolution)}
        for exponent, scores in sorted(by_exponent.items()):
            table.add_row(
                f"{resolution} px",
                f"{exponent:.4g}",
                *_cells(scores, scored),
                ", ".join(name for name, choice in choices.items() if choice == exponent),
                end_section=exponent == max(by_exponent),
            )
    return table


def _exponent_line(axes: Axes, by_exponent: Mapping[float, float], colour: str) -> Line2D:
    """Scores by exponent as a line with points."""
    exponents = sorted(by_exponent)
    (line,) = axes.plot(exponents, [by_exponent[p] for p in exponents], "o-", color=colour, markersize=4)
    return line


def _exponent_ticks(axes: Axes, exponents: set[float]) -> None:
    """The exponents that were tried, as the horizontal axis' ticks."""
    axes.set_xticks(sorted(exponents), [f"{p:g}" for p in sorted(exponents)])


_RATE = "Learning rate"


def training_curves(
    csv_path: str | os.PathLike, png_path: str | os.PathLike, metrics: Sequence[TrainingMetric]
) -> None:
    """Draw what a run's objective measures, and the learning rate, by iteration.

    Args:
        csv_path: a run's `metrics.csv`, with a column `step` (the iterations done) and any of `learning_rate`, those of
            the metrics, and `val_NAME` of a metric that is measured in validation, too. Fields may be empty.
        png_path: the PNG to write, whole or not at all.
        metrics: the objective's.

    Raises:
        UserError: the file cannot be read, has no column `step` or no rows, or holds something that is no number.
    """
    columns = _read_columns(Path(csv_path))
    panels = list(dict.fromkeys([*(metric.panel for metric in metrics), _RATE]))
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    axes_of = dict(zip(panels, figure.subplots(rows, 2, sharex=True, squeeze=False).flat, strict=False))
    for unused in figure.axes[len(panels) :]:
        unused.remove()

    def draw(panel, name, factor, label, colour, style):
        measured = np.isfinite(columns.get(name, []))
        if measured.any():
            values = columns[name][measured] * factor
            axes_of[panel].plot(columns["step"][measured], values, style, marker=".", color=colour, label=label)

    for panel in panels:
        drawn = [metric for metric in metrics if metric.panel == panel]
        for metric, colour in zip(drawn, itertools.cycle((_BLUE, _RED, _GREEN)), strict=False):
            validated = f"val_{metric.name}"
            training = f"{metric.curve}, training" if validated in columns else metric.curve
            draw(panel, metric.name, metric.factor, training, colour, "-")
            draw(panel, validated, metric.factor, f"{metric.curve}, test", colour, "--")
        units = {metric.unit for metric in drawn} - {""}
        axes_of[panel].set(title=panel, ylabel=", ".join(sorted(units)))
        if units == {"%"}:
            axes_of[panel].set_ylim(0, 102)
    draw(_RATE, "learning_rate", 1, "learning rate", _BLUE, "-")
    for axes in list(axes_of.values())[-2:]:
        axes.set_xlabel("iteration")
    for axes in axes_of.values():
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
    scored = ("top1", "top5", "instance", "copies")
    for name in ("p*", *(METRICS[score].heading for score in scored)):
        table.add_column(name, justify="right")
    for number, (resolution, row) in enumerate(rows.items(), start=1):
        p_star = row.get("p_star")
        cells = [MISSING if p_star is None else f"{p_star:g}", *_cells(row, scored)]
        table.add_row(f"{resolution} px", *cells, end_section=number == len(rows))
    table.add_row("chance", "", *_cells(chance, scored), style="dim")
    return table


# the scores of an ablation's table and picture
_ABLATION = ("top1", "instance", "copies", "copies_unwhitened")


def ablation_table(summary: Mapping) -> Table:
    """Lay out an ablation: for each resolution a row a preset, mean ± standard deviation over its seeds.

    Args:
        summary: what `mg_keras.programs.ablations.collect` returns; `ablation.json` holds it.

    Returns:
        A table for `rich.print`.
    """
    headings, rows = _ablation_cells(summary)
    table = Table(title="Mean ± standard deviation over seeds")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number + 1 < len(rows) and rows[number + 1][0] != row[0])
    return table


def ablation_markdown(summary: Mapping) -> str:
    """The table of `ablation_table` in Markdown, ending in a line break."""
    headings, rows = _ablation_cells(summary)
    ruler = ["---", "---", *["---:"] * (len(headings) - 2)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ruler, *rows))


def ablation_picture(path: str | os.PathLike, summary: Mapping) -> None:
    """Draw an ablation: a panel a score, a line a preset and resolution, a point a seed and a bar at the mean.

    Args:
        path: the PNG to write, whole or not at all.
        summary: as `ablation_table` takes it, with at least one preset.

    Raises:
        ValueError: `summary` holds no preset.
    """
    presets = summary["presets"]
    if not presets:
        raise ValueError("summary must hold at least one preset, got none")
    sizes = _ablation_sizes(summary)
    colours = [_LINE_COLOURS[number % len(_LINE_COLOURS)] for number in range(len(sizes))]
    offsets = np.linspace(-0.25, 0.25, len(sizes)) if len(sizes) > 1 else [0.0]
    mean = {"marker": "|", "markersize": 13, "markeredgewidth": 2}
    figure = Figure(figsize=(14, 1.6 + 0.25 * len(presets) * (1 + len(sizes))), layout="constrained")
    panels = figure.subplots(1, len(_ABLATION), sharey=True)
    for axes, score in zip(panels, _ABLATION, strict=True):
        metric = METRICS[score]
        for place, preset in enumerate(presets.values()):
            for size, colour, offset in zip(sizes, colours, offsets, strict=True):
                found = preset["resolutions"].get(size, {}).get(score)
                if found:
                    height = place + offset
                    values = np.multiply(found["values"], metric.factor)
                    axes.plot(values, [height] * len(values), "o", color=colour, markersize=5, alpha=0.6)
                    axes.plot(found["mean"] * metric.factor, height, color=colour, **mean)
        axes.set(title=metric.heading, ylim=(len(presets) - 0.5, -0.5))
        axes.grid(axis="x", color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(presets)), list(presets))
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=f"{size} px")
        for size, colour in zip(sizes, colours, strict=True)
    ]
    handles.append(Line2D([], [], color="0.3", linestyle="", label="mean", **mean))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    _save(figure, path)


def _ablation_sizes(summary: Mapping) -> list[str]:
    """The resolutions that any preset was measured at, smallest first."""
    return sorted({size for preset in summary["presets"].values() for size in preset["resolutions"]}, key=int)


def _ablation_cells(summary: Mapping) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of an ablation's table."""
    headings = ["resolution", "preset", "seeds", "p*", *(METRICS[score].heading for score in _ABLATION)]
    rows = []
    for size in _ablation_sizes(summary):
        for name, preset in summary["presets"].items():
            found = preset["resolutions"].get(size)
            if found is None:
                continue
            exponents = ", ".join(f"{p:g}" for p in sorted(set(found["p_star"])))
            scores = [_mean_cell(found.get(score), METRICS[score]) for score in _ABLATION]
            rows.append([f"{size} px", name, str(len(found["p_star"])), exponents, *scores])
    return headings, rows


def _mean_cell(found: Mapping | None, metric: Metric) -> str:
    """`mean ± deviation`, the mean alone of a single seed."""
    if found is None:
        return MISSING
    deviation = found["deviation"]
    return metric.text(found["mean"]) + ("" if deviation is None else f" ± {metric.text(deviation)}")


def _cells(row: Mapping, scored: Sequence[str]) -> list[str]:
    """Scores as a table prints them."""
    return [METRICS[score].text(row.get(score)) for score in scored]


def _by_resolution(scores: Mapping) -> dict[int, Mapping]:
    """The rows of scores, smallest resolution first."""
    rows = {int(resolution): row for resolution, row in scores.get("resolutions", {}).items()}
    if not rows:
        raise ValueError(f"scores must hold at least one resolution under 'resolutions', got the keys {list(scores)}")
    return dict(sorted(rows.items()))


def _resolution_and_exponent(resolution: int, row: Mapping) -> str:
    p_star = row.get("p_star")
    return f"{resolution} px" if p_star is None else f"{resolution} px\np* = {p_star:g}"


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
    name = photo.class_name or ""
    name = name if len(name) <= 18 else name[:17] + "…"
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
