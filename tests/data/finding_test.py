import contextlib
import os
import re
import struct
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from mg_keras.data import finding
from mg_keras.data.finding import find_photos
from mg_keras.data.sources import photos
from mg_keras.errors import UserError


def picture(path, kind="PNG", value=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (value, value, value)).save(path, kind)


def text(path, content=b"words"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(found, folder):
    return [os.path.relpath(file, folder) for file in found.files]


def test_photos_are_told_by_their_content(tmp_path):
    kinds = {
        "a.jfif": "JPEG", "b.jpe": "JPEG", "c": "JPEG", "d.JPG_large": "JPEG", "e.heic": "PNG", "f.tmp": "WEBP",
        "g.1": "GIF", "h.dib": "BMP", "i.tif": "JPEG",
    }  # fmt: skip
    for name, kind in kinds.items():
        picture(tmp_path / name, kind)
    # those that the decoder does not read, under whatever name
    picture(tmp_path / "scan", "TIFF")
    picture(tmp_path / "k.dat", "AVIF")
    text(tmp_path / "big.tif", b"MM\0+" + bytes(60))
    text(tmp_path / "l.x", struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic" + b"heavc")
    text(tmp_path / "m.x", struct.pack(">I", 28) + b"ftypmif1\0\0\0\0mif1miafavif")
    found = find_photos(tmp_path)
    others = {"big.tif": "TIFF", "k.dat": "AVIF", "l.x": "HEIC", "m.x": "AVIF", "scan": "TIFF"}
    assert names(found, tmp_path) == sorted([*kinds, *others])
    assert {os.path.basename(path): kind for path, kind in found.kinds.items()} == others
    assert not found.passed_over


def test_what_is_no_photo_is_named_with_a_reason_or_nobodys_business(tmp_path):
    picture(tmp_path / "photo.jpg", "JPEG")
    reasons = {
        "film.mp4": (struct.pack(">I", 24) + b"ftypisom\0\0\0\0isomavc1", f"not a {finding.KINDS} file"),
        "words": (b"BMW, Fiat, Skoda and others", f"not a {finding.KINDS} file"),
        "nothing.xyz": (b"", "the file is empty"),
        "IMG_1.CR2": (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file, .*"),
        "negative.nef": (b"MM\0*\0\0\0\x08", "a camera's raw file, .*"),
        "canon": (b"II*\0\x10\0\0\0CR\2\0", f"not a {finding.KINDS} file"),
    }
    for name, (content, _) in reasons.items():
        text(tmp_path / name, content)
    # of systems, of programs, and texts
    for name in ("@eaDir/photo.jpg/THUMB_XL.jpg", ".thumbnails/1.jpg", "__MACOSX/._photo.jpg", "._photo.jpg",
                 "#recycle/old.jpg", "deep/.@__thumb/1.jpg"):  # fmt: skip
        picture(tmp_path / name, "JPEG")
    for name in ("Thumbs.db", "desktop.ini", "list.csv", "photo.json", "photo.xmp", ".DS_Store"):
        text(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_photos(tmp_path)
    assert names(found, tmp_path) == ["photo.jpg"]
    told = {os.path.basename(path): reason for path, reason in found.passed_over.items()}
    assert told.pop("pipe.jpg") == "neither a file nor a folder"
    assert told.keys() == reasons.keys()
    assert {name: bool(re.fullmatch(reason, told[name])) for name, (_, reason) in reasons.items()} == dict.fromkeys(
        reasons, True
    )


def test_links_are_followed_once_and_loops_end(tmp_path):
    picture(tmp_path / "far" / "away" / "1.png")
    picture(tmp_path / "far" / "2.png")
    folder = tmp_path / "here"
    picture(folder / "3.png")
    picture(folder / "z" / "4.png")
    (folder / "a").symlink_to(tmp_path / "far")
    (folder / "b").symlink_to(tmp_path / "far" / "away")
    (folder / "same").symlink_to(folder / "z")
    (folder / "z" / "up").symlink_to("..")
    (tmp_path / "far" / "back").symlink_to(folder)
    (folder / "file.png").symlink_to(tmp_path / "far" / "2.png")
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "gone").symlink_to(tmp_path / "nothing")
    (folder / "self").symlink_to("self")
    found = find_photos(folder)
    assert names(found, folder) == ["3.png", "a/2.png", "a/away/1.png", "file.png", "z/4.png"]
    told = {os.path.relpath(path, folder): reason for path, reason in found.passed_over.items()}
    assert told.pop("self").startswith("could not be read: ")
    assert told == {
        "b": "a link to a folder that is read already",
        "same": "a link to a folder that is read already",
        "z/up": "a link that leads back to a folder it is in",
        "a/back": "a link to a folder that is read already",
        "gone.png": "a link that leads nowhere",
        "gone": "a link that leads nowhere",
    }
    # a class that is a link to what it lies in
    assert not find_photos(folder / "z" / "up", above=[folder]).files


@contextlib.contextmanager
def rights_of_nobody():
    """Root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def readable():
    """A folder that nobody may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_what_may_not_be_read_is_named(readable, capsys):
    for name in ("open.png", "private/1.png", "locked"):
        picture(readable / name)
    for name in ("private", "locked"):
        (readable / name).chmod(0)
    with rights_of_nobody():
        split = photos(readable)
    assert [os.path.basename(name) for name in split.names] == ["open.png"]
    reason = "could not be read: Permission denied"
    assert split.passed_over == ((str(readable / "locked"), reason), (str(readable / "private"), reason))
    # the rights are the whole process's: a server that another test left running says that it misses its folder
    lines = capsys.readouterr().err.splitlines()
    assert f"passed over in {readable}: 2 files or folders: {reason} (2, such as locked)" in lines
    readable.chmod(0)
    with rights_of_nobody(), pytest.raises(UserError, match=f"no photo below {readable}: {reason}"):
        photos(readable)


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    text(tmp_path / "a.HEIC", struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(finding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"HEIC, .*: pip install pillow-heif \(a\.HEIC\)"):
        photos(tmp_path)


def test_a_known_ending_is_not_looked_at(tmp_path, monkeypatch):
    for number in range(20):
        picture(tmp_path / "deep" / f"{number}.png")
        text(tmp_path / "deep" / f"{number}.json")

    def refuse(*args, **kwargs):
        raise AssertionError("a file is opened")

    monkeypatch.setattr(finding, "_kind", refuse)
    assert len(find_photos(tmp_path).files) == 20
