"""What every objective is: what a step minimises, and all that a run says of it."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import keras
import tensorflow as tf

from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.objectives.batches import Batch

LOSSES, ACCURACY = "Losses", "Accuracy (training: on augmented crops)"
"""Panels of curves that objectives share."""


class ParameterGroup(NamedTuple):
    """Variables that are learnt by an optimiser of their own, without the weights' decay.

    Attributes:
        name: of the group; a checkpoint has its optimiser under `NAME_optimizer`.
        variables: Keras variables of the objective.
        rate: the learning rate where none is given.
        rate_setting: the setting of a run that gives it.
    """

    name: str
    variables: Sequence[keras.Variable]
    rate: float
    rate_setting: str


class Objective(keras.layers.Layer, abc.ABC):
    """What a step minimises. A new method is a subclass in a file of its own, named in `mg_keras.objectives`.

    It is a Keras layer: its variables are saved with the run. Those that are trainable and in no group of
    `parameter_groups` are learnt as the network's weights are. The step (`mg_keras.multigrain.step`) does the rest:
    gradients, accumulation, decay, rates, replicas. A subclass has at least a `loss`; one that runs name has
    `from_settings`, too.

    Attributes:
        metrics: what `loss` and `after_step` measure, the first of them the loss itself, named `loss`.
        takes_mixed_labels: whether labels may be shares of the classes, float [B, C], in place of class numbers [B].
        needs_labels: whether each image must have a class. Else labels may be -1, the run's classes are those of the
            network that it starts from, and validation measures agreement with `teacher`.
        teacher: the `Network` whose classes are to be met where `needs_labels` is False.
        needs_instances: whether batches must have instance ids.
        needs_pairs: whether photos must be there in two versions at least.
    """

    metrics: ClassVar[tuple[TrainingMetric, ...]] = ()
    takes_mixed_labels = False
    needs_labels = True
    teacher = None
    needs_instances = False
    needs_pairs = False

    def __init__(self, **kwargs):
        # images and labels come as they are, whatever the dtype policy
        super().__init__(autocast=False, **kwargs)
        self.built = True

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """The objective of a run.

        Args:
            network: the `mg_keras.MultiGrain` that is trained, not yet with the weights that it starts from.
            settings: the run's, `TrainConfig` or what else has their names.
            photos: how many there are to train on; the instance ids of batches are their numbers, 0 to `photos` - 1.
        """
        raise NotImplementedError(f"{cls.__name__} has no from_settings, by which a run makes its objective")

    def start(self, network: Network) -> None:
        """Called once, before the first step of all, when the weights that training starts from are in place."""

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        """Variables that `start` sets and no step changes: a run stores them once, beside its checkpoints."""
        return []

    @property
    def projection(self) -> tuple[keras.Variable, keras.Variable] | None:
        """(kernel [d, k], bias [k]) of a linear layer that it trains on the embedding, to be a descriptor; or None."""
        return None

    def parameter_groups(self, network: Network) -> tuple[ParameterGroup, ...]:
        """The variables with an optimiser of their own."""
        del network
        return ()

    @abc.abstractmethod
    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """The loss of one part of a replica's batch; within the tape, and perhaps within XLA.

        Args:
            network: to call in training mode.
            batch: labels are int32 [B], or shares float32 [B, C] where `takes_mixed_labels`; weights None or
                float32 [B].
            seed: int32 [2], for all that is drawn: it depends on the seed, the step, the replica and the part alone.

        Returns:
            (scalar, name of a metric -> scalar, what `after_step` needs: tensors, or () for nothing).
        """

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """What follows the update, outside the tape and XLA, in the context of a replica: memories, moving averages.

        Args:
            network: with its new weights.
            carries: what `loss` gave, once for each part of the replica's batch.

        Returns:
            Metrics that are measured now: name -> scalar.
        """
        del network, carries
        return {}
