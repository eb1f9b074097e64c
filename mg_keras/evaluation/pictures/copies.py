"""A picture of what photos find among edited copies and other photos."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mg_keras.data.images import decode
from mg_keras.data.sources import Split
from mg_keras.embedding.photos import Embeddings
from mg_keras.embedding.whitening import Whitening
from mg_keras.evaluation.evaluators import Benchmark
from mg_keras.evaluation.pictures.retrieval import Photo, retrieval_picture
from mg_keras.evaluation.search import nearest

_QUERIES, _NEIGHBORS = 6, 7


def copies_picture(
    path: str | os.PathLike,
    benchmark: Benchmark,
    val: Split,
    class_names: Sequence[str],
    found: Embeddings,
    whitening: Whitening | None = None,
    seed: int = 0,
) -> None:
    """Draws some queries of the copies benchmark with what they find: their edited copies and the other test photos.

    Args:
        path: of the PNG.
        benchmark: of `evaluators.copies` on `val`.
        val: the test photos.
        class_names: of their labels.
        found: embeddings of the benchmark's photos, by one pooling first.
        whitening: of these embeddings; None: compared as they are.
        seed: of the choice of queries.
    """
    search, photos = benchmark.search, benchmark.photos
    values = found.values[0]
    descriptors = whitening.transform(values) if whitening else values
    place_of = {int(row): place for place, row in enumerate(found.rows)}
    usable = [i for i, query in enumerate(search.queries) if int(query) in place_of]
    chosen = np.random.default_rng(seed + 1).permutation(usable)[:_QUERIES]
    original_of = {int(copy): int(search.queries[i]) for i, copies in enumerate(search.positives) for copy in copies}

    def photo(row):
        picture = decode(photos.read(tf.constant(row, tf.int64))).numpy()
        original = original_of.get(row, row)
        if original >= len(val):
            return Photo(picture, "distractor", f"distractor {row}")
        instances = val.instances
        instance = original if instances is None else instances[original]
        label = val.labels[original]
        return Photo(picture, class_names[label] if label >= 0 else None, str(instance))

    # the queries' own copies, and every test photo and distractor, the queries too: as a person would search
    strangers = set(original_of) - {int(copy) for i in chosen for copy in search.positives[i]}
    database = np.array([place for row, place in place_of.items() if row not in strangers])
    queries = [int(search.queries[i]) for i in chosen]
    if not queries:
        return
    left_out = [{int(search.queries[i]), *map(int, search.ignored[i])} for i in chosen]
    similarities, indices = nearest(
        descriptors[[place_of[query] for query in queries]],
        descriptors[database],
        min(_NEIGHBORS + max(map(len, left_out)), len(database)),
    )
    neighbors = []
    for own, *pair in zip(left_out, indices, similarities, strict=True):
        rows = [(int(found.rows[database[i]]), similarity) for i, similarity in zip(*pair, strict=True)]
        neighbors.append([(photo(row), similarity) for row, similarity in rows if row not in own][:_NEIGHBORS])
    retrieval_picture(path, [photo(query) for query in queries], neighbors)
