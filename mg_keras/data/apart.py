"""For what few photos need, in a graph that every photo passes."""

import tensorflow as tf

apart = tf.function(autograph=False, experimental_attributes={"_noinline": True}, reduce_retracing=True)
"""Decorator: a function that stays one call within a branch, so that a photo that does not take it pays for nothing.

A branch of plain operations costs time even where it is not taken: each of them is passed over, one by one.
"""
