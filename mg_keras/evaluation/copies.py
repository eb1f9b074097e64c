"""Strong edits of a photo, for copy detection: `evaluators.copies` scores how the photo they came from is found.

Copydays' "strong" copies were made by hand; these eight edits are of the same kinds and can be made of any photo.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

_WORDS = ("SALE", "hello!", "BREAKING NEWS", "www.example.com", "look at this", "2019", "FOR YOU", "do not copy")


def crop_half(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Keep half of the picture's area, anywhere in it, in the same shape."""
    width, height = (max(1, round(side * 0.5**0.5)) for side in image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def jpeg_10(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compress as JPEG with quality 10."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert("RGB")


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur with a Gaussian whose deviation is 1.5 to 3 % of the smaller side."""
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.015, 0.03) * min(image.size)))


def text(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Write five lines of large outlined text over the picture."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        size = max(4, round(rng.uniform(0.1, 0.2) * min(image.size)))
        place = (rng.uniform(-0.1, 0.5) * image.width, rng.uniform(0.0, 0.85) * image.height)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        outline = "black" if sum(colour) > 384 else "white"
        draw.text(
            place,
            _WORDS[rng.integers(len(_WORDS))],
            colour,
            ImageFont.load_default(size),
            stroke_width=max(1, size // 12),
            stroke_fill=outline,
        )
    return image


def rotation(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate by 15 to 45 degrees either way, onto black, with nothing cut off."""
    angle = rng.uniform(15, 45) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def perspective(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """See the picture from aside: each corner moves inwards by up to a quarter of the sides, onto black."""
    width, height = image.size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    towards_centre = np.where(corners == 0, 1.0, -1.0) * (width, height)
    moved = corners + towards_centre * rng.uniform(0.0, 0.25, (4, 2))
    # Pillow asks where each output pixel comes from: the homography from the moved corners back to the corners.
    rows = []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients = np.linalg.solve(np.array(rows), corners.ravel())
    return image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Take the colours away."""
    return image.convert("L").convert("RGB")


def brightness(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make the picture much darker (0.3 to 0.5 times) or much brighter (1.7 to 2.5 times)."""
    factor = rng.uniform(0.3, 0.5) if rng.random() < 0.5 else rng.uniform(1.7, 2.5)
    return ImageEnhance.Brightness(image).enhance(factor)


STRONG_EDITS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    edit.__name__: edit for edit in (crop_half, jpeg_10, blur, text, rotation, perspective, grey, brightness)
}
"""Name -> function of an RGB Pillow image and a NumPy generator, giving an RGB image of any size."""


def strong_edit(image: np.ndarray, seed: int | Sequence[int]) -> tuple[str, np.ndarray]:
    """Make a strongly edited copy of a photo by one of `STRONG_EDITS`, each as likely as the others.

    Args:
        image: uint8 [H, W, 3], RGB.
        seed: what `numpy.random.default_rng` takes: the same seed and photo give the same copy.

    Returns:
        The edit's name, and the copy, uint8 [H', W', 3].

    Raises:
        ValueError: another shape or type of image.

    Example:
        >>> photo = np.zeros([240, 320, 3], np.uint8)
        >>> name, copy = strong_edit(photo, seed=(0, 17))
        >>> name in STRONG_EDITS, copy.dtype
        (True, dtype('uint8'))
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], received {image.dtype} with the shape {image.shape}")
    rng = np.random.default_rng(seed)
    name = list(STRONG_EDITS)[rng.integers(len(STRONG_EDITS))]
    return name, np.asarray(STRONG_EDITS[name](Image.fromarray(image), rng))
