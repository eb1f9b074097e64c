"""MultiGrain without labels: the classes are a teacher's, the network that training starts from (Hinton 2015)."""

import dataclasses
from typing import Any, Self

import keras
import tensorflow as tf

from mg_keras.layers import DistanceWeightedSampling, MarginLoss
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.classification import CLASSIFICATION_LOSS, LOSS, TOP1, TOP5, accuracies
from mg_keras.objectives.multigrain import ACTIVE_SHARE, BETA, RETRIEVAL_LOSS, MultiGrainObjective


class DistilledMultiGrain(MultiGrainObjective):
    """lambda times the cross-entropy to a teacher's softened answers, and 1 - lambda times the margin loss.

    With the teacher's logits t, the network's z and the temperature T, an image costs

        T^2 * cross-entropy(softmax(t / T), softmax(z / T))

    where T^2 keeps the gradients of the size that they have at T = 1. Both see the same augmented version, the teacher
    as in a test. So any network with a classifier becomes a MultiGrain on any photos. Labels are of no account; the
    accuracies are shares of images whose class the teacher says, too.

    Args:
        margin_loss, sampling, classification_weight: as `MultiGrainObjective` takes them.
        teacher: `mg_keras.models.Network` with the classes of the network that is trained. It is kept as it is.
        temperature: T > 0.

    Raises:
        ValueError: lambda or the temperature is out of range.

    Example:

    >>> objective = DistilledMultiGrain(model.margin_loss, model.sampling, model.twin())  # doctest: +SKIP
    >>> objective.start(model)  # doctest: +SKIP
    >>> model.compile(objective=objective)  # doctest: +SKIP
    """

    metrics = (
        LOSS,
        dataclasses.replace(CLASSIFICATION_LOSS, title="teacher's loss", curve="classes, to the teacher"),
        RETRIEVAL_LOSS,
        BETA,
        ACTIVE_SHARE,
        dataclasses.replace(TOP1, title="agreement", curve="top-1 as the teacher"),
        dataclasses.replace(TOP5, title="agreement, top-5", curve="top-5 as the teacher"),
    )
    needs_labels = False

    def __init__(
        self,
        margin_loss: MarginLoss,
        sampling: DistanceWeightedSampling,
        teacher: Network,
        classification_weight: float = 0.5,
        temperature: float = 2.0,
        **kwargs,
    ):
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, received {temperature}")
        super().__init__(margin_loss, sampling, classification_weight, **kwargs)
        self.teacher, self.temperature = teacher, temperature
        teacher.trainable = False

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """With `classification_weight`, `temperature` and `teacher_exponent`; `start` gives the teacher its weights."""
        del photos
        return cls(
            network.margin_loss,
            network.sampling,
            network.twin(settings.teacher_exponent),
            settings.classification_weight,
            settings.temperature,
            **cls.own_settings(settings),
        )

    @classmethod
    def own_settings(cls, settings: Any) -> dict[str, Any]:
        """Further arguments of a subclass, from the settings of a run."""
        del settings
        return {}

    def start(self, network: Network) -> None:
        """The teacher takes the trunk and the classifier of the network as they are now."""
        self.teacher.take_weights(network)

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        """The teacher's."""
        return self.teacher.state_variables

    def class_values(self, batch: Batch, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """See `MultiGrainObjective`; the class that counts is the teacher's first."""
        teachers = tf.stop_gradient(self.teacher(batch.images, training=False)["logits"])
        softened = tf.nn.softmax(teachers / self.temperature)
        losses = keras.losses.categorical_crossentropy(softened, logits / self.temperature, from_logits=True)
        losses *= self.temperature**2
        if batch.weights is not None:
            losses *= batch.weights
        first = tf.argmax(teachers, axis=-1, output_type=tf.int32)
        return {"classification_loss": tf.reduce_mean(losses), **accuracies(first, logits)}
