"""Neighbourhood component analysis over a memory."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from mg_keras.layers.memory_bank import as_places

# far below any logit
_NONE = -1e9


@keras.saving.register_keras_serializable("mg_keras")
class NearestNeighborLoss(keras.layers.Layer):
    """A photo's neighbours in a memory are to be of its class (Goldberger 2005, Wu et al. 2018; after Grafit 2021).

    With the embedding g_i, the unit-norm memory m_j and the temperature T,

        p_ij = exp(cos(g_i, m_j) / T) / sum over k != i: exp(cos(g_i, m_k) / T)
        loss_i = -log( sum over j != i with y_j = y_i: p_ij )

    where j and k are the entries with a label, and i its own entry. The memory gets no gradient. It is read a part at a
    time, once for both the loss and its gradient: what a step needs beside it does not grow with the number of photos.

    Args:
        temperature: T > 0.
        part_size: how many entries of the memory are compared at a time.

    Input shape:
        `embeddings`: [B, d], of any norm.
        `labels`: int [B].
        `ids`: int [B], the photos'.
        `memory`: [N, d], unit norm, as `MemoryBank.embeddings`.
        `memory_labels`: int [N], -1 for entries to pass over.
        `memory_ids`: int [N]; None where a photo's id is its place.

    Output shape:
        [B], float32; 0 for a photo of whose class there is no other entry.

    Raises:
        ValueError: a value is out of range.

    Example:

    >>> memory = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    >>> labels, first = np.array([7, 8, 7]), np.array([0])
    >>> loss = mg_keras.layers.NearestNeighborLoss(1.0)(memory[:1], labels[:1], first, memory, labels)
    >>> loss.numpy().round(4)
    array([0.4375], dtype=float32)
    """

    def __init__(self, temperature: float = 0.05, part_size: int = 4096, **kwargs):
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, received {temperature}")
        if part_size < 1:
            raise ValueError(f"part_size must be at least 1, received {part_size}")
        super().__init__(autocast=False, **kwargs)
        self.temperature, self.part_size = float(temperature), int(part_size)

    def call(
        self,
        embeddings: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
        memory: tf.Tensor,
        memory_labels: tf.Tensor,
        memory_ids: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """One loss a photo."""
        unit = ops.normalize(ops.cast(embeddings, "float32"), axis=-1)
        fixed = ops.stop_gradient(unit)
        labels = ops.cast(ops.convert_to_tensor(labels), "int32")
        ids = as_places(ids) if memory_ids is None else ops.cast(ops.convert_to_tensor(ids), "int32")
        size, dimensions = memory.shape
        width = min(self.part_size, size)

        def absorb(number, states):
            # the last part begins where it is still whole; what was seen before is passed over
            start = ops.minimum(number * width, size - width)
            places = start + ops.arange(width, dtype="int32")
            rows = ops.cast(_entries(memory, places), "float32")
            row_labels = ops.cast(_entries(memory_labels, places), "int32")
            row_ids = places if memory_ids is None else ops.cast(_entries(memory_ids, places), "int32")
            new = ops.logical_and(places >= number * width, row_labels >= 0)
            logits = ops.matmul(scaled, ops.transpose(rows)) + ops.where(new, 0.0, _NONE)
            logits = ops.where(row_ids[None] == ids[:, None], _NONE, logits)
            return _absorbed(states, logits, row_labels[None] == labels[:, None], rows, self._is_mild)

        count, scaled = ops.shape(unit)[0], fixed / self.temperature
        empty = (ops.full((count,), _NONE), ops.zeros((count,)), ops.zeros((count, dimensions)))
        parts = -(-size // width)
        states = (*empty, *empty)
        states = absorb(0, states) if parts == 1 else ops.fori_loop(0, parts, absorb, states)
        top, total, mean, top_alike, total_alike, mean_alike = map(ops.stop_gradient, states)
        known = ops.logical_and(top_alike > 0.5 * _NONE, total_alike > 0)
        one = ops.where(known, total_alike, 1.0)
        losses = ops.where(known, top + ops.log(total) - top_alike - ops.log(one), 0.0)
        slope = (mean / total[:, None] - mean_alike / one[:, None]) / self.temperature
        slope = ops.where(known[:, None], slope, 0.0)
        # the value of the losses, with `slope` as their gradient
        return losses + ops.sum(slope * (unit - fixed), axis=-1)

    @property
    def _is_mild(self):
        """Whether exp(2 / T), the most that two weights can differ by, is far within float32."""
        return 2 / self.temperature < 80

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[int | None]:
        """[B]."""
        return (shapes or tuple(named_shapes.values()))[0][:1]

    def compute_output_spec(self, embeddings: keras.KerasTensor, *others, **named_others) -> keras.KerasTensor:
        """[B], whatever the policy."""
        return keras.KerasTensor(embeddings.shape[:1], dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature, "part_size": self.part_size}


def _entries(values, places):
    """The entries at some places, of a tensor or a TensorFlow variable.

    A variable that is updated row by row is copied whole whenever it is read as a whole. Its handle is that of the
    replica in whose context it is asked for.
    """
    if not isinstance(values, tf.Variable):
        return ops.take(values, places, axis=0)
    return tf.raw_ops.ResourceGather(resource=values.handle, indices=places, dtype=values.dtype)


def _absorbed(states, logits, alike, rows, is_mild):
    """(largest logit, sum of exp, sum of exp times rows) of all and of those alike, with more logits.

    The sums are relative to the largest; where weights are mild, to that of all for both.
    """
    top, weights, shrink = _weights(states[0], logits)
    if is_mild:
        of_alike = top, ops.where(alike, weights, 0.0), shrink
    else:
        of_alike = _weights(states[3], ops.where(alike, logits, _NONE))
    found = []
    for (highest, parts, less), (_, total, mean) in zip(
        ((top, weights, shrink), of_alike), (states[:3], states[3:]), strict=True
    ):
        found += [highest, total * less + ops.sum(parts, axis=1), mean * less[:, None] + ops.matmul(parts, rows)]
    return tuple(found)


def _weights(top, logits):
    """(largest logit so far, exp of the logits relative to it, what earlier sums are multiplied by)."""
    highest = ops.maximum(top, ops.max(logits, axis=1))
    return highest, ops.exp(logits - highest[:, None]), ops.exp(top - highest)
