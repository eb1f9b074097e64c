"""Supervised contrast on the labels, and InfoNCE between versions: what Grafit is compared with in the literature."""

from typing import Any, Self

import tensorflow as tf

from mg_keras.layers import InfoNCE, SupervisedContrast
from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.classification import LOSS, TOP1, TOP5
from mg_keras.objectives.distilled_copies import INFO_NCE
from mg_keras.objectives.objective import LOSSES
from mg_keras.objectives.projected import ONLINE_CLASSIFIER, Projected

CONTRAST = TrainingMetric(
    "supervised contrast", "", digits=3, name="supervised_contrast", panel=LOSSES, curve="supervised contrast"
)


class SupConInfoNCE(Projected):
    """lambda times the supervised contrastive loss, and 1 - lambda times InfoNCE between versions.

    With lambda 0.5 and the temperature 0.1 the baseline that MaskCon (Feng and Patras 2023) calls Grafit, here between
    the images of a batch alone.

    Args:
        network: `Network` that is trained.
        dimensions: of the projection.
        classification_weight: lambda in [0, 1].
        temperature: of both losses, > 0.

    Raises:
        ValueError: a value is out of range.
    """

    metrics = (LOSS, CONTRAST, INFO_NCE, ONLINE_CLASSIFIER, TOP1, TOP5)

    def __init__(
        self,
        network: Network,
        dimensions: int = 256,
        classification_weight: float = 0.5,
        temperature: float = 0.1,
        **kwargs,
    ):
        if not 0.0 <= classification_weight <= 1.0:
            raise ValueError(f"classification_weight must lie in [0, 1], received {classification_weight}")
        super().__init__(network, dimensions, **kwargs)
        self.classification_weight = classification_weight
        self.contrast = SupervisedContrast(temperature, name="contrast")
        self.info_nce = InfoNCE(temperature, name="info_nce")

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """See the class."""
        del photos
        return cls(
            network, settings.projection_dimensions, settings.classification_weight, settings.contrast_temperature
        )

    @property
    def needs_pairs(self) -> bool:
        """Whether versions of one photo are compared by themselves."""
        return self.classification_weight < 1.0

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        embedding = network(batch.images, training=True)["embedding"]
        values = self.online_classifier(network, batch, embedding)
        unit = tf.math.l2_normalize(self.projector(embedding), axis=-1, epsilon=1e-12)
        contrast, info_nce = self.contrast(unit, batch.labels), self.info_nce(unit, batch.instance_ids)
        loss = self.classification_weight * contrast + (1.0 - self.classification_weight) * info_nce
        found = {"loss": loss, "supervised_contrast": contrast, "info_nce": info_nce, **values}
        return loss + values["classification_loss"], found, ()
