"""Tables that programs print: scores in short, by exponent and of an ablation, and the paper's Tables 2 and 3.

All but the ablation's and the sweep's take what `metrics.json` holds (`mg_keras.evaluation.records`).
"""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mg_keras.evaluation.paper import TABLE_2, TABLE_3
from mg_keras.evaluation.records import ABLATION_SCORES, ablation_sizes, by_resolution
from mg_keras.evaluation.scores import METRICS, MISSING, Metric, metric

ROW_NAMES = {
    "gem": "GeM",
    "average": "average pooling",
    "rmac": "R-MAC",
    "exported": "as exported",
}

OF_LEVELS = ("categories", "probe")
"""Benchmarks of labels of several levels, which have tables of their own."""


def scores_table(scores: Mapping) -> Table:
    """Lay out class, instance and copy scores by resolution and p*, with the levels of chance below.

    Args:
        scores: what `metrics.json` holds, or its `resolutions` and `chance`.

    Returns:
        A table for `rich.print`.

    Raises:
        ValueError: `scores` holds no resolution.
    """
    rows, chance = by_resolution(scores), scores.get("chance", {})
    table = Table(title="Scores by resolution")
    table.add_column("resolution")
    whitened = ("instance_whitened",) if any("instance_whitened" in row for row in rows.values()) else ()
    scored = ("top1", "top5", "instance", *whitened, "copies")
    for name in ("p*", *(METRICS[score].heading for score in scored)):
        table.add_column(name, justify="right")
    for number, (resolution, row) in enumerate(rows.items(), start=1):
        p_star = row.get("p_star")
        cells = [MISSING if p_star is None else f"{p_star:g}", *_cells(row, scored)]
        table.add_row(f"{resolution} px", *cells, end_section=number == len(rows))
    table.add_row("chance", "", *_cells(chance, scored), style="dim")
    return table


def sweep_table(
    sweep: Mapping[int, Mapping[float, Mapping]],
    p_star: Mapping[int, float],
    fine_tuned: Mapping[int, float] | None = None,
) -> Table:
    """Lay out what `pictures.sweep_picture` draws, with top-5: a row for each resolution and exponent.

    Args:
        sweep: as for `pictures.sweep_picture`, with `"top5"` beside.
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


def class_table(metrics: Mapping) -> Table | None:
    """Lay out class accuracy as Table 2 does: a line for each benchmark, row and resolution, then the paper's.

    Args:
        metrics: what `metrics.json` holds.

    Returns:
        A table for `rich.print`, or None where no classes were measured.
    """
    table = Table(title="Classes, in the layout of Table 2 (the paper's: ImageNet)")
    for name in ("method", "lambda", "augmentation", "p", "s*", "p*", "top-1 / top-5, %"):
        table.add_column(name, justify="right" if name in ("lambda", "p", "s*", "p*") else "left")
    about = metrics["method"]
    for name, benchmark in metrics["benchmarks"].items():
        for size, results in benchmark["results"].items():
            for row, scores in results.items():
                if "top1" not in scores:
                    continue
                table.add_row(
                    f"{about['name']} on {name}, {row_title(row)}",
                    _number(about.get("classification_weight")),
                    about.get("augmentation") or MISSING,
                    _number(about.get("pooling_exponent")),
                    str(size),
                    _number(scores.get("pooling")),
                    " / ".join(METRICS[name].text(scores[name]) for name in ("top1", "top5")),
                )
    if not table.row_count:
        return None
    table.add_section()
    for row in TABLE_2:
        table.add_row(
            f"paper: {row.method}",
            _number(row.classification_weight),
            row.augmentation or MISSING,
            _number(row.exponent),
            str(row.resolution),
            "",
            " / ".join(METRICS[name].text_in_unit(getattr(row, name)) for name in ("top1", "top5")),
            style="dim",
        )
    return table


def retrieval_table(metrics: Mapping) -> Table | None:
    """Lay out retrieval as Table 3 does: a line a row, a column a score with its resolutions, then the paper's.

    Args:
        metrics: what `metrics.json` holds.

    Returns:
        A table for `rich.print`, or None where nothing was retrieved.
    """
    columns, names = {}, {}
    for name, benchmark in metrics["benchmarks"].items():
        for results in benchmark["results"].values() if name.partition(" ")[0] not in OF_LEVELS else ():
            for row, scores in results.items():
                for score in scores:
                    # the scores of each kind of edit are for metrics.json: a table has no room for them
                    if score not in ("top1", "top5", "pooling") and not (name == "copies" and score.startswith("mAP ")):
                        columns[name, score] = benchmark["results"]
                        names[row] = True
    if not columns:
        return None
    paper = {("holidays", "mAP"): "holidays", ("ukb", "score"): "ukb", ("copydays", "mAP"): "copydays"}
    for column in paper:
        columns.setdefault(column, {})
    table = Table(title="Retrieval, in the layout of Table 3")
    table.add_column("method")
    table.add_column("lambda", justify="right")
    for (name, score), results in columns.items():
        sizes = " ".join(f"{size}" for size in results)
        table.add_column(f"{name}\n{score}" + (f"\n{sizes}" if sizes else ""), justify="right")
    about = metrics["method"]
    for row in names:
        table.add_row(
            f"{about['name']}, {row_title(row)}",
            _number(about.get("classification_weight")),
            *(
                " ".join(metric(score).text(scores.get(row, {}).get(score)) for scores in results.values()) or MISSING
                for (_, score), results in columns.items()
            ),
        )
    table.add_section()
    for row in TABLE_3:
        table.add_row(
            f"paper: {row.method}",
            _number(row.classification_weight),
            *(
                _paper_cell(metric(column[1]), getattr(row, paper[column]) if column in paper else {}) or MISSING
                for column in columns
            ),
            style="dim",
        )
    return table


def levels_tables(metrics: Mapping) -> list[Table]:
    """Lay out what was measured at each level of labels: a line a resolution and row, a column a score, then chance.

    Args:
        metrics: what `metrics.json` holds.

    Returns:
        A table for `rich.print` for each benchmark of `OF_LEVELS`.
    """
    return [
        _levels_table(name, benchmark, metrics["method"]["name"])
        for name, benchmark in metrics["benchmarks"].items()
        if name.partition(" ")[0] in OF_LEVELS
    ]


def _levels_table(name: str, benchmark: Mapping, method: str) -> Table:
    lines = [(size, row, scores) for size, results in benchmark["results"].items() for row, scores in results.items()]
    scored = [score for score in lines[0][2] if score != "pooling"]
    table = Table(title=f"{name}: {method}")
    for heading in ("descriptor", "s*", "p*", *(metric(score).heading for score in scored)):
        table.add_column(heading, justify="left" if heading == "descriptor" else "right")
    for number, (size, row, scores) in enumerate(lines, start=1):
        cells = [metric(score).text(scores.get(score)) for score in scored]
        pooling = _number(scores.get("pooling"))
        table.add_row(row_title(row), str(size), pooling, *cells, end_section=number == len(lines))
    chance = benchmark["chance"]
    table.add_row("chance", "", "", *(metric(score).text(chance.get(score)) for score in scored), style="dim")
    return table


def row_title(row: str) -> str:
    """What a person calls the row `row` of `metrics.json`."""
    name, _, descriptor = row.partition("_")
    return ROW_NAMES[name] + (f", {descriptor}" if descriptor else "")


def _paper_cell(kind, scores):
    """The paper's scores of one cell: at 224, 500 and 800 as they are, others with their resolution."""
    usual = tuple(scores) == (224, 500, 800)
    return " ".join(
        kind.text_in_unit(score) + ("" if usual or resolution is None else f" (s={resolution})")
        for resolution, score in scores.items()
    )


def _number(value):
    return MISSING if value is None else value if isinstance(value, str) else f"{value:g}"


def _ablation_cells(summary: Mapping) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of an ablation's table."""
    headings = ["resolution", "preset", "seeds", "p*", *(METRICS[score].heading for score in ABLATION_SCORES)]
    rows = []
    for size in ablation_sizes(summary):
        for name, preset in summary["presets"].items():
            found = preset["resolutions"].get(size)
            if found is None:
                continue
            exponents = ", ".join(f"{p:g}" for p in sorted(set(found["p_star"])))
            scores = [_mean_cell(found.get(score), METRICS[score]) for score in ABLATION_SCORES]
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
