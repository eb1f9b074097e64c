"""The scores of presets over their seeds."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import LINE_COLOURS
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
