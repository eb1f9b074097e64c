"""A network that follows another as a moving average of its weights."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from mg_keras.layers.replicas import update_copies


def follow(variables: Sequence[keras.Variable], others: Sequence[keras.Variable], momentum: float) -> None:
    """Moves variables towards others: `v <- momentum v + (1 - momentum) w`, in the context of a replica.

    Moving statistics follow as weights do; what holds no floats, such as the state of a random generator, stays.

    Args:
        variables: those that follow.
        others: as many, of the same shapes.
        momentum: in [0, 1].
    """
    pairs = [
        (variable, other)
        for variable, other in zip(variables, others, strict=True)
        if tf.as_dtype(variable.dtype).is_floating
    ]

    def move(variable, value):
        variable.assign(momentum * variable + (1 - momentum) * tf.cast(value, variable.dtype))

    update_copies(move, [pair[0] for pair in pairs], [tf.convert_to_tensor(pair[1].value) for pair in pairs])
