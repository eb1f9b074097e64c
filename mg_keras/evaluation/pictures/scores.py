"""Scores by resolution."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import BLUE, GREEN, PURPLE, plain_frame
from mg_keras.evaluation.records import by_resolution
from mg_keras.evaluation.scores import METRICS


def scores_picture(path: str | os.PathLike, scores: Mapping) -> None:
    """Draw class, instance and copy scores by resolution, side by side, with the levels of chance.

    Args:
        path: the PNG to write, whole or not at all.
        scores: what `metrics.json` holds, or its `resolutions` and `chance`.

    Raises:
        ValueError: `scores` holds no resolution.
    """
    rows, chance = by_resolution(scores), scores.get("chance", {})
    panels = [
        ("top1", "Classes", "top-1 accuracy (%)", 100, GREEN),
        ("instance", "Instances", "own versions among the 5 nearest", 5, BLUE),
        ("copies", "Copies", "mAP of copy detection (%)", 100, PURPLE),
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
        plain_frame(axes)
    drawing.save(figure, path)


def _resolution_and_exponent(resolution: int, row: Mapping) -> str:
    p_star = row.get("p_star")
    return f"{resolution} px" if p_star is None else f"{resolution} px\np* = {p_star:g}"
