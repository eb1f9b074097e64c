"""Where photos come from: `demo`, `folder:PATH`, `tfds:NAME`, each behind the same small contract.

A `Source` has a training and a validation `Split` (and perhaps unlabelled photos). A split knows its labels, and reads
the encoded bytes of any photo by number within the graph; nothing is decoded here. To add a kind of source, write a
function that makes a `Source` and name it in `_KINDS`.
"""

import dataclasses
import os
import struct
import textwrap
import unicodedata
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data import demo
from mg_keras.data.images import EXTENSIONS
from mg_keras.errors import UserError
from mg_keras.progress import Progress

# what the folder or the split of validation photos may be called, the better choice first
_FOLDERS_HELD_OUT = ("val", "validation", "test")
_SPLITS_HELD_OUT = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How a source without its own validation photos is divided; drawn class by class with the seed.

    Args:
        train_per_class: photos a class for training at most, drawn before those for validation; None takes all that
            validation leaves.
        val_per_class: photos a class for validation at most; None takes all that are left where `train_per_class` is
            given, else `val_fraction` of the class.
        val_fraction: share of each class, between 0 and 1, for validation, where neither number is given. At least one
            photo of a class stays for training.
        seed: int >= 0, of the division.

    Raises:
        UserError: a value out of range.
    """

    train_per_class: int | None = None
    val_per_class: int | None = None
    val_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name in ("train_per_class", "val_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, or null for the default, received {value}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, received {self.val_fraction}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, received {self.seed}")


@dataclasses.dataclass(frozen=True)
class Split:
    """Some photos of a source.

    Attributes:
        names: what to call each photo in messages and lists.
        read: int64 scalar tensor -> string scalar tensor, the encoded bytes; graph code.
        load_labels: () -> int32 [N] class numbers (-1: no label).
        instance_of: name -> the instance a photo shows, or None where that is not known.
        adjust: what the decoded photo still needs before it is measured, such as a rotation or a crop: (number, int64
            scalar; image, uint8 [H, W, 3]) -> uint8 image; graph code. None: nothing.
        parts: the splits that this one is made of, one after the other; none for a split of its own. What is known of a
            part need not be found out again.
    """

    names: list
    read: Callable
    load_labels: Callable
    instance_of: Callable | None = None
    adjust: Callable | None = None
    parts: tuple = ()

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
            self.adjust and (lambda index, image: self.adjust(table[index], image)),
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """Training, validation and perhaps unlabelled photos, with the names of the classes."""

    description: str
    class_names: list
    train: Split
    val: Split
    unlabelled: Split | None = None

    def with_classes(self, names):
        """The same photos, a class numbered by the place of its name in `names`.

        Args:
            names: list of str, in any order, with every class of this source among them; a name in another Unicode form
                is the same.

        Raises:
            KeyError: a class is not among them.
        """
        place = {unicodedata.normalize("NFC", name): number for number, name in enumerate(names)}
        numbers = np.array([place[unicodedata.normalize("NFC", name)] for name in self.class_names], np.int32)

        def numbered(split):
            return dataclasses.replace(split, load_labels=lambda: np.where(split.labels < 0, -1, numbers[split.labels]))

        return dataclasses.replace(self, class_names=list(names), train=numbered(self.train), val=numbered(self.val))


def open_source(spec, options=None, *, resolution=128, data_dir=None):
    """Opens a source of photos.

    Args:
        spec: one of

            * `"demo"`: the set of `mg_keras.data.demo`, drawn on first use;
            * `"folder:PATH"`: one subfolder a class, photos at any depth below it; or `train/` and `val/` (or
              `validation/`, `test/`) with such subfolders. `unlabelled/` beside them is set apart. Hidden files and
              folders, and files that are no photos, are passed over;
            * `"tfds:NAME"`: a set of tensorflow-datasets with the features `image` and `label`, as `NAME`,
              `NAME/CONFIG` or `NAME:VERSION`. Its `validation` split, or else its `test` split, is for validation if
              it has labels; otherwise `train` is divided. What is prepared already is read as it is.
        options: `SplitOptions`, for sources that bring no validation photos.
        resolution: pixels of the demo set's pictures.
        data_dir: where the demo set and tensorflow-datasets keep their files; None: their own caches in the home.

    Returns:
        A `Source`.

    Raises:
        UserError: no such kind of source, or what it names is missing or unusable.

    Example:
        >>> source = open_source("folder:photos", SplitOptions(train_per_class=30))  # doctest: +SKIP
        >>> source.class_names[source.train.labels[0]], source.train.read(tf.constant(0))  # doctest: +SKIP
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
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _file_split(files, labels, instance_of=None):
    # a name need not be valid UTF-8: the file is opened by its bytes, and called something that can be printed
    paths = [os.fsencode(file) for file in files]
    table = tf.constant(paths, tf.string)
    names = [path.decode(errors="backslashreplace") for path in paths]
    return Split(names, lambda index: tf.io.read_file(table[index]), lambda: labels, instance_of)


def _classes(folder, apart=()):
    """Class name -> its files, for a folder with one subfolder a class; those named in `apart` are none."""
    classes = {
        path.name: _files_below(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in apart
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
    held_out = next((name for name in _FOLDERS_HELD_OUT if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out:
        train, val = _classes(root / "train"), _classes(root / held_out)
        unknown = sorted(set(val) - set(train))
        if unknown:
            raise UserError(f"{root / held_out} has classes that {root / 'train'} has not: {', '.join(unknown)}")
    else:
        train, val = {}, {}
        for name, files in _classes(root, apart=("unlabelled",)).items():
            train[name], val[name] = _divide(name, files, options)
    names = sorted(train)

    def split(classes):
        pairs = [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]
        return _file_split([file for file, _ in pairs], np.array([label for _, label in pairs]), instance_of)

    unlabelled = photos(root / "unlabelled") if (root / "unlabelled").is_dir() else None
    return _usable(Source(description or f"folder {root.name}", names, split(train), split(val), unlabelled), root)


def _usable(source, place):
    """The source itself, if it has classes to tell apart and photos to measure on."""
    if len(source.class_names) < 2:
        raise UserError(f"{place} has one class only ({source.class_names[0]!r}): at least two are needed")
    if not len(source.val):
        raise UserError(
            f"no photo is left for validation in {place}: take fewer for training, or add photos (a class of "
            "one or two may give none)"
        )
    return source


def _divide(name, items, options):
    """(training, validation) items of one class; a class's draw does not depend on the others."""
    rng = np.random.default_rng([options.seed, zlib.crc32(os.fsencode(name))])
    items = [items[i] for i in rng.permutation(len(items))]
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
    # the set of an earlier release may lie beside it
    name = f"demo-{demo.VERSION}-{resolution}-{options.seed}"
    folder = demo.write_demo(root / name, resolution=resolution, seed=options.seed)
    return _folder(folder, options, resolution, data_dir, demo.instance_of, f"demo at {resolution} px")


def _tfds(argument, options, resolution, data_dir):
    """A prepared tensorflow-datasets set, its records read by number; bytes are decoded with everything else."""
    del resolution
    import tensorflow_datasets as tfds

    spec = f"tfds:{argument}"
    try:
        builder = tfds.builder(argument, data_dir=data_dir)
        features = builder.info.features
        kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
        # asked before a download that may take hours
        if not all(name in features and isinstance(features[name], kind) for name, kind in kinds.items()):
            raise UserError(
                f"{spec} is no set for image classification: that needs the features image (Image) and label "
                f"(ClassLabel), and it has {', '.join(f'{n} ({type(features[n]).__name__})' for n in features)}"
            )
        builder.download_and_prepare()
        splits = builder.info.splits
        if "train" not in splits:
            raise UserError(f"{spec} has no split train; it has {', '.join(splits)}")
        records = {name: _records(builder, name) for name in ("train", *_SPLITS_HELD_OUT) if name in splits}
    except tfds.core.DatasetNotFoundError:
        place = data_dir or "its default folder"
        raise UserError(f"{spec}: tensorflow-datasets knows no such set, nor has {place} one") from None
    except UserError:
        raise
    except Exception as error:  # tensorflow-datasets raises dozens of types; each means: this set is not to be had
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise UserError(f"{spec} can't be opened: {type(error).__name__}: {reason}") from error

    everything, names = _record_split(f"{argument}/train", records["train"]), features["label"].names
    for name in _SPLITS_HELD_OUT:
        if name in records:
            val = _record_split(f"{argument}/{name}", records[name])
            # the test photos of a contest come without labels
            labelled = np.flatnonzero(val.labels >= 0)
            if len(labelled):
                return _usable(Source(f"tfds {argument}", names, everything, val.subset(labelled)), spec)
    rows = [_divide(name, list(np.flatnonzero(everything.labels == i)), options) for i, name in enumerate(names)]
    train, val = (everything.subset(sorted(row for pair in rows for row in pair[part])) for part in (0, 1))
    return _usable(Source(f"tfds {argument}", names, train, val), spec)


def _records(builder, split):
    """The serialized tf.train.Examples of a prepared split, as a sequence."""
    import tensorflow_datasets as tfds

    info = builder.info.splits[split]
    if tfds.core.FileFormat.TFRECORD in builder.info.available_file_formats():
        records = _TFRecords(info.filepaths)
    else:
        records = builder.as_data_source(
            split, file_format="array_record", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    if len(records) != info.num_examples:
        raise UserError(
            f"{builder.data_dir} should hold {info.num_examples:,} records of {split}, and has {len(records):,}: "
            "remove it to prepare it again"
        )
    return records


class _TFRecords:
    """The records of TFRecord files by number, which the format itself does not offer.

    A record is the length of its data (8 bytes, little-endian), a checksum (4), the data and a checksum (4).
    """

    def __init__(self, paths):
        self.paths = [os.fspath(path) for path in paths]
        places = []
        for number, path in enumerate(self.paths):
            with open(path, "rb") as file:
                end = os.fstat(file.fileno()).st_size
                position = 0
                while position < end:
                    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
                    places.append((number, position + 12, length))
                    position += length + 16
                    file.seek(position)
            if position != end:
                raise UserError(f"{path} is cut off: remove {os.path.dirname(path)} to prepare the set again")
        self.places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, row):
        number, position, length = self.places[row]
        with open(self.paths[number], "rb") as file:
            file.seek(position)
            return file.read(length)


def _record_split(name, records):
    """The photos of serialized records with the features `image` and `label`, as a `Split`."""

    def parse(row, feature, dtype):
        record = tf.numpy_function(lambda number: records[int(number)], [row], tf.string, stateful=False)
        wanted = {feature: tf.io.FixedLenFeature([], dtype)}
        return tf.io.parse_single_example(tf.ensure_shape(record, []), wanted)[feature]

    def load_labels():
        rows = tf.data.Dataset.range(len(records))
        labels = rows.map(lambda row: parse(row, "label", tf.int64), num_parallel_calls=tf.data.AUTOTUNE)
        found = []
        # a large set is read whole for them, which takes minutes
        with Progress(f"labels of {name}", len(records), "photos") as progress:
            for batch in labels.batch(1024):
                found.append(batch.numpy())
                progress.advance(len(found[-1]))
        return np.concatenate(found)

    names = [f"{name}/{row}" for row in range(len(records))]
    return Split(names, lambda index: parse(index, "image", tf.string), load_labels)


_KINDS = {"demo": _demo, "folder": _folder, "tfds": _tfds}
