"""What a layer with a state of its own needs where several replicas train: all their rows, and one value on all."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def gathered(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The rows of all replicas, in the replicas' order and equal on each; as they are where there is one.

    Args:
        tensors: [B, ...], of this replica, in whose context it is called.
    """
    context = tf.distribute.get_replica_context()
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    return tuple(context.all_gather(tensor, axis=0) for tensor in tensors)


def update_copies(function: Callable[..., Any], variables: Sequence[Any], *values: Sequence[tf.Tensor]) -> None:
    """Calls `function(variable, *values)` for each variable, on each replica's own copy of it.

    A plain `assign` in a replica's context would ask how the replicas' values are to be joined. Here each copy is
    given what its replica has: the same on all after `gathered`, or that of the copy of another variable.

    Args:
        function: takes a TensorFlow variable and tensors.
        variables: Keras variables.
        values: sequences of tensors, one a variable, of this replica, in whose context it is called.
    """

    def update(strategy, *values):
        for variable, *given in zip(variables, *values, strict=True):
            strategy.extended.update(variable.value, function, args=tuple(given))

    tf.distribute.get_replica_context().merge_call(update, args=tuple(list(group) for group in values))
