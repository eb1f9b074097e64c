"""Classes read from neighbours: classification by the nearest photos, and retrieval of a whole class."""

import numpy as np

from mg_keras.evaluation.metrics import average_precision
from mg_keras.evaluation.search import nearest, unit_rows

# a block's similarities to a whole database are held at a time
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
    size = len(descriptors)
    found = {name: np.full(size, np.nan) for name in labels}
    if not size:
        return found
    rows = unit_rows(descriptors, "descriptors")
    members = {name: _members(values) for name, values in labels.items()}
    for start in range(0, size, _QUERIES_AT_ONCE):
        similarities = rows[start : start + _QUERIES_AT_ONCE] @ rows.T
        for query, of_query in enumerate(similarities, start):
            of_query[query] = -np.inf  # the query itself comes last
            ordered = np.sort(of_query)
            for name, values in labels.items():
                label = values[query]
                right = members[name][label]
                there = len(right) - 1 + (missing[name][label] if missing else 0)
                if there:
                    ranks = _ranks(of_query, ordered, right[right != query])
                    found[name][query] = average_precision(ranks, there)
    return found


def _members(labels):
    """label -> the rows that have it, in their order."""
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _ranks(similarities, ordered, rows):
    """The places of some rows, from 0, in the order of falling similarity, of equal ones in that of their numbers.

    `ordered` are the similarities from the smallest: a row's place is the number of those that are larger, so that
    nothing but numbers has to be sorted.
    """
    of_rows = similarities[rows]
    larger = len(ordered) - np.searchsorted(ordered, of_rows, side="right")
    as_large = len(ordered) - np.searchsorted(ordered, of_rows, side="left")
    if np.any(as_large - larger > 1):
        places = np.empty(len(ordered), np.int64)
        places[np.argsort(-similarities, kind="stable")] = np.arange(len(ordered))
        larger = places[rows]
    return larger
