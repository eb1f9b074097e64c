"""The differential-entropy regulariser: descriptors spread over the sphere."""

from typing import TYPE_CHECKING

import keras
from keras import ops

from mg_keras.layers.lengths import check_column

if TYPE_CHECKING:
    import tensorflow as tf


# of a distance: its logarithm stays finite, and so does its gradient
_SMALLEST = 1e-4


@keras.saving.register_keras_serializable("mg_keras")
class KoLeo(keras.layers.Layer):
    """Minus the mean logarithm of the distance to the nearest other image (Sablayrolles et al. 2019; SSCD 2022).

    With unit-norm rows u, `-mean_i log min_j ||u_i - u_j||` over the j of other images than that of i. The smaller it
    is, the more evenly a batch is spread, and the more alike are the distances of unrelated photos everywhere.

    Input shape:
        `embeddings`: [B, d], unit norm.
        `instance_ids`: int [B], equal for versions of one image.

    Output shape:
        A scalar, float32; 0 where all rows are of one image.

    Example:

    >>> loss = mg_keras.layers.KoLeo()(np.float32([[1, 0], [0.8, 0.6], [0, 1]]), np.array([4, 4, 7]))
    >>> round(float(loss), 4)
    -0.0411
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, embeddings: "tf.Tensor", instance_ids: "tf.Tensor") -> "tf.Tensor":
        """The mean over the rows."""
        check_column("instance_ids", instance_ids, embeddings)
        embeddings = ops.cast(embeddings, "float32")
        squared = 2.0 - 2.0 * ops.matmul(embeddings, ops.transpose(embeddings))
        same = instance_ids[:, None] == instance_ids[None, :]
        nearest = ops.min(ops.where(same, 1e9, squared), axis=1)
        others = ops.cast(nearest < 1e8, "float32")
        logs = 0.5 * ops.log(ops.maximum(nearest, _SMALLEST**2))
        return -ops.sum(logs * others) / ops.maximum(ops.sum(others), 1.0)

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[()]:
        """(): the loss is a scalar, whatever the shapes."""
        return ()

    def compute_output_spec(self, embeddings: keras.KerasTensor, instance_ids: keras.KerasTensor) -> keras.KerasTensor:
        """A scalar, whatever the policy."""
        return keras.KerasTensor((), dtype="float32")
