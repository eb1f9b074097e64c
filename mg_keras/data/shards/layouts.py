"""The two layouts of shards, TFRecord files and WebDataset tars: where each photo lies in the file, and its label."""

import json
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError

from mg_keras.data.finding import BESIDE_PHOTOS
from mg_keras.data.formats import EXTENSIONS

# (photo, label) of records: ImageNet's usual layout, and that of tensorflow-datasets
_FEATURES = (("image/encoded", "image/class/label"), ("image", "label"))
# what a class is called, the choice that tells classes apart first: two of ImageNet's are "crane"
_CLASS_NAMES = ("image/class/synset", "image/class/text")
_LABEL_EXTENSIONS = (".cls", ".json", ".txt")
_LABEL_KEYS = ("label", "cls", "class", "class_name")
# what `int` takes may be more than an array of numbers does, and 1_0 is a name
_NUMBER = re.compile(r"-?\d{1,18}")
_MAX_LABEL_BYTES = 1 << 20
# letters: what is longer is a caption, and held for millions of photos takes gigabytes
_LONGEST_CLASS_NAME = 200
_NO_PHOTO = f"neither a photo ({', '.join(EXTENSIONS)}) nor a label"


class Entry(NamedTuple):
    """A photo in a shard.

    Attributes:
        name: what to call it, within the shard.
        position, length: bytes of the encoded photo in the file; length 0: the record has none; position -1: it is no
            photo, and is to be told of.
        label: class number as it is written; -1: none.
        text: name of the class, at most 200 letters; empty: none, or a longer text. At position -1: why it is passed
            over.
    """

    name: str
    position: int
    length: int
    label: int = -1
    text: str = ""


class BrokenShardError(Exception):
    """A file is no shard, or not a whole one; the message says what is wrong, without its name."""


def tfrecord_entries(file: BinaryIO, size: int) -> Iterator[Entry]:
    """The photos of a TFRecord file of `size` bytes, read once from end to end.

    A record is the length of its data (8 bytes, little-endian), a checksum (4), the data (a `tf.train.Example`) and a
    checksum (4). A record that can't be parsed, or without a photo, is an entry of length 0.

    Raises:
        BrokenShardError: the file does not end with a record.
    """
    position, number = 0, 0
    while position < size:
        header = file.read(12)
        length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
        if position + length + 16 > size:
            raise BrokenShardError(f"is cut off after {number} records, or is no TFRecord file")
        data = file.read(length)
        file.read(4)
        yield _example_entry(data, position + 12, str(number))
        position, number = position + length + 16, number + 1


def _example_entry(data, position, name):
    try:
        features = tf.train.Example.FromString(data).features.feature
    except DecodeError:
        return Entry(name, position, 0)
    photo, label = next(((photo, label) for photo, label in _FEATURES if photo in features), (None, None))
    if photo is None or not features[photo].bytes_list.value:
        return Entry(name, position, 0)
    encoded = features[photo].bytes_list.value[0]
    number = features[label].int64_list.value if label in features else ()
    texts = [features[key].bytes_list.value for key in (*_CLASS_NAMES, label) if key in features]
    text = _class_name(next((values[0].decode(errors="backslashreplace") for values in texts if values), ""))
    # the bytes of the photo stand in the record as they are, so that it can be read without the rest
    return Entry(name, position + data.find(encoded), len(encoded), int(number[0]) if number else -1, text)


def tar_entries(file: BinaryIO, size: int) -> Iterator[Entry]:
    """The photos of a WebDataset tar of `size` bytes, in the order they lie in, and before them what is passed over.

    Members of one name up to the first dot are one sample, in any order: photos (`.jpg`, `.png`, `.webp`, ...) and
    their label: `.cls`, `.json` (its value `label`, `cls`, `class` or `class_name`) or `.txt`, a number or a name.
    Where what follows the first dot is none of these, the name goes up to the last dot: `holiday 2023.05.01.jpg`; but
    beside `001.jpg` a `001.mask.png` belongs to that sample, and is passed over.

    Raises:
        BrokenShardError: the file is no whole tar.
    """
    if not size:
        return
    places, photos, labels, passed_over = {}, {}, {}, {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # a file's second name is a hard link to the first one
                first = places.get(member.linkname) if member.islnk() else None
                place = (member.offset_data, member.size) if member.isfile() else first
                if place:
                    places[member.name] = place
                key, extension = _key_and_extension(member.name)
                if member.isdir() or key is None:
                    continue
                if place:
                    # one that was added later takes the place of the first, as when a tar is unpacked
                    if extension in EXTENSIONS:
                        photos[member.name] = key, place
                        continue
                    if extension in _LABEL_EXTENSIONS and place[1] <= _MAX_LABEL_BYTES:
                        file.seek(place[0])
                        labels[key, extension] = _label(file.read(place[1]), extension)
                        continue
                if extension not in BESIDE_PHOTOS:
                    passed_over[member.name] = _NO_PHOTO if member.isfile() else "a link, or no file"
            file.seek(tar.offset)
            # tarfile takes half a header for the end
            rest = file.read(tarfile.BLOCKSIZE)
            if rest.strip(b"\0") or len(rest) % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.TarError as error:
        raise BrokenShardError(f"is cut off, or is no tar file ({error})") from None
    keys = {key for key, _ in photos.values()}
    for name, (key, _) in list(photos.items()):
        sample = os.path.join(os.path.dirname(key), os.path.basename(key).partition(".")[0])
        if sample != key and sample in keys:
            del photos[name]
            passed_over[name] = f"a part of the sample {os.path.basename(sample)}, which has its photo"
    for name, reason in passed_over.items():
        yield Entry(name, -1, 0, text=reason)
    for name, (key, place) in sorted(photos.items(), key=lambda item: item[1][1][0]):
        found = (labels.get((key, extension), (-1, "")) for extension in _LABEL_EXTENSIONS)
        yield Entry(name, *place, *next((label for label in found if label != (-1, "")), (-1, "")))


def _key_and_extension(name):
    """(name of the sample, extension in small letters) of a member; (None, "") of what is none of the user's."""
    folder, base = os.path.split(name)
    stem, dot, extension = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return None, ""
    extension = (dot + extension).lower()
    if extension not in (*EXTENSIONS, *_LABEL_EXTENSIONS):
        stem, extension = os.path.splitext(base)
    return os.path.join(folder, stem), extension.lower()


def _label(content, extension):
    """(number, name) of a label's file; (-1, "") where it has none."""
    value = content.decode("utf-8-sig", "backslashreplace").strip()
    if extension == ".json":
        try:
            value = json.loads(value)
        except ValueError:
            return -1, ""
        if isinstance(value, dict):
            value = next((value[key] for key in _LABEL_KEYS if value.get(key) is not None), None)
        if value is None or isinstance(value, dict | list):
            return -1, ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        # as it is written: true is a name
        value = value.strip() if isinstance(value, str) else json.dumps(value)
    return (int(value), "") if _NUMBER.fullmatch(value) else (-1, _class_name(value))


def _class_name(text):
    return text if len(text) <= _LONGEST_CLASS_NAME else ""


LAYOUTS = {"tfrecord": tfrecord_entries, "webdataset": tar_entries}
