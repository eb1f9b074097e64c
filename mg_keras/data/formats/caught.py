"""A try/except within the graph."""

from collections.abc import Callable

import tensorflow as tf

from mg_keras.data.apart import as_written


def caught(function: Callable, value: tf.Tensor, otherwise: tuple) -> tuple[tf.Tensor, ...]:
    """(True, *function(value)), or (False, *otherwise) where that fails; graph code.

    A one-element dataset whose errors are ignored. Its function is set up anew each time, which takes longer than
    decoding a small photo if there is much in it: it should hold what can fail, no more.

    Args:
        function: tensor -> tuple of tensors.
        value: the tensor.
        otherwise: tuple of tensors of the same types.
    """
    found = tf.data.Dataset.from_tensors(value).map(as_written(lambda value: (True, *function(value)))).ignore_errors()
    sentinel = tf.data.Dataset.from_tensors((False, *otherwise))
    ok, *results = found.concatenate(sentinel).take(1).get_single_element()
    return tf.ensure_shape(ok, []), *results
