"""The EXIF orientation of a JPEG, PNG or WebP file, and the turn that it asks for."""

import tensorflow as tf

from mg_keras.data.apart import apart
from mg_keras.data.formats import fields, jpeg, webp

# in fewer bytes, looking for a word costs less than walking a JPEG's segments
_FEW = 1 << 17
_MOST_ENTRIES = 512
_ORIENTATION = 0x0112
# Kinds of numbers in the order of their codes: 1, 2 and 3 for integers of one, two and four bytes, without or with a
# sign; 0 for text and fractions.
_INTEGERS = [0, 1, 0, 2, 3, 0, 1, 0, 2, 3, 0]


def may_turn(contents: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    """Whether a file may hold an orientation: false, at little cost, for most that don't."""

    def in_jpeg():
        return tf.cond(
            tf.strings.length(contents) > _FEW,
            lambda: _is_in_jpeg(contents),
            lambda: tf.strings.regex_full_match(contents, r"\C*Exif\C*"),
        )

    def in_png():
        return tf.strings.regex_full_match(contents, r"\C*eXIf\C*")

    def other():
        return tf.cond(fields.has(contents, 0, b"\x89PNG"), in_png, lambda: webp.has_exif(contents))

    return tf.cond(is_jpeg, in_jpeg, other)


def orientation(contents: tf.Tensor) -> tf.Tensor:
    """1 to 8; 1 where there is none or it makes no sense."""
    kinds = [(b"\xff\xd8\xff", _in_jpeg), (b"\x89PNG", _in_png), (b"RIFF", _in_webp)]
    kind = tf.argmax([tf.cast(fields.has(contents, 0, magic), tf.int32) for magic, _ in kinds], output_type=tf.int32)
    begin, length = tf.switch_case(kind, [lambda find=find: find(contents) for _, find in kinds])
    begin = tf.minimum(begin, tf.strings.length(contents))
    return _by_exif(tf.strings.substr(contents, begin, tf.maximum(length, 0)))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns uint8 [H, W, 3] as an orientation from 1 to 8 asks for."""

    def transposed():
        return tf.transpose(image, [1, 0, 2])

    # not [::-1], which takes ten times as long
    turns = [
        lambda: image,
        lambda: tf.reverse(image, [1]),
        lambda: tf.reverse(image, [0, 1]),
        lambda: tf.reverse(image, [0]),
        transposed,
        lambda: tf.reverse(transposed(), [1]),
        lambda: tf.reverse(transposed(), [0, 1]),
        lambda: tf.reverse(transposed(), [0]),
    ]
    return tf.switch_case(orientation - 1, turns)


@apart
def _is_in_jpeg(contents):
    return _in_jpeg(contents)[1] > 0


def _in_jpeg(contents):
    """(where EXIF begins, its length in bytes); the length is 0 or less where there is none."""

    def is_exif(marker, head):
        return (marker == 0xFFE1) & (tf.strings.substr(head, 4, 4) == b"Exif")

    begin, length = jpeg.first_segment(contents, is_exif)
    return begin + 10, length - 10


def _in_png(contents):
    def read(head):
        length = tf.io.decode_raw(head, tf.int32, little_endian=False)[0]
        return length >= 0, tf.strings.substr(head, 4, 4) == b"eXIf", 12 + length

    begin, length = fields.first_block(contents, 8, read)
    return begin + 8, length - 12


def _in_webp(contents):
    def read(head):
        length = tf.io.decode_raw(head, tf.int32)[1]
        return length >= 0, tf.strings.substr(head, 0, 4) == b"EXIF", 8 + length + length % 2

    begin, length = fields.first_block(contents, 12, read)
    # some programs write it as in a JPEG
    skipped = tf.where(fields.has(contents, begin + 8, b"Exif\0\0"), 14, 8)
    return begin + skipped, length - skipped


def _by_exif(exif):
    """The orientation in EXIF data, scalar string."""
    header = fields.at(exif, 0, 8)
    is_little = tf.reduce_all(header[:2] == list(b"II"))
    is_exif = is_little | tf.reduce_all(header[:2] == list(b"MM"))

    def number(values):
        return tf.where(is_little, fields.little(values), fields.big(values))

    directory = tf.clip_by_value(number(header[4:]), 8, 1 << 28)
    count = tf.clip_by_value(number(fields.at(exif, directory, 2)), 0, _MOST_ENTRIES)
    entries = tf.reshape(fields.at(exif, directory + 2, 12 * _MOST_ENTRIES), [-1, 12])[:count]
    entries = tf.boolean_mask(entries, number(entries[:, :2]) == _ORIENTATION)
    entry = tf.ensure_shape(tf.concat([entries, tf.zeros([1, 12], tf.int32)], 0)[0], [12])
    values = tf.stack([0, entry[8], number(entry[8:10]), number(entry[8:])])
    kind = tf.clip_by_value(number(entry[2:4]), 0, len(_INTEGERS) - 1)
    orientation = values[tf.gather(_INTEGERS, kind)]
    return tf.where(is_exif & (orientation >= 1) & (orientation <= 8), orientation, 1)
