import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import images
from tests.data.formats.pillow_files import by_pillow, encoded, noise

VERSIONS = [12, 40, 52, 56, 64, 108, 124]
COLOURS = noise(1, 256, seed=1)[0]


def bmp(pixels, bits, version=40, *, compression=0, masks=(), colours=None, top_down=False, begin=None, said_bits=None):
    """A BMP file.

    Args:
        pixels: [H, W] indices or whole pixels, or [H, W, 3] bytes in the file's order.
        bits: of a pixel.
        version: bytes of the second header.
        compression: its number.
        masks: numbers, within the second header or behind it.
        colours: [n, 3] RGB.
        top_down: whether the first row stands first.
        begin: where the pixels are said to begin, if not where they do.
        said_bits: what the header says in place of `bits`.
    """
    height, width = pixels.shape[:2]
    rows = []
    for row in pixels if top_down else pixels[::-1]:
        if bits == 24:
            data = row.astype(np.uint8).tobytes()
        elif bits >= 8:
            data = row.astype(f"<u{bits // 8}").tobytes()
        else:
            text = "".join(f"{index:0{bits}b}" for index in row)
            data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
        rows.append(data + b"\0" * (-len(data) % 4))
    stored = b"".join(rows)
    bits = said_bits or bits
    if version == 12:
        second = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        count = 0 if colours is None or len(colours) == 2**bits else len(colours)
        size = struct.pack("<ii", width, -height if top_down else height)
        second = (
            struct.pack("<I", version)
            + size
            + struct.pack("<HHIIiiII", 1, bits, compression, len(stored), 0, 0, count, 0)
        )
        inside = struct.pack(f"<{len(masks)}I", *masks)
        second = (second + inside).ljust(version, b"\0")
    if colours is not None:
        filler = b"" if version == 12 else b"\0"
        second += b"".join(bytes(colour[::-1]) + filler for colour in colours)
    offset = 14 + len(second) if begin is None else begin
    return b"BM" + struct.pack("<IHHI", 14 + len(second) + len(stored), 0, 0, offset) + second + stored


def indices_below(count, height=19, width=31):
    return np.random.default_rng(0).integers(0, count, (height, width))


def decoded(contents):
    return images.decode(tf.constant(contents)).numpy()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("width", [33, 64])
def test_colours_from_a_table(version, bits, width):
    indices = indices_below(2**bits, width=width)
    contents = bmp(indices, bits, version, colours=COLOURS[: 2**bits])
    np.testing.assert_array_equal(decoded(contents), COLOURS[indices])
    np.testing.assert_array_equal(by_pillow(contents), COLOURS[indices])


def test_two_bits_which_pillow_does_not_read():
    indices = indices_below(4)
    np.testing.assert_array_equal(decoded(bmp(indices, 2, colours=COLOURS[:4])), COLOURS[indices])


def test_a_short_table_and_one_that_the_header_forgets():
    indices = indices_below(11)
    contents = bmp(indices, 8, colours=COLOURS[:11])
    np.testing.assert_array_equal(decoded(contents), COLOURS[indices])
    np.testing.assert_array_equal(decoded(bmp(indices, 8, colours=COLOURS[:11], begin=54)), COLOURS[indices])
    np.testing.assert_array_equal(decoded(bmp(indices, 8, colours=COLOURS[:11], begin=0)), COLOURS[indices])
    beyond = bmp(indices + 200, 8, colours=COLOURS[:11])
    np.testing.assert_array_equal(decoded(beyond), 0)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_either_order_of_rows(bits, top_down):
    pixels = noise(21, 29, seed=3) if bits == 24 else np.random.default_rng(3).integers(0, 2**bits, (21, 29))
    contents = bmp(pixels, bits, top_down=top_down, colours=COLOURS if bits == 8 else None)
    np.testing.assert_array_equal(decoded(contents), by_pillow(contents))


MASKS = {
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "BGRX": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "none": (32, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("version", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, version):
    bits, masks = MASKS[name]
    if version in (40, 52):
        # these have no place for a fourth, which Pillow would look for
        masks = masks[:3]
    pixels = np.random.default_rng(4).integers(0, 2**bits, (21, 29))
    contents = bmp(pixels, bits, version, compression=3, masks=masks)
    if version in (40, 52) and name == "RGBA":
        expected = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16 & 255], -1)
    else:
        expected = by_pillow(contents)
    np.testing.assert_array_equal(decoded(contents), expected)


@pytest.mark.parametrize("masks", [(0x3FF00000, 0xFFC00, 0x3FF), (0xF000, 0xF00, 0xF0), (0, 0x80000000, 1)])
def test_masks_which_pillow_does_not_read(masks):
    pixels = np.random.default_rng(5).integers(0, 2**32, (21, 29))
    found = decoded(bmp(pixels, 32, compression=6, masks=(*masks, 0)))
    for channel, mask in enumerate(masks):
        if not mask:
            np.testing.assert_array_equal(found[..., channel], 0)
            continue
        lowest = mask & -mask
        exact = (pixels & mask) // lowest * 255 / (mask // lowest)
        assert np.abs(found[..., channel] - exact).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
def test_what_pillow_writes(mode):
    image = np.kron(noise(6, 9), np.ones((4, 5, 1), np.uint8))
    contents = encoded(Image.fromarray(image).convert(mode), "BMP")
    np.testing.assert_array_equal(decoded(contents), by_pillow(contents))
    np.testing.assert_array_equal(decoded(contents + b"more"), by_pillow(contents))


INDICES = indices_below(256, 20, 30)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (bmp(INDICES, 8, compression=1, colours=COLOURS), "BMP with run-length encoding: uncompressed ones of 1, 2"),
        (bmp(INDICES, 8, compression=4, colours=COLOURS), "BMP with a JPEG inside: "),
        (bmp(INDICES, 8, compression=77, colours=COLOURS), "BMP with an unknown compression: "),
        (bmp(INDICES, 8, 16, colours=COLOURS), "BMP with a header of 16 bytes: "),
        (bmp(INDICES, 8, said_bits=48, colours=COLOURS), "BMP with 48 bits a pixel: "),
        (bmp(noise(20, 30), 24, compression=3, masks=(255, 255, 255)), "BMP with masks for other than 16 or 32 bits"),
        (bmp(INDICES, 16, compression=3, masks=(0xF0F, 0xF0, 0xF000)), "BMP with masks with holes"),
        (bmp(INDICES, 8, colours=COLOURS)[:-4], "BMP data is broken or cut off"),
        (bmp(INDICES, 8, colours=COLOURS)[:30], "BMP data is broken or cut off"),
        (bmp(INDICES, 8, colours=COLOURS, begin=1 << 30), "BMP data is broken or cut off"),
        (b"BM", "BMP data is broken or cut off"),
        (bmp(INDICES[:, :7], 8, colours=COLOURS), "smaller than 8 pixels on a side"),
        (bmp(INDICES, 8, 12).replace(b"\x1e\0\x14\0", b"\xff\xff\xff\xff"), "larger than 128,000,000 pixels"),
    ],
)
def test_what_is_refused(contents, reason):
    assert images.problem(lambda: tf.constant(contents)).startswith(reason)
