"""Supervised contrastive loss between the images of a batch."""

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from mg_keras.layers.lengths import check_column

if TYPE_CHECKING:
    import tensorflow as tf


@keras.saving.register_keras_serializable("mg_keras")
class SupervisedContrast(keras.layers.Layer):
    """Each image is to be nearer to those of its class than to all others (Khosla et al. 2020, their L_out).

    With unit-norm rows u, cosines s and the temperature T, an image i with the others P of its class costs

        -1/|P| sum over p of P: log( exp(s_ip / T) / sum over a != i: exp(s_ia / T) )

    and the loss is the mean over the images with such others; 0 where there are none.

    Args:
        temperature: T > 0.

    Input shape:
        `embeddings`: [B, d], unit norm.
        `labels`: int [B].

    Output shape:
        A scalar, float32.

    Raises:
        ValueError: the temperature is out of range.

    Example:

    >>> loss = mg_keras.layers.SupervisedContrast(1.0)(np.float32([[1, 0], [1, 0], [0, 1]]), np.array([4, 4, 7]))
    >>> round(float(loss), 4)
    0.3133
    """

    def __init__(self, temperature: float = 0.1, **kwargs):
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, received {temperature}")
        super().__init__(autocast=False, **kwargs)
        self.temperature = float(temperature)

    def call(self, embeddings: "tf.Tensor", labels: "tf.Tensor") -> "tf.Tensor":
        """The mean over the images."""
        check_column("labels", labels, embeddings)
        embeddings = ops.cast(embeddings, "float32")
        logits = ops.matmul(embeddings, ops.transpose(embeddings)) / self.temperature
        others = 1.0 - ops.eye(ops.shape(logits)[0])
        alike = ops.cast(labels[:, None] == labels[None, :], "float32") * others
        log_all = ops.logsumexp(ops.where(others > 0, logits, -1e9), axis=1, keepdims=True)
        count = ops.sum(alike, axis=1)
        losses = ops.sum((log_all - logits) * alike, axis=1) / ops.maximum(count, 1.0)
        return ops.sum(losses) / ops.maximum(ops.sum(ops.cast(count > 0, "float32")), 1.0)

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[()]:
        """(): the loss is a scalar, whatever the shapes."""
        return ()

    def compute_output_spec(self, embeddings: keras.KerasTensor, labels: keras.KerasTensor) -> keras.KerasTensor:
        """A scalar, whatever the policy."""
        return keras.KerasTensor((), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's argument."""
        return {**super().get_config(), "temperature": self.temperature}
