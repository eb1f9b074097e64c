"""Searches a large index: how long a query takes, what it finds, what it holds.

    python -m benchmarks.search                       # 1 000 000 descriptors of 512 values, as `auto` chooses
    python -m benchmarks.search --kinds ivf,pq,hnsw,exact --count 200000
    python -m benchmarks.search --around features.npy --kinds auto,hnswlib,usearch --peers PYTHON

Descriptors are noise around a few thousand centres, or around real descriptors; queries are noise around some of them.
For each kind the table has the time to build it, the size on disk, the memory that a process of its own holds after
opening it and answering all queries (at its peak; and without files that are mapped), the time of a query by
`Index.search` (one at a time, names and facts included) and recall@10 against the exact answer. `hnswlib` and `usearch`
are kinds, too, for which `--peers` names a Python that has them; they keep all in memory, float32 and float16.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks import peers
from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.programs.common import run_program
from mg_keras.search.index import Index
from mg_keras.search.neighbors import exact_nearest

_BLOCK = 1 << 15
K = 10
PEERS = ("hnswlib", "usearch")


def write_descriptors(path, count, dimensions, centres, around=None, seed=0):
    """float16 [count, D] of unit norm in a file: noise around so many centres, or around descriptors of a file."""
    rng = np.random.default_rng(seed)
    middle = _unit(np.load(around).astype(np.float32) if around else rng.normal(size=(centres, dimensions)))
    centres, dimensions = middle.shape
    values = np.lib.format.open_memmap(path, "w+", np.float16, (count, dimensions))
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        values[start : start + size] = _noisy(middle[rng.integers(centres, size=size)], rng)
    values.flush()


def queries_near(path, count, seed=1):
    """float32 [count, D]: noise around some of the descriptors."""
    values, rng = np.load(path, mmap_mode="r"), np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(values), count, replace=False))
    return _noisy(np.asarray(values[rows], np.float32), rng)


def _noisy(values, rng):
    noise = rng.standard_normal(values.shape, np.float32) / np.float32(values.shape[1] ** 0.5)
    return _unit(values + noise)


def _unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def resident(key):
    """MB of memory of this process: VmRSS, VmHWM (its peak) or RssAnon (without files that are mapped)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ask(path, queries):
    """In a process of its own: opens an index and answers queries; prints times, rows and memory as JSON."""
    queries = np.load(queries)
    began = time.perf_counter()
    with Index.open(path) as index:
        opened = time.perf_counter() - began
        for query in queries[:20]:
            index.search(query, K)
        times, found = [], []
        for query in queries:
            began = time.perf_counter()
            hits = index.search(query, K)
            times.append(time.perf_counter() - began)
            found.append([hit.photo.row for hit in hits])
        about = index.about["neighbors"] or {}
    memory = {key: resident(key) for key in ("VmHWM", "RssAnon")}
    print(json.dumps({"open": opened, "times": times, "found": found, "about": about, "memory": memory}))


def of_index(kind, descriptors, queries, true, folder):
    """A row of the table."""
    path = folder / kind
    began = time.perf_counter()
    Index.build(descriptors, path=path, kind=kind, label=f"{kind}").close()
    built = time.perf_counter() - began
    command = [sys.executable, "-m", "benchmarks.search", "--ask", path, queries]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    recall = np.mean(
        [len(set(one) & set(other)) / K for one, other in zip(answer["found"], true.tolist(), strict=True)]
    )
    effort = f", effort {answer['about']['effort']}" if answer["about"] else ""
    return [
        f"{kind}{effort}",
        f"{built:.0f} s",
        f"{size:,.0f} MB",
        f"{answer['open']:.2f} s",
        f"{answer['memory']['VmHWM']:,.0f} MB",
        f"{answer['memory']['RssAnon']:,.0f} MB",
        *(f"{1000 * np.percentile(answer['times'], share):.2f} ms" for share in (50, 99)),
        f"{recall:.3f}",
    ]


def of_peer(name, python, descriptors, queries, true):
    """A row of the table, by `benchmarks/peers.py`."""
    told = peers.asked(python, "search", name, descriptors, queries, true)
    answer, peak = told["done"], told["peak"]
    times = (f"{1000 * np.percentile(answer['times'], share):.2f} ms" for share in (50, 99))
    name = f"{name}, effort {answer['effort']}"
    return [name, f"{answer['built']:.0f} s", "", "", f"{peak:,.0f} MB", "", *times, f"{answer['recall']:.3f}"]


def main():
    """Arguments, the rows and the table."""
    parser = benchmark_parser("search", __doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--centres", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--around", help="descriptors in .npy to draw others around, in place of --centres")
    parser.add_argument("--kinds", default="auto", help="auto, exact, ivf, pq, hnsw, hnswlib, usearch, by commas")
    parser.add_argument("--peers", help="a Python that has hnswlib and usearch")
    parser.add_argument("--folder", help="where the files are made; default: a temporary folder")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(*map(Path, options.ask))
        return
    asked = [kind for kind in options.kinds.split(",") if kind in PEERS]
    if asked and not options.peers:
        parser.error(f"{', '.join(asked)}: --peers must name a Python that has it")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        descriptors, queries = folder / "descriptors.npy", folder / "queries.npy"
        write_descriptors(descriptors, options.count, options.dimensions, options.centres, options.around)
        np.save(queries, queries_near(descriptors, options.queries))
        stored = np.load(descriptors, mmap_mode="r")
        _, true = exact_nearest(stored, np.ones(len(stored), bool), np.load(queries), K)
        neighbors = folder / "true.npy"
        np.save(neighbors, true)
        rows = [
            of_peer(kind, options.peers, descriptors, queries, neighbors)
            if kind in PEERS
            else of_index(kind, descriptors, queries, true, folder)
            for kind in options.kinds.split(",")
        ]
    print_table(
        f"{options.count:,} descriptors of {stored.shape[1]} values, {options.queries} queries",
        ["kind", "build", "disk", "open", "peak memory", "own memory", "p50", "p99", f"recall@{K}"],
        rows,
    )
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, FAISS {faiss.__version__}")


if __name__ == "__main__":
    run_program(main)
