"""`tfrecord:PATTERN` and `webdataset:PATTERN`: shards, local or in an object store, read in parallel for training.

PATTERN is a folder, or files with `*`, `?`, `[0-9]`, `{000..146}` and `{a,b}`; several are separated by commas. Each is
a path, or a URL that fsspec or TensorFlow reads. Which shards are for validation says their name, or their folder's:
one word of it is `val`, `valid` or `validation`, or else `test`. Without such the photos are divided class by class.
"""

import itertools
import os
import re
from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from mg_keras.data.patterns import expand_braces
from mg_keras.data.shards import Index, Stream, open_index
from mg_keras.data.sources.contract import Source, Split, SplitOptions, cache_folder, divide, usable
from mg_keras.data.stores import as_user_error, store_of
from mg_keras.data.stores.graph import in_graph
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.progress import say

# words in the names of shards, the better choice first
_HELD_OUT = ({"val", "valid", "validation"}, {"test"})
_OF = re.compile(r"(.*)-(\d{3,})-of-(\d{3,})(.*)")
# what a shard is called, where a folder is named
_SHARDS = {
    "tfrecord": re.compile(r".*(\.tfrec(ord)?s?\b.*|-\d{3,}-of-\d{3,})", re.IGNORECASE),
    "webdataset": re.compile(r".*\.tar", re.IGNORECASE),
}
# a list of class names may lie beside the shards
_CLASS_LISTS = ("classes.txt", "classnames.txt")
_MOST_CLASSES = 100_000


def open_tfrecord(argument: str, options: SplitOptions, resolution: int, data_dir: str | os.PathLike | None) -> Source:
    """TFRecord files of `tf.train.Example`s with `image/encoded` and `image/class/label`, or `image` and `label`.

    Labels count from 1, as ImageNet's do, or from 0: by the lowest one, and with a list of classes by the highest.
    Classes are called by `image/class/synset`, or else `image/class/text`.
    """
    del resolution
    return _open("tfrecord", argument, options, data_dir)


def open_webdataset(
    argument: str, options: SplitOptions, resolution: int, data_dir: str | os.PathLike | None
) -> Source:
    """WebDataset tars: photos, and for each a label of the same name: `.cls`, `.json` or `.txt`, a number or a name."""
    del resolution
    return _open("webdataset", argument, options, data_dir)


def _open(layout, argument, options, data_dir):
    spec = f"{layout}:{argument}"
    train_paths, val_paths = by_name(find_shards(argument, layout))
    if not train_paths:
        raise UserError(f"{spec} has no shard for training, only such as {val_paths[0]}")
    train, val = (open_index(paths, layout, cache_folder(data_dir) / "shards") for paths in (train_paths, val_paths))
    if not ((train.length > 0) & ((train.label >= 0) | (train.text != ""))).any():
        raise UserError(f"{spec}: no photo for training has a label; {_EXPECTED[layout]}")
    names, (train_labels, val_labels) = _classes(train, val, spec, _class_list(train_paths[0]))
    train, train_labels = _labelled(train, train_labels, f"{spec}: training")
    if val_paths:
        val, val_labels = _labelled(val, val_labels, f"{spec}: validation")
    else:
        rows = [divide(name, list(np.flatnonzero(train_labels == i)), options) for i, name in enumerate(names)]
        kept, held_out = (np.array(sorted(row for pair in rows for row in pair[part]), np.int64) for part in (0, 1))
        val, val_labels = train.take(held_out), train_labels[held_out]
        train, train_labels = train.take(kept), train_labels[kept]
    source = Source(f"{layout} {argument}", names, shard_split(train, train_labels), shard_split(val, val_labels))
    return usable(source, spec)


_EXPECTED = {
    "tfrecord": "expected the features image/encoded and image/class/label, or image and label",
    "webdataset": "expected photos (.jpg, .png, .webp) and for each a .cls, .json or .txt of the same name",
}


def shard_split(index: Index, labels: np.ndarray) -> Split:
    """Photos of shards as a `Split`: by number a request for each, as a stream many with one.

    Args:
        index: `Index`.
        labels: int [N].
    """
    return Split(index.names, in_graph(lambda row: index.read(row)[0]), lambda: labels, stream=Stream(index))


# --- which files ---


def find_shards(argument: str, layout: str) -> list[str]:
    """The files that a pattern means, in order of name.

    Raises:
        UserError: there are none, one that is named is not there, or a folder lacks some of a numbered set.
    """
    found = set()
    # a file's name may hold anything
    for pattern in [argument] if _is_there(argument) else expand_braces(argument):
        with as_user_error(f"{pattern} can't be listed"):
            found.update(_matches(pattern, _SHARDS[layout]))
    if not found:
        raise UserError(f"no shard is named by {argument!r}")
    return sorted(found)


def _matches(pattern, called):
    """The shards that a pattern without braces means; of a folder, those that are called as shards are."""
    store = store_of(pattern)
    files = []
    for path in [os.path.expanduser(pattern)] if _is_there(pattern) else store.glob(pattern):
        # asked of a web server, this takes the whole file
        if called.fullmatch(os.path.basename(path)) or not store.is_folder(path):
            files.append(path)
            continue
        inside = [os.path.split(inner) for inner in store.below(path)]
        shards = [os.path.join(*pair) for pair in inside if called.fullmatch(pair[1]) and not pair[1].startswith(".")]
        _check_complete(shards)
        files += shards
    if not files:
        raise UserError(f"no shard matches {pattern} (in a folder: *.tfrecord or *-00000-of-00001, and *.tar)")
    return files


def _is_there(path):
    return os.path.lexists(os.path.expanduser(path))


def _check_complete(paths):
    """Raises UserError where a folder has but some of the shards `*-00000-of-00128`."""
    sets = {}
    for path in paths:
        if part := _OF.fullmatch(path):
            sets.setdefault((part[1], part[3], part[4]), set()).add(int(part[2]))
    for (start, count, end), numbers in sets.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            first = f"{start}-{missing[0]:0{len(count)}}-of-{count}{end}"
            raise UserError(
                f"{len(missing)} of {int(count)} shards are missing, the first {first}: copy them, or name those that "
                "shall be used"
            )


def by_name(paths: list[str]) -> tuple[list[str], list[str]]:
    """(for training, for validation), as a word of the file's name says, or else of its folder's."""
    words = [_words(path) for path in paths]
    held_out = next((choice for choice in _HELD_OUT if any(choice & found for found in words)), set())
    apart = set.union(*_HELD_OUT)
    train = [path for path, found in zip(paths, words, strict=True) if not found & apart]
    return train, [path for path, found in zip(paths, words, strict=True) if found & held_out]


def _words(path):
    """The words of a shard's name that say what it is for."""
    known = set.union({"train", "training"}, *_HELD_OUT)
    for name in PurePosixPath(path).parts[:-3:-1]:
        found = known & set(re.findall("[a-z]+", name.lower()))
        if found:
            # a photo of a training set called "test" is for training
            return found - set.union(*_HELD_OUT) or found
    return set()


# --- which classes ---


def _classes(train, val, spec, listed):
    """(names of the classes, class numbers of (train, val) with -1 for none); `listed`: names, or None."""
    numbered = np.concatenate([train.label, val.label]) >= 0
    if not numbered.any():
        return _named_classes(train, val, spec, listed)
    named = np.concatenate([train.text, val.text]) != ""
    if (named & ~numbered).any():
        raise UserError(f"{spec}: some labels are numbers and some are names, such as {_first(train, val)!r}")
    offset = _first_number(np.concatenate([train.label, val.label])[numbered], listed, spec)
    labels = [np.where(index.label >= 0, index.label - offset, -1) for index in (train, val)]
    count = int(labels[0].max()) + 1
    if count > max(len(train), _MOST_CLASSES):
        raise UserError(f"{spec}: labels must be numbers from 0 or 1 on, received {count - 1 + offset}")
    if listed:
        # two of ImageNet's are "crane"
        times = Counter(listed)
        names = [f"{name} ({n + offset})" if times[name] > 1 else name for n, name in enumerate(listed)]
    else:
        names = _texts(train, labels[0], count) or [str(number + offset) for number in range(count)]
    if listed and len(names) < count:
        raise UserError(f"{spec}: the list of classes beside the shards has {len(names)}, and labels are up to {count}")
    if len(val) and labels[1].max() >= len(names):
        raise UserError(
            f"{spec}: a label for validation is {labels[1].max() + offset}, those for training are up to "
            f"{len(names) - 1 + offset}"
        )
    return names, labels


def _first_number(labels, listed, spec):
    """1 where the numbers of classes count from 1, else 0.

    Photos may show but some of the classes: where there is a list of them, its length tells how the last is numbered.
    """
    lowest, highest = labels.min(), labels.max()
    if not listed:
        return int(lowest == 1)
    if lowest == 1 and highest < len(listed):
        say(
            f"{spec}: labels are {lowest} to {highest}, and the list beside the shards has {len(listed)} classes: "
            f"taken to count from 0, so that {lowest} is {listed[1]!r}"
        )
    return int(lowest >= 1 and highest == len(listed))


def _named_classes(train, val, spec, listed):
    """As `_classes`, for labels that are names."""
    names = list(dict.fromkeys(listed or sorted(set(train.text) - {""})))
    number_of = {"": -1, **{name: number for number, name in enumerate(names)}}
    unknown = sorted({*train.text, *val.text} - set(number_of))
    if unknown:
        raise UserError(f"{spec}: class {unknown[0]!r} is not among the {len(names)} classes for training")
    if len(names) > max(len(train) // 2, 1):
        raise UserError(
            f"{spec}: {len(names)} classes in {len(train)} photos, such as {names[0]!r}: texts are no labels"
        )
    labels = [np.array([number_of[text] for text in index.text], np.int64) for index in (train, val)]
    return [printable_name(name) for name in names], labels


def _texts(index, labels, count):
    """The names of the classes where each has its own, else None."""
    texts = [set() for _ in range(count)]
    for label, text in {*zip(labels.tolist(), index.text.tolist(), strict=True)}:
        if label >= 0:
            texts[label].add(text)
    names = [printable_name(min(found)) if len(found) == 1 else "" for found in texts]
    return names if len(set(names) - {""}) == count else None


def _class_list(path):
    """The class names in a list beside a shard, or beside its folder; None: there is none."""
    folder = os.path.dirname(path)
    for place in itertools.product((folder, os.path.dirname(folder)), _CLASS_LISTS):
        try:
            with store_of(path).open(os.path.join(*place)) as file:
                lines = file.read().decode("utf-8-sig", "backslashreplace").splitlines()
        except Exception:  # stores raise types of their own for what is not there
            continue
        return [printable_name(line.strip()) for line in lines if line.strip()]
    return None


def _first(*indexes):
    return next(
        text for index in indexes for text, label in zip(index.text, index.label, strict=True) if label < 0 and text
    )


def _labelled(index, labels, what):
    """The photos that have bytes and a label, and their labels; says how many have not."""
    usable_rows = np.flatnonzero((index.length > 0) & (labels >= 0))
    if len(usable_rows) < len(index):
        without = sorted(set(range(len(index))) - set(usable_rows.tolist()))
        first = index.names[without[0]]
        say(f"{what}: {len(without)} of {len(index)} records have no photo or no label, the first {first}")
    return index.take(usable_rows), labels[usable_rows]
