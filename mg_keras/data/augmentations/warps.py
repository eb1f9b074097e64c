"""Moving a photo on a canvas: maps of the plane as 3 × 3 matrices, joined into one and applied once.

A map takes (x, y, 1), x to the right and y down, to multiples of the new (x, y, 1). In `turn`, `corners` and `inset`
both the photo and its canvas are the unit square, (0, 0) at the upper left.
"""

import numpy as np
import tensorflow as tf

from mg_keras.data import resolutions

# the unit square's corners as columns, clockwise from (0, 0)
_SQUARE = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], np.float32)


def turn(angle: tf.Tensor, aspect: tf.Tensor, fit: tf.Tensor) -> tf.Tensor:
    """Turns the photo about its middle.

    Args:
        angle: float32 scalar, radians, clockwise.
        aspect: float32 scalar, width / height of the photo, which its unit square stands for.
        fit: float32 scalar, 1 shrinks the photo until nothing is cut off, 0 leaves its size and cuts the corners.

    Returns:
        float32 `[3, 3]`.
    """
    cosine, sine = tf.cos(angle), tf.sin(angle)
    width = aspect + fit * (aspect * tf.abs(cosine) + tf.abs(sine) - aspect)
    height = 1 + fit * (aspect * tf.abs(sine) + tf.abs(cosine) - 1)
    turned = tf.stack(
        [
            tf.stack([cosine * aspect / width, -sine / width, 0.0]),
            tf.stack([sine * aspect / height, cosine / height, 0.0]),
            tf.constant([0.0, 0.0, 1.0]),
        ]
    )
    return shift(0.5, 0.5) @ turned @ shift(-0.5, -0.5)


def corners(inwards: tf.Tensor) -> tf.Tensor:
    """Sees the photo from aside.

    Args:
        inwards: float32 `[4, 2]`, how far the corners move inwards along x and y, below 0.5, clockwise from the upper
            left.

    Returns:
        float32 `[3, 3]`, the projective map that takes the unit square's corners there.
    """
    moved = _SQUARE + tf.pad(tf.transpose(inwards) * (1 - 2 * _SQUARE[:2]), [[0, 1], [0, 0]])
    # A map is known by four points: the first three up to a factor each, which the fourth gives.
    return _through(moved) @ tf.linalg.inv(_through(tf.constant(_SQUARE)))


def inset(scale: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Shrinks the photo within its canvas.

    Args:
        scale: float32 `[2]`, its new width and height, in 0-1.
        place: float32 `[2]`, where in the room that is left, along x and y: 0 left or top, 1 right or bottom.

    Returns:
        float32 `[3, 3]`.
    """
    return tf.linalg.set_diag(shift(*tf.unstack(place * (1 - scale))), tf.concat([scale, [1.0]], 0))


def shift(x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    """Moves by (x, y)."""
    return tf.stack([tf.stack([1.0, 0.0, x]), tf.stack([0.0, 1.0, y]), tf.constant([0.0, 0.0, 1.0])])


def scaling(x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    """Multiplies by (x, y)."""
    return tf.linalg.diag(tf.stack([x, y, 1.0]))


def size_in_the_middle(to_canvas: tf.Tensor) -> tf.Tensor:
    """float32 scalar, the side of the square that the middle of the photo covers as much area as, of the canvas's."""
    distance = to_canvas[2, 0] / 2 + to_canvas[2, 1] / 2 + to_canvas[2, 2]
    return tf.sqrt(tf.abs(tf.linalg.det(to_canvas) / distance**3))


def lay(photo: tf.Tensor, to_canvas: tf.Tensor, background: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Lays a photo on a canvas by a map between their unit squares; bilinear, with soft edges.

    Args:
        photo: float32 `[h, w, 3]`, about as large as it will be on the canvas: what is reduced much is not antialiased.
        to_canvas: float32 `[3, 3]`.
        background: float32 `[n, n, 3]`, enlarged to the canvas.
        size: int32 scalar, pixels of the canvas.

    Returns:
        float32 `[size, size, 3]`.
    """
    pixels = tf.cast(tf.shape(photo), tf.float32)
    to_unit = scaling(*[1 / tf.cast(size, tf.float32)] * 2)
    to_photo = scaling(pixels[1], pixels[0]) @ tf.linalg.inv(to_canvas) @ to_unit

    def on_one_colour():
        # twice as fast as below
        return background[0, 0] + project(photo - background[0, 0], to_photo, size, size)

    def on_many():
        # A fourth channel says how much of a pixel the photo covers; outside all four are 0.
        laid = project(tf.concat([photo, tf.ones_like(photo[..., :1])], -1), to_photo, size, size)
        return laid[..., :3] + (1 - laid[..., 3:]) * resolutions.resize(background, size, size)

    return tf.cond(tf.shape(background)[0] == 1, on_one_colour, on_many)


def project(image: tf.Tensor, to_image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Samples a picture bilinearly where a map says; 0 outside.

    Args:
        image: float32 `[h, w, C]`.
        to_image: float32 `[3, 3]`, from places in the result to places in `image`, in pixels from the upper left
            corner, so that the first pixel's middle is (0.5, 0.5).
        height: int32 scalar, pixels of the result.
        width: int32 scalar, pixels of the result.

    Returns:
        float32 `[height, width, C]`.
    """
    matrix = tf.reshape(shift(-0.5, -0.5) @ to_image @ shift(0.5, 0.5), [9])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=(matrix[:8] / matrix[8])[tf.newaxis],
        output_shape=tf.stack([height, width]),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0]


def sample_background(photo: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws what a photo is laid on: black (0.35), white (0.15), one colour (0.2), a gradient (0.1) or a stand-in.

    No other photo is at hand, so a texture of random colours, coarse to fine (0.1), stands for one, or the photo
    itself, so blurred that only its colours are left (0.1), as behind upright videos.

    Args:
        photo: float32 `[h, w, 3]`, RGB in 0-255.
        seed: int32 or int64 `[2]`.

    Returns:
        float32 `[n, n, 3]`, a few colours for `lay` to spread over the canvas.
    """
    kind_seed, size_seed, colour_seed = tf.unstack(tf.random.split(seed, 3))
    kind = tf.searchsorted(_BACKGROUNDS, tf.random.stateless_uniform([1], kind_seed), side="right")[0]

    def colours(rows):
        return 255.0 * tf.random.stateless_uniform(tf.stack([rows, rows, 3]), colour_seed)

    return tf.switch_case(
        kind,
        [
            lambda: tf.zeros([1, 1, 3]),
            lambda: tf.fill([1, 1, 3], 255.0),
            lambda: colours(1),
            lambda: colours(2),
            lambda: colours(tf.cast(4.0 * 16.0 ** tf.random.stateless_uniform([], size_seed), tf.int32)),
            lambda: resolutions.resize(photo, 6, 6),
        ],
    )


# up to which of a number uniform in 0-1 each kind but the last is taken
_BACKGROUNDS = np.cumsum([0.35, 0.15, 0.2, 0.1, 0.1]).astype(np.float32)


def _through(points):
    """The map that takes (1, 0, 0), (0, 1, 0), (0, 0, 1) and (1, 1, 1) to the columns of float32 `[3, 4]`."""
    return points[:, :3] * tf.linalg.solve(points[:, :3], points[:, 3:])[:, 0]
