"""Descriptors from Parquet into a collection: what is there already is not sent again."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mg_keras.databases.collection import PAYLOAD, Away, Collection, Photos, digest_of, key_of
from mg_keras.embedding import shards
from mg_keras.embedding.settings import DECIDES
from mg_keras.errors import UserError
from mg_keras.progress import Progress, announce, mapped

BATCH = 256
"""Photos of a request: 11 MB of 2048 values in JSON, where servers take 32 MB."""

# seconds to wait for a database that is away, one after the other
_PATIENCE = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What came of a push.

    Attributes:
        sent: photos that were added or replaced.
        there: photos that the collection had already.
        unusable: rows without a descriptor, which were left out.
        count: photos in the collection now.
    """

    sent: int
    there: int
    unusable: int
    count: int


def push(
    paths: Sequence[str | os.PathLike], collection: Collection, batch: int = BATCH, label: str | None = None
) -> Pushed:
    """Sends the descriptors of Parquet files into a collection, which is made where there is none.

    A photo's key comes from its uri, and a photo that the collection has with the same descriptor and facts is not sent
    again: a push that was killed goes on where it was, a second one changes nothing, and several may push different
    files at once. Photos that are in no file stay in the collection. Memory holds a group of rows of one file.

    Args:
        paths: files that `mg-keras embed` wrote, or folders of its shards.
        collection: of `mg_keras.databases.open_collection`.
        batch: photos of a request, at least 1.
        label: what to call it while it runs; None shows nothing.

    Raises:
        UserError: a file can't be read, they are of several models, the collection holds descriptors of another model,
            or was made by others; or the database refuses something, or is away for more than half a minute.
    """
    files = shards.found(paths)
    about = mapped(shards.look_at, files, "looking at shards")
    description = _description(files, about)
    _check_same(collection, description)
    total, sent, there, unusable = sum(rows for _, _, rows in about), 0, 0, 0
    with Progress(label or "", total if label else 0, "photos") as progress:
        for rows in (rows for file in files for rows in shards.batches(file, batch)):
            photos = _photos(rows)
            new = _send(photos, collection)
            sent, there, unusable = sent + new, there + len(photos) - new, unusable + len(rows) - len(photos)
            if label:
                progress.skip(len(rows) - new)
                progress.advance(new, lambda sent=sent, there=there: f"{sent:,} sent, {there:,} there already")
    return Pushed(sent, there, unusable, patiently(collection.count))


def patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` gives, called again some time after where the database is away for a moment.

    Raises:
        Away: it is still away after half a minute of waiting.
    """
    for seconds in _PATIENCE:
        try:
            return ask()
        except Away as error:
            announce(f"{error}; trying again in {seconds} s")
            time.sleep(seconds)
    try:
        return ask()
    except Away as error:
        raise Away(f"{error}; the same command goes on where it was") from error


def _description(files, about):
    """What is kept with the collection: of all files, as they must be of one model."""
    (first, dimensions, _), *_ = about
    for file, (made_from, size, _) in zip(files, about, strict=True):
        if size != dimensions:
            raise UserError(f"{file} has descriptors of {size} values, {files[0]} of {dimensions}: push one at a time")
        if different := shards.differences({name: first.get(name) for name in DECIDES}, made_from):
            raise UserError(f"{file} was made from other {different} than {files[0]}: push one at a time")
    return {"dimensions": dimensions, **{name: first.get(name) for name in DECIDES}}


def _check_same(collection, description):
    """Makes the collection, or sees that it is for the same descriptors."""
    where, found = collection.address, patiently(collection.description)
    if found is None:
        patiently(lambda: collection.create(description))
        found = patiently(collection.description)
    if not found:
        raise UserError(f"{where} was not made by mg-keras push: choose another collection")
    if found.get("dimensions") != description["dimensions"]:
        raise UserError(
            f"{where} holds descriptors of {found.get('dimensions')} values, received {description['dimensions']}: "
            "choose another collection"
        )
    if different := shards.differences(description, found):
        raise UserError(f"{where} holds descriptors made from other {different}: choose another collection")


def _photos(rows: pa.RecordBatch) -> Photos:
    """Those of the rows that have a descriptor."""
    embedding = rows.column("embedding")
    values = np.asarray(embedding.flatten(), np.float32).reshape(len(rows), embedding.type.list_size)
    norms = np.linalg.norm(values, axis=1)
    usable = np.asarray(rows.column("error").is_null()) & np.isfinite(norms) & (norms > 0)
    units = values[usable] / norms[usable, None]
    columns = {name: rows.column(name).filter(pa.array(usable)).to_pylist() for name in PAYLOAD}
    payloads = [dict(zip(PAYLOAD, facts, strict=True)) for facts in zip(*columns.values(), strict=True)]
    for unit, payload in zip(units, payloads, strict=True):
        payload["digest"] = digest_of(unit, payload)
    return Photos([key_of(uri) for uri in columns["uri"]], units, payloads)


def _send(photos: Photos, collection: Collection) -> int:
    """Sends those that the collection doesn't have as they are, of one key the last one; returns how many."""
    if not len(photos):
        return 0
    known = patiently(lambda: collection.digests(photos.keys))
    last = {key: row for row, key in enumerate(photos.keys)}
    rows = [row for key, row in last.items() if known.get(key) != photos.payloads[row]["digest"]]
    if rows:
        patiently(lambda: collection.put(photos.at(rows)))
    return len(rows)
