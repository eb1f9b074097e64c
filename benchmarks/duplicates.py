"""From a folder to its duplicates: planted copies that are found, beside imagededup's hashes, in what time and memory.

    python -m benchmarks.duplicates --photos FOLDER,FOLDER --count 2000 --planted 200 --peers PYTHON

`--count` photos of the folders are drawn by the seed, and `--planted` of them get a strong edit each, the kinds in
turn (`mg_keras.evaluation.copies`). `mg-keras duplicates` looks at the folder twice, as somebody does who comes again;
each contestant is a process of its own. `--peers` is a Python that has imagededup or imagehash; `--methods` says which.

Recall is the share of edits of whose duplicates the original is one; precision that of all pairs that come from one
photo. Photos that are in the folders twice count as mistakes, so that no precision is quite 1.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.arguments import benchmark_parser
from benchmarks.describers import opened
from benchmarks.timing import print_table
from mg_keras.data.finding import find_photos
from mg_keras.evaluation.copies import STRONG_EDITS
from mg_keras.programs.common import run_program


def plant(folder, photos, planted, seed):
    """Links to the photos, `00000.jpg`, and strong edits of the first, `00000-blur.jpg`."""
    for number, path in enumerate(photos):
        os.symlink(os.path.abspath(path), folder / f"{number:05}{Path(path).suffix.lower()}")
    kinds = list(STRONG_EDITS)
    for number, path in enumerate(photos[:planted]):
        kind = kinds[number % len(kinds)]
        edited = STRONG_EDITS[kind](opened(path), np.random.default_rng((seed, number)))
        edited.save(folder / f"{number:05}-{kind}.jpg", quality=90)


def of_mg_keras(folder, place, options):
    """({file: [duplicates]}, seconds, peak in MB) of the first time and of the second."""
    report, runs = place / "found.json", []
    command = [sys.executable, "-m", "mg_keras", "duplicates", folder, "--format", "imagededup", "--out", report]
    command += ["--index", place / "index", "--kinds", "equal,copy", *options]
    for _ in range(2):
        began = time.perf_counter()
        child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"mg-keras duplicates ended with {child.returncode}")
        runs.append((json.loads(report.read_text()), time.perf_counter() - began, usage.ru_maxrss / 1024))
    return runs


def scores(found, folder):
    """(recall, precision, kind -> recall)."""
    origin = {name: name[:5] for name in os.listdir(folder)}
    original = {number: name for name, number in origin.items() if "-" not in name}
    kinds, pairs = defaultdict(list), {frozenset((one, other)) for one, others in found.items() for other in others}
    for name, number in origin.items():
        if "-" in name:
            kinds[Path(name).stem[6:]].append(frozenset((name, original[number])) in pairs)
    right = sum(len({origin[name] for name in pair}) == 1 for pair in pairs)
    recalls = {kind: float(np.mean(hits)) for kind, hits in kinds.items()}
    return float(np.mean(np.concatenate(list(kinds.values())))), right / len(pairs) if pairs else float("nan"), recalls


def main():
    """Arguments, the rows and the table."""
    parser = benchmark_parser("duplicates", __doc__)
    parser.add_argument("--photos", required=True, help="folders, by commas")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", help="a Python with imagededup or imagehash")
    parser.add_argument("--methods", default="PHash,DHash,AHash,WHash", help="of imagededup, CNN too; or imagehash")
    parser.add_argument("--options", default="", help="further options of mg-keras duplicates, by spaces")
    options = parser.parse_args()
    photos = [path for folder in options.photos.split(",") for path in find_photos(Path(folder)).files]
    random.Random(options.seed).shuffle(photos)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = place / "photos"
        folder.mkdir()
        plant(folder, photos[: options.count], options.planted, options.seed)
        made = of_mg_keras(folder, place, options.options.split())
        contestants = {"mg-keras": made[0], "again": made[1]}
        for method in options.methods.split(",") if options.peers else ():
            told = peers.asked(options.peers, "duplicates", method, folder)
            contestants[method] = told["done"], told["seconds"], told["peak"]
        for name, (found, seconds, peak) in contestants.items():
            recall, precision, kinds = scores(found, folder)
            shown = [f"{100 * kinds.get(kind, float('nan')):.0f}" for kind in STRONG_EDITS]
            rows.append([name, f"{seconds:.0f} s", f"{peak:,.0f} MB", f"{recall:.3f}", f"{precision:.3f}", *shown])
    print_table(
        f"{min(options.count, len(photos)):,} photos and {options.planted:,} edits of them",
        ["", "time", "peak", "recall", "precision", *(kind[:5] for kind in STRONG_EDITS)],
        rows,
    )
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    run_program(main)
