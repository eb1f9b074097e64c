"""What each score is called, its unit, and the digits that it is printed with: those of the paper's tables.

Everything that prints or draws a score asks here.
"""

from dataclasses import dataclass

MISSING = "–"
"""What stands in a table for a score that was not measured."""


@dataclass(frozen=True)
class Metric:
    """How a score is shown.

    Attributes:
        title: what a heading calls it.
        unit: what stands behind the title.
        factor: times a measured value is the value in that unit.
        digits: behind the decimal point.
    """

    title: str
    unit: str
    factor: float = 1.0
    digits: int = 2

    @property
    def heading(self) -> str:
        """Title and unit, for a column or an axis."""
        return f"{self.title} {self.unit}"

    def text(self, value: float | None) -> str:
        """A measured value in its unit, without the unit: a share of 0.9 is `90.0`, a score of 3.8 is `3.80`."""
        return self.text_in_unit(None if value is None else value * self.factor)

    def text_in_unit(self, value: float | None) -> str:
        """A value that is in its unit already, as published ones are."""
        return MISSING if value is None else f"{value:.{self.digits}f}"


def percentage(title: str, digits: int = 1) -> Metric:
    """A share, shown in %."""
    return Metric(title, "%", 100.0, digits)


METRICS = {
    "top1": percentage("top-1"),
    "top5": percentage("top-5"),
    "val_top1": percentage("val top-1"),
    "val_top5": percentage("val top-5"),
    "instance": Metric("IN-aug", "/5"),
    "views": Metric("views", "/4"),
    "copies": percentage("copies mAP"),
    "copies_unwhitened": percentage("unwhitened mAP"),
    # of UKB and IN-aug, of 4 or 5
    "score": Metric("score", ""),
    "loss": Metric("loss", "", digits=3),
    "beta": Metric("beta", "", digits=3),
    # near 100 %, where the second digit tells
    "class_agreement": percentage("class agreement", digits=2),
    "variance_kept": percentage("variance", digits=2),
}


def metric(name: str) -> Metric:
    """How the score `name` of a benchmark is shown; one that isn't declared is a share, as every mAP is."""
    return METRICS.get(name) or percentage(name)
