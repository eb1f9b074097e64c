"""Photos of any size to embeddings, at a resolution s* and one or more poolings (sections 3.5, 4.2).

A *pooling* is an exponent p* > 0 of GeM, or `RMAC`. A *network* is anything with

* `embed_batch(images float32 [B, H, W, 3] in 0-255, poolings: tuple) -> float32 tensor [P, B, D]`, graph code; None
  among the poolings stands for the exponent of training;
* `classify(embeddings [N, D]) -> logits [N, C]`, in NumPy;
* `fingerprint() -> str`, for `embed_to_files` alone: equal for networks that embed and classify alike;
* perhaps `preparation`, of `mg_keras.preparations`: how it wants photos brought to a resolution; else it is `ASPECT`;
* perhaps `precision`, of `mg_keras.export.optimize.PRECISIONS`: what it computes in, which files of descriptors note.

`MultiGrain` is one, and so is a SavedModel opened by `mg_keras.export.opened.Exported`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.apart import as_written
from mg_keras.data.given import GivenPhotos
from mg_keras.data.images import BadImages, decode_common
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import Split
from mg_keras.embedding import shards
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.files import atomic_write_json, atomic_write_text, printable_name, try_lock
from mg_keras.poolings import RMAC, checked
from mg_keras.preparations import ASPECT
from mg_keras.progress import Progress

# pixels in a batch at most: 64 photos of 224x224, so that memory stays level whatever the resolution
_PIXELS_A_BATCH = 64 * 224 * 224
# pixels of the photos that wait for others of their shape, at 12 bytes each: 270 MB, about 120 photos of 500x375. With
# more, rare shapes would make fuller batches; on CPUs that gains nothing. TensorFlow itself keeps the
# convolutions that it compiled for each shape of batch: some 100 MB of ResNet-50 in the first 200, ever less a shape
_PIXELS_WAITING = 7 * _PIXELS_A_BATCH


class EmbeddingNetwork(Protocol):
    """A network, as embedding needs it; see above."""

    def embed_batch(self, images: tf.Tensor, poolings: tuple) -> tf.Tensor:
        """float32 [B, H, W, 3] in 0-255 -> float32 [P, B, D]; graph code."""

    def classify(self, embeddings: np.ndarray) -> np.ndarray:
        """[N, D] -> logits [N, C]."""

    def fingerprint(self) -> str:
        """Equal for networks that embed and classify alike."""


class Batch(NamedTuple):
    """Photos of one shape.

    Attributes:
        rows: int64 [b], their numbers in the split; b may be 0.
        unusable: int64 [u], the numbers of photos met on the way that can't be used.
        images: float32 tensor [b, h, w, 3], RGB in 0-255.
        sizes: int32 [b, 2], heights and widths of the decoded photos; None where they are not known.
    """

    rows: np.ndarray
    unusable: np.ndarray
    images: tf.Tensor
    sizes: np.ndarray | None = None


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

    def logits(self, network: EmbeddingNetwork, pooling: int = 0) -> np.ndarray:
        """float32 [N, C]: the network's classifier on the embeddings by the pooling numbered `pooling`."""
        return network.classify(self.values[pooling])


def embed(
    network: EmbeddingNetwork,
    split: Split | GivenPhotos,
    resolution: int,
    train_resolution: int,
    poolings: Sequence[float | str] | None = None,
    label: str | None = None,
) -> Embeddings:
    """Embeds every usable photo of a split.

    Up to the training resolution: smallest side to 256/224 of it, square centre crop. Beyond: largest side, no crop
    (section 7 of the protocol). Or, where the network's `preparation` says so, squashed. Photos of one shape run
    together; decoding overlaps with the network. Beside the answer, memory does not grow with the number of photos or
    of shapes.

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
    batches = prepared_batches(split, resolution, train_resolution, preparation=preparation_of(network))
    return _run(network, batches, len(split), poolings, label)


def embed_versions(
    network: EmbeddingNetwork,
    split: Split,
    augment: Callable,
    resolution: int,
    versions: int,
    poolings: Sequence[float | str] | None = None,
    seed: int = 0,
    label: str | None = None,
) -> Embeddings:
    """Embeds augmented versions of the photos of a split: for IN-aug (section 7), and for whitenings learned from them.

    Versions are squares as `augment` makes them of photos decoded in full, whatever the network's `preparation`.

    Args:
        network: `MultiGrain`, or another network (see above).
        split: the photos.
        augment: of `mg_keras.data.augmentations`: (image, size, seed) -> float32 [size, size, 3].
        resolution: pixels, the side of a version.
        versions: how many of each photo, at least 1.
        poolings: list of p* and `RMAC`; None: the training exponent alone.
        seed: of the augmentation.
        label: what to call it while it runs; None shows nothing.

    Returns:
        `Embeddings` of `versions` x `len(split)` rows, in the order of the photos; `rows` says of which photo each is.
        An unusable photo has none: another of the split has its versions besides its own. `unusable` is empty.
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
            yield Batch(places, places[:0], images)

    found = _run(network, numbered(), len(shown), poolings, label)
    order = np.argsort(shown, kind="stable")
    return dataclasses.replace(found, rows=shown[order], values=found.values[:, order])


def preparation_of(network: EmbeddingNetwork) -> str:
    """How a network wants photos brought to a resolution, of `mg_keras.preparations`."""
    return getattr(network, "preparation", ASPECT)


def prepared_batches(
    split: Split | GivenPhotos,
    resolution: int,
    train_resolution: int,
    rows: np.ndarray | None = None,
    preparation: str = ASPECT,
) -> Iterator[Batch]:
    """The photos of a split as the network takes them: decoded, brought to a resolution, those of one shape together.

    What a batch holds is a function of the rows alone, and so is what is left after any number of batches: the batches
    made anew from the rows that are left are those that would have come.

    Args:
        split: `mg_keras.data.sources.Split`.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        rows: int64, increasing numbers of the photos to take; None: all.
        preparation: of `mg_keras.preparations`: the network's (`preparation_of`).

    Yields:
        `Batch`.

    Raises:
        ValueError: a resolution is less than 1.
    """
    prepare = resolutions.for_resolution(resolution, train_resolution, preparation)
    decode, size = _decoder(resolution, prepare), _photos_a_batch(resolution, resolution)

    def load_common(row):
        image, photo = split.common_image(row, decode)
        return row, True, photo, prepare(image, resolution)

    def load(row):
        ok, image = split.image(row)
        # an unusable photo goes on as a black one, since a pipeline has no other way to say nothing
        image = tf.cond(ok, lambda: image, lambda: tf.zeros((resolution, resolution, 3), image.dtype))
        return row, ok, tf.shape(image)[:2], prepare(tf.ensure_shape(image, [None, None, 3]), resolution)

    rows = np.arange(len(split)) if rows is None else np.asarray(rows, np.int64)

    def loaded(by, of):
        return tf.data.Dataset.from_tensor_slices(of).map(as_written(by), num_parallel_calls=tf.data.AUTOTUNE)

    all_squares = prepare is not resolutions.largest_side

    def fetched(loaded):
        return loaded.batch(size).prefetch(2) if all_squares else loaded.prefetch(2 * size)

    # Catching an error photo by photo takes longer than decoding a small one: those of the common kinds, which cause
    # none, come first, and what is missing then comes with care
    common = fetched(loaded(load_common, rows).ignore_errors())
    found = _with_missing(common, rows, lambda missing: fetched(loaded(load, missing)))
    return _batches_of_squares(found) if all_squares else _batches_by_shape(found)


def forward_function(network: EmbeddingNetwork, poolings: Sequence[float | str] | None = None) -> Callable:
    """The network as a compiled function: images float32 [B, H, W, 3] -> float32 [P, B, D], for any B, H and W."""
    if poolings is None:
        return _forward(network, (None,))
    return _forward(network, tuple(map(checked, poolings)))


@functools.lru_cache(maxsize=4)
def _forward(network, poolings):
    """Kept, as validation asks for the same one after every epoch."""
    signature = [tf.TensorSpec([None, None, None, 3], tf.float32)]
    return tf.function(lambda images: network.embed_batch(images, poolings), input_signature=signature, autograph=False)


def _photos_a_batch(height, width):
    return max(1, _PIXELS_A_BATCH // (height * width))


@functools.lru_cache(maxsize=16)
def _decoder(resolution, prepare):
    """`decode_common`, reduced as far as `prepare` allows; kept, as it takes a moment to set up, and searching asks for
    one photo after the other."""

    def reduction(size):
        return resolutions.reduction(size, resolution, prepare)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decode(contents):
        return decode_common(contents, reduction)

    return decode


def _with_missing(found, rows, load):
    """The elements of a dataset, each of one of the `rows` or of several, and then `load` of the rows that it lacks."""
    seen = [rows[:0]]
    for element in found:
        seen.append(np.atleast_1d(element[0].numpy()))
        yield element
    missing = np.setdiff1d(rows, np.concatenate(seen))
    # what is not needed takes its time to set up, too
    if len(missing):
        yield from load(missing)


def _batches_of_squares(batches):
    """Photos of one shape come in batches from the pipeline; the unusable ones are taken out."""
    for rows, ok, sizes, images in batches:
        rows, ok = rows.numpy(), ok.numpy()  # noqa: PLW2901
        yield Batch(rows[ok], rows[~ok], images if ok.all() else tf.boolean_mask(images, ok), sizes.numpy()[ok])


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
        rows, sizes, images = zip(*taken, strict=True)
        return Batch(np.array(rows, np.int64), np.array(met, np.int64), tf.stack(images), np.array(sizes, np.int32))

    def largest(shape):
        return _power_of_two(len(waiting[shape]))

    for row, ok, decoded, image in photos:
        if not ok:
            unusable.append(int(row))
            continue
        height, width = shape = tuple(image.shape[:2])
        waiting.setdefault(shape, []).append((int(row), decoded.numpy(), image))
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
        yield Batch(np.empty(0, np.int64), np.array(unusable, np.int64), tf.zeros((0, 1, 1, 3)))


def _power_of_two(count):
    """The largest that is not above `count`: TensorFlow keeps what it has prepared for every shape of a batch."""
    return 1 << (count.bit_length() - 1)


def _shape(forward):
    """(P, None, D) of what a forward function gives."""
    return tuple(forward.get_concrete_function().structured_outputs.shape)


def _run(network, batches, total, poolings, label):
    """Runs the network on batches as `prepared_batches` gives them, whose rows are some of 0 to `total` - 1."""
    forward = forward_function(network, poolings)
    values, usable = None, np.zeros(total, bool)
    with Progress(label or "", total if label else 0, "photos") as progress:
        for rows, unusable, images, _ in batches:
            if len(rows):
                found = forward(images).numpy()
                if values is None:
                    values = np.empty((len(found), total, found.shape[-1]), np.float32)
                values[:, rows] = found
                usable[rows] = True
            if label:
                progress.advance(len(rows) + len(unusable))
    if values is None:
        count, _, dimensions = _shape(forward)
        values = np.empty((count, total, dimensions), np.float32)
    return Embeddings(np.flatnonzero(usable), values if usable.all() else values[:, usable], np.flatnonzero(~usable))


def embed_to_files(
    network: EmbeddingNetwork,
    split: Split,
    path: str | os.PathLike,
    resolution: int,
    train_resolution: int,
    pooling: float | str | None = None,
    whitening: Whitening | None = None,
    label: str | None = None,
    class_names: Sequence[str] | None = None,
    dtype: str | None = None,
    photos_a_shard: int = shards.PHOTOS_A_SHARD,
) -> tuple[int, int]:
    """Embeds the photos of a split into files, in bounded memory, and goes on where it was if it is stopped.

    Descriptors are written as Parquet shards (`mg_keras.embedding.shards`), one every `photos_a_shard` photos or 30
    seconds. After Ctrl-C, a crash or `kill -9` the same call embeds the photos that no shard holds; a shard that can't
    be read is made anew. By what `path` is, the result is

    * `FOLDER/`, a folder (or a name without a suffix): the shards;
    * `X.parquet`: one file of all, a row a photo in their order, the unusable ones with their `error`;
    * `X.npy`: [N, D] of the N usable photos; beside it `X.txt`: these photos, a line a row; `X.unusable.txt`: those
      that could not be used and what else was passed over, `name<TAB>reason` (only if there are any); `X.json`: what
      all this was made from.

    Files are written whole or not at all, the last two kinds from the shards in `X.npy.shards`, which are removed then:
    the disk must hold the descriptors twice.

    Args:
        network: `MultiGrain`, or another network (see above).
        split: `mg_keras.data.sources.Split`.
        path: as above. What is there already and was made from the same is left.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        pooling: p* or `RMAC`; None: the training exponent.
        whitening: `mg_keras.Whitening`, which makes whitened descriptors of unit norm; None: as the network gives them.
        label: what to call it while it runs; None shows nothing.
        class_names: of the network's classifier, in the order of the logits: the shards then have the likeliest class,
            except of `RMAC`, which the classifier can't read. None: no classes.
        dtype: `"float32"` or `"float16"`; None: float32 for `X.npy`, else float16.
        photos_a_shard: photos of a shard at most.

    Returns:
        (described, unusable): how many photos there are descriptors of, and how many could not be used.

    Raises:
        ValueError: a resolution or the pooling is out of range, or the whitening is of another size.
        UserError: `path` is a name of another kind, holds something else or what was made from something else, or can't
            be written; another process is writing it; or no photo can be used.
    """
    # a Path has lost the slash that says what it is to be
    folder = os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()
    path = Path(path)
    kind = "" if folder else path.suffix
    if kind not in (".npy", ".parquet", ""):
        raise UserError(f"descriptors are written to a name in .npy or .parquet or to a folder, received {path}")
    dtype = dtype or ("float32" if kind == ".npy" else "float16")
    forward = forward_function(network, None if pooling is None else [pooling])
    made_from = {
        "photos": _hash_of_photos(split),
        "network": network.fingerprint(),
        "precision": getattr(network, "precision", None),
        "resolution": resolution,
        "train_resolution": train_resolution,
        "pooling": "training" if pooling is None else checked(pooling),
        "whitening": whitening and hash_of(whitening),
        "class_names": None if class_names is None else _hash("\n".join(class_names).encode()),
        "dtype": dtype,
    }
    dimensions = whitening.projection_.shape[1] if whitening else _shape(forward)[2]
    columns = shards.schema(dimensions, dtype, made_from)
    try:
        place = path.with_name(f"{path.name}.shards") if kind else path
        if kind and path.exists():
            counts = _check_complete(path, made_from)
            # of a process that was killed while it removed them
            shards.remove(place)
            return counts
        shards.check(place, made_from)
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            for broken in shards.remove_broken(place):
                if label:
                    print(f"{broken} was broken: its photos are embedded anew", file=sys.stderr, flush=True)
            with shards.Writer(place, photos_a_shard) as writer:
                left = np.setdiff1d(np.arange(len(split)), shards.done_ids(place))
                classes = None if class_names is None or pooling == RMAC else (network.classify, class_names)
                batches = prepared_batches(split, resolution, train_resolution, left, preparation_of(network))
                for rows in _described(forward, split, batches, whitening, classes, columns, len(left), label):
                    writer.add(rows)
            errors = _errors(place)
            if len(errors) == len(split):
                raise UserError(
                    f"none of the {len(split)} photos can be used; the first, {split.names[0]}: {errors[0]}"
                )
            counts = len(split) - len(errors), len(errors)
            if kind == ".npy":
                _write_lists(path, split, errors, made_from)
            if kind:
                shards.join(place, path)
                shards.remove(place)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
    return counts


def _described(forward, split, batches, whitening, classes, columns, left, label):
    """Yields the rows of the `left` photos in batches, a batch at a time, as tables of shards."""
    uris, done = split.files or split.names, len(split) - left
    if done and label:
        print(f"going on after {done} of {len(split)} photos", file=sys.stderr, flush=True)
    with Progress(label or "", len(split) if label else 0, "photos", start=done if label else 0) as progress:
        for batch in batches:
            reasons = [split.reason(row) for row in batch.unusable]
            rows = [shards.unusable_rows(columns, batch.unusable, [uris[row] for row in batch.unusable], reasons)]
            if len(batch.rows):
                pooled = forward(batch.images).numpy()[0]
                found = _likeliest(*classes, pooled) if classes else (None, None)
                values = whitening.transform(pooled) if whitening else pooled
                of_batch = [uris[row] for row in batch.rows]
                rows.append(shards.usable_rows(columns, batch.rows, of_batch, values, batch.sizes, *found))
            # a shard holds whole batches: those that are left are then the same ones, to the last bit
            yield pa.concat_tables(rows)
            if label:
                progress.advance(len(batch.rows) + len(batch.unusable))


def _likeliest(classify, names, embeddings):
    """(name, probability) of the likeliest class of each embedding."""
    logits = np.asarray(classify(embeddings), np.float64)
    best = np.argmax(logits, axis=1)
    return [names[number] for number in best], 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def _errors(place):
    """{row: why it can't be used}, in order."""
    tables = (rows.filter(rows["error"].is_valid()) for rows in shards.read(place, ["error"]))
    return {row: error for rows in tables for row, error in zip(*rows.to_pydict().values(), strict=True)}


def hash_of(whitening: Whitening) -> str:
    """What files of descriptors say of a whitening: equal for equal ones."""
    return _hash(whitening.mean_.tobytes() + whitening.projection_.tobytes())


def _hash(content):
    return hashlib.sha256(content).hexdigest()


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


@contextlib.contextmanager
def _locked(folder):
    """Keeps other processes from writing into a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise UserError(f"another process is writing {folder}: wait for it, or choose another name")
        yield
    finally:
        os.close(descriptor)


def _check_complete(path, made_from):
    """(described, unusable) of the array or the table at `path`, if it was made from the same."""
    try:
        if path.suffix == ".npy":
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            different, counts = (
                shards.differences(made_from, about["made_from"]),
                (about["described"], about["unusable"]),
            )
        else:
            different, counts = shards.differences(made_from, shards.metadata(path)), shards.counts(path)
    except (OSError, ValueError, KeyError):
        different = "photos, or by another program"
    if not different and (path.suffix != ".npy" or path.with_suffix(".txt").is_file()):
        return counts
    reason = f"was made from other {different}" if different else f"its list {path.with_suffix('.txt')} is gone"
    raise UserError(f"{path} exists already and {reason}: remove it or choose another name")


def _write_lists(path, split, errors, made_from):
    """What lies beside an array: written before it, so that where the array is, all is."""
    # a name with a line break in it would put the list out of step with the array
    usable = [name for row, name in enumerate(split.names) if row not in errors]
    atomic_write_text(path.with_suffix(".txt"), "".join(f"{printable_name(name)}\n" for name in usable))
    unusable = [(printable_name(split.names[row]), reason) for row, reason in errors.items()]
    unusable = "".join(f"{name}\t{reason}\n" for name, reason in [*unusable, *split.passed_over])
    if unusable:
        atomic_write_text(path.with_suffix(".unusable.txt"), unusable)
    else:
        path.with_suffix(".unusable.txt").unlink(missing_ok=True)
    about = {"described": len(usable), "unusable": len(errors), "made_from": made_from}
    atomic_write_json(path.with_suffix(".json"), about)
