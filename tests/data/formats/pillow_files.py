"""Photos written by Pillow, and what Pillow makes of photos."""

import io

import numpy as np
from PIL import Image, ImageOps


def noise(height=40, width=60, channels=3, seed=0):
    """A photo of which no two pixels, rows or columns are alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, kind, **options):
    """The bytes of a file; `image` is an array or Pillow's."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(contents):
    """uint8 [H, W, 3]: the first frame, upright, alpha dropped."""
    image = Image.open(io.BytesIO(contents))
    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    return np.asarray(image.convert("RGB"))
