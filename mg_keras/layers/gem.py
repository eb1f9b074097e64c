"""Generalized-mean pooling."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

if TYPE_CHECKING:
    import tensorflow as tf


# of an exponent that is learnt: far below average pooling, so that a wild step can't leave p > 0, where alone pooling
# means something
SMALLEST_EXPONENT = 0.1


# whole exponents, given as numbers, whose powers are products that can't vanish in float32
_BY_PRODUCTS = (1, 2, 3, 4)


def check_feature_map(shape: Sequence[int | None]) -> None:
    """Raises a ValueError unless `shape` is that of feature maps, [batch, height, width, channels]."""
    if len(shape) != 4:
        raise ValueError(f"features must be [batch, height, width, channels], received shape {tuple(shape)}")


def check_exponents(p_star: Any, batch: int | None = None) -> None:
    """Raises a ValueError if values of p* that are at hand (in a graph they are not) are no numbers > 0.

    Args:
        p_star: None, a scalar, or one value an image.
        batch: how many images there are, where that is known: of another number of values some would be for none.
    """
    if p_star is None or isinstance(p_star, keras.KerasTensor):
        return
    try:
        values = np.asarray(p_star)
    except NotImplementedError:
        # a tensor within a graph
        _check_count(getattr(p_star, "shape", ()), batch)
        return
    if values.dtype.kind in "OSU":
        raise ValueError(f"p_star must be a number > 0, received {p_star!r}")
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if len(wrong):
        raise ValueError(f"p_star must be a number > 0, received {wrong[0]}")
    _check_count(values.shape, batch)


def _check_count(shape, batch):
    if getattr(shape, "rank", 0) is None or len(shape) != 1 or None in (shape[0], batch):
        return
    # one for all broadcasts
    if shape[0] not in (1, batch):
        raise ValueError(f"p_star must be a scalar or hold one value for each of {batch} images, received {shape[0]}")


@keras.saving.register_keras_serializable("mg_keras")
class AtLeast(keras.constraints.Constraint):
    """Keeps a weight at `minimum` or above; optimisers apply it after each update."""

    def __init__(self, minimum: float):
        self.minimum = minimum

    def __call__(self, w: "tf.Tensor") -> "tf.Tensor":
        """The weight, clipped."""
        return ops.maximum(w, self.minimum)

    def get_config(self) -> dict[str, Any]:
        """The constructor's argument."""
        return {"minimum": self.minimum}


@keras.saving.register_keras_serializable("mg_keras")
class GeM(keras.layers.Layer):
    """Generalized-mean (GeM) pooling of a feature map, MultiGrain's eq. 1.

    For the activations `x[u, c]` at the positions `u` of one image, channel `c` of its embedding is

        e_c = (mean_u max(x[u, c], epsilon) ** p) ** (1 / p)

    so that p = 1 is average pooling and p → ∞ is max pooling. The exponent is either the layer's own weight
    `pooling_exponent`, or the `p_star` given with the call, which may differ from image to image (section 3.5 of the
    paper raises it with the resolution). It is an ordinary value in the graph: changing it never retraces.

    Computed in float32 whatever the dtype policy, since `x ** p` overflows in half precision; large exponents are safe.

    Args:
        pooling_exponent: Initial value of p, > 0.
        epsilon: Activations are clamped to at least this value, > 0.
        trainable_exponent: Whether p is learnt; every optimiser keeps it at 0.1 (`SMALLEST_EXPONENT`) or above. The
            weight's path ends in `pooling_exponent`, by which an optimiser can leave it out of weight decay.

    Input shape:
        `features`: [batch, height, width, channels], channels last, any float dtype.
        `p_star`: None for the layer's own exponent; otherwise a scalar or [batch], > 0.

    Output shape:
        [batch, channels], float32.

    Raises:
        ValueError: for a `pooling_exponent`, `epsilon` or (outside of a graph) `p_star` that is not positive, one that
            is to be learnt from below 0.1, features that are not 4-D, or a `p_star` of more than one dimension or of
            another number of values than there are images.

    Example:

    >>> pool = GeM(pooling_exponent=3.0)
    >>> features = keras.random.uniform((2, 7, 7, 512))
    >>> pool(features).shape
    TensorShape([2, 512])
    >>> pool(features, p_star=[3.0, 4.5]).shape
    TensorShape([2, 512])
    """

    def __init__(
        self, pooling_exponent: float = 3.0, epsilon: float = 1e-6, trainable_exponent: bool = False, **kwargs
    ):
        if not 0 < pooling_exponent < math.inf:
            raise ValueError(
                f"pooling_exponent must be > 0 and finite (1 is average pooling), received {pooling_exponent}"
            )
        if trainable_exponent and pooling_exponent < SMALLEST_EXPONENT:
            raise ValueError(
                f"pooling_exponent must be at least {SMALLEST_EXPONENT} to be learnt, received {pooling_exponent}"
            )
        if not epsilon > 0:
            raise ValueError(f"epsilon must be > 0, received {epsilon}")
        # Without autocast a float32 feature map is not rounded to the compute dtype on its way in.
        super().__init__(autocast=False, **kwargs)
        self.initial_pooling_exponent = float(pooling_exponent)
        self.epsilon = float(epsilon)
        self.trainable_exponent = bool(trainable_exponent)
        self.pooling_exponent = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial_pooling_exponent),
            dtype="float32",
            autocast=False,
            trainable=self.trainable_exponent,
            constraint=AtLeast(SMALLEST_EXPONENT),
            # replicas make the same update, and so the same clipped value
            aggregation="only_first_replica",
            name="pooling_exponent",
        )

    def call(
        self, features: "tf.Tensor", p_star: "tf.Tensor | np.ndarray | Sequence[float] | float | None" = None
    ) -> "tf.Tensor":
        """Pools `features` with `p_star`, or with the layer's own exponent when it is None."""
        check_feature_map(features.shape)
        if isinstance(p_star, int | float) and p_star in _BY_PRODUCTS:
            return self._by_products(features, int(p_star))
        exponent = self._exponent(p_star, features.shape[0])
        logs = ops.log(ops.maximum(ops.cast(features, "float32"), self.epsilon))
        # With the largest activation factored out, no power exceeds 1 and the mean is at least 1 / positions: neither
        # overflows nor vanishes. The result doesn't depend on the factor, so nor does the gradient.
        largest = ops.stop_gradient(ops.max(logs, axis=(1, 2), keepdims=True))
        log_mean = ops.log(ops.mean(ops.exp(exponent * (logs - largest)), axis=(1, 2), keepdims=True))
        return ops.squeeze(ops.exp(largest + log_mean / exponent), axis=(1, 2))

    def _by_products(self, features, exponent):
        """The same of a whole exponent that is known beforehand, in half the time."""
        features = ops.maximum(ops.cast(features, "float32"), self.epsilon)
        largest = ops.stop_gradient(ops.max(features, axis=(1, 2), keepdims=True))
        shares = features / largest
        powers = shares
        for _ in range(exponent - 1):
            powers = powers * shares
        mean = ops.mean(powers, axis=(1, 2))
        return ops.squeeze(largest, axis=(1, 2)) * mean ** (1 / exponent)

    def _exponent(self, p_star, batch):
        if p_star is None:
            return ops.convert_to_tensor(self.pooling_exponent)
        check_exponents(p_star, batch)
        exponent = ops.cast(ops.convert_to_tensor(p_star), "float32")
        if len(exponent.shape) == 0:
            return exponent
        if len(exponent.shape) == 1:
            return ops.reshape(exponent, (-1, 1, 1, 1))
        raise ValueError(f"p_star must be a scalar or [batch], received shape {tuple(exponent.shape)}")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, int | None]:
        """[batch, channels]."""
        check_feature_map(input_shape)
        return (input_shape[0], input_shape[-1])

    def compute_output_spec(self, features: keras.KerasTensor, p_star: Any = None) -> keras.KerasTensor:
        """[batch, channels] in float32, whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(features.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the exponent's present value travels with the weights."""
        return {
            **super().get_config(),
            "pooling_exponent": self.initial_pooling_exponent,
            "epsilon": self.epsilon,
            "trainable_exponent": self.trainable_exponent,
        }
