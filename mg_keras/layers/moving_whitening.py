"""A learned whitening of embeddings that follows them while they are trained."""

from typing import Any

import keras
import tensorflow as tf

from mg_keras.layers.replicas import gathered, update_copies
from mg_keras.whitening_formulas import kept_dimensions, unit_embeddings, unit_rows, whitened


@keras.saving.register_keras_serializable("mg_keras")
class MovingWhitening(keras.layers.Layer):
    """Descriptors of embeddings as `mg_keras.Whitening.fit_on_versions` would make them of the last steps' images.

    A loss through it sees what a whitened descriptor will: not the directions in which all images are alike, nor those
    in which the versions of one differ anyway. With averages over steps of ê's mean μ, of its covariance T, and of the
    versions' covariance about the mean of their image W, and C that is W, shrunk, the projection V spans the k
    directions of largest (T - W) v = λ C v, with Vᵀ C V = I; a descriptor is Vᵀ(ê - μ), normalised. V follows by a step
    of subspace iteration, V ← (C⁻¹(T - W) + I) V and then orthonormal in C, now and again. Gradients reach the
    embeddings alone.

    Args:
        size: values of an embedding, d.
        dimensions: k, from 1 to d + 1.
        momentum: of the averages, in [0, 1); the first steps count fully.
        shrinkage: s in (0, 1]: C is (1 - s) times itself and s times the identity of the same trace.
        every: steps from one subspace iteration to the next; at first there is one each step.
        seed: of the directions at the start.

    Input shape:
        [B, d], of any norm.

    Output shape:
        [B, k], float32, unit norm.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        size: int,
        dimensions: int,
        momentum: float = 0.995,
        shrinkage: float = 0.2,
        every: int = 10,
        seed: int = 0,
        **kwargs,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), received {momentum}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must be in (0, 1], received {shrinkage}")
        if every < 1:
            raise ValueError(f"every must be at least 1 step, received {every}")
        super().__init__(autocast=False, **kwargs)
        self.size, self.dimensions = int(size), kept_dimensions(dimensions, size + 1)
        self.momentum, self.shrinkage, self.every, self.seed = float(momentum), float(shrinkage), int(every), int(seed)
        self.averages = [
            self._add("mean", [size + 1]),
            self._add("total", [size + 1, size + 1]),
            self._add("within", [size + 1, size + 1]),
        ]
        start = keras.initializers.Orthogonal(seed=seed)
        self.projection = self._add("projection", [size + 1, self.dimensions], start)
        self.steps = self._add("steps", [], dtype="int32")
        self.built = True

    def _add(self, name, shape, initializer="zeros", dtype="float32"):
        return self.add_weight(shape=shape, initializer=initializer, dtype=dtype, trainable=False, name=name)

    def call(self, embeddings: tf.Tensor) -> tf.Tensor:
        """The descriptors."""
        unit = unit_embeddings(keras.ops, tf.cast(embeddings, tf.float32), bias_channel=True)
        return unit_rows(keras.ops, whitened(keras.ops, unit, self.averages[0], self.projection))

    def update(self, instance_ids: Any, embeddings: Any) -> None:
        """Takes up the embeddings of a step, in the context of a replica: those of all replicas, the same on each.

        Args:
            instance_ids: int [B], equal for versions of one image. Those of a single version say nothing of C.
            embeddings: [B, d], of any norm.
        """
        ids, rows = gathered(tf.cast(instance_ids, tf.int32), tf.cast(embeddings, tf.float32))
        rows = unit_embeddings(keras.ops, rows, bias_channel=True)
        same = tf.cast(ids[:, None] == ids[None, :], tf.float32)
        counts = tf.reduce_sum(same, axis=1, keepdims=True)
        deviations = rows - same @ rows / counts
        freedom = tf.reduce_sum(1.0 - 1.0 / counts)

        step = self.steps.value + 1
        share = (1.0 - self.momentum) / (1.0 - self.momentum ** tf.cast(step, tf.float32))
        mean, total, within = (average.value for average in self.averages)
        new = mean + share * (tf.reduce_mean(rows, axis=0) - mean)
        # of a mean that moves: T' = (1 - a) (T + (μ - μ')(μ - μ')ᵀ) + a E[(ê - μ')(ê - μ')ᵀ]
        centred, moved = rows - new, (mean - new)[:, None]
        rows_of_step = tf.cast(tf.shape(rows)[0], tf.float32)
        total = (1.0 - share) * (total + moved @ tf.transpose(moved))
        total += share / rows_of_step * tf.matmul(centred, centred, transpose_a=True)
        of_step = tf.matmul(deviations, deviations, transpose_a=True) / tf.maximum(freedom, 1.0)
        within = within + tf.where(freedom > 0.5, share, 0.0) * (of_step - within)
        projection = tf.cond(
            tf.logical_or(step <= self.every, step % self.every == 0),
            lambda: self._iterated(total, within),
            lambda: tf.convert_to_tensor(self.projection.value),
        )
        variables = [*self.averages, self.projection, self.steps]
        update_copies(lambda variable, value: variable.assign(value), variables, [new, total, within, projection, step])

    def _iterated(self, total, within):
        size, among = self.size + 1, total - within
        spread = tf.linalg.trace(within) / size
        within = (1.0 - self.shrinkage) * within + (self.shrinkage * spread + 1e-12) * tf.eye(size)
        root = tf.linalg.cholesky(within)
        found = tf.linalg.cholesky_solve(root, among @ self.projection.value) + self.projection.value
        # by QR: the Cholesky factor of foundᵀ C found is the same but for signs, and squares what is badly conditioned
        basis, upper = tf.linalg.qr(tf.matmul(root, found, transpose_a=True))
        basis *= tf.where(tf.linalg.diag_part(upper) < 0, -1.0, 1.0)
        projection = tf.linalg.triangular_solve(root, basis, adjoint=True)
        # what is no number would stay so for good
        usable = tf.reduce_all(tf.math.is_finite(projection))
        return tf.where(usable, projection, self.projection.value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("size", "dimensions", "momentum", "shrinkage", "every", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
