import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import images
from mg_keras.data.formats import jpeg
from tests.data.formats.pillow_files import by_pillow, encoded, noise

PHOTO = np.asarray(Image.fromarray(noise(4, 5)).resize((60, 40), Image.BICUBIC))
BYTE, TEXT, SHORT, LONG, SIGNED_BYTE, SIGNED_SHORT, SIGNED_LONG = 1, 2, 3, 4, 6, 8, 9


def exif_of(orientation, kind=SHORT, endian="<", before=2, offset=8):
    """EXIF data: some other entries, then the orientation as a number of a kind."""
    size = {BYTE: "B", SHORT: "H", LONG: "I", SIGNED_BYTE: "b", SIGNED_SHORT: "h", SIGNED_LONG: "i"}.get(kind, "I")
    value = struct.pack(endian + size, orientation).ljust(4, b"\0")
    others = [struct.pack(endian + "HHII", 0x0100 + number, LONG, 1, 6) for number in range(before)]
    entry = struct.pack(endian + "HHI", 0x0112, kind, 1) + value
    start = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "I", offset)
    directory = struct.pack(endian + "H", before + 1) + b"".join([*others, entry]) + b"\0" * 4
    return start.ljust(offset, b"\xee") + directory


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(data)) + data


def jpeg_of(*segments):
    """A JPEG with segments behind its own first one."""
    contents = encoded(PHOTO, "JPEG", quality=95, subsampling=0)
    behind = 4 + struct.unpack(">H", contents[4:6])[0]
    return contents[:behind] + b"".join(segments) + contents[behind:]


def exif_segment(data):
    return segment(0xE1, b"Exif\0\0" + data)


def png_of(data, last=False):
    """A PNG with an EXIF chunk, before its pixels or at its end."""
    contents = encoded(PHOTO, "PNG", exif=data)
    if last:
        begin = contents.index(b"eXIf") - 4
        chunk = contents[begin : begin + 12 + len(data)]
        contents = contents.replace(chunk, b"")
        contents = contents[:-12] + chunk + contents[-12:]
    return contents


def decoded(contents):
    return images.decode(tf.constant(contents)).numpy()


def assert_like_pillow(contents, turned):
    found, expected = decoded(contents), by_pillow(contents)
    assert found.shape == expected.shape == ((60, 40, 3) if turned else (40, 60, 3))
    # JPEGs are decoded with another approximation of the cosine transform than Pillow's
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("write", [png_of, lambda data: encoded(PHOTO, "WEBP", lossless=True, exif=data)])
def test_png_and_webp(orientation, write):
    contents = write(exif_of(orientation))
    np.testing.assert_array_equal(decoded(contents), by_pillow(contents))
    np.testing.assert_array_equal(decoded(contents), decoded(encoded(by_pillow(contents), "PNG")))


def test_other_places_in_png_and_webp():
    last = png_of(exif_of(6), last=True)
    as_in_jpeg = encoded(PHOTO, "WEBP", lossless=True, exif=b"Exif\0\0" + exif_of(8, endian=">"))
    animated = encoded(
        PHOTO, "WEBP", lossless=True, exif=exif_of(5), save_all=True, append_images=[Image.new("RGB", (60, 40))]
    )
    for contents in (last, as_in_jpeg, animated):
        assert decoded(contents).shape == (60, 40, 3)
        np.testing.assert_array_equal(decoded(contents), by_pillow(contents))


@pytest.mark.parametrize("kind", [SHORT, LONG, SIGNED_SHORT, SIGNED_LONG])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_kinds_of_integers(kind, endian):
    assert_like_pillow(jpeg_of(exif_segment(exif_of(6, kind, endian))), turned=True)


@pytest.mark.parametrize("kind", [BYTE, SIGNED_BYTE])
def test_single_bytes_which_pillow_does_not_read(kind):
    assert decoded(jpeg_of(exif_segment(exif_of(6, kind, ">")))).shape == (60, 40, 3)


@pytest.mark.parametrize(
    "contents", [exif_of(6, TEXT), exif_of(9), exif_of(0, LONG), exif_of(6 << 16, LONG, ">"), b"II*\0"]
)
def test_what_makes_no_sense_is_ignored(contents):
    assert_like_pillow(jpeg_of(exif_segment(contents)), turned=False)


COMMENT = segment(0xFE, b"Exif" + b"\xff\xd8\xff\xe1" * 15_000)
NAMESPACE = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")


@pytest.mark.parametrize(
    "segments",
    [
        [COMMENT] * 2,
        [COMMENT] * 3,
        [COMMENT] * 30,
        [NAMESPACE, COMMENT, segment(0xE2, b"\0" * 65_533), segment(0xED, b"\0" * 65_533)],
        [segment(0xFE, b"")] * 500,
        [b"\xff\xff\xff"],
    ],
    ids=["120 KB", "180 KB", "1.8 MB", "other kinds", "many", "filled up"],
)
def test_behind_other_segments(segments):
    assert_like_pillow(jpeg_of(*segments, exif_segment(exif_of(6, endian=">", before=30, offset=999))), turned=True)
    assert_like_pillow(jpeg_of(*segments), turned=False)


def test_exif_behind_the_pixels_is_not_looked_at():
    assert_like_pillow(jpeg_of() + exif_segment(exif_of(6)), turned=False)
    assert_like_pillow(jpeg_of(segment(0xE2, b"\0" * 65_533), COMMENT) + exif_segment(exif_of(6)), turned=False)


def patched(marker, place, value):
    """A JPEG whose first segment of a kind has another byte at a place."""
    contents = bytearray(jpeg_of())
    contents[contents.index(b"\xff" + bytes([marker])) + place] = value
    return bytes(contents)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (
            patched(0xC0, 1, 0xC9)[:-60],
            "JPEG with lossless, hierarchical or arithmetic coding: baseline and progressive",
        ),
        (patched(0xC0, 1, 0xC5), "JPEG with lossless, hierarchical or arithmetic coding: baseline and progressive"),
        (patched(0xC0, 4, 12), "JPEG with 12 bits a channel: those with 8 are supported"),
        (patched(0xC0, 9, 2), "JPEG with 2 channels: those with 1, 3 or 4 are supported"),
        (jpeg_of()[:-60], "JPEG data is broken or cut off"),
        (jpeg_of()[:30], "JPEG data is broken or cut off"),
        (b"\xff\xd8\xff", "JPEG data is broken or cut off"),
    ],
)
def test_why_a_jpeg_is_refused(contents, reason):
    assert images.problem(lambda: tf.constant(contents)).startswith(reason)


def test_no_reason_against_a_jpeg_that_is_decoded():
    assert jpeg.unsupported(tf.constant(jpeg_of())) == ""
