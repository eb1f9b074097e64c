"""`tfds:NAME`: a set of tensorflow-datasets, its records read by number.

`tfds:NAME?label=FEATURE,FEATURE` names other features of labels than `label`, such as CIFAR-100's `coarse_label`; the
first is trained on, and all are in `Split.label_columns`.
"""

import os
import struct
import textwrap

import numpy as np
import tensorflow as tf

from mg_keras.data.apart import as_written
from mg_keras.data.sources.contract import Source, Split, SplitOptions, asked_columns, divide, usable
from mg_keras.data.stores.graph import in_graph
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.progress import Progress

# what the split of validation photos may be called, the better choice first
_SPLITS_HELD_OUT = ("validation", "test")


def open_tfds(argument: str, options: SplitOptions, resolution: int, data_dir: str | os.PathLike | None) -> Source:
    """A prepared tensorflow-datasets set, its records read by number; bytes are decoded with everything else."""
    del resolution
    import tensorflow_datasets as tfds

    spec = f"tfds:{argument}"
    argument, asked = asked_columns(argument)
    columns = asked or ("label",)
    try:
        builder = tfds.builder(argument, data_dir=data_dir)
        features = builder.info.features
        kinds = {"image": tfds.features.Image, **dict.fromkeys(columns, tfds.features.ClassLabel)}
        # asked before a download that may take hours
        if not all(name in features and isinstance(features[name], kind) for name, kind in kinds.items()):
            there = ", ".join(f"{name} ({type(features[name]).__name__})" for name in features)
            raise UserError(
                f"{spec} is no set for image classification: that needs the features image (Image) and "
                f"{' and '.join(columns)} (ClassLabel), and it has {there}"
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

    everything = _record_split(f"{argument}/train", records["train"], columns, bool(asked))
    known = {column: [printable_name(name) for name in features[column].names] for column in columns}
    names = known[columns[0]]

    def source(train, val):
        return usable(Source(f"tfds {argument}", names, train, val, label_columns=known if asked else {}), spec)

    for name in _SPLITS_HELD_OUT:
        if name in records:
            val = _record_split(f"{argument}/{name}", records[name], columns, bool(asked))
            # the test photos of a contest come without labels
            labelled = np.flatnonzero(val.labels >= 0)
            if len(labelled):
                return source(everything, val.subset(labelled))
    rows = [divide(name, list(np.flatnonzero(everything.labels == i)), options) for i, name in enumerate(names)]
    train, val = (everything.subset(sorted(row for pair in rows for row in pair[part])) for part in (0, 1))
    return source(train, val)


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


def _record_split(name, records, columns, by_column):
    """The photos of serialized records with the feature `image` and features of labels, as a `Split`.

    The first of `columns` is the labels'; with `by_column` all of them are read at once, else it when it is asked for.
    """

    read = in_graph(lambda row: records[row])

    def parse(row, features, dtype):
        wanted = {feature: tf.io.FixedLenFeature([], dtype) for feature in features}
        found = tf.io.parse_single_example(read(row), wanted)
        return tf.stack([found[feature] for feature in features], axis=-1)

    def load():
        """int [N, columns]."""
        rows = tf.data.Dataset.range(len(records))
        labels = rows.map(as_written(lambda row: parse(row, columns, tf.int64)), num_parallel_calls=tf.data.AUTOTUNE)
        found = []
        # a large set is read whole for them, which takes minutes
        with Progress(f"labels of {name}", len(records), "photos") as progress:
            for batch in labels.batch(1024):
                found.append(batch.numpy())
                progress.advance(len(found[-1]))
        return np.concatenate(found)

    names = [f"{name}/{row}" for row in range(len(records))]
    table = (
        {column: labels.astype(np.int32) for column, labels in zip(columns, load().T, strict=True)} if by_column else {}
    )
    return Split(
        names,
        lambda index: parse(index, ["image"], tf.string)[0],
        lambda: table[columns[0]] if by_column else load()[:, 0],
        label_columns=table,
    )
