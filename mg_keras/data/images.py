"""Photo bytes to RGB pixels, in the graph: the one place that decides what a usable photo is.

JPEG (greyscale, RGB and CMYK), PNG (any depth), WebP and GIF (of animations the first frame) and uncompressed BMP
become uint8 [H, W, 3] RGB. Alpha is dropped, and the EXIF orientation of a JPEG, PNG or WebP is applied. A photo is
refused when it can't be decoded whole, has more than `MAX_PIXELS` pixels (read from its header, before any memory is
spent on it) or a side below `MIN_SIDE`.
"""

import functools
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data import formats
from mg_keras.data.apart import apart
from mg_keras.data.bounds import MAX_PIXELS, MIN_SIDE
from mg_keras.data.formats import fields, jpeg
from mg_keras.data.formats import orientation as orientations
from mg_keras.data.formats.caught import caught
from mg_keras.errors import UserError
from mg_keras.files import printable_name

UNREADABLE = (tf.errors.OpError, OSError, UnicodeDecodeError)
"""What reading a photo at once raises; the last where TensorFlow words an error of a file whose name is no UTF-8."""

# kind -> what reads it
_OTHERS = {kind: kind.module() for kind in formats.OTHERS}
# what may come in place of photos
_STRANGERS = [
    (4, b"ftypavif", "an AVIF photo"),
    (4, b"ftypavis", "an AVIF photo"),
    *((4, b"ftyp" + brand, "a HEIC photo") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", "a video"),
    (4, b"JXL ", "a JPEG XL photo"),
    (0, b"\xff\x0a", "a JPEG XL photo"),
    (4, b"jP  ", "a JPEG 2000 photo"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 photo"),
    *((0, start, "a TIFF or raw camera file") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF file"),
]


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes one photo.

    Args:
        contents: scalar string tensor, the bytes of the file.

    Returns:
        uint8 [H, W, 3] RGB, upright.

    Raises:
        tf.errors.InvalidArgumentError: the photo is not usable; the message says why.
    """
    reason, image = _examined(contents)
    if not tf.executing_eagerly():
        with tf.control_dependencies([tf.debugging.Assert(reason == "", [reason])]):
            return tf.identity(image)
    if reason != "":
        raise tf.errors.InvalidArgumentError(None, None, reason.numpy().decode())
    return image


def decode_common(contents: tf.Tensor, reduction: Callable | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a JPEG or a PNG, and fails at once with any other photo: of the kinds that most are, quickly.

    Args:
        contents: scalar string tensor, the bytes of the file.
        reduction: int32 [height, width] -> by what a JPEG is reduced meanwhile: 1, 2, 4 or 8. None: 1.

    Returns:
        (image, size): uint8 [h, w, 3] RGB, upright, and int32 [height, width] that it has in full, upright.

    Raises:
        tf.errors.InvalidArgumentError: (when it runs) the photo is of another kind, or not usable.
    """
    contents = tf.ensure_shape(contents, [])
    is_jpeg = _is_jpeg(contents)
    image, size = _common(contents, reduction)
    usable = tf.debugging.Assert(tf.reduce_min(size) >= MIN_SIDE, ["no JPEG or PNG, or too small"])
    with tf.control_dependencies([usable]):
        image = tf.identity(image)
    image, size = tf.cond(
        orientations.may_turn(contents, is_jpeg), lambda: _upright(image, size, contents), lambda: (image, size)
    )
    return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(size, [2])


def try_decode(read: Callable, key: tf.Tensor, reduction: Callable | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads and decodes a photo where a broken one must stop nothing: in a pipeline, or at once.

    Args:
        read: key -> string scalar tensor, the bytes; its errors are caught too.
        key: scalar tensor that names the photo to `read`.
        reduction: int32 [height, width] -> by what a JPEG is reduced meanwhile: 1, 2, 4 or 8. None: 1.

    Returns:
        (ok, image): a bool scalar, and the photo, or one of 1x1 pixel where it can't be used.
    """
    if tf.executing_eagerly() and reduction is None:
        # the graph below as it was traced once
        try:
            reason, image = _examined(read(key))
        except UNREADABLE:
            return tf.constant(False), _no_photo()
        return reason == "", image

    def attempt(key):
        contents = tf.ensure_shape(read(key), [])
        return contents, *_common(contents, reduction)

    ok, contents, image, size = caught(attempt, key, ("", _no_photo(), tf.ones([2], tf.int32)))
    is_jpeg = _is_jpeg(contents)

    def other():
        ok, image = _of_other_kinds(contents)
        return ok, image, tf.shape(image)[:2]

    ok, image, size = tf.cond(is_jpeg | _is_png(contents), lambda: (ok, image, size), other)
    image = tf.ensure_shape(image, [None, None, 3])
    ok &= tf.reduce_min(size) >= MIN_SIDE
    image = tf.cond(
        ok & orientations.may_turn(contents, is_jpeg), lambda: _upright(image, size, contents)[0], lambda: image
    )
    return ok, tf.ensure_shape(image, [None, None, 3])


def declared_size(contents: tf.Tensor) -> tf.Tensor:
    """int32 [height, width] as the file's header declares them; (0, 0) for what is no photo and what can't be read.

    A GIF's holds its first frame too, an animation's all frames.
    """
    return tf.cond(_is_jpeg(contents), lambda: jpeg.declared_size(contents), lambda: _declared_size_of_others(contents))


def load(path: str | os.PathLike) -> np.ndarray:
    """Reads and decodes the photo at `path` eagerly: uint8 NumPy [H, W, 3].

    Raises:
        UserError: the photo is not usable; the message names it and says why.
    """
    try:
        # by its bytes, which need not be valid UTF-8
        contents = tf.io.read_file(os.fsencode(path))
    except UNREADABLE as error:
        raise UserError(f"{printable_name(path)}: {_reason(error)}") from None
    reason, image = _examined(contents)
    if reason != "":
        raise UserError(f"{printable_name(path)}: {reason.numpy().decode()}")
    return image.numpy()


def problem(read: Callable) -> str | None:
    """Why a photo can't be used, in a few words, or None where it can: `read()` returns its bytes."""
    try:
        contents = read()
    except UNREADABLE as error:
        return _reason(error)
    reason, _ = _examined(contents)
    return reason.numpy().decode() or None


class BadImages:
    """Collects the photos that could not be used, each once, with the reason.

    Args:
        path: file that gets a line `name<TAB>reason` for each, appended as they are found; None keeps them in memory.
        policy: `"skip"`, or `"fail"`: the first one makes `check()` raise. Those that the file has from before count
            with `"skip"` alone: a run that failed at a photo goes on once it is mended.
    """

    def __init__(self, path: str | os.PathLike | None = None, policy: str = "skip"):
        if policy not in ("skip", "fail"):
            raise UserError(f"on_bad_image must be skip or fail, received {policy!r}")
        self.path = Path(path) if path else None
        self.policy = policy
        self._listed = {}
        self._lock = threading.Lock()
        if self.path and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self._listed = dict(line.split("\t", 1) for line in lines if "\t" in line)
        self.reasons = dict(self._listed) if policy == "skip" else {}

    def record(self, name: str, read: Callable) -> None:
        """Notes the photo `name`, whose bytes `read()` gives; safe from any thread."""
        with self._lock:
            if name in self.reasons:
                return
            self._note([(name, problem(read) or "could not be read")])

    def add(self, passed_over: Iterable[tuple[str, str]]) -> None:
        """Notes (name, reason) of what is known beforehand to be no photo that can be used."""
        with self._lock:
            self._note([(name, reason) for name, reason in passed_over if name not in self.reasons])

    def _note(self, found):
        self.reasons.update(found)
        new = [(name, reason) for name, reason in found if name not in self._listed]
        if self.path and new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\t{reason}\n" for name, reason in new)

    def check(self) -> None:
        """Raises UserError naming the first bad photo if the policy is `"fail"`."""
        if self.policy == "fail" and self.reasons:
            name, reason = next(iter(self.reasons.items()))
            raise UserError(f"{name}: {reason} (on_bad_image is fail; with skip it would be left out and listed)")


def _reason(error):
    """What an error says of reading a file, in a few words; of TensorFlow's without node names and traces."""
    if isinstance(error, UnicodeDecodeError):
        return "could not be read"
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message or "").strip().splitlines()
    # of files: the path, which stands before the reason wherever it is told, and what the system says
    return text[0].rpartition("; ")[2].strip() if text else "could not be read"


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _examined(contents):
    """(why a photo can't be used, or "", the photo)."""
    ok, image = try_decode(tf.identity, contents)
    return tf.cond(ok, lambda: "", lambda: why_not(contents)), image


@apart
def why_not(contents: tf.Tensor) -> tf.Tensor:
    """Why a photo that `try_decode` can't decode can't be used, in a few words: scalar string."""
    kind = fields.first_text([(_is(known, contents), known.name) for known in formats.KINDS])
    named = fields.first_text([(fields.has(contents, place, sign), f"{name}, ") for place, sign, name in _STRANGERS])
    size = tf.cast(declared_size(contents), tf.int64)
    reasons = [
        (tf.strings.length(contents) == 0, "the file is empty"),
        (kind == "", tf.strings.join([named, formats.NO_PHOTO])),
        (tf.reduce_prod(size) > MAX_PIXELS, f"larger than {MAX_PIXELS:,} pixels"),
        (tf.reduce_all(size > 0) & (tf.reduce_min(size) < MIN_SIDE), f"smaller than {MIN_SIDE} pixels on a side"),
    ]
    for name, module in [("JPEG", jpeg), *((other.name, module) for other, module in _OTHERS.items())]:
        if find := getattr(module, "unsupported", None):
            found = tf.cond(kind == name, lambda find=find: find(contents), lambda: "")
            reasons.append((found != "", found))
    return fields.first_text([*reasons, (True, tf.strings.join([kind, " data is broken or cut off"]))])


def _is(kind, contents):
    return fields.has(contents, kind.place, kind.sign)


def _is_jpeg(contents):
    return _is(formats.COMMON[0], contents)


def _is_png(contents):
    return _is(formats.COMMON[1], contents)


def _no_photo():
    return tf.zeros([1, 1, 3], tf.uint8)


def _may_be_decoded(size):
    return (tf.reduce_min(size) > 0) & (tf.reduce_prod(tf.cast(size, tf.int64)) <= MAX_PIXELS)


def _decoded(contents):
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _common(contents, reduction):
    """(JPEG and PNG as they are stored, the size in full); one pixel of what is something else or too large."""

    def png():
        return tf.reverse(tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False), [0])

    size = tf.cond(
        _is_jpeg(contents),
        lambda: tf.io.extract_jpeg_shape(contents)[:2],
        lambda: tf.cond(_is_png(contents), png, lambda: tf.zeros([2], tf.int32)),
    )

    def photo():
        if reduction is None:
            image = _decoded(contents)
            return image, tf.shape(image)[:2]
        # by the headers: a PNG is not reduced
        by = tf.cond(_is_jpeg(contents), lambda: reduction(size), lambda: 1)
        reduced = [lambda by=by: tf.io.decode_jpeg(contents, channels=3, ratio=by) for by in (2, 4, 8)]
        place = tf.where(by == 8, 3, by // 2)
        return tf.switch_case(place, [lambda: _decoded(contents), *reduced]), size

    return tf.cond(_may_be_decoded(size), photo, lambda: (_no_photo(), tf.ones([2], tf.int32)))


@apart
def _of_other_kinds(contents):
    """(whether it could be decoded, the photo as it is stored or one pixel)."""
    is_kind = [_is(kind, contents) for kind in _OTHERS]
    none = ~(tf.reduce_any(is_kind) & _may_be_decoded(_declared_size_of_others(contents)))
    number = tf.argmax(tf.cast([none, *is_kind], tf.int32), output_type=tf.int32)
    decoders = [functools.partial(module.decode, contents) for module in _OTHERS.values()]
    return tf.switch_case(number, [lambda: (tf.constant(False), _no_photo()), *decoders])


@apart
def _declared_size_of_others(contents):
    def png():
        size = fields.at(contents, 16, 8)
        return tf.stack([fields.big(size[4:]), fields.big(size[:4])])

    size = tf.cond(_is_png(contents), png, lambda: tf.zeros([2], tf.int32))
    for kind, module in _OTHERS.items():
        find = functools.partial(module.declared_size, contents)
        size = tf.cond(_is(kind, contents), find, lambda size=size: size)
    return size


@apart
def _upright(image, size, contents):
    orientation = orientations.orientation(contents)
    # from 5 on rows and columns change places
    return orientations.upright(image, orientation), tf.where(orientation >= 5, size[::-1], size)
