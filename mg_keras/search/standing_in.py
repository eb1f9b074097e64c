"""Whether a photo may be thrown away for another one: whether that one has all that it has, and as well.

`verification` says that two photos are copies, whichever is the better one, by what both show at 320 pixels. Here one
has to stand in for the other. Of the same frame, no smaller and with no fewer colours, it is brought to the size of the
copy, and all pixels of that are compared, so that small print counts. The copy's luminance is c, the other's k; h is
what of them a blur of 1.5 pixels takes away.

1. *Tones*: around each pixel the mean of c is that of k, and where the copy is not grey throughout, the colours are.
2. *Detail*: around each pixel, what of c no multiple of k explains, the deviation sqrt(var c - cov(c, k)^2 / var k), is
   little, or little beside c's own. Noise and a compression of the copy are; another digit, or a line of light grey in
   the copy alone, is not.
3. *Sharpness*: |h_k|^2 >= 0.93 |h_c|^2, and h_c . h_k >= 0.85 |h_c|^2. What was enlarged, blurred or strongly
   compressed has less. And around each pixel, noise taken away, h_c . h_k >= 0.6 |h_c|^2: no face is blurred.

A place that differs may have as many pixels as a compression to a quality of 30 leaves. The limits were chosen on 10
photos, their versions by JPEG, five ways to resize, and blurs, and on pages of text that differ in a digit or a line: a
copy by nearest pixels, strongly compressed, or blurred by more than a pixel may be refused, and text less than ten
pixels high, which can hardly be read, may differ.
"""

import os
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mg_keras.data import finding
from mg_keras.search.thumbnails import small

# pixels of a photo beyond which it isn't compared, as both are in memory
_LARGEST, _HEADER_BYTES = 64_000_000, 64
_TILE, _BESIDE = 1024, 32
_WINDOW, _SMALL_WINDOW = 15, 7
# of tones and colours, levels; and pixels of a place
_TONE, _TONE_PLACE, _COLOUR, _COLOUR_PLACE, _GREY = 8, 60, 10, 200, 4
# of what isn't explained, in the large and in the small window: levels, and pixels of a place; the share beside its own
_FAINT, _FAINT_PLACE, _UNEXPLAINED, _UNEXPLAINED_PLACE, _SHARE = 5, 200, 8, 12, 0.35
_NOISE, _FINE, _ENERGY, _IN_COMMON = 0.7, 1.5, 0.93, 0.85
# of places that are less sharp: what is noise, and what is fine; a window; levels squared; the share; pixels
_BLURS, _SOFT_WINDOW, _SOFT, _SOFT_SHARE, _SOFT_PLACE = (1.0, 2.0), 31, 4, 0.6, 100


def has_one_picture(path: str | os.PathLike) -> bool:
    """Whether a file holds one picture alone, no pages or frames beside the first; not where that can't be told."""
    header = _header(path)
    return header is not None and header.pictures == 1


def stands_in(keep: str | os.PathLike, copy: str | os.PathLike) -> bool:
    """Whether a photo has all that a copy of it has: its frame, size, tones, colours, detail and sharpness.

    Args:
        keep: path of the photo that would be kept.
        copy: path of the one that would go.

    Returns:
        Whether it has; not where one of the two can't be opened, is too large to be compared, has more pictures than
        one, or where the copy alone has alpha.
    """
    of_keep, of_copy = _header(keep), _header(copy)
    if of_keep is None or of_copy is None or of_copy.pictures > 1 or max(of_keep.pixels, of_copy.pixels) > _LARGEST:
        return False
    if of_copy.alpha and not of_keep.alpha:
        return False
    kept, copied = small(keep, _LARGEST), small(copy, _LARGEST)
    if kept is None or copied is None or kept.width < copied.width or kept.height < copied.height:
        return False
    if kept.size != copied.size:
        # the sharpest of the usual ways, that none has more detail by the way it was made smaller
        kept = kept.resize(copied.size, Image.Resampling.LANCZOS)
    return _has_all(np.asarray(kept), np.asarray(copied))


def _has_all(kept, copied):
    """Of two pictures, uint8 [H, W, 3]."""
    coloured, energies = _is_coloured(copied), np.zeros(3)
    for top in range(0, len(copied), _TILE):
        for left in range(0, copied.shape[1], _TILE):
            rows = slice(max(0, top - _BESIDE), top + _TILE + _BESIDE)
            columns = slice(max(0, left - _BESIDE), left + _TILE + _BESIDE)
            k, c = (_luminance_and_colours(each[rows, columns]) for each in (kept, copied))
            if not _same_tones(k, c, coloured):
                return False
            k, c = (np.ascontiguousarray(each[..., 0]) for each in (k, c))
            if not _is_explained(k, c) or _is_softer(k, c):
                return False
            fine_k, fine_c = _fine(k, _FINE), _fine(c, _FINE)
            energies += (fine_k * fine_k).sum(), (fine_k * fine_c).sum(), (fine_c * fine_c).sum()
    of_kept, in_common, of_copied = energies
    return bool(of_kept >= _ENERGY * of_copied and in_common >= _IN_COMMON * of_copied)


def _luminance_and_colours(pixels):
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2YCrCb).astype(np.float32)


def _is_coloured(pixels):
    least, most = pixels.min(axis=2), pixels.max(axis=2)
    return bool((cv2.blur(cv2.subtract(most, least), (_WINDOW, _WINDOW)) > _GREY).any())


def _same_tones(k, c, coloured):
    apart = np.abs(_mean(k, _WINDOW) - _mean(c, _WINDOW))
    if _place(apart[..., 0] > _TONE) >= _TONE_PLACE:
        return False
    return not coloured or _place(apart[..., 1:].max(axis=2) > _COLOUR) < _COLOUR_PLACE


def _is_explained(k, c):
    # of noise, and of pixels that a way to resize has moved by a part of one
    k, c = (cv2.GaussianBlur(each, (0, 0), _NOISE) for each in (k, c))
    for window, least, place in (
        (_WINDOW, _FAINT, _FAINT_PLACE),
        (_SMALL_WINDOW, _UNEXPLAINED, _UNEXPLAINED_PLACE),
    ):
        mean_k, mean_c = _mean(k, window), _mean(c, window)
        variance_k = np.maximum(_mean(k * k, window) - mean_k**2, 0)
        variance_c = np.maximum(_mean(c * c, window) - mean_c**2, 0)
        covariance = _mean(k * c, window) - mean_k * mean_c
        rest = np.sqrt(np.maximum(variance_c - covariance**2 / np.maximum(variance_k, 1e-3), 0))
        if _place(rest > least + _SHARE * np.sqrt(variance_c)) >= place:
            return False
    return True


def _is_softer(k, c):
    noise, fine = _BLURS
    k, c = (_fine(cv2.GaussianBlur(each, (0, 0), noise), fine) for each in (k, c))
    of_copied, in_common = _mean(c * c, _SOFT_WINDOW), _mean(k * c, _SOFT_WINDOW)
    return _place((of_copied > _SOFT) & (in_common < _SOFT_SHARE * of_copied)) >= _SOFT_PLACE


def _fine(values, blur):
    return values - cv2.GaussianBlur(values, (0, 0), blur)


def _mean(values, window):
    return cv2.blur(values, (window, window))


def _place(differs):
    """Pixels of the largest place that differs."""
    if not differs.any():
        return 0
    return int(cv2.connectedComponentsWithStats(differs.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA].max(initial=0))


class _Header(NamedTuple):
    """What a file says of its pictures: how many there are; of the first its pixels, and whether it has alpha."""

    pictures: int
    pixels: int
    alpha: bool


def _header(path):
    """`_Header` of a file, or None."""
    try:
        with warnings.catch_warnings():
            # the limit on pixels is ours
            warnings.simplefilter("ignore")
            with open(path, "rb", buffering=0) as file:
                kind = finding.kind_of(file.read(_HEADER_BYTES))
            if kind == "HEIC":
                # an extra, which may be missing
                import pillow_heif

                pictures = pillow_heif.open_heif(path)
                return _Header(len(pictures), pictures.size[0] * pictures.size[1], pictures.has_alpha)
            with Image.open(path) as image:
                count = getattr(image, "n_frames", 1)
                return _Header(count, image.width * image.height, image.has_transparency_data)
    except Exception:  # decoders raise anything on broken files
        return None
