"""What takes detail from a photo: blur, few pixels, noise, JPEG. All take and give float32 `[H, W, 3]` RGB in 0-255."""

import tensorflow as tf

from mg_keras.data import resolutions

_HALVINGS = 4


def gaussian_blur(image: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Blurs with a Gaussian of deviation `sigma` pixels; at the border the mean is of the pixels that exist."""
    return _separable(image, lambda distance: tf.exp(-0.5 * (distance / sigma) ** 2))


def box_blur(image: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """The mean of the `2 * radius + 1` pixels around each, both ways, or of those that exist.

    The two outermost of them count in part where `radius` is not whole.
    """
    return _separable(image, lambda distance: tf.clip_by_value(radius + 1.0 - distance, 0.0, 1.0))


def motion_blur(image: tf.Tensor, down: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """The mean of 16 pictures evenly along a line from the photo to one moved up and left by so many pixels.

    What lies outside is the nearest pixel at the border. Each of four steps averages the picture with itself moved half
    as far as the step before, to whole pixels, which leaves all 16 in the mean.

    Args:
        image: float32 `[H, W, 3]`.
        down: float32 scalar, pixels; negative for the other way.
        right: float32 scalar, pixels; negative for the other way.
    """
    for step in range(_HALVINGS):
        share = 2**step / (2**_HALVINGS - 1)
        image = (image + _moved(image, *(tf.cast(tf.round(way * share), tf.int32) for way in (down, right)))) / 2
    return image


def coarse(image: tf.Tensor, factor: tf.Tensor, smooth: tf.Tensor) -> tf.Tensor:
    """Reduces both sides by `factor`, at least 1, and enlarges again: bilinearly if `smooth`, else in blocks."""
    height, width = tf.unstack(tf.shape(image)[:2])
    sides = [tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float32) / factor), tf.int32), 1) for side in (height, width)]
    small = resolutions.resize(image, *sides)
    return tf.cond(
        smooth,
        lambda: resolutions.resize(small, height, width),
        lambda: tf.image.resize(small, [height, width], "nearest"),
    )


def noise(image: tf.Tensor, sigma: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Adds normal noise of deviation `sigma` grey levels to each value, and clips."""
    return tf.clip_by_value(image + tf.random.stateless_normal(tf.shape(image), seed, stddev=sigma), 0.0, 255.0)


def jpeg(image: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """Encodes as a JPEG of `quality` 1-100 with colours at half the resolution and decodes it again, as PIL does."""
    levels = tf.cast(tf.round(image), tf.uint8)
    contents = tf.raw_ops.EncodeJpegVariableQuality(images=levels, quality=quality)
    return tf.cast(tf.io.decode_jpeg(contents, dct_method="INTEGER_ACCURATE"), tf.float32)


def _separable(image, weight):
    """Means along both axes; `weight` gives each pixel's from its distance in pixels."""
    # Matrix products: for such wide kernels several times as fast as convolutions of three channels.
    height, width = tf.unstack(tf.shape(image)[:2])
    rows = tf.matmul(_means(height, weight), tf.reshape(image, [height, width * 3]))
    columns = tf.reshape(tf.transpose(tf.reshape(rows, [height, width, 3]), [1, 0, 2]), [width, height * 3])
    columns = tf.matmul(_means(width, weight), columns)
    return tf.transpose(tf.reshape(columns, [width, height, 3]), [1, 0, 2])


def _means(side, weight):
    """float32 `[side, side]`, the weights of all pixels of a line in each new one."""
    place = tf.range(tf.cast(side, tf.float32))
    weights = weight(tf.abs(place[:, tf.newaxis] - place))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def _moved(image, down, right):
    """The picture whose pixel at (row, column) is the one at (row + down, column + right), or nearest to there."""
    for axis, way in enumerate((down, right)):
        side = tf.shape(image)[axis]
        image = tf.gather(image, tf.clip_by_value(tf.range(side) + way, 0, side - 1), axis=axis)
    return image
