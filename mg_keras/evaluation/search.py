"""Exact nearest-neighbour search by cosine similarity: the one place that does it."""

import faiss
import numpy as np

# Bounds what ties at the cut-off can cost: a block of queries times the whole database, at worst.
_QUERIES_AT_ONCE = 1024


def nearest(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` rows of the database most similar to each query, exactly (FAISS, IndexFlatIP).

    Rows need not be normalised. Among equal similarities the lower row number comes first, at the cut-off too, so
    the answer does not depend on how FAISS keeps its candidates.

    Args:
        queries: [Q, d] descriptors.
        database: [N, d] descriptors.
        k: how many neighbours, 1 to N; N ranks the whole database.

    Returns:
        similarities: float32 [Q, k], cosines in [-1, 1], largest first.
        indices: int64 [Q, k], row numbers of the database.

    Raises:
        ValueError: shapes that don't fit, numbers that are not finite, a row of zeros, or `k` out of range.

    Example:
        >>> similarities, indices = nearest([[1.0, 0.1]], [[0.0, 3.0], [2.0, 0.0]], k=2)
        >>> indices
        array([[1, 0]])
    """
    queries, database = unit_rows(queries, "queries"), unit_rows(database, "database")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries and database must have the same dimensions, received {queries.shape[1]} and {database.shape[1]}"
        )
    if not 1 <= k <= len(database):
        raise ValueError(f"k must be from 1 to the {len(database)} rows of the database, received {k}")
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(database)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        block = slice(start, start + _QUERIES_AT_ONCE)
        similarities[block], indices[block] = _search(index, queries[block], k)
    return np.clip(similarities, -1.0, 1.0), indices


def unit_rows(rows: np.ndarray, name: str) -> np.ndarray:
    """float32 rows of norm 1.

    Args:
        rows: [N, d], of any norm.
        name: what an error calls them.

    Raises:
        ValueError: they are anything else than finite rows [N, d], none of them zero.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must be [number of images, dimensions], received the shape {rows.shape}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name} must be finite, but row {np.argmin(finite)} holds a NaN or an infinity")
    # The largest magnitude is divided out first: squares of float32 overflow at 1.8e19 and vanish at 1e-23.
    largest = np.max(np.abs(rows), axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name} must have a direction, but row {np.argmin(largest)} is all zero")
    rows = rows / largest
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _search(index: faiss.IndexFlatIP, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows by falling similarity, then by row number."""
    width = min(k + 1, index.ntotal)
    similarities, indices = index.search(queries, width)
    # FAISS keeps any of the rows that tie at the cut-off; all of them must be seen to keep the first ones.
    while width < index.ntotal and np.any(similarities[:, k - 1] == similarities[:, -1]):
        width = min(2 * width, index.ntotal)
        similarities, indices = index.search(queries, width)
    order = np.lexsort((indices, -similarities))[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)
