"""A network that describes pieces of work: photos to rows of Parquet."""

import functools
import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import tensorflow as tf

from mg_keras.data.images import problem
from mg_keras.data.photo_lists import Contents
from mg_keras.data.sources import Split
from mg_keras.data.stores.graph import in_graph
from mg_keras.embedding import shards
from mg_keras.embedding.photos import EmbeddingNetwork, forward_function, preparation_of, prepared_batches
from mg_keras.embedding.settings import Settings
from mg_keras.embedding.work import Piece

_IMAGES = [tf.TensorSpec([None, None, None, 3], tf.float32)]


class Describer:
    """Describes pieces with a network; may be called from several threads, which take the network in turns.

    Two threads keep it busy: while one runs a piece through it, the other decodes the next one.

    Args:
        network: `MultiGrain`, or another network of `mg_keras.embedding.photos`.
        settings: how photos are described.

    Attributes:
        made_from: what files of the descriptors say of them.
        dimensions: values of a descriptor.

    Raises:
        ValueError: the whitening is of another size.
    """

    def __init__(self, network: EmbeddingNetwork, settings: Settings):
        self.network, self.settings = network, settings
        self._forward = _function(network, settings)
        self.made_from = settings.made_from(network.fingerprint(), getattr(network, "precision", None))
        pooled = self._forward.get_concrete_function().structured_outputs[0].shape[-1]
        self.dimensions = settings.whitening.projection_.shape[1] if settings.whitening else pooled
        self._lock = threading.Lock()

    def rows(self, piece: Piece, columns: pa.Schema, counted: Callable[[int], None] = lambda photos: None) -> pa.Table:
        """The rows of a piece, a row a photo, those that can't be used with the reason.

        Args:
            piece: of `mg_keras.embedding.work.Work`.
            columns: as `mg_keras.embedding.shards.schema` makes it.
            counted: told of each batch how many photos it was; what it raises ends the work.
        """
        settings, uris = self.settings, [photo.uri for photo in piece.photos]
        tables = []
        with Contents(piece.photos) as contents:
            split = Split(uris, in_graph(contents.decodable), lambda: np.full(len(uris), -1))
            for batch in prepared_batches(
                split,
                settings.resolution,
                settings.train_resolution,
                preparation=preparation_of(self.network),
            ):
                for row in batch.unusable.tolist():
                    reason = contents.trouble(row) or _reason(contents, row)
                    hashes = [contents.sha256(row)]
                    tables.append(shards.unusable_rows(columns, piece.ids[[row]], [uris[row]], [reason], hashes))
                if len(batch.rows):
                    tables.append(self._usable_rows(batch, piece.ids, uris, contents, columns))
                counted(len(batch.rows) + len(batch.unusable))
        return pa.concat_tables(tables).sort_by("id")

    def _usable_rows(self, batch, ids, uris, contents, columns):
        settings, rows = self.settings, batch.rows.tolist()
        with self._lock:
            pooled, *logits = (each.numpy() for each in self._forward(batch.images))
            found = (None, None)
            if settings.named_classes is not None:
                logits = logits[0] if logits else self.network.classify(pooled)
                found = likeliest(logits, settings.named_classes)
        values = settings.whitening.transform(pooled) if settings.whitening else pooled
        hashes = [contents.sha256(row) for row in rows]
        return shards.usable_rows(
            columns, ids[batch.rows], [uris[row] for row in rows], values, batch.sizes, *found, hashes
        )


def _function(network, settings):
    """Graph code, compiled: images -> (pooled [B, D],) or, of a network that gives both at once, (pooled, logits)."""
    if settings.named_classes is None or not hasattr(network, "embed_and_classify"):
        pooled = forward_function(network, None if settings.pooling is None else [settings.pooling])
        return tf.function(lambda images: (pooled(images)[0],), input_signature=_IMAGES, autograph=False)
    both = functools.partial(network.embed_and_classify, pooling=settings.pooling)
    return tf.function(lambda images: tuple(both(images)), input_signature=_IMAGES, autograph=False)


def likeliest(logits: np.ndarray, names: list[str]) -> tuple[list[str], np.ndarray]:
    """(name, probability) of the likeliest class by logits [N, C]."""
    logits = np.asarray(logits, np.float64)
    best = np.argmax(logits, axis=1)
    return [names[number] for number in best], 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def _reason(contents, row):
    return problem(lambda: tf.constant(contents.decodable(row))) or contents.trouble(row) or "could not be read"
