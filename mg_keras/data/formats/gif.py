"""The first frame of a GIF."""

import tensorflow as tf

from mg_keras.data.apart import apart
from mg_keras.data.formats.caught import caught

# a place behind the end of any file
_BEHIND = 1 << 30


def declared_size(contents: tf.Tensor) -> tf.Tensor:
    """int32 [height, width] by the header and that of the first frame."""
    return first_frame(contents)[1]


def decode(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(whether it could be decoded, uint8 [H, W, 3], or one pixel)."""

    def attempt(frame):
        return (tf.ensure_shape(tf.io.decode_image(frame, channels=3, expand_animations=False), [None, None, 3]),)

    return caught(attempt, first_frame(contents)[0], (tf.zeros([1, 1, 3], tf.uint8),))


@apart
def first_frame(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The file without what follows its first frame: TensorFlow decodes all frames, of any number and size.

    What stands before the frame goes too, and so which colour is transparent: like alpha, it is dropped.

    Args:
        contents: scalar string tensor, the bytes of a GIF.

    Returns:
        (contents, size): the bytes, and int32 [height, width] that holds both the screen and the frame, as what is
        decoded does.
    """
    data = tf.concat([tf.io.decode_raw(contents, tf.uint8), tf.constant([0], tf.uint8)], 0)
    last = tf.size(data) - 1

    def byte(position):
        return tf.cast(data[tf.minimum(position, last)], tf.int32)

    def number(position):
        return byte(position) + 256 * byte(position + 1)

    begin = 13 + _table_bytes(byte(10))
    frame = _first_descriptor(byte, begin)
    pixels = frame + 10 + _table_bytes(byte(frame + 9)) + 1
    end = tf.while_loop(lambda p: byte(p) > 0, lambda p: (p + 1 + byte(p),), (pixels,), parallel_iterations=1)[0] + 1
    length = tf.strings.length(contents)
    start, stop = tf.minimum(frame, length), tf.minimum(end, length)
    # a file that ends within the frame stays broken
    parts = [
        tf.strings.substr(contents, 0, begin),
        tf.strings.substr(contents, start, stop - start),
        tf.where(byte(frame) == 0x2C, b";", b""),
    ]
    size = tf.stack([tf.maximum(number(8), number(frame + 7)), tf.maximum(number(6), number(frame + 5))])
    return tf.strings.join(parts), size


def _first_descriptor(byte, begin):
    """Where the first frame begins; behind the end of the file if there is none."""

    def is_passed_over(position, within):
        return within | (byte(position) == 0x21)

    def next_block(position, within):
        # an extension is a label and blocks of up to 255 bytes, the last of which is empty
        length = byte(position)
        return tf.where(within, position + 1 + length, position + 2), ~within | (length > 0)

    position, _ = tf.while_loop(is_passed_over, next_block, (begin, tf.constant(False)), parallel_iterations=1)
    return tf.where(byte(position) == 0x2C, position, _BEHIND)


def _table_bytes(flags):
    """Bytes of a table of colours."""
    return tf.where(flags >= 128, tf.gather([3 * 2 ** (bits + 1) for bits in range(8)], flags % 8), 0)
