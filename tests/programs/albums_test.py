"""mg-keras search and mg-keras duplicates, with a model of milliseconds."""

import importlib.util
import io
import json
import shlex
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

from mg_keras.errors import UserError
from mg_keras.programs import albums, duplicates, search
from mg_keras.search.decisions import Decision, Decisions
from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from tests.search.fake import FakeModel, album, noise


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(albums, "loaded", lambda options: FakeModel())
    paths = album(tmp_path / "photos", 8)
    shutil.copy(paths[0], paths[0].with_name("twice.png"))
    small = noise(1).resize((12, 12), Image.Resampling.BILINEAR)
    small.save(paths[0].with_name("small.jpg"), quality=95, subsampling=0)
    return paths[0].parent


def test_search_by_a_photo_and_by_a_class(folder, capsys, tmp_path):
    out = tmp_path / "found.json"
    search.main([str(folder), str(folder / "00001.png"), "--k", "3", "--out", str(out)])
    shown = capsys.readouterr().out
    assert shown.startswith("the photo: ")
    assert f"copies:\n  1.000  {folder / '00001.png'}\n  0.9" in shown
    assert "the same object or place: none" in shown
    assert "10 photos searched" in shown
    assert [each["path"] for each in json.loads(out.read_text())["copies"]][1] == str(folder / "small.jpg")
    # among the photos, nothing was written
    assert len(list(folder.iterdir())) == 10
    search.main([str(folder), "--class", "green", "--k", "2"])
    assert capsys.readouterr().out.startswith("green:\n ")


def test_duplicates_are_listed_and_moved_when_asked(folder, capsys, tmp_path, monkeypatch):
    report, target = tmp_path / "report.html", tmp_path / "moved"
    duplicates.main([str(folder), "--out", str(report), "--precision", "0.9"])
    shown = capsys.readouterr().out
    assert "1. the same byte for byte: keep 00000.png" in shown
    assert "may go  equal files   twice.png" in shown
    assert "groups: 1 the same byte for byte, 1 copies, 0 similar" in shown
    # of the model's own threshold only what is equal may go
    assert "1 photos may go" in shown
    assert "only equal files may go, unless --trust true" in shown
    duplicates.main([str(folder), "--precision", "0.9", "--trust", "true"])
    shown = capsys.readouterr().out
    assert "2 photos may go" in shown
    assert "by --trust those may go of which the one that is kept has all" in shown
    assert "only equal" not in shown
    # by their cosine copies are none that may go
    duplicates.main([str(folder), "--precision", "0.9", "--trust", "true", "--verify", "false"])
    shown = capsys.readouterr().out
    assert "1 the same byte for byte, 1 copies, 0 similar" in shown
    assert "1 photos may go" in shown
    assert report.read_text().startswith("<!doctype html>")
    move = [str(folder), "--precision", "0.9", "--copy", "0.9", "--move-to", str(target)]
    with pytest.raises(UserError, match="asks first, and nobody can answer here"):
        duplicates.main(move)
    # at the start, and not when all is compared
    assert not capsys.readouterr().err
    # the second one is Ctrl-D
    for answer in ("n\n", ""):
        monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})(answer))
        duplicates.main(move)
        assert "nothing was moved" in capsys.readouterr().out
    assert not target.exists()
    duplicates.main([*move, "--yes", "true", "--out", str(report)])
    assert "moved: 2 photos" in capsys.readouterr().out
    assert "Nothing was" not in report.read_text()
    assert sorted(path.name for path in target.iterdir()) == ["moved.csv", "small.jpg", "twice.png"]
    duplicates.main(move)
    assert "there is nothing to move" in capsys.readouterr().out


def test_what_was_decided_on_the_page_is_moved(folder, capsys, tmp_path):
    duplicates.main([str(folder), "--precision", "0.9"])
    (path,) = (tmp_path / "home" / ".cache" / "mg_keras" / "indexes").iterdir()
    with Index.open(path) as index, Decisions(path) as decisions:
        for group in find_duplicates(index, precision=0.9).groups:
            go = "00001.png" if group.kind == "copy" else "twice.png"
            decisions.put(group, Decision(group.kind == "equal", (go,)))
    capsys.readouterr()
    move = [str(folder), "--precision", "0.9", "--yes", "true", "--move-to", str(tmp_path / "moved")]
    duplicates.main(move)
    told = capsys.readouterr()
    assert "2 of 2 groups are as they were decided on the page" in told.err
    assert "moved: 1 photos" in told.out
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["00001.png", "moved.csv"]
    # of a group that has one photo more since, those that were kept stay
    shutil.copy(folder / "twice.png", folder / "thrice.png")
    duplicates.main(move)
    told = capsys.readouterr()
    assert "1 decisions of the page match no group now" in told.err
    assert "moved: 1 photos" in told.out
    assert (folder / "twice.png").exists()
    duplicates.main([*move, "--decided", "false"])
    assert "moved: 1 photos" in capsys.readouterr().out
    assert (tmp_path / "moved" / "twice.png").exists()


def test_between_two_folders_and_the_form_of_imagededup(folder, capsys, tmp_path):
    other = tmp_path / "test"
    album(other, 2)
    duplicates.main(["--between", str(folder), str(other), "--format", "imagededup"])
    about = json.loads(capsys.readouterr().out)
    assert about[str(other / "00000.png")] == [str(folder / "00000.png"), str(folder / "twice.png")]
    duplicates.main([str(folder), "--recursive", "false", "--kinds", "equal"])
    shown = capsys.readouterr().out
    assert "1 the same byte for byte, 0 copies" in shown
    assert "1 of them the same byte for byte as another" in shown
    assert "threshold" not in shown
    duplicates.main([str(folder), "--recursive", "false", "--kinds", "copies"])
    assert "10 photos; groups: 0 the same byte for byte, 1 copies" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no photo of .*empty can be used: none of its files is a JPEG"):
        duplicates.main([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (duplicates, [], "one FOLDER is needed, or --between A B"),
        (duplicates, ["{folder}", "--between", "a", "b"], "one FOLDER is needed"),
        (duplicates, ["nowhere"], "no such folder: nowhere"),
        (search, ["{folder}/00000.png"], r"00000\.png is a file: give the folder of an album before it"),
        (search, ["~nobody-has-it", "a.jpg"], "no such folder: ~nobody-has-it"),
        (duplicates, ["{folder}", "--out", "report.doc"], r"a name in \.html, \.json, \.csv, received report.doc"),
        # before anything is described
        (duplicates, ["{folder}", "--out", "{folder}/00000.png/a.html"], r"to: .*00000\.png is no folder"),
        (duplicates, ["{folder}", "--kinds", "same"], "kinds must be some of"),
        (duplicates, ["{folder}", "--move-to", "{folder}/in", "--yes", "true"], "would be found again"),
        (duplicates, ["--between", "{folder}", "{folder}", "--index", "x"], "--index is for one folder"),
        (search, ["{folder}", "a.jpg", "--class", "green"], "one of PHOTO and --class is enough"),
        (search, ["{folder}", "--out", "a.json"], "--out is for PHOTO or --class"),
        (search, ["{folder}", "--k", "3"], "--k is for PHOTO or --class"),
        (search, ["{folder}", "--expand", "3"], "--expand is for PHOTO"),
        (search, ["{folder}", "--class", "green", "--precision", "0.9"], "--precision is for PHOTO"),
        (search, ["{folder}", "a.jpg", "--port", "80"], "--port is for the page, which is served without PHOTO and"),
        (search, ["{folder}", "--class", "green", "--browser", "false"], "--browser is for the page"),
        (search, ["{folder}", "{folder}/none.jpg"], "no such file"),
        (search, ["{folder}", "a.jpg", "--out", "a.txt"], r"--out must be a name in \.json"),
        (search, ["{folder}", "--class", "grean"], "no class is called 'grean'; near: green"),
        (search, ["{folder}", "a.jpg", "--k", "0"], "--k must be a whole number, at least 1; received '0'"),
    ],
)
def test_what_is_wrong_is_one_line(folder, program, arguments, message):
    with pytest.raises(UserError, match=message) as told:
        program.main([argument.replace("{folder}", str(folder)) for argument in arguments])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "asked",
    [
        ["{folder}/none.jpg"],
        ["{folder}"],
        ["--class", "grean"],
        ["{folder}/00001.png", "--precision", "0.999"],
        ["{folder}/00001.png", "--out", "{folder}/00001.png/a.json"],
    ],
)
def test_what_can_not_be_looked_for_is_told_before_the_album_is_described(folder, monkeypatch, asked):
    monkeypatch.setattr(albums, "index_of", lambda *arguments: pytest.fail("the album was described"))
    with pytest.raises(UserError):
        search.main([str(folder), *(argument.replace("{folder}", str(folder)) for argument in asked)])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--kinds", "equal, same"], "kinds must be some of equal, copy, similar, received same"),
        (["--copy", "0.5", "--similar", "0.6"], "similar must be at most copy, .* received 0.6 and 0.5"),
        (["--precision", "0.999"], "no threshold of copy is known for a precision of 0.999"),
        (["--move-to", "{folder}/in", "--yes", "true"], "would be found again: choose a folder elsewhere"),
    ],
)
def test_what_can_not_be_done_is_told_before_the_album_is_described(folder, monkeypatch, asked, message):
    monkeypatch.setattr(albums, "index_of", lambda *arguments: pytest.fail("the album was described"))
    with pytest.raises(UserError, match=message):
        duplicates.main([str(folder), *(argument.replace("{folder}", str(folder)) for argument in asked)])


def test_search_names_photos_that_can_not_be_used(folder, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    search.main([str(folder), str(folder / "00001.png")])
    shown = capsys.readouterr().out
    assert "10 photos searched\n1 could not be used, such as broken.jpg: " in shown


@pytest.mark.parametrize(
    ("program", "asked"),
    [(search, ["{folder}/00001.png"]), (search, ["--class", "green"]), (duplicates, [])],
)
def test_files_that_are_passed_over_are_counted_with_the_reason(folder, capsys, tmp_path, monkeypatch, program, asked):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "pillow_heif" and find_spec(name))
    header = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    for name in ("a.heic", "b.heic"):
        (folder / name).write_bytes(header)
    asked = [argument.replace("{folder}", str(folder)) for argument in asked]
    program.main([str(folder), *asked])
    told = "2 files or folders: HEIC, for which pillow-heif is missing: pip install pillow-heif (2, such as a.heic)\n"
    assert capsys.readouterr().err.startswith(f"passed over in {folder}: {told}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "IMG.CR2").write_bytes(header)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    for name, why in (("other", r"a camera's raw file, .* \(IMG\.CR2\)"), ("broken", r".* \(a\.jpg\)")):
        where = str(tmp_path / name)
        with pytest.raises(UserError, match=f"no photo of {where} can be used: {why}"):
            program.main([where, *asked])


def test_of_an_album_that_was_emptied_it_is_told_what_to_delete(folder, tmp_path):
    duplicates.main([str(folder)])
    (path,) = (tmp_path / "home" / ".cache" / "mg_keras" / "indexes").iterdir()
    for photo in folder.iterdir():
        photo.unlink()
    for program, asked in ((search, ["--class", "green"]), (duplicates, [])):
        with pytest.raises(UserError, match=f"is the disk there\\? If they were removed on purpose, delete {path}"):
            program.main([str(folder), *asked])


def test_the_demo_ends_with_an_index_and_the_command_for_its_page(folder, tmp_path, monkeypatch):
    source = SimpleNamespace(val=SimpleNamespace(files=sorted(map(str, folder.iterdir()))))
    monkeypatch.setattr("mg_keras.runs.photos.open_source", lambda settings: source)
    monkeypatch.setattr("mg_keras.loading.load", lambda model: FakeModel())
    told = albums.indexed_demo(SimpleNamespace(settings=None), "runs/demo/saved_model")
    assert told == f"mg-keras search {folder} --model runs/demo/saved_model"
    (path,) = (tmp_path / "home" / ".cache" / "mg_keras" / "indexes").iterdir()
    with Index.open(path) as index:
        assert len(index) == 10


def test_the_demo_goes_on_where_its_photos_can_not_be_indexed(folder, tmp_path, monkeypatch, capsys):
    odd = folder.rename(tmp_path / "my photos; $HOME")
    source = SimpleNamespace(val=SimpleNamespace(files=sorted(map(str, odd.iterdir()))))
    monkeypatch.setattr("mg_keras.runs.photos.open_source", lambda settings: source)
    monkeypatch.setattr("mg_keras.loading.load", lambda model: FakeModel())
    (tmp_path / "home").write_text("no folder")
    told = albums.indexed_demo(SimpleNamespace(settings=None), tmp_path / "it's")
    assert shlex.split(told) == ["mg-keras", "search", str(odd), "--model", str(tmp_path / "it's")]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the photos could not be indexed for the search: ")
