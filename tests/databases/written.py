"""Descriptors as `mg-keras embed` writes them, of photos that there are none of."""

import numpy as np

from mg_keras.embedding import shards

MADE_FROM = {
    "photos": "a hash",
    "network": "a network",
    "resolution": 224,
    "train_resolution": 224,
    "pooling": 3.0,
    "whitening": None,
    "class_names": "another hash",
    "dtype": "float16",
}


def descriptors(count, size=32, seed=0):
    """float16 [count, size], of any norm."""
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float16)


def uris_of(count, start=0):
    return [f"/photos/é {number:05}.jpg" for number in range(start, start + count)]


def write(folder, values, uris=None, unusable=0, classes=("cat", "dog"), a_shard=4096, **made_from):
    """Shards of descriptors, whose classes take turns, and of a few photos more that can't be used."""
    folder.mkdir(exist_ok=True)
    columns = shards.schema(values.shape[1], "float16", MADE_FROM | made_from)
    uris = uris or uris_of(len(values))
    for start in range(0, len(values), a_shard):
        ids = np.arange(start, min(start + a_shard, len(values)))
        rows = shards.usable_rows(
            columns,
            ids,
            [uris[row] for row in ids],
            values[ids],
            np.full((len(ids), 2), (480, 640)),
            [classes[row % len(classes)] for row in ids] if classes else None,
            np.full(len(ids), 0.5) if classes else None,
        )
        shards.write(folder, rows)
    if unusable:
        ids = len(values) + np.arange(unusable)
        names = [f"/photos/broken {number}.jpg" for number in range(unusable)]
        shards.write(folder, shards.unusable_rows(columns, ids, names, ["it is broken"] * unusable))
    return folder
