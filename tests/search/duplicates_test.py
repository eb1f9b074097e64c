import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mg_keras.errors import UserError
from mg_keras.search.duplicates import find_duplicates, grouped
from mg_keras.search.index import Index
from tests.search.fake import FakeModel, album, noise


def told(found):
    """Groups as (kind, keep, [(name, relation, spare)])."""
    return [
        (g.kind, g.keep.name, [(m.photo.name, m.relation, m.spare) for m in g.members])
        for g in found.groups
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    paths = album(folder, 20)
    # equal byte for byte, the original older
    shutil.copy(paths[0], folder / "copy of 0.png")
    os.utime(paths[0], (1, 1))
    # a copy of half the size, and one that is compressed
    noise(1, (12, 12)).save(folder / "1 small.jpg", quality=95)
    noise(2).save(folder / "2 pressed.jpg", quality=90, subsampling=0)
    # what shows nearly the same as 3
    Image.blend(noise(3), noise(300), 0.35).save(folder / "3 moved.png")
    (folder / "text.jpg").write_text("none")
    return folder


@pytest.fixture
def index(folder, tmp_path):
    with Index.build(folder, FakeModel(), tmp_path / "index") as index:
        yield index


def test_equal_ones_copies_and_similar_ones(index):
    # FakeModel's threshold at 0.9, named: so that copies may go
    found = find_duplicates(index, precision=0.9, copy=0.9)
    assert told(found) == [
        ("equal", "00000.png", [("copy of 0.png", "equal", True)]),
        ("copy", "00001.png", [("1 small.jpg", "copy", True)]),
        ("copy", "2 pressed.jpg", [("00002.png", "copy", True)]),
        ("similar", "00003.png", [("3 moved.png", "similar", False)]),
    ]
    assert [group.why for group in found.groups][:2] == ["the oldest, 1970-01-01 00:00", "the largest, 24 x 24"]
    assert found.groups[2].why.startswith("the least compressed, ")
    assert (len(found.photos), found.copy, found.similar) == (24, 0.9, 0.5)
    assert [photo.name for photo in found.unusable] == ["text.jpg"]
    assert found.spare_bytes == sum(photo.file_size for photo, _ in found.spare)
    assert {photo.name for photo, _ in found.spare} == {"copy of 0.png", "1 small.jpg", "00002.png"}
    assert [kind for kind, *_ in told(find_duplicates(index, kinds=["equal"]))] == ["equal"]
    assert told(find_duplicates(index, kinds=["copy"], precision=0.9, copy=0.9)) == told(found)[1:3]
    # nobody is a copy at so high a threshold
    assert [kind for kind, *_ in told(find_duplicates(index, copy=1.0, kinds=["equal", "copy"]))] == ["equal"]


def slow_groups(values, threshold):
    """Connected components, by looking at every pair until nothing changes."""
    label = list(range(len(values)))
    for _ in values:
        for one in range(len(values)):
            for other in range(len(values)):
                if values[one] @ values[other] >= threshold:
                    label[one] = label[other] = min(label[one], label[other])
    return sorted(
        [node for node in range(len(values)) if label[node] == each]
        for each in set(label)
        if label.count(each) > 1
    )  # fmt: skip


@pytest.mark.parametrize("most", [256, 4])
def test_groups_are_the_connected_components_where_there_are_no_chains(monkeypatch, most):
    monkeypatch.setattr("mg_keras.search.duplicates._MOST_NEIGHBORS", most)
    monkeypatch.setattr("mg_keras.search.duplicates._FEWEST_NEIGHBORS", most)
    monkeypatch.setattr("mg_keras.search.duplicates._AT_ONCE", 700)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 32))
    values = np.repeat(centres, [1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8], 0) + 0.05 * rng.normal(size=(44, 32))
    values = values[rng.permutation(44)]
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    with Index.build(values, names=[f"{number:02}" for number in range(44)]) as index:
        found = find_duplicates(index, copy=0.9, similar=0.9)
    names = sorted(sorted(int(photo.name) for photo in group.photos) for group in found.groups)
    assert names == slow_groups(values, 0.9)


def test_a_chain_is_taken_apart():
    # on a circle, each 20 degrees from the next
    angles = np.radians(20 * np.arange(8))
    values = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    one = np.arange(7)
    edges = one, one + 1, np.sum(values[:-1] * values[1:], axis=1)
    groups = grouped(edges, lambda node, others: values[others] @ values[node], guard=np.cos(np.radians(41)))
    # nobody is in two groups
    assert len({node for group in groups for node in group}) == sum(map(len, groups)) >= 6
    for group in groups:
        centre = [c for c in group if (values[group] @ values[c] >= np.cos(np.radians(41))).all()]
        assert centre
    assert max(map(len, groups)) <= 5
    with Index.build(values) as index:
        found = find_duplicates(index, copy=float(np.cos(np.radians(21))), similar=float(np.cos(np.radians(21))))
    # copies are nearer to their centre than half way to what is similar, here 44 degrees: two on each side of it
    with Index.build(values) as index:
        wide = find_duplicates(index, kinds=["copy"], copy=float(np.cos(np.radians(21))), similar=0.5)
    assert max(len(group.photos) for group in wide.groups) == 5
    # nothing goes that is not like the one that is kept itself
    for group in found.groups:
        for member in group.members:
            assert member.spare == (member.similarity >= found.copy)


def test_between_two_albums(folder, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    shutil.copy(folder / "00004.png", test / "leak.png")
    noise(5, (12, 12)).save(test / "small.png")
    album(test, 3, first=900)
    shutil.copy(test / "00900.png", test / "twice.png")
    with (
        Index.build(folder, FakeModel(), tmp_path / "a") as first,
        Index.build(test, FakeModel(), tmp_path / "b") as second,
    ):
        found = find_duplicates(first, second, copy=0.95)
        # what is twice in one of them alone doesn't count; what lies in the second stays, however small, and nothing
        # larger goes for it
        assert told(found) == [
            ("equal", "leak.png", [("00004.png", "equal", True)]),
            ("copy", "small.png", [("00005.png", "copy", False)]),
        ]
        assert [(group.side, group.members[0].side, group.why) for group in found.groups] == [
            (1, 0, "of the second folder")
        ] * 2
        assert told(find_duplicates(first, second, kinds=["equal"])) == told(found)[:1]
        assert found.folders == (str(folder), str(test))
    with (
        Index.build(folder, FakeModel("other"), tmp_path / "c") as third,
        Index.open(tmp_path / "b") as second,
        pytest.raises(UserError, match="were made by different models"),
    ):
        find_duplicates(third, second)


def test_between_two_albums_no_photo_goes_for_a_smaller_one(tmp_path):
    card, kept = tmp_path / "card", tmp_path / "album"
    album(kept, 3)
    card.mkdir()
    noise(0, (48, 48)).save(card / "larger.png")
    noise(1, (12, 12)).save(card / "smaller.png")
    noise(2).save(card / "as large.bmp")
    with (
        Index.build(card, FakeModel(), tmp_path / "a") as first,
        Index.build(kept, FakeModel(), tmp_path / "b") as second,
    ):
        found = find_duplicates(first, second, copy=0.9)
    assert {keep.name: photo.name for photo, keep in found.spare} == {
        "00001.png": "smaller.png",
        "00002.png": "as large.bmp",
    }
    assert [len(group.members) for group in found.groups] == [1, 1, 1]


def test_an_index_that_is_written_meanwhile_is_compared_as_it_was(monkeypatch):
    values = np.eye(6)[[0, 1, 2, 3, 4, 4]]
    snapshot = Index.snapshot
    with Index.build(values, names=list("abcdef")) as index:

        def then_written(self):
            taken = snapshot(self)
            self.add(np.eye(6)[[3, 2]], ["a", "g"])
            return taken

        monkeypatch.setattr(Index, "snapshot", then_written)
        found = find_duplicates(index, copy=0.9, similar=0.9)
    assert told(found) == [("copy", "e", [("f", "copy", True)])]
    assert [photo.name for photo in found.photos] == list("abcdef")


def test_of_two_albums_one_may_lie_in_the_other(tmp_path):
    paths = album(tmp_path / "album", 3)
    inbox = tmp_path / "album" / "inbox"
    album(inbox, 2, first=50)
    shutil.copy(inbox / "00050.png", inbox / "twice in it.png")
    shutil.copy(paths[0], inbox / "there.png")
    with (
        Index.build(inbox, FakeModel(), tmp_path / "a") as inner,
        Index.build(tmp_path / "album", FakeModel(), tmp_path / "b") as outer,
    ):
        # a photo is no copy of itself
        found = find_duplicates(inner, outer, copy=0.95)
        assert told(found) == [("equal", "00000.png", [("there.png", "equal", True)])]
        assert len(found.photos) == 4 + 3
        found = find_duplicates(outer, inner, copy=0.95)
        assert told(found) == [("equal", "there.png", [("00000.png", "equal", True)])]
        with pytest.raises(UserError, match="two albums must be two folders, received"):
            find_duplicates(inner, Index.open(tmp_path / "a"))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_of_an_album_in_another_its_photos_are_no_neighbors_in_the_other(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("mg_keras.search.writing._SMALLEST_APPROXIMATE", 16)
    inbox = tmp_path / "album" / "inbox"
    album(tmp_path / "album", 12)
    album(inbox, 16, first=100)
    noise(3, (48, 48)).save(inbox / "larger.jpg", quality=90)
    with (
        Index.build(inbox, FakeModel(), tmp_path / "a", kind=kind) as inner,
        Index.build(tmp_path / "album", FakeModel(), tmp_path / "b", kind=kind) as outer,
    ):
        assert outer.about["searched_by"] == kind
        # by pixels, and by cosine
        for options in ({}, {"copy": 0.95}):
            for albums in ((inner, outer), (outer, inner)):
                (group,) = find_duplicates(*albums, kinds=["equal", "copy"], **options).groups
                assert {photo.path.name for photo in group.photos} == {"00003.png", "larger.jpg"}


def test_links_to_one_file_are_one_photo(tmp_path):
    (path,) = album(tmp_path / "photos", 1)
    os.symlink(path, path.with_name("link.png"))
    os.link(path, path.with_name("hard.png"))
    with Index.build(tmp_path / "photos", FakeModel()) as index:
        assert len(index) == 3
        assert find_duplicates(index).groups == []


def test_links_into_the_second_album_are_its_own_photos(tmp_path):
    card, kept = tmp_path / "card", tmp_path / "album"
    paths = album(kept, 3)
    album(card, 1, first=2)
    os.symlink(kept, card / "link")
    os.symlink(paths[0], card / "link.png")
    os.link(paths[1], card / "hard.png")
    with (
        Index.build(card, FakeModel(), tmp_path / "a") as first,
        Index.build(kept, FakeModel(), tmp_path / "b") as second,
    ):
        found = find_duplicates(first, second, copy=0.95)
        assert told(found) == [("equal", "00002.png", [("00002.png", "equal", True)])]
        assert found.spare[0][0].path == card / "00002.png"
        shutil.copy(paths[0], kept / "twice.png")
        second.update()
        # another photo of the album with that content does not make it one of the card
        assert told(find_duplicates(first, second, copy=0.95)) == told(found)


def test_large_albums_are_compared_by_their_index(monkeypatch):
    monkeypatch.setattr("mg_keras.search.neighbors._FEW", 10)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1500, 24))
    values = np.concatenate([values, values[:50] + 0.05 * rng.normal(size=(50, 24)), values[:40] * (1 + 1e-3)])
    with Index.build(values, names=map(str, range(1590)), kind="ivf") as index:
        assert not find_duplicates(index, kinds=["equal", "copy"]).verified
        found = find_duplicates(index, copy=0.95, similar=0.95)
    groups = {frozenset(int(photo.name) for photo in group.photos) for group in found.groups}
    planted = {frozenset({n, 1500 + n, 1550 + n} if n < 40 else {n, 1500 + n}) for n in range(50)}
    assert groups <= planted
    assert len(groups) >= 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copy": 0.5, "similar": 0.6}, "similar must be at most copy, .* received 0.6 and 0.5"),
        ({"copy": 1.5}, "from -1 to 1"),
        ({"kinds": ["same"]}, "kinds must be some of equal, copy, similar, received same"),
        ({"precision": 0.9999}, "no threshold of copy is known for a precision of 0.9999"),
    ],
)
def test_arguments_out_of_range(index, options, message):
    with pytest.raises(UserError, match=message):
        find_duplicates(index, **options)


def test_a_models_own_threshold_lets_no_copy_go(tmp_path):
    paths = album(tmp_path / "photos", 3)
    shutil.copy(paths[0], tmp_path / "photos" / "equal.png")
    noise(1, (12, 12)).save(tmp_path / "photos" / "small.jpg", quality=95)
    with Index.build(tmp_path / "photos", FakeModel(), tmp_path / "index") as index:
        shown, named = find_duplicates(index, precision=0.9), find_duplicates(index, copy=0.9)
    assert [(group.kind, group.keep.name) for group in shown.groups] == [
        (group.kind, group.keep.name) for group in named.groups
    ]
    assert len(shown.spare) == 1
    assert {photo.name for photo, _ in named.spare} == {photo.name for photo, _ in shown.spare} | {"small.jpg"}
