"""The same photo twice where it does harm: in training and validation, in two classes, or where copies are searched."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from mg_keras.data.images import UNREADABLE
from mg_keras.data.sources.contract import Source, Split
from mg_keras.progress import mapped

# at the middle of a file: at its beginning the photos of one camera are alike
_PART_BYTES = 4096
_BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Leaks:
    """Photos that are equal byte for byte.

    Attributes:
        in_training: lists of names, a validation photo first and then those of training that equal it.
        in_classes: lists of the names of equal photos that are in two classes or more.
        validation_photos, class_photos: how many photos that are, in validation and in all.
    """

    in_training: list
    in_classes: list
    validation_photos: int
    class_photos: int

    def __bool__(self):
        return bool(self.in_training or self.in_classes)

    def lines(self, listed_in: str | os.PathLike) -> Iterator[str]:
        """A line of each kind there is, which says how many they are and names the first few."""
        if self.in_training:
            yield (
                f"warning: {_photos(self.validation_photos)} in validation and, the same byte for byte, in training: "
                f"{_some(self.in_training)} (all in {listed_in})"
            )
        if self.in_classes:
            yield (
                f"warning: {_photos(self.class_photos)} in two classes, the same byte for byte: "
                f"{_some(self.in_classes)} (all in {listed_in})"
            )

    def text(self) -> str:
        """All of them, a line each: what it is, and the names, between tabs."""
        rows = [("training and validation", group) for group in self.in_training]
        rows += [("two classes", group) for group in self.in_classes]
        return "".join("\t".join([what, *names]) + "\n" for what, names in rows)


def find_leaks(source: Source) -> Leaks:
    """The photos of a source that are the same in training and validation, or in two classes, as `Leaks`.

    Few are read for it: those of one size alone can be equal, of these a part is compared, and of what is left all. Of
    photos that are not files of their own, and of those that can't be read, nothing is known.
    """
    parts = [split for split in (source.train, source.val) if split.files]
    files = [file for split in parts for file in split.files]
    names = [name for split in parts for name in split.names]
    labels = np.concatenate([split.labels for split in parts]) if parts else np.zeros(0, np.int32)
    held_out = np.concatenate([np.full(len(split), split is source.val) for split in parts]) if parts else []

    def is_leak(rows):
        return len(rows) > 1 and (len(set(labels[rows])) > 1 or len(set(held_out[rows])) > 1)

    groups = _equal_files(files, is_leak)
    both = [group for group in groups if len(set(held_out[group])) > 1]
    classes = [group for group in groups if len(set(labels[group])) > 1]
    return Leaks(
        [[names[row] for row in sorted(group, key=lambda row: not held_out[row])] for group in both],
        [[names[row] for row in group] for group in classes],
        sum(int(held_out[group].sum()) for group in both),
        sum(map(len, classes)),
    )


def equal_photos(splits: Sequence[Split]) -> list[np.ndarray]:
    """Groups of photos that are equal byte for byte: int64 numbers, of two photos at least, counted through the splits.

    Of files few are read for it, as `find_leaks` does. Where photos of a split are not files of their own, all photos
    are read once. One that can't be read equals none.
    """
    if all(split.files is not None for split in splits):
        return _equal_files([file for split in splits for file in split.files], lambda rows: len(rows) > 1)
    digests = []
    for split in splits:
        digests += mapped(functools.partial(_digest, split), range(len(split)), "looking for equal photos", "photos")
    return _divided([list(range(len(digests)))], digests, lambda rows: len(rows) > 1)


def _equal_files(files, is_wanted):
    """Groups int64 [n] of the numbers of equal files, those that `is_wanted`; no part of another is wanted."""
    everything = list(range(len(files)))
    groups = [everything] if is_wanted(everything) else []
    for key, what in ((_size, "sizes"), (_part, "parts"), (_whole, "copies")):
        rows = [row for group in groups for row in group]
        keys = mapped(key, [files[row] for row in rows], f"looking for copies of photos: {what}", "photos")
        groups = _divided(groups, keys, is_wanted)
    return groups


def _divided(groups, keys, is_wanted):
    """Groups divided by the keys of their members, which come in the same order; None equals nothing."""
    keys, divided = iter(keys), {}
    for number, group in enumerate(groups):
        for row in group:
            divided.setdefault((number, next(keys)), []).append(row)
    groups = [np.array(group) for (_, key), group in divided.items() if key is not None]
    return [group for group in groups if is_wanted(group)]


def _digest(split, row):
    try:
        contents = split.read(tf.constant(row, tf.int64)).numpy()
    except UNREADABLE:
        return None
    return hashlib.sha256(contents).digest() if contents else None


def _size(path):
    try:
        # an empty file is no photo
        return os.stat(path).st_size or None
    except OSError:
        return None


def _part(path):
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(max(0, (os.fstat(file.fileno()).st_size - _PART_BYTES) // 2))
            return hashlib.blake2b(file.read(_PART_BYTES), digest_size=16).digest()
    except OSError:
        return None


def _whole(path):
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def _photos(count):
    return "1 photo is" if count == 1 else f"{count:,} photos are"


def _some(groups):
    shown = ", ".join(" = ".join(group[:2]) for group in groups[:3])
    return shown if len(groups) <= 3 else f"{shown}, ..."
