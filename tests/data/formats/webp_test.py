import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import images
from tests.data.formats.pillow_files import by_pillow, encoded, noise

STEPS = np.kron(noise(5, 8, 4), np.ones((8, 8, 1), np.uint8))


def decoded(contents):
    return images.decode(tf.constant(contents)).numpy()


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("frames", [1, 3])
def test_kinds(lossless, channels, frames):
    first, *others = [Image.fromarray(np.roll(STEPS[..., :channels], 8 * frame, 1)) for frame in range(frames)]
    options = {"save_all": True, "append_images": others} if others else {}
    contents = encoded(first, "WEBP", lossless=lossless, exact=True, quality=60, **options)
    np.testing.assert_array_equal(decoded(contents), by_pillow(contents))


def test_an_animation_whose_first_frame_is_smaller_than_its_canvas():
    whole = encoded(STEPS[..., :3], "WEBP", lossless=True)
    image = whole[12:]
    height, width = STEPS.shape[:2]

    def wide(value):
        return struct.pack("<I", value)[:3]

    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data

    where = wide(6 // 2) + wide(10 // 2) + wide(width - 1) + wide(height - 1) + wide(100) + b"\0"
    parts = (
        chunk(b"VP8X", b"\x02\0\0\0" + wide(79) + wide(59)) + chunk(b"ANIM", b"\0" * 6) + chunk(b"ANMF", where + image)
    )
    contents = b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts
    expected = np.zeros((60, 80, 3), np.uint8)
    expected[10 : 10 + height, 6 : 6 + width] = STEPS[..., :3]
    np.testing.assert_array_equal(decoded(contents), expected)
    np.testing.assert_array_equal(by_pillow(contents), expected)


def test_what_is_refused():
    plain, alpha = (encoded(STEPS[..., :channels], "WEBP", lossless=True, exact=True) for channels in (3, 4))
    animated = encoded(STEPS[..., :3], "WEBP", save_all=True, append_images=[Image.new("RGB", STEPS.shape[1::-1])])
    for contents in (plain, alpha, animated):
        assert images.problem(lambda contents=contents: contents[:60]) == "WebP data is broken or cut off"
    large = animated.replace(struct.pack("<I", STEPS.shape[1] - 1)[:3], b"\xff\xff\0", 1)
    large = large[:27] + b"\xff\xff\0" + large[30:]
    assert images.problem(lambda: large) == "larger than 128,000,000 pixels"
