"""Photos of the photo: its print, or a screen that shows it, photographed from aside in a cluttered place.

What a descriptor must see through to find planar objects: covers, packages, paintings. Every version has all of it,
each time otherwise: a part of the photo, nearly all, is lit from one side and shines; it is turned, seen from aside and
laid, smaller, onto a background with other things on it, of which some may cover the photo; exposure, colour of the
light, focus, noise and JPEG follow.
"""

import math

import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.augmentations import degradations, ops, overlays, standard, warps

AREA = (0.75, 1.0)  # of the photo's area
ASIDE = 0.25  # each corner moves inwards by up to this part of the sides
FAR_TURNED = 0.15  # so many are turned by up to 180 degrees either way, the others by up to 30
SIDES = (0.7, 1.0)  # of the canvas's; both are drawn near to each other
LIGHT, REFLECTION, REFLECTED = 0.5, 0.6, (0.05, 0.25)  # at most, and the width of what shines, of the side
COVERED = 0.25  # of the versions
EXPOSURE, TINT = (0.6, 1.3), 0.1
BLUR = (0.0005, 0.004)  # deviation, of the side
NOISE = (0.5, 8.0)  # deviation in grey levels
JPEG_QUALITY = (30, 95)


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A version of the photo as its print, or a screen that shows it, looks in another photo.

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
    if size < 1:
        raise ValueError(f"`size` must be at least 1 pixel. Received: {size}")
    crop_seed, map_seed, light_seed, ground_seed, cover_seed, camera_seed = tf.unstack(tf.random.split(seed, 6))
    height, width = tf.unstack(tf.shape(image)[:2])
    whole = tf.clip_by_value(tf.cast(width / height, tf.float32), 0.5, 2.0)
    top, left, height, width = standard.sample_crop(height, width, crop_seed, AREA, [0.8 * whole, 1.25 * whole])
    to_canvas, pixels = sample_map(width / height, tf.constant(size), map_seed)
    picture = resolutions.resize(image[top : top + height, left : left + width], pixels, pixels)
    scene = warps.lay(_lit(picture, light_seed), to_canvas, _ground(ground_seed, size), tf.constant(size))
    which_seed, cover_seed = tf.unstack(tf.random.split(cover_seed, 2))
    covered = tf.random.stateless_uniform([], which_seed) < COVERED
    scene = tf.cond(covered, lambda: overlays.shapes(scene, cover_seed), lambda: scene)
    return tf.ensure_shape(_camera(scene, camera_seed), [size, size, 3])


def sample_map(aspect: tf.Tensor, size: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws where the print is in the new photo.

    Args:
        aspect: float scalar, width / height of the photo, which is a square of some pixels by now.
        size: int32 scalar, pixels of the canvas.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[3, 3]`, the map as in `warps`; int32 scalar, about how many pixels a side the print will have there.
    """
    turn_seed, corner_seed, size_seed = tf.unstack(tf.random.split(seed, 3))
    turn, far = tf.unstack(tf.random.stateless_uniform([2], turn_seed, [-1.0, 0.0], [1.0, 1.0]))
    angle = turn * tf.where(far < FAR_TURNED, math.pi, math.radians(30))
    small, stretch, *place = tf.unstack(tf.random.stateless_uniform([4], size_seed))
    sides = SIDES[0] + (SIDES[1] - SIDES[0]) * tf.stack([small, tf.clip_by_value(small + 0.4 * stretch - 0.2, 0, 1)])
    maps = [
        warps.turn(angle, tf.cast(aspect, tf.float32), tf.constant(1.0)),
        warps.corners(tf.random.stateless_uniform([4, 2], corner_seed, maxval=ASIDE)),
        warps.inset(sides, tf.stack(place)),
    ]
    joined = maps[2] @ maps[1] @ maps[0]
    side = tf.cast(tf.round(warps.size_in_the_middle(joined) * tf.cast(size, tf.float32)), tf.int32)
    return joined, tf.clip_by_value(side, 1, size)


def _lit(picture, seed):
    """Lit from one side, with a bright band somewhere."""
    draws = tf.random.stateless_uniform([6], seed)
    side = tf.cast(tf.shape(picture)[0], tf.float32)
    place = (tf.range(side) + 0.5) / side * 2 - 1

    def along(turn):
        """-1 to 1 across the picture, in a direction."""
        angle = 2 * math.pi * turn
        return (tf.cos(angle) * place + tf.sin(angle) * place[:, tf.newaxis])[..., tf.newaxis] / math.sqrt(2)

    width = REFLECTED[0] + (REFLECTED[1] - REFLECTED[0]) * draws[2]
    band = REFLECTION * draws[3] ** 2 * tf.exp(-(((along(draws[1]) - 1.4 * draws[4] + 0.7) / width) ** 2))
    light = 1 + LIGHT * draws[5] * along(draws[0])
    return tf.clip_by_value(picture * light + 255.0 * band, 0.0, 255.0)


def _ground(seed, size):
    """float32 `[size, size, 3]`: textures of two sizes and shapes, which stand for a table and what lies on it."""
    coarse_seed, fine_seed, size_seed, mix_seed, shape_seed = tf.unstack(tf.random.split(seed, 5))
    coarse, fine = tf.unstack(tf.random.stateless_uniform([2], size_seed))
    share, dark, colourful = tf.unstack(tf.random.stateless_uniform([3], mix_seed))

    def texture(side, texture_seed):
        side = tf.cast(side, tf.int32)
        colours = 255.0 * tf.random.stateless_uniform(tf.stack([side, side, 3]), texture_seed)
        return resolutions.resize(ops.saturation(colours, colourful), size, size)

    pattern = (1 - 0.6 * share) * texture(1 + 6 * coarse, coarse_seed) + 0.6 * share * texture(
        8.0 * 8.0**fine, fine_seed
    )
    return overlays.shapes((0.4 + 0.6 * dark) * pattern, shape_seed)


def _camera(scene, seed):
    light_seed, blur_seed, strength_seed, noise_seed, jpeg_seed = tf.unstack(tf.random.split(seed, 5))
    exposure, *tint = tf.unstack(tf.random.stateless_uniform([4], light_seed))
    tint = 1 - TINT + 2 * TINT * tf.stack(tint)
    scene = ops.brightness(scene, (EXPOSURE[0] + (EXPOSURE[1] - EXPOSURE[0]) * exposure) * tint)
    sigma = tf.cast(tf.shape(scene)[0], tf.float32) * tf.random.stateless_uniform([], blur_seed, *BLUR)
    scene = degradations.gaussian_blur(scene, sigma)
    scene = degradations.noise(scene, tf.random.stateless_uniform([], strength_seed, *NOISE), noise_seed)
    low, high = JPEG_QUALITY
    return degradations.jpeg(scene, tf.random.stateless_uniform([], jpeg_seed, low, high + 1, tf.int32))
