"""An index on disk: facts of photos in SQLite, descriptors in a file that only grows, one writer and many readers.

    index.sqlite             what photos there are, which row of the descriptors is theirs, their classes, and `about`
    descriptors-0.f16        float16 [rows, D], row after row
    neighbors-<random>.faiss what finds neighbours without comparing all, if there is such a thing
    lock                     kept by the one who writes

What counts is what the last transaction of SQLite says: rows of descriptors that no transaction has counted, and files
that none names, do not exist. So descriptors are written and flushed first and counted then, and `kill -9` or a power
cut at any moment leaves the state before the transaction or the one after it. A reader keeps a transaction of its own
open, and with it one state, whatever is written meanwhile.
"""

import contextlib
import dataclasses
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mg_keras.errors import UserError
from mg_keras.files import atomic_path, printable_name, remove_leftovers, try_lock
from mg_keras.search.photos import Facts, stamp

_DATABASE = "index.sqlite"
_LOCK = "lock"
_VERSION = 1
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE photos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL UNIQUE, file_size INTEGER, modified INTEGER, sha256 BLOB,
    width INTEGER, height INTEGER, row INTEGER, problem TEXT, path BLOB
);
CREATE INDEX photos_by_row ON photos (row);
CREATE INDEX photos_by_content ON photos (sha256);
CREATE TABLE classes (
    row INTEGER, rank INTEGER, class INTEGER NOT NULL, probability REAL NOT NULL, PRIMARY KEY (row, rank)
) WITHOUT ROWID;
CREATE INDEX classes_by_probability ON classes (class, probability);
"""
_COLUMNS = (
    "photos.id, photos.name, photos.file_size, photos.modified, photos.sha256, photos.width, photos.height, "
    "photos.row, photos.problem, photos.path, likeliest.class, likeliest.probability"
)
_PHOTOS = (
    f"SELECT {_COLUMNS} FROM photos LEFT JOIN classes AS likeliest ON likeliest.row = photos.row AND likeliest.rank = 0"
)
# what is no part of a state: it holds of contents, whatever photos there are
_BESIDE = """
CREATE TABLE IF NOT EXISTS sketches (sha256 BLOB PRIMARY KEY, method INTEGER, sketch BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS compared (
    one BLOB, other BLOB, method INTEGER, same INTEGER, score REAL, how TEXT, PRIMARY KEY (one, other)
) WITHOUT ROWID;
"""
_NOTED = "CREATE TABLE IF NOT EXISTS decisions (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
_OPTIONS = {"isolation_level": None, "check_same_thread": False, "timeout": 30.0}
# what SQLite says of a file that is broken, is none of its own, or lacks what an index has
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# how the column `same` has copies that are the same throughout; tables of older indexes have no column for it
_THROUGHOUT = 2
# of what SQLite takes in one statement
_AT_ONCE = 500
_BLOCK_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of an index, and what is known of it.

    Attributes:
        id: its number, which stays its own as long as it is in the index.
        name: its path, below the index's folder where it lies there; or what it was called.
        path: where the file is, or was; of a photo that came as bytes or pixels, nothing is there.
        file_size: bytes, or None.
        modified: time of the file, nanoseconds since 1970, or None.
        sha256: of the content, in hexadecimal, or None.
        width, height: pixels, upright; None where they are not known.
        row: of the index's descriptors; equal for photos of equal content; None where it could not be used.
        class_name, probability: of the likeliest class; None where there is no classifier.
        problem: why the photo can't be used, in a few words, or None.
    """

    id: int
    name: str
    path: Path
    file_size: int | None
    modified: int | None
    sha256: str | None
    width: int | None
    height: int | None
    row: int | None
    class_name: str | None
    probability: float | None
    problem: str | None

    def is_as_it_was(self) -> bool:
        """Whether its file has the size and the time that it had when it was described."""
        return stamp(self.path) == (self.file_size, self.modified)


@dataclasses.dataclass(frozen=True)
class Known:
    """What tells whether a file is still the photo that was embedded; and whether its size in pixels is known."""

    id: int
    stamp: tuple[int | None, int | None]
    sha256: bytes | None
    row: int | None
    problem: str | None
    path: bytes | None
    measured: bool


class State:
    """One state of an index, which stays what it is until it is closed, whatever is written meanwhile.

    Safe to use from several threads.

    Args:
        folder: of the index.

    Attributes:
        about: dict of what is known of the whole: dimensions, fingerprint, resolution, class_names, root and others.
        number: what tells it from others: (which making of the index, how many times that had been written to).
        descriptors: float16 [rows, D], mapped into memory.
        used: bool [rows], the rows that are a photo's.

    Raises:
        UserError: there is no index, or it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        for attempt in range(5):
            try:
                self._database = _connected(folder)
                self._open()
                return
            except FileNotFoundError as error:
                # between the two looks the descriptors were written anew
                self.close()
                if attempt == 4:
                    raise UserError(
                        f"{folder} is damaged: it lacks {Path(error.filename).name}; build it anew"
                    ) from None
            except sqlite3.Error as error:
                self.close()
                raise _unreadable(folder, error) from error
            except BaseException:
                self.close()
                raise

    def _open(self):
        self._database.execute("BEGIN")
        # indexes of before know no paths but those that names tell
        self._path = "photos.path" if _has_paths(self._database) else "NULL"
        self._photos = _PHOTOS.replace("photos.path", self._path)
        self.about = _about(self._database, self.folder)
        self.number = _number(self.about)
        rows, dimensions = self.about["rows"], self.about["dimensions"] or 1
        self.descriptors = np.empty((0, dimensions), np.float16)
        path = _descriptors(self.folder, self.about["generation"])
        if os.stat(path).st_size < rows * dimensions * 2:
            raise UserError(f"{self.folder} is damaged: {path.name} is cut off; build it anew")
        if rows:
            self.descriptors = np.memmap(path, np.float16, "r", shape=(rows, dimensions))
        self.used = np.zeros(rows, bool)
        self.used[[row for (row,) in self._database.execute("SELECT row FROM photos WHERE row IS NOT NULL")]] = True

    def close(self) -> None:
        """Lets go of the state."""
        if hasattr(self, "_database"):
            self._database.close()

    def __del__(self):
        self.close()

    def path(self, name: str) -> Path:
        """Where the photo of a name lies."""
        return Path(self.about["root"] or "", name)

    def count(self, where: str = "1", values: Sequence = ()) -> int:
        """How many photos there are of which a condition on their columns holds."""
        return self._all(f"SELECT COUNT(*) FROM photos WHERE {where}", values)[0][0]

    def usable_count(self) -> int:
        """How many photos can be found."""
        return self.count("row IS NOT NULL")

    def select(self, rest: str = "", values: Sequence = ()) -> list[Photo]:
        """Photos, by what comes behind `SELECT ... FROM photos` and their likeliest class, `likeliest`."""
        return [self._photo(found) for found in self._all(f"{self._photos} {rest}", values)]

    def photos_of_rows(self, rows: Iterable[int]) -> dict[int, list[Photo]]:
        """Row -> the photos whose descriptor it is, in order of name."""
        found = {}
        for photo in self._photos_by("row", rows):
            found.setdefault(photo.row, []).append(photo)
        return found

    def photos_of_ids(self, ids: Iterable[int]) -> dict[int, Photo]:
        """Number -> the photo that has it, of those that are there."""
        return {photo.id: photo for photo in self._photos_by("id", ids)}

    def rows_of_classes(self, numbers: Sequence[int]) -> np.ndarray:
        """int64, the rows whose likeliest class is one of these."""
        found = self._all(f"SELECT row FROM classes WHERE class IN ({_places(numbers)}) AND rank=0", numbers)
        return np.array([row for (row,) in found], int)

    def class_of(self, photo: int) -> int | None:
        """The likeliest class of the photo of a number; None if it has none."""
        found = self._all(
            "SELECT class FROM classes JOIN photos ON photos.row = classes.row WHERE photos.id = ? AND rank = 0",
            [photo],
        )
        return found[0][0] if found else None

    def by_class(self, numbers: Sequence[int], count: int, offset: int) -> list[tuple[Photo, float]]:
        """Photos that may be of one of some classes, with the probability of these together, most probable first."""
        chosen = f"SELECT row, SUM(probability) AS p FROM classes WHERE class IN ({_places(numbers)}) GROUP BY row"
        found = self._all(
            f"{self._photos.replace(' FROM photos', ', chosen.p FROM photos')} JOIN ({chosen}) AS chosen "
            "ON chosen.row = photos.row ORDER BY chosen.p DESC, photos.name LIMIT ? OFFSET ?",
            [*numbers, count, offset],
        )
        return [(self._photo(each[:-1]), each[-1]) for each in found]

    def class_counts(self) -> dict[int, int]:
        """Class -> how many photos it is the likeliest of."""
        return dict(
            self._all(
                "SELECT class, COUNT(*) FROM classes JOIN photos ON photos.row = classes.row WHERE rank = 0 "
                "GROUP BY class"
            )
        )

    def known(self) -> dict[bytes, Known]:
        """Name -> what tells whether it is still the same, of all photos."""
        columns = f"name, id, file_size, modified, sha256, row, problem, {self._path}, width IS NOT NULL"
        found = self._all(f"SELECT {columns} FROM photos")
        return {name: Known(key, (size, time), *others) for name, key, size, time, *others in found}

    def _photos_by(self, column, values):
        values = [int(value) for value in values]
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE]
            yield from self.select(f"WHERE photos.{column} IN ({_places(part)}) ORDER BY photos.name", part)

    def _all(self, statement, values=()):
        with self._lock:
            return _all(self._database, self.folder, statement, values)

    def _photo(self, found):
        number, name, size, time, digest, width, height, row, problem, path, kind, probability = found
        names = self.about["class_names"]
        return Photo(
            number,
            os.fsdecode(name),
            self.path(os.fsdecode(name)) if path is None else Path(os.fsdecode(path)),
            size,
            time,
            digest and digest.hex(),
            width,
            height,
            row,
            names[kind] if names and kind is not None else None,
            probability,
            problem,
        )


class Writer:
    """The one who may write to an index, until its block is left.

    Args:
        folder: of the index; made where it is not there.
        about: of a new index: `dimensions`, `fingerprint`, `resolution`, `class_names`, `root` and others, for JSON.

    Raises:
        UserError: another process writes to it, it can't be written to, or it is none.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None):
        self.folder = folder
        self._first = about

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in self.folder.iterdir() if path.name != _LOCK]
            if others and not (self.folder / _DATABASE).exists():
                raise UserError(f"{printable_name(self.folder)} holds {printable_name(others[0])}, which is no index")
            self._lock = open(self.folder / _LOCK, "a+b")
        except OSError as error:
            raise UserError(f"{self.folder} can't be written to: {error.strerror or error}") from error
        if not try_lock(self._lock):
            self._lock.close()
            raise UserError(f"{self.folder} is being written to by another process: try again when that has ended")
        try:
            self._database = _connected(self.folder, new=True)
            if self._first is not None and not _is_begun(self._database):
                self._begin(self._first)
            self.about = _about(self._database, self.folder)
            if not _has_paths(self._database):
                self._database.execute("ALTER TABLE photos ADD COLUMN path BLOB")
            self._remove_unnamed()
            self._file = open(_descriptors(self.folder, self.about["generation"]), "r+b")
        except sqlite3.Error as error:
            self.__exit__()
            raise _unreadable(self.folder, error) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for name in ("_file", "_database", "_lock"):
            if hasattr(self, name):
                getattr(self, name).close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written in this block counts as a whole or not at all."""
        before = dict(self.about)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self.about["state"] += 1
            for key, value in self.about.items():
                if before.get(key) != value:
                    self._database.execute("REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value)))
            self._database.execute("COMMIT")
        except BaseException as error:
            self.about = before
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            if _is_damage(error):
                raise _unreadable(self.folder, error) from error
            if isinstance(error, sqlite3.OperationalError):
                raise UserError(f"{self.folder} can't be written to: {error}") from error
            raise

    def append(self, descriptors: np.ndarray) -> np.ndarray:
        """Adds rows of descriptors [n, D], which count with the transaction in which they were added.

        Returns:
            int64 [n], their numbers.
        """
        first = self.about["rows"]
        if self.about["dimensions"] is None:
            self.about["dimensions"] = descriptors.shape[1]
        with _writing_to(self.folder):
            self._file.seek(first * self.about["dimensions"] * 2)
            self._file.write(np.ascontiguousarray(descriptors, np.float16).tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())
        self.about["rows"] = first + len(descriptors)
        return first + np.arange(len(descriptors))

    def put(
        self, name: bytes, facts: Facts, row: int | None, problem: str | None = None, path: bytes | None = None
    ) -> None:
        """Notes a photo, in the place of one of the same name; `path` where its name does not tell it."""
        self._database.execute(
            "INSERT INTO photos (name, file_size, modified, sha256, width, height, row, problem, path) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "file_size=excluded.file_size, modified=excluded.modified, "
            "sha256=excluded.sha256, width=excluded.width, height=excluded.height, row=excluded.row, "
            "problem=excluded.problem, path=excluded.path",
            (
                name,
                facts.file_size,
                facts.modified,
                facts.sha256,
                facts.width,
                facts.height,
                None if row is None else int(row),
                facts.problem or problem,
                path,
            ),
        )

    def measure(self, sizes: Iterable[tuple[bytes, int, int]]) -> None:
        """Notes (name, width, height) of photos."""
        self._database.executemany(
            "UPDATE photos SET width = ?, height = ? WHERE name = ?",
            [(width, height, name) for name, width, height in sizes],
        )

    def classify(self, rows: np.ndarray, classes: np.ndarray, probabilities: np.ndarray) -> None:
        """Notes the likeliest classes of rows: int [n, c] and float [n, c], likeliest first; NaN for none."""
        self._database.executemany(
            "REPLACE INTO classes VALUES (?, ?, ?, ?)",
            (
                (int(row), rank, int(number), float(probability))
                for row, numbers, shares in zip(rows, classes, probabilities, strict=True)
                for rank, (number, probability) in enumerate(zip(numbers, shares, strict=True))
                if not np.isnan(probability)
            ),
        )

    def row_of_content(self, sha256: bytes) -> int | None:
        """The row of a photo of the same content, or None."""
        found = self._all("SELECT row FROM photos WHERE sha256 = ? AND row IS NOT NULL LIMIT 1", (sha256,))
        return found[0][0] if found else None

    def count(self) -> int:
        """How many photos there are, those that can't be used among them."""
        return self._all("SELECT COUNT(*) FROM photos")[0][0]

    def used_rows(self) -> int:
        """How many rows are a photo's."""
        return self._all("SELECT COUNT(DISTINCT row) FROM photos")[0][0]

    def delete(self, names: Iterable[bytes]) -> int:
        """Takes photos out by name; returns how many there were."""
        return sum(self._database.execute("DELETE FROM photos WHERE name = ?", (name,)).rowcount for name in names)

    def set_neighbors(self, write: Callable[[Path], Any], about: dict[str, Any]) -> None:
        """Writes a file that finds neighbours, and names it in a transaction.

        Args:
            write: writes it to a path.
            about: what is known of it, for JSON.
        """
        name = f"neighbors-{uuid.uuid4().hex}.faiss"
        try:
            with atomic_path(self.folder / name) as partial:
                write(partial)
        # FAISS's own error, or that of the disk
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.folder} can't be written to: {str(error).splitlines()[0]}") from error
        with self.transaction():
            self.about["neighbors"] = {**about, "file": name}
        self._remove_unnamed()

    def drop_neighbors(self) -> None:
        """Forgets that file, if there is one."""
        if self.about["neighbors"]:
            with self.transaction():
                self.about["neighbors"] = None
            self._remove_unnamed()

    def compact(self) -> None:
        """Writes the descriptors anew without the rows that are nobody's."""
        used = [row for (row,) in self._all("SELECT DISTINCT row FROM photos WHERE row IS NOT NULL")]
        used, dimensions = np.sort(np.array(used, np.int64)), self.about["dimensions"]
        shape = (self.about["rows"], dimensions)
        old = np.memmap(self._file.name, np.float16, "r", shape=shape) if len(used) else None
        generation = self.about["generation"] + 1
        target = _descriptors(self.folder, generation)
        with _writing_to(self.folder), atomic_path(target) as partial, open(partial, "wb") as file:
            for start in range(0, len(used), _BLOCK_ROWS):
                file.write(old[used[start : start + _BLOCK_ROWS]].tobytes())
        with self.transaction():
            self._database.execute("CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new INTEGER)")
            self._database.executemany(
                "INSERT INTO moved VALUES (?, ?)", ((int(row), new) for new, row in enumerate(used))
            )
            self._database.execute("DELETE FROM classes WHERE row NOT IN (SELECT old FROM moved)")
            # one after the other, rising, so that no two are the same on the way
            for table in ("photos", "classes"):
                self._database.execute(
                    f"UPDATE {table} SET row = -1 - (SELECT new FROM moved WHERE old = row) WHERE row >= 0"
                )
                self._database.execute(f"UPDATE {table} SET row = -1 - row WHERE row < 0")
            self._database.execute("DROP TABLE moved")
            self._forget_compared()
            self.about |= {"generation": generation, "rows": len(used), "neighbors": None}
        self._file.close()
        self._file = open(_descriptors(self.folder, generation), "r+b")  # noqa: SIM115
        self._remove_unnamed()

    def _forget_compared(self):
        """What was found of contents that are not there any more."""
        known = "SELECT sha256 FROM photos WHERE sha256 IS NOT NULL"
        if self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'compared'").fetchone():
            self._database.execute(f"DELETE FROM compared WHERE one NOT IN ({known}) OR other NOT IN ({known})")
            self._database.execute(f"DELETE FROM sketches WHERE sha256 NOT IN ({known})")

    def copy(self, path: Path) -> None:
        """Writes the same index to another folder, whole or not at all."""
        with _writing_to(path), atomic_path(path) as partial:
            partial.mkdir()
            with contextlib.closing(sqlite3.connect(partial / _DATABASE)) as database:
                self._database.backup(database)
            names = [_descriptors(self.folder, self.about["generation"]).name]
            if self.about["neighbors"]:
                names.append(self.about["neighbors"]["file"])
            for name in names:
                _copy_file(self.folder / name, partial / name)

    def _all(self, statement, values=()):
        return _all(self._database, self.folder, statement, values)

    def _begin(self, about):
        with open(_descriptors(self.folder, 0), "wb"):
            pass
        # an index that is made anew in the same place may have been written to as often
        first = {"version": _VERSION, "made": uuid.uuid4().hex, "state": 0, "generation": 0, "rows": 0}
        first["neighbors"] = None
        self._database.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self._database.execute(statement)
        self._database.executemany(
            "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in (first | about).items()]
        )
        self._database.execute("COMMIT")

    def _remove_unnamed(self):
        """Takes away what writers that were killed left, and what is no longer in use; who reads it keeps it open."""
        neighbors = self.about["neighbors"]
        named = {_descriptors(self.folder, self.about["generation"]).name, neighbors and neighbors["file"]}
        for pattern in ("descriptors-*.f16", "neighbors-*.faiss"):
            remove_leftovers(self.folder, pattern)
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    with contextlib.suppress(OSError):
                        path.unlink()


class Compared:
    """What comparing the pixels of photos found, kept in an index's database by their contents.

    Anybody may write, whoever writes the index: it is no part of a state. In a folder that can't be written to, it is
    kept until it is closed.

    Args:
        folder: of the index.
        method: number of the method that compares; what another one found is not seen.
    """

    def __init__(self, folder: Path, method: int):
        self.method = method
        self._folder = folder
        self._lock = threading.Lock()
        try:
            self._database = _beside(folder)
        except sqlite3.Error:
            self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._database.executescript(_BESIDE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._database.close()

    def sketches(self, contents: Iterable[bytes]) -> dict[bytes, bytes]:
        """Content -> sketch, of those that are known."""
        found, contents = {}, list(contents)
        with self._lock:
            for start in range(0, len(contents), _AT_ONCE):
                part = contents[start : start + _AT_ONCE]
                found |= self._all(
                    f"SELECT sha256, sketch FROM sketches WHERE method = ? AND sha256 IN ({_places(part)})",
                    [self.method, *part],
                )
        return found

    def put_sketches(self, sketches: dict[bytes, bytes]) -> None:
        """Keeps sketches by their contents."""
        self._put(
            "REPLACE INTO sketches VALUES (?, ?, ?)", [(key, self.method, each) for key, each in sketches.items()]
        )

    def pair(self, one: bytes, other: bytes) -> tuple[bool, float, str, bool] | None:
        """(same, score, how, throughout) of two contents in either order, or None."""
        with self._lock:
            found = self._all(
                "SELECT same, score, how FROM compared WHERE one = ? AND other = ? AND method = ?",
                [min(one, other), max(one, other), self.method],
            )
        return (bool(found[0][0]), *found[0][1:], found[0][0] == _THROUGHOUT) if found else None

    def put_pairs(self, pairs: dict[tuple[bytes, bytes], tuple[bool, float, str, bool]]) -> None:
        """Keeps (same, score, how, throughout) of pairs of contents."""
        self._put(
            "REPLACE INTO compared VALUES (?, ?, ?, ?, ?, ?)",
            [
                (min(pair), max(pair), self.method, _THROUGHOUT if throughout else int(same), score, how)
                for pair, (same, score, how, throughout) in pairs.items()
            ],
        )

    def _put(self, statement, rows):
        # what can't be kept, as another process writes for long or the disk is full, is found again
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(statement, rows)
                self._database.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                self._database.execute("ROLLBACK")
                if _is_damage(error):
                    raise _unreadable(self._folder, error) from error
                raise

    def _all(self, statement, values):
        return _all(self._database, self._folder, statement, values)


class Noted:
    """Text by key, kept in a database; anybody may write.

    Args:
        place: an index's folder, or a file.
        is_index: which of them it is; a file is made with the first note.
    """

    def __init__(self, place: Path, is_index: bool = True):
        self._place, self._is_index = place, is_index
        self._database = None

    def all(self) -> dict[str, str]:
        """Key -> what was noted.

        Raises:
            UserError: it can't be read.
        """
        try:
            if self._database is None:
                if not self._is_index and not self._place.exists():
                    return {}
                self._database = (_connected if self._is_index else _reading)(self._place)
            return dict(self._database.execute("SELECT key, value FROM decisions").fetchall())
        except sqlite3.Error as error:
            # nothing was noted here yet; whatever else it is must not read as that
            if str(error) == "no such table: decisions":
                return {}
            if self._is_index:
                raise _unreadable(self._place, error) from error
            raise UserError(f"{printable_name(self._place)} can't be read: {error}") from error

    def put(self, key: str, value: str) -> None:
        """Notes it.

        Raises:
            UserError: it can't be written to.
        """
        try:
            if not self._is_index:
                self._place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(_beside(self._place) if self._is_index else _made(self._place)) as database:
                database.execute("REPLACE INTO decisions VALUES (?, ?)", (key, value))
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{printable_name(self._place)} can't be written to: {error}") from error

    def close(self) -> None:
        """Lets go of the database."""
        if self._database is not None:
            self._database.close()


def is_index(folder: Path) -> bool:
    """Whether there is an index at a path, begun at least."""
    if not (folder / _DATABASE).is_file():
        return False
    try:
        with contextlib.closing(_connected(folder)) as database:
            return _is_begun(database)
    except sqlite3.Error as error:
        raise _unreadable(folder, error) from error


def state_number(folder: Path) -> tuple[str | None, int]:
    """`State.number` of the newest state of an index."""
    try:
        with contextlib.closing(_connected(folder)) as database:
            found = database.execute("SELECT key, value FROM about WHERE key IN ('made', 'state')")
            return _number({key: json.loads(value) for key, value in found})
    except sqlite3.Error as error:
        raise _unreadable(folder, error) from error


def _number(about):
    # indexes of before don't say which making they are
    return about.get("made"), about["state"]


def root_of(folder: Path) -> str | None:
    """The folder of which there is an index, or None where it is of none."""
    try:
        with contextlib.closing(_connected(folder)) as database:
            return _about(database, folder)["root"]
    except sqlite3.Error as error:
        raise _unreadable(folder, error) from error


def _connected(folder, new=False):
    path = folder / _DATABASE
    if not new:
        if not path.is_file():
            raise UserError(f"{printable_name(folder)} is no index: it lacks {_DATABASE}")
        return _reading(path)
    database = sqlite3.connect(path, **_OPTIONS)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    return database


def _reading(path):
    """A connection to a database that is there, which only reads."""
    if not os.access(path.parent, os.W_OK):
        return _read_only(path.absolute().as_uri())
    database = sqlite3.connect(path, **_OPTIONS)
    database.execute("PRAGMA query_only = 1")
    return database


def _made(path):
    """A connection to a database for notes, made where it is not there."""
    database = sqlite3.connect(path, **_OPTIONS)
    database.executescript(_NOTED)
    return database


def _beside(folder):
    """A connection to what is no part of a state; raises `sqlite3.Error` where that can't be written."""
    if not os.access(folder, os.W_OK):
        raise sqlite3.OperationalError("it is read-only")
    # never made here: an index without photos would be left
    address = f"{(folder / _DATABASE).absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(address, uri=True, **_OPTIONS)
    database.executescript(_BESIDE + _NOTED)
    return database


def _read_only(address):
    database = sqlite3.connect(f"{address}?mode=ro", uri=True, **_OPTIONS)
    try:
        database.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.OperationalError:
        database.close()
        # nobody writes here, and what readers share with a writer can't be made
        database = sqlite3.connect(f"{address}?immutable=1", uri=True, **_OPTIONS)
    return database


def _has_paths(database):
    return any(name == "path" for _, name, *_ in database.execute("PRAGMA table_info(photos)"))


def _is_begun(database):
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone())


def _about(database, folder):
    if not _is_begun(database):
        raise UserError(f"{printable_name(folder)} is no index: its {_DATABASE} is empty")
    about = {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM about")}
    if about.get("version") != _VERSION:
        raise UserError(
            f"{printable_name(folder)} is an index of version {about.get('version')}, where {_VERSION} is read here: "
            "build it anew"
        )
    return about


@contextlib.contextmanager
def _writing_to(folder):
    try:
        yield
    except OSError as error:
        raise UserError(f"{printable_name(folder)} can't be written to: {error.strerror or error}") from error
    except sqlite3.OperationalError as error:
        raise UserError(f"{printable_name(folder)} can't be written to: {error}") from error


def _all(database, folder, statement, values=()):
    try:
        return database.execute(statement, values).fetchall()
    except sqlite3.DatabaseError as error:
        raise _unreadable(folder, error) from error


def _code(error):
    """SQLite's code of an error, or None; extended codes have the plain one in their lowest byte."""
    code = getattr(error, "sqlite_errorcode", None)
    return code and code & 0xFF


def _is_damage(error):
    return _code(error) in _DAMAGE


def _unreadable(folder, error):
    """What to say of an error of SQLite's: only some of them are the index's own."""
    code = _code(error)
    if code in _DAMAGE:
        return UserError(f"{printable_name(folder)} can't be read as an index: {error}; build it anew")
    hint = "another process holds it: try again" if code in _IN_USE else "is the disk full, or gone?"
    return UserError(f"{printable_name(folder)} can't be used now: {error}; {hint}")


def _descriptors(folder, generation):
    return folder / f"descriptors-{generation}.f16"


def _copy_file(source, target):
    with open(source, "rb") as read, open(target, "wb") as written:
        while block := read.read(1 << 24):
            written.write(block)


def _places(values):
    return ",".join("?" * len(values))
