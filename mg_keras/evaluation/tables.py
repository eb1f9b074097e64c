"""Measured scores in the layout of the paper's Tables 2 and 3, with the paper's own figures beside.

Both take what `metrics.json` holds (`mg_keras.finishing.scores.evaluate` writes it): `benchmarks`, by name, with
`results` by resolution and row, and `method`, which says what was measured.
"""

from rich.table import Table

from mg_keras.evaluation.paper import TABLE_2, TABLE_3
from mg_keras.evaluation.scores import METRICS, MISSING, metric

ROW_NAMES = {
    "gem": "GeM",
    "average": "average pooling",
    "rmac": "R-MAC",
    "exported": "as exported",
}


def class_table(metrics):
    """Lay out class accuracy as Table 2 does: a line for each benchmark, row and resolution, then the paper's.

    Args:
        metrics: as this module's docstring says.

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


def retrieval_table(metrics):
    """Lay out retrieval as Table 3 does: a line a row, a column a score with its resolutions, then the paper's.

    Args:
        metrics: as this module's docstring says.

    Returns:
        A table for `rich.print`, or None where nothing was retrieved.
    """
    columns, names = {}, {}
    for name, benchmark in metrics["benchmarks"].items():
        for results in benchmark["results"].values():
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
                _by_resolution(metric(column[1]), getattr(row, paper[column]) if column in paper else {}) or MISSING
                for column in columns
            ),
            style="dim",
        )
    return table


def row_title(row):
    """What a person calls the row `row` of `metrics.json`."""
    name, _, whitened = row.partition("_")
    return ROW_NAMES[name] + (", whitened" if whitened else "")


def _by_resolution(kind, scores):
    """The paper's scores of one cell: at 224, 500 and 800 as they are, others with their resolution."""
    usual = tuple(scores) == (224, 500, 800)
    return " ".join(
        kind.text_in_unit(score) + ("" if usual or resolution is None else f" (s={resolution})")
        for resolution, score in scores.items()
    )


def _number(value):
    return MISSING if value is None else value if isinstance(value, str) else f"{value:g}"
