"""The figures of a run as its JSON and CSV files hold them: what they are made of, and reading them.

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
(1 to 5), as pooled; `copies` is the mAP of copy detection, whitened where there is a whitening; `instance_whitened` and
`copies_unwhitened` are the others. A score that was not measured is left out or None.
"""

import csv
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from mg_keras.errors import UserError
from mg_keras.evaluation.paper import TABLE_2, TABLE_3

ABLATION_SCORES = ("top1", "instance", "copies", "copies_unwhitened")
"""The scores of an ablation's table and picture."""


# score in short -> where it lies in full: benchmark, row and metric
_IN_SHORT = {
    "top1": ("classes", "gem", "top1"),
    "top5": ("classes", "gem", "top5"),
    "instance": ("in_aug", "gem", "score"),
    "instance_whitened": ("in_aug", "gem_whitened", "score"),
    "copies": ("copies", "gem_whitened", "mAP"),
    "copies_unwhitened": ("copies", "gem", "mAP"),
    "views": ("views", "gem", "score"),
}


def by_resolution(scores: Mapping) -> dict[int, Mapping]:
    """The rows of scores, smallest resolution first."""
    rows = {int(resolution): row for resolution, row in scores.get("resolutions", {}).items()}
    if not rows:
        raise ValueError(
            f"scores must hold at least one resolution under 'resolutions', received the keys {list(scores)}"
        )
    return dict(sorted(rows.items()))


def ablation_sizes(summary: Mapping) -> list[str]:
    """The resolutions that any preset was measured at, smallest first."""
    return sorted({size for preset in summary["presets"].values() for size in preset["resolutions"]}, key=int)


def read_columns(path: Path) -> dict[str, np.ndarray]:
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


def merged(before: Mapping, measured: Mapping) -> dict:
    """Benchmarks as JSON has them: what was measured now in place of the same from before, the rest as it was."""
    everything = dict(before)
    for name, entry in measured.items():
        same_photos = before.get(name, {}).get("description") == entry["description"]
        results = dict(before[name]["results"]) if same_photos else {}
        results.update({str(size): scores for size, scores in entry["results"].items()})
        everything[name] = {**entry, "results": dict(sorted(results.items(), key=lambda item: int(item[0])))}
    return everything


def without_whitened(metrics: Mapping, size: int) -> dict:
    """What metrics.json holds without scores of whitened descriptors at a resolution that gets another whitening."""

    def kept(rows, is_whitened):
        return {
            key: {name: value for name, value in row.items() if key != str(size) or not is_whitened(name)}
            for key, row in rows.items()
        }

    in_short = {key for key, (_, row, _) in _IN_SHORT.items() if row.endswith("_whitened")}
    everything = {
        name: {**entry, "results": kept(entry["results"], lambda row: row.endswith("_whitened"))}
        for name, entry in metrics.get("benchmarks", {}).items()
    }
    resolutions = kept(metrics.get("resolutions", {}), in_short.__contains__)
    return {**metrics, "resolutions": resolutions, "benchmarks": everything}


def summary(everything: Mapping, p_star: Mapping[int, float], whitened: Collection[int] = ()) -> dict:
    """The run's own scores in short, by resolution, with the levels of chance; none that are of another p* than now.

    Where there is no whitening (`whitened` has the resolutions of one), copies are found by the plain descriptor.
    """
    rows, chance = {}, {}
    for key, (name, row, metric) in _IN_SHORT.items():
        for size, results in everything.get(name, {}).get("results", {}).items():
            value = results.get(row, {}).get(metric)
            is_current = int(size) in p_star and results.get(row, {}).get("pooling") == p_star[int(size)]
            if is_current and value is not None:
                rows.setdefault(size, {"p_star": p_star[int(size)]})[key] = value
        if metric in everything.get(name, {}).get("chance", {}):
            chance[key] = everything[name]["chance"][metric]
    for size, row in rows.items():
        if "copies_unwhitened" in row and int(size) not in whitened:
            row.setdefault("copies", row["copies_unwhitened"])
    return {"resolutions": dict(sorted(rows.items(), key=lambda item: int(item[0]))), "chance": chance}


def of_benchmarks(metrics: Mapping, names: Collection[str], sizes: Collection[int]) -> dict:
    """What metrics.json holds, without benchmarks and resolutions that are not named: for who asked for these alone.

    Args:
        metrics: what metrics.json holds.
        names: of benchmarks.
        sizes: pixels.
    """
    wanted, sizes = {key for key, (name, _, _) in _IN_SHORT.items() if name in names}, set(map(str, sizes))
    rows = {
        size: {key: value for key, value in row.items() if key in wanted or key == "p_star"}
        for size, row in metrics["resolutions"].items()
        if size in sizes and wanted & row.keys()
    }
    everything = {
        name: {**entry, "results": {size: found for size, found in entry["results"].items() if size in sizes}}
        for name, entry in metrics["benchmarks"].items()
        if name in names
    }
    chance = {key: value for key, value in metrics["chance"].items() if key in wanted}
    return {**metrics, "resolutions": rows, "chance": chance, "benchmarks": everything}


def paper_tables() -> dict:
    """The paper's tables as JSON has them."""
    tables = {"table_2": TABLE_2, "table_3": TABLE_3}
    return {name: [dataclasses.asdict(row) for row in table] for name, table in tables.items()}
