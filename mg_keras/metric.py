"""How a number is shown: its name, its unit, and the digits that it is printed with."""

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


@dataclass(frozen=True, kw_only=True)
class TrainingMetric(Metric):
    """What an objective measures at each step, in the CSV of a run, its curves and its progress.

    Attributes:
        name: of the column.
        panel: the heading of the curves that it is drawn among.
        curve: what its curve is called there.
        is_noted: whether the line of progress says it.
    """

    name: str
    panel: str
    curve: str
    is_noted: bool = False


def percentage(title: str, digits: int = 1) -> Metric:
    """A share, shown in %."""
    return Metric(title, "%", 100.0, digits)
