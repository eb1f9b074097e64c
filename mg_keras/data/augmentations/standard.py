"""Random resized crop and horizontal flip: the part of the paper's augmentation that moves pixels."""

import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.augmentations import ops

AREA = (0.08, 1.0)  # of the photo's area
RATIO = (3 / 4, 4 / 3)  # width / height
TRIES = 10


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A random part of the photo, resized to a square, and its mirror image half of the time.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        size: int, side of the result in pixels.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[size, size, 3]`, RGB in 0-255.

    Raises:
        ValueError: `image` is not uint8 `[H, W, 3]`, or `size` is less than 1.
    """
    image = ops.whole_levels(image)
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    shape = tf.shape(image)
    top, left, height, width = sample_crop(shape[0], shape[1], crop_seed)
    crop = image[top : top + height, left : left + width]
    return tf.image.stateless_random_flip_left_right(resolutions.resize(crop, size, size), flip_seed)


def sample_crop(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    area: tuple = AREA,
    ratio: tuple = RATIO,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draws the part of a photo to keep, as torchvision's `RandomResizedCrop` does.

    Ten rectangles are drawn, each with its area uniform in `area` of the photo's and the logarithm of its width/height
    uniform in `ratio`; the first that fits is placed uniformly. If none fits, the largest centred rectangle with its
    width/height within `ratio` is kept. (`tf.image.stateless_sample_distorted_bounding_box` draws the ratio itself
    uniformly, and keeps the whole photo when nothing fits.)

    Args:
        height: int32 scalar, the photo's height in pixels.
        width: int32 scalar, the photo's width in pixels.
        seed: int32 or int64 `[2]`.
        area: the least and the largest share of the photo's area; numbers or float32 scalars.
        ratio: the least and the largest width/height; numbers or float32 scalars.

    Returns:
        int32 scalars `top`, `left`, `height`, `width`, in pixels.
    """
    shape_seed, place_seed = tf.unstack(tf.random.split(seed, 2))
    photo_height, photo_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)

    draws = tf.random.stateless_uniform([2, TRIES], shape_seed)
    areas = photo_height * photo_width * (area[0] + (area[1] - area[0]) * draws[0])
    ratios = tf.exp(tf.math.log(ratio[0]) + (tf.math.log(ratio[1]) - tf.math.log(ratio[0])) * draws[1])
    widths, heights = tf.round(tf.sqrt(areas * ratios)), tf.round(tf.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= photo_width) & (heights >= 1) & (heights <= photo_height)
    first = tf.argmax(fits)  # of booleans: the first True

    widest, tallest = tf.round(photo_height * ratio[1]), tf.round(photo_width / ratio[0])
    crop_height = tf.where(tf.reduce_any(fits), heights[first], tf.minimum(photo_height, tallest))
    crop_width = tf.where(tf.reduce_any(fits), widths[first], tf.minimum(photo_width, widest))

    room = tf.stack([photo_height - crop_height, photo_width - crop_width])
    place = tf.where(
        tf.reduce_any(fits), tf.floor(tf.random.stateless_uniform([2], place_seed) * (room + 1)), tf.floor(room / 2)
    )
    return tuple(tf.unstack(tf.cast(tf.concat([place, [crop_height, crop_width]], axis=0), tf.int32)))
