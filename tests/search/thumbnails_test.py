"""Small pictures of photos, which are also what is compared of them."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.thumbnails import Thumbnails, small, thumbnail
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
