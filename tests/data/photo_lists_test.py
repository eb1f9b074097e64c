import csv
import io
import tarfile
from hashlib import sha256

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from PIL import Image
from pyarrow import parquet

from mg_keras.data import stores
from mg_keras.data.photo_lists import Contents, Photo, PhotoList
from mg_keras.errors import UserError


def jpeg(seed, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)).save(file, kind)
    return file.getvalue()


NAMES = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "4.jpg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    (folder / "a" / "film.mov").write_bytes(b"a film")
    return folder


@pytest.fixture
def bucket(folder):
    """The same photos in a store that fsspec reads."""
    files = fsspec.filesystem("memory")
    for name in [*NAMES, "a/notes.txt", ".hidden/5.jpg"]:
        files.pipe(f"/bucket/{name}", (folder / name).read_bytes() if name in NAMES else b"other")
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def uris(*what):
    return [photo.uri for photo in PhotoList(what)]


def test_folders_photos_and_globs(folder, monkeypatch, capsys):
    listed = PhotoList(folder)
    assert [photo.uri for photo in listed] == sorted(str(folder / name) for name in NAMES)
    assert [name for name, _ in listed.passed_over] == [str(folder / "a" / "film.mov")]
    assert "passed over" in capsys.readouterr().err
    assert uris(folder / "4.jpg", folder / "b") == [str(folder / "4.jpg"), str(folder / "b" / "3.jpg")]
    assert uris(f"{folder}/**/[23].jpg") == [str(folder / name) for name in ("a/2.jpg", "b/3.jpg")]
    assert uris(f"{folder}/a/{{1..2}}.jpg") == [str(folder / "a" / name) for name in ("1.jpg", "2.jpg")]
    # wherever the command is started, rows are called the same
    monkeypatch.chdir(folder / "a")
    assert uris(".") == [str(folder / "a" / name) for name in ("1.jpg", "2.jpg")]
    before = [photo.stamp for photo in PhotoList(".")]
    assert all(before)
    assert len(set(before)) == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "parquet"])
def test_lists_in_their_order_relative_to_themselves(folder, kind):
    names = [NAMES[3], "s3://bucket/x.jpg", str(folder / NAMES[0]), "a/../b/3.jpg", "gone.jpg"]
    path = folder / f"list.{kind}"
    try:
        if kind == "parquet":
            parquet.write_table(pa.table({"n": [1] * 5, "path": ["no"] * 5, "URI": names}), path, row_group_size=2)
        else:
            with path.open("w", newline="") as file:
                rows = [[name] for name in names] if kind == "txt" else [["n", "Path"], *([1, name] for name in names)]
                csv.writer(file, delimiter="\t" if kind == "tsv" else ",").writerows(rows)
        expected = [str(folder / "4.jpg"), names[1], names[2], str(folder / "b" / "3.jpg"), str(folder / "gone.jpg")]
        assert uris(path) == expected
    finally:
        path.unlink()


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))


def test_tars_are_read_where_the_photos_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for shard in range(2):
        tar_of(tmp_path / f"{shard}.tar", {f"x/{n}.{kind}": jpeg(n) for n in range(3) for kind in ("jpg", "cls")})
    photos = list(PhotoList(f"{tmp_path}/{{0..1}}.tar"))
    assert [photo.uri for photo in photos] == [
        f"{tmp_path}/{shard}.tar#x/{n}.jpg" for shard in (0, 1) for n in range(3)
    ]
    with Contents(photos) as contents:
        assert [contents.decodable(row) for row in range(6)] == [jpeg(n) for n in (0, 1, 2, 0, 1, 2)]
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[: photos[5].position + 100])
    with Contents(photos) as contents:
        assert contents.decodable(5) == b""
        assert contents.trouble(5) == f"could not be read: {tmp_path}/1.tar is cut off"
    with pytest.raises(UserError, match=r"give its tars as .*/\*\.tar"):
        list(PhotoList(tmp_path))


def test_names_with_dots_and_of_one_stem_are_photos_of_a_tar(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ["holiday 2023.05.01.jpg", "IMG_1.jpg", "IMG_1.png"]
    tar_of(tmp_path / "x.tar", {name: jpeg(n) for n, name in enumerate(names)})
    photos = list(PhotoList(tmp_path / "x.tar"))
    assert [photo.uri for photo in photos] == [f"{tmp_path}/x.tar#{name}" for name in names]
    with Contents(photos) as contents:
        assert [contents.decodable(row) for row in range(3)] == [jpeg(n) for n in range(3)]


def test_what_lies_in_a_store(bucket, folder, monkeypatch):
    photos = list(PhotoList(bucket))
    assert [photo.uri for photo in photos] == [
        f"memory:///bucket/{n}" for n in ("4.jpg", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    ]
    assert all(photo.stamp for photo in photos)
    assert uris(f"{bucket}/b/*.jpg") == ["memory:///bucket/b/3.jpg"]
    monkeypatch.setattr(stores, "_RETRIES", ())
    photos.append(Photo("memory:///bucket/gone.jpg", "memory:///bucket/gone.jpg"))
    with Contents(photos) as contents:
        # in another order than they are read ahead
        for row in (4, 2, 0, 3, 1, 2):
            expected = b"" if row == 4 else (folder / photos[row].uri.split("bucket/")[1]).read_bytes()
            assert contents.decodable(row) == expected
            assert contents.sha256(row) == (sha256(expected).hexdigest() if expected else None)
        assert contents.trouble(4).startswith("could not be read: ")
        assert contents.trouble(0) is None


def test_photos_that_are_converted_before_they_are_decoded(tmp_path):
    tiff = jpeg(1, "TIFF")
    (tmp_path / "1.tif").write_bytes(tiff)
    (tmp_path / "2.tif").write_bytes(tiff[:100])
    photos = [Photo(str(path), str(path)) for path in (tmp_path / "1.tif", tmp_path / "2.tif", tmp_path / "3.jpg")]
    with Contents(photos) as contents:
        pixels = tf.io.decode_png(contents.decodable(0)).numpy()
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(tiff))))
        assert contents.sha256(0) == sha256(tiff).hexdigest()
        assert [contents.decodable(row) for row in (1, 2)] == [b"", b""]
        assert contents.trouble(1).startswith("TIFF that can't be converted: ")
        assert contents.trouble(2) == "could not be read: No such file or directory"


def test_no_time_is_lost_on_what_is_no_name(monkeypatch):
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: pytest.fail("it will be none later"))
    names = ["a" * 300 + ".jpg", "a\0b.jpg", "gone.jpg"]
    with Contents([Photo(name, name) for name in names]) as contents:
        assert [contents.decodable(row) for row in range(3)] == [b""] * 3
        troubles = [contents.trouble(row) for row in range(3)]
    assert troubles == [
        f"could not be read: {why}" for why in ("File name too long", "embedded null byte", "No such file or directory")
    ]


@pytest.mark.parametrize("kind", ["csv", "txt", "parquet"])
def test_a_store_that_fails_while_a_list_is_read_is_one_line(bucket, monkeypatch, kind):
    class Throttled(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise RuntimeError("slow down\nsecond line")

    monkeypatch.setattr(type(stores.store_of(bucket)), "open", lambda store, path: io.BufferedReader(Throttled()))
    with pytest.raises(UserError, match=rf"list\.{kind} can't be read.*: \w+: ") as caught:
        uris(f"{bucket}/list.{kind}")
    assert "\n" not in str(caught.value)


def test_mistakes_are_told(tmp_path, bucket):
    table = tmp_path / "x.csv"
    for text, message in [
        ("", r"x\.csv must have a column uri, path, name or file of photos, received none"),
        ("a,b\n1,2\n", "received a, b"),
        ("path,b\n,2\n", r"x\.csv, row 2: the name of the photo is empty"),
        ("path\na, b.jpg\n", r"x\.csv, row 2: at most 1 values, as the first row has, received 2: put quotes"),
        ('path\n"a\n', r"x\.csv, row 2 can't be read as a table"),
    ]:
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            uris(table)
    (tmp_path / "x.parquet").write_bytes(b"none")
    parquet.write_table(pa.table({"uri": ["a", None]}), tmp_path / "y.parquet")
    (tmp_path / "x.txt").write_bytes(b"\xff\n")
    (tmp_path / "empty").mkdir()
    for what, message in [
        (tmp_path / "x.parquet", r"x\.parquet can't be read as Parquet"),
        (tmp_path / "y.parquet", "uri must hold the name of a photo in every row"),
        (tmp_path / "x.txt", r"x\.txt must be text in UTF-8"),
        (tmp_path / "no", "no such folder, photo or list: .*no"),
        (tmp_path / "*.jpg", r"nothing matches .*\*\.jpg"),
        (tmp_path / "empty", "no photo below .*empty"),
        (f"{bucket}/c", "no photo below memory://bucket/c"),
        ("nothing://x", "nothing://x can't be read"),
    ]:
        with pytest.raises(UserError, match=message):
            uris(what)
