"""Whether two photos are copies, by their pixels: a copy is the same picture after a map, another shot is not.

1. *The same frame.* Both are brought to one size. That finds what was compressed, resized, blurred, written on, made
   grey, brighter or darker.
2. *A map.* SIFT's keypoints are matched, and RANSAC looks for the homography between them. That finds what was cropped,
   turned or warped. One photo must lie within the other: of two shots of a scene each shows what the other does not.

Either way the two are then compared where they overlap: the sharper one is blurred as the other is, pixels that are
clipped to black or white in one of them alone and padding that both have are left out, and around each pixel the
correlation r of the two is computed over a window. With the texture of a place as its weight, a photo is a copy of the
other

    in the same frame where  mean r >= 0.75, or r >= 0.95 at a share of 0.35 (most of it may be written over),
    by a map where           mean r >= 0.97,

each for the photo as it is and mirrored. It is the same *throughout* where r >= 0.9 at a share of 0.95, and there is
no place of 30 pixels together where r < 0.5: a line of a slide, a hand. That says nothing of what one of the two does
not show, and nothing of which is the better one: see `standing_in`.
The limits were chosen on planted edits, on series of one scene (docs/search.md) and on pages of text; a photo of a far
scene and another by a longer lens can still be the same after a map.
"""

import dataclasses
import math
import os
from typing import NamedTuple

import cv2
import numpy as np

from mg_keras.search.thumbnails import small

METHOD = 5
"""Number of the method: what was found by another one is not taken for this one's."""

SKETCH = 12
"""Pixels of a side of a sketch, by which photos in the same frame are looked up."""

SIDE = 320
"""Pixels of the larger side of what is compared, at most."""

FRAME, MAP, MIRRORED = "frame", "map", "mirrored"
"""How two photos were found to be the same: in the same frame, by a map, or one of them mirrored."""

_SMALLEST = 48
_KEYPOINTS, _FEWEST, _REDUCED = 256, 10, 0.6
_RATIO, _PIXELS_OFF = 0.85, 3.0
# logarithm of the aspects' ratio, and the correlation of sketches, from which on a frame may be the same
_ASPECT, _SKETCHES_ALIKE, _BLURRED_ALIKE = 0.06, 0.5, 0.9
_LEAST_AREA, _INSIDE = 1 / 25, 0.97
_MEAN_FRAME, _SHARE_FRAME, _MEAN_MAP, _CERTAIN = 0.75, 0.35, 0.97, 0.9
# deviations, pixels of a picture a quarter as large
_COARSE, _BLUR_TRIED, _BLURS = 4, 0.7, (0.3, 0.5, 0.75, 1.1, 1.6, 2.4)
_WINDOW, _TEXTURE, _FEWEST_PIXELS = 15, 2.0, 200
_BLACK, _MIDDLE, _WHITE = 3, 128, 252
# the share of what padding surrounds that is not near to it, where it is a photo
_PHOTO = 0.7
# of what is the same throughout: the share that is, and what a place that differs has at least of pixels and texture,
# and at most of r; true copies had none, a slide with another word 75 pixels and more
_THROUGHOUT, _PLACE, _PLACE_TEXTURE, _DIFFERENT = 0.95, 30, 8.0, 0.5
# a descriptor of SIFT, 4 x 4 places of 8 directions, as the mirrored photo has it
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


@dataclasses.dataclass(frozen=True)
class Picture:
    """What of a photo is compared.

    Attributes:
        grey: uint8 [H, W], upright, neither side above 320 pixels.
        points: float32 [n, 2], (x, y) of the keypoints.
        keys: float32 [n, 128], their descriptors, of unit norm.
    """

    grey: np.ndarray
    points: np.ndarray
    keys: np.ndarray


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What comparing two photos found.

    Attributes:
        same: whether they are copies.
        score: the share of what they both show that is the same, 0 to 1.
        how: `"frame"`, `"map"`, `"mirrored"`, or `""` where they are not the same.
        throughout: of copies, whether all of what both show is the same, no word or hand of it another.
    """

    same: bool
    score: float
    how: str
    throughout: bool = False


_NO = Verdict(False, 0.0, "")


def grey_of(path: str | os.PathLike) -> np.ndarray | None:
    """uint8 [H, W], a photo upright, neither side above 320 pixels; None where it can't be opened."""
    image = small(path, SIDE)
    return None if image is None else np.asarray(image.convert("L"))


def picture_of(grey: np.ndarray) -> Picture:
    """The keypoints of a photo, uint8 [H, W]."""
    reduced = cv2.resize(grey, None, fx=_REDUCED, fy=_REDUCED, interpolation=cv2.INTER_AREA)
    # one a thread: it keeps what it works on
    found, keys = cv2.SIFT_create(_KEYPOINTS, contrastThreshold=0.02, enable_precise_upscale=True).detectAndCompute(
        reduced, None
    )
    if keys is None:
        return Picture(grey, np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    # Hellinger's distance (RootSIFT)
    keys = np.sqrt(keys / np.maximum(keys.sum(axis=1, keepdims=True), 1e-9))
    points = (np.array([each.pt for each in found], np.float32) + 0.5) / _REDUCED - 0.5
    return Picture(grey, points, np.ascontiguousarray(keys, np.float32))


def sketch_of(grey: np.ndarray) -> np.ndarray:
    """uint8 [12, 12], a photo as it looks from afar, squashed."""
    return cv2.resize(grey, (SKETCH, SKETCH), interpolation=cv2.INTER_AREA)


def unit_sketches(sketches: np.ndarray) -> np.ndarray:
    """float32 [N, 144] of sketches [N, 12, 12], of mean 0 and unit norm: products are correlations; 0 of flat ones."""
    values = sketches.reshape(len(sketches), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(norms > SKETCH, values / np.maximum(norms, 1e-9), 0)


def compare(one: Picture, other: Picture, frame_only: bool = False) -> Verdict:
    """Whether two photos are copies of each other, in either direction.

    Args:
        one, other: photos.
        frame_only: whether only the same frame is tried, which takes a tenth of the time.
    """
    turned = one.grey[:, ::-1]
    sketch = unit_sketches(np.stack([sketch_of(each.grey) for each in (one, other)] + [sketch_of(turned)]))
    best = _NO
    if abs(math.log(one.grey.shape[1] / one.grey.shape[0] * other.grey.shape[0] / other.grey.shape[1])) <= _ASPECT:
        for grey, values, how in ((one.grey, sketch[0], FRAME), (turned, sketch[2], MIRRORED)):
            if values @ sketch[1] >= _SKETCHES_ALIKE:
                best = _better(best, _same_frame(grey, other.grey, how))
                if best.same:
                    return best
    if frame_only:
        return best
    for mirrored in (False, True):
        best = _better(best, _by_map(one, other, mirrored))
        if best.same:
            return best
    return best


def _better(one, other):
    return max(one, other, key=lambda verdict: (verdict.same, verdict.score))


def _same_frame(one, other, how):
    size = [max(_SMALLEST, min(sides)) for sides in zip(one.shape, other.shape, strict=True)][::-1]
    one, other = (cv2.resize(each, size, interpolation=cv2.INTER_AREA).astype(np.float32) for each in (one, other))
    where = _inner(np.ones(one.shape, np.uint8))
    plain, blurred, blurs = _blur_between(one, other, where)
    # what was written over a photo misleads the search for a blur, so that both are tried
    best = _NO
    for correlation, least, between in ((plain, _SKETCHES_ALIKE, (0.0, 0.0)), (blurred, _BLURRED_ALIKE, blurs)):
        if correlation < least or best.score >= _CERTAIN:
            continue
        agreement = _agreement(one, other, where, between)
        if agreement:
            same = agreement.mean >= _MEAN_FRAME or agreement.share >= _SHARE_FRAME
            best = _better(best, _verdict(same, agreement, how))
    return best


def _by_map(one, other, mirrored):
    a, b = one.grey[:, ::-1] if mirrored else one.grey, other.grey
    to = _homography(one, other, mirrored)
    area = None if to is None else _area(to, a.shape)
    if area is None:
        return _NO
    if area > 1:
        # the finer one is made as coarse as the other
        a, b, to, area = b, a, np.linalg.inv(to), 1 / area
    if max(_inside(to, a, b), _inside(np.linalg.inv(to), b, a)) < _INSIDE:
        return _NO
    fine = a.astype(np.float32)
    if area < 0.8:
        fine = _blurred(fine, 0.5 * math.sqrt(1 / area - 1))
    size = b.shape[::-1]
    mapped = cv2.warpPerspective(fine, to, size, flags=cv2.INTER_LINEAR)
    covered = cv2.warpPerspective(np.ones(a.shape, np.uint8), to, size, flags=cv2.INTER_NEAREST)
    b, where = b.astype(np.float32), _inner(covered)
    if np.count_nonzero(where) < _FEWEST_PIXELS:
        return _NO
    _, correlation, between = _blur_between(mapped, b, where)
    agreement = correlation >= _BLURRED_ALIKE and _agreement(mapped, b, where, between)
    if not agreement:
        return _NO
    return _verdict(agreement.mean >= _MEAN_MAP, agreement, MIRRORED if mirrored else MAP)


def _verdict(same, agreement, how):
    if not same:
        return Verdict(False, agreement.score, "")
    throughout = agreement.score >= _THROUGHOUT and agreement.place < _PLACE
    return Verdict(True, agreement.score, how, throughout)


def _homography(one, other, mirrored):
    """From the first to the second, float64 [3, 3], or None."""
    keys, points = one.keys, one.points
    if min(len(keys), len(other.keys)) < _FEWEST:
        return None
    if mirrored:
        keys = keys[:, _MIRRORED]
        points = np.stack([one.grey.shape[1] - 1 - points[:, 0], points[:, 1]], axis=1)
    # NumPy's product would take all cores, one pair after the other
    squares = 2 + cv2.gemm(keys, other.keys, -2, None, 0, flags=cv2.GEMM_2_T)
    rows = np.arange(len(keys))
    nearest, back = squares.argmin(axis=1), squares.argmin(axis=0)
    first = squares[rows, nearest]
    squares[rows, nearest] = np.inf
    found = np.flatnonzero((back[nearest] == rows) & (first < _RATIO**2 * squares.min(axis=1)))
    if len(found) < _FEWEST:
        return None
    to, kept = cv2.findHomography(
        points[found], other.points[nearest[found]], cv2.USAC_MAGSAC, _PIXELS_OFF, maxIters=1000, confidence=0.999
    )
    return to if to is not None and np.count_nonzero(kept) >= _FEWEST else None


def _area(to, shape):
    """How many times as large the map makes a picture; None where it is turned inside out or the like."""
    height, width = shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    mapped = np.c_[corners, np.ones(4)] @ to.T
    if np.linalg.det(to) == 0 or (mapped[:, 2] * np.sign(mapped[0, 2]) <= 1e-6).any():
        return None
    mapped = mapped[:, :2] / mapped[:, 2:]
    edges = np.roll(mapped, -1, axis=0) - mapped
    following = np.roll(edges, -1, axis=0)
    if not (edges[:, 0] * following[:, 1] > edges[:, 1] * following[:, 0]).all():
        return None
    area = cv2.contourArea(mapped.astype(np.float32)) / (width * height)
    return area if _LEAST_AREA < area < 1 / _LEAST_AREA else None


def _inside(to, one, other):
    """The share of the first one's content that the map brings into the second."""
    content = _content(one)
    back = np.linalg.inv(to)
    within = cv2.warpPerspective(np.ones(other.shape, np.uint8), back, one.shape[::-1], flags=cv2.INTER_NEAREST)
    return np.count_nonzero(within & content) / max(1, np.count_nonzero(content))


def _content(grey):
    """uint8 [H, W], 1 but where black or white reaches in from a corner: what a rotation leaves empty."""
    content = np.ones(grey.shape, np.uint8)
    height, width = grey.shape
    for empty in (grey <= 6, grey >= 249):
        corners = [(x, y) for x in (0, width - 1) for y in (0, height - 1) if empty[y, x]]
        if corners:
            _, parts = cv2.connectedComponents(empty.astype(np.uint8), connectivity=4)
            for x, y in corners:
                content[parts == parts[y, x]] = 0
    return content


def _inner(covered):
    return cv2.erode(covered, np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


class _Agreement(NamedTuple):
    """How far two pictures agree: the mean of r; the shares of r >= 0.95 and of r >= 0.9; pixels of the largest place
    that differs."""

    mean: float
    share: float
    score: float
    place: int


def _agreement(one, other, where, blurs):
    """`_Agreement` of two pictures, float32 [H, W]; None without texture."""
    clear = where & ~_clipped(one, other)
    if np.count_nonzero(clear) >= 0.2 * np.count_nonzero(where):
        where = clear
    found = _correlated(one, other, where, blurs)
    shown = _shown(one, other, where) if found else None
    if shown is None:
        return found
    # what is beside a photo may have a caption, which has to be the same as well
    within = _correlated(one, other, shown, blurs)
    # of a silhouette, there is nothing but its edge
    return within._replace(place=max(within.place, found.place)) if within else found


def _shown(one, other, where):
    """bool [H, W], without the padding that two photos have in common, whose edge is none of theirs; None without any.

    What is white between lines of text is no padding: hardly a pixel of theirs is far from it.
    """
    padding = ((_content(one) | _content(other)) == 0).astype(np.uint8)
    content = np.count_nonzero(where & (padding == 0))
    shown = where & (cv2.dilate(padding, np.ones((7, 7), np.uint8)) == 0)
    return shown if padding.any() and np.count_nonzero(shown) >= _PHOTO * content else None


def _correlated(one, other, where, blurs):
    if np.count_nonzero(where) < _FEWEST_PIXELS:
        return None
    first, second = blurs
    # noise, and what compression adds
    one, other = _blurred(_blurred(one, first), 1.0), _blurred(_blurred(other, second), 1.0)
    window = int(max(_WINDOW, 3 * max(first, second))) | 1
    weight = where.astype(np.float32)
    count = np.maximum(_boxed(weight, window), 1e-6)
    mean_one, mean_other = _boxed(one * weight, window) / count, _boxed(other * weight, window) / count
    variance_one = np.maximum(_boxed(one * one * weight, window) / count - mean_one**2, 0)
    variance_other = np.maximum(_boxed(other * other * weight, window) / count - mean_other**2, 0)
    covariance = _boxed(one * other * weight, window) / count - mean_one * mean_other
    enough = where & (count > 0.5)
    if not enough.any():
        return None
    contrast = math.sqrt(variance_one[enough].mean() / max(variance_other[enough].mean(), 1e-6))
    spread_one, spread_other = np.sqrt(variance_one), np.sqrt(variance_other)
    texture = np.maximum(spread_one, contrast * spread_other)
    r = covariance / np.maximum(spread_one * spread_other, 1e-3)
    # texture on one side alone is a difference, too
    r *= np.minimum(1, 2 * np.minimum(spread_one, contrast * spread_other) / np.maximum(texture, 1e-3))
    texture = np.where(enough & (texture > _TEXTURE), texture, 0)
    if np.count_nonzero(texture) < _FEWEST_PIXELS:
        return None
    total = texture.sum()
    # as many greys as it has in the one with more contrast
    differs = (r < _DIFFERENT) & (texture * max(1, 1 / contrast) > _PLACE_TEXTURE)
    areas = cv2.connectedComponentsWithStats(differs.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    shares = (float(texture[r >= least].sum() / total) for least in (0.95, 0.9))
    return _Agreement(float((r * texture).sum() / total), *shares, int(areas.max(initial=0)))


def _clipped(one, other):
    """bool [H, W], where one of two pictures alone is white or black, as a brighter or darker version is.

    Where both are white, nothing was lost; and text on white, which is no brighter part of it, has to count.
    """
    darker, brighter = np.minimum(one, other), np.maximum(one, other)
    white = (brighter >= _WHITE) & (darker < _WHITE) & (darker >= _MIDDLE)
    return white | (darker <= _BLACK) & (brighter > _BLACK) & (brighter <= _MIDDLE)


def _blur_between(one, other, where):
    """How alike two pictures are, as they are and blurred; and the deviations by which each is, one of them 0."""
    size = (where.shape[1] // _COARSE, where.shape[0] // _COARSE)
    one, other = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (one, other))
    where = cv2.resize(where.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if not where.any():
        return -1.0, -1.0, (0.0, 0.0)
    plain = best = _correlation(one[where], other[where])
    found = (0.0, 0.0)
    if plain < _BLUR_TRIED:
        return plain, best, found
    for swapped, (sharp, soft) in enumerate(((one, other), (other, one))):
        fixed = soft[where]
        before = best
        for blur in _BLURS:
            value = _correlation(_blurred(sharp, blur)[where], fixed)
            if value > best:
                best, found = value, (0.0, _COARSE * blur) if swapped else (_COARSE * blur, 0.0)
            elif value < before - 0.02:
                break
            before = max(before, value)
    return plain, best, found


def _correlation(one, other):
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other) / max(math.sqrt(float(one @ one) * float(other @ other)), 1e-9)


def _blurred(picture, deviation):
    return cv2.GaussianBlur(picture, (0, 0), deviation) if deviation else picture


def _boxed(picture, window):
    return cv2.boxFilter(picture, -1, (window, window), borderType=cv2.BORDER_REFLECT_101)
