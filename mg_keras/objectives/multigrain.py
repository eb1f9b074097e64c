"""MultiGrain (Berman et al. 2019): classes by cross-entropy, instances by the margin loss."""

from collections.abc import Sequence
from typing import Any, Self

import tensorflow as tf

from mg_keras.layers import DistanceWeightedSampling, MarginLoss
from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.classification import CLASSIFICATION_LOSS, LOSS, TOP1, TOP5, classification_values
from mg_keras.objectives.objective import LOSSES, Objective, ParameterGroup

_PANEL = "Margin loss"
RETRIEVAL_LOSS = TrainingMetric("margin loss", "", digits=3, name="retrieval_loss", panel=LOSSES, curve="margin")
BETA = TrainingMetric("beta", "", digits=3, name="beta", panel=_PANEL, curve="beta", is_noted=True)
ACTIVE_SHARE = TrainingMetric(
    "active triplets", "", digits=3, name="active_share", panel=_PANEL, curve="share of active triplets"
)


class MultiGrainObjective(Objective):
    """The joint loss (equation 5): lambda times the cross-entropy and 1 - lambda times the margin loss.

    Args:
        margin_loss: `MarginLoss`; its beta is a group of its own.
        sampling: `DistanceWeightedSampling`.
        classification_weight: lambda in [0, 1]; 1 is cross-entropy alone, and nothing is sampled.

    Raises:
        ValueError: lambda is out of range.
    """

    # a checkpoint holds the running means in this order
    metrics = (LOSS, CLASSIFICATION_LOSS, RETRIEVAL_LOSS, BETA, ACTIVE_SHARE, TOP1, TOP5)

    def __init__(
        self, margin_loss: MarginLoss, sampling: DistanceWeightedSampling, classification_weight: float = 0.5, **kwargs
    ):
        if not 0.0 <= classification_weight <= 1.0:
            raise ValueError(f"classification_weight must lie in [0, 1], received {classification_weight}")
        super().__init__(**kwargs)
        self.margin_loss, self.sampling = margin_loss, sampling
        self.classification_weight = classification_weight

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """On the network's own margin loss and sampling, with `classification_weight` of the settings."""
        del photos
        return cls(network.margin_loss, network.sampling, settings.classification_weight)

    @property
    def needs_instances(self) -> bool:
        """Whether there is a margin loss: triplets are sampled by the instance ids."""
        return self.classification_weight < 1.0

    @property
    def needs_pairs(self) -> bool:
        """As `needs_instances`: the positives of triplets are versions of one photo."""
        return self.needs_instances

    def parameter_groups(self, network: Network) -> tuple[ParameterGroup, ...]:
        """Beta, which the paper gives the rate 0.1 and no decay (section 4.1); none where it is frozen."""
        del network
        if not self.margin_loss.beta.trainable:
            return ()
        return (ParameterGroup("beta", [self.margin_loss.beta], 0.1, "beta_learning_rate"),)

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        outputs = network(batch.images, training=True)
        values = self.class_values(batch, outputs["logits"])
        retrieval_loss = active_share = tf.zeros(())
        if self.classification_weight < 1.0:
            unit = tf.math.l2_normalize(outputs["embedding"], axis=-1, epsilon=1e-12)
            triplets = self.sampling(unit, batch.instance_ids, seed=seed)
            retrieval_loss, active_share = self.margin_loss.from_rows(unit, triplets)
        weight = self.classification_weight
        loss = weight * values["classification_loss"] + (1.0 - weight) * retrieval_loss
        return loss, {"loss": loss, "retrieval_loss": retrieval_loss, "active_share": active_share, **values}, ()

    def class_values(self, batch: Batch, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """The term of the classes, and the accuracies: `classification_loss`, `top1` and `top5`."""
        return classification_values(batch.labels, logits, batch.weights)

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """Beta as it is now."""
        del network, carries
        return {"beta": tf.convert_to_tensor(self.margin_loss.beta)}
