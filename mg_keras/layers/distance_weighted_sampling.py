"""Triplets of a batch, with negatives sampled by distance."""

import math
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

if TYPE_CHECKING:
    import tensorflow as tf


# exp of anything below is zero in float32 (half the smallest denormal).
_LOG_OF_ZERO = -150 * math.log(2)


class _GivenSeed(keras.random.SeedGenerator):
    """A seed tensor in the shape keras.random asks for: it takes whole numbers and generators, but no tensors."""

    def __init__(self, seed):
        self._given = seed

    def next(self, ordered=True):
        return self._given


@keras.saving.register_keras_serializable("mg_keras")
class DistanceWeightedSampling(keras.layers.Layer):
    """Draws triplets from a batch: every ordered positive pair, each with one negative sampled by its distance.

    Section 3 of MultiGrain, after Wu et al., *Sampling matters in deep embedding learning* (ICCV 2017). A positive pair
    is two different rows of one instance. With D the Euclidean distance between L2-normalised embeddings of size d, the
    negative of anchor i is row j of another instance with probability p(j|i) ∝ 1 / q(D_ij), where
    q(z) ∝ z^(d-2) (1 - z²/4)^((d-3)/2) is the density of distances on the unit sphere. In the reference's detail:

    * D is clamped below at `cutoff`, which bounds the weights;
    * log-weights are shifted by their maximum over the **whole** matrix, the diagonal included (D = 0 there, clamped to
      `cutoff`), and then exponentiated in float32. What underflows has weight zero. For large d this is most of the
      matrix: with d = 2048, everything but the negatives closer than about 0.53;
    * pairs with D ≥ `nonzero_loss_cutoff` have weight zero;
    * an anchor left with no candidate draws uniformly from all its non-matching rows, however far;
    * the negatives of one anchor are drawn without replacement. When it has fewer candidates than positives, each is
      used once before any is used again: further draws repeat the first ones in their order.

    Rows without a positive, and anchors without a non-matching row, give no triplet. No gradient passes.

    Args:
        cutoff: Distances below count as this one, in (0, `nonzero_loss_cutoff`).
        nonzero_loss_cutoff: Negatives at this distance or farther are not drawn while there are others, in
            (`cutoff`, 2].
        max_positives: None for exactly the valid triplets, a number that depends on the batch. An integer K for K
            places an anchor, where unused ones hold anchor = positive = negative = -1: the form for training, with a
            static cost, and for XLA. An anchor with more than K positives uses the first K.
        seed: Integer, or None for a random one.

    Call arguments:
        embeddings: [batch, d], any float dtype, of any norm.
        instance_ids: [batch], integers; rows with equal ids show the same instance.
        seed: None to draw from the layer's own generator. Or an integer, or an integer tensor [2], that alone decides
            the draw: for training that resumes exactly, derive it from the step and the replica. (XLA's generator
            is another one: the same seed draws differently with `jit_compile`.)

    Returns:
        (anchors, positives, negatives), int32 row numbers, ordered by anchor and then positive; each of shape
        [triplets], or [batch * max_positives].

    Raises:
        ValueError: for cutoffs or `max_positives` out of range, or arguments of the wrong rank or of unlike length.

    Example:

    >>> sampling = DistanceWeightedSampling(seed=0)
    >>> instance_ids = ops.convert_to_tensor([0, 0, 1, 1, 2, 2])
    >>> anchors, positives, negatives = sampling(keras.random.normal((6, 16)), instance_ids)
    >>> [int(i) for i in positives]
    [1, 0, 3, 2, 5, 4]
    """

    def __init__(
        self,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        max_positives: int | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        if not 0 < cutoff < nonzero_loss_cutoff <= 2:
            raise ValueError(
                "cutoffs must satisfy 0 < cutoff < nonzero_loss_cutoff <= 2, "
                f"received cutoff={cutoff}, nonzero_loss_cutoff={nonzero_loss_cutoff}"
            )
        if max_positives is not None and (int(max_positives) != max_positives or max_positives < 1):
            raise ValueError(f"max_positives must be None or a positive integer, received {max_positives}")
        super().__init__(autocast=False, **kwargs)
        self.cutoff = float(cutoff)
        self.nonzero_loss_cutoff = float(nonzero_loss_cutoff)
        self.max_positives = None if max_positives is None else int(max_positives)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(
        self, embeddings: "tf.Tensor", instance_ids: "tf.Tensor", seed: "int | tf.Tensor | None" = None
    ) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
        """Draws the triplets of one batch."""
        same, candidates, log_weights = self._candidates(embeddings, instance_ids)
        batch = ops.shape(same)[0]
        positive_pairs = ops.logical_and(same, ops.logical_not(ops.eye(batch, dtype="bool")))
        num_positives = ops.sum(ops.cast(positive_pairs, "int32"), axis=1)
        slots = self.max_positives or ops.maximum(ops.max(num_positives), 1)
        width = ops.minimum(slots, batch)

        # Gumbel top-k: the k largest of log-weight + Gumbel noise are k draws without replacement.
        uniform = keras.random.uniform(ops.shape(same), minval=1e-37, dtype="float32", seed=self._draw_from(seed))
        scores = ops.where(candidates, log_weights - ops.log(-ops.log(uniform)), -math.inf)
        _, drawn = ops.top_k(scores, width)
        rows = ops.arange(batch, dtype="int32")
        in_row_order = ops.where(positive_pairs, ops.cast(batch - rows, "float32"), 0.0)
        _, positives = ops.top_k(in_row_order, width)

        slot = ops.arange(slots, dtype="int32")[None, :]
        num_candidates = ops.sum(ops.cast(candidates, "int32"), axis=1)[:, None]
        valid = ops.logical_and(slot < num_positives[:, None], num_candidates > 0)
        draw = ops.mod(slot, ops.maximum(num_candidates, 1))
        anchors = ops.broadcast_to(rows[:, None], ops.shape(valid))
        last = width - 1
        positives = ops.take_along_axis(positives, ops.broadcast_to(ops.minimum(slot, last), ops.shape(valid)), axis=1)
        negatives = ops.take_along_axis(drawn, ops.minimum(draw, last), axis=1)
        triplets = [ops.reshape(ops.cast(column, "int32"), (-1,)) for column in (anchors, positives, negatives)]
        valid = ops.reshape(valid, (-1,))
        if self.max_positives is None:
            kept = ops.nonzero(valid)[0]
            return tuple(ops.take(column, kept, axis=0) for column in triplets)
        return tuple(ops.where(valid, column, -1) for column in triplets)

    def probabilities(self, embeddings: "tf.Tensor", instance_ids: "tf.Tensor") -> "tf.Tensor":
        """p(j|i), the distribution of the first negative of anchor i.

        Args:
            embeddings: [batch, d], any float dtype, of any norm.
            instance_ids: [batch], integers.

        Returns:
            [batch, batch], float32. Rows sum to 1; they are zero for an anchor without any non-matching row.
        """
        _, candidates, log_weights = self._candidates(embeddings, instance_ids)
        log_weights = ops.where(candidates, log_weights, -math.inf)
        largest = ops.max(log_weights, axis=1, keepdims=True)
        unnormalized = ops.exp(log_weights - ops.where(largest > -math.inf, largest, 0.0))
        total = ops.sum(unnormalized, axis=1, keepdims=True)
        return unnormalized / ops.where(total > 0, total, 1.0)

    def _draw_from(self, seed):
        if seed is None:
            return self.seed_generator
        if isinstance(seed, int):
            return seed
        seed = ops.cast(seed, "uint32")
        # Keras makes a tensor of an integer of NumPy's
        return _GivenSeed(ops.stack([seed, 0]) if seed.shape == () else seed)

    def _candidates(self, embeddings, instance_ids):
        """[batch, batch] each: same instance, may be drawn as a negative, and log p(j|i) up to a constant a row."""
        self._check(embeddings.shape, instance_ids.shape)
        embeddings = ops.normalize(ops.cast(ops.stop_gradient(embeddings), "float32"), axis=-1)
        size = embeddings.shape[-1]
        squared = 2.0 - 2.0 * ops.matmul(embeddings, ops.transpose(embeddings))
        # The upper clamp keeps the logarithm of opposite embeddings (D = 2) finite.
        clamped = ops.clip(squared, self.cutoff**2, 4.0 * (1 - 1e-7))
        log_weights = (2 - size) / 2 * ops.log(clamped) - (size - 3) / 2 * ops.log(1.0 - clamped / 4)
        log_weights = log_weights - ops.max(log_weights)

        same = ops.equal(instance_ids[:, None], instance_ids[None, :])
        different = ops.logical_not(same)
        near = ops.logical_and(squared < self.nonzero_loss_cutoff**2, log_weights > _LOG_OF_ZERO)
        candidates = ops.logical_and(different, near)
        has_candidate = ops.any(candidates, axis=1, keepdims=True)
        candidates = ops.where(has_candidate, candidates, different)
        return same, candidates, ops.where(has_candidate, log_weights, 0.0)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], instance_ids_shape: tuple[int | None, ...] | None = None
    ) -> tuple[tuple[int | None], ...]:
        """Anchors, positives and negatives: [batch * max_positives] each, or of a number that the batch decides."""
        self._check(input_shape, instance_ids_shape or input_shape[:1])
        known = input_shape[0] is not None and self.max_positives is not None
        return ((input_shape[0] * self.max_positives if known else None,),) * 3

    def compute_output_spec(
        self, embeddings: keras.KerasTensor, instance_ids: keras.KerasTensor, seed: "int | tf.Tensor | None" = None
    ) -> tuple[keras.KerasTensor, ...]:
        """Three columns of int32."""
        shapes = self.compute_output_shape(embeddings.shape, instance_ids.shape)
        return tuple(keras.KerasTensor(shape, dtype="int32") for shape in shapes)

    @staticmethod
    def _check(embeddings_shape, instance_ids_shape):
        if len(embeddings_shape) != 2:
            raise ValueError(f"embeddings must be [batch, d], received shape {tuple(embeddings_shape)}")
        if len(instance_ids_shape) != 1:
            raise ValueError(f"instance_ids must be [batch], received shape {tuple(instance_ids_shape)}")
        count, ids = embeddings_shape[0], instance_ids_shape[0]
        if None not in (count, ids) and count != ids:
            raise ValueError(f"instance_ids must hold one value for each of {count} rows, received {ids}")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "cutoff": self.cutoff,
            "nonzero_loss_cutoff": self.nonzero_loss_cutoff,
            "max_positives": self.max_positives,
            "seed": self.seed,
        }
