"""What recipes share: a check, and colour operations with PIL's meaning, a blend of the picture with a degenerate one.

`factor` 1 gives the picture back, 0 the degenerate picture, and more than 1 moves away from it. They take float32
`[H, W, 3]` RGB in 0-255 and a scalar, and return the same shape and range, clipped. `tf.image`'s `adjust_*` are other
operations: they shift brightness instead of scaling it, use each channel's own mean, and saturate in HSV.
"""

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's convert("L")


def whole_levels(image: tf.Tensor) -> tf.Tensor:
    """The photo that a recipe is given, as a tensor; ValueError if it is not uint8."""
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:
        raise ValueError(f"`image` must be uint8, 0-255. Received: dtype {image.dtype.name}")
    return image


def brightness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with black: multiplies by `factor`, one for all channels or `[3]`."""
    return _clip(image * factor)


def contrast(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with a flat picture of the mean grey."""
    mean_grey = tf.reduce_sum(tf.reduce_mean(image, axis=[0, 1]) * _LUMA)
    return _clip(image * factor + mean_grey * (1 - factor))


def saturation(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with the grey picture."""
    # One matrix for both terms: nearly twice as fast as making the grey picture.
    grey = tf.tile(tf.constant(_LUMA)[:, tf.newaxis], [1, 3])
    return _clip(tf.tensordot(image, tf.eye(3) * factor + grey * (1 - factor), 1))


def gamma(image: tf.Tensor, exponent: tf.Tensor | float) -> tf.Tensor:
    """Raises the values, rounded to whole grey levels and taken as 0-1, to a power: above 1 darkens."""
    table = 255.0 * (tf.range(256, dtype=tf.float32) / 255.0) ** exponent
    return tf.gather(table, tf.cast(tf.round(image), tf.int32))


def sample_jitter(seed: tf.Tensor, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the order of the three adjustments and their factors.

    Args:
        seed: int32 or int64 `[2]`.
        strength: float in 0-1.

    Returns:
        `order`, int32 `[3]`, a permutation of 0 (brightness), 1 (contrast) and 2 (saturation), the first to apply
        first; `factors`, float32 `[3]`, of brightness, contrast and saturation, uniform in 1 ± `strength`.
    """
    order_seed, factor_seed = tf.unstack(tf.random.split(seed, 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(3), order_seed)
    return order, tf.random.stateless_uniform([3], factor_seed, 1 - strength, 1 + strength)


def color_jitter(image: tf.Tensor, order: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Adjusts brightness, contrast and saturation in the given order, clipping after each.

    Args:
        image: float32 `[H, W, 3]`, RGB in 0-255.
        order: int32 `[3]`, as from `sample_jitter`.
        factors: float32 `[3]`, as from `sample_jitter`.

    Returns:
        float32 `[H, W, 3]`, RGB in 0-255.
    """
    for index in tf.unstack(order):
        branches = [
            lambda image=image, adjust=adjust, factor=factor: adjust(image, factor)
            for adjust, factor in zip((brightness, contrast, saturation), tf.unstack(factors), strict=True)
        ]
        image = tf.switch_case(index, branches)
    return image


def _clip(image):
    return tf.clip_by_value(image, 0.0, 255.0)
