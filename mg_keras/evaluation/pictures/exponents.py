"""Scores by pooling exponent, with the chosen p*."""

import os
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.pictures.drawing import LINE_COLOURS, plain_frame
from mg_keras.evaluation.scores import METRICS

# marks of chosen exponents, above all curves and axes
_STAR = {"marker": "*", "linestyle": "none", "markersize": 17, "markeredgecolor": "black", "zorder": 4}
_DIAMOND = {"marker": "D", "linestyle": "none", "markersize": 9, "markeredgecolor": "black", "zorder": 4}


def exponent_picture(
    path: str | os.PathLike,
    table: Mapping[int, Mapping[float, float]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
    errors: Mapping[int, Mapping[float, float]] | None = None,
    score: str = "IN-aug score (of 5)",
) -> None:
    """Draw the score by pooling exponent for each resolution, the chosen p* marked (MultiGrain, Figure 4's shape).

    Args:
        path: the PNG to write, whole or not at all.
        table: resolution in pixels -> exponent -> score.
        p_star: resolution -> the chosen exponent, one of its exponents in `table`.
        fine_tuned: resolution -> a learnt exponent, marked on the horizontal axis since its score is not known.
        errors: resolution -> exponent -> standard error of how far its score is below the best, drawn as bars.
        score: what the vertical axis says.

    Raises:
        ValueError: an empty table, or a p* that is not in it.
    """
    if not table or not all(table.values()):
        raise ValueError(f"table must hold at least one exponent for each of its resolutions, received {table!r}")
    for resolution, by_exponent in table.items():
        if p_star.get(resolution) not in by_exponent:
            raise ValueError(
                f"p_star must name one of the exponents {sorted(by_exponent)} for {resolution} px, "
                f"received {p_star.get(resolution)}"
            )
    fine_tuned = fine_tuned or {}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, resolution in enumerate(sorted({*table, *fine_tuned})):
        colour, names = LINE_COLOURS[number % len(LINE_COLOURS)], []
        learnt, line = fine_tuned.get(resolution), None
        if resolution in table:
            by_exponent, chosen = table[resolution], p_star[resolution]
            names.append(f"p* = {chosen:g}")
            line = _exponent_line(axes, by_exponent, colour)
            if known := (errors or {}).get(resolution):
                bars = {p: known[p] for p in sorted(by_exponent) if p in known}
                heights = [by_exponent[p] for p in bars]
                axes.errorbar(list(bars), heights, list(bars.values()), fmt="none", ecolor=colour, capsize=3)
            axes.plot(chosen, by_exponent[chosen], color=colour, **_STAR)
        if learnt is not None:
            names.append(f"fine-tuned p = {learnt:.2f}")
            mark = axes.axvline(learnt, color=colour, linestyle=":", linewidth=1.2)
            axes.plot(learnt, 0, color=colour, transform=axes.get_xaxis_transform(), clip_on=False, **_DIAMOND)
            line = line or mark
        line.set_label(f"{resolution} px, {', '.join(names)}")
    marks = "star: chosen p*" + (", diamond: fine-tuned p" if fine_tuned else "")
    if errors:
        marks += ", bars: standard error below the best"
    axes.set(xlabel="pooling exponent p", ylabel=score, title=f"Score by pooling exponent\n({marks})")
    _exponent_ticks(axes, {p for by_exponent in table.values() for p in by_exponent})
    axes.legend(facecolor="white", edgecolor="none", framealpha=1)
    plain_frame(axes)
    drawing.save(figure, path)


def sweep_picture(
    path: str | os.PathLike,
    sweep: Mapping[int, Mapping[float, Mapping]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
) -> None:
    """Draw top-1 accuracy and IN-aug score by pooling exponent, side by side, a line a resolution.

    Args:
        path: the PNG to write, whole or not at all.
        sweep: resolution in pixels -> exponent -> `{"top1": share, "instance": 1 to 5}`.
        p_star: resolution -> the exponent that cross-validation chose, a star where it is in `sweep`.
        fine_tuned: resolution -> the exponent that was learnt, a diamond where it is in `sweep`.

    Raises:
        ValueError: `sweep` holds no resolution, or one without exponents.
    """
    if not sweep or not all(sweep.values()):
        raise ValueError(f"sweep must hold at least one exponent for each of its resolutions, received {sweep!r}")
    fine_tuned = fine_tuned or {}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    panels = [
        ("top1", "Classes", "top-1 accuracy (%)"),
        ("instance", "Instances", "IN-aug score (of 5)"),
    ]
    for axes, (key, title, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, (resolution, by_exponent) in enumerate(sorted(sweep.items())):
            colour = LINE_COLOURS[number % len(LINE_COLOURS)]
            values = {p: scores[key] * METRICS[key].factor for p, scores in by_exponent.items()}
            _exponent_line(axes, values, colour).set_label(f"{resolution} px")
            for exponent, mark in ((p_star.get(resolution), _STAR), (fine_tuned.get(resolution), _DIAMOND)):
                if exponent in values:
                    axes.plot(exponent, values[exponent], color=colour, **mark)
        axes.set(title=title, xlabel="pooling exponent p", ylabel=unit)
        # learnt exponents are no round numbers, and would crowd the axis
        _exponent_ticks(axes, {p for size, found in sweep.items() for p in found if p != fine_tuned.get(size)})
        plain_frame(axes)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    marks = [(_STAR, "p* by cross-validation on IN-aug"), (_DIAMOND, "p fine-tuned")]
    handles += [Line2D([], [], color="0.6", label=name, **mark) for mark, name in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    drawing.save(figure, path)


def _exponent_line(axes: Axes, by_exponent: Mapping[float, float], colour: str) -> Line2D:
    """Scores by exponent as a line with points."""
    exponents = sorted(by_exponent)
    (line,) = axes.plot(exponents, [by_exponent[p] for p in exponents], "o-", color=colour, markersize=4)
    return line


def _exponent_ticks(axes: Axes, exponents: set[float]) -> None:
    """The exponents that were tried, as the horizontal axis' ticks."""
    axes.set_xticks(sorted(exponents), [f"{p:g}" for p in sorted(exponents)])
