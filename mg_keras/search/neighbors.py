"""Nearest neighbours among the descriptors of an index: exact, or approximate by FAISS and ranked by exact ones.

Four kinds:

* `exact`: all descriptors are compared, in float32 in memory;
* `ivf`: those in the cells nearest to the query, each held in 8 bits a value (IVF, scalar quantiser);
* `pq`: the same with one bit a value (IVF-PQ, fast scan), for tens of millions;
* `hnsw`: by walking a graph (HNSW, scalar quantiser), quicker to answer and slower to build.

Of the last three the first few hundred answers are ranked anew by the descriptors themselves, mapped into memory.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mg_keras.errors import UserError
from mg_keras.progress import Progress, announce

KINDS = ("auto", "exact", "ivf", "pq", "hnsw")
"""What an index may be told to search by; `auto` chooses by size and memory."""

# below which all descriptors are compared: a query of 512 values takes some 20 ms on two cores
_EXACT_BYTES = 256 << 20
# rows that wait, compared one by one, before they are added to what finds neighbours
TAIL_ROWS = 16_384
# rows of which all are compared, whatever the kind
_FEW = 16_384
_BLOCK = 8_192
RERANKED = 16
"""Answers that are ranked by exact descriptors, for each that is wanted."""

TRAINED_PER_CELL = 48
"""Descriptors of the sample."""

_TUNED = 128
_WANTED_RECALL = 0.97
# what twice the effort must add to recall, lest it be given up
_HARDLY_MORE = 0.001
_LINKS = 32


@dataclasses.dataclass(frozen=True)
class Base:
    """What finds neighbours among the first rows.

    Attributes:
        index: of FAISS.
        kind: of `KINDS`, but `auto`.
        rows: how many it covers.
        effort: cells, or candidates of the graph, that a query looks at.
        reranked: answers that are ranked by exact descriptors, for each that is wanted.
        used_alone: whether its index has only rows that are used.
    """

    index: Any
    kind: str
    rows: int
    effort: int = 0
    reranked: int = RERANKED
    used_alone: bool = False


def choose(rows: int, dimensions: int, kind: str, memory: int) -> str:
    """The kind to search so many rows by.

    Args:
        rows, dimensions: N and D.
        kind: of `KINDS`.
        memory: bytes that may be held.
    """
    if kind != "auto":
        return kind
    if rows * dimensions * 4 <= min(_EXACT_BYTES, memory):
        return "exact"
    return "ivf" if rows * (dimensions + 16) <= memory // 2 else "pq"


def exact(descriptors: np.ndarray) -> Base:
    """Compares all: float32 [N, D] in memory, from float16."""
    index = faiss.IndexFlatIP(descriptors.shape[1])
    for start in range(0, len(descriptors), _BLOCK):
        index.add(_float32(descriptors[start : start + _BLOCK]))
    return Base(index, "exact", len(descriptors))


def build(
    descriptors: np.ndarray, used: np.ndarray, kind: str, seed: int = 0, show: bool = False
) -> tuple[Base, float]:
    """Makes what finds neighbours approximately, and measures it.

    Args:
        descriptors: float16 [N, D] of unit norm.
        used: bool [N], the rows that may be answers.
        kind: `"ivf"`, `"pq"` or `"hnsw"`.
        seed: of what is drawn.
        show: whether to say how far it has come.

    Returns:
        (base, recall): the base, whose effort is the least by which recall@10 reaches 0.97 on some of the rows, as far
        as it can; and that recall, in [0, 1].
    """
    count, size = descriptors.shape
    rng = np.random.default_rng(seed)
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(size, faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        sample = _sample(descriptors, 65_536, rng)
    else:
        cells = cells_for(count)
        quantizer = faiss.IndexFlatIP(size)
        if kind == "ivf":
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, size, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
            )
        else:
            width = _padded(size)
            quantizer = faiss.IndexFlatIP(width)
            index = faiss.IndexIVFPQFastScan(quantizer, width, cells, width // 4, 4, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.spherical, index.cp.seed = 8, True, seed
        index.cp.max_points_per_centroid = TRAINED_PER_CELL
        sample = _sample(descriptors, TRAINED_PER_CELL * cells, rng)
    if show:
        announce(f"learning where {count:,} descriptors lie")
    index.train(_fitted(index, sample))
    del sample
    base = extended(Base(index, kind, 0), descriptors, show)
    if show:
        announce("measuring how well neighbours are found")
    usable = np.flatnonzero(used)
    rows = np.sort(rng.choice(usable, min(_TUNED, len(usable)), replace=False))
    queries = _float32(descriptors[rows])
    _, true = exact_nearest(descriptors, used, queries, min(11, len(usable)))
    return tuned(base, descriptors, used, rows, queries, true)


def extended(base: Base, descriptors: np.ndarray, show: bool = False) -> Base:
    """The base with the rows that it does not cover yet; its own index is added to."""
    count = len(descriptors)
    with Progress("ordering descriptors", count if show else base.rows, "descriptors", start=base.rows) as progress:
        for start in range(base.rows, count, _BLOCK):
            block = _float32(descriptors[start : start + _BLOCK])
            base.index.add(_fitted(base.index, block))
            if show:
                progress.advance(len(block))
    return dataclasses.replace(base, rows=count)


def write(base: Base, path: Path) -> None:
    """Writes an approximate base to a file."""
    faiss.write_index(base.index, str(path))


def read(path: Path, kind: str, rows: int, effort: int, mapped: bool = True) -> Base:
    """Opens the file of an approximate base.

    Args:
        path: of the file.
        kind, rows, effort: as `Base` has them.
        mapped: whether it stays on the disk, as far as FAISS can, and is only read; False: it may be added to.

    Raises:
        FileNotFoundError: there is no file.
        UserError: it can't be read.
    """
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped and kind == "ivf" else 0
    try:
        return Base(faiss.read_index(str(path), flags), kind, rows, effort)
    except RuntimeError as error:
        raise UserError(f"{path} can't be read: {str(error).splitlines()[0]}; build the index anew") from error


class Neighbors:
    """Finds rows of descriptors.

    Safe to use from several threads.

    Args:
        descriptors: float16 [N, D] of unit norm, perhaps mapped into memory.
        used: bool [N], the rows that may be answers.
        base: what finds neighbours among the first rows; the others are compared one by one.
    """

    def __init__(self, descriptors: np.ndarray, used: np.ndarray, base: Base):
        self.descriptors, self.used, self.base = descriptors, used, base
        self._tail = _float32(descriptors[base.rows :])
        self._used = int(np.count_nonzero(used[: base.rows]))

    def nearest(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The rows most similar to each query.

        Args:
            queries: float32 [Q, D] of unit norm.
            k: how many, at least 1.
            among: bool [N], rows that alone may be answers; None: all that are used.

        Returns:
            similarities: float32 [Q, k], cosines, largest first; -inf where there are fewer than k rows.
            rows: int64 [Q, k], of equal similarities the lower one first; -1 where there are fewer.
        """
        if not len(self.descriptors):
            # of an index without rows it is not known how many values they will have
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        wanted = self.used if among is None else self.used & among
        parts = []
        of_base = wanted[: self.base.rows]
        few = self._used if among is None else int(np.count_nonzero(of_base))
        if few <= _FEW and (self.base.kind != "exact" or few < len(of_base) // 8):
            rows = np.flatnonzero(of_base)
            parts.append(compared(queries, _float32(self.descriptors[rows]), rows, k))
        elif self.base.kind == "exact":
            parts.append(self._by_faiss(queries, k, of_base, few))
        else:
            of_base = None if among is None and self.base.used_alone else of_base
            depth = min(k * self.base.reranked, few)
            _, found = self._by_faiss(queries, depth, of_base, few)
            parts.append(self._ranked(queries, found, k))
        if len(self._tail):
            rows = np.flatnonzero(wanted[self.base.rows :])
            tail = self._tail if len(rows) == len(self._tail) else self._tail[rows]
            parts.append(compared(queries, tail, rows + self.base.rows, k))
        return best(*map(np.concatenate, zip(*[(s.T, r.T) for s, r in parts], strict=True)), k)

    def _by_faiss(self, queries, k, wanted, count):
        effort, options = self.base.effort, {}
        if wanted is not None and count < len(wanted):
            # the fewer of the rows count, the fewer lie in a cell
            effort = effort and int(effort * min(8, len(wanted) / count))
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
        if self.base.kind == "exact":
            parameters = faiss.SearchParameters(**options)
        elif self.base.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k), **options)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=effort, **options)
        return self.base.index.search(_fitted(self.base.index, queries), int(min(k, max(count, 1))), params=parameters)

    def _ranked(self, queries, found, k):
        similarities = np.full(found.shape, -np.inf, np.float32)
        for query, rows, values in zip(queries, found, similarities, strict=True):
            there = rows >= 0
            values[there] = _float32(self.descriptors[rows[there]]) @ query
        return similarities, found


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours [Q, k] that are among those found [Q, any], each row without order."""
    hits = [len(set(one[one >= 0]) & set(other[other >= 0])) for one, other in zip(found, true, strict=True)]
    return sum(hits) / max(1, np.count_nonzero(true >= 0))


def exact_nearest(
    descriptors: np.ndarray, used: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `Neighbors.nearest`, by a pass over all descriptors, a block at a time in memory."""
    near = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(descriptors), _BLOCK):
        rows = start + np.flatnonzero(used[start : start + _BLOCK])
        if len(rows):
            found = compared(queries, _float32(descriptors[rows]), rows, k)
            near = best(*(np.concatenate([one.T, other.T]) for one, other in zip(near, found, strict=True)), k)
    return near


def tuned(
    base: Base,
    descriptors: Any,
    used: np.ndarray,
    rows: np.ndarray,
    queries: np.ndarray,
    true: np.ndarray,
    most_reranked: int = RERANKED,
) -> tuple[Base, float]:
    """The base with the least effort that reaches the recall that is wanted, as far as it can; and that recall.

    Args:
        base, descriptors, used: as `Neighbors` takes them.
        rows, queries: int64 [Q] and float32 [Q, D]: some of the descriptors.
        true: int64 [Q, k], their nearest, themselves among them.
        most_reranked: of `Base.reranked`, which grows where more effort finds no more.
    """
    # a row is its own nearest neighbour, which says nothing
    k, true = true.shape[1], np.where(true == rows[:, None], -1, true)
    # of a graph no fewer candidates are looked at than are ranked, so that lower efforts would all be alike
    effort, most = (256, 1024) if base.kind == "hnsw" else (4, max(4, base.index.nlist // 2))

    def recall_at(effort, reranked):
        tried = dataclasses.replace(base, effort=effort, reranked=reranked)
        return recall(Neighbors(descriptors, used, tried).nearest(queries, k)[1], true)

    effort, reranked, reached = least_effort(recall_at, effort, most, most_reranked)
    return dataclasses.replace(base, effort=effort, reranked=reranked), reached


def least_effort(
    recall_at: Callable[[int, int], float], effort: int, most: int, most_reranked: int
) -> tuple[int, int, float]:
    """(effort, reranked, recall): the least that reach the recall that is wanted, 0.97, or as much as they can.

    Args:
        recall_at: recall of an effort and of answers that are ranked exactly for each that is wanted.
        effort, most: the first to try, and the most.
        most_reranked: of the latter, of which 16 are the first to try.
    """
    reranked = RERANKED
    reached = recall_at(effort, reranked)
    while reached < _WANTED_RECALL:
        tries = [(2 * effort, reranked)] if 2 * effort <= most else []
        tries += [(effort, 2 * reranked)] if 2 * reranked <= most_reranked else []
        found = [recall_at(*each) for each in tries]
        if not found or max(found) - reached < _HARDLY_MORE:
            break
        # of the two, what finds more
        reached = max(found)
        effort, reranked = tries[found.index(reached)]
    return effort, reranked, reached


def compared(queries: np.ndarray, descriptors: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(similarities [Q, about k], rows [Q, about k]) of the best of some rows, in no order."""
    similarities = queries @ descriptors.T
    if len(rows) > 4 * k:
        # ties at the cut-off by row: what is partitioned is in order of row, and as many more as tie are kept
        kept = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        cut = np.take_along_axis(similarities, kept, 1).min(axis=1, keepdims=True)
        most = int((similarities >= cut).sum(axis=1).max())
        kept = np.argpartition(-similarities, most - 1, axis=1)[:, :most]
        return np.take_along_axis(similarities, kept, 1), rows[kept]
    return similarities, np.broadcast_to(rows, similarities.shape)


def best(similarities: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each column, in order: [c, Q] and [c, Q] -> [Q, k] and [Q, k]."""
    similarities, rows = similarities.T, rows.T
    similarities = np.where(rows < 0, -np.inf, similarities)
    order = np.lexsort((rows, -similarities))[:, :k]
    similarities, rows = (np.take_along_axis(values, order, 1) for values in (similarities, rows))
    missing = ((0, 0), (0, k - order.shape[1]))
    rows = np.pad(rows, missing, constant_values=-1).astype(np.int64)
    return np.pad(np.clip(similarities, None, 1.0), missing, constant_values=-np.inf).astype(np.float32), rows


def cells_for(count: int) -> int:
    """About 4 sqrt(N), a power of two."""
    return 1 << max(0, min(16, round(np.log2(4 * max(count, 1) ** 0.5)), int(np.log2(max(1, count / 39)))))


def _sample(descriptors, most, rng):
    count = len(descriptors)
    rows = np.sort(rng.choice(count, most, replace=False)) if count > most else slice(None)
    return _float32(descriptors[rows])


def _padded(size):
    return -(-size // 8) * 8


def _fitted(index, rows):
    """Rows with zeros behind them, where FAISS needs more values."""
    more = index.d - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, more))) if more else rows


def _float32(rows):
    return np.ascontiguousarray(rows, np.float32)
