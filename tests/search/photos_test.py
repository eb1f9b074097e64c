"""What an index knows of files besides their descriptors."""

import numpy as np
import pytest
from PIL import Image

from mg_keras.data.given import given_photos
from mg_keras.search import photos
from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.photos import look_at_file
from mg_keras.search.thumbnails import small
from tests.search.fake import FakeModel, noise


def turned():
    """EXIF data of a photo that is to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def save(image, path, **options):
    if path.suffix == ".heic":
        heif = pytest.importorskip("pillow_heif")
        if "exif" in options:
            options["exif"] = options["exif"].tobytes()
        heif.from_pillow(image).save(path, **options)
    else:
        image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_sizes_are_those_of_the_photo_upright(tmp_path, ending):
    image = noise(1, (96, 64))
    for name, options, size in (("plain", {}, (96, 64)), ("turned", {"exif": turned()}, (64, 96))):
        path = save(image, tmp_path / f"{name}.{ending}", **options)
        facts = look_at_file(path)
        assert (facts.width, facts.height) == small(path, 200).size == size
    path.write_bytes(path.read_bytes()[:40])
    facts = look_at_file(path)
    assert (facts.width, facts.height) == (None, None)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_exif_data_that_can_not_be_read_say_nothing(tmp_path, ending):
    """Decoders go by the pixels alone, and index such a photo; it had neither a size nor a thumbnail."""
    path = save(noise(1, (96, 64)), tmp_path / f"a.{ending}", exif=b"Exif\0\0junk", lossless=True)
    facts = look_at_file(path)
    assert (facts.width, facts.height) == (96, 64)
    np.testing.assert_array_equal(np.asarray(small(path, 96)), np.asarray(noise(1, (96, 64))))
    # a PIL image of it can be used, too
    with Image.open(path) as image:
        usable, pixels = given_photos([image]).image(0)
    assert usable
    np.testing.assert_array_equal(pixels, np.asarray(noise(1, (96, 64))))


@pytest.fixture
def folder(tmp_path):
    """A HEIC, and a small JPEG of it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    save(noise(1, (384, 288)), folder / "original.heic", quality=95)
    noise(1, (384, 288)).resize((96, 72)).save(folder / "small.jpg", quality=95, subsampling=0)
    return folder


def indexed(folder, unmeasured, monkeypatch):
    """The folder's index as an earlier version made it, which could not read the size of one of them."""
    size_of = photos.size_of
    with monkeypatch.context() as patch:
        patch.setattr(photos, "size_of", lambda path: (None, None) if path.endswith(unmeasured) else size_of(path))
        return Index.build(folder, FakeModel(), folder.parent / "index")


def test_of_a_heic_and_its_small_copy_the_heic_is_kept(folder):
    with Index.build(folder, FakeModel(), folder.parent / "index") as index:
        for options in ({"trust": True}, {"copy": 0.9}):
            (group,) = find_duplicates(index, **options).groups
            assert (group.keep.name, group.why) == ("original.heic", "the largest, 384 x 288")
            assert [member.spare for member in group.members] == [True]


@pytest.mark.parametrize("name", ["original.heic", "small.jpg"])
def test_no_photo_goes_beside_one_whose_size_is_not_known(folder, name, monkeypatch):
    with indexed(folder, name, monkeypatch) as index:
        (group,) = find_duplicates(index, copy=0.9).groups
    assert (group.keep.name, group.why) == (name, "the one whose size is not known")
    assert [member.spare for member in group.members] == [False]


def test_sizes_that_an_earlier_version_could_not_read_are_read_by_an_update(folder, monkeypatch):
    with indexed(folder, "original.heic", monkeypatch) as index:
        assert index.photo("original.heic").width is None
        changes = index.update()
        assert (changes.changed, changes.embedded) == (0, 0)
        photo = index.photo("original.heic")
    assert (photo.width, photo.height) == (384, 288)
