"""Files that end early and headers that lie: what reads them stands outside the function that catches errors."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import images
from tests.data.formats.bmp_test import COLOURS, bmp
from tests.data.formats.orientation_test import exif_of, exif_segment, jpeg_of, png_of
from tests.data.formats.pillow_files import encoded, noise

PHOTO = noise(12, 16)
FILES = {
    "jpeg": jpeg_of(exif_segment(exif_of(6))),
    "png": png_of(exif_of(6)),
    "gif": encoded(PHOTO, "GIF"),
    "webp": encoded(PHOTO, "WEBP", exif=exif_of(6)),
    "animated webp": encoded(PHOTO, "WEBP", save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
    "bmp": bmp(np.arange(8 * 9).reshape(8, 9), 8, colours=COLOURS),
    "bmp with masks": bmp(np.arange(8 * 9).reshape(8, 9), 16, compression=3, masks=(0xF800, 0x7E0, 0x1F)),
    "short bmp": bmp(np.arange(8 * 9).reshape(8, 9) % 2, 1, 12, colours=COLOURS[:2]),
}


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def answered(contents):
    ok, image = images.try_decode(tf.identity, contents)
    size, reason = images.declared_size(contents), images.why_not(contents)
    return ok, tf.shape(image), size, reason


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_no_header_makes_it_fail(name):
    contents = FILES[name]
    assert answered(tf.constant(contents))[0]
    lying = []
    for place in range(2, min(80, len(contents))):
        for wrong in (b"\xff", b"\x7f\xff\xff\x7f"):
            lying.append(contents[:place] + wrong + contents[place + len(wrong) :])
    for changed in [*(contents[:length] for length in range(40)), *lying]:
        ok, shape, _, reason = answered(tf.constant(changed))
        assert reason != ""
        assert bool(ok) == (min(shape[:2]) >= images.MIN_SIDE)
