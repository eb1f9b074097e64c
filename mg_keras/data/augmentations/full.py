"""The paper's "full" augmentation: crop, flip, colour jitter and PCA lighting noise."""

import tensorflow as tf

from mg_keras.data.augmentations import ops, standard

JITTER = 0.3  # brightness, contrast and saturation factors are uniform in 1 ± JITTER
LIGHTING = 0.1  # standard deviation of the coefficient of each principal colour
# Principal components of ImageNet's RGB values in 0-1: one eigenvector a column, rows R, G, B.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_ADJUSTMENTS = (ops.brightness, ops.contrast, ops.saturation)


def augment(image, size, seed):
    """Random resized crop, horizontal flip, colour jitter in random order, PCA lighting noise.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        size: int, side of the result in pixels.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[size, size, 3]`, RGB in 0-255.

    Raises:
        ValueError: `image` is not uint8 `[H, W, 3]`, or `size` is less than 1.
    """
    crop_seed, jitter_seed, lighting_seed = tf.unstack(tf.random.split(seed, 3))
    image = standard.augment(image, size, crop_seed)
    image = color_jitter(image, *sample_jitter(jitter_seed))
    return lighting(image, sample_lighting(lighting_seed))


def sample_jitter(seed):
    """Draws the order of the three adjustments and their factors.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        `order`, int32 `[3]`, a permutation of 0 (brightness), 1 (contrast) and 2 (saturation), the first to apply
        first; `factors`, float32 `[3]`, of brightness, contrast and saturation, uniform in 1 ± `JITTER`.
    """
    order_seed, factor_seed = tf.unstack(tf.random.split(seed, 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(3), order_seed)
    return order, tf.random.stateless_uniform([3], factor_seed, 1 - JITTER, 1 + JITTER)


def color_jitter(image, order, factors):
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
            for adjust, factor in zip(_ADJUSTMENTS, tf.unstack(factors), strict=True)
        ]
        image = tf.switch_case(index, branches)
    return image


def sample_lighting(seed):
    """Draws the coefficients of the lighting noise.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[3]`, one an eigenvalue, normal with mean 0 and standard deviation `LIGHTING`.
    """
    return tf.random.stateless_normal([3], seed, stddev=LIGHTING)


def lighting(image, coefficients):
    """Shifts the picture's colour along the principal components of natural colours.

    On values in 0-1, adds `EIGENVECTORS @ (coefficients * EIGENVALUES)` to every pixel, divides by `1 + LIGHTING` and
    clips to [0, 1].

    Args:
        image: float32 `[H, W, 3]`, RGB in 0-255.
        coefficients: float32 `[3]`, as from `sample_lighting`.

    Returns:
        float32 `[H, W, 3]`, RGB in 0-255.
    """
    shift = tf.linalg.matvec(tf.constant(EIGENVECTORS), coefficients * EIGENVALUES)
    return tf.clip_by_value((image + 255.0 * shift) / (1 + LIGHTING), 0.0, 255.0)
