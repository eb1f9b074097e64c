"""Small pictures of photos, for pages and reports."""

import io
import os
import warnings

from PIL import Image, ImageOps

from mg_keras.data import finding
from mg_keras.data.pillow_photos import opened

_QUALITY = 80


def thumbnail(path: str | os.PathLike, side: int = 256) -> bytes | None:
    """A small upright picture of a photo.

    Args:
        path: of the file.
        side: pixels that neither side exceeds.

    Returns:
        The bytes of a JPEG without the photo's EXIF data; None where there is no photo that can be opened.
    """
    path = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # the limit on pixels is ours, and what is cut off has been told
            warnings.simplefilter("ignore")
            kind = finding.look_at([path], "thumbnail")[0].kinds.get(path)
            image = opened(path, kind) if kind else Image.open(path)
            with image:
                # of a JPEG, an eighth or more of the pixels need not be decoded
                image.draft("RGB", (2 * side, 2 * side))
                small = ImageOps.exif_transpose(image)
                small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
                buffer = io.BytesIO()
                small.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    except Exception:  # decoders raise anything on broken files
        return None
    return buffer.getvalue()
