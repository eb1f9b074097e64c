"""What lies in shards, and where: made once by reading each of them, and kept in a cache.

With it a photo of a TFRecord file or a tar is a range of bytes: it is read by number, and a stream begins anywhere.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

from mg_keras.data import stores
from mg_keras.data.shards.layouts import LAYOUTS, BrokenShardError
from mg_keras.errors import UserError
from mg_keras.files import BROKEN_ARRAYS, atomic_path, printable_name
from mg_keras.progress import mapped, say

# counts up when an index of an earlier release can't be read or means something else
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Index:
    """Photos in shards, in the order that they lie in.

    Attributes:
        paths: the files.
        shard: int32 [N], number of each photo's file.
        position, length: int64 [N], its bytes there.
        label: int64 [N], as it is written; -1: none.
        text: str [N], name of the class; empty: none.
        names: what to call each photo.
    """

    paths: list
    shard: np.ndarray
    position: np.ndarray
    length: np.ndarray
    label: np.ndarray
    text: np.ndarray
    names: list

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "Index":
        """The photos numbered `rows`, int [M], ascending."""
        columns = {name: getattr(self, name)[rows] for name in ("shard", "position", "length", "label", "text")}
        return Index(self.paths, names=[self.names[row] for row in rows], **columns)

    def read(self, first: int, count: int = 1) -> list[bytes]:
        """The encoded bytes of `count` photos of one shard from number `first` on, by one request.

        Raises:
            OSError: the store does not give them.
        """
        rows = slice(first, first + count)
        path, start = self.paths[self.shard[first]], int(self.position[first])
        starts, lengths = self.position[rows] - start, self.length[rows]
        content = stores.read(path, start, start + int((starts + lengths).max()))
        return [content[begin : begin + size] for begin, size in zip(starts.tolist(), lengths.tolist(), strict=True)]


def open_index(paths: list[str], layout: str, cache: Path) -> Index:
    """The index of shards, from the cache where they have not changed.

    Args:
        paths: files or URLs.
        layout: a key of `LAYOUTS`.
        cache: folder that keeps an index for each shard.

    Raises:
        UserError: a shard can't be read, or is not whole.
    """
    found = mapped(partial(_of_shard, layout=layout, cache=cache), paths, "index of shards", "shards", together=1)
    _tell(paths, found)
    shard = np.repeat(np.arange(len(paths), dtype=np.int32), [len(one["position"]) for one in found])
    numbers = {name: np.concatenate([np.zeros(0, np.int64), *(one[name] for one in found)]) for name in _NUMBERS}
    # a class is called the same a thousand times
    texts = [np.array([sys.intern(value) for value in _unpacked(one, "texts")], object)[one["text"]] for one in found]
    text = np.concatenate([np.zeros(0, object), *texts])
    names = [
        printable_name(f"{os.path.basename(path)}/{name}")
        for path, one in zip(paths, found, strict=True)
        for name in _unpacked(one, "names")
    ]
    return Index(list(paths), shard, text=text, names=names, **numbers)


_NUMBERS = ("position", "length", "label")


def _tell(paths, found):
    """Says how many members of tars are passed over."""
    count = sum(int(one["passed_over"]) for one in found)
    if count:
        path, one = next(pair for pair in zip(paths, found, strict=True) if pair[1]["passed_over"])
        name, reason = one["first_passed_over"].tolist()
        members = "1 member" if count == 1 else f"{count:,} members"
        say(f"passed over in tars: {members}, the first {printable_name(f'{path}#{name}')}: {reason}")


def _of_shard(path, layout, cache):
    """Column -> values of one shard."""
    with stores.as_user_error(f"{path} can't be read"):
        store = stores.store_of(path)
        size, stamp = store.stat(path)
        identity = json.dumps([_VERSION, layout, path if "://" in path else os.path.abspath(path), size, stamp])
        kept = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
        # what a disk has lost of the cache is made again
        with contextlib.suppress(*BROKEN_ARRAYS), np.load(kept) as columns:
            return dict(columns)
        try:
            with store.open(path) as file:
                if file.read(2) == b"\x1f\x8b":
                    raise BrokenShardError(
                        "is compressed: photos are so already, and are read where they lie; unpack it"
                    )
                file.seek(0)
                entries = list(LAYOUTS[layout](file, size))
        except BrokenShardError as error:
            raise UserError(f"{path} {error}") from None
    passed_over = [(entry.name, entry.text) for entry in entries if entry.position < 0]
    entries = [entry for entry in entries if entry.position >= 0]
    columns = {name: np.array([getattr(entry, name) for entry in entries], np.int64) for name in _NUMBERS}
    number_of = {text: number for number, text in enumerate(dict.fromkeys(entry.text for entry in entries))}
    columns["text"] = np.array([number_of[entry.text] for entry in entries], np.int32)
    columns |= _packed("texts", number_of) | _packed("names", [entry.name for entry in entries])
    columns["passed_over"] = np.array(len(passed_over))
    columns["first_passed_over"] = np.array(passed_over[0] if passed_over else ("", ""), np.str_)
    # where nothing can be kept the index is made each time, which is slow, no more
    with contextlib.suppress(OSError), atomic_path(kept) as partial_file:
        np.savez(partial_file, **columns)
    return columns


def _packed(name, strings):
    """Columns of many strings, of the room of their letters: an array of strings takes that of the longest for each."""
    letters = np.frombuffer("".join(strings).encode("utf-8", "surrogatepass"), np.uint8)
    return {name: letters, f"{name}_lengths": np.array([len(string) for string in strings], np.int64)}


def _unpacked(columns, name):
    """The strings that `_packed` has put into `columns`."""
    letters = columns[name].tobytes().decode("utf-8", "surrogatepass")
    ends = np.cumsum(columns[f"{name}_lengths"]).tolist()
    return [letters[start:end] for start, end in zip([0, *ends], ends, strict=False)]
