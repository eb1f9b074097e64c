"""Whether a photo may go for another one, on pictures of noise, which have edges as photos do, and on pages."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from mg_keras.search import standing_in
from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.standing_in import has_one_picture, stands_in
from tests.search.fake import FakeModel
from tests.search.verification_test import scene

SIZE = (400, 300)


def photo(seed=1):
    """A photo in colour."""
    grey = scene(seed, SIZE)
    tint = scene(seed + 100, (12, 9)).resize(SIZE, Image.Resampling.BICUBIC).convert("L")
    cold = np.asarray(tint, int) // 3 - 42
    values = np.asarray(grey, int) + np.stack([cold, 0 * cold, -cold], axis=2)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def page(digit="3", line=""):
    made = Image.new("RGB", (620, 400), "white")
    draw, rng, font = ImageDraw.Draw(made), np.random.default_rng(0), ImageFont.load_default(14)
    for row in range(12):
        words = " ".join("".join(map(chr, rng.integers(97, 123, 6))) for _ in range(9))
        draw.text((40, 60 + 22 * row), words, "black", font)
    draw.text((400, 20), f"Invoice 40{digit}9", "black", font)
    draw.text((40, 360), line, (222, 222, 222), font)
    return made


def compared(folder, keep, copy, names=("keep.png", "copy.png"), **options):
    for image, name in ((keep, names[0]), (copy, names[1])):
        image.save(folder / name, **(options if name.endswith("jpg") else {}))
    return stands_in(*(folder / name for name in names))


def scaled(image, factor, how=Image.Resampling.BICUBIC):
    return image.resize((round(factor * image.width), round(factor * image.height)), how)


def hidden(image):
    """With a place that can't be told any more."""
    box = (100, 100, 160, 160)
    image = image.copy()
    image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(3)), box)
    return image


def signed(image):
    image = image.copy()
    ImageDraw.Draw(image).text((20, 20), "2019", (250, 200, 0), ImageFont.load_default(14))
    return image


@pytest.mark.parametrize("quality", [95, 70])
@pytest.mark.parametrize("made", [photo, page])
def test_what_was_compressed_or_made_smaller_may_go(tmp_path, made, quality):
    names, whole = ("keep.png", "copy.jpg"), made()
    assert compared(tmp_path, whole, whole, names, quality=quality)
    for how in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR):
        assert compared(tmp_path, whole, scaled(whole, 0.6, how), names, quality=quality)
    # of less, too
    assert compared(tmp_path, whole, whole.convert("L"))
    assert compared(tmp_path, whole, whole.filter(ImageFilter.GaussianBlur(0.6)))


@pytest.mark.parametrize(
    "worse",
    [
        lambda image: image.convert("L"),
        lambda image: Image.merge("RGB", image.split()[::-1]),
        lambda image: image.filter(ImageFilter.GaussianBlur(0.7)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.25),
        lambda image: ImageEnhance.Brightness(image).enhance(1.3),
        lambda image: scaled(scaled(image, 0.5), 2),
        lambda image: scaled(image, 0.9),
        lambda image: image.crop((0, 0, image.width - 2, image.height - 2)).resize(image.size),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        hidden,
        signed,
    ],
)
def test_nothing_goes_for_what_lacks_something_of_it(tmp_path, worse):
    whole = photo()
    assert not compared(tmp_path, worse(whole), whole)


def test_nothing_goes_for_what_was_enlarged_and_compressed(tmp_path):
    names, whole = ("keep.jpg", "copy.png"), photo()
    assert not compared(tmp_path, scaled(whole, 1.1), whole, names, quality=8)
    assert not compared(tmp_path, scaled(whole, 1.1), whole, names, quality=50)


@pytest.mark.parametrize(
    ("other", "factor"), [(page("8"), 1), (page("8"), 0.75), (page(line="and a line in light grey"), 1)]
)
def test_small_print_counts(tmp_path, other, factor):
    assert not compared(tmp_path, page(), scaled(other, factor))
    assert compared(tmp_path, other, scaled(other, factor))


def test_places_count_wherever_a_tile_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(standing_in, "_TILE", 64)
    assert compared(tmp_path, photo(), scaled(photo(), 0.6))
    assert not compared(tmp_path, page(), page("8"))


def test_what_has_more_than_what_is_seen_stays(tmp_path, monkeypatch):
    whole = photo()
    cut = whole.copy()
    cut.putalpha(255)
    assert not compared(tmp_path, whole, cut)
    assert compared(tmp_path, cut, whole)
    assert not stands_in(tmp_path / "none.png", tmp_path / "copy.png")
    assert not stands_in(tmp_path / "keep.png", tmp_path / "none.png")
    (tmp_path / "cut off.png").write_bytes((tmp_path / "copy.png").read_bytes()[:20_000])
    assert not stands_in(tmp_path / "keep.png", tmp_path / "cut off.png")
    monkeypatch.setattr(standing_in, "_LARGEST", 100)
    assert not compared(tmp_path, cut, whole)


@pytest.mark.parametrize("options", [{"trust": True}, {"copy": 0.9}])
def test_pages_and_frames_that_nobody_compared_stay(tmp_path, options):
    folder = tmp_path / "photos"
    folder.mkdir()
    letters = [scene(seed, SIZE) for seed in range(3)]
    letters[0].save(folder / "whole.png")
    scaled(letters[0], 0.5).save(folder / "letter.tif", save_all=True, append_images=letters[1:])
    scaled(letters[0], 0.5).save(folder / "moves.gif", save_all=True, append_images=[scaled(letters[1], 0.5)])
    scaled(letters[0], 0.5).save(folder / "small.png")
    assert [has_one_picture(folder / name) for name in ("letter.tif", "moves.gif", "small.png", "none")] == [
        False, False, True, False
    ]  # fmt: skip
    assert not stands_in(folder / "whole.png", folder / "letter.tif")
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        found = find_duplicates(index, kinds=["copy"], **options)
    (group,) = found.groups
    assert len(group.photos) == 4
    assert {photo.name for photo, _ in found.spare} == {"small.png"}


def test_of_as_many_pixels_the_less_compressed_stays_between_two_albums(tmp_path):
    card, album = tmp_path / "card", tmp_path / "album"
    for folder, quality in ((card, 92), (album, 85)):
        folder.mkdir()
        photo().save(folder / "photo.jpg", quality=quality)
    with (
        Index.build(card, FakeModel(), tmp_path / "a") as first,
        Index.build(album, FakeModel(), tmp_path / "b") as second,
    ):
        assert find_duplicates(first, second, trust=True).spare == []
        assert len(find_duplicates(second, first, trust=True).spare) == 1
