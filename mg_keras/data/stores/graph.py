"""What Python reads, within a pipeline."""

from collections.abc import Callable

import tensorflow as tf


def in_graph(read: Callable[[int], bytes]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of Python, number -> bytes, as graph code: int64 scalar tensor -> string scalar tensor."""

    def contents(number):
        found = tf.numpy_function(lambda row: read(int(row)), [number], tf.string, stateful=False)
        return tf.ensure_shape(found, [])

    return contents
