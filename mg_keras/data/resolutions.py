"""How a photo is brought to a test resolution s* (sections 3.5, 4.2), in plain TensorFlow operations.

Everything here runs in a `tf.data` map and in an exported graph, on photos of any size. Reducing uses the triangle
filter, widened by the reduction factor, which is what PIL calls BILINEAR and what the paper's networks were trained
and tested on; `tf.image.resize` without antialiasing differs from it by tens of grey levels.
"""

from collections.abc import Callable

import tensorflow as tf

from mg_keras.preparations import ASPECT, SQUASH, checked


def resize(image: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Resizes a photo as PIL's `Image.resize(..., BILINEAR)` does, without rounding to whole grey levels.

    Args:
        image: `[H, W, 3]`, uint8 or float, any range.
        height: int or int32 scalar tensor, pixels, at least 1.
        width: int or int32 scalar tensor, pixels, at least 1.

    Returns:
        float32 `[height, width, 3]`, in the range of `image`.

    Raises:
        ValueError: `image` does not have three dimensions, or a side is less than 1.

    Example:

    >>> resize(tf.zeros([375, 500, 3], tf.uint8), 224, 224).shape
    TensorShape([224, 224, 3])
    """
    return _resized_window(_photo(image), (height, width), (0, 0), (height, width))


def square(image: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Resizes the smallest side to `size * 256 / 224`, rounded, and crops the centre `size` × `size`.

    Only the part that is kept is computed, so a panorama costs no more memory than any other photo.

    Args:
        image: `[H, W, 3]` RGB, uint8 or float.
        size: int or int32 scalar tensor, pixels, at least 1.

    Returns:
        float32 `[size, size, 3]`, in the range of `image`.

    Raises:
        ValueError: `image` does not have three dimensions, or `size` is less than 1.

    Example:

    >>> square(tf.zeros([375, 500, 3], tf.uint8), 224).shape
    TensorShape([224, 224, 3])
    """
    _check_side("size", size)
    image = _photo(image)
    height, width = _sides(image)
    smallest = tf.minimum(height, width)
    target = _rounded_ratio(size, 256, 224)
    scaled = _rounded_ratio(height, target, smallest), _rounded_ratio(width, target, smallest)
    return _resized_window(image, scaled, ((scaled[0] - size) // 2, (scaled[1] - size) // 2), (size, size))


def largest_side(image: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Resizes the largest side to `size` and the other in proportion; nothing is cropped.

    Args:
        image: `[H, W, 3]` RGB, uint8 or float.
        size: int or int32 scalar tensor, pixels, at least 1.

    Returns:
        float32 `[height, width, 3]`, in the range of `image`: the larger of the two is `size`, the other is rounded
        to the nearest pixel (halves up) and is at least 1.

    Raises:
        ValueError: `image` does not have three dimensions, or `size` is less than 1.

    Example:

    >>> largest_side(tf.zeros([375, 500, 3], tf.uint8), 800).shape
    TensorShape([600, 800, 3])
    """
    _check_side("size", size)
    image = _photo(image)
    height, width = _sides(image)
    largest = tf.maximum(height, width)
    return resize(image, *(tf.maximum(1, _rounded_ratio(side, size, largest)) for side in (height, width)))


def squashed(image: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Resizes to `size` × `size`; nothing is cropped, and what is not square is distorted.

    Args:
        image: `[H, W, 3]` RGB, uint8 or float.
        size: int or int32 scalar tensor, pixels, at least 1.

    Returns:
        float32 `[size, size, 3]`, in the range of `image`.

    Raises:
        ValueError: `image` does not have three dimensions, or `size` is less than 1.

    Example:

    >>> squashed(tf.zeros([375, 500, 3], tf.uint8), 224).shape
    TensorShape([224, 224, 3])
    """
    return resize(image, size, size)


def whole(preparation: str) -> Callable:
    """The way whole photos are prepared, without a crop: `squashed` or `largest_side`.

    Raises:
        ValueError: `preparation` is none of `mg_keras.preparations`.
    """
    return squashed if checked(preparation) == SQUASH else largest_side


def for_resolution(resolution: int, train_resolution: int, preparation: str = ASPECT) -> Callable:
    """The way photos are prepared at a test resolution.

    Args:
        resolution: int, pixels, s*.
        train_resolution: int, pixels, the side of the training crops.
        preparation: of `mg_keras.preparations`, the network's.

    Returns:
        `squashed` where the network wants that; else `square` up to the training resolution, `largest_side` above it.
        All take `(image, size)`.

    Raises:
        ValueError: a resolution is less than 1, or `preparation` is none.

    Example:

    >>> for_resolution(500, train_resolution=224).__name__
    'largest_side'
    """
    _check_side("resolution", resolution)
    _check_side("train_resolution", train_resolution)
    prepare = whole(preparation)
    return square if prepare is largest_side and resolution <= train_resolution else prepare


def reduction(size: tf.Tensor, resolution: tf.Tensor | int, prepare: Callable) -> tf.Tensor:
    """By what a JPEG may be reduced while it is decoded, which is quicker, before it is brought to a resolution.

    What is left is at least twice as large on each side as what is wanted of it. The model in the package then gives
    descriptors of a cosine of 0.9997 on average, 0.996 at least, with those of the photos decoded in full (150 photos
    of 0.6 to 8 megapixels at 224 px).

    Args:
        size: int32 [2], height and width of the photo.
        resolution: int or int32 scalar tensor, pixels, s*; 0 is the photo as it is.
        prepare: `squashed`, `square` or `largest_side`, by which it is brought there.

    Returns:
        int32 scalar: 1, 2, 4 or 8.
    """
    wanted = tf.convert_to_tensor(resolution, tf.int32)
    if prepare is square:
        wanted = _rounded_ratio(wanted, 256, 224)
    side = tf.reduce_max(size) if prepare is largest_side else tf.reduce_min(size)
    spare = tf.where(wanted > 0, side // (2 * tf.maximum(wanted, 1)), 1)
    return tf.where(spare >= 8, 8, tf.where(spare >= 4, 4, tf.where(spare >= 2, 2, 1)))


def _resized_window(image, scaled, offset, window):
    """The `window` (height, width) at `offset` (top, left) of the photo resized to `scaled` (height, width)."""
    for name, side in zip(("height", "width"), window, strict=True):
        _check_side(name, side)
    height, width = _sides(image)
    rows = tf.reshape(image, [height, width * 3])
    rows = _resized_rows(rows, scaled[0], offset[0], window[0])
    columns = tf.transpose(tf.reshape(rows, [window[0], width, 3]), [1, 0, 2])
    columns = _resized_rows(tf.reshape(columns, [width, window[0] * 3]), scaled[1], offset[1], window[1])
    return tf.transpose(tf.reshape(columns, [window[1], window[0], 3]), [1, 0, 2])


def _resized_rows(rows, scaled, offset, window):
    """`window` rows, from row `offset`, of the matrix resized to `scaled` rows."""
    # The operation behind tf.image.resize(antialias=True): called directly, it can leave out what a crop would drop. It
    # adds whole rows at a time but columns value by value, so rows and then, transposed, columns take a third less.
    scale = tf.cast(scaled, tf.float32) / tf.cast(tf.shape(rows)[0], tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=rows[tf.newaxis, :, tf.newaxis],
        size=tf.stack([window, 1]),
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([-tf.cast(offset, tf.float32), 0.0]),
        kernel_type="triangle",
        antialias=True,
    )[0, :, 0]


def _rounded_ratio(value, numerator, denominator):
    """`value * numerator / denominator` to the nearest whole number, halves up, free of floating point."""
    return (2 * value * numerator + denominator) // (2 * denominator)


def _photo(image):
    image = tf.convert_to_tensor(image)
    if image.shape.rank not in (None, 3):
        raise ValueError(f"`image` must have the shape [height, width, 3]. Received: shape {image.shape}")
    return image


def _sides(image):
    shape = tf.shape(image)
    return shape[0], shape[1]


def _check_side(name, side):
    if not tf.is_tensor(side) and side < 1:
        raise ValueError(f"`{name}` must be at least 1 pixel. Received: {side}")
