"""The scores of presets over their seeds."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import LINE_COLOURS, MARKS, plain_frame
from mg_keras.evaluation.records import ABLATION_SCORES, ablation_sizes
from mg_keras.evaluation.scores import METRICS


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
        raise ValueError("summary must hold at least one preset, received none")
    sizes = ablation_sizes(summary)
    colours = [LINE_COLOURS[number % len(LINE_COLOURS)] for number in range(len(sizes))]
    offsets = np.linspace(-0.25, 0.25, len(sizes)) if len(sizes) > 1 else [0.0]
    mean = {"marker": "|", "markersize": 13, "markeredgewidth": 2}
    figure = Figure(figsize=(14, 1.6 + 0.25 * len(presets) * (1 + len(sizes))), layout="constrained")
    panels = figure.subplots(1, len(ABLATION_SCORES), sharey=True)
    for axes, score in zip(panels, ABLATION_SCORES, strict=True):
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
    drawing.save(figure, path)


def lengths_picture(path: str | os.PathLike, summary: Mapping) -> None:
    """Draw top-1 by the length of training: a panel a resolution, a line a preset, a point a seed.

    Args:
        path: the PNG to write, whole or not at all.
        summary: as `ablation_table` takes it; what has no `length` in it is left out.

    Raises:
        ValueError: `summary` holds no length.
    """
    lines = {}
    for entry in summary["presets"].values():
        if "length" in entry:
            lines.setdefault(entry["length"]["preset"], {})[entry["length"]["epochs"]] = entry["resolutions"]
    if not lines:
        raise ValueError("summary must hold presets of a length, received none")
    sizes, metric = ablation_sizes(summary), METRICS["top1"]
    lengths = sorted({epochs for line in lines.values() for epochs in line})
    figure = Figure(figsize=(1.5 + 4.2 * len(sizes), 4.8), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for number, (preset, line) in enumerate(lines.items()):
            found = {
                epochs: rows[size]["top1"] for epochs, rows in sorted(line.items()) if "top1" in rows.get(size, {})
            }
            look = {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "marker": MARKS[number % len(MARKS)]}
            means = [metric.factor * row["mean"] for row in found.values()]
            axes.plot(list(found), means, label=preset, markersize=6, **look)
            for epochs, row in found.items():
                values = np.multiply(row["values"], metric.factor)
                axes.plot([epochs] * len(values), values, linestyle="", markersize=3, alpha=0.5, **look)
        axes.set(title=f"{size} px", xlabel="epochs", xscale="log")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        plain_frame(axes)
    panels[0].set_ylabel(metric.heading)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    drawing.save(figure, path)


def trade_picture(path: str | os.PathLike, summary: Mapping) -> None:
    """Draw IN-aug against top-1 as a setting varies: a line a resolution, a point a value (Figure 5, of lambda).

    A panel for each preset, setting and length; bars are deviations over seeds. A line goes from one number to the
    next, whatever the order of the rows.

    Args:
        path: the PNG to write, whole or not at all.
        summary: as `ablation_table` takes it; what is not `varied` is left out.

    Raises:
        ValueError: `summary` holds no row that is varied.
    """
    panels = {}
    for row in summary["presets"].values():
        if "varied" in row:
            length = f", {row['length']['epochs']} epochs" if "length" in row else ""
            title = f"{row['varied']['preset']}{length}, by {row['varied']['setting']}"
            panels.setdefault(title, []).append(row)
    if not panels:
        raise ValueError("summary must hold rows of a setting that is varied, received none")
    figure = Figure(figsize=(1.5 + 5.0 * len(panels), 5.2), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, size in enumerate(ablation_sizes(summary)):
            found = {row["varied"]["value"]: row["resolutions"].get(size, {}) for row in sorted(rows, key=_value)}
            found = {value: scores for value, scores in found.items() if {"top1", "instance"} <= scores.keys()}
            (x, width), (y, height) = (_in_unit(found.values(), score) for score in ("top1", "instance"))
            look = {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "marker": MARKS[number % len(MARKS)]}
            axes.errorbar(x, y, xerr=width, yerr=height, elinewidth=0.8, label=f"{size} px", **look)
            for value, *place in zip(found, x, y, strict=True):
                axes.annotate(value, place, xytext=(5, 4), textcoords="offset points", fontsize="small")
        across, up = METRICS["top1"].heading, METRICS["instance"].heading
        axes.set(title=title, xlabel=across, ylabel=up)
        plain_frame(axes)
        axes.legend(frameon=False)
    drawing.save(figure, path)


def _value(row):
    """The number that a row is of; texts stay as they stand."""
    try:
        return float(row["varied"]["value"])
    except ValueError:
        return 0.0


def _in_unit(rows, score):
    """Means and deviations over seeds as people read them; the deviation of a single seed is 0."""
    factor = METRICS[score].factor
    return [[factor * (row[score][name] or 0.0) for row in rows] for name in ("mean", "deviation")]
