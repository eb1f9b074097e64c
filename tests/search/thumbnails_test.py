"""Small pictures of photos, which are also what is compared of them."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.thumbnails import Thumbnails, is_of_one_colour, small, thumbnail
from mg_keras.search.verification import compare, grey_of, picture_of
from tests.search.fake import FakeModel


def scan(seed, size=(160, 120)):
    """uint16 [H, W], a scan in 16 bits: patches of many sizes."""
    rng = np.random.default_rng(seed)
    values = np.zeros((size[1], size[0]), np.float32)
    for cells in (3, 6, 12, 24):
        patches = rng.integers(0, 256, (cells, cells), np.uint8)
        values += np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC), np.float32) * 64
    return values.astype(np.uint16)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_greys_of_16_bits_are_shown_by_their_upper_8(tmp_path, ending):
    values = scan(1)
    Image.fromarray(values).save(tmp_path / f"16.{ending}")
    Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / f"8.{ending}")
    shown = np.asarray(small(tmp_path / f"16.{ending}", 80))
    assert shown.std() > 20
    np.testing.assert_array_equal(shown, np.asarray(small(tmp_path / f"8.{ending}", 80)))


def test_scans_of_16_bits_are_copies_where_they_show_the_same(tmp_path):
    """They were all white, so that none was another's copy by its pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(scan(number)).save(folder / f"{number}.png")
    Image.fromarray((scan(0) >> 8).astype(np.uint8)).resize((80, 60)).save(folder / "0 small.png")
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        (group,) = find_duplicates(index, kinds=["copy"], trust=True).groups
    assert {photo.name for photo in group.photos} == {"0.png", "0 small.png"}
    assert [member.spare for member in group.members] == [True]


def test_thumbnails_that_were_kept_of_an_earlier_look_are_made_anew(tmp_path):
    path, content = tmp_path / "a.png", "ab" * 32
    Image.fromarray(scan(1)).save(path)
    # as it was kept before looks had numbers
    old = tmp_path / "kept" / "ab" / f"{content}-256.jpg"
    old.parent.mkdir(parents=True)
    Image.new("RGB", (160, 120), "white").save(old)
    kept = Thumbnails(tmp_path / "kept")
    made = kept.get(path, content)
    assert made == thumbnail(path)
    assert np.asarray(Image.open(io.BytesIO(made))).std() > 20
    # this one is kept
    shutil.copy(path, tmp_path / "b.png")
    path.unlink()
    assert kept.get(path, content) == made


def logos(colour):
    """Three that differ in what is transparent alone."""
    drawn = {}
    for name in ("circle", "square", "text"):
        drawn[name] = Image.new("RGBA", (200, 150), (*colour, 0))
        draw, filled = ImageDraw.Draw(drawn[name]), (*colour, 255)
        if name == "circle":
            draw.ellipse((50, 25, 150, 125), fill=filled)
        elif name == "square":
            draw.rectangle((20, 60, 100, 140), fill=filled)
        else:
            draw.text((10, 40), "Logo & Co", filled, ImageFont.load_default(40))
    return drawn


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "avif"])
@pytest.mark.parametrize(("colour", "ground"), [((0, 0, 0), "white"), ((255, 255, 255), "black")])
def test_logos_on_nothing_are_told_from_each_other(tmp_path, colour, ground, ending):
    pictures = []
    for name, logo in logos(colour).items():
        options = {"lossless": True, "exact": True} if ending == "webp" else {}
        path = tmp_path / f"{name}.{ending}"
        logo.save(path, **options)
        assert is_of_one_colour(path)
        shown = small(path, 100)
        assert shown.mode == "RGB"
        # there is something to be seen in it
        assert max(most - least for least, most in shown.getextrema()) > 100
        pictures.append(picture_of(grey_of(path)))
        pressed = Image.alpha_composite(Image.new("RGBA", logo.size, ground), logo)
        pressed.convert("RGB").save(tmp_path / "flat.jpg")
        assert compare(pictures[-1], picture_of(grey_of(tmp_path / "flat.jpg"))).throughout
        assert not is_of_one_colour(tmp_path / "flat.jpg")
    for number, one in enumerate(pictures):
        for other in pictures[:number]:
            assert not compare(one, other).throughout


def test_a_colour_that_stands_for_nothing_is_none(tmp_path):
    image = Image.new("RGB", (40, 30), "red")
    image.paste("blue", (0, 0, 20, 30))
    image.save(tmp_path / "a.png", transparency=(255, 0, 0))
    shown = np.asarray(small(tmp_path / "a.png", 20))
    assert shown[7, 3].tolist() == [0, 0, 255]
    assert shown[7, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("options", [{"copy": 0.9}, {"trust": True}])
def test_logos_on_nothing_stay(tmp_path, options):
    """The network, which takes no alpha, finds all of them the same."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, logo in logos((0, 0, 0)).items():
        logo.save(folder / f"{name}.png")
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        found = find_duplicates(index, **options)
        assert found.spare == []
        # by their pixels they are no copies at all
        assert [group.kind for group in found.groups if group.kind == "copy"] == (["copy"] if "copy" in options else [])
