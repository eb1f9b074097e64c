"""Files and folders that appear whole or not at all, and what to call them."""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mg_keras.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:
    # Windows, where nothing is locked
    fcntl = None

BROKEN_ARRAYS = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""What `numpy.load` raises at a file that is none of its own, or was lost in part or wholly."""

# a tab separates columns of the lists of photos, and each of the others ends a line for one program or another
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# bytes of a name that file systems take
_LONGEST_NAME = 255


def printable_name(name: str | os.PathLike) -> str:
    """A file's or class's name as a line of text: what ends a line and bytes that are no UTF-8 are shown as escapes."""
    name = os.fspath(name)
    if name.isprintable():
        return name
    text = os.fsencode(name).decode(errors="backslashreplace")
    return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_home(path: str | os.PathLike) -> Path:
    """A path whose `~` in front is the home folder; the name of nobody's home stays a name."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a place beside `path` to write a file or a folder, which takes the name `path` once it is whole.

    What was written is flushed to the disk and then renamed, so that whoever looks at `path`, even after a power
    cut, finds the old content or the new one. If the block raises, what it wrote is removed and `path` is as it
    was. A process killed in the block leaves a hidden `.<name>.<random>` sibling, never a broken `path`;
    `remove_leftovers` takes it away.

    Args:
        path: where the file or folder shall be. Missing parent folders are made. A file there is replaced; a folder
            there is replaced only if it is empty.

    Yields:
        A hidden sibling of `path`, with its suffix, where nothing exists yet.

    Raises:
        FileNotFoundError: the block left nothing at the path it was given.
        OSError: `path` is a folder with something in it, the disk is full, or a folder cannot be written to.

    Example:
        >>> with atomic_path("scores.txt") as partial:
        ...     characters = partial.write_text("top-1 92.1 %")
        >>> Path("scores.txt").read_text()
        'top-1 92.1 %'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    if len(os.fsencode(partial.name)) > _LONGEST_NAME:
        partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        for written in [*partial.rglob("*"), partial]:
            _flush(written)
        os.replace(partial, path)
    except BaseException as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        # the system tells of a full disk without a name
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
    _flush(path.parent)


def remove_leftovers(folder: str | os.PathLike, name: str, seconds: float = 0.0) -> None:
    """Remove what writers that were killed in the block of `atomic_path` left behind.

    Args:
        folder: where they wrote; it need not exist.
        name: the glob of what they wanted to write, such as "step-*.npz".
        seconds: for which nothing was written to a leftover; 0 only where nobody else writes such a thing now.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    for leftover in Path(folder).glob(f".{stem}.{'[0-9a-f]' * 32}{suffix}"):
        # one that is taken away or finished meanwhile is none, and one that may not be removed harms nobody
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in [leftover, *leftover.rglob("*")])
            if time.time() - written < seconds:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def atomic_write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all.

    Args:
        path: where the file shall be.
        value: what `json` can write; NumPy scalars and arrays and paths are written as numbers, lists and strings.

    Raises:
        TypeError: `value` holds something JSON has no form for.
        ValueError: `value` holds a NaN or an infinity, which other readers of JSON refuse.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def try_lock(file: IO | int) -> bool:
    """Keep others out of an open file or folder, until it is closed or the process ends, even by `kill -9`.

    Args:
        file: a file, or the number of an open file or folder.

    Returns:
        False if another process keeps it. On a system without such locks always True: nothing is locked there, and two
        processes must not be started on the same file.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO | int) -> None:
    """Wait until nobody else keeps the file, then keep it as `try_lock` does."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def check_writable(folder: str | os.PathLike) -> Path:
    """Refuse a folder in which no file can be written, before there is something to write; nothing is made or changed.

    Args:
        folder: it need not exist: then it is the one above that matters, in which it will be made.

    Returns:
        The folder, or the one above that is there.

    Raises:
        UserError: the right to write is missing, or a part of the path is a file.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{folder} can't be written to: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} can't be written to: {there} is read-only for you; choose another place")
    return there


def check_file(path: str | os.PathLike) -> Path:
    """Refuse a file that can't be written, before there is something to write; nothing is made or changed.

    Args:
        path: of the file; one that is there is to be replaced.

    Returns:
        The path.

    Raises:
        UserError: it is a folder, or in one that can't be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    check_writable(path.parent)
    return path


def _plain(value: Any) -> Any:
    """The JSON form of what `json` does not know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _flush(path: Path) -> None:
    """Wait until the file's content, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
