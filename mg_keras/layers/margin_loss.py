"""The retrieval loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

if TYPE_CHECKING:
    import tensorflow as tf


# Up to this distance two embeddings are equal up to rounding, and their difference has no direction to pull along.
_SMALLEST_DISTANCE = 1e-6


def _distances(first, second):
    """Euclidean distances of matching rows [n, d], with a zero gradient where they are equal."""
    squared = ops.sum(ops.square(first - second), axis=-1)
    return ops.sqrt(ops.maximum(squared, _SMALLEST_DISTANCE**2))


def _row_distances(embeddings, anchors, positives, negatives):
    """D(anchor, positive) and D(anchor, negative), [2, n], for row numbers [n] of `embeddings` [B, d].

    A distance pulls its two rows along their difference, so all gradients together are one product of a [B, B] matrix
    of coefficients with the embeddings. As one dense product it takes less than half the time of what automatic
    differentiation makes of the gathers, which is adding up [n, d] rows one by one.
    """

    @ops.custom_gradient
    def distances_of(embeddings):
        of_anchors = ops.take(embeddings, anchors, axis=0)
        distances = ops.stack(
            [_distances(of_anchors, ops.take(embeddings, others, axis=0)) for others in (positives, negatives)]
        )

        def gradient(*args, upstream=None):
            # Backends differ in how they hand over the incoming gradient.
            upstream = args[0] if upstream is None else upstream
            pull = ops.where(distances > 1.001 * _SMALLEST_DISTANCE, upstream / distances, 0.0)
            pull = ops.reshape(pull, (-1,))
            first = ops.concatenate([anchors, anchors])
            second = ops.concatenate([positives, negatives])
            places = [(first, first), (second, second), (first, second), (second, first)]
            coefficients = ops.scatter(
                ops.concatenate([ops.stack(place, axis=1) for place in places]),
                ops.concatenate([pull, pull, -pull, -pull]),
                (ops.shape(embeddings)[0],) * 2,
            )
            return ops.matmul(coefficients, embeddings)

        return distances, gradient

    return distances_of(embeddings)


@keras.saving.register_keras_serializable("mg_keras")
class MarginLoss(keras.layers.Layer):
    """The margin loss between embeddings, with a learnt boundary `beta`: MultiGrain's eq. 3, after Wu et al. 2017.

    With D the Euclidean distance of two unit-norm embeddings, a positive pair (y = +1) or a negative one (y = -1) costs

        max(0, margin + y (D - beta))

    and a triplet is one pair of each kind with the same anchor. The sum over all pairs is divided by their number
    (`normalization="pairs"`, the paper's choice) or by the number of triplets in which either term is not zero, at
    least 1 (`"active"`, the reference's). Computed in float32 whatever the dtype policy. Distances have a finite
    gradient everywhere: zero between equal embeddings.

    The weight `beta` is learnt; the paper gives it its own rate 0.1 and no weight decay.

    Call the layer on embeddings, or use `from_rows` on row numbers, which gives the same loss faster and the share of
    active triplets from the same computation.

    Args:
        margin: alpha, > 0.
        initial_beta: Initial value of `beta`.
        normalization: `"pairs"` or `"active"`.

    Call arguments:
        anchors, positives, negatives: [triplets, d], any float dtype, rows of **unit norm**.
        mask: None, or bool [triplets]: which triplets count.

    Returns:
        The loss, a float32 scalar; 0 without any triplet.

    Raises:
        ValueError: for a margin that is not positive, or an unknown normalization.

    Example:

    >>> from mg_keras.layers import DistanceWeightedSampling
    >>> loss = MarginLoss()
    >>> embeddings = ops.normalize(keras.random.normal((6, 16)), axis=-1)
    >>> triplets = DistanceWeightedSampling(max_positives=1)(embeddings, ops.convert_to_tensor([0, 0, 1, 1, 2, 2]))
    >>> value, active_share = loss.from_rows(embeddings, triplets)
    """

    def __init__(self, margin: float = 0.2, initial_beta: float = 1.2, normalization: str = "pairs", **kwargs):
        if not margin > 0:
            raise ValueError(f"margin must be > 0, received {margin}")
        if normalization not in ("pairs", "active"):
            raise ValueError(f'normalization must be "pairs" or "active", received {normalization!r}')
        super().__init__(autocast=False, **kwargs)
        self.margin = float(margin)
        self.initial_beta = float(initial_beta)
        self.normalization = normalization
        # `mask` says which triplets count; without this Keras takes it for a sequence mask that gets lost here.
        self.supports_masking = True
        self.beta = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial_beta),
            dtype="float32",
            autocast=False,
            name="beta",
        )

    def call(
        self, anchors: "tf.Tensor", positives: "tf.Tensor", negatives: "tf.Tensor", mask: "tf.Tensor | None" = None
    ) -> "tf.Tensor":
        """The loss of triplets given as embeddings."""
        anchors, positives, negatives = (ops.cast(rows, "float32") for rows in (anchors, positives, negatives))
        loss, _ = self._reduce(_distances(anchors, positives), _distances(anchors, negatives), mask)
        return loss

    def from_rows(self, embeddings: "tf.Tensor", triplets: "Sequence[tf.Tensor]") -> "tuple[tf.Tensor, tf.Tensor]":
        """The loss of triplets given as row numbers, and how many of them still teach something.

        Args:
            embeddings: [batch, d], any float dtype, rows of **unit norm**.
            triplets: (anchors, positives, negatives), row numbers [triplets] each, as `DistanceWeightedSampling`
                returns them. Those whose row numbers are negative are left out.

        Returns:
            The loss, a float32 scalar equal to the call's, and the share of active triplets (either term not zero), a
            float32 scalar in 0-1.
        """
        mask = triplets[0] >= 0
        anchors, positives, negatives = (ops.maximum(rows, 0) for rows in triplets)
        distances = _row_distances(ops.cast(embeddings, "float32"), anchors, positives, negatives)
        return self._reduce(distances[0], distances[1], mask)

    def _reduce(self, positive_distances, negative_distances, mask):
        """The loss and the share of active triplets."""
        beta = ops.convert_to_tensor(self.beta)
        positive_terms = ops.maximum(self.margin + positive_distances - beta, 0.0)
        negative_terms = ops.maximum(self.margin + beta - negative_distances, 0.0)
        mask = ops.ones_like(positive_terms) if mask is None else ops.cast(mask, "float32")
        triplets = ops.sum(mask)
        either = ops.logical_or(positive_terms > 0, negative_terms > 0)
        active = ops.sum(ops.cast(either, "float32") * mask)
        divisor = 2.0 * triplets if self.normalization == "pairs" else active
        loss = ops.sum((positive_terms + negative_terms) * mask) / ops.maximum(divisor, 1.0)
        return loss, active / ops.maximum(triplets, 1.0)

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[()]:
        """(): the loss is a scalar, whatever the shapes."""
        return ()

    def compute_output_spec(
        self,
        anchors: keras.KerasTensor,
        positives: keras.KerasTensor,
        negatives: keras.KerasTensor,
        mask: keras.KerasTensor | None = None,
    ) -> keras.KerasTensor:
        """A scalar in float32, whatever the policy."""
        return keras.KerasTensor((), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; beta's present value travels with the weights."""
        return {
            **super().get_config(),
            "margin": self.margin,
            "initial_beta": self.initial_beta,
            "normalization": self.normalization,
        }
