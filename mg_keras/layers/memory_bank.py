"""A memory of embeddings: one a training photo, or a queue of the last ones."""

from typing import Any

import keras
import tensorflow as tf

from mg_keras.layers.replicas import gathered, update_copies


@keras.saving.register_keras_serializable("mg_keras")
class MemoryBank(keras.layers.Layer):
    """Unit-norm embeddings of photos, as they were when a step last met them (Wu et al. 2018; after Grafit 2021).

    Where it has a place for every photo, that of photo i becomes, after a step that met it with the embedding g_i,

        m_i <- momentum m_i + (1 - momentum) g_i, with unit norm again

    and g_i itself when it is met first; until then its label is -1, and losses pass it over. As a queue, for sets that
    are too large for this, it holds the last `size` embeddings as they were.

    Its variables are stored with the run: a run that goes on has the memory that it had. They take `size` times
    `dimensions` times the bytes of `dtype`: 1.2 million photos of 256 values 0.6 GB in float16.

    Args:
        size: how many embeddings it holds.
        dimensions: d, values of each.
        queue: whether it is a queue.
        momentum: share of the old embedding in the new one, in [0, 1); of no account in a queue.
        dtype: `"float32"`, or `"float16"`, which takes half the memory; updates are computed in float32.

    Attributes:
        embeddings: [size, d], in `dtype`.
        labels: int32 [size], -1 where there is none yet.
        ids: int32 [size], the photos', of a queue; None where a photo's id is its place.

    Raises:
        ValueError: a value is out of range.

    Example:

    >>> memory = mg_keras.layers.MemoryBank(size=3, dimensions=2)
    >>> memory.update(ids=[1], labels=[7], embeddings=[[0.0, 1.0]])
    >>> memory.labels.numpy()
    array([-1,  7, -1], dtype=int32)
    """

    def __init__(self, size: int, dimensions: int, queue: bool = False, momentum: float = 0.5, **kwargs):
        for name, value in (("size", size), ("dimensions", dimensions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), received {momentum}")
        super().__init__(autocast=False, **{**kwargs, "trainable": False})
        self.size, self.dimensions, self.queue, self.momentum = int(size), int(dimensions), bool(queue), float(momentum)
        empty = keras.initializers.Constant(-1)
        self.embeddings = self.add_weight(
            shape=(self.size, self.dimensions), initializer="zeros", dtype=self.variable_dtype, name="embeddings"
        )
        self.labels = self.add_weight(shape=(self.size,), initializer=empty, dtype="int32", name="labels")
        self.ids = self.next = None
        if self.queue:
            self.ids = self.add_weight(shape=(self.size,), initializer=empty, dtype="int32", name="ids")
            self.next = self.add_weight(shape=(), initializer="zeros", dtype="int32", name="next")
        self.built = True

    def update(self, ids: Any, labels: Any, embeddings: Any) -> None:
        """Takes up the embeddings of a step, in the context of a replica: those of all replicas, the same on each.

        Args:
            ids: int [B], the photos'; without a queue from 0 to size - 1. Of a photo that is there several times the
                first counts.
            labels: int [B].
            embeddings: [B, d], of any norm.

        Raises:
            ValueError: a queue that is smaller than a step of all replicas.
        """
        rows = tf.cast(embeddings, tf.float32)
        # by shapes of one replica: those of gathered rows are not known
        photos = (rows.shape[0] or 0) * tf.distribute.get_strategy().num_replicas_in_sync
        if self.queue and photos > self.size:
            raise ValueError(f"a queue must hold a step's {photos} photos at least, received {self.size}")
        ids, labels, rows = gathered(self._numbers(ids), tf.cast(labels, tf.int32), rows)
        rows = tf.math.l2_normalize(rows, axis=-1, epsilon=1e-12)
        variables = [self.embeddings, self.labels]
        if not self.queue:
            first = _first_rows(ids)
            ids, labels, rows = (tf.gather(value, first) for value in (ids, labels, rows))
            old = tf.cast(tf.gather(self.embeddings.value, ids), tf.float32)
            known = (tf.gather(self.labels.value, ids) >= 0)[:, None]
            mixed = tf.math.l2_normalize(self.momentum * old + (1 - self.momentum) * rows, axis=-1, epsilon=1e-12)
            values, places = [tf.where(known, mixed, rows), labels], ids
        else:
            # no place twice, should a batch of unknown size not fit
            ids, labels, rows = (value[-self.size :] for value in (ids, labels, rows))
            places = (self.next.value + tf.range(tf.shape(ids)[0])) % self.size
            after = (self.next.value + tf.shape(ids)[0]) % self.size
            variables, values = [*variables, self.ids], [rows, labels, ids]
            update_copies(lambda variable, value: variable.assign(value), [self.next], [after])

        def put(variable, places, value):
            variable.scatter_nd_update(places[:, None], tf.cast(value, variable.dtype))

        update_copies(put, variables, [places] * len(variables), values)

    def _numbers(self, ids):
        """int32: a queue has to tell photos apart; else a number of 64 bits must not become that of another's place."""
        return tf.cast(ids, tf.int32) if self.queue else as_places(ids)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "size": self.size,
            "dimensions": self.dimensions,
            "queue": self.queue,
            "momentum": self.momentum,
        }


def as_places(ids: Any) -> tf.Tensor:
    """Photos' numbers as int32, those of more bits as the nearest there is, where no memory has a place."""
    return tf.saturate_cast(tf.convert_to_tensor(ids), tf.int32)


def _first_rows(ids):
    """int32: where each id stands first, in order."""
    same = ids[:, None] == ids[None, :]
    first = tf.argmax(same, axis=1, output_type=tf.int32)
    return tf.where(first == tf.range(tf.shape(ids)[0]))[:, 0]
