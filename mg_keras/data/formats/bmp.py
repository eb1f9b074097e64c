"""BMP: TensorFlow's decoder takes indices of colours for greys, and knows one header and no masks.

Uncompressed files of 1 to 32 bits a pixel are decoded, with the headers of Windows and OS/2, in either order of rows.
"""

import tensorflow as tf

from mg_keras.data.apart import apart
from mg_keras.data.formats import fields

# where the first header ends, and where masks are, within the second header or behind it
_HEADER, _MASKS = 14, 54
_VERSIONS = [12, 40, 52, 56, 64, 108, 124]
_BITS = [1, 2, 4, 8, 16, 24, 32]
_SUPPORTED = "uncompressed ones of 1, 2, 4, 8, 16, 24 or 32 bits a pixel are supported"
_COMPRESSIONS = {1: "run-length encoding", 2: "run-length encoding", 4: "a JPEG inside", 5: "a PNG inside"}


def declared_size(contents: tf.Tensor) -> tf.Tensor:
    """int32 [height, width] by the header; not positive where it makes no sense."""
    words = fields.words(contents, _HEADER, 3)
    is_short = words[0] == 12
    height = tf.where(is_short, tf.bitwise.right_shift(words[1], 16) & 0xFFFF, tf.abs(words[2]))
    return tf.stack([height, tf.where(is_short, words[1] & 0xFFFF, words[1])])


@apart
def unsupported(contents: tf.Tensor) -> tf.Tensor:
    """What a file has that is not decoded: scalar string, empty for nothing."""
    about = _Header(contents)
    names = [(about.compression == number, name) for number, name in _COMPRESSIONS.items()]
    compression = fields.first_text([*names, (True, "an unknown compression")])
    number = tf.strings.as_string
    problems = [
        (~_among(about.version, _VERSIONS), tf.strings.join(["a header of ", number(about.version), " bytes"])),
        (~_among(about.compression, [0, 3, 6]), compression),
        (~_among(about.bits, _BITS), tf.strings.join([number(about.bits), " bits a pixel"])),
        (about.has_masks & ~_among(about.bits, [16, 32]), "masks for other than 16 or 32 bits a pixel"),
        (about.has_masks & ~_are_runs(_masks(about, contents)), "masks with holes"),
    ]
    what = fields.first_text(problems)
    # one that ends within its header is broken
    is_whole = tf.strings.length(contents) >= 30
    return tf.where(is_whole & (what != ""), tf.strings.join(["BMP with ", what, f": {_SUPPORTED}"]), "")


@apart
def decode(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(whether it could be decoded, uint8 [H, W, 3], or one pixel)."""
    about = _Header(contents)
    height, width = tf.unstack(declared_size(contents))
    row = (tf.cast(width, tf.int64) * tf.cast(about.bits, tf.int64) + 31) // 32 * 4
    # the last row may lack what fills it up
    needed = tf.cast(about.pixels, tf.int64) + row * tf.cast(height, tf.int64) - 3
    length = tf.strings.length(contents)
    whole = (about.pixels > 0) & (height > 0) & (width > 0) & (needed <= tf.cast(length, tf.int64))

    def pixels():
        stored = tf.strings.join([tf.strings.substr(contents, about.pixels, length), b"\0" * 3])
        stored = tf.strings.substr(stored, 0, tf.cast(row, tf.int32) * height)
        branches = [
            lambda: _from_table(_rows(stored, tf.uint8, height), about, contents)[:, :width],
            lambda: _from_masks(_rows(stored, tf.uint16, height)[:, :width], about, contents),
            lambda: tf.reverse(tf.reshape(_rows(stored, tf.uint8, height)[:, : 3 * width], [height, width, 3]), [2]),
            lambda: _from_masks(_rows(stored, tf.int32, height)[:, :width], about, contents),
        ]
        image = tf.switch_case(tf.maximum(about.bits // 8 - 1, 0), branches)
        return tf.cond(about.top_down, lambda: image, lambda: tf.reverse(image, [0]))

    ok = whole & (unsupported(contents) == "")
    return ok, tf.ensure_shape(tf.cond(ok, pixels, lambda: tf.zeros([1, 1, 3], tf.uint8)), [None, None, 3])


class _Header:
    """Scalars int32 and bool of the two headers."""

    def __init__(self, contents):
        pixels = fields.words(contents, 10, 1)[0]
        self.version, _, height, bits, compression, _, _, _, declared = tf.unstack(fields.words(contents, _HEADER, 9))
        is_short = self.version == 12
        self.bits = tf.bitwise.right_shift(tf.where(is_short, height, bits), 16) & 0xFFFF
        self.compression = tf.where(is_short, 0, compression)
        self.has_masks = _among(self.compression, [3, 6])
        self.top_down = ~is_short & (height < 0)
        # three masks, or four with alpha, follow the second header if they don't fit into it
        outside = tf.where(self.compression == 3, 12, tf.where(self.compression == 6, 16, 0))
        self.table = _HEADER + self.version + tf.where(self.version == 40, outside, 0)
        self.bytes_a_colour = tf.where(is_short, 3, 4)
        every = tf.bitwise.left_shift(1, tf.clip_by_value(self.bits, 0, 8))
        self.colours = tf.where(is_short | (declared <= 0) | (declared > every), every, declared)
        behind = self.table + tf.where(self.bits <= 8, self.bytes_a_colour * self.colours, 0)
        # some programs don't say where the pixels begin, or forget the table of colours
        self.pixels = tf.where((pixels == 0) | (pixels == _HEADER + self.version), behind, pixels)


def _among(value, known):
    return tf.reduce_any(value == known)


def _rows(stored, dtype, height):
    return tf.reshape(tf.io.decode_raw(stored, dtype), [height, -1])


def _from_table(rows, about, contents):
    """uint8 [H, bytes], each of one or more indices, the first in the highest bits -> uint8 [H, indices, 3]."""
    table = tf.reshape(fields.at(contents, about.table, 4 * 256)[: about.bytes_a_colour * 256], [256, -1])
    known = tf.cast(tf.range(256) < about.colours, tf.int32)[:, None]
    table = tf.cast(table[:, 2::-1] * known, tf.uint8)
    shifts = tf.cast(tf.range(8 - about.bits, -1, -about.bits), tf.uint8)
    mask = tf.cast(tf.bitwise.left_shift(1, about.bits) - 1, tf.uint8)
    indices = tf.bitwise.right_shift(rows[..., None], shifts) & mask
    return tf.gather(table, tf.cast(tf.reshape(indices, [tf.shape(rows)[0], -1]), tf.int32))


def _from_masks(pixels, about, contents):
    """Integers [H, W], or uint16 -> uint8 [H, W, 3]; a channel of n bits is scaled by 255 / (2^n - 1), rounded down."""
    pixels = tf.cast(pixels, tf.int32)
    return tf.stack([_channel(pixels, mask) for mask in tf.unstack(_masks(about, contents))], 2)


def _masks(about, contents):
    """Of red, green and blue: int32 [3]."""
    usual = tf.where(about.bits == 16, [0x7C00, 0x3E0, 0x1F], [0xFF0000, 0xFF00, 0xFF])
    stored = fields.words(contents, _MASKS, 3)
    return tf.where(about.has_masks & tf.reduce_any(stored != 0), stored, usual)


def _mask_bits(mask):
    """int32 [..., 32], 0 or 1, the lowest first."""
    return tf.bitwise.right_shift(mask[..., None], tf.range(32)) & 1


def _are_runs(masks):
    """Whether no mask has a hole: its bits begin once at most."""
    bits = _mask_bits(masks)
    begins = bits[:, 0] + tf.reduce_sum(bits[:, 1:] * (1 - bits[:, :-1]), 1)
    return tf.reduce_all(begins <= 1)


def _channel(pixels, mask):
    bits = _mask_bits(mask)
    lowest, count = tf.argmax(bits, output_type=tf.int32), tf.minimum(tf.reduce_sum(bits), 8)
    # of more than 8 bits, the highest 8
    shift = lowest + tf.reduce_sum(bits) - count
    largest = tf.bitwise.left_shift(1, count) - 1
    values = tf.bitwise.right_shift(pixels, shift) & largest
    return tf.cast(values * 255 // tf.maximum(largest, 1), tf.uint8)
