"""How functions become parts of the graph that every photo passes."""

import tensorflow as tf

as_written = tf.autograph.experimental.do_not_convert
"""Decorator: a function of a dataset that TensorFlow takes as it is.

AutoGraph would rewrite all that it calls, which takes a fifth of a short run's time, and nothing here needs that:
control flow is written with `tf.cond` and `tf.while_loop`.
"""

apart = tf.function(autograph=False, experimental_attributes={"_noinline": True}, reduce_retracing=True)
"""Decorator: a function that stays one call within a branch, so that a photo that does not take it pays for nothing.

A branch of plain operations costs time even where it is not taken: each of them is passed over, one by one.
"""
