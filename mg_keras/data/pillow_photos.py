"""Photos that TensorFlow's decoders do not read, by Pillow: TIFF, AVIF and HEIC."""

import io
import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mg_keras.data.bounds import MAX_PIXELS
from mg_keras.data.finding import CONVERTED, kind_of

# of TIFF: the photo is a thumbnail of another one in the file, and the sign of a digital negative
_IS_THUMBNAIL, _DNG_VERSION = 254, 50706
# of EXIF, and those of its values that turn a photo by a quarter
_ORIENTATION, _QUARTERS = 0x0112, (5, 6, 7, 8)


def opened(path: str | os.PathLike | BinaryIO, kind: str, keep_alpha: bool = False) -> Image.Image:
    """The photo as a PIL image, RGB and upright; of several pictures in a file the first, of HEIC the primary one.

    Args:
        path: of the file, or the file.
        kind: `"TIFF"`, `"AVIF"` or `"HEIC"`.
        keep_alpha: whether one with alpha becomes RGBA, for who looks at it: networks take none.

    Raises:
        Exception: of any type, as decoders have it; its first line says why this is no photo that can be used.
    """
    if kind == "HEIC":
        # an extra, which may be missing
        import pillow_heif

        # turned as the file itself says; its EXIF orientation is a remainder that readers have to ignore
        file = pillow_heif.open_heif(path)
        _check_size(file.size)
        return _rgb(file.to_pillow(), keep_alpha)
    with Image.open(path, formats=[kind]) as image:
        _check_size(image.size)
        tags = getattr(image, "tag_v2", {})
        if tags.get(_IS_THUMBNAIL, 0) & 1 or _DNG_VERSION in tags:
            raise ValueError("it is a camera's raw file")
        return _rgb(upright(image), keep_alpha)


def size_of(path: str | os.PathLike, kind: str | None) -> tuple[int, int]:
    """(width, height) of a photo upright, as its header has it.

    Args:
        path: of the file.
        kind: `"HEIC"`, if it is one; any other kind is seen by Pillow itself.

    Raises:
        Exception: of any type, where it can't be read.
    """
    if kind == "HEIC":
        import pillow_heif

        return pillow_heif.open_heif(path).size
    with Image.open(path) as image:
        if image.format == "TIFF":
            # turned by Pillow already
            return image.size
        try:
            turned = image.getexif().get(_ORIENTATION) in _QUARTERS
        except Exception:  # as `upright` has it
            turned = False
        return image.size[::-1] if turned else image.size


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data say; where they can't be read, they say nothing."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # PNG and WebP have anything for EXIF data, and it raises anything
        return image


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16-bit greys as the decoder takes such a PNG, by their upper 8 bits; any other as it is.

    What Pillow makes of one in RGB is white wherever it is brighter than 255 of 65 535.
    """
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else image


def write(image: Image.Image, kind: str, file: str | os.PathLike | BinaryIO) -> None:
    """Writes a photo that was `opened`, as the decoder reads it.

    A TIFF becomes a PNG, without loss; AVIF and HEIC, which have lost something already, a JPEG of quality 95 with
    colours at full resolution.
    """
    if kind == "TIFF":
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, "JPEG", quality=95, subsampling=0)


def decodable(contents: bytes) -> tuple[bytes, str | None]:
    """A photo as the decoder reads it, TIFF, AVIF and HEIC converted as `write` does, and any other file as it is.

    Returns:
        (the bytes, None), or (nothing, why it can't be converted).
    """
    kind = kind_of(contents[:64])
    if kind not in CONVERTED:
        return contents, None
    file = io.BytesIO()
    try:
        write(opened(io.BytesIO(contents), kind), kind, file)
    except Exception as error:  # decoders raise anything on broken files, and each means: not this photo
        return b"", why_not(error, kind)
    return file.getvalue(), None


def why_not(error: Exception, kind: str) -> str:
    """What an error of `opened` says of the photo, in a few words."""
    reason = str(error).strip().splitlines()[:1]
    return f"{kind} that can't be converted: {reason[0] if reason else type(error).__name__}"


def _check_size(size):
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"larger than {MAX_PIXELS:,} pixels")


def _rgb(image, keep_alpha):
    image = eight_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError("its values are of 32 bits, and what is white among them is not known")
    return image.convert("RGBA" if keep_alpha and image.has_transparency_data else "RGB")
