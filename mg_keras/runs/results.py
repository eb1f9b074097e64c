"""What the stages after training leave in a run's folder: exponents, whitenings and scores, each in its file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.files import atomic_write_json

# p_star.json has a table by resolution for each of these fields
_TABLES = {
    "p_star": "p_star",
    "scores": "scores",
    "fine_tuned": "fine_tuned",
    "errors": "errors",
    "rule": "rules",
    "network": "networks",
}
_BY_EXPONENT = {"scores", "errors"}


@dataclasses.dataclass(frozen=True)
class ChosenExponent:
    """What is kept of the choice of p* at one resolution.

    Attributes:
        p_star: the exponent in use.
        scores: exponent -> IN-aug score; None where it was fine-tuned only.
        errors: exponent -> standard error of how far its score is below the best; None without, and of older choices.
        rule: `{"augmentation", "tolerance", "training_exponent", "photos"}` of the choice by scores; None without, and
            of older choices: their versions are those of the recipe `full`, and the highest score was taken.
        fine_tuned: `{"p_star", "initial", "photos"}` of the exponent learnt; None before that.
        network: `Run.fingerprint` of the network that p* was chosen for; None of older choices.
    """

    p_star: float
    scores: Mapping[float, float] | None = None
    errors: Mapping[float, float] | None = None
    rule: Mapping[str, Any] | None = None
    fine_tuned: Mapping[str, Any] | None = None
    network: str | None = None


class Results:
    """The results in a folder; `Run` says which files there are.

    Args:
        folder: where they lie.
        resolution: pixels of the training crops: that of the exported whitening.
        pooling_exponent: p of training, in use where no p* was chosen.
    """

    def __init__(self, folder: Path, resolution: int, pooling_exponent: float):
        self.folder, self.resolution, self.pooling_exponent = folder, resolution, pooling_exponent

    def exponent_at(self, resolution: int) -> float:
        """The chosen p* of a resolution, or the training exponent where none was chosen."""
        return float(self.p_star.get(resolution, self.pooling_exponent))

    def whitening_path(self, resolution: int, pooling: float | str | None = None) -> Path:
        """Where a fitted whitening lies.

        Args:
            resolution: s*, pixels. The whitening of the training resolution is the exported one.
            pooling: None for that of the resolution's p*; an exponent or `"rmac"` for one that is fitted beside it, for
                comparison.
        """
        if pooling is not None:
            name = pooling if isinstance(pooling, str) else f"p{pooling:g}"
            return self.folder / f"whitening-{resolution}-{name}.npz"
        exported = resolution == self.resolution
        return self.folder / ("whitening.npz" if exported else f"whitening-{resolution}.npz")

    def whitening_at(self, resolution: int, pooling: float | str | None = None) -> Whitening | None:
        """The `Whitening` at a `whitening_path`, or None before it is fitted."""
        path = self.whitening_path(resolution, pooling)
        return Whitening.load(path) if path.exists() else None

    @property
    def whitened_resolutions(self) -> list[int]:
        """The resolutions that have a `whitening_at` of their own."""
        sizes = [path.stem.removeprefix("whitening-") for path in self.folder.glob("whitening-*.npz")]
        sizes = {self.resolution, *(int(size) for size in sizes if size.isdecimal())}
        return sorted(size for size in sizes if self.whitening_path(size).exists())

    @property
    def whitening(self) -> Whitening | None:
        """The `Whitening` that is exported, or None before it is fitted."""
        return self.whitening_at(self.resolution)

    @property
    def whitening_report(self) -> dict[int, dict[str, Any]]:
        """Resolution -> how its whitening was fitted and what it costs in classes; empty before the fit."""
        return {int(resolution): entry for resolution, entry in read_json(self.folder / "whitening.json").items()}

    def save_whitening_report(self, report: Mapping[int, Mapping[str, Any]]) -> None:
        """Writes `whitening.json`."""
        atomic_write_json(self.folder / "whitening.json", report)

    @property
    def p_star(self) -> dict[int, float]:
        """Resolution in pixels -> the exponent chosen for it; empty before the choice."""
        return {size: choice.p_star for size, choice in self.choices.items()}

    @property
    def choices(self) -> dict[int, ChosenExponent]:
        """Resolution in pixels -> what is known of the exponent chosen for it; empty before the choice."""
        content = read_json(self.folder / "p_star.json")
        tables = {name: content.get(table, {}) for name, table in _TABLES.items()}
        choices = {}
        for size in content.get("p_star", {}):
            known = {name: table[size] for name, table in tables.items() if size in table}
            for name in known.keys() & _BY_EXPONENT:
                known[name] = {float(exponent): value for exponent, value in known[name].items()}
            choices[int(size)] = ChosenExponent(**known)
        return choices

    def save_choices(self, choices: Mapping[int, ChosenExponent], **how) -> None:
        """Writes `p_star.json`.

        Args:
            choices: resolution -> `ChosenExponent`.
            how: how the scores were measured.
        """
        content = {}
        for name, table in _TABLES.items():
            known = {size: getattr(choice, name) for size, choice in choices.items()}
            known = {size: value for size, value in known.items() if value is not None}
            content[table] = _by_name(known) if name in _BY_EXPONENT else known
        atomic_write_json(self.folder / "p_star.json", {**content, **how})

    @property
    def exponent_sweep(self) -> dict[int, dict[float, dict[str, float]]]:
        """Resolution -> exponent -> `{"top1", "top5", "instance"}`; empty before they were measured."""
        return {
            int(size): {float(p): scores for p, scores in by_exponent.items()}
            for size, by_exponent in read_json(self.folder / "sweep.json").items()
        }

    def save_exponent_sweep(self, sweep: Mapping[int, Mapping[float, Mapping[str, float]]]) -> None:
        """Writes `sweep.json`."""
        atomic_write_json(self.folder / "sweep.json", _by_name(sweep))

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds; empty before the evaluation."""
        return read_json(self.folder / "metrics.json")

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes `metrics.json`."""
        atomic_write_json(self.folder / "metrics.json", metrics)


def read_json(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; empty where there is none.

    Raises:
        UserError: it is no JSON.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _by_name(table):
    """Resolution -> exponent -> ..., its exponents as text: 3 and 3.0, measured now or read before, are one name."""
    return {
        size: {repr(float(p)).removesuffix(".0"): value for p, value in by_exponent.items()}
        for size, by_exponent in table.items()
    }
