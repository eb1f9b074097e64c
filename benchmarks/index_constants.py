"""Measures what the planner of `mg-keras index --plan` counts with, and sees whether it was right.

    python -m benchmarks.index_constants               # prints MEASURED of mg_keras/search/planning.py
    python -m benchmarks.index_constants --check 5000000 --dimensions 512 --shards 4 --folder /mnt/large

Descriptors are generated: photos of objects (8 photos each on average, some one and some dozens), objects normal, with
a variance that falls as 1 / j over D directions (of which some 20 to 30 count). So the nearest of a photo are of its
object, and where that has too few, of objects like it, of which there are the more, the more photos there are. Losses
of recall are measured at two sizes and extrapolated by the power law through both; seconds are of one core (of its
processor time, not of the clock).

`--check` writes that many descriptors as Parquet, builds indexes and prints the plan beside what was found.
"""

import argparse
import os
import pprint
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.search import resident
from benchmarks.timing import print_table
from mg_keras.embedding import shards
from mg_keras.files import printable_name
from mg_keras.programs.common import run_program
from mg_keras.search import neighbors, planning, sharded
from mg_keras.search.index import Index
from mg_keras.search.parquet_rows import ParquetRows

_AN_OBJECT = 8
_BLOCK = shards.PHOTOS_A_SHARD
_QUERIES = 400


def write_generated(folder, count, dimensions, seed=0):
    """`count` generated descriptors in Parquet shards, float16, as mg-keras embed writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    turn = (turn / np.sqrt(np.arange(1, dimensions + 1))[:, None]).astype(np.float32)
    columns = shards.schema(dimensions, "float16", {"network": "generated", "resolution": 224, "seed": seed})
    for start in range(0, count, _BLOCK):
        rng = np.random.default_rng((seed, start))
        size = min(_BLOCK, count - start)
        sizes = rng.geometric(1 / _AN_OBJECT, size)
        photos = np.repeat(np.arange(size), sizes)[:size]
        objects = _unit(rng.standard_normal((photos[-1] + 1, dimensions), np.float32) @ turn)
        noise = rng.standard_normal((size, dimensions), np.float32) / np.float32(dimensions**0.5)
        values = _unit(objects[photos] + np.float32(0.5) * noise)[rng.permutation(size)]
        ids = np.arange(start, start + size)
        uris = [f"photos/{number // 1000:06}/{number:010}.jpg" for number in ids]
        shards.write(folder, shards.usable_rows(columns, ids, uris, values))


def _unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def seconds(work, least=0.3):
    """Processor time of a call, the mean of as many as take a while."""
    work()
    calls, began = 0, time.process_time()
    while not calls or time.process_time() < began + least:
        work()
        calls += 1
    return (time.process_time() - began) / calls


def losses(features, out, size, dimensions):
    """({effort: lost by cells}, {values a byte: {reranked: lost by codes}}), shares of the ten nearest."""
    rows = ParquetRows(sharded.looked_at([features]))
    rng = np.random.default_rng(1)
    asked = np.sort(rng.choice(size, _QUERIES, replace=False))
    queries = np.ascontiguousarray(rows[asked])
    used = np.ones(size, bool)
    _, true = neighbors.exact_nearest(rows, used, queries, 11)
    true = np.where(true == asked[:, None], -1, true)
    by_cells, by_codes = {}, {}
    for values_a_byte in (None, *planning.VALUES_A_BYTE):
        code_bytes = 2 * dimensions if values_a_byte is None else dimensions // values_a_byte
        path = out / f"{size}-{code_bytes}"
        sharded.build([features], path, shards=1, workers=1, code_bytes=code_bytes, cells=neighbors.cells_for(size))
        base = sharded.State(path).base()
        if values_a_byte is None:
            for effort in planning.EFFORTS:
                _, found = base.index.search(queries, 64, faiss.SearchParametersIVF(nprobe=effort))
                by_cells[effort] = 1 - neighbors.recall(found, true)
        else:
            _, found = base.index.search(
                queries, 10 * planning.DEPTHS[-1], faiss.SearchParametersIVF(nprobe=base.index.nlist)
            )
            by_codes[values_a_byte] = {
                depth: 1 - neighbors.recall(found[:, : 10 * depth], true) for depth in planning.DEPTHS
            }
    return by_cells, by_codes


def measured(folder):
    """What `planning.MEASURED` is."""
    dimensions, sizes = planning.MEASURED_DIMENSIONS, planning.MEASURED_SIZES
    both = []
    for size in sizes:
        write_generated(folder / f"{size}", size, dimensions)
        both.append(losses(folder / f"{size}", folder / "indexes", size, dimensions))
        print(f"measured: what is lost among {size:,}", file=sys.stderr, flush=True)
    rows = ParquetRows(sharded.looked_at([folder / f"{sizes[-1]}"]))
    values = np.ascontiguousarray(rows[:16384])
    found = {
        "cells": {effort: tuple(float(round(each[0][effort], 4)) for each in both) for effort in planning.EFFORTS},
        "codes": {
            rate: {depth: tuple(float(round(each[1][rate][depth], 4)) for each in both) for depth in planning.DEPTHS}
            for rate in planning.VALUES_A_BYTE
        },
    }
    # what it takes: one core, and of a value or an operation, so that other sizes follow
    sample = np.ascontiguousarray(rows[: 48 * 1024])
    alone, together = _learning(sample, 1), _learning(sample, os.cpu_count() or 1)
    found["learn"] = alone / (8 * 2 * len(sample) * 1024 * dimensions)
    found["together"] = max(1.0, together / alone)
    wide = np.random.default_rng(0).standard_normal((sharded.CODED, 2 * dimensions), np.float32)
    found["rotation"] = []
    for width in (dimensions, 2 * dimensions):
        began = time.process_time()
        sharded.trained(np.ascontiguousarray(wide[:, :width]), width // 8, 16, 0)
        found["rotation"].append(round(time.process_time() - began, 2))
    flat, graph = sharded.quantizer_of(sample[:2048]), sharded.quantizer_of(sample[: sharded.GRAPH_CELLS])
    found["flat"] = seconds(lambda: flat.search(values, 1)) / (2 * len(values) * 2048 * dimensions)
    found["graph"] = seconds(lambda: graph.search(values, 1)) / len(values) / dimensions
    began = time.process_time()
    sharded.quantizer_of(sample[: sharded.GRAPH_CELLS])
    found["graph_made"] = (time.process_time() - began) / sharded.GRAPH_CELLS / dimensions
    few = values[:128]

    def read():
        block = rows[8192:16384]
        neighbors.compared(few, block, np.arange(len(block)), 11)

    found["read"] = seconds(read) / 8192 / dimensions
    found["code"] = {}
    for name, code_bytes in (("float16", 2 * dimensions), ("pq", dimensions // 8)):
        index, _ = sharded.read_trained(folder / "indexes" / f"{sizes[-1]}-{code_bytes}")
        assign = index.quantizer.search(values, 1)[1][:, 0]
        taken = seconds(lambda i=index, a=assign: _coded(i, values, a)) / len(values) / dimensions
        found["code"][name] = float(f"{taken:.4g}")
    found |= _asked(folder / "indexes", rows, sizes[-1], dimensions)
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.index_constants",
            "--ask",
            folder / "indexes" / f"{sizes[-1]}-{dimensions // 8}",
        ],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    own = float(shown.stdout.split()[0]) - _held(folder / "indexes" / f"{sizes[-1]}-{dimensions // 8}")
    found["process"] = round(own)
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}


def _learning(sample, threads):
    """Processor time of learning 1 024 cells; of all threads together."""
    learned = faiss.Kmeans(sample.shape[1], 1024, niter=8, spherical=True, seed=0)
    faiss.omp_set_num_threads(threads)
    began = time.process_time()
    learned.train(sample)
    faiss.omp_set_num_threads(1)
    return time.process_time() - began


def _coded(index, values, cells):
    """What `add` does once cells are known; the codes are thrown away."""
    if isinstance(index, faiss.IndexIVFPQFastScan):
        codes = np.empty((len(values), index.code_size), np.uint8)
        index.encode_vectors(len(values), faiss.swig_ptr(values), faiss.swig_ptr(cells), faiss.swig_ptr(codes))
    else:
        index.sq.compute_codes(values)


def _asked(folder, rows, size, dimensions):
    """What a query takes: cells, codes, rows that are read, names."""
    queries = np.ascontiguousarray(rows[:64])
    found = {"scan": {}}

    def asked(index, effort):
        parameters = faiss.SearchParametersIVF(nprobe=effort)
        return seconds(lambda: [index.search(each[None], 160, parameters) for each in queries]) / len(queries)

    for name, code_bytes in (("float16", 2 * dimensions), ("pq", dimensions // 8)):
        index = sharded.State(folder / f"{size}-{code_bytes}").base().index
        few, many = asked(index, 16), asked(index, 256)
        a_cell = size / index.nlist * code_bytes
        found["scan"][name] = float(f"{max(0.0, many - few) / 240 / a_cell:.4g}")
    middles = index.cells.quantizer
    found["middle"] = seconds(lambda: [middles.search(each[None], 16) for each in queries]) / len(queries)
    # what a search of few cells takes besides, in each shard
    found["shard"] = max(0.0, few - found["middle"] - 16 * a_cell * found["scan"]["pq"])
    found["middle"] /= index.nlist * dimensions
    random = np.random.default_rng(0).integers(size, size=160)
    found["row"] = seconds(lambda: rows[random]) / 160
    # files that are not open yet, as most of very many are
    found["name"] = seconds(lambda: [ParquetRows(rows.files[:1]).facts(7) for _ in range(10)]) / 10
    return found


def _held(path):
    """Bytes of an index that are in memory when it is open."""
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix == ".faiss")


def ask(path, queries=None):
    """In a process of its own: memory after opening an index and answering queries, and milliseconds a query."""
    faiss.omp_set_num_threads(1)
    with Index.open(path) as index:
        rows = index.snapshot()[0].descriptors
        asked = rows[np.random.default_rng(2).integers(len(rows), size=queries or 50)]
        for each in asked[:10]:
            index.search(each, 10)
        began = time.perf_counter()
        for each in asked:
            index.search(each, 10)
        print(resident("RssAnon") * 2**20, 1000 * (time.perf_counter() - began) / len(asked))


def check(folder, count, dimensions, number):
    """Builds what the planner plans, and prints both."""
    features = folder / "features"
    if not features.exists():
        write_generated(features, count, dimensions)
    rows, cores = [], len(os.sched_getaffinity(0))
    for choice in planning.choices(count, dimensions, cores, number):
        path = folder / f"index-{choice.bytes}"
        before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        sharded.build([features], path, number, code_bytes=choice.bytes, show=True)
        after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.index_constants", "--ask", path],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        memory, milliseconds = map(float, told.stdout.split())
        disk = sum(file.stat().st_size for file in path.iterdir())
        recall = sharded.State(path).about["neighbors"]["recall"]
        found = (memory / 1e6, disk / 1e6, recall, spent, milliseconds)
        planned = (
            choice.memory / 1e6, choice.disk / 1e6, choice.recall, choice.core_seconds, 1000 * choice.query_seconds,
        )  # fmt: skip
        digits = (0, 0, 3, 0, 2)
        rows.append(
            [
                f"{choice.bytes} bytes",
                *(f"{a:,.{n}f} / {b:,.{n}f}" for a, b, n in zip(planned, found, digits, strict=True)),
            ]
        )
    print_table(
        f"{count:,} descriptors of {dimensions} values in {printable_name(folder)}: planned / found",
        ["", "memory, MB", "disk, MB", "recall@10", "core seconds", "ms a query"],
        rows,
    )
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, FAISS {faiss.__version__}")


def main():
    """Arguments, the measuring, what it found."""
    parser = benchmark_parser("index_constants", __doc__)
    parser.add_argument("--check", type=int, help="descriptors to build indexes of, beside the plan")
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--shards", type=int, help="with --check")
    parser.add_argument("--folder", help="where files are made, and kept; default: a temporary folder")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        if options.check:
            check(folder, options.check, options.dimensions, options.shards)
            return
        faiss.omp_set_num_threads(1)
        print("MEASURED =", pprint.pformat(measured(folder), width=110, sort_dicts=False))
    print(f"# {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, FAISS {faiss.__version__}")


if __name__ == "__main__":
    run_program(main)
