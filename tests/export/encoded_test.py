import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data.formats import NO_PHOTO
from mg_keras.export import encoded
from tests.data.formats.bmp_test import COLOURS, bmp
from tests.data.formats.orientation_test import LONG, exif_of, exif_segment, patched
from tests.data.formats.pillow_files import by_pillow
from tests.data.images_test import gif_of
from tests.export.small import P_STAR, encoded_as, picture


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def served(loaded):
    def call(files, resolution=80, p_star=3.0):
        values = {"resolution": np.int32, "p_star": np.float32}
        given = {"resolution": resolution, "p_star": p_star}
        answer = loaded.signatures["encoded"](
            image_bytes=tf.constant(files, tf.string, [len(files)]),
            **{name: tf.constant(np.broadcast_to(given[name], len(files)).astype(values[name])) for name in given},
        )
        return {name: value.numpy() for name, value in answer.items()}

    return call


@pytest.mark.slow
def test_photos_of_one_shape_go_together_and_come_back_in_order(served):
    sizes = [(64, 48), (48, 64), (64, 48), (64, 64), (48, 64)]
    files = [encoded_as(picture(*size, seed)) for seed, size in enumerate(sizes)]
    p_star = [1.0, 2.0, 3.0, 4.0, 5.0]
    together = served(files, 0, p_star)
    for place, file in enumerate(files):
        alone = served([file], 0, p_star[place])
        np.testing.assert_allclose(together["embedding"][place], alone["embedding"][0], atol=1e-5)


@pytest.mark.slow
def test_a_batch_larger_than_the_network_takes_at_once(monkeypatch):
    monkeypatch.setattr(encoded, "_PIXELS_A_BATCH", 2 * 32 * 32)
    calls = tf.Variable(0)

    def embed(images, p_star):
        calls.assign_add(1)
        return tf.reduce_mean(images, axis=(1, 2)) * p_star[:, None]

    pictures = [np.full((32, 32, 3), 10 * number, np.uint8) for number in range(5)]
    found = tf.function(encoded.embed_encoded)(
        embed, 3, tf.constant([encoded_as(Image.fromarray(image)) for image in pictures]), tf.zeros([5], tf.int32),
        tf.constant([1.0, 2.0, 3.0, 4.0, 5.0]), {64: 3.0},
    )  # fmt: skip
    np.testing.assert_allclose(found, np.outer([0, 20, 60, 120, 200], np.ones(3)), atol=1e-3)
    assert calls.numpy() == 3, "two, two and one"


def test_pixels_of_a_file_left_as_it_is_are_those_given_to_the_other_signature(served, loaded):
    image = picture(72, 96)
    found = served([encoded_as(image)], 0, 4.0)
    given = tf.constant(np.asarray(image, np.float32)[None])
    expected = loaded.signatures["serving_default"](images=given, p_star=tf.constant([4.0]))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "side", "wanted"),
    [(64, 128, 64), (96, 32, 64), (97, 32, 128), (500, 32, 128), (40, 128, 64), (0, 72, 64), (0, 120, 128)],
)
def test_the_table_chooses_p_star_by_the_nearest_resolution(resolution, side, wanted, served):
    """96 is as near to 64 as to 128: the lower one counts."""
    file = encoded_as(picture(64, side))
    for asked in (0.0, -1.0):
        found = served([file], resolution, asked)["embedding"]
        np.testing.assert_allclose(found, served([file], resolution, P_STAR[wanted])["embedding"], atol=1e-6)
    other = next(value for size, value in P_STAR.items() if size != wanted)
    assert np.abs(found - served([file], resolution, other)["embedding"]).max() > 1e-3


def test_odd_files_give_what_their_pixels_give(served):
    transparent = picture(48, 64, 1)
    transparent.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))))
    turned, moving = picture(48, 64, 2), picture(48, 64, 3)
    exif = exif_segment(exif_of(6, LONG, ">"))[10:]
    files = [
        bmp(INDICES, 8, colours=COLOURS),
        bmp(INDICES % 16, 4, top_down=True, colours=COLOURS[:16]),
        encoded_as(transparent, "WEBP", lossless=True, exact=True),
        encoded_as(turned, exif=exif),
        encoded_as(moving, "WEBP", lossless=True, save_all=True, append_images=[turned]),
        encoded_as(moving.quantize(16), "GIF", transparency=3),
    ]
    plain = [encoded_as(Image.fromarray(by_pillow(contents))) for contents in files]
    for name, value in served(plain, 0).items():
        np.testing.assert_allclose(served(files, 0)[name], value, rtol=1e-4, atol=1e-5)


def test_no_photo_at_all(served):
    found = served([])
    assert found["embedding"].shape == (0, 17)
    assert found["class"].shape == (0,)


def png_header(width, height):
    """The start of a PNG that promises a size: enough to be refused by."""
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + b"\0" * 30


GOOD = encoded_as(picture(48, 48))
INDICES = np.random.default_rng(0).integers(0, 256, (20, 30))
OTHERS = [
    ("an AVIF photo", encoded_as(picture(48, 48), "AVIF")),
    ("a HEIC photo", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    ("a video", b"\0\0\0\x18ftypisom\0\0\0\0"),
    ("a JPEG XL photo", b"\xff\x0a\xfa\x1f\x41\x91\x08\x06\x01\0"),
    ("a JPEG 2000 photo", encoded_as(picture(48, 48), "JPEG2000")),
    ("a TIFF or raw camera file", encoded_as(picture(48, 48), "TIFF")),
    ("a Photoshop file", b"8BPS\0\x01"),
    ("a PDF file", encoded_as(picture(48, 48), "PDF")),
]


@pytest.mark.parametrize(
    ("contents", "resolution", "reason"),
    [
        (b"", 0, "photo 1: the file is empty"),
        (b"hello, this is no photo", 0, f"photo 1: {NO_PHOTO}"),
        (GOOD[:200], 0, "photo 1: PNG data is broken or cut off"),
        (encoded_as(picture(48, 48), "JPEG")[:400], 0, "photo 1: JPEG data is broken or cut off"),
        (encoded_as(picture(48, 48), "BMP")[:400], 0, "photo 1: BMP data is broken or cut off"),
        (encoded_as(picture(48, 48), "WEBP")[:300], 0, "photo 1: WebP data is broken or cut off"),
        (bmp(INDICES, 8, compression=1), 0, "photo 1: BMP with run-length encoding: uncompressed ones of 1, 2, 4, 8,"),
        (patched(0xC0, 4, 12), 0, "photo 1: JPEG with 12 bits a channel: those with 8 are supported"),
        *((contents, 0, f"photo 1: {name}, {NO_PHOTO}") for name, contents in OTHERS),
        (png_header(20_000, 20_000), 64, "photo 1: larger than 128,000,000 pixels"),
        (gif_of((11_400, 11_400), screen=(64, 64)), 64, "photo 1: larger than 128,000,000 pixels"),
        (png_header(70_000, 100), 64, "photo 1: 70000 pixels on a side, more than 65,535"),
        (png_header(3000, 3000), 0, "photo 1: 9000000 pixels for the network, more than 4,194,304"),
        (GOOD, 4096, "photo 1: 16777216 pixels for the network, more than 4,194,304"),
        (GOOD, 10_000, "photo 1: 10000 is too high a resolution: at most 8,192"),
        (GOOD, 2**31 - 1, "photo 1: 2147483647 is too high a resolution"),
        (GOOD, -5, "photo 1: -5 is no resolution"),
        (encoded_as(picture(64, 64).crop((0, 0, 64, 5))), 0, "photo 1: smaller than 8 pixels on a side"),
        (GOOD + b"\0" * encoded.MAX_BYTES, 0, f"bytes, more than {encoded.MAX_BYTES:,}"),
    ],
)
def test_what_cannot_be_used_is_refused_by_number_and_reason(contents, resolution, reason, served):
    with pytest.raises(tf.errors.InvalidArgumentError) as refused:
        served([GOOD, contents, GOOD], [0, resolution, 0])
    assert reason in refused.value.message


def test_every_unusable_photo_is_named(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="photo 0: the file is empty; photo 2: not a JPEG"):
        served([b"", GOOD, b"abc"])


@pytest.mark.parametrize("p_star", [np.nan, np.inf, 1e6])
def test_exponents_that_are_none_are_refused(p_star, served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="p_star must be greater than 0 and at most 1000"):
        served([GOOD], 0, p_star)


def test_one_value_for_each_photo(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value for each photo"):
        loaded.signatures["encoded"](
            image_bytes=tf.constant([GOOD, GOOD]), resolution=tf.constant([0]), p_star=tf.constant([3.0, 3.0])
        )
