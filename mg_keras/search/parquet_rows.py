"""Descriptors that stay in Parquet files, read by row: nothing is copied, and memory holds what was asked for alone.

What `mg-keras embed` writes is plain and not compressed, so the values of a page lie one behind the other at a place of
the file that the page's header tells. The headers are read once (`look_at`); then a row is one read of its bytes.
"""

import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from mg_keras.embedding import shards
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.search.given import columns_of

# files that are kept open, and groups of rows whose names are kept
_OPEN, _GROUPS = 256, 16
_HEADER = 1 << 12
_ROWS_AT_ONCE = 8_192
_BESIDE = ("class", "probability", "width", "height", "error")
_BROKEN = (pa.ArrowException, OSError, ValueError, IndexError)


@dataclasses.dataclass(frozen=True)
class File:
    """A Parquet file of descriptors.

    Attributes:
        path: absolute.
        size, modified: bytes, and nanoseconds since 1970: another one says that it was changed.
        rows: how many.
        dimensions: D.
        dtype: of the values, as NumPy writes it.
        made_from: what the descriptors were made from, where the file says it.
        pages: int64 [P, 2]: the first value of a page, counted from the file's first, and its place in the file.
    """

    path: str
    size: int
    modified: int
    rows: int
    dimensions: int
    dtype: str
    made_from: dict[str, Any] | None
    pages: np.ndarray


def look_at(path: Path) -> File:
    """What a file holds, and where its descriptors lie in it.

    Raises:
        UserError: it can't be read, or its descriptors are not plain.
    """
    try:
        stat = os.stat(path)
        file = parquet.ParquetFile(path)
        columns = columns_of(file.schema_arrow, path)
        kind = file.schema_arrow.field(columns[0]).type
        made_from = shards.metadata(path) if (file.schema_arrow.metadata or {}).get(shards.KEY) else None
        names = [file.schema.column(place).path for place in range(len(file.schema))]
        place = next(place for place, name in enumerate(names) if name.split(".")[0] == columns[0])
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise UserError(f"{path}: {columns[0]} must hold lists of float16 or float32, received {kind}")
        if not (pa.types.is_float16(kind.value_type) or pa.types.is_float32(kind.value_type)):
            raise UserError(f"{path}: {columns[0]} must hold float16 or float32, received {kind}")
        dtype = np.dtype(f"<f{kind.value_type.bit_width // 8}")
        rows = file.metadata.num_rows
        with open(path, "rb") as opened:
            pages = [_pages(opened, group, place, dtype, path) for group in _groups(file.metadata)]
    except _BROKEN as error:
        raise UserError(f"{path} can't be read as Parquet: {(str(error) or 'damaged').splitlines()[0]}") from error
    counts, places = (np.array([value for part in pages for value in part[which]], np.int64) for which in (0, 1))
    values = int(counts.sum())
    dimensions = getattr(kind, "list_size", 0) or values // max(1, rows)
    if values != rows * dimensions:
        raise UserError(
            f"{path}: {columns[0]} must have as many values in every row (NaN for a photo without), received "
            f"{values:,} in {rows:,} rows"
        )
    if made_from is None:
        _check_rows(file, columns[0], dimensions, path)
    starts = np.cumsum(counts) - counts
    return File(
        str(path), stat.st_size, stat.st_mtime_ns, rows, dimensions, dtype.str, made_from, np.stack([starts, places], 1)
    )


def _check_rows(file, column, dimensions, path):
    """That each row of a file of others has D values and no null: its pages don't tell."""
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            lists = batch.column(0)
            sizes = pc.list_value_length(lists)
            if lists.null_count or lists.flatten().null_count:
                raise UserError(f"{path}: a descriptor must be whole or NaN, received a null")
            if len(sizes) and pc.min_max(sizes).as_py() != {"min": dimensions, "max": dimensions}:
                raise UserError(
                    f"{path}: {column} must have as many values in every row (NaN for a photo without), received rows "
                    f"of other lengths than {dimensions}"
                )
    except _BROKEN as error:
        raise UserError(f"{path} can't be read as Parquet: {(str(error) or 'damaged').splitlines()[0]}") from error


class ParquetRows:
    """Descriptors [N, D] of several files, one behind the other; safe to use from several threads.

    Args:
        files: as `look_at` gives them, of equal dimensions.
        unusable: int64, increasing: the rows that are no descriptor of a photo.

    Attributes:
        shape: (N, D).
        first: int64 [files + 1], the first row of each file, and N.
    """

    def __init__(self, files: Sequence[File], unusable: np.ndarray | None = None):
        self.files = list(files)
        self.first = np.cumsum([0, *(file.rows for file in files)])
        self.shape = (int(self.first[-1]), files[0].dimensions)
        self.unusable = np.empty(0, np.int64) if unusable is None else unusable
        # a file's pages tell where each row begins
        self._opened = functools.lru_cache(_OPEN)(lambda place: _Opened(self.files[place]))
        self._group = functools.lru_cache(_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """float32 [..., D] of unit norm, of a row, a slice or int [n]; NaN where there is no descriptor.

        Raises:
            UserError: a file is gone or was changed.
        """
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return _unit(self._block(start, max(start, stop)))
        numbers = np.asarray(rows)
        wanted = numbers.reshape(-1)
        values = np.empty((len(wanted), self.shape[1]), np.float32)
        places = np.searchsorted(self.first, wanted, "right") - 1
        # file after file, each opened once
        for slot in np.argsort(wanted, kind="stable").tolist():
            place = int(places[slot])
            begin = int(wanted[slot] - self.first[place])
            values[slot] = self._opened(place).values(begin, begin + 1)
        return _unit(values).reshape(*numbers.shape, self.shape[1])

    def _block(self, start, stop):
        values, done = np.empty((stop - start, self.shape[1]), np.float32), 0
        while done < stop - start:
            place = int(np.searchsorted(self.first, start + done, "right")) - 1
            begin = start + done - int(self.first[place])
            end = min(self.files[place].rows, begin + stop - start - done)
            values[done : done + end - begin] = self._opened(place).values(begin, end).reshape(end - begin, -1)
            done += end - begin
        return values

    def facts(self, row: int) -> dict[str, Any]:
        """What stands beside a descriptor: `name`, and where the file has them `class`, `probability` and others."""
        place = int(np.searchsorted(self.first, row, "right")) - 1
        at = row - int(self.first[place])
        group_rows = self._opened(place).group_rows
        group = int(np.searchsorted(group_rows, at, "right")) - 1
        table, name = self._group(place, group)
        values = {key: table[key][at - int(group_rows[group])].as_py() for key in table.column_names}
        return {**values, "name": str(values[name])}

    def _read_group(self, place, group):
        opened = self._opened(place)
        try:
            # of two threads in one file, pyarrow crashes
            with opened.lock:
                columns = opened.parquet.schema_arrow
                name = columns_of(columns, opened.file.path)[1]
                kept = [each for each in (name, *_BESIDE) if each in columns.names]
                return opened.parquet.read_row_group(group, columns=kept), name
        except _BROKEN as error:
            raise UserError(f"{opened.file.path} can't be read: {str(error).splitlines()[0]}") from error

    def check(self) -> None:
        """Raises a `UserError` where a file is gone or was changed."""
        for file in self.files:
            _check_unchanged(file)


class _Opened:
    """A file, open for reading rows."""

    def __init__(self, file):
        _check_unchanged(file)
        self.file = file
        try:
            self.number = os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{file.path} can't be read: {error.strerror or error}") from error
        self.dtype, self.lock = np.dtype(file.dtype), threading.Lock()

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)

    @functools.cached_property
    def parquet(self):
        return parquet.ParquetFile(self.file.path)

    @functools.cached_property
    def group_rows(self):
        return np.cumsum([0, *(group.num_rows for group in _groups(self.parquet.metadata))])

    def values(self, begin, end):
        """The values of rows, flat."""
        pages, width, size = self.file.pages, self.file.dimensions, self.dtype.itemsize
        first, last = begin * width, end * width
        parts = []
        page = int(np.searchsorted(pages[:, 0], first, "right")) - 1
        while first < last:
            there, place = int(pages[page, 0]), int(pages[page, 1])
            stop = int(pages[page + 1, 0]) if page + 1 < len(pages) else self.file.rows * width
            count = min(stop, last) - first
            try:
                data = os.pread(self.number, count * size, place + (first - there) * size)
            except OSError as error:
                raise UserError(f"{self.file.path} can't be read: {error.strerror or error}") from error
            if len(data) < count * size:
                raise UserError(f"{self.file.path} is cut off: build the index anew")
            parts.append(np.frombuffer(data, self.dtype))
            first, page = first + count, page + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_unchanged(file):
    try:
        stat = os.stat(file.path)
    except FileNotFoundError:
        raise UserError(
            f"{printable_name(file.path)} is gone, whose {file.rows:,} descriptors the index needs: put it back, or "
            "build the index without it"
        ) from None
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.modified):
        raise UserError(f"{printable_name(file.path)} was changed since the index was built: build it anew")


def _unit(values):
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # what is all 0 becomes NaN
        return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _groups(metadata):
    return [metadata.row_group(place) for place in range(metadata.num_row_groups)]


def _pages(opened, group, column, dtype, path):
    """(values of each page, the place of its first value) of a column in a group of rows."""
    chunk = group.column(column)
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        how = "coded by a dictionary" if chunk.has_dictionary_page else f"compressed ({chunk.compression.lower()})"
        raise UserError(
            f"{path}: descriptors must lie plain in the file, received {how}: mg-keras embed writes such, or pyarrow's "
            "write_table(compression='none', use_dictionary=False)"
        )
    if chunk.statistics is not None and chunk.statistics.null_count:
        raise UserError(f"{path}: a descriptor must be whole or NaN, received a null")
    counts, places, left = [], [], chunk.num_values
    place = chunk.data_page_offset
    while left > 0:
        opened.seek(place)
        header, length = _struct(opened.read(_HEADER), 0)
        # by their numbers in parquet.thrift: type, compressed_page_size, data_page_header and its version 2
        kind, size = header[1], header[3]
        if kind in (0, 3):
            about = header[5 if kind == 0 else 8]
            count, coding = about[1], about[2 if kind == 0 else 4]
            if coding != 0 or (kind == 3 and about[2]):
                received = f"the encoding {coding}" if coding else "a null"
                raise UserError(
                    f"{path}: descriptors must lie plain in the file and be whole or NaN, received {received}: "
                    "mg-keras embed writes such"
                )
            # the levels of repetition come first
            counts.append(count)
            places.append(place + length + size - count * dtype.itemsize)
            left -= count
        place += length + size
    return counts, places


def _struct(data, at):
    """({field number: value}, where it ends) of a struct in Thrift's compact protocol."""
    fields, number = {}, 0
    while head := data[at]:
        at += 1
        kind, more = head & 15, head >> 4
        if more:
            number += more
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data, at, kind):
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind in (9, 10):
        size, item = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _varint(data, at)
        items = []
        for _ in range(size):
            # a boolean in a list takes a byte
            value, at = (data[at] == 1, at + 1) if item in (1, 2) else _value(data, at, item)
            items.append(value)
        return items, at
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"unknown field of type {kind} in a page's header")


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _zigzag(data, at):
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
