"""AutoAugment's published ImageNet policy (Cubuk et al. 2019; section 4.1), after crop and flip.

One of 25 sub-policies is drawn for each picture. It has two operations, each applied with its own probability, at its
own magnitude; where a magnitude has a direction (rotation, shear, and enhancement factors 1 ± x) its sign is drawn too.
The operations are PIL's, on whole grey levels as PIL has them. What a rotation or a shear leaves uncovered is
mid-grey (128), and both take the nearest pixel, PIL's default.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mg_keras.data.augmentations import ops, standard

FILL = 128.0
# Two operations a line: name, probability, magnitude 0-9.
POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Random resized crop, horizontal flip, then one sub-policy of `POLICY`.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        size: int, side of the result in pixels, at least 3 (Sharpness looks at 3 × 3 pixels).
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[size, size, 3]`, RGB in 0-255, whole numbers.

    Raises:
        ValueError: `image` is not uint8 `[H, W, 3]`, or `size` is less than 3.
    """
    if size < 3:
        raise ValueError(f"`size` must be at least 3 pixels for autoaugment. Received: {size}")
    crop_seed, policy_seed = tf.unstack(tf.random.split(seed, 2))
    image = tf.cast(tf.round(standard.augment(image, size, crop_seed)), tf.uint8)
    return tf.cast(apply(image, *sample_operations(policy_seed)), tf.float32)


def sample_operations(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a sub-policy, which of its two operations to apply, and their signs.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        `operations`, int32 `[2]`, positions in `OPERATIONS`, or `len(OPERATIONS)` for one that is not applied;
        `values`, float32 `[2]`, each in its operation's unit.
    """
    policy_seed, apply_seed, sign_seed = tf.unstack(tf.random.split(seed, 3))
    policy = tf.random.stateless_uniform([], policy_seed, maxval=len(POLICY), dtype=tf.int32)
    applied = tf.random.stateless_uniform([2], apply_seed) < tf.constant(_PROBABILITIES)[policy]
    negative = (tf.random.stateless_uniform([2], sign_seed) < 0.5) & tf.constant(_SIGNED)[policy]
    operations = tf.where(applied, tf.constant(_POSITIONS)[policy], len(OPERATIONS))
    values = tf.constant(_VALUES)[policy]
    return operations, tf.where(negative, -values, values)


def apply(image: tf.Tensor, operations: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Applies operations one after the other; only those named are computed.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        operations: int32 `[N]`, as from `sample_operations`.
        values: float32 `[N]`, as from `sample_operations`.

    Returns:
        uint8 `[H, W, 3]`.
    """
    for position, value in zip(tf.unstack(operations), tf.unstack(values), strict=True):
        branches = [
            lambda image=image, value=value, function=operation.function: function(image, value)
            for operation in OPERATIONS.values()
        ]
        image = tf.switch_case(position, [*branches, lambda image=image: image])
    return image


def shear_x(image: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """Moves each row left by `slope` times its distance from the top."""
    return _warp(image, [1.0, slope, 0.5 * slope, 0.0, 1.0, 0.0])


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns the picture counterclockwise about its centre."""
    angle = degrees * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    shape = tf.cast(tf.shape(image), tf.float32)
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    return _warp(image, [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest `bits` bits of every value."""
    shift = tf.cast(8 - bits, tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the values at or above `threshold`."""
    return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)


def invert(image: tf.Tensor, _: tf.Tensor | None) -> tf.Tensor:
    """The negative."""
    return 255 - image


def autocontrast(image: tf.Tensor, _: tf.Tensor | None) -> tf.Tensor:
    """Stretches each channel to 0-255."""
    values = tf.cast(image, tf.int32)
    low, high = tf.reduce_min(values, axis=[0, 1]), tf.reduce_max(values, axis=[0, 1])
    stretched = (values - low) * 255 // tf.maximum(high - low, 1)
    return tf.cast(tf.where(high > low, stretched, values), tf.uint8)


def equalize(image: tf.Tensor, _: tf.Tensor | None) -> tf.Tensor:
    """Maps each channel so that its values are spread evenly, as `PIL.ImageOps.equalize` does."""
    channel_values = tf.cast(image, tf.int32) + 256 * tf.range(3)  # one histogram of 768 bins for the three channels
    histogram = tf.reshape(tf.math.bincount(tf.reshape(channel_values, [-1]), minlength=768, maxlength=768), [3, 256])
    below = tf.cumsum(histogram, axis=1, exclusive=True)
    highest = tf.reduce_max(tf.cast(image, tf.int32), axis=[0, 1])
    step = tf.gather(below, highest, batch_dims=1)[:, tf.newaxis] // 255
    mapped = (step // 2 + below) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(mapped, 255), tf.range(256))
    return tf.gather(tf.cast(tf.reshape(table, [-1]), tf.uint8), channel_values)


def color(image: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Saturation times `1 + offset`."""
    return _enhance(ops.saturation, image, offset)


def contrast(image: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Contrast times `1 + offset`."""
    return _enhance(ops.contrast, image, offset)


def sharpness(image: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Moves away from a smoothed picture (3 × 3, centre weight 5) by `offset`; the outermost pixels stay."""
    values = tf.cast(image, tf.float32)
    kernel = np.ones((3, 3, 3, 1), np.float32) / 13
    kernel[1, 1] *= 5
    smooth = tf.nn.depthwise_conv2d(values[tf.newaxis], kernel, strides=[1, 1, 1, 1], padding="VALID")[0]
    detail = tf.pad(values[1:-1, 1:-1] - tf.round(smooth), [[1, 1], [1, 1], [0, 0]])
    return tf.cast(tf.clip_by_value(values + offset * detail, 0.0, 255.0), tf.uint8)


def _enhance(adjust, image, offset):
    # A plain cast: PIL truncates.
    return tf.cast(adjust(tf.cast(image, tf.float32), 1 + offset), tf.uint8)


def _warp(image, matrix):
    """Takes the pixel at column `a x + b y + c`, row `d x + e y + f` for each column x and row y, both from 0."""
    return keras.ops.image.affine_transform(
        image,
        tf.stack([*matrix, 0.0, 0.0]),
        interpolation="nearest",
        fill_mode="constant",
        fill_value=FILL,
        data_format="channels_last",
    )


class Operation(NamedTuple):
    """What a name in `POLICY` stands for: `function(image, value)`, its value at each magnitude 0-9, its direction."""

    function: Callable
    values: np.ndarray
    signed: bool = False


_UNUSED = np.zeros(10)
OPERATIONS = {
    "ShearX": Operation(shear_x, np.linspace(0, 0.3, 10), signed=True),
    "Rotate": Operation(rotate, np.linspace(0, 30, 10), signed=True),
    "Posterize": Operation(posterize, np.round(np.linspace(8, 4, 10))),
    "Solarize": Operation(solarize, np.linspace(256, 0, 10)),
    "AutoContrast": Operation(autocontrast, _UNUSED),
    "Equalize": Operation(equalize, _UNUSED),
    "Invert": Operation(invert, _UNUSED),
    "Color": Operation(color, np.linspace(0, 0.9, 10), signed=True),
    "Contrast": Operation(contrast, np.linspace(0, 0.9, 10), signed=True),
    "Sharpness": Operation(sharpness, np.linspace(0, 0.9, 10), signed=True),
}

# POLICY as arrays [25, 2], for looking up inside the graph.
_POSITIONS = np.array([[list(OPERATIONS).index(name) for name, _, _ in pair] for pair in POLICY], np.int32)
_PROBABILITIES = np.array([[probability for _, probability, _ in pair] for pair in POLICY], np.float32)
_VALUES = np.array([[OPERATIONS[name].values[level] for name, _, level in pair] for pair in POLICY], np.float32)
_SIGNED = np.array([[OPERATIONS[name].signed for name, _, _ in pair] for pair in POLICY])
