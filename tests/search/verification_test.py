"""Copies by their pixels, on pictures of noise of many sizes, which have edges as photos do."""

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from mg_keras.evaluation.copies import STRONG_EDITS
from mg_keras.search import verifying
from mg_keras.search.decisions import Decision, Decisions
from mg_keras.search.duplicates import find_duplicates
from mg_keras.search.index import Index
from mg_keras.search.store import Compared, Writer
from mg_keras.search.verification import FRAME, MAP, MIRRORED, Verdict, compare, picture_of, sketch_of, unit_sketches
from mg_keras.search.verifying import Verifier, near_order
from tests.search.fake import FakeModel

SIZE = (200, 150)


def scene(seed, size=SIZE):
    """A photo: patches of all sizes, one over the other, and some noise."""
    rng = np.random.default_rng(seed)
    values = np.zeros((size[1], size[0]), np.float32)
    for cells in (3, 6, 12, 24, 48):
        patches = rng.integers(0, 256, (cells, cells), np.uint8)
        values += np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.NEAREST), np.float32) / 5
    return Image.fromarray(np.clip(values + rng.normal(0, 2, values.shape), 0, 255).astype(np.uint8)).convert("RGB")


LINES = ("Sales rose by 12 per cent", "in the north, mostly shoes", "Costs fell slightly")


def slide(lines=LINES, paper="white", ink="black", size=(1280, 720)):
    """A page of a presentation: lines of text below a header and above a footer that all of them have."""
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    for top, bottom in ((0, 110), (670, 720)):
        draw.rectangle((0, top, size[0], bottom), fill=(20, 40, 120))
    draw.text((40, 25), "Quarterly report 2026", "white", ImageFont.load_default(52))
    for number, line in enumerate(lines):
        draw.text((60, 180 + 90 * number), line, ink, ImageFont.load_default(42))
    return image


def smaller(image, side=320):
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return image


def picture(image):
    return picture_of(np.asarray(image.convert("L")))


@pytest.fixture(scope="module")
def first():
    return scene(1)


@pytest.mark.parametrize("edit", STRONG_EDITS)
def test_strong_edits_are_copies(first, edit):
    edited = STRONG_EDITS[edit](first, np.random.default_rng(3))
    found = compare(picture(first), picture(edited))
    assert found.same
    assert found.how == (MAP if edit in ("crop_half", "rotation", "perspective") else FRAME)
    assert 0.2 < found.score <= 1
    assert compare(picture(edited), picture(first)).same


def test_mirrored_resized_and_small_ones_are_copies(first):
    turned = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert compare(picture(first), picture(turned)).how == MIRRORED
    assert compare(picture(first), picture(turned.crop((10, 10, 170, 130)))).how == MIRRORED
    assert compare(picture(first), picture(first.resize((64, 48)))).how == FRAME


def test_others_are_none(first):
    """Another photo; another shot of a scene of two depths; one that overlaps; one of nothing."""
    plain = Image.new("RGB", SIZE, "grey")
    near, far = scene(5, (90, 80)), scene(6, (230, 180))
    shots = []
    for shift in (0, 9):
        shot = far.crop((shift // 3, 5, 200 + shift // 3, 155))
        shot.paste(near, (40 + shift, 40))
        shots.append(picture(shot))
    wide = scene(7, (280, 150))
    halves = picture(wide.crop((0, 0, 200, 150))), picture(wide.crop((80, 0, 280, 150)))
    for one, other in ((picture(first), picture(scene(2))), shots, halves, (picture(plain), picture(plain))):
        assert not compare(one, other).same


@pytest.mark.parametrize("colours", [("white", "black"), ("black", "white"), ("lightgrey", "black")])
def test_text_on_white_or_black_counts(colours):
    """Slides that have their header in common; it was all that counted of them."""
    rewritten = slide(("Hiring plan for spring", "Ten engineers, two cooks", "One office in Lisbon"), *colours)
    found = compare(picture(smaller(slide(LINES, *colours))), picture(smaller(rewritten)))
    assert found.score < 0.95
    assert not found.throughout


@pytest.mark.parametrize(
    "lines",
    [("Sales fell by 12 per cent", *LINES[1:]), (*LINES[:2], "Nobody was hired"), LINES[:2], (*LINES, "and then some")],
)
def test_what_differs_in_a_place_is_not_the_same_throughout(lines):
    one, other = (picture(smaller(slide(each))) for each in (LINES, lines))
    for found in (compare(one, other), compare(other, one)):
        # what they have in common is nearly all
        assert found.score > 0.95
        assert not found.throughout


def test_pages_of_one_letterhead_are_not_the_same_throughout():
    rng = np.random.default_rng(0)
    pages = []
    for _ in range(2):
        page = Image.new("RGB", (620, 880), "white")
        for row in range(34):
            words = " ".join("".join(map(chr, rng.integers(97, 123, 6))) for _ in range(7))
            ImageDraw.Draw(page).text((60, 60 + 22 * row), words, "black", ImageFont.load_default(16))
        pages.append(page)
    one, other = (picture(smaller(page)) for page in pages)
    assert not compare(one, other).throughout
    assert compare(one, picture(smaller(pages[0].resize((310, 440))))).throughout


def padded(image, caption="", size=(320, 240)):
    page = Image.new("RGB", size, "white")
    page.paste(image, (60, 10))
    ImageDraw.Draw(page).text((60, 175), caption, "black", ImageFont.load_default(24))
    return page


@pytest.mark.parametrize("turn", [0, 30])
def test_padding_that_photos_have_in_common_makes_no_copies(first, turn):
    # of little contrast, so that most there is lies at their edges
    pages = []
    for photo in (first, scene(2)):
        faint = photo.point(lambda value: 80 + value // 5)
        pages.append(faint.rotate(turn, expand=True) if turn else padded(faint))
    one, other = map(picture, pages)
    assert not compare(one, other).same
    assert compare(one, picture(pages[0].resize((200, 150)))).throughout


def test_captions_beside_a_photo_have_to_be_the_same(first):
    one, other = (picture(padded(first, caption)) for caption in ("In the summer", "Bought by Anne"))
    assert compare(one, one).throughout
    found = compare(one, other)
    assert found.same
    assert not found.throughout


def test_what_was_compressed_resized_or_made_brighter_is_the_same_throughout(first, tmp_path):
    slide().save(tmp_path / "slide.jpg", quality=30)
    with Image.open(tmp_path / "slide.jpg") as pressed:
        assert compare(picture(smaller(slide())), picture(smaller(pressed))).throughout
    first.save(tmp_path / "first.jpg", quality=50)
    with Image.open(tmp_path / "first.jpg") as pressed:
        edits = [pressed.convert("RGB"), first.resize((100, 75)), first.crop((20, 10, 180, 130))]
    # of the brighter ones much is white that was not
    edits += [ImageEnhance.Brightness(first).enhance(factor) for factor in (0.5, 1.3, 1.6)]
    for edited in edits:
        found = compare(picture(first), picture(edited))
        assert found.throughout
        assert found.score >= 0.95


def test_sketches_of_flat_photos_are_like_nothing(first):
    values = unit_sketches(np.stack([sketch_of(np.asarray(first.convert("L"))), np.full((12, 12), 7, np.uint8)]))
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), [1, 0], atol=1e-6)


def test_pairs_are_ordered_so_that_neighbours_come_together():
    # two rings of photos, their numbers mixed
    names = np.random.default_rng(0).permutation(40)
    ring = np.arange(20)
    pairs = np.concatenate([names[np.stack([start + ring, start + (ring + 1) % 20], axis=1)] for start in (0, 20)])
    order = near_order(pairs)
    assert sorted(order) == list(range(40))
    assert {name for pair in pairs[order[:20]] for name in pair} in (set(names[:20]), set(names[20:]))
    assert len(near_order(np.empty((0, 2), np.int64))) == 0


@pytest.fixture
def album(tmp_path):
    """Six photos; of one a crop, of one a blurred copy, of one an equal one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        scene(number).save(folder / f"{number}.png")
    scene(0).crop((20, 10, 180, 130)).save(folder / "0 cropped.png")
    STRONG_EDITS["blur"](scene(1), np.random.default_rng(0)).save(folder / "1 blurred.jpg", quality=90)
    shutil.copy(folder / "2.png", folder / "2 again.png")
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        yield index


def told(found):
    return {
        frozenset(photo.name for photo in group.photos): [member.spare for member in group.members]
        for group in found.groups
        if group.kind != "similar"
    }


COPIES = {
    frozenset({"0.png", "0 cropped.png"}),
    frozenset({"1.png", "1 blurred.jpg"}),
    frozenset({"2.png", "2 again.png"}),
}


def test_copies_of_an_album_whatever_their_cosine(album, monkeypatch):
    seen, opened, kept = [], [], []
    grey_of, put_pairs = verifying.grey_of, Compared.put_pairs
    monkeypatch.setattr(verifying, "grey_of", lambda path: opened.append(path) or grey_of(path))
    monkeypatch.setattr(Compared, "put_pairs", lambda self, pairs: kept.append(len(pairs)) or put_pairs(self, pairs))
    found = find_duplicates(album, report=lambda *done: seen.append(done))
    # each content is opened once, and all is kept at once
    assert (len(opened), len(kept)) == (8, 1)
    assert found.verified
    assert set(told(found)) == COPIES
    assert all(0.5 < m.verified <= 1 for g in found.groups if g.kind == "copy" for m in g.members)
    # shown, and none of them moved, but where they are trusted and in the frame of the one that is kept
    assert sum(sum(spare) for spare in told(found).values()) == 1
    spare = {photo.name for photo, _ in find_duplicates(album, trust=True).spare}
    assert spare - {"2.png", "2 again.png"} == {"1 blurred.jpg"}
    assert seen[-1][0] <= seen[-1][1] == 16
    # a second look compares nothing, and opens no photo
    monkeypatch.setattr(verifying, "compare", None)
    monkeypatch.setattr(verifying, "grey_of", None)
    assert told(find_duplicates(album)) == told(found)
    by_cosine = find_duplicates(album, precision=0.9, verify=False, trust=True)
    assert not by_cosine.verified
    assert told(by_cosine)[frozenset({"1.png", "1 blurred.jpg"})] == [False]


def test_slides_with_other_text_stay_however_much_copies_are_trusted(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    slide().save(folder / "1.png")
    slide().resize((640, 360)).save(folder / "1 small.jpg", quality=80)
    slide((*LINES[:2], "Costs rose")).save(folder / "2.png")
    slide(("Hiring plan for spring", "Ten engineers", "One office in Lisbon")).save(folder / "3.png")
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        # a second time with what was kept
        for _ in range(2):
            found = find_duplicates(index, trust=True)
            assert {photo.name for photo, _ in found.spare} == {"1 small.jpg"}


def test_photos_that_are_gone_are_judged_by_their_cosine(album):
    shutil.rmtree(album.about["root"])
    found = find_duplicates(album, precision=0.9, trust=True)
    # and trust, which is in pixels, lets none of these go
    assert told(found)[frozenset({"1.png", "1 blurred.jpg"})] == [False]
    assert [m.verified for g in found.groups for m in g.members] == [None] * sum(len(g.members) for g in found.groups)


def test_members_are_told_as_they_are_related_to_the_one_that_was_decided_to_stay(album):
    # two parts of a photo, each a copy of it, and none of the other
    folder = Path(album.about["root"])
    for name, box in (("left.png", (0, 0, 120, 150)), ("right.png", (80, 0, 200, 150))):
        scene(3).crop(box).save(folder / name)
    album.update()
    found = find_duplicates(album)
    group = next(group for group in found.groups if group.keep.name == "3.png")
    assert [member.relation for member in group.members] == ["copy", "copy"]
    with Decisions(album.path) as decisions:
        decisions.put(group, Decision(False, ("3.png",)))
        (decided,) = (each for each in decisions.applied(found, album).found.groups if len(each.members) == 2)
    shares = {member.photo.name: member.verified for member in group.members}
    assert decided.keep == group.members[0].photo
    whole, part = decided.members
    assert (whole.photo.name, whole.relation, whole.spare) == ("3.png", "copy", True)
    assert whole.verified == shares[decided.keep.name]
    assert (part.relation, part.verified, part.spare) == ("similar", None, False)
    values = album.descriptors([decided.keep, part.photo])
    assert part.similarity == pytest.approx(float(values[0] @ values[1]))


def test_between_two_albums(album, tmp_path):
    (tmp_path / "other").mkdir()
    scene(4).crop((20, 10, 180, 130)).save(tmp_path / "other" / "part.png")
    scene(9).save(tmp_path / "other" / "9.png")
    with Index.build(tmp_path / "other", FakeModel(), tmp_path / "second") as other:
        assert set(told(find_duplicates(album, other))) == {frozenset({"4.png", "part.png"})}


@pytest.mark.parametrize("empty_first", [True, False])
def test_an_album_of_no_photo_has_nothing_in_common_with_another(album, tmp_path, empty_first):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "text.jpg").write_text("none")
    with Index.build(tmp_path / "none", FakeModel(), tmp_path / "second") as none:
        found = find_duplicates(*((none, album) if empty_first else (album, none)))
        assert (found.groups, len(found.photos), len(found.unusable)) == ([], 9, 1)
        assert find_duplicates(none).groups == []


def test_copies_of_which_no_part_is_quite_the_same_are_copies(album, monkeypatch):
    # by the mean alone: the share that is the same is 0
    monkeypatch.setattr(verifying, "compare", lambda one, other, frame_only: Verdict(True, 0.0, FRAME))
    (group,) = find_duplicates(album, kinds=["copy"]).groups
    assert len(group.photos) == 9
    assert {member.verified for member in group.members if member.relation == "copy"} == {0.0}


def test_what_was_found_is_kept_by_content(tmp_path):
    one, other = bytes(32), bytes([1] * 32)
    with Index.build(np.eye(3, dtype=np.float32), path=tmp_path / "index"):
        pass
    with Compared(tmp_path / "index", 1) as compared:
        assert compared.pair(one, other) is None
        compared.put_pairs({(other, one): (True, 0.5, FRAME, False), (one, one): (True, 1.0, MAP, True)})
        compared.put_sketches({one: b"sketch"})
    with Compared(tmp_path / "index", 1) as compared:
        assert compared.pair(one, other) == compared.pair(other, one) == (True, 0.5, FRAME, False)
        assert compared.pair(one, one) == (True, 1.0, MAP, True)
        assert compared.sketches([one, other]) == {one: b"sketch"}
    # of another method, and where nothing can be kept
    with Compared(tmp_path / "index", 2) as compared, Compared(tmp_path / "none", 1) as forgetful:
        assert compared.pair(one, other) is None
        assert compared.sketches([one]) == {}
        forgetful.put_pairs({(one, other): (False, 0.0, "", False)})
        assert forgetful.pair(one, other) == (False, 0.0, "", False)
    # a folder that holds no index stays as it is
    (tmp_path / "empty").mkdir()
    with Compared(tmp_path / "empty", 1):
        assert list((tmp_path / "empty").iterdir()) == []


def test_what_is_found_of_a_photo_that_was_changed_since_is_not_kept(album):
    path = Path(album.about["root"]) / "1 blurred.jpg"
    before, stat = path.read_bytes(), path.stat()
    scene(9).save(path, quality=90)
    assert frozenset({"1.png", "1 blurred.jpg"}) not in told(find_duplicates(album))
    path.write_bytes(before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert set(told(find_duplicates(album))) == COPIES


def test_pictures_that_do_not_fit_are_made_again(album, monkeypatch, tmp_path):
    monkeypatch.setattr(verifying, "_PICTURES", 2)
    monkeypatch.setattr(verifying, "_PAIRS", 3)
    photos = album.photos()
    numbers = range(len(photos))
    pairs = np.array([(one, other) for one in numbers for other in numbers if one < other])
    with Verifier([photo.path for photo in photos], [None] * len(photos), tmp_path) as verifier:
        verdicts = verifier.verify(pairs, np.zeros(len(pairs), bool))
    names = {frozenset(photos[n].name for n in pair) for pair, found in zip(pairs, verdicts, strict=True) if found.same}
    assert names == COPIES


def test_a_pair_of_which_only_the_frame_was_tried_is_compared_anew_when_it_is_asked_for(album):
    by_name = {photo.name: photo for photo in album.photos()}
    photos = [by_name["0.png"], by_name["0 cropped.png"]]
    contents = [bytes.fromhex(photo.sha256) for photo in photos]
    for _ in range(2):
        # a second time, with what was kept
        with Verifier([photo.path for photo in photos], contents, album.path) as verifier:
            (first,) = verifier.verify(np.array([[0, 1]]), np.ones(1, bool))
            assert verifier.verdicts(0, [1])[0].same
            assert verifier.verify(np.array([[0, 1]]), np.ones(1, bool))[0].same
    assert first.same
    with Verifier([photo.path for photo in photos], [None, None], album.path) as verifier:
        assert not verifier.verify(np.array([[0, 1]]), np.ones(1, bool))[0].same
        assert verifier.verdicts(1, [0])[0].how == MAP
        twice = np.array([[0, 1], [1, 0]])
    with Verifier([photo.path for photo in photos], [None, None], album.path) as verifier:
        assert all(found.same for found in verifier.verify(twice, np.array([True, False])))


def test_an_index_that_is_compacted_forgets_contents_that_are_gone(album):
    find_duplicates(album)
    with sqlite3.connect(album.path / "index.sqlite") as database:
        count = database.execute("SELECT COUNT(*) FROM sketches").fetchone()[0]
    assert count == 8
    album.remove("5.png")
    with Writer(album.path) as writer:
        writer.compact()
    with sqlite3.connect(album.path / "index.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM sketches").fetchone()[0] == 7
