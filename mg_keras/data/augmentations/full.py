"""The paper's "full" augmentation: crop, flip, colour jitter and PCA lighting noise."""

import tensorflow as tf

from mg_keras.data.augmentations import ops, standard

JITTER = 0.3  # brightness, contrast and saturation factors are uniform in 1 ± JITTER
LIGHTING = 0.1  # standard deviation of the coefficient of each principal colour
# Principal components of ImageNet's RGB values in 0-1: one eigenvector a column, rows R, G, B.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
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
    image = ops.color_jitter(image, *ops.sample_jitter(jitter_seed, JITTER))
    return lighting(image, sample_lighting(lighting_seed))


def sample_lighting(seed: tf.Tensor) -> tf.Tensor:
    """Draws the coefficients of the lighting noise.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[3]`, one an eigenvalue, normal with mean 0 and standard deviation `LIGHTING`.
    """
    return tf.random.stateless_normal([3], seed, stddev=LIGHTING)


def lighting(image: tf.Tensor, coefficients: tf.Tensor) -> tf.Tensor:
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
