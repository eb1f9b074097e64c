"""Versions of one photo are to predict each other's embeddings."""

from typing import TYPE_CHECKING

import keras
from keras import ops

from mg_keras.layers.lengths import check_column

if TYPE_CHECKING:
    import tensorflow as tf


@keras.saving.register_keras_serializable("mg_keras")
class InstanceLoss(keras.layers.Layer):
    """Minus the mean cosine of a version's prediction and the target of another version (after BYOL 2020, Grafit 2021).

    A photo in T versions costs

        -sum over i != j: cos(prediction_i, target_j) / (T (T - 1))

    and the loss is the mean over the photos with at least two versions; 0 where there are none. With targets of some of
    the versions alone, a photo costs minus the mean over the pairs that there are: the same in expectation.

    There are no negatives: that the targets come from a moving average of the network, and that the prediction has
    weights of its own, keeps it from giving all photos one embedding. The targets get no gradient.

    Input shape:
        `predictions`: [B, d], of any norm.
        `targets`: [B, d], of any norm; with `target_rows` [K, d].
        `instance_ids`: int [B], equal for versions of one photo.
        `target_rows`: int [K], the rows of the batch that the targets are of; None: all of them, in their order.

    Output shape:
        A scalar in [-1, 1], float32.

    Example:

    >>> rows = np.float32([[1, 0], [3, 4], [0, 1]])
    >>> round(float(mg_keras.layers.InstanceLoss()(rows, rows, np.array([4, 4, 7]))), 4)
    -0.6
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(
        self,
        predictions: "tf.Tensor",
        targets: "tf.Tensor",
        instance_ids: "tf.Tensor",
        target_rows: "tf.Tensor | None" = None,
    ) -> "tf.Tensor":
        """The mean over the photos."""
        check_column("instance_ids", instance_ids, predictions)
        predictions, targets = (ops.normalize(ops.cast(rows, "float32"), axis=-1) for rows in (predictions, targets))
        cosines = ops.matmul(predictions, ops.transpose(ops.stop_gradient(targets)))
        same = ops.cast(instance_ids[:, None] == instance_ids[None, :], "float32")
        rows = ops.arange(ops.shape(cosines)[0])
        columns = rows if target_rows is None else ops.cast(ops.convert_to_tensor(target_rows), "int32")
        of_targets = same if target_rows is None else ops.take(same, columns, axis=1)
        pairs = of_targets * ops.cast(rows[:, None] != columns[None, :], "float32")
        # of its photo, for each version
        versions, count = ops.sum(same, axis=1), ops.matmul(same, ops.sum(pairs, axis=1, keepdims=True))[:, 0]
        of_version = ops.sum(cosines * pairs, axis=1) / ops.maximum(count, 1.0)
        photos = ops.sum(ops.where(count > 0, 1.0 / versions, 0.0))
        return -ops.sum(of_version) / ops.maximum(photos, 1.0)

    def compute_output_shape(self, *shapes, **named_shapes) -> tuple[()]:
        """(): the loss is a scalar, whatever the shapes."""
        return ()

    def compute_output_spec(
        self,
        predictions: keras.KerasTensor,
        targets: keras.KerasTensor,
        instance_ids: keras.KerasTensor,
        target_rows: keras.KerasTensor | None = None,
    ) -> keras.KerasTensor:
        """A scalar, whatever the policy."""
        return keras.KerasTensor((), dtype="float32")
