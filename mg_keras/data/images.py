"""Photo bytes to RGB pixels, in the graph: the one place that decides what a usable photo is.

JPEG (greyscale, RGB and CMYK), PNG (any depth; alpha is dropped), WebP, BMP and the first frame of a GIF become uint8
[H, W, 3] RGB; a JPEG's EXIF orientation is applied. A photo is refused when it can't be decoded whole, has more than
`MAX_PIXELS` pixels (read from its header, before any memory is spent on it) or a side below `MIN_SIDE`.
"""

import re
import threading
from pathlib import Path

import tensorflow as tf

from mg_keras.errors import UserError

MAX_PIXELS = 128_000_000
MIN_SIDE = 8
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# where EXIF may stand: segments hold at most 64 KiB, and few programs write anything before it but a thumbnail's
_HEADER_BYTES = 1 << 17

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
    header = _header(contents)
    height, width = _declared_size(contents, header)
    limits = [
        tf.debugging.assert_less_equal(
            tf.cast(height, tf.int64) * tf.cast(width, tf.int64),
            tf.constant(MAX_PIXELS, tf.int64),
            f"larger than {MAX_PIXELS:,} pixels",
        )
    ]
    with tf.control_dependencies([check for check in limits if check is not None]):
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    check = tf.debugging.assert_greater_equal(
        tf.reduce_min(tf.shape(image)[:2]), MIN_SIDE, f"smaller than {MIN_SIDE} pixels on a side"
    )
    with tf.control_dependencies([] if check is None else [check]):
        return _upright(image, _exif_orientation(header))


def try_decode(read, key):
    """Reads and decodes a photo in a pipeline that a broken one must not stop.

    Args:
        read: key -> string scalar tensor, the bytes; its errors are caught too.
        key: scalar tensor that names the photo to `read`.

    Returns:
        (ok, image): a bool scalar, and the photo, or one of 1x1 pixel where it can't be used.
    """
    # A one-element dataset whose errors are ignored is a try/except within the graph.
    decoded = tf.data.Dataset.from_tensors(key).map(lambda value: (True, decode(read(value))))
    sentinel = tf.data.Dataset.from_tensors((False, tf.zeros((1, 1, 3), tf.uint8)))
    ok, image = decoded.ignore_errors().concatenate(sentinel).take(1).get_single_element()
    return tf.ensure_shape(ok, []), tf.ensure_shape(image, [None, None, 3])


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
            reason = problem(read) or "could not be read"
            self.reasons[name] = reason
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{name}\t{reason}\n")

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


def _header(contents):
    """The first bytes as int32, zero-padded so that any small offset can be read."""
    start = tf.strings.substr(contents, 0, _HEADER_BYTES)
    return tf.concat([tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32), tf.zeros([64], tf.int32)], 0)


def _little(header, position, count):
    values = tf.gather(header, tf.range(position, position + count))
    return tf.reduce_sum(values * [1 << (8 * i) for i in range(count)])


def _big(header, position, count):
    values = tf.gather(header, tf.range(position, position + count))
    return tf.reduce_sum(values * [1 << (8 * i) for i in reversed(range(count))])


def _starts_with(header, *values):
    return tf.reduce_all(header[: len(values)] == list(values))


def _declared_size(contents, header):
    """(height, width) as the file's header declares them; (0, 0) for what is no photo."""

    def webp():
        kind = header[15]
        lossless = tf.stack([_little(header, 21, 4)])
        bits = tf.bitwise.bitwise_and(lossless, (1 << 28) - 1)[0]
        sizes = tf.stack(
            [
                tf.stack([_little(header, 28, 2), _little(header, 26, 2)]) % 16384,  # "VP8 "
                tf.stack([bits // 16384, bits % 16384]) + 1,  # "VP8L"
                tf.stack([_little(header, 27, 3), _little(header, 24, 3)]) + 1,  # "VP8X"
            ]
        )
        row = tf.where(kind == ord("L"), 1, tf.where(kind == ord("X"), 2, 0))
        size = sizes[row]
        return size[0], size[1]

    def jpeg():
        shape = tf.io.extract_jpeg_shape(contents)
        return shape[0], shape[1]

    return tf.case(
        [
            (_starts_with(header, 0xFF, 0xD8, 0xFF), jpeg),
            (_starts_with(header, 0x89, 0x50, 0x4E, 0x47), lambda: (_big(header, 20, 4), _big(header, 16, 4))),
            (_starts_with(header, *b"GIF8"), lambda: (_little(header, 8, 2), _little(header, 6, 2))),
            (_starts_with(header, *b"BM"), lambda: (tf.abs(_little(header, 22, 4)), tf.abs(_little(header, 18, 4)))),
            (_starts_with(header, *b"RIFF"), webp),
        ],
        default=lambda: (tf.constant(0), tf.constant(0)),
    )


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

    def read_tag():
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

    return tf.cond(_starts_with(header, 0xFF, 0xD8, 0xFF), read_tag, lambda: tf.constant(1))


def _upright(image, orientation):
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
    return tf.ensure_shape(tf.switch_case(orientation - 1, turns), [None, None, 3])
