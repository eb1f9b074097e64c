"""Where photos come from: `demo`, `folder:PATH`, `tfds:NAME`, each behind the same small contract.

A `Source` has a training and a validation `Split` (and perhaps unlabelled photos). A split knows its labels, and reads
the encoded bytes of any photo by number within the graph; nothing is decoded here. To add a kind of source, write a
function that makes a `Source` and name it in `_KINDS`.
"""

import dataclasses
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data import demo
from mg_keras.data.images import EXTENSIONS
from mg_keras.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How a source without its own validation photos is divided; drawn class by class with the seed.

    Args:
        train_per_class: photos a class for training; None takes all that validation leaves.
        val_per_class: photos a class for validation at most; None takes `val_fraction` of the class.
        val_fraction: share of each class in 0-1 for validation, where `val_per_class` is None.
        seed: int, of the division.
    """

    train_per_class: int | None = None
    val_per_class: int | None = None
    val_fraction: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """Some photos of a source.

    Attributes:
        names: what to call each photo in messages and lists.
        read: int64 scalar tensor -> string scalar tensor, the encoded bytes; graph code.
        load_labels: () -> int32 [N] class numbers (-1: no label).
        instance_of: name -> the instance a photo shows, or None where that is not known.
    """

    names: list
    read: Callable
    load_labels: Callable
    instance_of: Callable | None = None

    def __len__(self):
        return len(self.names)

    @cached_property
    def labels(self):
        """int32 [N]; read once, when first asked for."""
        return np.asarray(self.load_labels(), np.int32)

    @cached_property
    def instances(self):
        """int32 [N], equal for photos of one instance, or None where the source does not know."""
        if self.instance_of is None:
            return None
        return np.unique([self.instance_of(name) for name in self.names], return_inverse=True)[1].astype(np.int32)

    def subset(self, rows):
        """The photos numbered `rows`, as a split of their own."""
        rows = np.asarray(rows, np.int64)
        table = tf.constant(rows)
        return Split(
            [self.names[row] for row in rows],
            lambda index: self.read(table[index]),
            lambda: self.labels[rows],
            self.instance_of,
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """Training, validation and perhaps unlabelled photos, with the names of the classes."""

    description: str
    class_names: list
    train: Split
    val: Split
    unlabelled: Split | None = None


def open_source(spec, options=None, *, resolution=128, data_dir=None):
    """Opens a source of photos.

    Args:
        spec: `"demo"` (drawn by code on first use), `"folder:PATH"` (see `folder`) or `"tfds:NAME"` (any image
            classification set of tensorflow-datasets).
        options: `SplitOptions`, for sources that bring no validation photos.
        resolution: pixels of the demo set's pictures.
        data_dir: where the demo set and tensorflow-datasets keep their files; None: their own caches in the home.

    Returns:
        A `Source`.

    Raises:
        UserError: no such kind of source, or what it names is missing or unusable.
    """
    kind, _, argument = str(spec).partition(":")
    if kind not in _KINDS or bool(argument) == (kind == "demo"):
        raise UserError(f"data must be demo, folder:PATH or tfds:NAME, received {spec!r}")
    return _KINDS[kind](argument, options or SplitOptions(), resolution, data_dir)


def photos(folder):
    """All photos below `folder`, whatever its structure, as an unlabelled `Split`, in order of name.

    Raises:
        UserError: there is no such folder, or no photo in it.
    """
    files = _files_below(_existing(folder))
    if not files:
        raise UserError(f"no photo below {folder}: it has no file ending in {', '.join(EXTENSIONS)}")
    return _file_split(files, np.full(len(files), -1))


def _existing(folder):
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return folder


def _files_below(folder):
    # sorted by name: the same files give the same numbers on every machine
    return sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


def _file_split(files, labels, instance_of=None):
    table = tf.constant(files, tf.string)
    return Split(files, lambda index: tf.io.read_file(table[index]), lambda: labels, instance_of)


def _classes(folder):
    """Class name -> its files, for a folder with one subfolder a class."""
    classes = {
        path.name: _files_below(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not classes:
        raise UserError(f"{folder} has no subfolder: a folder of photos has one subfolder for each class")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise UserError(
            f"no photo for class {', '.join(map(repr, empty))} in {folder}: add photos ({', '.join(EXTENSIONS)}) "
            "or remove the empty folder"
        )
    return classes


def _folder(argument, options, resolution, data_dir, instance_of=None, description=None):
    """A class per subfolder; with subfolders `train` and `val`, those are the split. `unlabelled/` is set apart."""
    del resolution, data_dir
    root = _existing(argument)
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = _classes(root / "train"), _classes(root / "val")
        unknown = sorted(set(val) - set(train))
        if unknown:
            raise UserError(f"{root / 'val'} has classes that {root / 'train'} has not: {', '.join(unknown)}")
    else:
        train, val = {}, {}
        for name, files in _classes(root).items():
            if name != "unlabelled":
                train[name], val[name] = _divide(name, files, options)
    names = sorted(train)

    def split(classes):
        pairs = [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]
        return _file_split([file for file, _ in pairs], np.array([label for _, label in pairs]), instance_of)

    if len(names) < 2:
        raise UserError(f"{root} has one class only ({names[0]!r}): at least two are needed")
    if not any(val.values()):
        raise UserError(f"no photo is left for validation in {root}: each class needs at least two photos")
    unlabelled = photos(root / "unlabelled") if (root / "unlabelled").is_dir() else None
    return Source(description or f"folder {root.name}", names, split(train), split(val), unlabelled)


def _divide(name, items, options):
    """(training, validation) items of one class; a class's draw does not depend on the others."""
    items = [items[i] for i in np.random.default_rng([options.seed, zlib.crc32(name.encode())]).permutation(len(items))]
    held_out = options.val_per_class
    if options.train_per_class is not None:
        train, rest = items[: options.train_per_class], items[options.train_per_class :]
        return train, rest if held_out is None else rest[:held_out]
    if held_out is None:
        held_out = round(options.val_fraction * len(items))
    held_out = min(held_out, len(items) - 1)
    return items[held_out:], items[:held_out]


def _demo(argument, options, resolution, data_dir):
    del argument
    root = Path(data_dir).expanduser() if data_dir else Path.home() / ".cache" / "mg_keras"
    folder = demo.write_demo(root / f"demo-{resolution}-{options.seed}", resolution=resolution, seed=options.seed)
    return _folder(folder, options, resolution, data_dir, demo.instance_of, f"demo at {resolution} px")


def _tfds(argument, options, resolution, data_dir):
    """A tensorflow-datasets set, read by number from its ArrayRecord files; bytes are decoded with everything else."""
    del resolution
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(argument, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        features = builder.info.features
        sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # tensorflow-datasets raises dozens of types; each means: this set is not to be had
        raise UserError(f"tfds:{argument} can't be opened: {type(error).__name__}: {error}") from error
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise UserError(f"tfds:{argument} has no image and label to classify; it has {', '.join(features)}")

    def split(name, rows=None):
        records = sources[name]
        rows = np.arange(len(records)) if rows is None else np.asarray(rows)
        table = tf.constant(rows, tf.int64)

        def read(index):
            return tf.ensure_shape(
                tf.numpy_function(lambda row: records[int(row)]["image"], [table[index]], tf.string, stateful=False), []
            )

        def load_labels():
            labels = builder.as_data_source(name, decoders=tfds.decode.PartialDecoding({"label": True}))
            return [labels[int(row)]["label"] for row in rows]

        return Split([f"{argument}/{name}/{row}" for row in rows], read, load_labels)

    held_out = next((name for name in ("validation", "test") if name in sources), None)
    if held_out:
        train, val = split("train"), split(held_out)
    else:
        everything = split("train")
        names = features["label"].names
        rows = [_divide(name, list(np.flatnonzero(everything.labels == i)), options) for i, name in enumerate(names)]
        train, val = (split("train", sorted(row for pair in rows for row in pair[part])) for part in (0, 1))
    return Source(f"tfds {argument}", features["label"].names, train, val)


_KINDS = {"demo": _demo, "folder": _folder, "tfds": _tfds}
