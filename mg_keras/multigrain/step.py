"""One update of a network by an objective: gradients, accumulation, decay, rates, XLA and replicas."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.objective import Objective, ParameterGroup


class Step:
    """What is done with a replica's batch, whatever the objective.

    Args:
        network: `mg_keras.models.Network`.
        objective: `mg_keras.objectives.objective.Objective`.
        optimizer: of the network's weights, and of what the objective learns beside them.
        group_optimizers: name of a group of `objective.parameter_groups` -> its optimiser.
        weight_decay: float >= 0, times a weight is added to its gradient (L2); not of the pooling exponent, nor of the
            groups.
        accumulation_steps: int k: a batch is k parts of whole RA groups, passed one after the other, their gradients
            averaged before the one update.
        trunk_rate: float > 0, times the trunk's gradients, their decay included.
        jit_compile: compile the forward and backward pass with XLA.
        seed: int, of all that the objective draws.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        optimizer: keras.optimizers.Optimizer,
        group_optimizers: Mapping[str, keras.optimizers.Optimizer],
        *,
        weight_decay: float = 0.0,
        accumulation_steps: int = 1,
        trunk_rate: float = 1.0,
        jit_compile: bool = False,
        seed: int = 0,
    ):
        self.network, self.objective = network, objective
        self.optimizer, self.group_optimizers = optimizer, group_optimizers
        self.weight_decay, self.trunk_rate = weight_decay, trunk_rate
        self.accumulation_steps, self.jit_compile, self.seed = accumulation_steps, jit_compile, seed
        # XLA takes the part that is mere computation: updates and reductions across replicas stay outside
        self._gradients = (
            tf.function(self._part_gradients, jit_compile=True, autograph=False)
            if jit_compile
            else self._part_gradients
        )

    def build(self) -> None:
        """Makes the optimisers' variables."""
        self.optimizer.build(self.weights)
        for group in self.groups:
            self.group_optimizers[group.name].build(list(group.variables))

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The objective's parameter groups."""
        return self.objective.parameter_groups(self.network)

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables of the main optimiser: the network's, and those of the objective that are in no group."""
        known = {id(variable) for group in self.groups for variable in group.variables}
        others = [variable for variable in self.objective.trainable_variables if id(variable) not in known]
        return [*self.network.network_variables, *others]

    def update(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One update from a `Batch`, checked; returns the metrics, name -> scalar, of this replica.

        Raises:
            ValueError: all weights are frozen, or the images can't be divided into `accumulation_steps` parts.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradients, values, carries = self._accumulate(batch)
        # Keras 3 sums gradients over replicas; the loss is the mean over them
        gradients = [None if gradient is None else gradient / replicas for gradient in gradients]
        weights = self.weights
        updates = [pair for pair in zip(gradients[: len(weights)], weights, strict=True) if pair[0] is not None]
        if not updates:
            raise ValueError("there is nothing to train: no weight that is trainable takes part in the loss")
        self.optimizer.apply_gradients(self._scaled(updates, replicas))
        of_groups = iter(gradients[len(weights) :])
        for group in self.groups:
            updates = [(next(of_groups), variable) for variable in group.variables]
            if updates := [pair for pair in updates if pair[0] is not None]:
                self.group_optimizers[group.name].apply_gradients(updates)
        return {**values, **self.objective.after_step(self.network, carries)}

    def _scaled(self, updates, replicas):
        """The updates with the decay added and the trunk's rate applied."""
        if self.weight_decay:
            decay = self.weight_decay / replicas
            undecayed = {id(variable) for variable in self.network.pool.trainable_variables}
            updates = [
                (gradient, variable)
                if id(variable) in undecayed
                else (gradient + decay * tf.cast(variable.value, gradient.dtype), variable)
                for gradient, variable in updates
            ]
        if self.trunk_rate != 1.0:
            trunk = {id(variable) for variable in self.network.trunk.trainable_variables}
            updates = [
                (gradient * self.trunk_rate if id(variable) in trunk else gradient, variable)
                for gradient, variable in updates
            ]
        return updates

    def seed_of(self, part: int | tf.Tensor) -> tf.Tensor:
        """int32 [2], of a part's draws: step, replica and part alone decide it, so that a resumed run repeats them."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        return tf.stack([step + 1_000_003 * self.seed % (1 << 30), replica * self.accumulation_steps + part])

    def _part_gradients(self, batch, seed):
        """Gradients of the weights, then of the groups (None where nothing depends on one), values, and the carry."""
        with tf.GradientTape() as tape:
            loss, values, carry = self.objective.loss(self.network, batch, seed)
        variables = [*self.weights, *(variable for group in self.groups for variable in group.variables)]
        return tape.gradient(loss, [variable.value for variable in variables]), values, carry

    def _accumulate(self, batch):
        """Mean gradients and values over the parts of a replica's batch, and what each part carries."""
        count = self.accumulation_steps
        if count == 1:
            gradients, values, carry = self._gradients(batch, self.seed_of(0))
            return gradients, values, [carry]
        size = batch.images.shape[0]
        if size is not None and size % count:
            raise ValueError(f"{size} images can't be divided into accumulation_steps={count} parts of one size")
        totals, sums, carries = None, None, []
        split = [[None] * count if value is None else tf.split(value, count) for value in batch]
        for number, part in enumerate(zip(*split, strict=True)):
            # one part after the other: run together they would need the memory that accumulation is there to save
            waits = [total for total in totals or [] if total is not None]
            with tf.control_dependencies(waits):
                part = Batch(*[None if value is None else tf.identity(value) for value in part])  # noqa: PLW2901
                gradients, values, carry = self._gradients(part, self.seed_of(number))
            carries.append(carry)
            if totals is None:
                totals, sums = gradients, values
            else:
                totals = [None if new is None else old + new for old, new in zip(totals, gradients, strict=True)]
                sums = {name: sums[name] + value for name, value in values.items()}
        scale = 1.0 / count
        return (
            [None if total is None else total * scale for total in totals],
            {name: value * scale for name, value in sums.items()},
            carries,
        )
