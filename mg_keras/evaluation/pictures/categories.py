"""A picture of what photos find in photos of two levels of labels."""

import os

import numpy as np
import tensorflow as tf

from mg_keras.data.images import decode
from mg_keras.data.sources import Source
from mg_keras.embedding.photos import Embeddings
from mg_keras.embedding.whitening import Whitening
from mg_keras.evaluation import pictures
from mg_keras.evaluation.search import nearest

_QUERIES, _NEIGHBORS = 6, 9


def category_picture(
    path: str | os.PathLike, source: Source, found: Embeddings, whitening: Whitening | None = None, seed: int = 0
) -> None:
    """Draws validation photos and what they find among the others, framed by the levels of labels that they share.

    Args:
        path: of the PNG.
        source: with one level of labels or more: the first is the coarse one, the second the fine one.
        found: embeddings, by one pooling first, of the source's training photos followed by those for validation.
        whitening: of these embeddings; None: compared as they are.
        seed: of the choice of queries.
    """
    place = found.rows - len(source.train)
    values, rows = found.values[0][place >= 0], place[place >= 0]
    if len(rows) < 2:
        return
    descriptors = whitening.transform(values) if whitening else values
    levels = list(source.label_columns)[:2]
    names = [source.label_columns[level] for level in levels] or [source.class_names]
    labels = [source.val.label_columns[level] for level in levels] or [source.val.labels]

    def photo(row):
        image = decode(source.val.read(tf.constant(row, tf.int64))).numpy()
        said = [known[column[row]] for known, column in zip(names, labels, strict=True)]
        return pictures.Photo(image, said[0], said[1] if len(said) > 1 else None, said[-1])

    rng = np.random.default_rng(seed)
    # of different classes, as far as there are
    order = rng.permutation(len(rows))
    _, first = np.unique(labels[-1][rows[order]], return_index=True)
    queries = order[np.sort(first)][:_QUERIES]
    cosines, indices = nearest(descriptors[queries], descriptors, min(_NEIGHBORS + 1, len(rows)))
    neighbors = [
        [(photo(int(rows[i])), cosine) for i, cosine in zip(*pair, strict=True) if i != query][:_NEIGHBORS]
        for query, *pair in zip(queries, indices, cosines, strict=True)
    ]
    words = {"same class": "same label"}
    if len(levels) > 1:
        words = {"same instance": f"same {levels[1]} label", "same class": f"same {levels[0]} label"}
    pictures.retrieval_picture(
        path,
        [photo(int(rows[query])) for query in queries],
        neighbors,
        "Photos (left) and their nearest others, by the labels that they share",
        {**words, "another class": "another label"},
    )
