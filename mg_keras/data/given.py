"""Photos as a caller has them at hand: files, their bytes, arrays, PIL images, or a folder of files."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras.data.bounds import MIN_SIDE, in_0_to_1
from mg_keras.data.images import UNREADABLE, decode_common, problem, try_decode
from mg_keras.data.pillow_photos import decodable, eight_bits, upright
from mg_keras.data.sources import Split, photos
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name

# of PIL images, those whose values are grey levels and colours of 8 bits
_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
# what is one photo
_PHOTO = str | os.PathLike | bytes | bytearray | memoryview | Image.Image


def given_photos(what: Any) -> "Split | GivenPhotos":
    """Photos to embed, of any sizes and kinds.

    Args:
        what: a folder, whose photos are taken at any depth in order of name; or one photo or several, each of them

            * the path of a file, or its bytes, as `mg_keras.data.images` decodes them, or a TIFF, AVIF or HEIC;
            * an array [H, W, 3] of RGB in 0-255, uint8 or float (a batch [N, H, W, 3] is N of them);
            * a PIL image, which is turned upright as its EXIF data say.

    Returns:
        What `mg_keras.embedding.photos.embed` takes as a split.

    Raises:
        UserError: the folder is not there, or has no photo in it; or `what` is none of the above.
    """
    if isinstance(what, str) and not what:
        raise UserError('photos must be paths, received ""')
    if isinstance(what, str | os.PathLike) and in_home(what).is_dir():
        return photos(in_home(what))
    if isinstance(what, _PHOTO) or getattr(what, "ndim", None) == 3:
        what = [what]
    elif hasattr(what, "read") or not isinstance(what, Iterable):
        raise UserError(
            "photos must be a folder, or one or more paths, bytes, arrays [H, W, 3] or PIL images, "
            f"received {type(what).__name__}"
        )
    return GivenPhotos(list(what))


class GivenPhotos:
    """Photos in a list, as the part of `Split` that embedding takes.

    Args:
        items: paths, bytes, arrays and PIL images, as `given_photos` takes them.

    Attributes:
        names: what to call each in messages: its path, or `photo 3` for the third.
        files: the path of each, as `Split.files`; None where one is no file.
    """

    def __init__(self, items: list):
        self.names = []
        self._troubles = {}
        self._arrays = {}
        paths, contents = [], []
        for place, item in enumerate(items):
            path, content = b"", b""
            if isinstance(item, str | os.PathLike):
                # opened by its bytes, which need not be valid UTF-8
                path = os.fsencode(in_home(item))
            elif isinstance(item, bytes | bytearray | memoryview):
                content = bytes(item)
            else:
                self._add_array(place, item)
            self.names.append(printable_name(os.fsdecode(path)) or f"photo {place + 1}")
            paths.append(path)
            contents.append(content)
        self.files = paths if all(paths) else None
        self._paths, self._contents = tf.constant(paths, tf.string), tf.constant(contents, tf.string)
        in_memory = self._arrays.keys() | self._troubles.keys()
        self._in_memory = tf.constant([place in in_memory for place in range(len(items))], tf.bool)
        # whole grey levels stay what they are, and pixels between them are not rounded
        floats = any(array.dtype != np.uint8 for array in self._arrays.values())
        self._type = tf.float32 if floats else tf.uint8

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Split.image`; the pixels are floats where any of the arrays is."""
        ok, image = tf.cond(self._in_memory[row], lambda: self._held(row), lambda: self._decoded(row))
        return tf.ensure_shape(ok, []), tf.ensure_shape(image, [None, None, 3])

    def common_image(self, row: tf.Tensor, decode: Callable = decode_common) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Split.common_image`: each photo by itself, whatever others there are."""

        def held():
            ok, image = self._held(row)
            with tf.control_dependencies([tf.debugging.Assert(ok, ["can't be used"])]):
                return tf.identity(image), tf.shape(image)[:2]

        def decoded():
            image, size = decode(self.read(row))
            return tf.cast(image, self._type), size

        if not self._arrays:
            return decoded()

        image, size = tf.cond(self._in_memory[row], held, decoded)
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(size, [2])

    def reason(self, row: int) -> str:
        """Why a photo can't be used, in a few words."""
        if row in self._troubles:
            return self._troubles[row]
        _, trouble = self._converted(row)
        return trouble or problem(lambda: self.read(tf.constant(row))) or "could not be read"

    def _add_array(self, place, item):
        trouble, array = _pixels(item)
        if trouble:
            self._troubles[place] = trouble
        else:
            self._arrays[place] = array

    def read(self, row: tf.Tensor) -> tf.Tensor:
        """The bytes of a photo that is a file, or was given as bytes; graph code."""
        path = self._paths[row]
        return tf.cond(path == "", lambda: self._contents[row], lambda: tf.io.read_file(path))

    def _decoded(self, row):
        def convert():
            contents = tf.numpy_function(lambda row: self._converted(row)[0], [row], tf.string)
            return try_decode(tf.identity, tf.ensure_shape(contents, []))

        ok, image = try_decode(self.read, row)
        ok, image = tf.cond(ok, lambda: (ok, image), convert)
        return ok, tf.cast(image, self._type)

    def _converted(self, row):
        """`decodable` of a photo's bytes."""
        try:
            return decodable(self.read(tf.constant(int(row))).numpy())
        except UNREADABLE:
            return b"", None

    def _held(self, row):
        dtype = self._type.as_numpy_dtype

        def look_up(row):
            array = self._arrays.get(int(row))
            return array is not None, np.zeros((1, 1, 3), dtype) if array is None else array.astype(dtype)

        ok, image = tf.numpy_function(look_up, [row], (tf.bool, self._type))
        return ok, image


def _pixels(item):
    """(why it can't be used, or None; RGB [H, W, 3] in 0-255, uint8 or float32)."""
    if isinstance(item, Image.Image):
        if item.mode in ("I", "F"):
            return f"a PIL image of mode {item.mode}: bring its values to 0-255 and convert it to RGB", None
        if item.mode not in _PIL_MODES and not item.mode.startswith("I;16"):
            return f"a PIL image of mode {item.mode}: convert it to RGB", None
        try:
            array = np.asarray(eight_bits(upright(item)).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            return " ".join(str(error).split()), None
    elif hasattr(item, "__array__"):
        array = np.asarray(item)
    else:
        return f"a {type(item).__name__}, where a path, bytes, an array or a PIL image was expected", None
    if array.ndim != 3 or array.shape[-1] != 3:
        return f"an array of shape {list(array.shape)}, where [H, W, 3], RGB, was expected", None
    if min(array.shape[:2]) < MIN_SIDE:
        return f"smaller than {MIN_SIDE} pixels in one direction", None
    if array.dtype.kind not in "uif":
        return f"an array of {array.dtype}, where numbers in 0-255 were expected", None
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 255):
        return "an array with values that are not in 0-255", None
    if trouble := in_0_to_1(array):
        return trouble, None
    return None, array if array.dtype == np.uint8 else array.astype(np.float32)
