"""Regional maximum activations of convolutions."""

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from mg_keras.layers.gem import check_feature_map

if TYPE_CHECKING:
    import tensorflow as tf


def _regions_along(side, shortest, level):
    """The regions of one level along one side of the feature map: their starts [n] and their common width.

    All in integers, so that it works alike on Python's and on a graph's: any of the arguments may be a tensor.
    """
    width = ops.maximum(2 * shortest // (level + 1), 1)
    # On top of the level's own regions, a side longer than the other takes as many more as the largest regions (width
    # `shortest`) need to overlap by as close to 40 % as possible. n extra regions overlap by 1 - 0.6 ratio / n with
    # ratio = (side - shortest) / (0.6 shortest), so n is one of ratio's two neighbours, and the upper one is closer if
    # ratio (2 n + 1) > 2 n (n + 1).
    excess = side - shortest
    lower = ops.maximum(5 * excess // (3 * shortest), 1)
    upper_is_closer = ops.cast(5 * excess * (2 * lower + 1) > 6 * shortest * lower * (lower + 1), "int32")
    extra = ops.where(excess > 0, lower + upper_is_closer, 0)
    count = level + extra
    return ops.arange(count) * (side - width) // ops.maximum(count - 1, 1), width


@keras.saving.register_keras_serializable("mg_keras")
class RMAC(keras.layers.Layer):
    """R-MAC pooling: the sum of the unit-norm maxima over square regions of a feature map.

    Tolias, Sicre, Jégou, *Particular object retrieval with integral max-pooling of CNN activations* (ICLR 2016,
    arXiv 1511.05879), section 3.2. At level l = 1, 2, …, `levels`, l × (l + m - 1) square regions of width
    2 min(H, W) / (l + 1) are spread evenly over the map, the larger number along its longer side; m is the number of
    level-1 regions there, chosen so that neighbours overlap by as close to 40 % as possible (m = 1 for a square map).
    Each region is max-pooled, L2-normalised, and all are summed. The paper's PCA whitening of each region between
    normalisation and sum is left out, as is the final L2 norm (MultiGrain normalises embeddings itself).

    Computed in float32 whatever the dtype policy. Height and width may be unknown in the graph.

    Args:
        levels: Number of scales, at least 1.

    Input shape:
        `features`: [batch, height, width, channels], channels last, any float dtype.

    Output shape:
        [batch, channels], float32.

    Raises:
        ValueError: for `levels` that is not a positive integer, or features that are not 4-D.

    Example:

    >>> RMAC(levels=3)(keras.random.uniform((2, 7, 10, 512))).shape
    TensorShape([2, 512])
    """

    def __init__(self, levels: int = 3, **kwargs):
        if int(levels) != levels or levels < 1:
            raise ValueError(f"levels must be a positive integer, received {levels}")
        super().__init__(autocast=False, **kwargs)
        self.levels = int(levels)

    def call(self, features: "tf.Tensor") -> "tf.Tensor":
        """Pools `features`."""
        check_feature_map(features.shape)
        features = ops.cast(features, "float32")
        height, width = ops.shape(features)[1:3]
        shortest = ops.minimum(height, width)
        total = 0.0
        for level in range(1, self.levels + 1):
            maxima = features
            # A square window's maximum is the maximum over its rows of the maxima over its columns.
            for axis, side in ((1, height), (2, width)):
                starts, region_width = _regions_along(side, shortest, level)
                windows = starts[:, None] + ops.arange(region_width)[None, :]
                maxima = ops.max(ops.take(maxima, windows, axis=axis), axis=axis + 1)
            squared_norms = ops.sum(ops.square(maxima), axis=-1, keepdims=True)
            # An all-zero region (after a ReLU) stays zero, with a zero gradient.
            total += ops.sum(maxima * ops.rsqrt(ops.maximum(squared_norms, 1e-24)), axis=(1, 2))
        return total

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, int | None]:
        """[batch, channels]."""
        check_feature_map(input_shape)
        return (input_shape[0], input_shape[-1])

    def compute_output_spec(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """[batch, channels] in float32, whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(features.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "levels": self.levels}
