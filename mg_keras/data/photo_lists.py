"""Which photos to describe: folders, globs, tables, Parquet and WebDataset tars, here or in object stores.

A list is read from one end to the other and never held, so it may have tens of millions of photos; TensorFlow is needed
for tars alone, which it takes to index.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import has_magic
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from pyarrow import parquet

from mg_keras.data import stores
from mg_keras.data.finding import existing, find_photos, is_ignored, told, why_none
from mg_keras.data.formats import EXTENSIONS
from mg_keras.data.patterns import expand_braces
from mg_keras.data.pillow_photos import decodable
from mg_keras.data.stores import as_user_error, is_url, store_of
from mg_keras.data.tables import records
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.progress import mapped

NAME_COLUMNS = ("uri", "path", "name", "file")
"""What a column of photos' names may be called, the better name first."""

# what photos are called that are converted before they are decoded
_ENDINGS = (*EXTENSIONS, ".tif", ".tiff", ".avif", ".heic", ".heif")
_ROWS_AT_ONCE = 8_192
_TARS_AT_ONCE = 64
# of photos in object stores: requests at a time, and how far reading is ahead of decoding
_REQUESTS, _AHEAD = 32, 64


class Photo(NamedTuple):
    """A photo of a list.

    Attributes:
        uri: what rows of descriptors call it: its absolute path or URL, in a tar with `#` and its name there; a line of
            text.
        path: what is opened; bytes of it that are no UTF-8 are surrogates, as `os.fsdecode` makes them.
        position, length: of its bytes in the file; length -1: the whole file.
        stamp: changes when the photo does, where listing tells it; else empty.
    """

    uri: str
    path: str
    position: int = 0
    length: int = -1
    stamp: str = ""


class PhotoList:
    """The photos that are named, in an order that depends on nothing else; iterating reads it from the beginning.

    Args:
        what: each of

            * a folder, whose photos are taken at any depth, in order of name;
            * a photo, or a glob (`photos/**/*.jpg`); `{000..146}` and `{a,b}` are written out;
            * a table in `.csv` or `.tsv`, whose first row names the columns: the first of `NAME_COLUMNS` that is there
              has the photos; `.txt`: a photo a line; `.parquet`: a column of that name. Relative paths are relative to
              the list;
            * a WebDataset tar, or a glob of tars.

            All of them are local or URLs that fsspec reads (`s3://bucket/photos/`).

    Attributes:
        passed_over: (name, reason) of what was found beside the photos of folders, once they were read.

    Raises:
        UserError: (while it is read) there is no such thing, or no photo in it.
    """

    def __init__(self, what: str | os.PathLike | Sequence[str | os.PathLike]):
        self.what = [os.fspath(each) for each in ([what] if isinstance(what, str | os.PathLike) else what)]
        self.passed_over: tuple[tuple[str, str], ...] = ()

    def __iter__(self) -> Iterator[Photo]:
        self.passed_over = ()
        for argument in self.what:
            # a file's name may hold anything
            for pattern in [argument] if os.path.lexists(argument) else expand_braces(argument):
                yield from self._of(pattern)

    def _of(self, pattern):
        read = {".csv": _of_table, ".tsv": _of_table, ".txt": _of_lines, ".parquet": _of_parquet}
        read = read.get(os.path.splitext(pattern)[1].lower())
        paths = _matching(pattern)
        if pattern.lower().endswith(".tar"):
            yield from _of_tars(paths)
            return
        for path in paths:
            if is_url(path):
                yield from read(path) if read else _of_url(path)
            elif os.path.isdir(path):
                yield from self._of_folder(path)
            else:
                yield from read(path) if read else _of_files([path])

    def _of_folder(self, path):
        folder = existing(path)
        found = find_photos(os.path.abspath(folder))
        if not found.files:
            tars = f"; give its tars as {printable_name(folder)}/*.tar" if any(folder.glob("*.tar")) else ""
            raise UserError(
                f"no photo below {printable_name(folder)}: {why_none(found.passed_over, os.path.abspath(folder))}{tars}"
            )
        self.passed_over += told(found.passed_over, os.path.abspath(folder))
        yield from _of_files(found.files)


def _matching(pattern):
    if os.path.lexists(os.path.expanduser(pattern)):
        return [os.path.expanduser(pattern)]
    with as_user_error(f"{printable_name(pattern)} can't be listed"):
        paths = sorted(store_of(pattern).glob(pattern))
    if not paths:
        what = "nothing matches" if has_magic(pattern) else "no such folder, photo or list:"
        raise UserError(f"{what} {printable_name(pattern)}")
    return paths


def _of_files(paths):
    paths = [os.path.abspath(path) for path in paths]
    for path, stamp in zip(paths, mapped(_stamp, paths, "looking at photos"), strict=True):
        yield Photo(printable_name(path), path, stamp=stamp)


def _stamp(path):
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _of_url(url):
    if os.path.splitext(url)[1].lower() in _ENDINGS:
        yield Photo(printable_name(url), url)
        return
    found = False
    with as_user_error(f"{url} can't be listed"):
        for path, inside, stamp in store_of(url).listing(url):
            if os.path.splitext(path)[1].lower() in _ENDINGS and not any(map(is_ignored, inside.split("/"))):
                found = True
                yield Photo(printable_name(path), path, stamp=stamp)
    if not found:
        raise UserError(f"no photo below {url}: none of its files ends in {', '.join(_ENDINGS)}")


def _of_names(names, of):
    """The photos of a list `of` names, which are relative to its folder."""
    folder = of.rpartition("/")[0] if is_url(of) else os.path.dirname(os.path.abspath(of))
    for name in names:
        path = name if is_url(name) else os.path.join(folder, os.path.expanduser(name))
        if not is_url(path):
            path = os.path.normpath(path)
        yield Photo(printable_name(path), path)


def _column(columns, of):
    known = {str(name).strip().casefold(): place for place, name in reversed(list(enumerate(columns)))}
    place = next((known[name] for name in NAME_COLUMNS if name in known), None)
    if place is None:
        raise UserError(
            f"{printable_name(of)} must have a column {', '.join(NAME_COLUMNS[:-1])} or {NAME_COLUMNS[-1]} of photos, "
            f"received {', '.join(map(str, columns)) or 'none'}"
        )
    return place


@contextlib.contextmanager
def _text_of(path):
    with (
        as_user_error(f"{printable_name(path)} can't be read"),
        io.TextIOWrapper(store_of(path).open(path), encoding="utf-8-sig", newline="") as lines,
    ):
        yield lines


def _of_table(path):
    place = printable_name(path)
    with _text_of(path) as lines:
        rows = records(lines, place)
        column = _column(next(rows, (1, []))[1], path)

        def names():
            for number, values in rows:
                if column >= len(values) or not values[column]:
                    raise UserError(f"{place}, row {number}: the name of the photo is empty")
                yield values[column]

        yield from _of_names(names(), path)


def _of_lines(path):
    with _text_of(path) as lines:
        try:
            yield from _of_names((line.rstrip("\r\n") for line in lines if line.strip()), path)
        except UnicodeDecodeError:
            raise UserError(f"{printable_name(path)} must be text in UTF-8, received other bytes") from None


def _of_parquet(path):
    with (
        as_user_error(f"{printable_name(path)} can't be read as Parquet"),
        store_of(path).open(path) as opened_file,
    ):
        file = parquet.ParquetFile(opened_file)
        name = file.schema_arrow.names[_column(file.schema_arrow.names, path)]
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[name]):
            names = batch.column(0).to_pylist()
            if not all(isinstance(each, str) and each for each in names):
                raise UserError(f"{printable_name(path)}: {name} must hold the name of a photo in every row")
            yield from _of_names(names, path)


def _of_tars(paths):
    # asked for last: no other list needs TensorFlow, which takes seconds to import
    from mg_keras.data.shards import open_index

    paths = [path if is_url(path) else os.path.abspath(path) for path in paths]
    for start in range(0, len(paths), _TARS_AT_ONCE):
        index = open_index(paths[start : start + _TARS_AT_ONCE], "webdataset", Path.home() / ".cache/mg_keras/shards")
        stamps = [_stamp(path) for path in index.paths]
        for name, shard, position, length in zip(
            index.names, index.shard.tolist(), index.position.tolist(), index.length.tolist(), strict=True
        ):
            tar = index.paths[shard]
            inside = name.removeprefix(printable_name(os.path.basename(tar))).removeprefix("/")
            yield Photo(f"{printable_name(tar)}#{inside}", tar, position, length, stamps[shard])


class Contents:
    """The bytes of photos, read when they are asked for; those of object stores are read ahead. Safe from any thread.

    Use as a context manager, which ends what is read ahead.

    Args:
        photos: of a `PhotoList`, in the order in which they are asked for, more or less.
    """

    def __init__(self, photos: Sequence[Photo]):
        self.photos = photos
        self._hashes: list[str | None] = [None] * len(photos)
        self._troubles: dict[int, str] = {}
        remote = any(is_url(photo.path) for photo in photos)
        self._threads = ThreadPoolExecutor(_REQUESTS) if remote else None
        self._reading: dict[int, Future] = {}
        self._asked = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is read ahead."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def decodable(self, row: int) -> bytes:
        """A photo as the decoder reads it, TIFF, AVIF and HEIC converted; empty where there is `trouble`."""
        contents = self._ahead(row) if self._threads else self._read(row)
        found, trouble = decodable(contents)
        if trouble:
            self._troubles[row] = trouble
        return found

    def sha256(self, row: int) -> str | None:
        """Of a photo's file, in hexadecimal digits; None where it was not read."""
        return self._hashes[row]

    def trouble(self, row: int) -> str | None:
        """Why a photo could not be read or converted; None where it could, or nobody has asked for it."""
        return self._troubles.get(row)

    def _ahead(self, row):
        """The bytes of a photo, after those of the next ones were asked for."""
        with self._lock:
            while self._asked < min(row + _AHEAD, len(self.photos)):
                place, self._asked = self._asked, self._asked + 1
                self._reading[place] = self._threads.submit(self._read, place)
            reading = self._reading.pop(row, None)
        return self._read(row) if reading is None else reading.result()

    def _read(self, row):
        if row in self._troubles:
            return b""
        photo = self.photos[row]
        try:
            end = None if photo.length < 0 else photo.position + photo.length
            contents = stores.read(photo.path, photo.position, end)
            if len(contents) < photo.length:
                raise OSError(f"{printable_name(photo.path)} is cut off")
        except (OSError, UserError) as error:
            cause = error.__cause__ or error
            why = getattr(cause, "strerror", None) or str(cause).strip() or type(cause).__name__
            self._troubles[row] = f"could not be read: {printable_name(why.splitlines()[0])}"
            return b""
        self._hashes[row] = sha256(contents).hexdigest()
        return contents
