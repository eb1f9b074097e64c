"""Whitening in the graph."""

import keras
from keras import ops

from mg_keras import whitening as formulas


@keras.saving.register_keras_serializable("mg_keras")
class Whitening(keras.layers.Layer):
    """A fitted PCA whitening as a layer: embeddings to unit-norm whitened descriptors, and back.

    `mg_keras.Whitening` fits it, in float64; `from_whitening` turns the result into this layer, which an exported graph
    holds. Computed in float32 whatever the dtype policy; nothing here is trained.

    Args:
        embedding_size: d.
        bias_channel: Whether the constant 1 is appended to the embedding before it is normalised. Descriptors then have
            D = d + 1 values, otherwise D = d.

    Input shape:
        [batch, d], any float dtype, not normalised.

    Output shape:
        [batch, D], float32, unit norm. Until a fitted whitening is set, the normalised embedding itself.

    Raises:
        ValueError: for an `embedding_size` that is not a positive integer.

    Example:

    >>> embeddings = keras.random.uniform((100, 8))
    >>> layer = Whitening.from_whitening(mg_keras.Whitening.fit(ops.convert_to_numpy(embeddings)))
    >>> layer(embeddings).shape
    TensorShape([100, 9])
    """

    def __init__(self, embedding_size, bias_channel=True, **kwargs):
        if int(embedding_size) != embedding_size or embedding_size < 1:
            raise ValueError(f"embedding_size must be a positive integer, got {embedding_size}")
        super().__init__(autocast=False, **{"trainable": False, **kwargs})
        self.embedding_size = int(embedding_size)
        self.bias_channel = bool(bias_channel)
        size = self.embedding_size + self.bias_channel
        fixed = {"dtype": "float32", "autocast": False, "trainable": False}
        self.mean = self.add_weight(shape=(size,), initializer="zeros", name="mean", **fixed)
        self.projection = self.add_weight(shape=(size, size), initializer="identity", name="projection", **fixed)
        self.inverse = self.add_weight(shape=(size, size), initializer="identity", name="inverse", **fixed)

    @classmethod
    def from_whitening(cls, whitening, **kwargs):
        """The layer that does what `whitening`, a fitted `mg_keras.Whitening`, does.

        Args:
            whitening: A `mg_keras.Whitening`.
            **kwargs: The layer's `name` and `dtype`.
        """
        layer = cls(len(whitening.mean_) - whitening.bias_channel, whitening.bias_channel, **kwargs)
        layer.mean.assign(whitening.mean_)
        layer.projection.assign(whitening.projection_)
        layer.inverse.assign(whitening.inverse_)
        return layer

    def call(self, embeddings):
        """Unit-norm whitened descriptors [batch, D]."""
        mean, projection = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.projection)
        embeddings = ops.cast(embeddings, "float32")
        return formulas.unit_rows(ops, formulas.whitened(ops, embeddings, mean, projection, self.bias_channel))

    def undo(self, descriptors):
        """ê, the unit-norm embedding (with the bias channel: of [e; 1]) that `descriptors` [batch, D] came from.

        With the bias channel, the class logits are `ê @ [kernel; bias]
        / ê[:, -1:]`.
        """
        mean, inverse = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.inverse)
        return formulas.unwhitened(ops, ops.cast(descriptors, "float32"), mean, inverse)

    def compute_output_shape(self, embeddings_shape):
        """[batch, D]."""
        return (*embeddings_shape[:-1], self.embedding_size + self.bias_channel)

    def compute_output_spec(self, embeddings):
        """[batch, D] in float32, whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(embeddings.shape), dtype="float32")

    def get_config(self):
        """The constructor's arguments; the fitted values travel with the weights."""
        return {
            **super().get_config(),
            "embedding_size": self.embedding_size,
            "bias_channel": self.bias_channel,
        }
