"""What is to be described: a list of photos that stands still, in pieces of which each becomes one shard."""

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from mg_keras.data.photo_lists import Photo
from mg_keras.errors import UserError

_COLUMNS = pa.schema(
    [("uri", pa.string()), ("path", pa.binary()), ("position", pa.int64()), ("length", pa.int64())],
)
_ROWS_A_BATCH = 1 << 16


class Piece(NamedTuple):
    """Photos that are described together.

    Attributes:
        ids: int64 [n], increasing: their places in the list.
        photos: n of them.
    """

    ids: np.ndarray
    photos: list[Photo]


class Work:
    """A list of photos, frozen: in a file without a name that is mapped into memory, so that memory holds none of it.

    Use as a context manager.

    Args:
        photos: read once.
        folder: of the file, which has no name there and so goes when the process does; 100 bytes a photo or so.

    Attributes:
        digest: equal for lists of the same photos, as far as listing them tells.

    Raises:
        UserError: a photo is named twice, or there is none.
    """

    def __init__(self, photos: Iterable[Photo], folder: str | os.PathLike):
        digest, hashes = hashlib.sha256(), []
        with tempfile.TemporaryFile(dir=folder) as file:
            with pa.ipc.new_file(file, _COLUMNS) as writer:
                for rows in _batches(photos):
                    digest.update(repr([(photo.uri, photo.stamp) for photo in rows]).encode())
                    hashes.append(np.array([_short_hash(photo.uri) for photo in rows], np.uint64))
                    writer.write_batch(_record_batch(rows))
            file.flush()
            # holds the file when it is closed
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        # a batch is a view of the file, no more
        self._rows = pa.Table.from_batches([reader.get_batch(n) for n in range(reader.num_record_batches)], _COLUMNS)
        self.digest = digest.hexdigest()
        try:
            if not len(self):
                raise UserError("--photos names no photo")
            self._check_once(np.concatenate(hashes))
        except UserError:
            self.close()
            raise

    def __len__(self) -> int:
        return self._rows.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._rows = _COLUMNS.empty_table()

    def uris(self) -> Iterator[str]:
        """What rows call the photos, in their order."""
        for chunk in self._rows["uri"].chunks:
            yield from chunk.to_pylist()

    def pieces(self, done: np.ndarray, size: int) -> Iterator[Piece]:
        """The photos that are not done, those of a stretch of `size` together: the same ones whenever it is asked.

        Args:
            done: bool [N].
            size: photos of a piece at most.
        """
        for start in range(0, len(self), size):
            left = start + np.flatnonzero(~done[start : start + size])
            if len(left):
                yield Piece(left, self._photos(left))

    def _photos(self, ids):
        start = int(ids[0])
        rows = self._rows.slice(start, int(ids[-1]) + 1 - start).take(pa.array(ids - start)).to_pydict()
        return [
            Photo(uri, uri if path is None else os.fsdecode(path), position, length)
            for uri, path, position, length in zip(*rows.values(), strict=True)
        ]

    def _check_once(self, hashes):
        order = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(np.diff(hashes[order]) == 0)
        # two names may have one hash, though of a hundred million they hardly do
        for place in alike.tolist():
            one, other = (self._rows["uri"][int(order[each])].as_py() for each in (place, place + 1))
            if one == other:
                raise UserError(f"--photos names {one} twice: each photo must be named once")


def _short_hash(uri):
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "little")


def _batches(photos):
    rows = []
    for photo in photos:
        rows.append(photo)
        if len(rows) == _ROWS_A_BATCH:
            yield rows
            rows = []
    if rows:
        yield rows


def _record_batch(rows):
    columns = [
        [photo.uri for photo in rows],
        [None if photo.path == photo.uri else os.fsencode(photo.path) for photo in rows],
        [photo.position for photo in rows],
        [photo.length for photo in rows],
    ]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, _COLUMNS, strict=True)], schema=_COLUMNS
    )
