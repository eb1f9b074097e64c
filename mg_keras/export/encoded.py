"""Photos as files, of any sizes in one call, to embeddings: the graph behind the signature `encoded`.

First every photo is decoded, made upright and resized, each under limits that are part of the graph, and the request
is refused if one of them can't be used. Then the network takes photos of one shape together, a shape after the other.
"""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from mg_keras.data import images, resolutions
from mg_keras.data.formats import fields
from mg_keras.preparations import ASPECT, SQUASH

MAX_BYTES = 32 << 20
MAX_SIDE = 65_535  # of a photo as it is; JPEG's own limit
MAX_RESOLUTION = 8192
MAX_NETWORK_PIXELS = 2048 * 2048  # of a photo as the network sees it, which takes memory in proportion
LIMITS = {
    "bytes": MAX_BYTES,
    "photo_pixels": images.MAX_PIXELS,
    "photo_side": MAX_SIDE,
    "smallest_side": images.MIN_SIDE,
    "resolution": MAX_RESOLUTION,
    "network_pixels": MAX_NETWORK_PIXELS,
}

# pixels that run through the network together at most: 64 photos of 224x224
_PIXELS_A_BATCH = 64 * 224 * 224
# photos that are decoded at a time: each may take hundreds of megabytes
_DECODED_AT_A_TIME = 4


def embed_encoded(
    embed: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    size: int,
    image_bytes: tf.Tensor,
    resolution: tf.Tensor,
    p_star: tf.Tensor,
    table: Mapping[int, float],
    preparation: str = ASPECT,
) -> tf.Tensor:
    """Embeds encoded photos of any sizes; graph code.

    Args:
        embed: images float32 [n, H, W, 3] in 0-255 and exponents float32 [n] -> embeddings float32 [n, size].
        size: d.
        image_bytes: string [B], each a JPEG, PNG, GIF, uncompressed BMP or, if the runtime has it, WebP file; of an
            animation the first frame counts.
        resolution: int32 [B], pixels of the largest side, or of both if photos are squashed, up to `MAX_RESOLUTION`; 0
            leaves the photo as it is.
        p_star: float32 [B]; where it is 0 or less, the exponent that the table has for the nearest resolution (of two
            as near, the lower one). A photo left as it is counts with its largest side.
        table: resolution -> exponent, at least one.
        preparation: of `mg_keras.preparations`, how photos are brought to their resolution.

    Returns:
        float32 [B, size], in the order of the photos.

    Raises:
        tf.errors.InvalidArgumentError: (when it runs) the inputs have other lengths than one value a photo, or photos
            can't be used: empty, no photo, of an unsupported kind, broken, or beyond a limit; the message gives their
            numbers, from 0, and why.
    """
    count = tf.size(image_bytes)
    lengths = tf.stack([tf.size(resolution), tf.size(p_star)])
    same = tf.debugging.assert_equal(lengths, count, "resolution and p_star must hold one value for each photo")
    with tf.control_dependencies([same]):
        photos, sizes, reasons = _decoded(tf.identity(image_bytes), resolution, count, preparation)
    usable = refuse_unusable(reasons)
    with tf.control_dependencies([usable]):
        sizes = tf.identity(sizes)
    sides = tf.where(resolution > 0, resolution, tf.reduce_max(sizes, axis=1))
    p_star = tf.where(p_star <= 0, _nearest(table, sides), p_star)

    def going_on(done, _):
        return tf.reduce_any(~done)

    def next_shape(done, embeddings):
        first = sizes[tf.argmax(~done, output_type=tf.int32)]
        alike = ~done & tf.reduce_all(sizes == first, axis=1)
        together = tf.maximum(1, _PIXELS_A_BATCH // tf.reduce_prod(first))
        rows = tf.where(alike)[:together]
        batch = photos.gather(tf.cast(rows[:, 0], tf.int32))
        found = embed(tf.ensure_shape(batch, [None, None, None, 3]), tf.gather_nd(p_star, rows))
        return (
            tf.tensor_scatter_nd_update(done, rows, tf.ones_like(rows[:, 0], tf.bool)),
            tf.tensor_scatter_nd_update(embeddings, rows, found),
        )

    start = tf.zeros([count], tf.bool), tf.zeros([count, size])
    shapes = tf.TensorShape([None]), tf.TensorShape([None, size])
    # one shape at a time: two would share the cores and need the memory of both
    return tf.while_loop(going_on, next_shape, start, shapes, parallel_iterations=1)[1]


def _decoded(image_bytes, resolution, count, preparation):
    """(photos as a TensorArray of float32 [h, w, 3], their sizes int32 [B, 2], why they can't be used: string [B])."""
    photos = tf.TensorArray(tf.float32, count, element_shape=[None, None, 3], infer_shape=False)
    sizes = tf.TensorArray(tf.int32, count, element_shape=[2])
    reasons = tf.TensorArray(tf.string, count, element_shape=[])

    def one(number, photos, sizes, reasons):
        photo, reason = _photo(image_bytes[number], resolution[number], preparation)
        return (
            number + 1,
            photos.write(number, photo),
            sizes.write(number, tf.shape(photo)[:2]),
            reasons.write(number, reason),
        )

    _, photos, sizes, reasons = tf.while_loop(
        lambda number, *_: number < count,
        one,
        (tf.constant(0), photos, sizes, reasons),
        parallel_iterations=_DECODED_AT_A_TIME,
    )
    return photos, sizes.stack(), reasons.stack()


def _photo(contents, resolution, preparation):
    """(photo as the network takes it, "") or (one black pixel, why it can't be used)."""
    prepare = resolutions.whole(preparation)
    size = tf.cast(images.declared_size(contents), tf.int64)
    reason = fields.first_text(_header_reasons(contents, size, resolution, preparation))
    # what the header rules out is not decoded
    ok, image = images.try_decode(
        tf.identity,
        tf.where(reason == "", contents, ""),
        lambda size: resolutions.reduction(size, resolution, prepare),
    )
    reason = tf.cond(ok | (reason != ""), lambda: reason, lambda: images.why_not(contents))

    def prepared():
        return tf.cond(
            resolution > 0,
            lambda: prepare(image, resolution),
            lambda: tf.cast(image, tf.float32),
        )

    return tf.cond(reason == "", prepared, lambda: tf.zeros([1, 1, 3])), reason


def _header_reasons(contents, size, resolution, preparation):
    """(refused, why) pairs, of the limits that a photo's size and its resolution may go beyond."""
    length = tf.strings.length(contents)
    height, width = tf.unstack(size)
    # of what is no photo it is 0, which is no size to refuse it for
    largest = tf.maximum(tf.maximum(height, width), 1)
    scale = tf.where(resolution > 0, tf.cast(resolution, tf.float64) / tf.cast(largest, tf.float64), 1.0)
    pixels = tf.cast(scale**2 * tf.cast(height * width, tf.float64), tf.int64)
    if preparation == SQUASH:
        pixels = tf.where(resolution > 0, tf.cast(resolution, tf.int64) ** 2, pixels)
    too_many = f"pixels for the network, more than {MAX_NETWORK_PIXELS:,}: ask for a lower resolution"
    return [
        (length > MAX_BYTES, _said(length, f"bytes, more than {MAX_BYTES:,}")),
        (height * width > images.MAX_PIXELS, f"larger than {images.MAX_PIXELS:,} pixels"),
        (largest > MAX_SIDE, _said(largest, f"pixels on a side, more than {MAX_SIDE:,}")),
        (resolution < 0, _said(resolution, "is no resolution: give pixels, or 0 for the photo as it is")),
        (resolution > MAX_RESOLUTION, _said(resolution, f"is too high a resolution: at most {MAX_RESOLUTION:,}")),
        (pixels > MAX_NETWORK_PIXELS, _said(pixels, too_many)),
    ]


def _said(number, text):
    return tf.strings.join([tf.strings.as_string(number), f" {text}"])


def refuse_unusable(reasons: tf.Tensor, what: str = "photo") -> tf.Operation | None:
    """An operation that fails if there is a reason, with all of them: reasons string [B], "" where there is none.

    Eagerly, and where it was settled while tracing, there is no operation.
    """
    numbers = tf.strings.as_string(tf.range(tf.size(reasons)))
    lines = tf.boolean_mask(tf.strings.join([f"{what} ", numbers, ": ", reasons]), reasons != "")
    return tf.debugging.Assert(tf.reduce_all(reasons == ""), [tf.strings.reduce_join(lines, separator="; ")])


def _nearest(table, sides):
    """The table's exponent for each side, int32 [B] -> float32 [B]."""
    pairs = sorted((int(side), float(exponent)) for side, exponent in table.items())
    known = tf.constant([side for side, _ in pairs])
    exponents = tf.constant(np.float32([exponent for _, exponent in pairs]))
    return tf.gather(exponents, tf.argmin(tf.abs(sides[:, None] - known), axis=1))
