"""Small pictures of photos, for pages and reports."""

import contextlib
import io
import os
import tempfile
import warnings
from pathlib import Path

from PIL import Image

from mg_keras.data import finding
from mg_keras.data.pillow_photos import eight_bits, opened, upright

LOOK = 3
"""Number of how thumbnails show photos: one that was kept of another is not taken for this one's."""

_QUALITY = 80
# pixels of a side by which a photo is known to be of one colour, and how far that differs as it is compressed
_FEW, _SAME_COLOUR = 64, 8


def thumbnail(path: str | os.PathLike, side: int = 256) -> bytes | None:
    """A small upright picture of a photo.

    Args:
        path: of the file.
        side: pixels that neither side exceeds.

    Returns:
        The bytes of a JPEG without the photo's EXIF data; None where there is no photo that can be opened.
    """
    image = small(path, side)
    return image and as_jpeg(image)


def small(path: str | os.PathLike, side: int) -> Image.Image | None:
    """A photo upright and in RGB, neither side above `side` pixels; None where there is none that can be opened.

    What is transparent is white, or grey where all that can be seen is as white.
    """
    image = _reduced(path, side, True)
    if image is None or image.mode == "RGB":
        return image
    over_white = _over(image, "white")
    return _over(image, "grey") if _is_flat(over_white) else over_white


def is_of_one_colour(path: str | os.PathLike) -> bool:
    """Whether a photo is as networks see it, who take no alpha: a black logo on nothing is black everywhere."""
    image = _reduced(path, _FEW, False)
    return image is not None and _is_flat(image)


def _reduced(path, side, keep_alpha):
    """RGB, or RGBA where alpha is kept and there is some; None where it can't be opened."""
    path = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # the limit on pixels is ours, and what is cut off has been told
            warnings.simplefilter("ignore")
            kind = finding.look_at([path], "thumbnail")[0].kinds.get(path)
            image = opened(path, kind, keep_alpha) if kind else Image.open(path)
            with image:
                # of a JPEG, an eighth or more of the pixels need not be decoded
                image.draft("RGB", (2 * side, 2 * side))
                reduced = eight_bits(upright(image))
                if reduced.has_transparency_data:
                    # before it is reduced, which weighs colours by alpha, and mixes one that stands for nothing
                    reduced = reduced.convert("RGBA" if keep_alpha else "RGB")
                reduced.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
                return reduced if reduced.mode == "RGBA" else reduced.convert("RGB")
    except Exception:  # decoders raise anything on broken files
        return None


def _over(image, colour):
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _is_flat(image):
    return all(most - least <= _SAME_COLOUR for least, most in image.getextrema())


def as_jpeg(image: Image.Image) -> bytes:
    """An RGB image as the bytes of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


class Thumbnails:
    """Thumbnails that are kept in a folder, by the content of their photos.

    Args:
        folder: made where it is not there; where it can't be written to, nothing is kept.
        side: pixels that neither side exceeds.
    """

    def __init__(self, folder: Path, side: int = 256):
        self.folder, self.side = folder, side

    def get(self, path: str | os.PathLike, sha256: str | None) -> bytes | None:
        """As `thumbnail`, of a photo whose content has this hash, in hexadecimal."""
        if not sha256:
            return thumbnail(path, self.side)
        kept = self.folder / sha256[:2] / f"{sha256}-{self.side}-{LOOK}.jpg"
        with contextlib.suppress(OSError):
            # one that a power cut has emptied is made again
            if picture := kept.read_bytes():
                return picture
        made = thumbnail(path, self.side)
        if made:
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                # whole or not at all
                number, partial = tempfile.mkstemp(dir=kept.parent, prefix=".")
                try:
                    with open(number, "wb") as file:
                        file.write(made)
                    os.replace(partial, kept)
                except OSError:
                    os.unlink(partial)
        return made
