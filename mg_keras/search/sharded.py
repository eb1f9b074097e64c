"""An index of millions: descriptors stay in Parquet, and what finds neighbours is made in shards, by several processes.

    mg-keras-shards.json    what the index is of, and the files that belong to it; without it there is none
    <plan>-rows.npz         where the descriptors lie in the Parquet files, and the rows that are no photo's
    <plan>-trained.faiss    cells and codes, learned from a sample; <plan>-rotation.npy where a rotation pays
    <plan>-0003.faiss, .npz a shard: the codes of its rows; and what was found while they were read
    lock                    kept by the one who writes

`<plan>` is a hash of the Parquet files and of how they are indexed: `kill -9` leaves the old index, if there was one,
and the same command goes on with what was made under that hash. The shards share their cells and are searched as one.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mg_keras.embedding import shards as parquet_shards
from mg_keras.errors import UserError
from mg_keras.files import BROKEN_ARRAYS, atomic_path, atomic_write_json, printable_name, remove_leftovers, try_lock
from mg_keras.progress import Progress, announce, mapped
from mg_keras.search import neighbors, parquet_rows
from mg_keras.search.given import check_one_model
from mg_keras.search.neighbors import Base
from mg_keras.search.parquet_rows import File, ParquetRows
from mg_keras.search.store import Photo

_MANIFEST, _LOCK, _VERSION = "mg-keras-shards.json", "lock", 1
# what a plan's files are called; nothing else is ever removed
_OF_A_PLAN = re.compile(r"[0-9a-f]{16}-(rows\.npz|trained\.faiss|rotation\.npy|queries\.npz|\d{4,}\.(faiss|npz))")
SMALLEST = 1024
"""Descriptors that such an index has at least."""

ROWS_A_SHARD, LEAST_A_SHARD = 4_000_000, 250_000
"""At most and at least, where it is not said how many shards there shall be."""

GRAPH_CELLS = 16_384
"""From so many cells on, the nearest ones are found by a graph (HNSW): for fewer it takes longer than comparing all."""

QUERIES = 128
"""Descriptors by which the effort is chosen."""

CODED = 65_536
"""Of the sample, as many descriptors teach the codes."""

_FOUND = 11
_ROTATED, _ROTATION_PAYS = 8_192, 0.9
MOST_RERANKED = 256
"""Answers that are ranked exactly, for each that is wanted: as many as help where codes are short."""

_BLOCK = 8_192


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an index is to be made of, and how.

    Attributes:
        files: of Parquet.
        unusable: int64, rows that are left out, as the same photo comes before.
        shards: how many.
        bytes: of a descriptor's code: 2 D is float16, D is 8 bits a value, fewer are product quantisation.
        cells: of the inverted file.
        seed: of the sample.
    """

    files: list[File]
    unusable: np.ndarray
    shards: int
    bytes: int
    cells: int
    seed: int

    @property
    def rows(self) -> int:
        """N, unusable ones included."""
        return sum(file.rows for file in self.files)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.files[0].dimensions

    @property
    def name(self) -> str:
        """The hash."""
        files = [(file.path, file.size, file.modified) for file in self.files]
        told = (_VERSION, files, self.shards, self.bytes, self.cells, self.seed)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def part(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and the one behind its last."""
        return self.rows * shard // self.shards, self.rows * (shard + 1) // self.shards


def is_sharded(folder: Path) -> bool:
    """Whether there is such an index at a path."""
    return (folder / _MANIFEST).is_file()


def state_number(folder: Path) -> str:
    """What tells one state of an index from others."""
    return _manifest(folder)["plan"]


def default_shards(rows: int, cores: int) -> int:
    """Where it is not said how many there shall be: one a core, where that is worth a process."""
    return max(-(-rows // ROWS_A_SHARD), min(cores, rows // LEAST_A_SHARD), 1)


def default_bytes(dimensions: int) -> int:
    """Of a code: an eighth of the values, 64 of 512."""
    return max(1, -(-dimensions // 8))


def build(
    paths: Sequence[str | os.PathLike],
    out: Path,
    shards: int | None = None,
    workers: int | None = None,
    code_bytes: int | None = None,
    cells: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> None:
    """Makes an index, or goes on with one that the same arguments began.

    Args:
        paths: folders or files of Parquet.
        out: the index's folder.
        shards: how many; None: one for each four million, and one a worker where they have 250 000 each.
        workers: processes; None: as many as there are cores.
        code_bytes: as `Plan.bytes`; None: an eighth of the values.
        cells: of the inverted file; None: about 4 sqrt(N).
        seed: of what is drawn.
        show: whether to say how far it has come.

    Raises:
        UserError: the Parquet files don't go together, are too few, or vanish; or the folder can't be used.
    """
    files = looked_at(paths)
    rows = sum(file.rows for file in files)
    if rows < SMALLEST:
        raise UserError(
            f"an index of shards takes {SMALLEST:,} descriptors at least, received {rows:,}: Index.build(PARQUET) "
            "compares all"
        )
    if cells is not None and cells > rows:
        raise UserError(f"--cells must be at most the number of descriptors, {rows:,}, received {cells:,}")
    workers = workers or os.cpu_count() or 1
    shards = min(rows, shards or default_shards(rows, workers))
    plan = Plan(
        files,
        _twice(files),
        shards,
        _checked_bytes(code_bytes or default_bytes(files[0].dimensions), files[0].dimensions),
        cells or neighbors.cells_for(rows),
        seed,
    )
    with _locked(out):
        if _is_whole(out, plan.name):
            _remove_others(out, plan.name)
            return
        _Build(plan, out, workers, show).run()


def looked_at(paths: Sequence[str | os.PathLike]) -> list[File]:
    """The Parquet files, which go together.

    Raises:
        UserError: there is none, or they are of different models or dimensions.
    """
    files = mapped(parquet_rows.look_at, parquet_shards.found(paths), "looking at Parquet")
    files = [file for file in files if file.rows]
    if not files:
        raise UserError("the Parquet files hold no descriptor")
    first = files[0]
    for file in files:
        if file.dimensions != first.dimensions:
            raise UserError(
                f"all files must have descriptors of one size, received {first.dimensions} values in {first.path} and "
                f"{file.dimensions} in {file.path}"
            )
        check_one_model(first.path, first.made_from, file.path, file.made_from)
    return files


def _checked_bytes(count, dimensions):
    if count in (dimensions, 2 * dimensions) or 1 <= count <= dimensions // 2:
        return count
    raise UserError(
        f"--bytes must be 1 to {dimensions // 2}, {dimensions} (8 bits a value) or {2 * dimensions} (float16) for "
        f"descriptors of {dimensions} values, received {count}"
    )


def _twice(files):
    """int64, the rows of a photo that a file of the same folder and list of photos has already."""
    first, by_list = np.cumsum([0, *(file.rows for file in files)]), {}
    for place, file in enumerate(files):
        if file.made_from:
            key = (os.path.dirname(file.path), file.made_from.get("photos"))
            by_list.setdefault(key, []).append(place)
    found = [np.empty(0, np.int64)]
    for places in by_list.values():
        ids = [parquet_shards.ids(files[place].path) for place in places]
        rows = np.concatenate([first[place] + np.arange(files[place].rows) for place in places])
        _, kept = np.unique(np.concatenate(ids), return_index=True)
        if len(kept) < len(rows):
            found.append(np.delete(rows, kept))
    return np.sort(np.concatenate(found))


@contextmanager
def _locked(folder) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith(".") and not (
                path.name in (_MANIFEST, _LOCK) or _OF_A_PLAN.fullmatch(path.name)
            ):
                raise UserError(f"{printable_name(folder)} holds {printable_name(path.name)}: choose another folder")
        with open(folder / _LOCK, "a+b") as lock:
            if not try_lock(lock):
                raise UserError(f"{folder} is being written to by another process: try again when that has ended")
            yield
    except OSError as error:
        raise UserError(f"{folder} can't be written to: {error.strerror or error}") from error


def _is_whole(folder, name):
    """Whether a folder has the index of a plan; what is there of one that can't be opened is removed."""
    if not is_sharded(folder):
        return False
    try:
        if _manifest(folder)["plan"] != name:
            return False
        State(folder).base()
        return True
    except UserError:
        (folder / _MANIFEST).unlink()
        _remove_others(folder, "")
        return False


def _remove_others(folder, name):
    """Removes the files of other plans than that of a name."""
    for path in list(folder.iterdir()):
        if _OF_A_PLAN.fullmatch(path.name) and not (name and path.name.startswith(name)):
            path.unlink()


class _Build:
    """The steps, each of which is whole or not there."""

    def __init__(self, plan, folder, workers, show):
        self.plan, self.folder, self.show = plan, folder, show
        self.workers = max(1, min(workers, plan.shards))
        self.cores = os.cpu_count() or 1
        self.at = functools.partial(_path, folder, plan.name)

    def run(self):
        for pattern in ("*.faiss", "*.npz", "*.npy"):
            remove_leftovers(self.folder, pattern)
        if not self.at("trained.faiss").exists():
            self._train()
        self._make_shards()
        parts = [np.load(self.at(f"{shard:04}.npz")) for shard in range(self.plan.shards)]
        unusable = np.sort(np.concatenate([self.plan.unusable, *(part["unusable"] for part in parts)]))
        self._write_rows(unusable)
        base, reached = self._measured(parts, unusable)
        first = self.plan.files[0]
        about = {
            "version": _VERSION,
            "plan": self.plan.name,
            "rows": self.plan.rows,
            "dimensions": self.plan.dimensions,
            "made_from": first.made_from,
            "shards": self.plan.shards,
            "bytes": self.plan.bytes,
            "cells": self.plan.cells,
            "effort": base.effort,
            "reranked": base.reranked,
            "recall": round(reached, 4),
            "rotated": self.at("rotation.npy").exists(),
            "files": [[file.path, file.size, file.modified, file.rows] for file in self.plan.files],
        }
        atomic_write_json(self.folder / _MANIFEST, about)
        _remove_others(self.folder, self.plan.name)

    def _train(self):
        plan, rng = self.plan, np.random.default_rng(self.plan.seed)
        if self.show:
            announce(f"learning {plan.cells:,} cells from a sample of {plan.rows:,} descriptors")
        rows = ParquetRows(plan.files)
        count = min(plan.rows, max(neighbors.TRAINED_PER_CELL * plan.cells, 4 * _ROTATED))
        drawn = np.setdiff1d(rng.choice(plan.rows, count, replace=False), plan.unusable)
        sample = rows[drawn]
        there = np.isfinite(sample).all(axis=1)
        sample, drawn = sample[there], drawn[there]
        if len(sample) < max(SMALLEST // 2, plan.cells):
            raise UserError(
                f"{max(SMALLEST // 2, plan.cells):,} of the sampled descriptors must be usable to learn from, received "
                f"{len(sample):,} of {count:,}"
            )
        index, rotation = trained(sample, plan.bytes, plan.cells, plan.seed)
        asked = np.sort(rng.choice(drawn, min(QUERIES, len(drawn)), replace=False))
        _save(self.at("queries.npz"), rows=asked, queries=rows[asked])
        # of one that was killed
        self.at("rotation.npy").unlink(missing_ok=True)
        if rotation is not None:
            with atomic_path(self.at("rotation.npy")) as partial:
                np.save(partial, rotation)
        try:
            with atomic_path(self.at("trained.faiss")) as partial:
                faiss.write_index(index, str(partial))
        # FAISS's own error of a full disk
        except RuntimeError as error:
            raise UserError(f"{self.folder} can't be written to: {str(error).splitlines()[0]}") from error

    def _make_shards(self):
        plan = self.plan
        todo = [shard for shard in range(plan.shards) if not self.at(f"{shard:04}.npz").exists()]
        if not todo:
            return
        done = sum(stop - start for start, stop in map(plan.part, set(range(plan.shards)) - set(todo)))
        if done and self.show:
            announce(f"going on after {done:,} of {plan.rows:,} descriptors")
        context = multiprocessing.get_context("spawn")
        counter, stop = context.Value("q", 0), context.Event()
        threads = max(1, self.cores // self.workers)
        start = (plan, self.folder, counter, stop, threads)
        pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, _start_worker, start)
        with Progress("indexing", plan.rows if self.show else 0, "descriptors", start=done) as progress:
            try:
                waiting = {pool.submit(_make_shard, shard) for shard in todo}
                while waiting:
                    finished, waiting = concurrent.futures.wait(waiting, timeout=0.2)
                    for each in finished:
                        each.result()
                    if self.show:
                        progress.advance(counter.value + done - progress.done)
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    "a process that indexed was ended, perhaps for want of memory: the same command goes on, with "
                    f"--workers {max(1, self.workers // 2)} and more --shards it needs less"
                ) from error
            finally:
                # the lock is kept until nobody writes any more
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _write_rows(self, unusable):
        files = self.plan.files
        _save(
            self.at("rows.npz"),
            pages=np.concatenate([file.pages for file in files]),
            counts=np.array([len(file.pages) for file in files]),
            dtypes=np.array([file.dtype for file in files]),
            unusable=unusable,
        )

    def _measured(self, parts, unusable):
        """The base, with the effort and the depth by which recall is as wanted; and that recall."""
        if self.show:
            announce("measuring how well neighbours are found")
        plan = self.plan
        asked = np.load(self.at("queries.npz"))
        values, found = (np.concatenate([part[key] for part in parts], axis=1) for key in ("similarities", "rows"))
        _, true = neighbors.best(values.T, found.T, _FOUND)
        used = np.ones(plan.rows, bool)
        used[unusable] = False
        base = _base(self.folder, plan.name, plan.shards, plan.rows, plan.dimensions)
        rows = ParquetRows(plan.files, unusable)
        return neighbors.tuned(base, rows, used, asked["rows"], asked["queries"], true, most_reranked(base.kind))


def trained(sample: np.ndarray, code_bytes: int, cells: int, seed: int) -> tuple[Any, np.ndarray | None]:
    """(FAISS's empty index, rotation [W, W] or None) that were learned from a sample.

    Args:
        sample: float32 [n, D] of unit norm.
        code_bytes: as `Plan.bytes`.
        cells: of the inverted file.
        seed: of what is drawn.
    """
    dimensions = sample.shape[1]
    learned = faiss.Kmeans(
        dimensions,
        cells,
        niter=8,
        spherical=True,
        seed=seed,
        max_points_per_centroid=neighbors.TRAINED_PER_CELL,
        min_points_per_centroid=1,
    )
    learned.train(sample)
    middles = learned.centroids
    few = sample[np.random.default_rng(seed).permutation(len(sample))[:CODED]]
    threads = faiss.omp_get_max_threads()
    try:
        # pieces so small are done before threads have met, which on a busy machine takes many times as long
        faiss.omp_set_num_threads(1)
        return _coded(np.ascontiguousarray(few), middles, code_bytes)
    finally:
        faiss.omp_set_num_threads(threads)


def _coded(few, middles, code_bytes):
    """(index, rotation) of a sample and the middles of cells."""
    cells, dimensions, rotation = *middles.shape, None
    if code_bytes < dimensions:
        parts = 2 * code_bytes
        width = -(-dimensions // parts) * parts
        middles, few = _widened(middles, width), _widened(few, width)
        rotation = _rotation(few, middles, parts)
        if rotation is not None:
            middles, few = middles @ rotation.T, few @ rotation.T
        quantizer = quantizer_of(middles)
        index = faiss.IndexIVFPQFastScan(quantizer, width, cells, parts, 4, faiss.METRIC_INNER_PRODUCT)
        # what differs from a cell's middle takes fewer bits than the whole
        index.by_residual = True
    else:
        quantizer = quantizer_of(middles)
        kind = faiss.ScalarQuantizer.QT_8bit if code_bytes == dimensions else faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, dimensions, cells, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.train(np.ascontiguousarray(few))
    return index, rotation


def _rotation(sample, middles, parts):
    """float32 [W, W] that lowers the error of codes by a tenth at least (OPQ), or None."""
    coarse = faiss.IndexFlatIP(sample.shape[1])
    coarse.add(middles)
    sample = sample[: _ROTATED + _ROTATED // 4]
    rest = sample - middles[coarse.search(sample, 1)[1][:, 0]]
    learn, check = np.ascontiguousarray(rest[len(rest) // 5 :]), np.ascontiguousarray(rest[: len(rest) // 5])
    matrix = faiss.OPQMatrix(sample.shape[1], parts)
    matrix.niter = 8
    matrix.pq = faiss.ProductQuantizer(sample.shape[1], parts, 4)
    matrix.train(learn)
    rotation = faiss.vector_to_array(matrix.A).reshape(sample.shape[1], -1)
    errors = []
    for turn in (None, rotation):
        codes = faiss.ProductQuantizer(sample.shape[1], parts, 4)
        turned, checked = (each if turn is None else np.ascontiguousarray(each @ turn.T) for each in (learn, check))
        codes.train(turned)
        errors.append(((codes.decode(codes.compute_codes(checked)) - checked) ** 2).sum())
    return rotation if errors[1] < _ROTATION_PAYS * errors[0] else None


def quantizer_of(middles: np.ndarray) -> Any:
    """What finds the nearest cells: of FAISS, with their middles, float32 [C, W]."""
    if len(middles) < GRAPH_CELLS:
        quantizer = faiss.IndexFlatIP(middles.shape[1])
    else:
        quantizer = faiss.IndexHNSWFlat(middles.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        quantizer.hnsw.efConstruction, quantizer.hnsw.efSearch = 80, 32
    quantizer.add(np.ascontiguousarray(middles))
    return quantizer


def most_reranked(kind: str) -> int:
    """Answers that are ranked exactly at most, for each that is wanted: codes of whole values gain nothing by more."""
    return MOST_RERANKED if kind == "pq" else neighbors.RERANKED


def _widened(rows, width):
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, width - rows.shape[1]))))


def _turned(rows, width, rotation):
    rows = _widened(rows, width)
    return rows if rotation is None else np.ascontiguousarray(rows @ rotation.T)


_worker: dict[str, Any] = {}


def _start_worker(plan, folder, counter, stop, threads):
    faiss.omp_set_num_threads(threads)
    index, rotation = read_trained(folder, plan.name)
    cells = index.quantizer
    # the cells are those of all shards: they are put in to find a row's, and not written with each
    index.own_fields = False
    _worker.update(plan=plan, folder=folder, counter=counter, stop=stop, index=index, cells=cells, rotation=rotation)
    # a worker must not outlive the one who would write the index
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_shard(shard):
    """Writes the codes of a shard's rows, and what was found while they were read."""
    plan, folder, counter, index, rotation = (
        _worker[key] for key in ("plan", "folder", "counter", "index", "rotation")
    )
    at = functools.partial(_path, folder, plan.name)
    rows = ParquetRows(plan.files)
    index.reset()
    queries = np.load(at("queries.npz"))["queries"]
    found = np.full((len(queries), _FOUND), -np.inf, np.float32), np.full((len(queries), _FOUND), -1, np.int64)
    begin, end = plan.part(shard)
    unusable = []
    for start in range(begin, end, _BLOCK):
        if _worker["stop"].is_set():
            raise UserError("stopped")
        stop = min(start + _BLOCK, end)
        values, numbers = rows[start:stop], np.arange(start, stop)
        finite = np.isfinite(values).all(axis=1)
        unusable.append(np.setdiff1d(numbers[~finite], plan.unusable))
        finite &= ~np.isin(numbers, plan.unusable)
        values, numbers = np.ascontiguousarray(values[finite]), numbers[finite]
        if len(values):
            index.add_with_ids(_turned(values, index.d, rotation), numbers)
            near = neighbors.compared(queries, values, numbers, _FOUND)
            found = neighbors.best(*(np.concatenate([a.T, b.T]) for a, b in zip(found, near, strict=True)), _FOUND)
        with counter.get_lock():
            counter.value += stop - start
    none = faiss.IndexFlatIP(index.d)
    index.quantizer = none
    try:
        with atomic_path(at(f"{shard:04}.faiss")) as partial:
            faiss.write_index(index, str(partial))
        _save(at(f"{shard:04}.npz"), similarities=found[0], rows=found[1], unusable=np.concatenate(unusable))
    # FAISS's own error, or that of the disk
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} can't be written to: {str(error).splitlines()[0]}") from None
    finally:
        index.quantizer = _worker["cells"]


class Together:
    """FAISS's indexes of shards, which share their cells, searched as one.

    Attributes:
        d: D, of queries.
        nlist: cells.
    """

    def __init__(self, trained_index: Any, parts: Sequence[Any], dimensions: int, rotation: np.ndarray | None):
        self.cells, self.parts, self.d, self.rotation = trained_index, list(parts), dimensions, rotation
        self.nlist = trained_index.nlist

    def search(self, queries: np.ndarray, k: int, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """(similarities [Q, k], rows [Q, k]) by FAISS's codes; `params` is a `faiss.SearchParametersIVF`."""
        queries, visited = _turned(queries, self.cells.d, self.rotation), min(params.nprobe, self.nlist)
        wanted = {}
        if self.nlist >= GRAPH_CELLS:
            wanted["params"] = faiss.SearchParametersHNSW(efSearch=max(64, 2 * visited))
        near, cells = self.cells.quantizer.search(queries, visited, **wanted)
        options = faiss.SearchParametersIVF(nprobe=visited, sel=params.sel)
        similarities = np.empty((len(self.parts), len(queries), k), np.float32)
        rows = np.empty((len(self.parts), len(queries), k), np.int64)
        pointer = faiss.swig_ptr
        for part, values, found in zip(self.parts, similarities, rows, strict=True):
            part.search_preassigned_c(
                len(queries),
                pointer(queries),
                k,
                *map(pointer, (cells, near, values, found)),
                False,
                options,
            )
        return neighbors.best(*(np.concatenate([part.T for part in each]) for each in (similarities, rows)), k)


class State:
    """One such index, opened: what `store.State` is for an album, as far as it goes.

    Attributes:
        about: dict of what is known of the whole.
        number: of this state.
        descriptors: `ParquetRows`.
        used: bool [N], the rows that are a photo's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        told = _manifest(folder)
        self.number = told["plan"]
        try:
            rows = np.load(_path(folder, told["plan"], "rows.npz"))
            ends = np.cumsum(rows["counts"])
            pages = np.split(rows["pages"], ends[:-1])
            files = [
                File(*file, told["dimensions"], str(dtype), told["made_from"], part)
                for file, dtype, part in zip(told["files"], rows["dtypes"], pages, strict=True)
            ]
        except (*BROKEN_ARRAYS, KeyError) as error:
            raise _damaged(folder, error) from error
        self.descriptors = ParquetRows(files, rows["unusable"])
        self.descriptors.check()
        self.used = np.ones(told["rows"], bool)
        self.used[rows["unusable"]] = False
        made_from = told["made_from"] or {}
        self.about = {
            "dimensions": told["dimensions"],
            "rows": told["rows"],
            "fingerprint": None,
            "model": made_from.get("network"),
            "made_from": told["made_from"],
            "resolution": made_from.get("resolution"),
            "class_names": None,
            "thresholds": None,
            "root": None,
            "kind": "sharded",
            "generation": told["plan"],
            "shards": told["shards"],
            "bytes": told["bytes"],
            "neighbors": {key: told[key] for key in ("cells", "effort", "reranked", "recall", "rotated")},
        }

    def base(self) -> Base:
        """What finds neighbours."""
        about, found = self.about, self.about["neighbors"]
        return _base(
            self.folder,
            self.number,
            about["shards"],
            about["rows"],
            about["dimensions"],
            found["effort"],
            found["reranked"],
        )

    def close(self) -> None:
        """Nothing is kept that must be let go of."""

    def usable_count(self) -> int:
        """How many photos can be found."""
        return self.about["rows"] - len(self.descriptors.unusable)

    def photos_of_rows(self, rows: Iterable[int]) -> dict[int, list[Photo]]:
        """Row -> the photo whose descriptor it is."""
        return {int(row): [self._photo(int(row))] for row in rows}

    def photos_of_ids(self, ids: Iterable[int]) -> dict[int, Photo]:
        """Number -> the photo that has it, of those that are there; a row's is its own."""
        return {int(row): self._photo(int(row)) for row in ids if 0 <= row < len(self.used)}

    def _photo(self, row):
        facts = self.descriptors.facts(row)
        there = bool(self.used[row])
        return Photo(
            row,
            facts["name"],
            Path(facts["name"]),
            None,
            None,
            None,
            facts.get("width"),
            facts.get("height"),
            row if there else None,
            facts.get("class"),
            facts.get("probability"),
            facts.get("error") or (None if there else "no descriptor"),
        )

    def class_counts(self, *_: Any) -> Any:
        """Of classes and names nothing is kept, but with each photo."""
        raise UserError(f"{printable_name(self.folder)} is an index of shards, which finds descriptors alone")

    count = select = rows_of_classes = class_of = by_class = known = path = class_counts


def _base(folder, name, shards, rows, dimensions, effort=0, reranked=neighbors.RERANKED):
    try:
        index, rotation = read_trained(folder, name)
        parts = [faiss.read_index(str(_path(folder, name, f"{shard:04}.faiss"))) for shard in range(shards)]
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    kind = "pq" if isinstance(index, faiss.IndexIVFPQFastScan) else "ivf"
    return Base(Together(index, parts, dimensions, rotation), kind, rows, effort, reranked, used_alone=True)


def read_trained(folder: Path, name: str | None = None) -> tuple[Any, np.ndarray | None]:
    """(FAISS's index without rows, rotation or None) of an index in a folder."""
    name = name or state_number(folder)
    rotation = _path(folder, name, "rotation.npy")
    index = faiss.read_index(str(_path(folder, name, "trained.faiss")))
    return index, np.load(rotation) if rotation.exists() else None


def _manifest(folder):
    try:
        told = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version = told["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if version != _VERSION:
        raise UserError(f"{folder} is an index of version {version}, where {_VERSION} is read here: build it anew")
    return told


def _damaged(folder, error):
    return UserError(f"{printable_name(folder)} can't be read as an index: {str(error).splitlines()[0]}; build it anew")


def _path(folder, name, rest):
    return folder / f"{name}-{rest}"


def _save(path, **arrays):
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
