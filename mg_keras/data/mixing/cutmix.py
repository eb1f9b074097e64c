"""CutMix (Yun et al. 2019): a box of another image."""

import tensorflow as tf

from mg_keras.data.mixing.draws import blend, draws


def mix(images: tf.Tensor, labels: tf.Tensor, alpha: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A box of each image is another image's, at the same place in all of a batch.

    The box has the image's proportions and the area 1 - lambda, lambda of Beta(alpha, alpha) and at least 1/2; its
    middle is anywhere in the image, and what is outside is cut off. Labels are mixed by the areas that are seen.

    Args:
        images: float32 [B, H, W, 3].
        labels: float32 [B, C].
        alpha: > 0.
        seed: integers [2].

    Returns:
        (images, labels) of the same shapes.
    """
    share, partners, middle = draws(alpha, tf.shape(images)[0], seed)
    sides = tf.shape(images)[1:3]
    lengths = tf.cast(sides, tf.float32)
    half = lengths * tf.sqrt(1.0 - share) / 2.0
    first = tf.cast(tf.round(tf.clip_by_value(middle * lengths - half, 0.0, lengths)), tf.int32)
    last = tf.cast(tf.round(tf.clip_by_value(middle * lengths + half, 0.0, lengths)), tf.int32)
    rows, columns = (
        tf.logical_and(tf.range(sides[axis]) >= first[axis], tf.range(sides[axis]) < last[axis]) for axis in (0, 1)
    )
    box = tf.logical_and(rows[:, None], columns[None, :])
    seen = 1.0 - tf.reduce_mean(tf.cast(box, tf.float32))
    return tf.where(box[..., None], tf.gather(images, partners), images), blend(labels, partners, seen)
