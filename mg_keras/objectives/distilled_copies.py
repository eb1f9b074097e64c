"""Copies without labels: a teacher's classes, and SSCD's InfoNCE between versions and spread (Pizzi et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mg_keras.errors import UserError
from mg_keras.layers import DistanceWeightedSampling, InfoNCE, KoLeo, MarginLoss, MovingWhitening
from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.distilled_multigrain import DistilledMultiGrain
from mg_keras.objectives.objective import LOSSES, ParameterGroup
from mg_keras.whitening_formulas import unit_rows

INFO_NCE = TrainingMetric("InfoNCE", "", digits=3, name="info_nce", panel=LOSSES, curve="InfoNCE between versions")
KOLEO = TrainingMetric("KoLeo", "", digits=3, name="koleo", panel=LOSSES, curve="KoLeo")

_OWN_SETTINGS = ("contrast_temperature", "spread_weight", "contrast_dimensions")


class DistilledCopies(DistilledMultiGrain):
    """lambda times the loss to a teacher's softened answers, and 1 - lambda times (InfoNCE + s KoLeo).

    The teacher's term is `DistilledMultiGrain`'s; the margin loss and its sampling give way to InfoNCE between versions
    and the differential-entropy regulariser, as SSCD (Pizzi et al. 2022) is trained, on unit-norm embeddings, or on
    descriptors of a whitening that follows them.

    Args:
        margin_loss, sampling: the network's, which are not used.
        teacher, classification_weight, temperature: as `DistilledMultiGrain` takes them.
        contrast_temperature: of InfoNCE, > 0.
        spread_weight: s >= 0.
        contrast_dimensions: k of the `MovingWhitening`; None: embeddings are compared as they are.

    Raises:
        ValueError: a value is out of range.
        UserError: `contrast_dimensions` are more than an embedding's values and one.
    """

    metrics = (
        DistilledMultiGrain.metrics[0],
        DistilledMultiGrain.metrics[1],
        INFO_NCE,
        KOLEO,
        *DistilledMultiGrain.metrics[-2:],
    )

    def __init__(
        self,
        margin_loss: MarginLoss,
        sampling: DistanceWeightedSampling,
        teacher: Network,
        classification_weight: float = 0.5,
        temperature: float = 2.0,
        contrast_temperature: float = 0.05,
        spread_weight: float = 1.0,
        contrast_dimensions: int | None = None,
        **kwargs,
    ):
        if not spread_weight >= 0:
            raise ValueError(f"spread_weight must be at least 0, received {spread_weight}")
        super().__init__(margin_loss, sampling, teacher, classification_weight, temperature, **kwargs)
        self.info_nce, self.koleo = InfoNCE(contrast_temperature, name="info_nce"), KoLeo(name="koleo")
        self.spread_weight = float(spread_weight)
        self.whitening = None
        if contrast_dimensions is not None:
            size = teacher.embedding_dimension
            if contrast_dimensions > size + 1:
                raise UserError(
                    f"contrast_dimensions must be at most {size + 1}, as embeddings have {size} values, "
                    f"received {contrast_dimensions}"
                )
            self.whitening = MovingWhitening(size, contrast_dimensions, name="whitening")

    @classmethod
    def own_settings(cls, settings: Any) -> dict[str, Any]:
        """`contrast_temperature`, `spread_weight` and `contrast_dimensions`."""
        return {name: getattr(settings, name) for name in _OWN_SETTINGS}

    def parameter_groups(self, network: Network) -> tuple[ParameterGroup, ...]:
        """None: beta is of the margin loss."""
        del network
        return ()

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        outputs = network(batch.images, training=True)
        values = self.class_values(batch, outputs["logits"])
        info_nce = koleo = tf.zeros(())
        if self.classification_weight < 1.0:
            embedding = outputs["embedding"]
            unit = unit_rows(keras.ops, embedding) if self.whitening is None else self.whitening(embedding)
            info_nce, koleo = self.info_nce(unit, batch.instance_ids), self.koleo(unit, batch.instance_ids)
        weight = self.classification_weight
        loss = weight * values["classification_loss"] + (1.0 - weight) * (info_nce + self.spread_weight * koleo)
        found = {"loss": loss, "info_nce": info_nce, "koleo": koleo, **values}
        return loss, found, (outputs["embedding"], batch.instance_ids)

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """The whitening takes up the embeddings, where versions are compared."""
        del network
        if self.whitening is not None and self.needs_instances:
            embeddings, instance_ids = (tf.concat(parts, axis=0) for parts in zip(*carries, strict=True))
            self.whitening.update(instance_ids, embeddings)
        return {}
