"""From a list of photos to files of descriptors, by any engine, in bounded memory; what is there is not made again."""

import contextlib
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mg_keras.data.photo_lists import Photo
from mg_keras.embedding import shards
from mg_keras.embedding.work import Work
from mg_keras.engines.contract import Engine
from mg_keras.errors import UserError
from mg_keras.files import (
    atomic_write_json,
    atomic_write_text,
    check_writable,
    printable_name,
    remove_leftovers,
    try_lock,
)
from mg_keras.progress import Progress

# a list is cut into so many shards at least, of so many photos at least
_SHARDS, _FEWEST = 32, 256
# what lies beside an array
_LISTS = (".txt", ".unusable.txt", ".json")


@dataclasses.dataclass(frozen=True)
class Written:
    """What files of descriptors hold.

    Attributes:
        described: photos with a descriptor.
        unusable: photos that could not be used.
    """

    described: int
    unusable: int


def embed_to_files(
    engine: Engine,
    photos: Iterable[Photo],
    path: str | os.PathLike,
    label: str | None = None,
    dtype: str | None = None,
    photos_a_shard: int | None = None,
) -> Written:
    """Describes photos into files, in bounded memory, and goes on where it was if it is stopped.

    The list is cut into stretches of `photos_a_shard`, each of which becomes one Parquet shard
    (`mg_keras.embedding.shards`). After Ctrl-C, a crash or `kill -9` the same call, by any engine of the same network,
    describes the photos that no shard holds, and those again that could not be read: a disk or a store may have been
    away. A shard that can't be read is made anew. By what `path` is, the result is

    * `FOLDER/`, a folder (or a name without a suffix): the shards;
    * `X.parquet`: one file of all, a row a photo in their order, the unusable ones with their `error`;
    * `X.npy`: [N, D] of the N usable photos; beside it `X.txt`: these photos, a line a row; `X.unusable.txt`: those
      that could not be used and what else was passed over, `name<TAB>reason` (only if there are any); `X.json`: what
      all this was made from.

    Files are written whole or not at all, the last two kinds from the shards in `X.npy.shards`, which are removed then:
    the disk must hold the descriptors twice. One that is there whole is left, with the photos that could not be read:
    remove it to describe all again.

    Args:
        engine: `Engine`; it is started only if there is something to do.
        photos: `mg_keras.data.photo_lists.PhotoList`, or other `Photo`s; read once.
        path: as above. What is there already and was made from the same is left.
        label: what to call it while it runs; None shows nothing.
        dtype: `"float32"` or `"float16"`; None: float32 for `X.npy`, else float16.
        photos_a_shard: photos of a shard at most; None: by the number of photos, from 256 to 4096.

    Raises:
        UserError: `path` is a name of another kind, holds something else or what was made from something else, or can't
            be written; what shall lie beside it is there already and is of other photos, or is itself the list that is
            read; another process is writing it; the list can't be read; no photo can be used; or what the engine
            raises.
    """
    # a Path has lost the slash that says what it is to be
    folder = os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()
    path = Path(path)
    kind = "" if folder else path.suffix
    if kind not in (".npy", ".parquet", ""):
        raise UserError(f"descriptors are written to a name in .npy or .parquet or to a folder, received {path}")
    dtype = dtype or ("float32" if kind == ".npy" else "float16")
    try:
        # nothing is made before it is known that all can be
        with Work(photos, check_writable(path.parent if kind else path)) as work:
            made_from = {"photos": work.digest, **engine.made_from, "dtype": dtype}
            columns = shards.schema(engine.dimensions, dtype, made_from)
            place = path.with_name(f"{path.name}.shards") if kind else path
            if kind and path.exists():
                written = _check_complete(path, made_from)
                # of a process that was killed while it removed them
                shards.remove(place)
                return written
            shards.check(place, made_from)
            if kind == ".npy":
                _check_lists(path, work.digest, getattr(photos, "what", ()))
            place.mkdir(parents=True, exist_ok=True)
            with _locked(place):
                if kind:
                    _remove_leftovers(path)
                _fill(engine, work, place, columns, label, photos_a_shard)
                described = sum(rows["error"].null_count for rows in shards.read(place, ["error"]))
                written = Written(described, len(work) - described)
                if not described:
                    first = f"{next(work.uris())}: {next(_errors(place))}"
                    raise UserError(f"none of the {len(work):,} photos can be used; the first, {first}")
                if kind == ".npy":
                    _write_lists(path, work, _errors(place), getattr(photos, "passed_over", ()), made_from, written)
                if kind:
                    shards.join(place, path)
                    shards.remove(place)
            return written
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error


def _fill(engine, work, place, columns, label, size):
    """Writes the shards that are missing."""
    for broken in shards.remove_broken(place):
        if label:
            print(f"{broken} was broken: its photos are embedded anew", file=sys.stderr, flush=True)
    unread = shards.Unread(place, len(work))
    done = shards.done(place, len(work)) & ~unread.photos
    there = int(done.sum())
    if there == len(work):
        return
    if unread.photos.any() and label:
        again = f"{unread.photos.sum():,} photos could not be read before: they are tried again"
        print(again, file=sys.stderr, flush=True)
    if there and label:
        print(f"going on after {there:,} of {len(work):,} photos", file=sys.stderr, flush=True)
    size = size or min(shards.PHOTOS_A_SHARD, max(_FEWEST, len(work) // _SHARDS))
    engine.start()
    with Progress(label or "", len(work) if label else 0, "photos", start=there if label else 0) as progress:
        count = progress.advance if label else lambda photos: None
        # closed at once where something is wrong, not when it is forgotten
        with contextlib.closing(engine.rows(work.pieces(done, size), columns, count)) as tables:
            for rows in tables:
                if len(rows := unread.make_room(rows)):
                    shards.write(place, rows)


def _errors(place):
    """Why each photo can't be used, in order; None of those that can."""
    return (error for rows in shards.read(place, ["error"]) for error in rows["error"].to_pylist())


def _remove_leftovers(path):
    """What a process that was killed while it wrote the last files left of them."""
    for suffix in (".npy", *_LISTS) if path.suffix == ".npy" else (path.suffix,):
        remove_leftovers(path.parent, glob.escape(path.with_suffix(suffix).name))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing into a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise UserError(f"another process is writing {folder}: wait for it, or choose another name")
        yield
    finally:
        os.close(descriptor)


def _check_complete(path: Path, made_from: dict[str, Any]) -> Written:
    """What the array or the table at `path` holds, if it was made from the same."""
    try:
        if path.suffix == ".npy":
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            different, counts = (
                shards.differences(made_from, about["made_from"]),
                (about["described"], about["unusable"]),
            )
        else:
            different, counts = shards.differences(made_from, shards.metadata(path)), shards.counts(path)
    except (OSError, ValueError, KeyError):
        different = "photos, or by another program"
    if not different and (path.suffix != ".npy" or path.with_suffix(".txt").is_file()):
        return Written(*counts)
    reason = f"was made from other {different}" if different else f"its list {path.with_suffix('.txt')} is gone"
    raise UserError(f"{path} exists already and {reason}: remove it or choose another name")


def _check_lists(path, digest, what):
    """Refuses files beside an array that would be replaced, but for those that a call for the same photos left."""
    there = [found for suffix in _LISTS if os.path.lexists(found := path.with_suffix(suffix))]
    # globs and URLs are no files here
    read = [each for each in map(os.path.expanduser, what) if os.path.exists(each)]
    for found in filter(os.path.exists, there):
        if any(os.path.samefile(found, each) for each in read):
            raise UserError(f"{found} is among --photos and would be replaced: choose another name than {path}")
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        ours = about["made_from"]["photos"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if there and not ours:
        raise UserError(f"{there[0]} is there already and would be replaced: remove it or choose another name")


def _write_lists(path, work, errors, passed_over, made_from, written):
    """What lies beside an array: written before it, so that where the array is, all is."""
    # a name with a line break in it would put the list out of step with the array: `uris` are lines of text
    usable, unusable = [], []
    for name, error in zip(work.uris(), errors, strict=True):
        if error is None:
            usable.append(name)
        else:
            unusable.append((name, printable_name(error)))
    # first what says whose the others are
    atomic_write_json(path.with_suffix(".json"), {**dataclasses.asdict(written), "made_from": made_from})
    atomic_write_text(path.with_suffix(".txt"), "".join(f"{name}\n" for name in usable))
    text = "".join(f"{name}\t{reason}\n" for name, reason in [*unusable, *passed_over])
    if text:
        atomic_write_text(path.with_suffix(".unusable.txt"), text)
    else:
        path.with_suffix(".unusable.txt").unlink(missing_ok=True)
