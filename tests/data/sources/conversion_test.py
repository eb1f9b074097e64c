import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import pillow_photos
from mg_keras.data.images import decode
from mg_keras.data.sources import conversion, open_source, photos
from mg_keras.errors import UserError
from mg_keras.progress import say

COLOURS = ((250, 20, 20), (20, 240, 20), (20, 20, 250), (230, 230, 30))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def quarters():
    """uint8 [48, 64, 3]: each quarter of another colour."""
    image = np.zeros((48, 64, 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        y, x = divmod(number, 2)
        image[24 * y : 24 * (y + 1), 32 * x : 32 * (x + 1)] = colour
    return image


def stored_as(image, orientation):
    """The pixels of a file whose reader, by the EXIF orientation, shows `image`."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }
    return Image.fromarray(np.ascontiguousarray(undo[orientation](image)))


def read(split, row=0):
    return decode(split.read(tf.constant(row, tf.int64))).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_without_loss_and_upright(tmp_path, orientation):
    (tmp_path / "album").mkdir()
    stored_as(quarters(), orientation).save(tmp_path / "album" / "scan.tif", tiffinfo={274: orientation})
    split = photos(tmp_path / "album")
    assert split.names == [str(tmp_path / "album" / "scan.tif")]
    np.testing.assert_array_equal(read(split), quarters())


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 8])
def test_photos_of_phones_nearly_without_loss_and_upright(tmp_path, kind, orientation):
    (tmp_path / "album").mkdir()
    stored, exif = stored_as(quarters(), orientation), Image.Exif()
    exif[274] = orientation
    if kind == "HEIC":
        pillow_heif.from_pillow(stored).save(tmp_path / "album" / "a", quality=95, chroma="444", exif=exif.tobytes())
    else:
        stored.save(tmp_path / "album" / "a", "AVIF", quality=95, subsampling="4:4:4", exif=exif)
    found = read(photos(tmp_path / "album"))
    assert found.shape == quarters().shape
    assert np.abs(found.astype(float) - quarters()).mean() < 3


def kinds_of_tiff():
    """Name -> (PIL image, how to save it, the RGB it shows)."""
    rgb = quarters()
    grey = rgb[:, :, 1]
    as_rgb = np.repeat(grey[:, :, None], 3, 2)
    alpha = np.dstack([rgb, np.full(grey.shape, 128, np.uint8)])
    palette = Image.fromarray(rgb).quantize(4)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    second = Image.fromarray(255 - rgb)
    bits = Image.fromarray(grey > 128)
    return {
        "grey": (Image.fromarray(grey), {}, as_rgb),
        "alpha": (Image.fromarray(alpha), {}, rgb),
        "palette": (palette, {}, np.asarray(palette.convert("RGB"))),
        "sixteen bits": (sixteen, {}, as_rgb),
        "black and white": (bits, {}, np.repeat(np.asarray(grey > 128)[:, :, None], 3, 2) * np.uint8(255)),
        "compressed": (Image.fromarray(rgb), {"compression": "tiff_lzw"}, rgb),
        "big": (Image.fromarray(rgb), {"big_tiff": True}, rgb),
        "pages": (Image.fromarray(rgb), {"save_all": True, "append_images": [second]}, rgb),
        "print": (Image.fromarray(255 - alpha, "CMYK"), {}, None),
    }


def test_every_kind_of_tiff(tmp_path):
    kinds = kinds_of_tiff()
    for name, (image, options, _) in kinds.items():
        image.save(tmp_path / f"{name}.tif", **options)
    split = photos(tmp_path)
    assert not split.passed_over
    for row, name in enumerate(sorted(kinds)):
        image, _, expected = kinds[name]
        expected = np.asarray(image.convert("RGB")) if expected is None else expected
        np.testing.assert_array_equal(read(split, row), expected, err_msg=name)


def test_those_that_cannot_be_converted_are_named(tmp_path, monkeypatch, capsys):
    image = Image.fromarray(quarters())
    folder = tmp_path / "photos" / "owl"
    for name in ("ant", "owl"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            image.save(tmp_path / "photos" / name / f"{number}.tif")
    (folder / "cut.tif").write_bytes((folder / "0.tif").read_bytes()[:300])
    (folder / "cut.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0mif1miafavif" + bytes(40))
    (folder / "cut.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    image.save(folder / "negative.tif", tiffinfo={50706: b"\1\4\0\0"})
    image.save(folder / "preview.tif", tiffinfo={254: 1})
    Image.fromarray(np.ones((20, 20), np.float32)).save(folder / "measured.tif")
    image.resize((200, 100)).save(folder / "large.tif")
    monkeypatch.setattr(pillow_photos, "MAX_PIXELS", 100 * 100)
    source = open_source(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "cache")
    assert len(source.train) + len(source.val) == 6
    told = {os.path.basename(name): reason for name, reason in source.passed_over}
    assert sorted(told) == [
        "cut.avif",
        "cut.heic",
        "cut.tif",
        "large.tif",
        "measured.tif",
        "negative.tif",
        "preview.tif",
    ]
    assert all("that can't be converted: " in reason and "\n" not in reason for reason in told.values())
    assert told["large.tif"].endswith("larger than 10,000 pixels")
    assert told["preview.tif"].endswith("a camera's raw file")
    assert "7 files or folders: " in capsys.readouterr().err
    # a class of which nothing is left
    for number in range(3):
        (folder / f"{number}.tif").unlink()
    with pytest.raises(UserError, match=r"no photo for class 'owl' in .*that can't be converted"):
        open_source(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "cache")


def test_each_is_converted_once_until_it_changes(tmp_path, home, monkeypatch):
    path = tmp_path / "album" / "a.tif"
    path.parent.mkdir()
    image = quarters()
    Image.fromarray(image).save(path)
    split = photos(path.parent)
    (copy,) = (home / ".cache" / "mg_keras" / "converted").rglob("*.png")
    assert split.files == [str(copy)]
    with monkeypatch.context() as patched:
        patched.setattr(conversion, "opened", None)
        assert photos(path.parent).files == split.files
    Image.fromarray(255 - image).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read(photos(path.parent)), 255 - image)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "album").mkdir()
    Image.fromarray(quarters()).save(tmp_path / "album" / "a.tif")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/converted can't be written: .* \(data_dir names another place\)"):
        photos(tmp_path / "album", data_dir=tmp_path / "file")


def album_of_tiffs(folder, count=1):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(quarters()).save(folder / f"{number}.tif")
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made; what was made for photos before is another process's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    conversion._temporary.cache_clear()
    yield tmp_path
    conversion._temporary.cache_clear()


@pytest.mark.parametrize("trouble", ["no folder can be made", "read-only", "unknown"])
def test_a_home_that_cannot_be_written_takes_a_temporary_folder(trouble, tmp_path, home, temporary, monkeypatch, capfd):
    album = album_of_tiffs(tmp_path / "album")
    if trouble == "no folder can be made":
        home.write_text("")
    elif trouble == "read-only":
        # what is there already is taken from there
        album_of_tiffs(tmp_path / "before")
        kept = photos(tmp_path / "before").files
        may = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)) and may(path, mode))
        assert photos(tmp_path / "before").files == kept
    else:
        monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    say.cache_clear()
    capfd.readouterr()
    split = photos(album)
    np.testing.assert_array_equal(read(split), quarters())
    (place,) = tmp_path.glob("mg-keras-converted-*")
    assert split.files[0].startswith(f"{place}/")
    # found again in the same process
    assert photos(album).files == split.files
    told = [line for line in capfd.readouterr().err.splitlines() if "temporary" in line]
    assert len(told) == 1
    assert str(place) in told[0]


def test_a_temporary_folder_is_removed_at_the_end_and_leaves_room_for_others(tmp_path, home, temporary, monkeypatch):
    home.write_text("")
    album = album_of_tiffs(tmp_path / "album", 3)
    code = f"from mg_keras.data.sources import photos; print(photos({str(album)!r}).files[0])"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout.startswith(f"{temporary}/mg-keras-converted-")
    assert not list(temporary.glob("mg-keras-*"))

    free = iter([1000, 900, 600, 499])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    monkeypatch.setattr(conversion, "mapped", lambda function, items, *more, **settings: list(map(function, items)))
    with pytest.raises(UserError, match=r"half of what was free .* \(data_dir names another place\)"):
        photos(album)
