"""WebP with alpha, which is dropped, and the first frame of an animated one."""

import tensorflow as tf

from mg_keras.data.apart import apart
from mg_keras.data.formats import fields
from mg_keras.data.formats.caught import caught

# flags of the extended header
_ANIMATED, _EXIF, _ALPHA = 0x02, 0x08, 0x10


def declared_size(contents: tf.Tensor) -> tf.Tensor:
    """int32 [height, width] by the header; of an animation, of its canvas."""
    header = fields.at(contents, 0, 32)
    lossless = fields.little(header[21:25])
    kinds = [
        (ord("X"), fields.little(header[27:30]) + 1, fields.little(header[24:27]) + 1),
        (ord("L"), tf.bitwise.right_shift(lossless, 14) % 16384 + 1, lossless % 16384 + 1),
        (ord(" "), fields.little(header[28:30]) % 16384, fields.little(header[26:28]) % 16384),
    ]
    return tf.reduce_sum([tf.where(header[15] == kind, [height, width], 0) for kind, height, width in kinds], 0)


@apart
def decode(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(whether it could be decoded, uint8 [H, W, 3], or one pixel)."""
    flags = _flags(contents)
    # An animation is decoded into four channels, but TensorFlow makes room for as many as the header says: without
    # alpha it would write behind the end, were it not asked for four and told that there are four.
    animated = (flags & _ANIMATED) != 0
    told = tf.gather([bytes([value]) for value in range(256)], flags | _ALPHA)
    length = tf.strings.length(contents)
    rest = tf.strings.substr(contents, tf.minimum(21, length), length)
    contents = tf.where(animated, tf.strings.join([tf.strings.substr(contents, 0, 20), told, rest]), contents)

    def with_channels(channels):
        def attempt(contents):
            return (tf.io.decode_image(contents, channels, expand_animations=False)[..., :3],)

        ok, image = caught(attempt, contents, (tf.zeros([1, 1, 3], tf.uint8),))
        return ok, tf.ensure_shape(image, [None, None, 3])

    # the decoder refuses a number of channels that is not the file's, which none but itself can tell
    ok, image = with_channels(3)
    return tf.cond(ok, lambda: (ok, image), lambda: with_channels(4))


def has_exif(contents: tf.Tensor) -> tf.Tensor:
    """Whether the header says so."""
    return (_flags(contents) & _EXIF) != 0


def _flags(contents):
    """Of the extended header; 0 where there is a plain one."""
    header = fields.at(contents, 12, 9)
    return tf.where(header[3] == ord("X"), header[8], 0)
