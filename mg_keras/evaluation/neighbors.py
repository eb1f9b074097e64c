"""Classes read from neighbours: classification by the nearest photos, and retrieval of a whole class."""

import numpy as np

from mg_keras.evaluation.search import nearest

# a block's ranking of a whole database is held at a time
_QUERIES_AT_ONCE = 512


def vote(
    queries: np.ndarray,
    database: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Classify rows by their nearest neighbours, each with the weight `exp(cosine / temperature)` (Wu et al. 2018).

    Args:
        queries: [Q, d] descriptors, of any norm.
        database: [N, d] descriptors, at least one.
        labels: [N], of the database, numbers or names.
        k: neighbours that vote, at least 1; of fewer than `k` rows all vote.
        temperature: > 0.

    Returns:
        [Q], in the kind of `labels`: the one with the largest sum; of equal ones the first in order.

    Raises:
        ValueError: a number out of range, no database, or labels that don't fit.

    Example:
        >>> vote([[1.0, 0.1]], [[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]], np.array([4, 2, 2]), k=2)
        array([4])
    """
    labels = np.asarray(labels)
    if k < 1:
        raise ValueError(f"k must be at least 1, received {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, received {temperature}")
    if not len(database) or labels.shape != (len(database),):
        raise ValueError(
            f"labels must be one a row of the database, at least one, received shapes {labels.shape} and "
            f"{np.shape(database)}"
        )
    if not len(queries):
        return labels[:0]
    cosines, rows = nearest(queries, database, min(k, len(database)))
    classes, numbers = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(cosines), len(classes)))
    # relative to the nearest: no weight overflows
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    np.add.at(votes, (np.arange(len(cosines))[:, None], numbers[rows]), weights)
    return classes[np.argmax(votes, axis=1)]


def category_average_precisions(
    descriptors: np.ndarray, labels: dict[str, np.ndarray], missing: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Rank all other rows for each row, and compute the average precision of those with its label, by several labels.

    It is the trapezoid form of `mg_keras.evaluation.metrics.average_precision`.

    Args:
        descriptors: [N, d], of any norm.
        labels: name -> integers >= 0 [N].
        missing: name -> for each label the number of further rows that have it and could not be found; None: none.

    Returns:
        name -> float64 [N]; NaN for a row that is the only one of its label.

    Example:
        >>> rows = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
        >>> category_average_precisions(rows, {"kind": np.array([0, 1, 0])})
        {'kind': array([0.25,  nan, 0.25])}
    """
    descriptors, size = np.asarray(descriptors), len(descriptors)
    found = {name: np.full(size, np.nan) for name in labels}
    for start in range(0, size, _QUERIES_AT_ONCE):
        queries = np.arange(start, min(start + _QUERIES_AT_ONCE, size))
        _, ranking = nearest(descriptors[queries], descriptors, size)
        # without the query itself
        ranking = ranking[ranking != queries[:, None]].reshape(len(queries), size - 1)
        for name, values in labels.items():
            right = values[ranking] == values[queries][:, None]
            there = right.sum(axis=1)
            if missing:
                there = there + missing[name][values[queries]]
            rank, before = np.arange(size - 1), np.cumsum(right, axis=1) - right
            precision = (np.where(rank > 0, before / np.maximum(rank, 1), 1.0) + (before + 1) / (rank + 1)) / 2
            total = np.sum(precision * right, axis=1)
            found[name][queries] = np.where(there > 0, total / np.maximum(there, 1), np.nan)
    return found
