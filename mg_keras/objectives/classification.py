"""Cross-entropy alone (section 3.2): what MultiGrain is compared with, and what takes mixed labels."""

from typing import Any, Self

import keras
import tensorflow as tf

from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.objective import ACCURACY, LOSSES, Objective

LOSS = TrainingMetric("loss", "", digits=3, name="loss", panel=LOSSES, curve="joint", is_noted=True)
CLASSIFICATION_LOSS = TrainingMetric(
    "class loss", "", digits=3, name="classification_loss", panel=LOSSES, curve="classes"
)
TOP1, TOP5 = (
    TrainingMetric(f"top-{k}", "%", 100.0, 1, name=f"top{k}", panel=ACCURACY, curve=f"top-{k}", is_noted=k == 1)
    for k in (1, 5)
)


def classification_values(
    labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """Cross-entropy, top-1 and top-5, each the mean over the images.

    Args:
        labels: class numbers [B], or shares of the classes [B, C]: then the top is a hit if it is the largest share.
        logits: [B, C].
        weights: None or [B], factors of the cross-entropies, whose sum is divided by the number of images as without.

    Returns:
        dict of `classification_loss`, `top1` and `top5`.
    """
    if labels.shape.rank == 2:
        cross_entropy = keras.losses.categorical_crossentropy(labels, logits, from_logits=True)
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    else:
        cross_entropy = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    if weights is not None:
        cross_entropy *= weights
    return {"classification_loss": tf.reduce_mean(cross_entropy), **accuracies(labels, logits)}


def accuracies(labels: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """dict of `top1` and `top5`: shares of the images whose label [B] is among the k highest of the logits [B, C]."""
    classes = logits.shape[-1]
    return {
        f"top{k}": tf.reduce_mean(tf.cast(tf.math.in_top_k(labels, logits, min(k, classes)), tf.float32))
        for k in (1, 5)
    }


@keras.saving.register_keras_serializable("mg_keras")
class Classification(Objective):
    """The mean cross-entropy of the images; nothing is sampled, and there is no beta.

    Example:

    >>> model = mg_keras.MultiGrain("resnet18", num_classes=10, versions=1)
    >>> model.compile("sgd", objective=Classification())
    """

    metrics = (LOSS, CLASSIFICATION_LOSS, TOP1, TOP5)
    takes_mixed_labels = True

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """It has no settings."""
        del network, settings, photos
        return cls()

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        logits = network(batch.images, training=True)["logits"]
        values = classification_values(batch.labels, logits, batch.weights)
        return values["classification_loss"], {"loss": values["classification_loss"], **values}, ()
