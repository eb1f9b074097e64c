"""A JPEG's segments."""

from collections.abc import Callable

import tensorflow as tf

from mg_keras.data.formats import fields
from mg_keras.data.formats.caught import caught

# Markers of frames. Those of baseline, extended and progressive coding are decoded; the others are lossless,
# hierarchical or arithmetic. Among them stand 0xFFC4, 0xFFC8 and 0xFFCC, which are segments of other kinds.
_DECODED = [0xFFC0, 0xFFC1, 0xFFC2]
_OTHERS = [0xFFC3, 0xFFC5, 0xFFC6, 0xFFC7, 0xFFC9, 0xFFCA, 0xFFCB, 0xFFCD, 0xFFCE, 0xFFCF]


def declared_size(contents: tf.Tensor) -> tf.Tensor:
    """int32 [height, width]; (0, 0) where the header can't be read."""
    _, size = caught(lambda contents: (tf.io.extract_jpeg_shape(contents)[:2],), contents, (tf.zeros([2], tf.int32),))
    return tf.ensure_shape(size, [2])


def first_segment(contents: tf.Tensor, is_wanted: Callable) -> tuple[tf.Tensor, tf.Tensor]:
    """(position, bytes in all) of the first wanted segment; the bytes are 0 where there is none before the pixels.

    Args:
        contents: the file.
        is_wanted: (a segment's marker, 0xFF00 to 0xFFFF, and its first 8 bytes, a scalar string) -> bool.
    """

    def read(head):
        marker, length = tf.unstack(tf.cast(tf.io.decode_raw(head, tf.uint16, little_endian=False), tf.int32)[:2], 2)
        # 0xFF may be repeated before a segment; the pixels follow 0xFFDA
        length = tf.where(marker == 0xFFFF, 1, 2 + length)
        return (marker >= 0xFF00) & (marker != 0xFFDA), is_wanted(marker, head), length

    return fields.first_block(contents, 2, read)


def unsupported(contents: tf.Tensor) -> tf.Tensor:
    """What a file has that is not decoded: scalar string, empty for nothing."""
    begin, length = first_segment(contents, lambda marker, _: tf.reduce_any(marker == _DECODED + _OTHERS))
    head = fields.at(contents, begin, 10)
    bits, channels = tf.strings.as_string(head[4]), tf.strings.as_string(head[9])
    coding = "lossless, hierarchical or arithmetic coding: baseline and progressive ones"
    problems = [
        (tf.reduce_any(0xFF00 + head[1] == _OTHERS), coding),
        (head[4] != 8, tf.strings.join([bits, " bits a channel: those with 8"])),
        (~tf.reduce_any(head[9] == [1, 3, 4]), tf.strings.join([channels, " channels: those with 1, 3 or 4"])),
    ]
    what = fields.first_text(problems)
    return tf.where((length > 0) & (what != ""), tf.strings.join(["JPEG with ", what, " are supported"]), "")
