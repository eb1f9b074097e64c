"""mixup (Zhang et al. 2018): sums of two images."""

import tensorflow as tf

from mg_keras.data.mixing.draws import blend, draws


def mix(images: tf.Tensor, labels: tf.Tensor, alpha: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`lambda x_i + (1 - lambda) x_j` of images and labels, lambda of Beta(alpha, alpha), at least 1/2.

    Args:
        images: float32 [B, H, W, 3].
        labels: float32 [B, C].
        alpha: > 0.
        seed: integers [2].

    Returns:
        (images, labels) of the same shapes.
    """
    share, partners, _ = draws(alpha, tf.shape(images)[0], seed)
    return blend(images, partners, share), blend(labels, partners, share)
