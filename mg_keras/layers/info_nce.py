"""InfoNCE between versions of images."""

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from mg_keras.layers.lengths import check_column

if TYPE_CHECKING:
    import tensorflow as tf


@keras.saving.register_keras_serializable("mg_keras")
class InfoNCE(keras.layers.Layer):
    """Each version of an image is to be nearer to its other versions than to all other images (van den Oord 2018).

    With unit-norm rows u, cosines s and the temperature T, an ordered pair (i, p) of one image costs

        -log( exp(s_ip / T) / (exp(s_ip / T) + sum over n of another image: exp(s_in / T)) )

    and the loss is the mean over all such pairs; 0 where there are none.

    Args:
        temperature: T > 0.

    Input shape:
        `embeddings`: [B, d], unit norm.
        `instance_ids`: int [B], equal for versions of one image.

    Output shape:
        A scalar, float32.

    Raises:
        ValueError: the temperature is out of range.

    Example:

    >>> loss = mg_keras.layers.InfoNCE(1.0)(np.float32([[1, 0], [1, 0], [0, 1]]), np.array([4, 4, 7]))
    >>> round(float(loss), 4)
    0.3133
    """

    def __init__(self, temperature: float = 0.05, **kwargs):
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, received {temperature}")
        super().__init__(autocast=False, **kwargs)
        self.temperature = float(temperature)

    def call(self, embeddings: "tf.Tensor", instance_ids: "tf.Tensor") -> "tf.Tensor":
        """The mean over the pairs."""
        check_column("instance_ids", instance_ids, embeddings)
        embeddings = ops.cast(embeddings, "float32")
        logits = ops.matmul(embeddings, ops.transpose(embeddings)) / self.temperature
        same = instance_ids[:, None] == instance_ids[None, :]
        # log of the sum over other images; far below any logit where there is none
        negatives = ops.logsumexp(ops.where(same, -1e9, logits), axis=1, keepdims=True)
        losses = ops.logaddexp(logits, negatives) - logits
        pairs = ops.cast(ops.logical_and(same, ops.logical_not(ops.eye(ops.shape(logits)[0], dtype="bool"))), "float32")
        return ops.sum(losses * pairs) / ops.maximum(ops.sum(pairs), 1.0)

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[()]:
        """(): the loss is a scalar, whatever the shapes."""
        return ()

    def compute_output_spec(self, embeddings: keras.KerasTensor, instance_ids: keras.KerasTensor) -> keras.KerasTensor:
        """A scalar, whatever the policy."""
        return keras.KerasTensor((), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's argument."""
        return {**super().get_config(), "temperature": self.temperature}
