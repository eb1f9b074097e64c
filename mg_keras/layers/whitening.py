"""Whitening in the graph."""

from typing import TYPE_CHECKING, Any, Self

import keras
from keras import ops

from mg_keras import whitening_formulas as formulas

if TYPE_CHECKING:
    import tensorflow as tf


@keras.saving.register_keras_serializable("mg_keras")
class Whitening(keras.layers.Layer):
    """A fitted PCA whitening as a layer: embeddings to unit-norm whitened descriptors, and back.

    `mg_keras.Whitening` fits it, in float64; `from_whitening` turns the result into this layer. Computed in float32
    whatever the dtype policy; nothing here is trained.

    Args:
        embedding_size: d.
        bias_channel: Whether the constant 1 is appended to the embedding before it is normalised. Descriptors then have
            D = d + 1 values, otherwise D = d.
        dimensions: k, how many dimensions a descriptor has; None for all D.

    Input shape:
        [batch, d], any float dtype, not normalised.

    Output shape:
        [batch, k], float32, unit norm. Until a fitted whitening is set, the normalised embedding itself (its first k
        values, normalised again).

    Raises:
        ValueError: for an `embedding_size` that is not a positive integer, `dimensions` that is no integer in 1 … D.

    Example:

    >>> embeddings = keras.random.uniform((100, 8))
    >>> layer = Whitening.from_whitening(mg_keras.Whitening.fit(ops.convert_to_numpy(embeddings)))
    >>> layer(embeddings).shape
    TensorShape([100, 9])
    """

    def __init__(self, embedding_size: int, bias_channel: bool = True, dimensions: int | None = None, **kwargs):
        if int(embedding_size) != embedding_size or embedding_size < 1:
            raise ValueError(f"embedding_size must be a positive integer, received {embedding_size}")
        super().__init__(autocast=False, **{"trainable": False, **kwargs})
        self.embedding_size = int(embedding_size)
        self.bias_channel = bool(bias_channel)
        size = self.embedding_size + self.bias_channel
        self.dimensions = formulas.kept_dimensions(dimensions, size)
        fixed = {"dtype": "float32", "autocast": False, "trainable": False}
        self.mean = self.add_weight(shape=(size,), initializer="zeros", name="mean", **fixed)
        shape = (size, self.dimensions)
        self.projection = self.add_weight(shape=shape, initializer="identity", name="projection", **fixed)
        self.inverse = self.add_weight(shape=shape[::-1], initializer="identity", name="inverse", **fixed)
        self.discarded_variance = self.add_weight(shape=(), initializer="zeros", name="discarded_variance", **fixed)

    @classmethod
    def from_whitening(cls, whitening: Any, **kwargs) -> Self:
        """The layer that does what `whitening`, a fitted `mg_keras.Whitening`, does.

        Args:
            whitening: A `mg_keras.Whitening`.
            **kwargs: The layer's `name` and `dtype`.
        """
        size, dimensions = whitening.projection_.shape
        layer = cls(size - whitening.bias_channel, whitening.bias_channel, dimensions, **kwargs)
        layer.mean.assign(whitening.mean_)
        layer.projection.assign(whitening.projection_)
        layer.inverse.assign(whitening.inverse_)
        layer.discarded_variance.assign(whitening.discarded_variance_)
        return layer

    def call(self, embeddings: "tf.Tensor") -> "tf.Tensor":
        """Unit-norm whitened descriptors [batch, k]."""
        mean, projection = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.projection)
        unit = formulas.unit_embeddings(ops, ops.cast(embeddings, "float32"), self.bias_channel)
        return formulas.unit_rows(ops, formulas.whitened(ops, unit, mean, projection))

    def undo(self, descriptors: "tf.Tensor") -> "tf.Tensor":
        """ê [batch, D], the unit-norm embedding (with the bias channel: of [e; 1]) that `descriptors` came from.

        `descriptors` are [batch, k]; ê is exact for k = D, else approximate. With the bias channel, the class logits
        are `ê @ [kernel; bias] / ê[:, -1:]`.
        """
        fitted = (ops.convert_to_tensor(weight) for weight in (self.mean, self.inverse, self.discarded_variance))
        return formulas.unwhitened(ops, ops.cast(descriptors, "float32"), *fitted)[1]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """[batch, k]."""
        return (*input_shape[:-1], self.dimensions)

    def compute_output_spec(self, embeddings: keras.KerasTensor) -> keras.KerasTensor:
        """[batch, k] in float32, whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(embeddings.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the fitted values travel with the weights."""
        return {
            **super().get_config(),
            "embedding_size": self.embedding_size,
            "bias_channel": self.bias_channel,
            "dimensions": self.dimensions,
        }
