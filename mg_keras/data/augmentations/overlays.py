"""Text and emoji-like shapes over a photo, from banks of small masks that Pillow draws once.

A mask has two layers that never overlap: 0 is the glyphs of a text or the body of a shape, 1 what sets them off: an
outline or a box behind a text, the features of a face.
"""

import functools
import math

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from mg_keras.data.apart import apart
from mg_keras.data.augmentations import warps

MOST = 5  # overlays of a kind on a photo
TEXT_HEIGHT = (0.07, 0.3)  # of the picture's side, with the room around the glyphs
SHAPE_HEIGHT = (0.1, 0.45)

_TEXT_PIXELS, _SHAPE_PIXELS = 48, 64
# none of those that the strong edits of the measurement write
_TEXTS = (
    *("LOL", "wow!", "happy birthday", "NEW", "50% off", "me & you", "Monday again", "@photo_club", "#summer", "OMG"),
    *("breaking", "click here", "SOLD", "best day ever", "12:45", "No. 1", "why not?", "(c) 2024", "Live", "TOP 10"),
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!?&%#@ "


@apart
def text(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Writes up to `MOST` texts over a photo, half of them white or black, most nearly level and opaque.

    Args:
        image: float32 `[H, W, 3]`, RGB in 0-255.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[H, W, 3]`.
    """
    return _scatter(image, seed, text_bank(), TEXT_HEIGHT, math.radians(30), plain=0.5)


@apart
def shapes(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Lays up to `MOST` faces, hearts, arrows and the like over a photo, in any colours; as `text` does."""
    return _scatter(image, seed, shape_bank(), SHAPE_HEIGHT, math.radians(60), plain=0.1)


def stamp(
    image: tf.Tensor,
    mask: tf.Tensor,
    main: tf.Tensor,
    other: tf.Tensor,
    opacity: tf.Tensor,
    centre: tf.Tensor,
    height: tf.Tensor,
    angle: tf.Tensor,
) -> tf.Tensor:
    """Lays one mask over a photo.

    Args:
        image: float32 `[H, W, 3]`, RGB in 0-255.
        mask: float32 `[h, w, 2]`, in 0-1, layers as above.
        main: float32 `[3]`, colour of layer 0.
        other: float32 `[3]`, colour of layer 1.
        opacity: float32 scalar, 0-1.
        centre: float32 `[2]`, x and y of the mask's middle on the photo, in pixels.
        height: int32 scalar, to which the mask is resized, in pixels; its width follows.
        angle: float32 scalar, radians, clockwise.

    Returns:
        float32 `[H, W, 3]`.
    """
    ratio = tf.cast(tf.shape(mask)[1] / tf.shape(mask)[0], tf.float32)
    width = tf.maximum(tf.cast(tf.round(tf.cast(height, tf.float32) * ratio), tf.int32), 1)
    mask = tf.image.resize(mask, [height, width], antialias=True)
    size = tf.cast(tf.stack([width, height]), tf.float32)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    # Only the part of the photo that the mask may reach is computed.
    reach = tf.abs(tf.stack([cosine, sine])) * size[0] / 2 + tf.abs(tf.stack([sine, cosine])) * size[1] / 2 + 1
    sides = tf.shape(image)[1::-1]
    first = tf.clip_by_value(tf.cast(tf.floor(centre - reach), tf.int32), 0, sides - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil(centre + reach), tf.int32), first + 1, sides)
    upright = tf.stack([tf.stack([cosine, sine, 0.0]), tf.stack([-sine, cosine, 0.0]), tf.constant([0.0, 0.0, 1.0])])
    from_centre = warps.shift(*tf.unstack(tf.cast(first, tf.float32) - centre))
    to_mask = warps.shift(*tf.unstack(size / 2)) @ upright @ from_centre
    layers = opacity * warps.project(mask, to_mask, last[1] - first[1], last[0] - first[0])
    under = image[first[1] : last[1], first[0] : last[0]]
    change = layers[..., :1] * (main - under) + layers[..., 1:] * (other - under)
    paddings = tf.stack([tf.stack([first[1], sides[1] - last[1]]), tf.stack([first[0], sides[0] - last[0]]), [0, 0]])
    return tf.ensure_shape(image + tf.pad(change, paddings), image.shape)


@functools.cache
def text_bank() -> tuple[np.ndarray, np.ndarray]:
    """Texts, by Pillow's built-in font: half of them words, half letters at random, half outlined, half in a box.

    Returns:
        (masks, widths): uint8 `[N, 48, W, 2]`, 0-255, each filled up with zeros on its right, and int32 `[N]`, the
        widths that hold something.
    """
    random = np.random.default_rng(0)
    strings = ["".join(random.choice(list(_LETTERS), random.integers(2, 13))).strip() or "a" for _ in _TEXTS]
    font = ImageFont.load_default(_TEXT_PIXELS * 2 // 3)
    masks = [_text_mask(string, font, boxed=number % 2) for number, string in enumerate((*_TEXTS, *strings))]
    widths = np.array([mask.shape[1] for mask in masks], np.int32)
    return np.stack([np.pad(mask, ((0, 0), (0, widths.max() - mask.shape[1]), (0, 0))) for mask in masks]), widths


@functools.cache
def shape_bank() -> tuple[np.ndarray, np.ndarray]:
    """Shapes, as `text_bank` gives texts: uint8 `[N, 64, 64, 2]` and int32 `[N]`, each 64."""
    masks = np.stack([_shape_mask(draw) for draw in _SHAPES])
    return masks, np.full(len(masks), _SHAPE_PIXELS, np.int32)


def _scatter(image, seed, bank, heights, turn, plain):
    """`image` with 1 to `MOST` masks of a bank, drawn at random; `plain` of them are white or black."""
    masks, widths = (tf.constant(values) for values in bank)
    side = tf.cast(tf.reduce_min(tf.shape(image)[:2]), tf.float32)
    sides = tf.cast(tf.shape(image)[1::-1], tf.float32)
    count_seed, draws_seed = tf.unstack(tf.random.split(seed, 2))
    count = tf.random.stateless_uniform([], count_seed, 1, MOST + 1, tf.int32)
    draws = tf.random.stateless_uniform([MOST, 11], draws_seed)

    def add(number, image):
        draw = draws[number]
        which = tf.cast(draw[0] * len(bank[0]), tf.int32)
        mask = tf.cast(masks[which, :, : widths[which]], tf.float32) / 255.0
        height = heights[0] * (heights[1] / heights[0]) ** draw[1]
        grey = tf.fill([3], tf.where(draw[3] < 0.7, 255.0, 0.0))
        main = tf.where(draw[2] < plain, grey, 255.0 * draw[4:7])
        # dark on light and light on dark
        other = tf.fill([3], tf.where(tf.reduce_mean(main) > 127, 0.0, 255.0))
        return number + 1, stamp(
            image,
            mask,
            main,
            other,
            opacity=tf.minimum(0.5 + draw[7], 1.0),
            centre=sides * (0.1 + 0.8 * draw[8:10]),
            height=tf.maximum(tf.cast(tf.round(height * side), tf.int32), 1),
            angle=turn * (2 * draw[10] - 1) ** 3,
        )

    first = (tf.constant(0), image)
    return tf.while_loop(lambda number, _: number < count, add, first, parallel_iterations=1)[1]


def _text_mask(string, font, boxed):
    """uint8 `[48, W, 2]`."""
    left, top, right, bottom = font.getbbox(string)
    width = int(right - left) + _TEXT_PIXELS // 4
    place = ((width - right - left) / 2, (_TEXT_PIXELS - bottom - top) / 2)
    glyphs, back = (Image.new("L", (width, _TEXT_PIXELS), value) for value in (0, 255 if boxed else 0))
    ImageDraw.Draw(glyphs).text(place, string, 255, font)
    if not boxed:
        ImageDraw.Draw(back).text(place, string, 255, font, stroke_width=3, stroke_fill=255)
    return _layers(glyphs, back)


def _shape_mask(draw):
    """uint8 `[64, 64, 2]`, drawn at four times the size for soft edges."""
    large = [Image.new("L", (4 * _SHAPE_PIXELS,) * 2) for _ in range(2)]
    draw(*(ImageDraw.Draw(layer) for layer in large))
    body, features = (layer.resize((_SHAPE_PIXELS,) * 2, Image.Resampling.BOX) for layer in large)
    # features lie on the body
    return _layers(features, body)[..., ::-1]


def _layers(above, below):
    """Two masks as layers that don't overlap: `above`, and what is left of `below`."""
    above, below = (np.asarray(layer, np.int32) for layer in (above, below))
    return np.stack([above, below * (255 - above) // 255], -1).astype(np.uint8)


# Each draws a body and features on 256 × 256 pixels.


def _face(body, features):
    body.ellipse((10, 10, 246, 246), 255)
    features.ellipse((10, 10, 246, 246), outline=255, width=8)
    for x in (70, 150):
        features.ellipse((x, 70, x + 36, 120), 255)


def _smile(body, features):
    _face(body, features)
    features.arc((60, 80, 196, 206), 15, 165, 255, 16)


def _laugh(body, features):
    _face(body, features)
    features.chord((60, 90, 196, 220), 0, 180, 255)


def _frown(body, features):
    _face(body, features)
    features.arc((70, 160, 186, 260), 200, 340, 255, 16)


def _cool(body, features):
    _smile(body, features)
    for x in (44, 136):
        features.rounded_rectangle((x, 68, x + 76, 122), 20, 255)
    features.line((40, 76, 216, 76), 255, 12)


def _heart(body, _):
    body.pieslice((10, 20, 138, 148), 135, 360, 255)
    body.pieslice((118, 20, 246, 148), 180, 45, 255)
    body.polygon([(26, 126), (128, 240), (230, 126), (128, 84)], 255)


def _star(body, features):
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 50, 120)
    points = [(128 + r * math.cos(a), 132 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    body.polygon(points, 255)
    features.line([*points, points[0]], 255, 8)


def _ring(body, _):
    body.ellipse((10, 10, 246, 246), outline=255, width=24)


def _frame(body, _):
    body.rectangle((8, 40, 248, 216), outline=255, width=18)


def _arrow(body, features):
    points = [(8, 100), (140, 100), (140, 40), (248, 128), (140, 216), (140, 156), (8, 156)]
    body.polygon(points, 255)
    features.line([*points, points[0]], 255, 8)


def _cross(body, _):
    body.line((24, 24, 232, 232), 255, 44)
    body.line((232, 24, 24, 232), 255, 44)


def _tick(body, _):
    body.line([(28, 140), (100, 212), (224, 52)], 255, 44, joint="curve")


def _bubble(body, features):
    body.rounded_rectangle((8, 24, 248, 180), 50, 255)
    body.polygon([(60, 170), (60, 240), (130, 170)], 255)
    for x in (64, 116, 168):
        features.ellipse((x, 90, x + 26, 116), 255)


def _bolt(body, features):
    points = [(150, 8), (40, 150), (116, 150), (96, 248), (216, 100), (136, 100)]
    body.polygon(points, 255)
    features.line([*points, points[0]], 255, 8)


_SHAPES = (_smile, _laugh, _frown, _cool, _heart, _star, _ring, _frame, _arrow, _cross, _tick, _bubble, _bolt)
