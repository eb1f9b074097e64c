"""Descriptors as a caller has them at hand: an array, a file in `.npy`, or Parquet."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyarrow import ArrowException, compute, parquet

from mg_keras.data.photo_lists import NAME_COLUMNS
from mg_keras.embedding import shards
from mg_keras.embedding.settings import DECIDES
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name

_EMBEDDING = ("embedding", "descriptor")


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """Descriptors with names.

    Attributes:
        values: [N, D], perhaps mapped into memory; a row of NaN stands for a photo that could not be used.
        names: N str.
        what: what to call them in messages.
    """

    values: np.ndarray
    names: Sequence[str]
    what: str


def nameless(row: int) -> str:
    """What a descriptor is called that has no name."""
    return f"row {row}"


def descriptors_of(what: Any, names: Sequence[str] | None) -> Descriptors | None:
    """What is given, as descriptors with names; None where it is something else.

    Args:
        what: an array [N, D], a file in `.npy`, a file in `.parquet`, or a folder of nothing but such.
        names: N str; None: those that lie beside it or in it, else `row 0` and so on.

    Raises:
        UserError: it can't be read, or names don't fit.
    """
    if isinstance(what, str | os.PathLike):
        path = in_home(what)
        if path.suffix == ".npy" and path.is_file():
            values, found = _of_npy(path)
        elif files := _parquet_files(path):
            values, found = _of_parquet(files, path)
        else:
            return None
        return _checked(values, found if names is None else names, printable_name(path))
    if getattr(what, "ndim", None) == 2:
        return _checked(np.asarray(what), names, "the array")
    return None


def columns_of(schema: Any, path: str | os.PathLike) -> tuple[str, str]:
    """The columns of descriptors and of names in a schema of pyarrow.

    Raises:
        UserError: there are none.
    """
    embedding, name = (
        next((each for each in known if each in schema.names), None) for known in (_EMBEDDING, NAME_COLUMNS)
    )
    if embedding is None or name is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}, where one of {', '.join(_EMBEDDING)} and one of "
            f"{', '.join(NAME_COLUMNS)} were expected"
        )
    return embedding, name


def check_one_model(
    first: str | os.PathLike,
    of_first: Mapping[str, Any] | None,
    file: str | os.PathLike,
    of_file: Mapping[str, Any] | None,
) -> None:
    """Refuses descriptors of two models, as far as their files say it.

    Args:
        first, file: two files of Parquet.
        of_first, of_file: what each says that its descriptors were made from; None: nothing.

    Raises:
        UserError: they are of two models.
    """
    if of_first is None or of_file is None:
        return
    ours, theirs = ({name: each.get(name) for name in DECIDES} for each in (of_first, of_file))
    if different := shards.differences(ours, theirs):
        raise UserError(
            f"all files must be of one model, received other {different} in {printable_name(file)} than in "
            f"{printable_name(first)}"
        )


def check_once(names: Sequence[str], what: str) -> None:
    """Refuses a name that is there twice: one photo would take the other's place.

    Raises:
        UserError: which names it.
    """
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise UserError(f"{what} has the name {printable_name(str(twice))} twice: each must have its own")


def _checked(values, names, what):
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind != "f":
        raise UserError(
            f"{what} holds {values.dtype} {list(values.shape)}, where floats [photos, values] were expected"
        )
    names = [nameless(row) for row in range(len(values))] if names is None else list(names)
    if len(names) != len(values):
        raise UserError(f"{what} has {len(values):,} descriptors, where there are {len(names):,} names")
    check_once(names, what)
    return Descriptors(values, names, what)


def _of_npy(path):
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} can't be read as .npy: {error}") from error
    listed = path.with_suffix(".txt")
    if listed.is_file() and values.ndim:
        try:
            names = listed.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{printable_name(listed)} can't be read as a list of photos: {error}") from error
        if len(names) == len(values):
            return values, names
    return values, None


def _parquet_files(path):
    if path.suffix == ".parquet" and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    return files if all(file.suffix == ".parquet" for file in files) else []


def _of_parquet(files, path):
    """Photos in the order of the files, each once; those without a descriptor have NaN."""
    try:
        schemas = [parquet.read_schema(file) for file in files]
        embedding, name = columns_of(schemas[0], path)
        telling = [file for file, each in zip(files, schemas, strict=True) if shards.KEY in (each.metadata or {})]
        told = [(file, shards.metadata(file)) for file in telling]
        for each in told[1:]:
            check_one_model(*told[0], *each)
        seen, found, parts, width = set(), [], [], 0
        for file in files:
            for batch in parquet.ParquetFile(file).iter_batches(columns=[embedding, name]):
                listed = [str(each) for each in batch.column(name).to_pylist()]
                # two writers may have had the same photo
                kept = [place for place, each in enumerate(listed) if not (each in seen or seen.add(each))]
                column, there = batch.column(embedding), np.asarray(batch.column(embedding).is_valid())
                column = column.drop_null()
                flat, sizes = np.asarray(column.flatten()), np.unique(compute.list_value_length(column))
                width = width or int(max(sizes, default=0))
                if other := [size for size in sizes if size != width]:
                    raise UserError(
                        f"all descriptors must be of one size, received {width} values and {other[0]} in "
                        f"{printable_name(file)}"
                    )
                values = np.full((len(listed), width), np.nan, flat.dtype)
                values[there] = flat.reshape(-1, width) if width else 0
                parts.append(values[kept])
                found += [listed[place] for place in kept]
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as Parquet: {str(error).splitlines()[0]}") from error
    parts = [part if part.shape[1] == width else np.full((len(part), width), np.nan, part.dtype) for part in parts]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float16), found
