"""What must hold whatever happens: `kill -9`, readers beside a writer, two writers, damage."""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.search import store
from mg_keras.search.index import Index
from mg_keras.search.store import Compared, Noted, State, Writer
from tests.search import written
from tests.search.fake import FakeModel, album, noise
from tests.search.written import extra

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.search.written"])


def expected(name, folder):
    if name.startswith("extra-"):
        return extra(int(name.removeprefix("extra-")))
    return FakeModel().embed([folder / name])[0]


def check(index, folder):
    """Every photo has the descriptor that is its own, and is found by it."""
    photos = index.photos()
    values = index.descriptors(photos)
    for photo, value in zip(photos, values, strict=True):
        np.testing.assert_allclose(value, expected(photo.name, folder), atol=2e-3)
    for photo in photos[:: max(1, len(photos) // 4)]:
        assert index.search(expected(photo.name, folder), 1)[0].photo.name == photo.name
    return photos


@pytest.mark.slow
def test_kill_at_any_moment_leaves_the_state_before_or_after(tmp_path):
    folder, path = tmp_path / "photos", tmp_path / "index"
    names = [file.name for file in album(folder, 40)]
    rng = np.random.default_rng(0)
    lost, states = set(), []
    for kill in range(20):
        started = processes.Event()
        process = processes.Process(target=written.write_for_ever, args=(folder, path, 1000 * (kill + 1), started))
        process.start()
        assert started.wait(30)
        # the first ones during the building, the others anywhere
        time.sleep(rng.uniform(0.0, 0.03 if kill < 8 else 0.25))
        process.kill()
        process.join()
        if not path.exists() or not (path / "index.sqlite").exists():
            continue
        try:
            index = Index.open(path, FakeModel())
        except UserError as error:
            # killed before there was a first state
            assert "there is no index" in str(error)  # noqa: PT017
            continue
        with index:
            there = {photo.name for photo in check(index, folder)}
            assert lost <= there, "what was in the index before is still there"
            lost = {name for name in there if not name.startswith("extra-")}
            states.append(index.about["state"])
            # pairs come whole
            extras = {int(name[6:]) // 2 for name in there if name.startswith("extra-")}
            assert sum(name.startswith("extra-") for name in there) == 2 * len(extras)
    assert states == sorted(states)
    assert states[-1] > states[0]
    with Index.build(folder, FakeModel(), path, kind="ivf") as index:
        assert [name for name in names if index.photo(name) is None] == []
        check(index, folder)
    assert not [file for file in path.iterdir() if file.name.startswith(".")]


def test_readers_see_one_state_during_writes(tmp_path):
    with Index.build(
        np.stack([extra(9_001), extra(9_002)] * 10), names=[f"first-{n}" for n in range(20)], path=tmp_path
    ):
        pass
    troubles, seen, done, started = [], set(), threading.Event(), processes.Event()

    def read():
        try:
            with Index.open(tmp_path) as index:
                while not done.is_set() or index.refresh():
                    photos = [photo for photo in index.photos() if photo.name.startswith("extra-")]
                    values = index.descriptors(photos)
                    true = [extra(int(photo.name[6:])) for photo in photos]
                    np.testing.assert_allclose(values, np.reshape(true, values.shape), atol=2e-3)
                    for photo in photos[-1:]:
                        assert index.search(extra(int(photo.name[6:])), 1)[0].photo == photo
                    assert len(index) == len(photos) + 20
                    assert len(photos) % 2 == 0
                    seen.add(index.about["state"])
                    index.refresh()
        except BaseException as error:
            troubles.append(error)
            raise

    writer = processes.Process(target=written.add_pairs, args=(tmp_path, 30, started))
    writer.start()
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    started.set()
    writer.join()
    done.set()
    for reader in readers:
        reader.join()
    assert writer.exitcode == 0
    assert not troubles
    assert len(seen) > 2


def test_a_reader_keeps_its_state_until_it_looks_again(tmp_path):
    Index.build(np.stack([extra(0), extra(1)]), path=tmp_path, names=["a", "b"]).close()
    with Index.open(tmp_path) as reader, Index.open(tmp_path) as writer:
        writer.add(extra(2)[None], ["c"])
        writer.remove("a")
        assert [photo.name for photo in reader.photos()] == ["a", "b"]
        assert reader.search(extra(2), 1)[0].similarity < 0.9
        assert reader.refresh()
        assert [photo.name for photo in reader.photos()] == ["b", "c"]
        assert reader.search(extra(2), 1)[0].similarity > 0.99
        assert not reader.refresh()


def build_anew(path, *arguments):
    shutil.rmtree(path)
    Index.build(*arguments, path=path).close()


def test_an_index_that_another_model_made_meanwhile_is_refused_each_time(tmp_path):
    photos = album(tmp_path / "photos", 2)
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        build_anew(tmp_path / "index", photos[:1], FakeModel("other"))
        for _ in range(2):
            with pytest.raises(UserError, match=r"was made by another model \(fake\)"):
                index.refresh()
        # the state that it had is still there
        assert len(index) == 2
        assert index.search(photos[1], 1)[0].photo.name == str(photos[1])


def test_an_index_that_was_made_anew_is_seen_however_often_it_was_written_to(tmp_path):
    path = tmp_path / "index"
    Index.build(extra(0)[None], path=path, names=["a"]).close()
    for older in (False, True):
        if older:
            # of the time before indexes had names
            with contextlib.closing(sqlite3.connect(path / "index.sqlite")) as database, database:
                database.execute("DELETE FROM about WHERE key = 'made'")
        with Index.open(path) as reader:
            before = reader.about["state"]
            build_anew(path, extra(1 + older)[None])
            assert store.State(path).about["state"] == before
            assert reader.refresh()
            assert [photo.name for photo in reader.photos()] == ["row 0"]
            # nor is what finds neighbours that of the other one
            assert reader.search(extra(1 + older), 1)[0].similarity > 0.99
            assert not reader.refresh()


def test_what_finds_neighbours_is_kept_while_few_rows_are_added(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.search.neighbors.TAIL_ROWS", 5)
    with Index.build(np.stack([extra(number) for number in range(10)]), path=tmp_path) as index:
        for count, covered in ((3, 10), (2, 10), (1, 16)):
            first = len(index)
            numbers = range(first, first + count)
            index.add(np.stack([extra(number) for number in numbers]), [f"extra-{number}" for number in numbers])
            assert index.snapshot()[1].base.rows == covered
            assert index.search(extra(first), 1)[0].photo.name == f"extra-{first}"


def test_one_writer(tmp_path):
    with Index.build(extra(0)[None], path=tmp_path) as index, open(tmp_path / "lock", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written to by another process: try again when that has ended"):
            index.remove("row 0")
        assert len(index) == 1


def test_a_database_that_is_held_too_long_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(store._OPTIONS, "timeout", 0.0)
    with (
        Index.build(extra(0)[None], path=tmp_path) as index,
        contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="can't be written to: database is locked"):
            index.remove("row 0")
        assert len(index) == 1


def test_a_transaction_that_fails_changes_nothing(tmp_path):
    Index.build(extra(0)[None], path=tmp_path).close()
    with Writer(tmp_path) as writer:
        with contextlib.suppress(ZeroDivisionError), writer.transaction():
            writer.append(extra(1)[None])
            writer.delete([b"row 0"])
            raise ZeroDivisionError
        assert writer.about["rows"] == 1
    state = State(tmp_path)
    assert state.count() == state.about["state"] == len(state.descriptors) == 1
    state.close()


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Index.build(extra(0)[None], path=tmp_path) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(UserError, match="can't be written to: No space left on device"):
                index.add(extra(1)[None], ["more"])
            with pytest.raises(UserError, match="copy can't be written to: No space left on device"):
                index.save(tmp_path / "copy")
            with Writer(tmp_path) as writer, pytest.raises(UserError, match="can't be written to: No space left on"):
                writer.compact()
        assert len(index) == 1
        assert not (tmp_path / "copy").exists()
        index.add(extra(2)[None], ["other"])
        np.testing.assert_allclose(index.descriptors(index.photos()), [extra(2), extra(0)], atol=2e-3)


def test_rows_of_nobody_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.search.writing._SMALLEST_APPROXIMATE", 16)
    values = np.stack([extra(number) for number in range(40)])
    with Index.build(values, path=tmp_path, names=[f"extra-{number}" for number in range(40)], kind="ivf") as index:
        before = os.path.getsize(tmp_path / "descriptors-0.f16")
        index.remove([f"extra-{number}" for number in range(0, 40, 4)])
        assert (tmp_path / "descriptors-0.f16").exists()
        index.remove([f"extra-{number}" for number in range(30)])
        assert len(check(index, tmp_path)) == 8
        (file,) = tmp_path.glob("descriptors-*")
        assert file.stat().st_size < before / 4
        assert not list(tmp_path.glob("neighbors-*"))


def test_a_photo_keeps_its_descriptor_when_rows_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.search.writing._SMALLEST_APPROXIMATE", 16)
    names = [f"extra-{number:02}" for number in range(40)]
    with Index.build(np.stack([extra(number) for number in range(40)]), path=tmp_path, names=names) as index:
        photos = index.photos()
        index.remove(names[2:32])
        assert (tmp_path / "descriptors-1.f16").exists()
        true = [extra(number) for number in (35, 0, 39)]
        np.testing.assert_allclose(index.descriptors([photos[35], photos[0], photos[39]]), true, atol=2e-3)
        assert index.descriptors([]).shape == (0, len(extra(0)))
        with pytest.raises(UserError, match=r"extra-07 is not in the index any more, or can't be used"):
            index.descriptors([photos[35], photos[7]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "index.sqlite").write_bytes(b"x" * 5000), "can't be read as an index: .*; build it anew"),
        (lambda path: (path / "descriptors-0.f16").write_bytes(b""), "descriptors-0.f16 is cut off; build it anew"),
        (lambda path: (path / "descriptors-0.f16").unlink(), "it lacks descriptors-0.f16; build it anew"),
        (lambda path: (path / "index.sqlite").unlink(), "there is no index at"),
        (lambda path: set_version(path, 99), "an index of version 99, where 1 is read here"),
    ],
)
def test_damage_is_one_line(tmp_path, damage, message):
    Index.build(extra(0)[None], path=tmp_path).close()
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        Index.open(tmp_path)


@pytest.mark.parametrize("what", ["photos", "photos_by_row", "sqlite_autoindex_photos_1", "classes", "sketches"])
def test_a_damaged_page_is_one_line(tmp_path, what):
    photos = album(tmp_path / "photos", 2)
    path = tmp_path / "index"
    Index.build(tmp_path / "photos", FakeModel(), path).close()
    with Compared(path, method=1) as compared:
        compared.put_sketches({b"content": b"sketch"})
    with contextlib.closing(sqlite3.connect(path / "index.sqlite")) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [what]).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with open(path / "index.sqlite", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)

    def write(use):
        with Writer(path) as writer:
            use(writer)

    def add():
        noise(77).save(tmp_path / "photos" / "new.png")
        with Index.open(path, FakeModel()) as index:
            index.add(extra(0)[None], ["more"])
            index.update()
            index.remove(photos[0])

    def compare(use, *what):
        with Compared(path, method=1) as compared:
            use(compared, *what)

    told = []
    for use in (
        add,
        lambda: compare(Compared.sketches, [b"content"]),
        lambda: compare(Compared.put_sketches, {b"other": b"sketch"}),
        lambda: write(Writer.count),
        lambda: write(Writer.used_rows),
        lambda: write(lambda writer: writer.row_of_content(b"content")),
        lambda: write(Writer.compact),
    ):
        try:
            use()
        except UserError as error:
            told.append(str(error))
    assert told
    for each in told:
        assert each.startswith(f"{path} can't be read as an index: database disk image is malformed; build it anew")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (sqlite3.SQLITE_FULL, r"can't be used now: it failed; is the disk full, or gone\?"),
        (sqlite3.SQLITE_IOERR_WRITE, r"can't be used now: it failed; is the disk full, or gone\?"),
        (sqlite3.SQLITE_BUSY_RECOVERY, "can't be used now: it failed; another process holds it: try again"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "can't be read as an index: it failed; build it anew"),
    ],
)
def test_only_a_damaged_index_is_to_be_built_anew(tmp_path, monkeypatch, code, message):
    Index.build(extra(0)[None], path=tmp_path).close()
    state = State(tmp_path)

    def fail(*_, **__):
        error = sqlite3.OperationalError("it failed")
        error.sqlite_errorcode = code
        raise error

    database = state._database
    state._database = SimpleNamespace(execute=fail, close=database.close)
    with pytest.raises(UserError, match=message):
        state.count()
    state.close()
    monkeypatch.setattr(store, "_connected", fail)
    for use in (State, lambda folder: Writer(folder).__enter__(), store.is_index, store.state_number):
        with pytest.raises(UserError, match=message):
            use(tmp_path)


def test_what_was_noted_is_told_or_an_error(tmp_path):
    Index.build(extra(0)[None], path=tmp_path).close()
    noted = Noted(tmp_path)
    assert noted.all() == {}
    noted.put("a", "text")
    assert noted.all() == {"a": "text"}
    with sqlite3.connect(tmp_path / "index.sqlite") as database:
        database.execute("ALTER TABLE decisions RENAME COLUMN value TO other")
    with pytest.raises(UserError, match="can't be read as an index: no such column: value"):
        noted.all()
    noted.close()


def test_notes_in_a_file_of_their_own_are_told_or_an_error(tmp_path):
    path = tmp_path / "new" / "notes.sqlite"
    noted, other = Noted(path, is_index=False), Noted(path, is_index=False)
    assert other.all() == {}
    assert not path.parent.exists()
    noted.put("a", "text")
    assert noted.all() == other.all() == {"a": "text"}
    noted.close()
    other.close()
    path.write_text("it is none" * 100)
    with pytest.raises(UserError, match=r"notes\.sqlite can't be read: file is not a database"):
        Noted(path, is_index=False).all()
    with pytest.raises(UserError, match=r"notes\.sqlite can't be written to: file is not a database"):
        Noted(path, is_index=False).put("a", "text")


def set_version(path, number):
    with sqlite3.connect(path / "index.sqlite") as database:
        database.execute("UPDATE about SET value = ? WHERE key = 'version'", (str(number),))


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds letter\.txt, which is no index"):
        Index.build(extra(0)[None], path=tmp_path)


def test_it_needs_no_tensorflow():
    code = "import mg_keras.search.index, sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
