"""The colour operations two recipes share, with PIL's meaning: a blend of the picture with a degenerate one.

`factor` 1 gives the picture back, 0 the degenerate picture, and more than 1 moves away from it. All take float32
`[H, W, 3]` RGB in 0-255 and a scalar, and return the same shape and range, clipped. `tf.image`'s `adjust_*` are other
operations: they shift brightness instead of scaling it, use each channel's own mean, and saturate in HSV.
"""

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's convert("L")


def brightness(image, factor):
    """Blends with black: multiplies by `factor`."""
    return _clip(image * factor)


def contrast(image, factor):
    """Blends with a flat picture of the mean grey."""
    mean_grey = tf.reduce_sum(tf.reduce_mean(image, axis=[0, 1]) * _LUMA)
    return _clip(image * factor + mean_grey * (1 - factor))


def saturation(image, factor):
    """Blends with the grey picture."""
    # One matrix for both terms: nearly twice as fast as making the grey picture.
    grey = tf.tile(tf.constant(_LUMA)[:, tf.newaxis], [1, 3])
    return _clip(tf.tensordot(image, tf.eye(3) * factor + grey * (1 - factor), 1))


def _clip(image):
    return tf.clip_by_value(image, 0.0, 255.0)
