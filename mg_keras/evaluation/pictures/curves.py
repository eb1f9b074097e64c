"""The curves of a training."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import BLUE, GREEN, RED, plain_frame
from mg_keras.evaluation.records import read_columns
from mg_keras.metric import TrainingMetric

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
    columns = read_columns(Path(csv_path))
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
        for metric, colour in zip(drawn, itertools.cycle((BLUE, RED, GREEN)), strict=False):
            validated = f"val_{metric.name}"
            training = f"{metric.curve}, training" if validated in columns else metric.curve
            draw(panel, metric.name, metric.factor, training, colour, "-")
            draw(panel, validated, metric.factor, f"{metric.curve}, test", colour, "--")
        units = {metric.unit for metric in drawn} - {""}
        axes_of[panel].set(title=panel, ylabel=", ".join(sorted(units)))
        if units == {"%"}:
            axes_of[panel].set_ylim(0, 102)
    draw(_RATE, "learning_rate", 1, "learning rate", BLUE, "-")
    for axes in list(axes_of.values())[-2:]:
        axes.set_xlabel("iteration")
    for axes in axes_of.values():
        plain_frame(axes)
        if axes.lines:
            # minus a cosine and KoLeo lie below it
            if min(np.min(line.get_ydata()) for line in axes.lines) >= 0:
                axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
    drawing.save(figure, png_path)
