"""Photos for benchmarks, made for the occasion: of the size, and with as many bytes, as photos are."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder, count):
    """Writes `count` JPEGs of about 500x375 pixels, a quarter of them upright, with detail at every scale."""
    random = np.random.default_rng(0)
    for number in range(count):
        long, short = random.integers(470, 531), random.integers(345, 406)
        width, height = (short, long) if number % 4 == 0 else (long, short)
        photo = np.full((height, width, 3), 128.0)
        # each octave weaker than the one before, down to single pixels, as in natural photos
        for octave in range(8):
            coarse = random.normal(0, 1, (max(height >> (7 - octave), 2), max(width >> (7 - octave), 2), 3))
            layers = [
                Image.fromarray(layer.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
                for layer in np.moveaxis(coarse, -1, 0)
            ]
            photo += 90 * 0.75**octave * np.stack([np.asarray(layer) for layer in layers], -1)
        photo = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
        photo.save(Path(folder, f"{number:04}.jpg"), quality=92)
