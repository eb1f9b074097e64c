"""Photos of any size to embeddings, at a resolution s* and one or more poolings (sections 3.5, 4.2).

A *pooling* is an exponent p* > 0 of GeM, or `RMAC`. A *network* is anything with

* `embed_batch(images float32 [B, H, W, 3] in 0-255, poolings: tuple) -> float32 tensor [P, B, D]`, graph code; None
  among the poolings stands for the exponent of training;
* `classify(embeddings [N, D]) -> logits [N, C]`, in NumPy;
* `fingerprint() -> str`, for `embed_to_files` alone: equal for networks that describe alike.

`MultiGrain` is one, and so is a SavedModel opened by `mg_keras.export.opened.Exported`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.images import BadImages
from mg_keras.data.repeated import repeated_batches
from mg_keras.errors import UserError
from mg_keras.files import atomic_path, atomic_write_json, atomic_write_text, printable_name, try_lock
from mg_keras.poolings import checked
from mg_keras.progress import Progress

# pixels in a batch at most: 64 photos of 224x224, so that memory stays level whatever the resolution
_PIXELS_A_BATCH = 64 * 224 * 224
# pixels of the photos that wait for others of their shape, at 12 bytes each: 270 MB, about 120 photos of 500x375. With
# more, rare shapes would make fuller batches; on CPUs that gains nothing. TensorFlow itself keeps the
# convolutions that it compiled for each shape of batch: some 100 MB of ResNet-50 in the first 200, ever less a shape
_PIXELS_WAITING = 7 * _PIXELS_A_BATCH


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of photos, in the order of the photos.

    Attributes:
        rows: int64 [N], the photos' numbers in their split; the unusable ones are missing.
        values: float32 [P, N, D], pooled embeddings (not normalised, unless the network does) by each of P poolings.
        unusable: int64, numbers of the photos that could not be used.
    """

    rows: np.ndarray
    values: np.ndarray
    unusable: np.ndarray

    def logits(self, network, pooling=0):
        """float32 [N, C]: the network's classifier on the embeddings by the pooling numbered `pooling`."""
        return network.classify(self.values[pooling])


def embed(network, split, resolution, train_resolution, poolings=None, label=None):
    """Embeds every usable photo of a split.

    Up to the training resolution: smallest side to 256/224 of it, square centre crop. Beyond: largest side, no crop
    (section 7 of the protocol). Photos of one shape run together; decoding overlaps with the network. Beside the
    answer, memory does not grow with the number of photos or of shapes.

    Args:
        network: `MultiGrain`, or another network (see above).
        split: `mg_keras.data.sources.Split`, or what else `mg_keras.data.given.given_photos` gives.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        poolings: list of p* and `RMAC`; None: the training exponent alone. The trunk runs once for all of them.
        label: what to call it while it runs; None shows nothing.

    Returns:
        `Embeddings`.

    Raises:
        ValueError: a resolution is less than 1, or a pooling is neither a number > 0 nor `RMAC`.

    Example:
        >>> found = embed(model, photos("holiday"), 500, 224, poolings=[3, 4, RMAC])  # doctest: +SKIP
        >>> found.values.shape, found.unusable  # doctest: +SKIP
        ((3, 120, 2048), array([17]))
    """
    batches = prepared_batches(split, resolution, train_resolution)
    return _run(network, batches, len(split), poolings, label)


def embed_versions(network, split, augment, resolution, versions, poolings=None, seed=0, label=None):
    """Embeds `versions` augmented versions of every photo of a split, for IN-aug (section 7).

    An unusable photo's place is taken by another of the split.

    Returns:
        `Embeddings` with `versions` rows for each photo; `rows` says of which.
    """
    batches = repeated_batches(
        split,
        augment,
        size=resolution,
        batch_size=versions,
        versions=versions,
        seed=seed,
        steps=len(split),
        bad_images=BadImages(),
    )
    dataset = batches.unbatch().batch(_photos_a_batch(resolution, resolution)).prefetch(2)
    shown = np.empty(versions * len(split), np.int64)

    def numbered():
        start = 0
        for images, _, numbers in dataset:
            places = start + np.arange(len(numbers))
            shown[places] = numbers
            start += len(numbers)
            yield places, places[:0], images

    found = _run(network, numbered(), len(shown), poolings, label)
    order = np.argsort(shown, kind="stable")
    return dataclasses.replace(found, rows=shown[order], values=found.values[:, order])


def prepared_batches(split, resolution, train_resolution, rows=None):
    """The photos of a split as the network takes them: decoded, brought to a resolution, those of one shape together.

    What a batch holds is a function of the rows alone, and so is what is left after any number of batches: the batches
    made anew from the rows that are left are those that would have come.

    Args:
        split: `mg_keras.data.sources.Split`.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        rows: int64, increasing numbers of the photos to take; None: all.

    Yields:
        (rows int64 [b], unusable int64 [u], images float32 tensor [b, h, w, 3] in 0-255): `unusable` are the numbers of
        photos met on the way that can't be used; b may be 0 where that is all there is to say.

    Raises:
        ValueError: a resolution is less than 1.
    """
    prepare = resolutions.for_resolution(resolution, train_resolution)
    size = _photos_a_batch(resolution, resolution)

    def load(row):
        ok, image = split.image(row)
        # an unusable photo goes on as a black one, since a pipeline has no other way to say nothing
        image = tf.cond(ok, lambda: image, lambda: tf.zeros((resolution, resolution, 3), image.dtype))
        return row, ok, prepare(tf.ensure_shape(image, [None, None, 3]), resolution)

    rows = np.arange(len(split)) if rows is None else np.asarray(rows, np.int64)
    photos = tf.data.Dataset.from_tensor_slices(rows).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    if prepare is resolutions.square:
        return _batches_of_squares(photos.batch(size).prefetch(2))
    return _batches_by_shape(photos.prefetch(2 * size))


def forward_function(network, poolings=None):
    """The network as a compiled function: images float32 [B, H, W, 3] -> float32 [P, B, D], for any B, H and W."""
    if poolings is None:
        return _forward(network, (None,))
    return _forward(network, tuple(map(checked, poolings)))


@functools.lru_cache(maxsize=4)
def _forward(network, poolings):
    """Kept, as validation asks for the same one after every epoch."""
    signature = [tf.TensorSpec([None, None, None, 3], tf.float32)]
    return tf.function(lambda images: network.embed_batch(images, poolings), input_signature=signature)


def _photos_a_batch(height, width):
    return max(1, _PIXELS_A_BATCH // (height * width))


def _batches_of_squares(batches):
    """Photos of one shape come in batches from the pipeline; the unusable ones are taken out."""
    for rows, ok, images in batches:
        rows, ok = rows.numpy(), ok.numpy()  # noqa: PLW2901
        yield rows[ok], rows[~ok], images if ok.all() else tf.boolean_mask(images, ok)


def _batches_by_shape(photos):
    """Photos of many shapes wait for others of theirs, until a batch is full or there are too many that wait."""
    waiting, pixels, unusable = {}, 0, []

    def batch(shape, size):
        nonlocal pixels, unusable
        taken, left = waiting[shape][:size], waiting[shape][size:]
        if left:
            waiting[shape] = left
        else:
            del waiting[shape]
        pixels -= size * shape[0] * shape[1]
        met, unusable = unusable, []
        rows, images = zip(*taken, strict=True)
        return np.array(rows, np.int64), np.array(met, np.int64), tf.stack(images)

    def largest(shape):
        return _power_of_two(len(waiting[shape]))

    for row, ok, image in photos:
        if not ok:
            unusable.append(int(row))
            continue
        height, width = shape = tuple(image.shape[:2])
        waiting.setdefault(shape, []).append((int(row), image))
        pixels += height * width
        full = _photos_a_batch(height, width)
        if len(waiting[shape]) == full:
            yield batch(shape, full)
        elif pixels > _PIXELS_WAITING:
            # those that make the largest batch; of equals, those that have waited longest
            shape = max(waiting, key=lambda shape: largest(shape) * shape[0] * shape[1])
            yield batch(shape, largest(shape))
    while waiting:
        shape = next(iter(waiting))
        yield batch(shape, largest(shape))
    if unusable:
        yield np.empty(0, np.int64), np.array(unusable, np.int64), tf.zeros((0, 1, 1, 3))


def _power_of_two(count):
    """The largest that is not above `count`: TensorFlow keeps what it has prepared for every shape of a batch."""
    return 1 << (count.bit_length() - 1)


def _run(network, batches, total, poolings, label):
    """Runs the network on batches as `prepared_batches` gives them, whose rows are some of 0 to `total` - 1."""
    forward = forward_function(network, poolings)
    values, usable = None, np.zeros(total, bool)
    with Progress(label or "", total if label else 0, "photos") as progress:
        for rows, unusable, images in batches:
            if len(rows):
                found = forward(images).numpy()
                if values is None:
                    values = np.empty((len(found), total, found.shape[-1]), np.float32)
                values[:, rows] = found
                usable[rows] = True
            if label:
                progress.advance(len(rows) + len(unusable))
    if values is None:
        count, _, dimensions = forward.get_concrete_function().structured_outputs.shape
        values = np.empty((count, total, dimensions), np.float32)
    return Embeddings(np.flatnonzero(usable), values if usable.all() else values[:, usable], np.flatnonzero(~usable))


def embed_to_files(network, split, path, resolution, train_resolution, pooling=None, whitening=None, label=None):
    """Embeds every usable photo of a split into a file, in bounded memory, and goes on where it was if it is stopped.

    Writes, each whole or not at all, the array last:

    * `path`: float32 [N, D] of the N usable photos;
    * beside it under the same name, `.txt`: the N photos, a line a row; `.unusable.txt`: those that could not be used
      and what else was passed over, `name<TAB>reason` (only if there are any); `.json`: what all this was made from.

    Until then, what was embedded is kept in the hidden `.NAME.partial` beside it. After Ctrl-C, a crash or `kill -9`
    the same call goes on from there, to the same array; a partial file that was made from other photos (by name, size
    or time), another network, resolution, pooling or whitening is not used. The disk must hold the array twice.

    Args:
        network: `MultiGrain`, or another network (see above).
        split: `mg_keras.data.sources.Split`.
        path: where the array shall be, a name in `.npy`. What is there already and was made from the same is left.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        pooling: p* or `RMAC`; None: the training exponent.
        whitening: `mg_keras.Whitening`, which makes whitened descriptors of unit norm; None: as the network gives them.
        label: what to call it while it runs; None shows nothing.

    Returns:
        (described, unusable): how many photos the array holds, and how many could not be used.

    Raises:
        ValueError: a resolution or the pooling is out of range, or the whitening is of another size.
        UserError: `path` is no name in `.npy`, holds something else, or can't be written; another process is writing
            it; or no photo can be used.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise UserError(f"descriptors are written to a name in .npy, received {path}")
    forward = forward_function(network, None if pooling is None else [pooling])
    fitted = whitening and hashlib.sha256(whitening.mean_.tobytes() + whitening.projection_.tobytes()).hexdigest()
    made_from = {
        "photos": _hash_of_photos(split),
        "network": network.fingerprint(),
        "resolution": resolution,
        "train_resolution": train_resolution,
        "pooling": "training" if pooling is None else checked(pooling),
        "whitening": fitted,
    }
    try:
        if path.exists():
            return _check_complete(path, made_from)
        with _Partial(path.with_name(f".{path.stem}.partial"), made_from, label) as partial:
            usable = np.zeros(len(split), bool)
            left = np.ones(len(split), bool)
            for rows, unusable, _ in partial.batches():
                usable[rows] = True
                left[rows] = left[unusable] = False
            done = len(split) - int(left.sum())
            if done and label:
                print(f"going on after {done} of {len(split)} photos", file=sys.stderr, flush=True)
            with Progress(label or "", len(split) if label else 0, "photos", start=done if label else 0) as progress:
                batches = prepared_batches(split, resolution, train_resolution, np.flatnonzero(left))
                for rows, unusable, images in batches:
                    values = forward(images).numpy()[0] if len(rows) else np.empty((0, 0), np.float32)
                    if whitening and len(rows):
                        values = whitening.transform(values)
                    partial.append(rows, unusable, values)
                    usable[rows] = True
                    if label:
                        progress.advance(len(rows) + len(unusable))
            _write_all(path, split, usable, partial, made_from)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
    return int(usable.sum()), int((~usable).sum())


def _hash_of_photos(split):
    """Of their names and, for files, their sizes and times: a photo replaced under its name is another photo."""
    digest = hashlib.sha256()
    for name, file in zip(split.names, split.files or split.names, strict=True):
        try:
            found = os.stat(file)
            about = (name, found.st_size, found.st_mtime_ns)
        except (OSError, ValueError):
            about = (name,)
        digest.update(repr(about).encode())
    return digest.hexdigest()


def _differences(made_from, other):
    return ", ".join(name for name, value in made_from.items() if other.get(name) != value)


def _check_complete(path, made_from):
    """(described, unusable) of the array at `path`, if it was made from the same."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        different = _differences(made_from, about["made_from"])
    except (OSError, ValueError, KeyError):
        different = "photos, or by another program"
    if not different and path.with_suffix(".txt").is_file():
        return about["described"], about["unusable"]
    reason = f"was made from other {different}" if different else f"its list {path.with_suffix('.txt')} is gone"
    raise UserError(f"{path} exists already and {reason}: remove it or choose another name")


def _write_all(path, split, usable, partial, made_from):
    """The lists and then the array: where the array is, all is."""

    def listed(chosen, more=lambda row: ""):
        # a name with a line break in it would put the list out of step with the array
        return "".join(f"{printable_name(split.names[row])}{more(row)}\n" for row in np.flatnonzero(chosen))

    if not usable.any():
        raise UserError(f"none of the {len(split)} photos can be used; the first, {split.names[0]}: {split.reason(0)}")
    atomic_write_text(path.with_suffix(".txt"), listed(usable))
    unusable = listed(~usable, lambda row: f"\t{split.reason(row)}")
    unusable += "".join(f"{name}\t{reason}\n" for name, reason in split.passed_over)
    if unusable:
        atomic_write_text(path.with_suffix(".unusable.txt"), unusable)
    else:
        path.with_suffix(".unusable.txt").unlink(missing_ok=True)
    about = {"described": int(usable.sum()), "unusable": int((~usable).sum()), "made_from": made_from}
    atomic_write_json(path.with_suffix(".json"), about)
    places = np.cumsum(usable) - 1
    with atomic_path(path) as whole, open(whole, "wb") as file:
        start = None
        for rows, _, values in partial.batches():
            if start is None and len(rows):
                shape = (about["described"], values.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                start = file.tell()
            for row, value in zip(rows, values, strict=True):
                file.seek(start + int(places[row]) * value.nbytes)
                file.write(value.tobytes())
    partial.remove()


class _Partial:
    """The batches embedded so far, in a file that is only ever appended to.

    It begins with a line of JSON, what they are made from; a batch is a header (its numbers of usable and unusable
    photos and of values a photo), the photos' numbers, the values and a checksum of it all. Whatever a kill or a power
    cut left at its end that is no whole batch is cut off. No memory-mapped array: on a full disk, writing into one ends
    the process with a signal.
    """

    _HEADER = struct.Struct("<QQQ")
    _CHECKSUM = struct.Struct("<I")

    def __init__(self, path, made_from, label):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = open(path, "a+b")  # noqa: SIM115
        try:
            self._open(made_from, label)
        except BaseException:
            self.file.close()
            raise

    def _open(self, made_from, label):
        if not try_lock(self.file):
            raise UserError(f"another process is writing {self.path}: wait for it, or choose another name")
        self.file.seek(0)
        line = self.file.readline()
        try:
            found = json.loads(line) if line.endswith(b"\n") else {}
        except ValueError:
            found = {}
        if found != made_from:
            if line and label:
                print(
                    f"{self.path} was made from other {_differences(made_from, found)}: starting anew",
                    file=sys.stderr,
                    flush=True,
                )
            self.file.truncate(0)
            line = json.dumps(made_from).encode() + b"\n"
            self.file.write(line)
            self.file.flush()
        self.start = self.end = len(line)
        for _ in self.batches():
            self.end = self.file.tell()
        self.file.truncate(self.end)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def append(self, rows, unusable, values):
        """Adds a batch: rows int64 [b], unusable int64 [u], values [b, D], in one write."""
        values = np.ascontiguousarray(values, "<f4")
        header = self._HEADER.pack(len(rows), len(unusable), values.shape[1])
        content = header + b"".join(part.tobytes() for part in (rows.astype("<i8"), unusable.astype("<i8"), values))
        self.file.write(content + self._CHECKSUM.pack(zlib.crc32(content)))
        self.file.flush()

    def batches(self):
        """Yields what was appended, up to the first batch that is not whole."""
        end = os.fstat(self.file.fileno()).st_size
        self.file.seek(self.start)
        while self.file.tell() + self._HEADER.size <= end:
            header = self.file.read(self._HEADER.size)
            b, u, dimensions = self._HEADER.unpack(header)
            size = 8 * (b + u) + 4 * b * dimensions
            # a file that a power cut left longer than its content ends in zeros
            if not b + u or self.file.tell() + size + self._CHECKSUM.size > end:
                return
            content, checksum = self.file.read(size), self.file.read(self._CHECKSUM.size)
            if self._CHECKSUM.pack(zlib.crc32(header + content)) != checksum:
                return
            numbers = np.frombuffer(content, "<i8", b + u)
            values = np.frombuffer(content, "<f4", offset=8 * (b + u)).reshape(b, dimensions)
            yield numbers[:b], numbers[b:], values

    def remove(self):
        """Removes the file; what was yielded stays."""
        self.path.unlink()
