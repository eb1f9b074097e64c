"""No augmentation: the centre crop a photo is tested with, for runs that must see the same picture every time."""

import tensorflow as tf

from mg_keras.data import resolutions


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Resizes the smallest side to `size * 256 / 224` and crops the centre.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        size: int, side of the result in pixels.
        seed: unused; here since every recipe takes one.

    Returns:
        float32 `[size, size, 3]`, RGB in 0-255.
    """
    del seed
    return resolutions.square(image, size)
