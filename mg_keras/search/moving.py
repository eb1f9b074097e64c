"""Takes what may go out of an album, into another folder, and never the last one of a group."""

import contextlib
import csv
import dataclasses
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.files import atomic_path, check_writable, in_home, printable_name
from mg_keras.search.duplicates import Duplicates
from mg_keras.search.photos import look_at_file, stamp
from mg_keras.search.store import Photo

LIST = "moved.csv"


@dataclasses.dataclass(frozen=True)
class Moved:
    """What was done.

    Attributes:
        moved: (from, to) of each photo.
        left: (path, why) of those that stayed where they were.
    """

    moved: list[tuple[Path, Path]]
    left: list[tuple[Path, str]]


def check_target(folders: Iterable[str | os.PathLike], target: str | os.PathLike) -> None:
    """Refuses a folder that can't take photos: one within an album, where they would be found again, or read-only.

    Args:
        folders: of the albums.
        target: the folder; it need not be there.

    Raises:
        UserError: it is such a folder.
    """
    target = in_home(target)
    real = Path(os.path.realpath(target))
    for folder in folders:
        if real.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"{printable_name(target)} lies in {printable_name(folder)}, where what is moved would be found again: "
                "choose a folder elsewhere"
            )
    check_writable(target)


def move_spare(found: Duplicates, target: str | os.PathLike) -> Moved:
    """Moves what may go; a photo is moved only while the one that is kept is there, and both are what they were.

    Both are read for that, whole.

    They keep their paths below the folder that they were in; `moved.csv` beside them says where each came from, and is
    written as they go, so that all can be put back whatever happens.

    Args:
        found: of `find_duplicates`.
        target: the folder to move to; made where it is not there.

    Raises:
        UserError: see `check_target`.
    """
    check_target(found.folders, target)
    # the list is read anywhere
    target = Path(os.path.abspath(in_home(target)))
    moved, left = [], []
    # of a group of which nothing goes, nothing need be kept for others
    kept = {keep.path for _, keep in found.spare}
    with _List(target) as listed:
        for photo, keep in found.spare:
            why = "it is kept for others" if photo.path in kept else _why_not(photo, keep)
            if why:
                left.append((photo.path, why))
                continue
            place = _free(target, photo.name)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                # before it is moved, so that nothing is anywhere that is not listed
                with listed.line(photo.path, place, keep.path):
                    _move(photo.path, place)
            except OSError as error:
                left.append((photo.path, f"could not be moved: {error.strerror or error}"))
                continue
            moved.append((photo.path, place))
    return Moved(moved, left)


class _List:
    """`moved.csv`, a line a photo, written at once."""

    def __init__(self, folder):
        self.path = folder / LIST

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # nothing waits in memory: what a full disk does not take would be written with the next line
        self.file = open(self.path, "ab", buffering=0)
        return self

    def __exit__(self, *_):
        self.file.close()

    @contextlib.contextmanager
    def line(self, *paths):
        """A line for what is done in this block; taken back if it fails."""
        before = os.fstat(self.file.fileno()).st_size
        try:
            self._write(*([] if before else [("from", "to", "kept")]), paths)
            yield
        # of what was interrupted, it isn't known whether it was done
        except OSError:
            with contextlib.suppress(OSError):
                self.file.truncate(before)
            raise

    def _write(self, *rows):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        rest = text.getvalue().encode(errors="surrogateescape")
        while rest:
            rest = rest[self.file.write(rest) :]


def _why_not(photo: Photo, keep: Photo) -> str | None:
    """Why a photo must stay, or None."""
    for each, what in ((keep, "the one to keep"), (photo, "it")):
        if stamp(each.path) is None:
            return f"{what} is not there any more"
        # its size and its time say little: scans have one size, archives and copies leave or change the time
        content = look_at_file(each.path).sha256
        if content is None:
            return f"{what} can't be read"
        if content != _digest(each):
            return f"{what} has changed since it was looked at"
    if os.path.islink(photo.path):
        return "it is a link"
    if os.path.samefile(photo.path, keep.path):
        return "it is the same file as the one to keep"
    return None


def _move(path, place):
    """Moves a file; to another disk, it is whole there before it goes here."""
    try:
        os.rename(path, place)
    except OSError:
        with atomic_path(place) as partial:
            shutil.copy2(path, partial)
        try:
            os.unlink(path)
        except OSError:
            place.unlink()
            raise


def _digest(photo):
    return photo.sha256 and bytes.fromhex(photo.sha256)


def _free(target, name):
    """A place below the target that nothing has."""
    # of a photo from elsewhere, the path below the root of the disk
    name = os.path.normpath(os.path.relpath(name, Path(name).anchor) if os.path.isabs(name) else name)
    place = target / (os.path.basename(name) if name.startswith(os.pardir) else name)
    number = 2
    free = place
    while os.path.lexists(free):
        free = place.with_name(f"{place.stem} ({number}){place.suffix}")
        number += 1
    return free
