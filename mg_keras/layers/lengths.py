"""What layers ask of columns that go with the rows of a batch."""

from typing import Any


def check_column(name: str, column: Any, rows: Any) -> None:
    """Checks that a column has one value a row, as far as its shape is known: broadcasting would take one for all.

    Args:
        name: of the column.
        column: [B].
        rows: [B, d].

    Raises:
        ValueError: it has another number of values.
    """
    found, expected = (getattr(value, "shape", None) for value in (column, rows))
    found, expected = (shape[0] if shape is not None and len(shape) else None for shape in (found, expected))
    if None not in (found, expected) and found != expected:
        raise ValueError(f"{name} must hold one value for each of {expected} rows, received {found}")
