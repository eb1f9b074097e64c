import contextlib
import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import mg_keras
from mg_keras.errors import UserError
from mg_keras.files import (
    atomic_path,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    in_home,
    remove_leftovers,
    try_lock,
    wait_for_lock,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_home_folder_and_names_that_begin_as_it_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert in_home("~/a") == Path("/home/me/a")
    assert in_home(Path("~")) == Path("/home/me")
    # nobody's home: pathlib's own raises a RuntimeError
    assert in_home("~nobody-has-it.jpg") == Path("~nobody-has-it.jpg")


def test_no_path_is_expanded_by_pathlib_which_raises_for_names_that_begin_so():
    package = Path(mg_keras.__file__).parent
    assert [path.name for path in package.rglob("*.py") if ".expanduser()" in path.read_text(encoding="utf-8")] == []


def test_a_file_appears_when_the_block_ends_and_nothing_else_stays(tmp_path):
    target = tmp_path / "deep" / "curves.png"
    with atomic_path(target) as partial:
        assert partial.parent == target.parent
        assert partial.suffix == ".png"
        partial.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["curves.png"]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    def fill(target, *told):
        with atomic_path(target):
            raise OSError(*told)

    with pytest.raises(OSError, match=r"No space left on device: '.*found\.json'"):
        fill(tmp_path / "found.json", errno.ENOSPC, "No space left on device")
    # what is told in words stays
    with pytest.raises(OSError, match=r"^of another kind$"):
        fill(tmp_path / "found.json", "of another kind")


def test_the_longest_of_names_is_written_too(tmp_path):
    target = tmp_path / f"{'é' * 125}.json"
    atomic_write_text(target, "new")
    assert names(tmp_path) == [target.name]


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail_while_writing():
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_while_writing()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_written_aside_too(tmp_path):
    with atomic_path(tmp_path / "model") as partial:
        (partial / "assets").mkdir(parents=True)
        (partial / "assets" / "x.json").write_text("{}")
        assert names(tmp_path) == [partial.name]
    assert (tmp_path / "model" / "assets" / "x.json").read_text() == "{}"
    assert names(tmp_path) == ["model"]


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "keep.txt").write_text("mine")

    def replace():
        with atomic_path(target) as partial:
            partial.mkdir()
            (partial / "other.txt").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        replace()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["keep.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    def write_nothing():
        with atomic_path(tmp_path / "a.txt"):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()


def test_two_writers_of_one_file_do_not_share_their_partial(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


def test_what_killed_writers_left_is_removed(tmp_path):
    def leave(target, seconds_ago):
        with contextlib.suppress(FileNotFoundError), atomic_path(target) as partial:
            inner = partial.with_name("moved")
            partial.mkdir() if not target.suffix else partial.write_text("half")
            if partial.is_dir():
                (partial / "model.pb").write_text("half")
            # as if the process ended here
            partial.rename(inner)
        inner.rename(partial)
        for path in (partial, *partial.rglob("*")):
            os.utime(path, (time.time() - seconds_ago,) * 2)
        return partial.name

    (tmp_path / ".4.hidden").mkdir()
    (tmp_path / "5").mkdir()
    leave(tmp_path / "1", 7200)
    recent, other = leave(tmp_path / "2", 1800), leave(tmp_path / "model", 7200)
    # one file written to a moment ago tells of a writer that lives
    busy = leave(tmp_path / "3", 7200)
    os.utime(tmp_path / busy / "model.pb")
    leave(tmp_path / "step-7.npz", 0)
    remove_leftovers(tmp_path, "[0-9]*", 3600)
    remove_leftovers(tmp_path, "step-*.npz")
    remove_leftovers(tmp_path / "nowhere", "*")
    assert names(tmp_path) == sorted([".4.hidden", "5", recent, other, busy])


def test_text_is_utf8_whatever_the_locale(tmp_path):
    atomic_write_text(tmp_path / "a.txt", "p* ≥ 3\n")
    assert (tmp_path / "a.txt").read_bytes() == "p* ≥ 3\n".encode()


def test_json_takes_numpy_and_paths(tmp_path):
    value = {"top1": np.float32(0.5), "table": np.arange(3), "photo": Path("a/b.jpg"), "count": np.int64(7)}
    atomic_write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "top1": 0.5,
        "table": [0, 1, 2],
        "photo": "a/b.jpg",
        "count": 7,
    }


@pytest.mark.parametrize(("value", "error"), [({"loss": float("nan")}, ValueError), ({"x": object()}, TypeError)])
def test_json_refuses_what_other_readers_cannot_read(tmp_path, value, error):
    with pytest.raises(error):
        atomic_write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


def test_a_lock_keeps_others_out_until_it_is_let_go(tmp_path):
    path = tmp_path / "a.partial"
    with open(path, "wb") as mine, open(path, "wb") as other:
        assert try_lock(mine)
        assert not try_lock(other)
        mine.close()
        assert try_lock(other)
    folders = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    assert [try_lock(folder) for folder in folders] == [True, False]
    os.close(folders[0])
    wait_for_lock(folders[1])
    os.close(folders[1])


@pytest.mark.slow
def test_a_system_without_locks_loads_everything_and_locks_nothing(tmp_path):
    """As Windows, which has no fcntl."""
    script = """
        import sys
        sys.modules["fcntl"] = None
        import mg_keras.models, mg_keras.embedding, mg_keras.programs.ablations, mg_keras.training.loop
        from mg_keras.files import try_lock, wait_for_lock
        with open(sys.argv[1], "wb") as mine, open(sys.argv[1], "wb") as other:
            assert try_lock(mine) and try_lock(other)
            wait_for_lock(other)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "a")], check=True)


def test_a_folder_is_known_to_be_writable_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "new" / "run"):
        assert check_writable(folder) == tmp_path
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=rf"{folder} can't be written to: {tmp_path / 'file'} is no folder"):
            check_writable(folder)
    monkeypatch.chdir(tmp_path)
    check_writable("runs/demo")
    # whoever runs the tests may have every right
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"runs/demo can't be written to: {tmp_path} is read-only for you"):
        check_writable("runs/demo")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
