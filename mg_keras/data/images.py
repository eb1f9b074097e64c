"""Photo bytes to RGB pixels, in the graph: the one place that decides what a usable photo is.

JPEG (greyscale, RGB and CMYK), PNG (any depth; alpha is dropped), WebP, BMP and the first frame of a GIF become uint8
[H, W, 3] RGB; a JPEG's EXIF orientation is applied. A photo is refused when it can't be decoded whole, has more than
`MAX_PIXELS` pixels (read from its header, before any memory is spent on it) or a side below `MIN_SIDE`.
"""

import re
import threading
from pathlib import Path

import tensorflow as tf

from mg_keras.data.apart import apart
from mg_keras.errors import UserError

MAX_PIXELS = 128_000_000
MIN_SIDE = 8
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# where EXIF may stand: segments hold at most 64 KiB, and few programs write anything before it but a thumbnail's
_HEADER_BYTES = 1 << 17

# a place behind the end of any file that is looked at byte by byte
_BEHIND = 1 << 30

_MEANINGS = {
    "Input is empty": "the file is empty",
    "Unknown image file format": "not a JPEG, PNG, WebP, BMP or GIF file",
    "Invalid JPEG data": "JPEG data is broken or cut off",
    "Invalid PNG data": "PNG data is broken or cut off",
}


def decode(contents):
    """Decodes one photo.

    Args:
        contents: scalar string tensor, the bytes of the file.

    Returns:
        uint8 [H, W, 3] RGB, upright.

    Raises:
        tf.errors.InvalidArgumentError: the photo is not usable; the message says why.
    """
    contents, frame = first_frame(contents)
    return _upright(_decode_as_stored(contents, frame), contents)


def first_frame(contents):
    """A GIF without what follows its first frame: TensorFlow decodes all, of any number and size. For strangers' files.

    Args:
        contents: scalar string tensor, the bytes of a file.

    Returns:
        (contents, size): the bytes, those of other files as they are, and int32 [height, width] of the frame, which may
        be larger than `declared_size`; the decoder takes the larger one. (0, 0) where there is none.
    """
    is_gif = tf.strings.substr(contents, 0, 4) == b"GIF8"
    return tf.cond(is_gif, lambda: _first_frame(contents), lambda: (tf.identity(contents), tf.zeros([2], tf.int32)))


def try_decode(read, key):
    """Reads and decodes a photo in a pipeline that a broken one must not stop.

    Args:
        read: key -> string scalar tensor, the bytes; its errors are caught too.
        key: scalar tensor that names the photo to `read`.

    Returns:
        (ok, image): a bool scalar, and the photo, or one of 1x1 pixel where it can't be used.
    """

    def attempt(key):
        contents = tf.ensure_shape(read(key), [])
        return True, contents, _decode_as_stored(contents)

    # A one-element dataset whose errors are ignored is a try/except within the graph. Its function is set up anew for
    # each photo, which takes longer than the decoding if there is much in it: it holds what can fail, no more.
    decoded = tf.data.Dataset.from_tensors(key).map(attempt)
    sentinel = tf.data.Dataset.from_tensors((False, "", tf.zeros((1, 1, 3), tf.uint8)))
    ok, contents, image = decoded.ignore_errors().concatenate(sentinel).take(1).get_single_element()
    return tf.ensure_shape(ok, []), _upright(tf.ensure_shape(image, [None, None, 3]), contents)


def load(path):
    """Reads and decodes the photo at `path` eagerly: uint8 NumPy [H, W, 3].

    Raises:
        UserError: the photo is not usable; the message names it and says why.
    """
    try:
        return decode(tf.io.read_file(str(path))).numpy()
    except tf.errors.OpError as error:
        raise UserError(f"{path}: {_reason(error)}") from None


def problem(read):
    """Why a photo can't be used, in a few words, or None where it can: `read()` returns its bytes."""
    try:
        decode(read())
    except tf.errors.OpError as error:
        return _reason(error)
    return None


class BadImages:
    """Collects the photos that could not be used, each once, with the reason.

    Args:
        path: file that gets a line `name<TAB>reason` for each, appended as they are found; None keeps them in memory.
        policy: `"skip"`, or `"fail"`: the first one makes `check()` raise.
    """

    def __init__(self, path=None, policy="skip"):
        if policy not in ("skip", "fail"):
            raise UserError(f"on_bad_image must be skip or fail, received {policy!r}")
        self.path = Path(path) if path else None
        self.policy = policy
        self.reasons = {}
        self._lock = threading.Lock()
        if self.path and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.reasons = dict(line.split("\t", 1) for line in lines if "\t" in line)

    def record(self, name, read):
        """Notes the photo `name`, whose bytes `read()` gives; safe from any thread."""
        with self._lock:
            if name in self.reasons:
                return
            self._note([(name, problem(read) or "could not be read")])

    def add(self, passed_over):
        """Notes (name, reason) of what is known beforehand to be no photo that can be used."""
        with self._lock:
            self._note([(name, reason) for name, reason in passed_over if name not in self.reasons])

    def _note(self, found):
        self.reasons.update(found)
        if self.path and found:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\t{reason}\n" for name, reason in found)

    def check(self):
        """Raises UserError naming the first bad photo if the policy is `"fail"`."""
        if self.policy == "fail" and self.reasons:
            name, reason = next(iter(self.reasons.items()))
            raise UserError(f"{name}: {reason} (on_bad_image is fail; with skip it would be left out and listed)")


def _reason(error):
    """What a TensorFlow error says of the photo, in a few words, without node names and traces."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message or "").strip().splitlines()
    text = text[0].strip() if text else "could not be read"
    for sign, meaning in _MEANINGS.items():
        if sign in text:
            return meaning
    return text


def _decode_as_stored(contents, frame=None):
    """uint8 [H, W, 3] RGB, as the file has it, before any EXIF orientation; at least `frame`, [height, width]."""
    height, width = declared_size(contents)
    if frame is not None:
        height, width = tf.maximum(height, frame[0]), tf.maximum(width, frame[1])
    limit = tf.debugging.assert_less_equal(
        tf.cast(height, tf.int64) * tf.cast(width, tf.int64),
        tf.constant(MAX_PIXELS, tf.int64),
        f"larger than {MAX_PIXELS:,} pixels",
    )
    with tf.control_dependencies([] if limit is None else [limit]):
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    check = tf.debugging.assert_greater_equal(
        tf.reduce_min(tf.shape(image)[:2]), MIN_SIDE, f"smaller than {MIN_SIDE} pixels on a side"
    )
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(image)


def _header(contents, count):
    """The first `count` bytes as int32, zero-padded so that any small offset can be read."""
    start = tf.strings.substr(contents, 0, count)
    return tf.concat([tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32), tf.zeros([64], tf.int32)], 0)


def _little(header, position, count):
    values = tf.gather(header, tf.range(position, position + count))
    return tf.reduce_sum(values * [1 << (8 * i) for i in range(count)])


def _big(header, position, count):
    values = tf.gather(header, tf.range(position, position + count))
    return tf.reduce_sum(values * [1 << (8 * i) for i in reversed(range(count))])


def _starts_with(header, *values):
    return tf.reduce_all(header[: len(values)] == list(values))


def declared_size(contents):
    """(height, width) as the file's header declares them; (0, 0) for what is no photo."""

    def jpeg():
        shape = tf.io.extract_jpeg_shape(contents)
        return shape[0], shape[1]

    return tf.cond(_is_jpeg(contents), jpeg, lambda: _declared_size_of_others(contents))


@apart
def _declared_size_of_others(contents):
    header = _header(contents, 64)
    bits = tf.bitwise.bitwise_and(_little(header, 21, 4), (1 << 28) - 1)
    is_webp = _starts_with(header, *b"RIFF")
    kind = header[15]
    cases = [
        (_starts_with(header, 0x89, 0x50, 0x4E, 0x47), _big(header, 20, 4), _big(header, 16, 4)),
        (_starts_with(header, *b"GIF8"), _little(header, 8, 2), _little(header, 6, 2)),
        (_starts_with(header, *b"BM"), tf.abs(_little(header, 22, 4)), tf.abs(_little(header, 18, 4))),
        (is_webp & (kind == ord("L")), bits // 16384 + 1, bits % 16384 + 1),
        (is_webp & (kind == ord("X")), _little(header, 27, 3) + 1, _little(header, 24, 3) + 1),
        (is_webp, _little(header, 28, 2) % 16384, _little(header, 26, 2) % 16384),
    ]
    height = width = tf.constant(0)
    for matches, case_height, case_width in reversed(cases):
        height, width = tf.where(matches, case_height, height), tf.where(matches, case_width, width)
    return height, width


def _is_jpeg(contents):
    return tf.equal(tf.strings.substr(contents, 0, 3), b"\xff\xd8\xff")


@apart
def _first_frame(contents):
    byte = _bytes_of_gif(contents)
    frame = _first_descriptor(byte)
    height, width = (byte(frame + place) + 256 * byte(frame + place + 1) for place in (7, 5))
    pixels = frame + 10 + _table_bytes(byte(frame + 9)) + 1
    end = tf.while_loop(lambda p: byte(p) > 0, lambda p: (p + 1 + byte(p),), (pixels,), parallel_iterations=1)[0] + 1
    # a file that ends within the frame stays broken
    cut = tf.strings.join([tf.strings.substr(contents, 0, end), tf.where(byte(frame) == 0x2C, b";", b"")])
    return cut, tf.stack([height, width])


def _first_descriptor(byte):
    """Where a GIF's first frame begins; behind the end of the file if it has none."""

    def is_passed_over(position, within):
        return within | (byte(position) == 0x21)

    def next_block(position, within):
        # an extension is a label and blocks of up to 255 bytes, the last of which is empty
        length = byte(position)
        return tf.where(within, position + 1 + length, position + 2), ~within | (length > 0)

    start = 13 + _table_bytes(byte(10)), tf.constant(False)
    position, _ = tf.while_loop(is_passed_over, next_block, start, parallel_iterations=1)
    return tf.where(byte(position) == 0x2C, position, _BEHIND)


def _table_bytes(flags):
    """Bytes of a GIF's table of colours."""
    return tf.where(flags >= 128, tf.gather([3 * 2 ** (bits + 1) for bits in range(8)], flags % 8), 0)


def _bytes_of_gif(contents):
    """A function: place -> the byte there, 0 behind the end."""
    data = tf.concat([tf.io.decode_raw(contents, tf.uint8), tf.constant([0], tf.uint8)], 0)
    last = tf.size(data) - 1
    return lambda position: tf.cast(data[tf.minimum(position, last)], tf.int32)


def _exif_orientation(header):
    """The EXIF orientation, 1 to 8, of a JPEG's first bytes; 1 where there is none or it makes no sense."""
    size = tf.shape(header)[0] - 64

    def byte(position):
        return header[tf.clip_by_value(position, 0, size + 63)]

    def segment_length(position):
        return byte(position + 2) * 256 + byte(position + 3)

    def is_exif(position):
        return (byte(position + 1) == 0xE1) & (byte(position + 4) == ord("E")) & (byte(position + 5) == ord("x"))

    def is_passed_over(position):
        # up to the scan (0xDA): after it come pixels, not segments
        inside = (position + 4 <= size) & (byte(position) == 0xFF) & (byte(position + 1) != 0xDA)
        return inside & ~is_exif(position) & (segment_length(position) >= 2)

    position = tf.while_loop(is_passed_over, lambda p: (p + 2 + segment_length(p),), (tf.constant(2),))[0]
    tiff = position + 10
    little = byte(tiff) == ord("I")

    def number(where, count):
        values = tf.gather(header, tf.clip_by_value(where[..., None] + tf.range(count), 0, size + 63))
        weights = [1 << (8 * i) for i in range(count)]
        return tf.reduce_sum(values * tf.where(little, weights, list(reversed(weights))), -1)

    # an offset beyond the bytes read, or negative, makes no sense of the entries: clipped, they match nothing
    directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 8, _HEADER_BYTES)
    entries = directory + 2 + 12 * tf.range(tf.clip_by_value(number(directory, 2), 0, 512))
    found = tf.boolean_mask(number(entries + 8, 2), number(entries, 2) == 0x0112)
    orientation = tf.concat([found, [1]], 0)[0]
    sensible = is_exif(position) & (orientation >= 1) & (orientation <= 8)
    return tf.where(sensible, orientation, 1)


def _upright(image, contents):
    """Applies the orientation that the photo's bytes ask for."""
    # a scan of the bytes, since all but few photos need no more and the segments cost more to walk than to scan
    has_exif = _is_jpeg(contents) & tf.strings.regex_full_match(
        tf.strings.substr(contents, 0, _HEADER_BYTES), r"\C*Exif\C*"
    )
    return tf.ensure_shape(tf.cond(has_exif, lambda: _turned(image, contents), lambda: image), [None, None, 3])


@apart
def _turned(image, contents):
    def transposed(value):
        return tf.transpose(value, [1, 0, 2])

    turns = [
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        lambda: transposed(image),
        lambda: transposed(image)[:, ::-1],
        lambda: transposed(image)[::-1, ::-1],
        lambda: transposed(image)[::-1],
    ]
    return tf.switch_case(_exif_orientation(_header(contents, _HEADER_BYTES)) - 1, turns)
