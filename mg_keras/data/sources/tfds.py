"""`tfds:NAME`: a set of tensorflow-datasets, its records read by number."""

import os
import struct
import textwrap

import numpy as np
import tensorflow as tf

from mg_keras.data.sources.contract import Source, Split, SplitOptions, divide, usable
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

    everything = _record_split(f"{argument}/train", records["train"])
    names = [printable_name(name) for name in features["label"].names]
    for name in _SPLITS_HELD_OUT:
        if name in records:
            val = _record_split(f"{argument}/{name}", records[name])
            # the test photos of a contest come without labels
            labelled = np.flatnonzero(val.labels >= 0)
            if len(labelled):
                return usable(Source(f"tfds {argument}", names, everything, val.subset(labelled)), spec)
    rows = [divide(name, list(np.flatnonzero(everything.labels == i)), options) for i, name in enumerate(names)]
    train, val = (everything.subset(sorted(row for pair in rows for row in pair[part])) for part in (0, 1))
    return usable(Source(f"tfds {argument}", names, train, val), spec)


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
