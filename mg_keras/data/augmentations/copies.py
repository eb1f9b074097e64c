"""What people's edits do to photos, for descriptors that find copies: crop, blur, text, another background and so on.

Each edit of `PROBABILITIES` is drawn for itself, so that about half of the versions combine several. Their order is
fixed: a part of the photo, mirrored or not, is resized; its colours and its detail are edited; it is laid on a canvas,
by one map for all that moves it (turned, seen from aside, shrunk into a border or onto a background); text and shapes
go over it; JPEG is last. Only the edits that are drawn are computed.
"""

import math

import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.apart import apart
from mg_keras.data.augmentations import degradations, ops, overlays, standard, warps

CROPPED_AREA = (0.08, 0.7)  # of the photo's area
WHOLE_AREA = (0.85, 1.0)  # of a photo that is not cropped: no two versions are cut alike
STRETCH = 2.0  # width / height changes by 1 / STRETCH to STRETCH, uniform on the scale of logarithms
MIRRORED = 0.5

JITTER = 0.4  # brightness, contrast and saturation factors are uniform in 1 ± JITTER
TINT = 0.25  # and then each channel's in 1 ± TINT
DARKER, BRIGHTER = (0.3, 0.7), (1.4, 2.5)
CONTRAST, GAMMA = 2.5, 2.5  # a factor and an exponent, drawn as the stretch is
# deviation, of the picture's side; a network that is used at twice the resolution meets blur of half as much there, in
# as many pixels
BLUR = (0.005, 0.06)
LONGEST_MOTION = 0.1  # of the picture's side
COARSER = (2.0, 8.0)  # times fewer pixels a side
NOISE = (4.0, 30.0)  # deviation in grey levels
JPEG_QUALITY = (5, 50)

ASIDE = 0.25  # each corner moves inwards by up to this part of the sides
BORDER = (0.03, 0.2)  # of the side, on both sides of it
ON_BACKGROUND = (0.5, 0.9)  # side of the photo, of the background's


def augment(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A version of the photo as people make them.

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
    choice_seed, crop_seed, map_seed, edit_seed = tf.unstack(tf.random.split(seed, 4))
    drawn = sample_edits(choice_seed)
    names = (*_EDITS, *_OVERLAYS, "background")
    edit_seeds = dict(zip(names, tf.unstack(tf.random.split(edit_seed, len(names))), strict=True))
    side = tf.constant(size)

    top, left, height, width = sample_window(*tf.unstack(tf.shape(image)[:2]), drawn, crop_seed)
    moved = tf.reduce_any([drawn[name] for name in _MOVES])
    to_canvas, pixels = tf.cond(
        moved,
        lambda: sample_map(width / height, side, tf.stack([drawn[name] for name in _MOVES]), map_seed),
        lambda: (tf.eye(3), side),
    )
    picture = resolutions.resize(image[top : top + height, left : left + width], pixels, pixels)
    picture = tf.cond(drawn["mirror"], lambda: tf.reverse(picture, [1]), lambda: picture)
    picture = _edited(picture, _EDITS, drawn, edit_seeds)
    picture = tf.cond(
        moved, lambda: _lay_on_background(picture, to_canvas, side, edit_seeds["background"]), lambda: picture
    )
    return tf.ensure_shape(_edited(picture, _OVERLAYS, drawn, edit_seeds), [size, size, 3])


def sample_edits(seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """Draws which edits a version has.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        {name: bool scalar}, each true with its probability in `PROBABILITIES`, whatever the others are.
    """
    draws = tf.random.stateless_uniform([len(PROBABILITIES)], seed)
    drawn = draws < tf.constant(list(PROBABILITIES.values()))
    return dict(zip(PROBABILITIES, tf.unstack(drawn), strict=True))


def sample_window(
    height: tf.Tensor, width: tf.Tensor, drawn: dict[str, tf.Tensor], seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draws the part of the photo that a version shows.

    Without "crop" that is nearly all of it, but no more than twice as wide as high or the other way round.

    Args:
        height: int32 scalar, the photo's height in pixels.
        width: int32 scalar, the photo's width in pixels.
        drawn: as from `sample_edits`; "crop" and "stretch" count.
        seed: int32 or int64 `[2]`.

    Returns:
        int32 scalars `top`, `left`, `height`, `width`, in pixels.
    """
    crop_seed, stretch_seed = tf.unstack(tf.random.split(seed, 2))
    whole = tf.clip_by_value(tf.cast(width / height, tf.float32), 0.5, 2.0)
    stretch = tf.where(drawn["stretch"], _factor(stretch_seed, STRETCH), 1.0)
    area = [tf.where(drawn["crop"], cropped, kept) for cropped, kept in zip(CROPPED_AREA, WHOLE_AREA, strict=True)]
    ratio = [
        stretch * tf.where(drawn["crop"], cropped, whole * near)
        for cropped, near in zip(standard.RATIO, (0.95, 1.05), strict=True)
    ]
    return standard.sample_crop(height, width, crop_seed, area, ratio)


@apart
def sample_map(aspect: tf.Tensor, size: tf.Tensor, drawn: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws how the photo lies on its canvas.

    Args:
        aspect: float scalar, width / height of the photo, which is a square of `size` pixels by now.
        size: int32 scalar, pixels of the canvas.
        drawn: bool `[4]`, which of rotation, perspective, border and background.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[3, 3]`, the map as in `warps`; int32 scalar, about how many pixels a side the photo will have there.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    turn, fit = tf.unstack(tf.random.stateless_uniform([2], seeds[0]))
    # half of them by up to 45 degrees either way, the rest by any angle
    angle = math.pi * tf.where(turn < 0.5, turn - 0.25, 4 * turn - 3)
    border, which = tf.unstack(tf.random.stateless_uniform([2], seeds[2]))
    scale = 1 - 2 * (BORDER[0] + (BORDER[1] - BORDER[0]) * border)
    # all around, above and below, left and right
    borders = tf.stack([tf.where((which > 1 / 3) & (which < 2 / 3), 1.0, scale), tf.where(which > 2 / 3, 1.0, scale)])
    small, *place = tf.unstack(tf.random.stateless_uniform([3], seeds[3]))
    small = ON_BACKGROUND[0] + (ON_BACKGROUND[1] - ON_BACKGROUND[0]) * small
    maps = [
        warps.turn(angle, tf.cast(aspect, tf.float32), fit),
        warps.corners(tf.random.stateless_uniform([4, 2], seeds[1], maxval=ASIDE)),
        warps.inset(borders, tf.constant([0.5, 0.5])),
        warps.inset(tf.stack([small, small]), tf.stack(place)),
    ]
    joined = tf.eye(3)
    for position, one in enumerate(maps):
        joined = tf.where(drawn[position], one, tf.eye(3)) @ joined
    side = tf.cast(tf.round(warps.size_in_the_middle(joined) * tf.cast(size, tf.float32)), tf.int32)
    return joined, tf.clip_by_value(side, 1, size)


@apart
def _lay_on_background(picture, to_canvas, size, seed):
    return warps.lay(picture, to_canvas, warps.sample_background(picture, seed), size)


@apart
def _jitter(picture, seed):
    jitter_seed, tint_seed = tf.unstack(tf.random.split(seed, 2))
    picture = ops.color_jitter(picture, *ops.sample_jitter(jitter_seed, JITTER))
    return ops.brightness(picture, tf.random.stateless_uniform([3], tint_seed, 1 - TINT, 1 + TINT))


@apart
def _grey(picture, seed):
    del seed
    return ops.saturation(picture, 0.0)


@apart
def _brightness(picture, seed):
    darker, along = tf.unstack(tf.random.stateless_uniform([2], seed))
    low, high = (tf.where(darker < 0.5, dark, bright) for dark, bright in zip(DARKER, BRIGHTER, strict=True))
    return ops.brightness(picture, low + (high - low) * along)


@apart
def _contrast(picture, seed):
    return ops.contrast(picture, _factor(seed, CONTRAST))


@apart
def _gamma(picture, seed):
    return ops.gamma(picture, _factor(seed, GAMMA))


@apart
def _blur(picture, seed):
    """Gaussian (0.6), box of the same deviation (0.2), or motion (0.2)."""
    kind, strength, way = tf.unstack(tf.random.stateless_uniform([3], seed))
    side = tf.cast(tf.shape(picture)[0], tf.float32)
    sigma = side * (BLUR[0] + (BLUR[1] - BLUR[0]) * strength)
    length, angle = side * LONGEST_MOTION * (0.2 + 0.8 * strength), 2 * math.pi * way
    return tf.switch_case(
        tf.cast(kind >= 0.6, tf.int32) + tf.cast(kind >= 0.8, tf.int32),
        [
            lambda: degradations.gaussian_blur(picture, sigma),
            lambda: degradations.box_blur(picture, math.sqrt(3) * sigma),
            lambda: degradations.motion_blur(picture, length * tf.sin(angle), length * tf.cos(angle)),
        ],
    )


@apart
def _coarse(picture, seed):
    factor, smooth = tf.unstack(tf.random.stateless_uniform([2], seed))
    return degradations.coarse(picture, COARSER[0] * (COARSER[1] / COARSER[0]) ** factor, smooth < 0.5)


@apart
def _noise(picture, seed):
    strength_seed, noise_seed = tf.unstack(tf.random.split(seed, 2))
    return degradations.noise(picture, tf.random.stateless_uniform([], strength_seed, *NOISE), noise_seed)


@apart
def _jpeg(picture, seed):
    low, high = JPEG_QUALITY
    return degradations.jpeg(picture, tf.random.stateless_uniform([], seed, low, high + 1, tf.int32))


def _factor(seed, k):
    """float32 scalar, 1 / k to k, uniform on the scale of logarithms."""
    return k ** tf.random.stateless_uniform([], seed, -1.0, 1.0)


def _edited(picture, edits, drawn, seeds):
    for name, edit in edits.items():
        picture = tf.cond(
            drawn[name],
            lambda picture=picture, edit=edit, seed=seeds[name]: edit(picture, seed),
            lambda picture=picture: picture,
        )
    return picture


_EDITS = {
    "jitter": _jitter,
    "grey": _grey,
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
    "blur": _blur,
    "coarse": _coarse,
    "noise": _noise,
}
_MOVES = ("rotation", "perspective", "border", "background")
_OVERLAYS = {"text": overlays.text, "shapes": overlays.shapes, "jpeg": _jpeg}

PROBABILITIES = {
    "crop": 0.6,
    "mirror": 0.5,
    "stretch": 0.08,
    "jitter": 0.25,
    "grey": 0.08,
    "brightness": 0.1,
    "contrast": 0.06,
    "gamma": 0.06,
    "blur": 0.25,
    "coarse": 0.08,
    "noise": 0.06,
    "rotation": 0.15,
    "perspective": 0.12,
    "border": 0.06,
    "background": 0.08,
    "text": 0.12,
    "shapes": 0.1,
    "jpeg": 0.2,
}
"""How often each edit is made.

Beside crop and mirror that is 1.85 of them on average: 13 % of versions have none, 57 % several.
"""
