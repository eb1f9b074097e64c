"""Descriptors in Parquet shards: a folder that grows by whole files, for pyarrow, pandas, DuckDB, Spark or Ray to read.

A row a photo, in the columns

* `id` int64, its place in the list of photos; `uri` string, its path;
* `sha256` string, of the photo's file, in hexadecimal digits; null where it was not read;
* `width`, `height` int32, pixels of the decoded photo, upright; null where they are not known;
* `embedding`, a list of fixed size of float16 or float32; NaN for a photo that could not be used (many readers of
  Parquet know no null among lists of fixed size);
* `class` string and `probability` float32, of the likeliest class; null where there is no classifier;
* `error` string, why the photo could not be used; null for one that could.

The metadata of the schema say under `mg_keras`, as JSON, what the descriptors were made from. A shard is written under
a temporary name and renamed, so that several processes may write into one folder, and what is there is whole.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from mg_keras.errors import UserError, first_line
from mg_keras.files import atomic_path, in_home, printable_name, remove_leftovers

DTYPES = ("float16", "float32")
"""Of the embeddings."""

PHOTOS_A_SHARD = 4096
"""At most: 32 MB of 2048 values in float32."""

_PATTERN = "shard-*.parquet"
KEY = b"mg_keras"
"""Of the metadata of a schema."""

# embeddings don't compress, and the rest is small beside them; checksums tell a page that is damaged
_FORMAT = {"compression": "none", "use_dictionary": ["class", "error"], "write_page_checksum": True}
_BROKEN = (pa.ArrowException, OSError, KeyError, ValueError)


def schema(dimensions: int, dtype: str, made_from: Mapping[str, Any]) -> pa.Schema:
    """The columns of shards.

    Args:
        dimensions: D, values of a descriptor.
        dtype: of `DTYPES`.
        made_from: what decides the descriptors, for JSON: the network, resolution, pooling and so on.

    Raises:
        UserError: another `dtype`.
    """
    if dtype not in DTYPES:
        raise UserError(f"descriptors are written as {' or '.join(DTYPES)}, received {dtype!r}")
    return pa.schema(
        [
            ("id", pa.int64()),
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
            ("embedding", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dimensions)),
            ("class", pa.string()),
            ("probability", pa.float32()),
            ("error", pa.string()),
        ],
        metadata={KEY: json.dumps(dict(made_from))},
    )


def usable_rows(
    columns: pa.Schema,
    ids: np.ndarray,
    uris: Sequence[str],
    embeddings: np.ndarray,
    sizes: np.ndarray | Sequence[tuple[int | None, int | None]] | None = None,
    classes: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
    hashes: Sequence[str | None] | None = None,
) -> pa.Table:
    """The rows of photos that were embedded.

    Args:
        columns: as `schema` makes it.
        ids: int64 [b].
        uris: b paths; bytes of them that are no UTF-8 become escapes.
        embeddings: [b, D].
        sizes: int [b, 2], heights and widths; None among them: not known.
        classes, probabilities: of the likeliest class, b each.
        hashes: SHA-256 of the files, b of them.

    Raises:
        UserError: a value is too large for float16.
    """
    dtype, dimensions = _dtype_and_size(columns)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(embeddings, dtype)
    if np.isinf(values).any() and np.isfinite(embeddings).all():
        raise UserError(f"descriptors hold values up to {np.abs(embeddings).max():g}, beyond float16: take float32")
    return _table(
        columns,
        id=ids,
        uri=[_text(uri) for uri in uris],
        height=None if sizes is None else [height for height, _ in sizes],
        width=None if sizes is None else [width for _, width in sizes],
        embedding=pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dimensions),
        **{"class": classes, "probability": probabilities, "sha256": hashes},
    )


def unusable_rows(
    columns: pa.Schema,
    ids: np.ndarray,
    uris: Sequence[str],
    errors: Sequence[str],
    hashes: Sequence[str | None] | None = None,
) -> pa.Table:
    """The rows of photos that could not be used, with the reason of each."""
    dtype, dimensions = _dtype_and_size(columns)
    missing = pa.FixedSizeListArray.from_arrays(pa.array(np.full(len(ids) * dimensions, np.nan, dtype)), dimensions)
    names = [_text(uri) for uri in uris]
    return _table(columns, id=ids, uri=names, embedding=missing, error=list(errors), sha256=hashes)


def write(folder: str | os.PathLike, rows: pa.Table) -> Path:
    """Adds rows, one or more, as a shard, whole or not at all; safe beside other writers.

    Returns:
        The shard's path.
    """
    rows = rows.sort_by("id")
    path = Path(folder) / f"shard-{rows['id'][0].as_py():012}-{uuid.uuid4().hex[:8]}.parquet"
    with atomic_path(path) as partial:
        parquet.write_table(rows, partial, **_FORMAT)
    return path


def check(folder: str | os.PathLike, made_from: Mapping[str, Any]) -> None:
    """Refuses a folder whose shards were made from something else; one that is not there is fine.

    Raises:
        UserError: such a shard, or another file.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith("."):
            continue
        if not path.match(_PATTERN):
            raise UserError(f"{folder} holds {path.name}, which is no shard of descriptors: choose another folder")
        try:
            found = metadata(path)
        except (pa.ArrowException, OSError):
            # a broken one, which says nothing
            continue
        except (KeyError, ValueError):
            raise UserError(f"{path} is no shard of descriptors: choose another folder") from None
        if different := differences(made_from, found):
            raise UserError(f"{folder} was made from other {different}: remove it or choose another name")


def differences(made_from: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What is not the same in the other, in words; none if it is."""
    # older files do not note it: their network's fingerprint has to do
    other = {"precision": made_from.get("precision"), **other}
    return ", ".join(name for name, value in made_from.items() if other.get(name) != value)


def metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What the descriptors of a shard, or of a joined file, were made from.

    Raises:
        KeyError, ValueError, OSError: it is none.
    """
    return json.loads((parquet.read_schema(path).metadata or {})[KEY])


def found(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The Parquet files of files and folders, in order of name.

    Raises:
        UserError: there is none, or something is no such file.
    """
    files = []
    for path in paths:
        given = in_home(path)
        if given.is_dir():
            here = sorted(file for file in given.rglob("*.parquet") if not file.name.startswith("."))
            if not here:
                raise UserError(
                    f"no Parquet file is in {printable_name(given)}: mg-keras embed --out FOLDER/ makes some"
                )
            files += here
        elif given.suffix == ".parquet" and given.is_file():
            files.append(given)
        else:
            raise UserError(f"--from must be folders or files of Parquet, received {printable_name(given)}")
    files = [Path(os.path.abspath(file)) for file in files]
    if not files:
        raise UserError("--from must be folders or files of Parquet, received none")
    if len(set(files)) < len(files):
        raise UserError(f"{printable_name(max(files, key=files.count))} is given twice")
    return files


def look_at(path: str | os.PathLike) -> tuple[dict[str, Any], int, int]:
    """(what its descriptors were made from, values of a descriptor, rows) of a shard or of a joined file.

    Raises:
        UserError: it can't be read, or is none.
    """
    try:
        footer = _open(path)
        made_from = json.loads((footer.schema_arrow.metadata or {})[KEY])
        return made_from, _dtype_and_size(footer.schema_arrow)[1], footer.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet: {first_line(error)}") from error
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no descriptors of mg-keras embed") from error


def batches(path: str | os.PathLike, rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard or of a joined file, so many at a time; memory holds a group of rows.

    Raises:
        UserError: it can't be read.
    """
    try:
        for group in range(_open(path).num_row_groups):
            # anew for each, as a file that is open keeps what it has read
            yield from _open(path).iter_batches(rows, [group])
    except _BROKEN as error:
        raise UserError(f"{path} can't be read: {first_line(error)}") from error


def counts(path: str | os.PathLike) -> tuple[int, int]:
    """(photos with a descriptor, photos without) of a shard or of a joined file."""
    errors = _read(path, ["error"])["error"]
    return errors.null_count, len(errors) - errors.null_count


def remove_broken(folder: str | os.PathLike) -> list[Path]:
    """Removes the shards that can't be read whole, and what writers that were killed left.

    Only for a folder into which nobody else writes.

    Returns:
        The shards that were removed.

    Raises:
        OSError, MemoryError: the system does not let one be read.
    """
    remove_leftovers(folder, _PATTERN)
    broken = []
    for path in _shards(folder):
        try:
            for _ in _open(path).iter_batches():
                pass
        except _BROKEN as error:
            # what the system refuses, such as the right to read or memory, says nothing of the shard
            if getattr(error, "errno", None) or isinstance(error, MemoryError):
                raise
            path.unlink()
            broken.append(path)
    return broken


def done(folder: str | os.PathLike, count: int) -> np.ndarray:
    """bool [count]: of which photos the shards have a row, those that could not be used among them.

    Raises:
        UserError: a shard can't be read.
    """
    there = np.zeros(count, bool)
    for path in _shards(folder):
        there[ids(path)] = True
    return there


class Unread:
    """Which photos have a row because they could not be read, which may pass: a disk or a store was away.

    Only for a folder into which nobody else writes.

    Args:
        folder: of the shards.
        count: N, photos of the list.

    Attributes:
        photos: bool [N].

    Raises:
        UserError: a shard can't be read.
    """

    def __init__(self, folder: str | os.PathLike, count: int):
        self._paths = _shards(folder)
        # the place of each photo's shard in them
        self._shard_of = np.full(count, -1, np.int32)
        for place, path in enumerate(self._paths):
            rows = _read(path, ["id", "sha256", "error"])
            self._shard_of[rows.filter(_unread(rows))["id"].to_numpy()] = place
        self.photos = self._shard_of >= 0

    def make_room(self, rows: pa.Table) -> pa.Table:
        """Removes the rows of photos that `rows` have again and that could be read now.

        Shards are replaced whole, or removed where nothing is left of one. Until the new rows are written their photos
        have none, so that no photo ever has two.

        Returns:
            What is to be written: `rows` without those of photos that could not be read again, which keep the old ones.

        Raises:
            UserError: a shard can't be read.
        """
        again = self.photos[rows["id"].to_numpy()] & _unread(rows).to_numpy(zero_copy_only=False)
        rows = rows.filter(pa.array(~again))
        photos = rows["id"].to_numpy()
        for place in np.unique(self._shard_of[photos][self.photos[photos]]).tolist():
            path = self._paths[place]
            old = _read(path)
            left = old.filter(pa.array(~np.isin(old["id"].to_numpy(), photos)))
            if len(left):
                with atomic_path(path) as partial:
                    parquet.write_table(left, partial, **_FORMAT)
            else:
                path.unlink()
        return rows


def ids(path: str | os.PathLike) -> np.ndarray:
    """int64, the photos of the rows of a shard or of a joined file.

    Raises:
        UserError: it can't be read.
    """
    return _read(path, ["id"])["id"].to_numpy()


def read(folder: str | os.PathLike, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of all shards in the order of `id`, each photo once, a few thousand at a time.

    Memory holds the shards whose photos lie among each other's: of a writer on one machine, a few.

    Args:
        folder: of the shards.
        columns: names of those to read, `id` besides; None: all.

    Raises:
        UserError: a shard can't be read.
    """
    columns = None if columns is None else ["id", *(name for name in columns if name != "id")]
    shards = sorted((_first_id(path), path) for path in _shards(folder))
    waiting = None
    for place, (_, path) in enumerate(shards):
        rows = _read(path, columns)
        waiting = rows if waiting is None else pa.concat_tables([waiting, rows])
        waiting = waiting.sort_by("id").combine_chunks()
        ids = waiting["id"].to_numpy()
        # two writers may have had the same photo
        waiting = waiting.filter(pa.array(np.diff(ids, prepend=-1) > 0))
        ids = np.unique(ids)
        ready = len(ids) if place + 1 == len(shards) else int(np.searchsorted(ids, shards[place + 1][0]))
        if ready:
            yield waiting.slice(0, ready)
        waiting = waiting.slice(ready)


def join(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes all shards into one file, in the order of `id`, whole or not at all.

    Args:
        folder: of the shards, one at least.
        path: a name in `.parquet`, for all of them; or in `.npy`, for the embeddings [N, D] of the usable ones alone.

    Raises:
        UserError: a shard can't be read.
    """
    with atomic_path(path) as whole:
        (_join_embeddings if Path(path).suffix == ".npy" else _join_tables)(folder, whole)


def _join_embeddings(folder, path):
    count = sum(rows["error"].null_count for rows in read(folder, ["error"]))
    dtype, dimensions = _dtype_and_size(_open(_shards(folder)[0]).schema_arrow)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, dimensions)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in read(folder, ["embedding", "error"]):
            usable = rows["embedding"].filter(rows["error"].is_null())
            for chunk in usable.chunks:
                file.write(np.asarray(chunk.flatten(), dtype).tobytes())


def _join_tables(folder, path):
    with parquet.ParquetWriter(path, _open(_shards(folder)[0]).schema_arrow, **_FORMAT) as file:
        group = []
        for rows in read(folder):
            group.append(rows)
            # groups of rows like those of full shards, however small these are
            if sum(map(len, group)) >= PHOTOS_A_SHARD:
                file.write_table(pa.concat_tables(group))
                group = []
        if group:
            file.write_table(pa.concat_tables(group))


def remove(folder: str | os.PathLike) -> None:
    """Removes the shards, and the folder if nothing else is in it."""
    for path in _shards(folder):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        Path(folder).rmdir()


def _unread(rows):
    """bool [n]: of which rows the photo could not be read; what was read has a hash."""
    failed = pc.fill_null(pc.starts_with(rows["error"], "could not be read"), False)
    return pc.and_(failed, pc.is_null(rows["sha256"])).combine_chunks()


def _shards(folder):
    return sorted(Path(folder).glob(_PATTERN))


def _open(path):
    return parquet.ParquetFile(path, page_checksum_verification=True)


def _read(path, columns=None):
    try:
        return _open(path).read(columns)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _first_id(path):
    try:
        # the rows are in order
        return _open(path).metadata.row_group(0).column(0).statistics.min
    except (*_BROKEN, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return UserError(f"{path} can't be read ({first_line(error)}): remove it, and the same command makes it anew")


def _table(columns, **values):
    count = len(values["id"])
    arrays = [
        pa.nulls(count, field.type) if (found := values.get(field.name)) is None else _array(found, field.type)
        for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def _array(values, kind):
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _dtype_and_size(columns):
    """(NumPy's dtype, D) of the column of embeddings."""
    kind = columns.field("embedding").type
    return np.dtype(f"<f{kind.value_type.bit_width // 8}"), kind.list_size


def _text(uri):
    return os.fsencode(uri).decode(errors="backslashreplace")
