"""What an index of so many descriptors will hold, find and take, before it is built.

Everything that was measured is in `MEASURED`; `python -m benchmarks.index_constants` measures it anew.
"""

import dataclasses
import math
import os

from mg_keras.errors import UserError
from mg_keras.search import neighbors, sharded

MEASURED_SIZES, MEASURED_DIMENSIONS = (50_000, 200_000), 128
"""Of the generated descriptors that were measured."""

EFFORTS, DEPTHS, VALUES_A_BYTE = (4, 8, 16, 32, 64, 128, 256), (16, 32, 64, 128, 256), (8, 16)
"""Cells that a query looks at; answers that are ranked exactly, for each that is wanted; and values a byte of code."""

# cells, codes: the share of the ten nearest that is lost by looking at so many cells, and by ranking so many answers
#     exactly, at each of the two sizes; more of both lose less, and so do fewer descriptors
# learn, flat: seconds of an operation (of a value of a middle with one of a descriptor, times two)
# together: how many times the processor time of learning is that of one core, where all learn: they wait for each other
# graph, graph_made, read, code, middle: seconds of a value of a descriptor, or of a middle
# rotation: seconds to learn the codes, of MEASURED_DIMENSIONS and of twice as many
# scan: seconds of a byte of code; shard, row, name: of a shard, a row that is read, a name
# process: bytes that a process holds besides
MEASURED = {
    "cells": {
        4: (0.0895, 0.157),
        8: (0.0527, 0.099),
        16: (0.0337, 0.062),
        32: (0.0168, 0.0337),
        64: (0.007, 0.0152),
        128: (0.0012, 0.003),
        256: (0.0002, 0.0008),
    },
    "codes": {
        8: {16: (0.0162, 0.0327), 32: (0.0068, 0.0148), 64: (0.002, 0.0048), 128: (0.0005, 0.0012), 256: (0.0, 0.0)},
        16: {16: (0.0367, 0.0717), 32: (0.0188, 0.0427), 64: (0.007, 0.0202), 128: (0.0032, 0.009), 256: (0.0, 0.003)},
    },
    "learn": 8.593e-12,
    "together": 1.76,
    "rotation": [2.26, 4.49],
    "flat": 8.19e-12,
    "graph": 2.216e-07,
    "graph_made": 5.646e-07,
    "read": 3.501e-08,
    "code": {"float16": 1.193e-09, "pq": 1.212e-08},
    "scan": {"float16": 1.471e-10, "pq": 6.988e-10},
    "middle": 9.858e-11,
    "shard": 0.0002165,
    "row": 3.792e-06,
    "name": 0.0007765,
    "process": 77093984,
}
# 2 cores, one of them used, load average 3.6, FAISS 1.15.1

_ROUNDS, _ANSWERS, _LINK_BYTES = 8, 10, 4 * 2 * 32 + 16
# fast scan keeps codes of a cell in blocks of so many
_BLOCK_CODES = 32
_LEAST_LOSS, _TELLS = 0.0004, 0.002


@dataclasses.dataclass(frozen=True)
class Choice:
    """An index that may be built.

    Attributes:
        name: in words.
        bytes: of a code, as `--bytes` takes it.
        effort, reranked: cells that a query looks at, and answers that it ranks exactly for each that is wanted.
        memory: bytes that a process holds that has it open.
        disk: bytes, besides the Parquet files.
        building: bytes that the processes hold together that build it.
        recall: expected recall@10, in [0, 1].
        core_seconds, seconds: to build it: of processors together, and on the clock with the cores that were given.
        query_seconds: of one core, files being in the system's cache.
    """

    name: str
    bytes: int
    effort: int
    reranked: int
    memory: float
    disk: float
    building: float
    recall: float
    core_seconds: float
    seconds: float
    query_seconds: float


def choices(rows: int, dimensions: int, cores: int | None = None, shards: int | None = None) -> list[Choice]:
    """Three indexes to choose from: float16 in memory, and codes of an eighth and of a sixteenth of a byte a value.

    Args:
        rows, dimensions: N and D.
        cores: to build with; None: those of this machine.
        shards: as `sharded.build` takes them.

    Raises:
        UserError: too few descriptors for an index of shards.
    """
    rows = int(rows)
    if rows < sharded.SMALLEST:
        raise UserError(f"--plan must be {sharded.SMALLEST:,} descriptors at least, received {rows:,}")
    cores = cores or os.cpu_count() or 1
    shards = shards or sharded.default_shards(rows, cores)
    return [
        _choice("float16 in memory (IVF)", 2 * dimensions, None, rows, dimensions, cores, shards),
        *(
            _choice("IVF-PQ, re-ranked", -(-dimensions // rate), rate, rows, dimensions, cores, shards)
            for rate in VALUES_A_BYTE
        ),
    ]


def _choice(name, code_bytes, rate, rows, dimensions, cores, shards):
    found, cells = MEASURED, neighbors.cells_for(rows)
    kind = "pq" if rate else "float16"

    def recall_at(effort, reranked):
        # one loses whatever the other does
        kept = 1 - _lost(found["cells"], effort, rows)
        return kept * (1 - _lost(found["codes"][rate], reranked, rows)) if rate else kept

    effort, reranked, recall = neighbors.least_effort(recall_at, 4, max(4, cells // 2), sharded.most_reranked(kind))
    graph = cells >= sharded.GRAPH_CELLS
    middles = cells * (4 * dimensions + graph * _LINK_BYTES)
    # each cell of each shard ends with a block that is half full
    blocks = shards * cells * _BLOCK_CODES / 2 * code_bytes if rate else 0
    codes = rows * (code_bytes + 8) + blocks
    process = found["process"]
    sample = 4 * dimensions * min(rows, neighbors.TRAINED_PER_CELL * cells)
    waiting = found["together"] if cores > 1 else 1.0
    learned = (
        found["learn"] * waiting * _ROUNDS * 2 * cells * sample / 4 + graph * found["graph_made"] * cells * dimensions
    )
    if rate:
        first, second = found["rotation"]
        learned += first + (second - first) * (dimensions / MEASURED_DIMENSIONS - 1)
    if graph:
        assigned = found["graph"] * dimensions * math.log2(cells) / math.log2(sharded.GRAPH_CELLS)
        asked = assigned * max(1.0, effort / 16)
    else:
        assigned, asked = found["flat"] * 2 * cells * dimensions, found["middle"] * cells * dimensions
    indexed = rows * (dimensions * (found["read"] + found["code"][kind]) + assigned)
    query = (
        asked
        + shards * found["shard"]
        + effort * rows / cells * code_bytes * found["scan"][kind]
        + _ANSWERS * (reranked * found["row"] + found["name"])
    )
    # the queries by which the effort is chosen: some twelve times, of which most take half
    learned += sharded.QUERIES * 6 * query
    return Choice(
        name,
        code_bytes,
        effort,
        reranked,
        memory=process + middles + codes + rows,
        disk=middles + codes,
        building=max(process + 2 * sample, min(cores, shards) * (process + middles + 1.5 * codes / shards)),
        recall=recall,
        core_seconds=learned + indexed,
        seconds=learned / cores + indexed / min(cores, shards),
        query_seconds=query,
    )


def _lost(table, amount, rows):
    """A share that is lost, by the power laws through what was measured, of the size and of the amount."""
    small, large = MEASURED_SIZES
    amounts = list(table)

    def odds(lost):
        # which are a loss where it is small, and never more than all
        lost = max(_LEAST_LOSS, lost)
        return lost / (1 - lost)

    # the steepest, of those of which so many were lost that it can be told
    told = [each for each in table.values() if min(each) >= _TELLS]
    power = max((math.log(odds(other) / odds(one)) / math.log(large / small) for one, other in told), default=0.0)

    def at(which):
        grown = odds(table[which][1]) * (rows / large) ** max(0.0, power)
        return grown / (1 + grown)

    # more never loses more, whatever a few of some thousands say
    within = min((at(each) for each in amounts if each <= amount), default=1.0)
    if amount <= amounts[-1]:
        return within
    # more than was measured: as it fell from half of the most to the most
    power = max(0.0, math.log(at(amounts[-2]) / within) / math.log(amounts[-1] / amounts[-2]))
    return within * (amounts[-1] / amount) ** power
