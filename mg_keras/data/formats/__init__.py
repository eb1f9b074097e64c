"""The kinds of photo files that the decoder reads: what each is called and how it begins, and a module for each.

A new kind is one file here, called as the kind in lower case, and a line in `OTHERS`. Its file has, in the graph and of
TensorFlow's own operations, as they become part of the exported SavedModel:

* `declared_size(contents)`: int32 [height, width] by the header alone, not positive where it makes no sense;
* `decode(contents)`: (whether it could be decoded, uint8 [H, W, 3] or one pixel); it is called for what has a declared
  size within bounds;
* perhaps `unsupported(contents)`: what a file has that is not decoded, scalar string, empty for nothing.

What stands here needs no TensorFlow: programs that list files read it.
"""

import importlib
import struct
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


class Kind(NamedTuple):
    """A kind of photo file.

    Attributes:
        name: as messages have it.
        extensions: what its files are called, in lower case.
        place, sign: the bytes `sign` at `place` tell it from the other kinds.
        may_be: whether the first 64 bytes of a file of any name may be one, where the sign is short.
    """

    name: str
    extensions: tuple[str, ...]
    place: int
    sign: bytes
    may_be: Callable[[bytes], bool] = lambda header: True

    def begins(self, header: bytes) -> bool:
        """Whether a file of any name that begins with these 64 bytes is of this kind."""
        return header[self.place : self.place + len(self.sign)] == self.sign and self.may_be(header)

    def module(self) -> ModuleType:
        """What reads it; this loads TensorFlow."""
        return importlib.import_module(f"{__name__}.{self.name.lower()}")


def _is_bmp(header):
    # two letters are too few to tell a picture from a text
    return len(header) >= 18 and struct.unpack_from("<I", header, 14)[0] in _BMP_HEADERS


COMMON = (
    Kind("JPEG", (".jpg", ".jpeg"), 0, b"\xff\xd8\xff"),
    Kind("PNG", (".png",), 0, b"\x89PNG", lambda header: header[4:8] == b"\r\n\x1a\n"),
)
"""What most photos are, which `mg_keras.data.images` decodes without a detour."""

OTHERS = (
    Kind("WebP", (".webp",), 8, b"WEBP", lambda header: header[:4] == b"RIFF"),
    Kind("BMP", (".bmp",), 0, b"BM", _is_bmp),
    Kind("GIF", (".gif",), 0, b"GIF8"),
)

KINDS = (*COMMON, *OTHERS)

NO_PHOTO = f"not a {', '.join(kind.name for kind in KINDS[:-1])} or {KINDS[-1].name} file"
"""What is said of a file that is of none of them."""

EXTENSIONS = tuple(extension for kind in KINDS for extension in kind.extensions)
"""What the photos are called that the decoder reads."""
