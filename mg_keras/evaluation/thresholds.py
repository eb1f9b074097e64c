"""From which cosine on two photos are a copy, or show the same instance."""

from collections.abc import Sequence

import numpy as np

PRECISIONS = (0.9, 0.99)

# pairs that are held before any are dropped
_FEWEST = 1 << 16


def threshold_at_precision(similarities: np.ndarray, matches: np.ndarray, precision: float) -> float | None:
    """The smallest similarity t for which, of the pairs at t or above, the share `precision` or more match.

    Args:
        similarities: [N], of pairs.
        matches: bool [N], which of them belong together.
        precision: in (0, 1].

    Returns:
        t, or None where no t gives that precision.

    Raises:
        ValueError: the shapes differ, or the precision is out of range.

    Example:

    >>> threshold_at_precision(np.array([0.9, 0.8, 0.7]), np.array([True, True, False]), 0.99)
    0.8
    """
    similarities, matches = np.asarray(similarities, np.float64), np.asarray(matches, bool)
    if similarities.shape != matches.shape or similarities.ndim != 1:
        raise ValueError(f"similarities and matches must be [N], received {similarities.shape} and {matches.shape}")
    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], received {precision}")
    order = np.argsort(-similarities, kind="stable")
    values, found = similarities[order], np.cumsum(matches[order])
    # pairs of equal similarity come together or not at all
    last = np.append(values[1:] != values[:-1], True) if len(values) else np.zeros(0, bool)
    good = last & (found >= precision * np.arange(1, len(values) + 1)) & (found > 0)
    return float(values[good][-1]) if good.any() else None


def thresholds(
    similarities: np.ndarray, matches: np.ndarray, precisions: Sequence[float] = PRECISIONS
) -> dict[str, float]:
    """`threshold_at_precision` at several precisions: "0.99" -> cosine, rounded down to four digits.

    Those that no cosine gives are missing.
    """
    found = {f"{precision:g}": threshold_at_precision(similarities, matches, precision) for precision in precisions}
    return {name: _rounded_down(value) for name, value in found.items() if value is not None}


class TopPairs:
    """The pairs that decide `thresholds`, of any number of pairs that come in blocks.

    Where M of all pairs match, no more than M / p of them lie at or above a threshold of precision p: the M / p most
    similar pairs tell as much as all, and no others are kept.

    Args:
        matching: M, how many of all pairs match, or more.
        precisions: as `thresholds` takes them.

    Attributes:
        held: pairs in memory: twice M / p, and some ten thousand, at most.

    Example:

    >>> pairs = TopPairs(matching=2)
    >>> pairs.add(np.array([0.9, 0.2]), np.array([True, False]))
    >>> pairs.add(np.array([0.8, 0.1]), np.array([True, False]))
    >>> pairs.thresholds()
    {'0.9': 0.8, '0.99': 0.8}
    """

    def __init__(self, matching: int, precisions: Sequence[float] = PRECISIONS):
        self.precisions, self.held = precisions, 0
        # one more than by exact arithmetic does no harm
        self._most = int(matching / min(precisions)) + 1
        self._floor = -np.inf
        self._similarities: list[np.ndarray] = []
        self._matches: list[np.ndarray] = []

    def add(self, similarities: np.ndarray, matches: np.ndarray) -> None:
        """Looks at further pairs: similarities [N], bool [N] which of them match."""
        above = similarities > self._floor
        self._similarities.append(similarities[above])
        self._matches.append(matches[above])
        self.held += int(above.sum())
        if self.held > 2 * self._most + _FEWEST:
            self._drop()

    def thresholds(self) -> dict[str, float]:
        """As `thresholds` of all pairs."""
        return thresholds(*self._all(), self.precisions)

    def _all(self):
        # of no block at all, too
        return (
            np.concatenate([np.zeros(0, np.float32), *self._similarities]),
            np.concatenate([np.zeros(0, bool), *self._matches]),
        )

    def _drop(self):
        """Raises the floor as far as more pairs than count are there at it or above."""
        similarities, matches = self._all()
        place = self.held - 1 - self._most
        self._floor = np.partition(similarities, place)[place]
        above = similarities > self._floor
        self._similarities, self._matches, self.held = [similarities[above]], [matches[above]], int(above.sum())


def _rounded_down(value):
    """To four digits: what a threshold stands for must not lie below it."""
    rounded = round(value, 4)
    return rounded if rounded <= value else round(rounded - 1e-4, 4)
