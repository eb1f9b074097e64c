import csv
import errno
import html.parser
import io
import json
import os
import shutil

import pytest
from PIL import Image

from mg_keras.errors import UserError
from mg_keras.search import reports
from mg_keras.search.decisions import Decision, Decisions, key_of
from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.moving import LIST, move_spare
from mg_keras.search.store import Noted
from mg_keras.search.thumbnails import thumbnail
from tests.search.fake import FakeModel, album, noise

HOSTILE = '"><img src=x onerror=alert(1)>&$title\n\udcff.png'


class Page(html.parser.HTMLParser):
    """What a browser would see of a page: its elements and its words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    paths = album(folder, 6)
    shutil.copy(paths[0], folder / HOSTILE)
    os.utime(paths[0], (1, 1))
    (folder / "deep").mkdir()
    shutil.copy(paths[1], folder / "deep" / "00001.png")
    shutil.copy(paths[1], folder / "again.png")
    os.utime(paths[1], (1, 1))
    noise(2, (12, 12)).save(folder / "small.jpg", quality=95)
    Image.blend(noise(3), noise(300), 0.35).save(folder / "moved.png")
    (folder / "<b>text.jpg").write_text("none")
    return folder


@pytest.fixture
def index(folder, tmp_path):
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        yield index


@pytest.fixture
def found(index):
    return find_duplicates(index, precision=0.9, copy=0.9)


def test_a_page_by_itself_in_which_no_name_is_more_than_text(found, tmp_path):
    reports.write(found, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    # two of 0, three of 1, two of 2, two of 3
    assert len(pictures) == 9
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert not {"script", "link", "iframe", "a", "b2"} & {tag for tag, _ in page.elements}
    name = '"><img src=x onerror=alert(1)>&$title\\n\\xff.png'
    assert name in page.words
    assert name in [picture["alt"] for picture in pictures]
    assert "<b>text.jpg: not a photo" in page.words
    assert "keep: the largest, 24 × 24" in page.words.replace(" x ", " × ")
    assert page.words.count("may go") == len(found.spare) + 1 == 5


def test_a_page_of_nothing_and_of_too_much(tmp_path, monkeypatch, found):
    with Index.build([noise(1)], FakeModel()) as index:
        assert "No photo is there twice" in reports.as_html(find_duplicates(index))
    monkeypatch.setattr(reports, "_SHOWN", 3)
    text = reports.as_html(found)
    assert text.count("<figure") == 3
    assert "3 more groups are not shown" in text


def test_json_and_csv_say_the_same(found, tmp_path):
    reports.write(found, tmp_path / "report.json")
    about = json.loads((tmp_path / "report.json").read_text())
    assert about["photos"] == 11
    assert about["spare"] == {"photos": 4, "bytes": found.spare_bytes}
    assert about["thresholds"] == {"copy": 0.9, "similar": 0.5, "estimated": False}
    assert [os.path.basename(each["path"]) for each in about["unusable"]] == ["<b>text.jpg"]
    reports.write(found, tmp_path / "report.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    of_json = [
        (str(number), group["kind"], photo["path"], {None: "keep", True: "spare", False: "look"}[photo.get("spare")])
        for number, group in enumerate(about["groups"], 1)
        for photo in (group["keep"], *group["others"])
    ]  # fmt: skip
    assert [(line["group"], line["kind"], line["path"], line["action"]) for line in lines] == of_json
    assert {line["kept"] for line in lines if line["group"] == "3"} == {str(found.groups[2].keep.path)}


def test_the_form_of_imagededup(found, tmp_path):
    reports.write(found, tmp_path / "scripts.json", "imagededup")
    about = json.loads((tmp_path / "scripts.json").read_text())
    assert len(about) == 11
    assert about["00001.png"] == ["again.png", "deep/00001.png"]
    assert about["again.png"] == ["00001.png", "deep/00001.png"]
    assert about["small.jpg"] == ["00002.png"]
    assert about["moved.png"] == about["00005.png"] == []


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("report.pdf", "mg_keras", r"a report is written to a name in \.html, \.json, \.csv, received report.pdf"),
        ("report.html", "imagededup", r"choose a name in \.json, received report.html"),
        ("report.json", "other", "the format must be one of mg_keras, imagededup, received 'other'"),
        ("none/there/report.json", "mg_keras", "can't be written"),
    ],
)
def test_names_of_reports(found, tmp_path, monkeypatch, name, form, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").write_text("")
    with pytest.raises(UserError, match=message):
        reports.write(found, name, form)


def files(folder):
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_may_go_is_moved_and_can_be_put_back(found, folder, tmp_path, monkeypatch):
    before = files(folder)
    target = tmp_path / "moved"
    target.mkdir()
    (target / "again.png").write_text("mine")
    monkeypatch.chdir(tmp_path)
    done = move_spare(found, "moved")
    monkeypatch.chdir(folder)
    assert done.left == []
    gone = {HOSTILE, "deep/00001.png", "again.png", "small.jpg"}
    assert set(before) - set(files(folder)) == gone
    # a name that is taken stays its owner's
    assert files(target)["again.png"] == b"mine"
    assert set(files(target)) == {HOSTILE, "deep/00001.png", "again.png", "again (2).png", "small.jpg", LIST}
    with open(target / LIST, encoding="utf-8", errors="surrogateescape", newline="") as file:
        for line in csv.DictReader(file):
            os.rename(line["to"], line["from"])
            assert os.path.exists(line["kept"])
    assert files(folder) == before


def test_to_another_disk_a_photo_is_whole_or_stays(found, folder, tmp_path, monkeypatch):
    rename, copy = os.rename, shutil.copyfile

    def other_disk(source, target):
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    def full_disk(source, target, **options):
        copy(source, target, **options)
        if os.path.basename(source) == "again.png":
            os.truncate(target, 20)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.rename", other_disk)
    monkeypatch.setattr("shutil.copyfile", full_disk)
    before = files(folder)
    done = move_spare(found, tmp_path / "moved")
    assert done.left == [(folder / "again.png", "could not be moved: No space left on device")]
    # nothing half there, which could be put back in the place of a whole one
    assert files(tmp_path / "moved").keys() == {HOSTILE, "deep/00001.png", "small.jpg", LIST}
    assert all(to.read_bytes() == before[os.path.relpath(path, folder)] for path, to in done.moved)
    assert set(before) - set(files(folder)) == {HOSTILE, "deep/00001.png", "small.jpg"}
    with open(tmp_path / "moved" / LIST, encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [line["from"] for line in csv.DictReader(file)] == [str(path) for path, _ in done.moved]


def test_the_last_one_of_a_group_stays(found, folder, tmp_path):
    (folder / "00000.png").unlink()
    noise(77).save(folder / "00001.png")
    noise(78).save(folder / "small.jpg")
    done = move_spare(found, tmp_path / "moved")
    assert done.moved == []
    assert {(path.name, why) for path, why in done.left} == {
        (HOSTILE, "the one to keep is not there any more"),
        ("00001.png", "the one to keep has changed since it was looked at"),
        ("again.png", "the one to keep has changed since it was looked at"),
        ("small.jpg", "it has changed since it was looked at"),
    }


def test_a_kept_photo_that_was_only_touched_counts(found, folder, tmp_path):
    for path in folder.glob("*.png"):
        os.utime(path)
    assert len(move_spare(found, tmp_path / "moved").moved) == 4


def test_names_that_were_swapped_move_no_photo_that_is_there_once(tmp_path):
    # as a scanner and an archive leave them: of one size and one time
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(("1.bmp", "2.bmp")):
        noise(number).save(folder / name)
    shutil.copy(folder / "1.bmp", folder / "1 copy.bmp")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        found = find_duplicates(index, kinds=["equal"])
    ((photo, _),) = found.spare
    os.rename(photo.path, folder / "between.bmp")
    os.rename(folder / "2.bmp", photo.path)
    os.rename(folder / "between.bmp", folder / "2.bmp")
    done = move_spare(found, tmp_path / "moved")
    assert done.moved == []
    assert done.left == [(photo.path, "it has changed since it was looked at")]


def test_what_was_decided_takes_the_place_of_what_is_proposed(found, index, folder, tmp_path):
    by_name = {group.keep.name: group for group in found.groups}
    with Decisions(tmp_path / "index") as decisions:
        assert decisions.about([by_name["00002.png"]]) == [Decision(False, ("small.jpg",))]
        decisions.put(by_name["00002.png"], Decision(False, ("00002.png",)))
        decisions.put(by_name["00003.png"], Decision(False, ("moved.png",)))
        equal = next(group for group in found.groups if "again.png" in [photo.name for photo in group.photos])
        decisions.put(equal, Decision(True, ("again.png",)))
        for go, message in ((("00002.png", "small.jpg"), "one photo of a group stays"), (("x",), "only photos of")):
            with pytest.raises(UserError, match=message):
                decisions.put(by_name["00002.png"], Decision(False, go))
    with Decisions(tmp_path / "index") as decisions:
        applied = decisions.applied(found, index)
    decided = applied.found
    assert (applied.count, applied.unmatched) == (3, 0)
    # the small one is kept in place of the large one, what is similar goes, and a group that was skipped stays
    assert {photo.name: keep.name for photo, keep in decided.spare if photo.name != HOSTILE} == {
        "00002.png": "small.jpg",
        "moved.png": "00003.png",
    }
    assert move_spare(decided, tmp_path / "moved").left == []
    assert {"small.jpg", "00003.png", "again.png"} <= set(files(folder))


def test_a_group_to_look_at_keeps_nothing_from_what_was_decided(folder, tmp_path):
    # the large one is proposed to be kept of its copies, and of what is similar
    noise(3, (12, 12)).save(folder / "small too.jpg", quality=95)
    with Index.build(folder, FakeModel(), tmp_path / "index") as index, Decisions(tmp_path / "index") as decisions:
        found = find_duplicates(index, precision=0.9, copy=0.9)
        group, similar = (group for group in found.groups if group.keep.name == "00003.png")
        assert (group.kind, similar.kind) == ("copy", "similar")
        decisions.put(group, Decision(False, ("00003.png",)))
        done = move_spare(decisions.applied(found, index).found, tmp_path / "moved")
    assert done.left == []
    assert "00003.png" in {path.name for path, _ in done.moved}


def test_a_decision_holds_for_every_index_of_the_album(found, index, folder, tmp_path):
    group = next(group for group in found.groups if group.keep.name == "00002.png")
    equal = next(group for group in found.groups if "again.png" in [photo.name for photo in group.photos])
    with Decisions(tmp_path / "index") as decisions:
        decisions.put(group, Decision(True, ("small.jpg",)))
    # as it was kept before, in one index
    Noted(tmp_path / "index").put(key_of(equal), json.dumps({"skip": True, "go": []}))
    os.symlink(folder, tmp_path / "link")
    for name, named, count in (("index", folder, 2), ("other", folder, 1), ("by link", tmp_path / "link", 1)):
        path = tmp_path / name
        resolution = None if name == "index" else 64
        with Index.build(named, FakeModel(), path, resolution=resolution) as other, Decisions(path) as decisions:
            applied = decisions.applied(find_duplicates(other, precision=0.9, copy=0.9), other)
        assert applied.count == count
        assert "small.jpg" not in {photo.name for photo, _ in applied.found.spare}


def test_decisions_about_photos_of_no_folder_lie_in_the_index(folder, tmp_path):
    photos = [folder / "00002.png", folder / "small.jpg"]
    for path in (tmp_path / "first", tmp_path / "second"):
        with Index.build(photos, FakeModel(), path) as index, Decisions(path) as decisions:
            (group,) = found = find_duplicates(index, precision=0.9, copy=0.9).groups
            assert decisions.about(found) == [Decision(False, (str(folder / "small.jpg"),))]
            decisions.put(group, Decision(True, ()))
            assert decisions.about(found) == [Decision(True, ())]


def test_a_photo_that_was_kept_stays_however_it_is_grouped(found, index, folder, tmp_path):
    def spare(found):
        return {photo.name for photo, _ in found.spare}

    group = next(group for group in found.groups if group.keep.name == "00002.png")
    equal = next(group for group in found.groups if "again.png" in [photo.name for photo in group.photos])
    assert "small.jpg" in spare(found)
    with Decisions(tmp_path / "index") as decisions:
        decisions.put(group, Decision(True, ("small.jpg",)))
        decisions.put(equal, Decision(False, ("again.png",)))
        # one more of each, larger
        noise(2, (48, 48)).save(folder / "large.png")
        shutil.copy(folder / "again.png", folder / "more.png")
        index.update()
        more = find_duplicates(index, precision=0.9, copy=0.9)
        assert {"small.jpg", "00002.png", "deep/00001.png"} <= spare(more)
        applied = decisions.applied(more, index)
        assert (applied.count, applied.unmatched) == (0, 2)
        assert spare(applied.found) == {"again.png", "more.png", HOSTILE}
        # the page proposes the same
        assert {name for each in decisions.about(more.groups) for name in each.go} == spare(applied.found)
        # a later word about the same photo takes the place of the first
        group = next(group for group in more.groups if group.keep.name == "large.png")
        decisions.put(group, Decision(False, ("small.jpg",)))
        applied = decisions.applied(more, index)
        assert (applied.count, applied.unmatched) == (1, 1)
        assert spare(applied.found) == {"small.jpg", "again.png", "more.png", HOSTILE}
        # without copies these are no groups
        applied = decisions.applied(find_duplicates(index, kinds=["equal"]), index)
        assert (applied.count, applied.unmatched) == (0, 2)
        # and another content of the name is another photo
        noise(2, (12, 12)).save(folder / "00002.png", compress_level=1)
        index.update()
        applied = decisions.applied(find_duplicates(index, precision=0.9, copy=0.9), index)
        assert "00002.png" in spare(applied.found)


def test_not_into_the_album(found, folder, tmp_path):
    os.symlink(folder / "deep", tmp_path / "link")
    for target in (folder, folder / "new", tmp_path / "link" / "x"):
        with pytest.raises(UserError, match="where what is moved would be found again"):
            move_spare(found, target)


def test_on_a_full_disk_all_photos_stay_and_are_named(found, folder, tmp_path):
    before = files(folder)
    (tmp_path / "moved").mkdir()
    os.symlink("/dev/full", tmp_path / "moved" / LIST)
    done = move_spare(found, tmp_path / "moved")
    assert done.moved == []
    assert {why for _, why in done.left} == {"could not be moved: No space left on device"}
    assert files(folder) == before


def test_thumbnails_are_small_and_upright(tmp_path):
    image = Image.new("RGB", (600, 400), "red")
    image.paste("blue", (0, 0, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    small = Image.open(io.BytesIO(thumbnail(tmp_path / "turned.jpg", 90)))
    assert (small.size, small.format, len(small.getexif())) == ((60, 90), "JPEG", 0)
    # what was on the left is on top
    assert small.getpixel((30, 5))[2] > 200
    noise(1).convert("RGBA").save(tmp_path / "a.tif")
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "a.tif", 9))).size == (9, 9)
    (tmp_path / "text.jpg").write_text("none")
    assert thumbnail(tmp_path / "text.jpg") is thumbnail(tmp_path / "none.jpg") is None
