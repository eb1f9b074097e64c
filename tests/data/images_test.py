import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from mg_keras.data import images
from mg_keras.data.given import GivenPhotos
from mg_keras.errors import UserError
from tests.data.formats.pillow_files import by_pillow, encoded


def picture(height=40, width=60, seed=0):
    """A smooth picture, so that lossy formats stay close to it."""
    grid = np.random.default_rng(seed).uniform(0, 255, (4, 5, 3)).astype("uint8")
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.BICUBIC))


@pytest.mark.parametrize(
    ("contents", "tolerance"),
    [
        (encoded(picture(), "PNG"), 0),
        (encoded(picture(), "BMP"), 0),
        (encoded(picture(), "WEBP", lossless=True), 0),
        (encoded(picture(), "JPEG", quality=95), 6),
        (encoded(picture(), "JPEG", quality=95, progressive=True), 6),
        (encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95), 12),
        (encoded(Image.fromarray(picture()).convert("RGBA"), "PNG"), 0),
    ],
    ids=["png", "bmp", "webp", "jpeg", "progressive", "cmyk", "alpha"],
)
def test_formats(contents, tolerance):
    image = images.decode(tf.constant(contents)).numpy()
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - picture()).mean() <= tolerance


def test_common_photos_are_decoded_as_all_are():
    exif = Image.Exif()
    exif[0x0112] = 6
    for contents in (
        encoded(picture(), "PNG"),
        encoded(picture(), "JPEG", quality=90),
        encoded(picture(), "JPEG", quality=90, exif=exif),
    ):
        image, size = images.decode_common(tf.constant(contents))
        np.testing.assert_array_equal(image, images.decode(tf.constant(contents)))
        np.testing.assert_array_equal(size, image.shape[:2])
    # the size is that of the photo in full, upright
    image, size = images.decode_common(tf.constant(contents), lambda size: tf.where(size[0] == 40, 4, 1))
    assert (tuple(image.shape), tuple(size.numpy())) == ((15, 10, 3), (60, 40))
    full = np.asarray(images.decode(tf.constant(contents)), float).reshape(15, 4, 10, 4, 3).mean((1, 3))
    assert np.abs(np.asarray(image, float) - full).mean() < 4
    for contents in (encoded(picture(), "BMP"), encoded(picture(7, 9), "PNG"), b"", b"\xff\xd8\xff", b"no photo"):
        with pytest.raises(tf.errors.OpError):
            images.decode_common(tf.constant(contents))


def test_greyscale_and_sixteen_bits():
    grey = picture()[..., 0]
    for contents in (encoded(grey, "PNG"), encoded(Image.fromarray(grey.astype("uint16") * 257), "PNG")):
        image = images.decode(tf.constant(contents)).numpy()
        np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, -1))


def test_first_frame_of_a_gif():
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    image = images.decode(tf.constant(buffer.getvalue())).numpy()
    np.testing.assert_array_equal(image[8, 8], [255, 0, 0])


@pytest.mark.parametrize("options", [{"transparency": 3}, {"interlace": 1}, {"interlace": 0}, {"comment": b"some"}])
def test_gif_like_pillow(options):
    contents = encoded(Image.fromarray(picture()).quantize(64), "GIF", **options)
    np.testing.assert_array_equal(images.decode(tf.constant(contents)), by_pillow(contents))


def gif_of(*frames, screen):
    """A GIF whose frames have sizes of their own, each of one colour, with a comment before them."""
    blocks = []
    for number, (height, width) in enumerate(frames):
        contents = encoded(Image.new("P", (width, height), number), "GIF")
        # a byte of flags tells how long the table of colours is that follows the screen's size
        begin = contents.index(b"\x2c", 13 + 3 * 2 ** ((contents[10] & 7) + 1))
        blocks.append(contents[begin:-1])
    colours = bytes(number * 80 % 256 for number in range(3 * 256))
    start = b"GIF89a" + struct.pack("<HH", *reversed(screen)) + b"\xf7\0\0" + colours
    comment = b"\x21\xfe" + (b"\xff" + b"\x2c" * 255) * 2 + b"\x03\x2c\x2c\x2c\0"
    return start + comment + b"".join(blocks) + b";"


def test_what_follows_a_gifs_first_frame_is_not_looked_at():
    contents = gif_of((20, 30), (12_000, 12_000), (9, 9), screen=(20, 30))
    # a frame that ends within its pixels: only who decodes it will tell
    for later in (b"", b"\x2c", contents[1400:1450]):
        np.testing.assert_array_equal(images.decode(tf.constant(contents + later)), np.full((20, 30, 3), [0, 80, 160]))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (gif_of((11_400, 11_400), screen=(64, 64)), "larger than 128,000,000 pixels"),
        (gif_of((64, 64), screen=(11_400, 11_400)), "larger than 128,000,000 pixels"),
        (gif_of((20, 7), screen=(20, 7)), "smaller than 8 pixels"),
        (gif_of(screen=(64, 64)), ""),
        (gif_of((64, 64), screen=(64, 64))[:1400], ""),
        (b"GIF89a", ""),
    ],
    ids=["frame", "screen", "small", "no frame", "cut off", "no screen"],
)
def test_a_gif_that_is_refused(contents, reason):
    assert reason in images.problem(lambda: tf.constant(contents))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_exif_orientation(orientation, endian):
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    contents = encoded(image, "JPEG", quality=95, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(contents))))
    found = images.decode(tf.constant(contents)).numpy()
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_nonsense_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = encoded(picture(), "JPEG", exif=exif.tobytes())
    at = contents.index(b"Exif\0\0") + 6
    for junk in (b"\xff" * 20, b"II*\0\xff\xff\xff\x7f", b"MM\0*\x80\0\0\0"):
        broken = contents[:at] + junk + contents[at + len(junk) :]
        assert images.decode(tf.constant(broken)).shape[-1] == 3


def png_that_declares(width, height):
    contents = bytearray(encoded(picture(), "PNG"))
    contents[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(contents)


BROKEN = {
    "zero bytes": (b"", "the file is empty"),
    "text": (b"this is no photo at all, only words", "not a JPEG"),
    "cut jpeg": (encoded(picture(400, 600), "JPEG", quality=95)[:4000], "JPEG data is broken or cut off"),
    "cut png": (encoded(picture(), "PNG")[:300], "PNG data is broken or cut off"),
    "one pixel": (encoded(picture()[:1, :1], "PNG"), "smaller than"),
    "huge png": (png_that_declares(30_000, 30_000), "larger than"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_photos_are_refused(name, tmp_path):
    contents, reason = BROKEN[name]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"^{reason}"):
        images.decode(tf.constant(contents))
    (tmp_path / "photo").write_bytes(contents)
    with pytest.raises(UserError, match=f"photo: {reason}"):
        images.load(tmp_path / "photo")


@pytest.mark.slow
def test_broken_photos_do_not_stop_a_pipeline_unless_it_asks_for_that():
    files = [encoded(picture(), "PNG"), *(contents for contents, _ in BROKEN.values()), encoded(picture(), "JPEG")]
    dataset = tf.data.Dataset.from_tensor_slices(files)
    tried = dataset.map(lambda contents: images.try_decode(tf.identity, contents))
    assert [bool(ok) for ok, _ in tried] == [True, *[False] * len(BROKEN), True]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the file is empty"):
        list(dataset.map(images.decode))
    # at once it is the same
    for contents, (ok, image) in zip(files, tried, strict=True):
        found = images.try_decode(tf.identity, contents)
        assert bool(found[0]) == bool(ok)
        np.testing.assert_array_equal(found[1], image)


@pytest.mark.parametrize("error", [tf.errors.NotFoundError(None, None, "gone"), OSError("gone")], ids=["tf", "python"])
def test_what_can_not_be_read_at_once_is_unusable(error):
    def read(key):
        raise error

    ok, image = images.try_decode(read, tf.constant(0))
    assert not ok
    assert image.shape == (1, 1, 3)


def test_wide_panorama_is_usable():
    contents = encoded(np.zeros((10, 30_000, 3), "uint8"), "PNG")
    assert images.decode(tf.constant(contents)).shape == (10, 30_000, 3)


def test_names_need_not_be_utf8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(name).write_bytes(encoded(np.full((10, 12, 3), 7, "uint8"), "PNG"))
    given = GivenPhotos([name])
    ok, image = given.image(tf.constant(0))
    assert ok
    np.testing.assert_array_equal(image, images.load(name))
    assert given.names == [f"{tmp_path}/caf\\xe9.png"]
    Path(name).unlink()
    assert not given.image(tf.constant(0))[0]
    assert given.reason(0) == "could not be read"
    with pytest.raises(UserError, match=r"caf\\xe9\.png: could not be read"):
        images.load(name)


def test_photos_in_0_to_1_are_told_from_black_ones():
    shades = np.linspace(0, 1, 300).reshape(10, 10, 3)
    given = GivenPhotos([shades, np.round(shades), 255 * shades])
    assert [bool(given.image(tf.constant(row))[0]) for row in range(3)] == [False, True, True]
    assert given.reason(0) == "an array with values in 0-1, where 0-255 was expected: multiply them by 255"


def test_bad_images_are_listed_once_and_can_fail(tmp_path):
    path = tmp_path / "bad_images.txt"
    bad = images.BadImages(path)
    for _ in range(3):
        bad.record("a.jpg", lambda: tf.constant(b""))
    bad.check()
    assert path.read_text().count("a.jpg") == 1
    assert images.BadImages(path).reasons == bad.reasons
    # what a run failed at may be mended when it goes on
    fails = images.BadImages(path, "fail")
    fails.check()
    fails.record("a.jpg", lambda: tf.constant(b""))
    with pytest.raises(UserError, match=r"a\.jpg"):
        fails.check()
    assert path.read_text().count("a.jpg") == 1
    # what is known beforehand, and known again when the run is resumed
    for _ in range(2):
        images.BadImages(path).add([("b.heic", "HEIC"), ("c", "could not be read")])
    assert path.read_text().splitlines()[1:] == ["b.heic\tHEIC", "c\tcould not be read"]
