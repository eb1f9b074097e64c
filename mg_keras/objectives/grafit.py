"""Grafit (Touvron et al. 2021) and its parts: fine-grained descriptors from coarse labels."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from mg_keras.layers import InstanceLoss, MemoryBank, NearestNeighborLoss
from mg_keras.metric import TrainingMetric
from mg_keras.models import Network
from mg_keras.models.moving_average import follow
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.classification import CLASSIFICATION_LOSS, LOSS, TOP1, TOP5, classification_values
from mg_keras.objectives.objective import LOSSES
from mg_keras.objectives.projected import ONLINE_CLASSIFIER, Projected, projector_of

NEIGHBOR_LOSS = TrainingMetric(
    "neighbour loss", "", digits=3, name="neighbor_loss", panel=LOSSES, curve="nearest neighbours"
)
INSTANCE_LOSS = TrainingMetric("instance loss", "", digits=3, name="instance_loss", panel=LOSSES, curve="instances")


class SNCA(Projected):
    """The nearest-neighbour loss over a memory alone (`NearestNeighborLoss`; "SNCA+" in Grafit's comparisons).

    The first version of each photo is compared with the memory, and taken up into it after the step.

    Args:
        network: `Network` that is trained.
        memory: `MemoryBank`, of the projection's dimensions. Where it is no queue, its places are the photos' ids.
        versions: m, how many versions of a photo stand one after the other in a batch.
        temperature: of the neighbours, > 0.

    Raises:
        ValueError: a value is out of range.
    """

    metrics = (LOSS, NEIGHBOR_LOSS, ONLINE_CLASSIFIER, TOP1, TOP5)

    def __init__(self, network: Network, memory: MemoryBank, versions: int = 1, temperature: float = 0.05, **kwargs):
        self.check_versions(network, versions)
        super().__init__(network, memory.dimensions, **kwargs)
        self.memory, self.versions = memory, versions
        self.neighbor_loss = NearestNeighborLoss(temperature, name="neighbor_loss")

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """With a memory of `photos` places, or a queue of `memory_size`."""
        return cls(network, memory_of(settings, photos), settings.versions, settings.neighbor_temperature)

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        embedding = network(batch.images, training=True)["embedding"]
        values = self.online_classifier(network, batch, embedding)
        loss, carry = self.neighbors(self.projector(embedding[:: self.versions]), batch)
        return loss + values["classification_loss"], {"loss": loss, "neighbor_loss": loss, **values}, carry

    def neighbors(self, projections: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """(the mean loss of a batch's photos, what the memory takes up), of projections [n, d] of first versions.

        Raises:
            ValueError: instance ids that are no numbers.
        """
        if batch.instance_ids.dtype == tf.string:
            raise ValueError("a memory knows photos by numbers: instance_ids must be integers, received strings")
        ids, labels = (values[:: self.versions] for values in (batch.instance_ids, batch.labels))
        places = None if self.memory.ids is None else self.memory.ids.value
        losses = self.neighbor_loss(
            projections, labels, ids, self.memory.embeddings.value, self.memory.labels.value, places
        )
        if batch.weights is not None:
            losses *= batch.weights[:: self.versions]
        return tf.reduce_mean(losses), (ids, labels, projections)

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """The memory takes up what the step has seen, as it saw it."""
        del network
        self.memory.update(*(tf.concat(parts, axis=0) for parts in zip(*carries, strict=True)))
        return {}


class InstanceTerm(keras.layers.Layer):
    """The instance loss with all that it needs: a predictor q, and a network and a projector that follow the trained.

    q is linear, batch normalisation, ReLU, linear. The target runs in inference mode: on the moving average of the
    statistics of batch normalisation, too.

    Args:
        network: `Network` that is trained.
        dimensions: of the projection.
        predictor_width: of q's hidden layer.
        momentum: m in [0, 1): after each step `target <- m target + (1 - m) network`.
        versions: how many versions of a photo stand one after the other in a batch.
        target_versions: of how many of them there are targets, the first ones; None: half of them, rounded up. The
            target's forward pass is what the term costs.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        network: Network,
        dimensions: int,
        predictor_width: int,
        momentum: float,
        versions: int = 1,
        target_versions: int | None = None,
        **kwargs,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"target_momentum must lie in [0, 1), received {momentum}")
        if target_versions is not None and target_versions < 1:
            raise ValueError(f"target_versions must be at least 1, received {target_versions}")
        super().__init__(autocast=False, **kwargs)
        self.momentum, self.versions = momentum, versions
        self.target_versions = min(versions, -(-versions // 2) if target_versions is None else target_versions)
        self.predictor = keras.Sequential(
            [
                keras.Input((dimensions,)),
                keras.layers.Dense(predictor_width, use_bias=False, dtype="float32", name="hidden"),
                keras.layers.BatchNormalization(dtype="float32", name="normalization"),
                keras.layers.ReLU(dtype="float32"),
                keras.layers.Dense(dimensions, dtype="float32", name="output"),
            ],
            name="predictor",
        )
        self.target, self.target_projector = network.twin(), projector_of(network, dimensions, "target_projector")
        self.target.freeze_stages(network.frozen_stages)
        self.target.trainable = self.target_projector.trainable = False
        self.instance_loss = InstanceLoss(name="instance_loss")
        self.built = True

    def start(self, network: Network, projector: keras.layers.Dense) -> None:
        """The target begins as the network and its projector are.

        Raises:
            ValueError: stages of the network were frozen since this was made, which share them with the target.
        """
        if network.frozen_stages != self.target.frozen_stages:
            raise ValueError(
                f"stages are frozen before an objective is made: {self.target.frozen_stages} were then, "
                f"{network.frozen_stages} are now"
            )
        self.target.take_weights(network)
        for variable, other in zip(self.target.pool.variables, network.pool.variables, strict=True):
            variable.assign(other.numpy())
        self.target_projector.set_weights([weight.numpy() for weight in projector.weights])

    def loss(self, batch: Batch, frozen: Sequence[tf.Tensor], projections: tf.Tensor) -> tf.Tensor:
        """The loss of a batch, of whose images [B, ...] `frozen` is the network's `frozen_maps` and these projections.

        What the frozen stages make of the images is the target's, too: it is computed once.
        """
        rows = None
        if self.target_versions < self.versions:
            rows = tf.range(batch.images.shape[0] or tf.shape(batch.images)[0])
            rows = tf.concat([rows[first :: self.versions] for first in range(self.target_versions)], axis=0)
            frozen = [tf.gather(maps, rows) for maps in frozen]
        targets = self.target_projector(self.target.pooled(self.target.trained_maps(frozen)))
        return self.instance_loss(self.predictor(projections, training=True), targets, batch.instance_ids, rows)

    def follow(self, network: Network, projector: keras.layers.Dense) -> None:
        """After a step, in the context of a replica."""
        of_target = [*self.target.trunk.variables, *self.target.pool.variables, *self.target_projector.variables]
        others = [*network.trunk.variables, *network.pool.variables, *projector.variables]
        follow(of_target, others, self.momentum)


class Grafit(SNCA):
    """Coarse labels by the nearest-neighbour loss, and all that is finer by the instance loss; their sum (eq. 4).

    Args:
        network, memory, versions, temperature: as `SNCA` takes them; of at least two versions.
        predictor_width: of the predictor's hidden layer.
        target_momentum: of the moving average that the targets come from.
        target_versions: of how many versions there are targets; None: half of them, rounded up.

    Raises:
        ValueError: a value is out of range.

    Example:

    >>> model = mg_keras.MultiGrain("resnet18", num_classes=20, versions=4)  # doctest: +SKIP
    >>> objective = Grafit(model, mg_keras.layers.MemoryBank(50_000, 256), versions=4)  # doctest: +SKIP
    >>> objective.start(model)  # doctest: +SKIP
    >>> model.compile("sgd", objective=objective)  # doctest: +SKIP
    """

    metrics = (LOSS, NEIGHBOR_LOSS, INSTANCE_LOSS, ONLINE_CLASSIFIER, TOP1, TOP5)
    needs_pairs = True

    def __init__(
        self,
        network: Network,
        memory: MemoryBank,
        versions: int = 4,
        temperature: float = 0.05,
        predictor_width: int = 4096,
        target_momentum: float = 0.996,
        target_versions: int | None = None,
        **kwargs,
    ):
        super().__init__(network, memory, versions, temperature, **kwargs)
        self.instances = InstanceTerm(
            network,
            memory.dimensions,
            predictor_width,
            target_momentum,
            versions,
            target_versions,
            name="instances",
        )

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """With a memory of `photos` places, or a queue of `memory_size`."""
        return cls(
            network,
            memory_of(settings, photos),
            settings.versions,
            settings.neighbor_temperature,
            settings.predictor_width,
            settings.target_momentum,
            settings.target_versions,
        )

    def start(self, network: Network) -> None:
        """The target begins as the network is."""
        self.instances.start(network, self.projector)

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        frozen = network.frozen_maps(batch.images)
        embedding = network.pooled(network.trained_maps(frozen, training=True))
        projections = self.projector(embedding)
        values = self.online_classifier(network, batch, embedding)
        neighbors, carry = self.neighbors(projections[:: self.versions], batch)
        instances = self.instances.loss(batch, frozen, projections)
        loss = neighbors + instances
        found = {"loss": loss, "neighbor_loss": neighbors, "instance_loss": instances, **values}
        return loss + values["classification_loss"], found, carry

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """The memory takes up what the step has seen, and the target follows."""
        self.instances.follow(network, self.projector)
        return super().after_step(network, carries)


class GrafitFC(Projected):
    """Grafit with the cross-entropy of the classifier in place of the nearest-neighbour loss; it has no memory.

    Args:
        network: `Network` that is trained.
        dimensions: of the projection that the instance loss sees.
        predictor_width, target_momentum, versions, target_versions: as `Grafit` takes them.

    Raises:
        ValueError: a value is out of range.
    """

    metrics = (LOSS, CLASSIFICATION_LOSS, INSTANCE_LOSS, TOP1, TOP5)
    needs_pairs = True

    def __init__(
        self,
        network: Network,
        dimensions: int = 256,
        predictor_width: int = 4096,
        target_momentum: float = 0.996,
        versions: int = 4,
        target_versions: int | None = None,
        **kwargs,
    ):
        self.check_versions(network, versions)
        super().__init__(network, dimensions, **kwargs)
        self.instances = InstanceTerm(
            network, dimensions, predictor_width, target_momentum, versions, target_versions, name="instances"
        )

    @classmethod
    def from_settings(cls, network: Network, settings: Any, photos: int = 0) -> Self:
        """See the class."""
        del photos
        return cls(
            network,
            settings.projection_dimensions,
            settings.predictor_width,
            settings.target_momentum,
            settings.versions,
            settings.target_versions,
        )

    def start(self, network: Network) -> None:
        """The target begins as the network is."""
        self.instances.start(network, self.projector)

    def loss(self, network: Network, batch: Batch, seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], Any]:
        """See `Objective.loss`."""
        del seed
        frozen = network.frozen_maps(batch.images)
        embedding = network.pooled(network.trained_maps(frozen, training=True))
        values = classification_values(batch.labels, network.classifier(embedding), batch.weights)
        instances = self.instances.loss(batch, frozen, self.projector(embedding))
        loss = values["classification_loss"] + instances
        return loss, {"loss": loss, "instance_loss": instances, **values}, ()

    def after_step(self, network: Network, carries: Sequence[Any]) -> dict[str, tf.Tensor]:
        """The target follows."""
        del carries
        self.instances.follow(network, self.projector)
        return {}


def memory_of(settings: Any, photos: int) -> MemoryBank:
    """The memory of a run: a place for each of its `photos`, or a queue of `memory_size`.

    Raises:
        ValueError: neither number is given.
    """
    if settings.memory_size is None and photos < 1:
        raise ValueError("a memory of one embedding a photo needs the number of photos, received 0: or set memory_size")
    return MemoryBank(
        settings.memory_size or photos,
        settings.projection_dimensions,
        queue=settings.memory_size is not None,
        dtype=settings.memory_dtype,
        name="memory",
    )
