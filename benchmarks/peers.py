"""Other libraries at the work of `benchmarks.search` and `benchmarks.duplicates`, by a Python that has them.

Run by those two, in a process of its own, with that Python; it needs NumPy and the peer alone. What was found, in what
time and memory, is printed as a line of JSON.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

_BLOCK = 1 << 15
# bits of 64 that hashes of copies may differ in: imagededup's own choice
_BITS = 10


def peak():
    """MB of memory that this process held at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def asked(python, work, *arguments):
    """What a Python says of a work in a process of its own: {"done": ..., "seconds": ..., "peak": MB}."""
    command = [python, "-P", __file__, work, *arguments]
    return json.loads(subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True).stdout)


def search(name, descriptors, queries, true):
    """hnswlib or usearch, with the least effort that finds 0.97 of the true neighbours."""
    import numpy as np

    values, queries, true = np.load(descriptors, mmap_mode="r"), np.load(queries), np.load(true)
    count, k = len(values), true.shape[1]
    if name == "hnswlib":
        import hnswlib

        index = hnswlib.Index("ip", values.shape[1])
        index.init_index(count, ef_construction=80, M=32)
        add, effort_of = index.add_items, index.set_ef
        ask = lambda query: index.knn_query(query, k)[0][0]  # noqa: E731
    else:
        from usearch.index import Index

        index = Index(ndim=values.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=80)
        add = lambda block, rows: index.add(rows, block)  # noqa: E731
        effort_of = lambda effort: setattr(index, "expansion_search", effort)  # noqa: E731
        ask = lambda query: index.search(query, k).keys  # noqa: E731
    began = time.perf_counter()
    for start in range(0, count, _BLOCK):
        block = np.asarray(values[start : start + _BLOCK], np.float32)
        add(block, np.arange(start, start + len(block)))
    built = time.perf_counter() - began
    for effort in (32, 64, 128, 256, 512, 1024):
        effort_of(effort)
        found, times = [], []
        for query in queries:
            began = time.perf_counter()
            found.append([int(row) for row in ask(query)])
            times.append(time.perf_counter() - began)
        recall = np.mean([len(set(one) & set(other)) / k for one, other in zip(found, true.tolist())])  # noqa: B905
        if recall >= 0.97:
            break
    return {"effort": effort, "built": built, "times": times, "recall": float(recall)}


def duplicates(name, folder):
    """{file: [duplicates]} by a method of imagededup, or by imagehash's pHash, at a distance of 10 bits."""
    if name == "imagehash":
        return _by_imagehash(folder)
    from imagededup import methods

    if name == "CNN":
        return methods.CNN(verbose=False).find_duplicates(image_dir=folder, num_enc_workers=0)
    return getattr(methods, name)(verbose=False).find_duplicates(image_dir=folder, max_distance_threshold=_BITS)


def _by_imagehash(folder):
    import imagehash
    import numpy as np
    from PIL import Image

    names, bits = sorted(os.listdir(folder)), []
    for name in names:
        with Image.open(os.path.join(folder, name)) as image:
            bits.append(imagehash.phash(image).hash.ravel())
    signs = 2 * np.array(bits, np.float32) - 1
    found = {}
    for start in range(0, len(names), 1024):
        near = signs[start : start + 1024] @ signs.T >= signs.shape[1] - 2 * _BITS
        for row, others in enumerate(near):
            found[names[start + row]] = [names[other] for other in np.flatnonzero(others) if other != start + row]
    return found


if __name__ == "__main__":
    work, *given = sys.argv[1:]
    began = time.perf_counter()
    # what a library says of itself is no answer
    answers = os.dup(1)
    os.dup2(2, 1)
    done = {"search": search, "duplicates": duplicates}[work](*given)
    told = json.dumps({"done": done, "seconds": time.perf_counter() - began, "peak": peak()})
    os.write(answers, told.encode())
