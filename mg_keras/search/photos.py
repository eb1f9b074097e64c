"""What an index knows of a file besides its descriptor, found without decoding it."""

import dataclasses
import hashlib
import os
import stat
import warnings
from typing import Any

import numpy as np
from PIL import Image

from mg_keras.data import finding, pillow_photos

_BLOCK_BYTES, _HEADER_BYTES = 1 << 20, 64
_LATEST = (1 << 63) - 1
_PALETTES = ("P", "PA")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a photo's content.

    Attributes:
        file_size: bytes; None for what is no file.
        modified: its time, nanoseconds since 1970; None for what is no file.
        sha256: of its content, 32 bytes; None where it could not be read.
        width, height: pixels, upright; None where they are not known.
        problem: why it can't be read, in a few words, or None.
    """

    file_size: int | None = None
    modified: int | None = None
    sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    problem: str | None = None


def stamp(path: str | os.PathLike) -> tuple[int, int] | None:
    """(file_size, modified) of a file; None if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_size, _modified(found)) if stat.S_ISREG(found.st_mode) else None


def look_at_file(path: str | os.PathLike) -> Facts:
    """Reads a file once, whole, for its hash, and its header for its size."""
    try:
        with open(path, "rb", buffering=0) as file:
            # before it is read: what is written meanwhile makes another time, which the next look sees
            found = os.fstat(file.fileno())
            digest = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:
        return Facts(problem="no such file")
    except (OSError, ValueError) as error:
        return Facts(problem=f"could not be read: {getattr(error, 'strerror', None) or error}")
    width, height = size_of(path)
    return Facts(found.st_size, _modified(found), digest.digest(), width, height)


def size_of(path: str | os.PathLike) -> tuple[int, int] | tuple[None, None]:
    """(width, height) of a file as its header has it, upright; None for both where they are not known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(path, "rb", buffering=0) as file:
                kind = finding.kind_of(file.read(_HEADER_BYTES))
            return pillow_photos.size_of(path, kind)
    except Exception:  # of a header that can't be read, the size is not known
        return None, None


def look_at(photo: Any) -> Facts:
    """Of bytes, an array or a PIL image; what is none of these has no facts."""
    if isinstance(photo, bytes | bytearray):
        return Facts(len(photo), None, hashlib.sha256(photo).digest())
    if isinstance(photo, Image.Image):
        # which colours the values are
        colours = (photo.mode, photo.getpalette(), photo.info.get("transparency")) if photo.mode in _PALETTES else ()
        return Facts(None, None, _hash_of_pixels(np.asarray(photo), *colours), *photo.size)
    if hasattr(photo, "__array__") and np.ndim(photo) == 3:
        array = np.asarray(photo)
        return Facts(None, None, _hash_of_pixels(array), array.shape[1], array.shape[0])
    return Facts()


def pixels(path: str | os.PathLike, kind: str, resolution: int) -> tuple[Image.Image | None, str | None]:
    """A TIFF, AVIF or HEIC as a PIL image, no larger than a network needs it, or why there is none.

    Args:
        path: of the file.
        kind: which of them it is.
        resolution: pixels that it will be embedded at: both sides stay at least twice as large, as far as they were.

    Returns:
        (image, problem), one of them None.
    """
    try:
        with warnings.catch_warnings():
            # the limit on pixels is ours
            warnings.simplefilter("ignore")
            image = pillow_photos.opened(path, kind)
    except Exception as error:  # decoders raise anything on broken files, and each means: not this photo
        reason = str(error).strip().splitlines()[:1]
        return None, f"{kind} that can't be opened: {reason[0] if reason else type(error).__name__}"
    # hundreds of them are held together
    return image.reduce(max(1, min(image.size) // (2 * resolution))), None


def _modified(found):
    # what an index has room for: clocks that were wrong have set years beyond 2262
    return max(-_LATEST, min(found.st_mtime_ns, _LATEST))


def _hash_of_pixels(array, *beside):
    return hashlib.sha256(repr((array.shape, array.dtype.str, *beside)).encode() + array.tobytes()).digest()
