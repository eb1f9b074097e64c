"""Scores by resolution."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import BLUE, GREEN, PURPLE, plain_frame
from mg_keras.evaluation.records import by_resolution
from mg_keras.evaluation.scores import METRICS

# of descriptors as pooled, and whitened
_LOOKS = ({"label": "as pooled", "alpha": 0.45}, {"label": "whitened"})


def scores_picture(path: str | os.PathLike, scores: Mapping) -> None:
    """Draw class, instance and copy scores by resolution, side by side, with the levels of chance.

    Args:
        path: the PNG to write, whole or not at all.
        scores: what `metrics.json` holds, or its `resolutions` and `chance`.

    Raises:
        ValueError: `scores` holds no resolution.
    """
    rows, chance = by_resolution(scores), scores.get("chance", {})
    # the scores of descriptors as pooled, and whitened; of classes there is one
    panels = [
        ("top1", "top1", "Classes", "top-1 accuracy (%)", 100, GREEN),
        ("instance", "instance_whitened", "Instances", "own versions among the 5 nearest", 5, BLUE),
        ("copies_unwhitened", "copies", "Copies", "mAP of copy detection (%)", 100, PURPLE),
    ]
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    names = [_resolution_and_exponent(resolution, row) for resolution, row in rows.items()]
    for axes, (pooled, whitened, title, unit, best, colour) in zip(figure.subplots(1, 3), panels, strict=True):
        shown = _measured(rows, pooled, whitened)
        for number, key in enumerate(shown):
            metric, values = METRICS[key], [row.get(key) for row in rows.values()]
            heights = [0.0 if value is None else value * metric.factor for value in values]
            places = np.arange(len(names)) + 0.4 * (number - (len(shown) - 1) / 2)
            # beside whitened ones, those of descriptors as pooled are pale
            look = {"width": 0.6} if len(shown) == 1 else {"width": 0.38, **_LOOKS[number]}
            bars = axes.bar(places, heights, color=colour, **look)
            labels = ["not\nmeasured" if value is None else metric.text(value) for value in values]
            axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.set_xticks(range(len(names)), names)
        level = chance.get(shown[-1])
        if level is not None:
            label = f"chance {metric.text(level)}"
            axes.axhline(level * metric.factor, color="black", linestyle="--", linewidth=1.2, label=label)
        if axes.get_legend_handles_labels()[0]:
            place = {"loc": "upper left", "bbox_to_anchor": (0, -0.16), "borderaxespad": 0}
            axes.legend(**place, frameon=False, fontsize=9, ncols=3, columnspacing=1, handlelength=1.2)
        axes.set(title=title, ylabel=unit, xlim=(-0.7, len(names) - 0.3), ylim=(0, best * 1.1))
        axes.set_yticks(np.linspace(0, best, 6))
        plain_frame(axes)
    drawing.save(figure, path)


def _measured(rows, pooled, whitened):
    """Of the scores of a panel's two descriptors, those that were measured; one of them where both are one."""
    values = {key: [row.get(key) for row in rows.values()] for key in (pooled, whitened)}
    if values[pooled] == values[whitened]:
        return [whitened]
    return [key for key, found in values.items() if set(found) != {None}]


def _resolution_and_exponent(resolution: int, row: Mapping) -> str:
    p_star = row.get("p_star")
    return f"{resolution} px" if p_star is None else f"{resolution} px\np* = {p_star:g}"
