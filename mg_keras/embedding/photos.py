"""Photos of any size to embeddings, at a resolution s* and one or more poolings (sections 3.5, 4.2).

A *pooling* is an exponent p* > 0 of GeM, or `RMAC`. A *network* is anything with

* `embed_batch(images float32 [B, H, W, 3] in 0-255, poolings: tuple) -> float32 tensor [P, B, D]`, graph code; None
  among the poolings stands for the exponent of training;
* `classify(embeddings [N, D]) -> logits [N, C]`, in NumPy;
* `fingerprint() -> str`, for files of descriptors alone: equal for networks that embed and classify alike;
* perhaps `embed_and_classify(images, pooling) -> (descriptors [B, D], logits [B, C])`, graph code, where a photo has
  more to tell of its class than its descriptor;
* perhaps `preparation`, of `mg_keras.preparations`: how it wants photos brought to a resolution; else it is `ASPECT`;
* perhaps `precision`, of `mg_keras.export.optimize.PRECISIONS`: what it computes in, which files of descriptors note.

`MultiGrain` is one, and so is a SavedModel opened by `mg_keras.export.opened.Exported`.
"""

import dataclasses
import functools
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.apart import as_written
from mg_keras.data.given import GivenPhotos
from mg_keras.data.images import UNREADABLE, BadImages, decode_common
from mg_keras.data.repeated import repeated_batches, unusable_named
from mg_keras.data.sources import Split
from mg_keras.poolings import checked
from mg_keras.preparations import ASPECT
from mg_keras.progress import Progress

# pixels in a batch at most: 64 photos of 224x224, so that memory stays level whatever the resolution
_PIXELS_A_BATCH = 64 * 224 * 224
# pixels of the photos that wait for others of their shape, at 12 bytes each: 270 MB, about 120 photos of 500x375. With
# more, rare shapes would make fuller batches; on CPUs that gains nothing. TensorFlow itself keeps the
# convolutions that it compiled for each shape of batch: some 100 MB of ResNet-50 in the first 200, ever less a shape
_PIXELS_WAITING = 7 * _PIXELS_A_BATCH
# photos that are loaded one after the other sooner than a pipeline is set up
_FEW = 8


class EmbeddingNetwork(Protocol):
    """A network, as embedding needs it; see above."""

    def embed_batch(self, images: tf.Tensor, poolings: tuple) -> tf.Tensor:
        """float32 [B, H, W, 3] in 0-255 -> float32 [P, B, D]; graph code, in which exponents are scalar tensors."""

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
    (sections 3.5, 4.2). Or, where the network's `preparation` says so, squashed. Photos of one shape run
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
    """Embeds augmented versions of a split's photos: for IN-aug (section 4.2), and for whitenings learned from them.

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

    Raises:
        UserError: none of the photos can be used, or so few that 16 drawn one after the other can't.
    """
    bad_images = BadImages()
    batches = repeated_batches(
        split,
        augment,
        size=resolution,
        batch_size=versions,
        versions=versions,
        seed=seed,
        steps=len(split),
        bad_images=bad_images,
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

    with unusable_named(split, bad_images):
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
    prepared = _preparer(resolution, prepare)

    def load_common(row):
        image, photo = split.common_image(row, decode)
        return row, True, photo, prepared(image)

    def load(row):
        ok, image = split.image(row)
        # an unusable photo goes on as a black one, since a pipeline has no other way to say nothing
        image = tf.cond(ok, lambda: image, lambda: tf.zeros((resolution, resolution, 3), image.dtype))
        return row, ok, tf.shape(image)[:2], prepared(tf.ensure_shape(image, [None, None, 3]))

    rows = np.arange(len(split)) if rows is None else np.asarray(rows, np.int64)
    all_squares = prepare is not resolutions.largest_side

    def fetched(by, of, ignore_errors=False):
        if len(of) <= _FEW:
            found = _one_by_one(by, of, ignore_errors)
            return _stacked(found, size) if all_squares else found
        found = tf.data.Dataset.from_tensor_slices(of).map(as_written(by), num_parallel_calls=tf.data.AUTOTUNE)
        found = found.ignore_errors() if ignore_errors else found
        return found.batch(size).prefetch(2) if all_squares else found.prefetch(2 * size)

    def quickly():
        """Photos of the common kinds, and batches of squares of them."""
        left = rows
        if all_squares and len(rows) > _FEW and (files := _plain_files(split)):
            for batch in _blocks(_squares(resolution, prepare), files, rows, size):
                left = left[len(batch[0]) :]
                yield batch
        yield from fetched(load_common, left, ignore_errors=True) if len(left) else ()

    # Catching an error photo by photo takes longer than decoding a small one: those of the common kinds, which cause
    # none, come first, and what is missing then comes with care
    found = _with_missing(quickly(), rows, lambda missing: fetched(load, missing))
    return _batches_of_squares(found) if all_squares else _batches_by_shape(found)


def forward_function(network: EmbeddingNetwork, poolings: Sequence[float | str] | None = None) -> Callable:
    """The network as a compiled function: images float32 [B, H, W, 3] -> float32 [P, B, D], for any B, H and W.

    It does not hold the network, which must be there as long as it is called.
    """
    poolings = (None,) if poolings is None else tuple(map(checked, poolings))
    exponents = [pooling for pooling in poolings if isinstance(pooling, float)]
    kinds = tuple(_EXPONENT if isinstance(pooling, float) else pooling for pooling in poolings)
    return functools.partial(_forward(network, kinds), exponents=np.float32(exponents))


# among poolings: an exponent, which is a tensor, so that what is compiled serves any
_EXPONENT = "exponent"
# network -> poolings -> what `_compiled` gives; kept, as validation asks for the same one after every epoch
_functions = weakref.WeakKeyDictionary()


def _forward(network, poolings):
    kept = _functions.get(network)
    if kept is None:
        compiled = functools.partial(_compiled, weakref.ref(network))
        # each is some 80 MB of the network in the package
        kept = _functions.setdefault(network, functools.lru_cache(maxsize=4)(compiled))
    return kept(poolings)


def _compiled(network, poolings):
    """(images, the exponents among the poolings, float32 [E]) -> float32 [P, B, D].

    It is a function of a weak reference to a network, which else would never go.
    """

    def forward(images, exponents):
        given = iter(tf.unstack(exponents))
        return network().embed_batch(images, tuple(next(given) if each == _EXPONENT else each for each in poolings))

    signature = [
        tf.TensorSpec([None, None, None, 3], tf.float32),
        tf.TensorSpec([poolings.count(_EXPONENT)], tf.float32),
    ]
    return tf.function(_apart(forward), input_signature=signature, autograph=False)


def _apart(function):
    """The same to call, but no function of the same lines as others are: from five such on, each of which is compiled
    once, TensorFlow warns of one that is compiled again and again."""
    return functools.partial(function)


def _photos_a_batch(height, width):
    return max(1, _PIXELS_A_BATCH // (height * width))


@functools.lru_cache(maxsize=16)
def _decoder(resolution, prepare):
    """`decode_common`, reduced as far as `prepare` allows; kept, as it takes a moment to set up, and searching asks for
    one photo after the other."""

    def reduction(size):
        return resolutions.reduction(size, resolution, prepare)

    def decode(contents):
        return decode_common(contents, reduction)

    return tf.function(_apart(decode), input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


@functools.lru_cache(maxsize=16)
def _preparer(resolution, prepare):
    """`prepare` for one resolution, traced once for each type of pixels."""
    return tf.function(_apart(lambda image: prepare(image, resolution)), reduce_retracing=True, autograph=False)


@functools.lru_cache(maxsize=16)
def _squares(resolution, prepare):
    """Paths [n] to (photos [n, s, s, 3], their sizes in full [n, 2]), compiled; what is no JPEG or PNG makes it fail.

    A pipeline is set up anew for each list of photos, which takes as long as decoding two hundred; this is kept.
    """
    decode, prepared = _decoder(resolution, prepare), _preparer(resolution, prepare)
    shapes = tf.TensorSpec([resolution, resolution, 3], tf.float32), tf.TensorSpec([2], tf.int32)

    def square(path):
        image, size = decode(tf.io.read_file(path))
        return prepared(image), size

    def squares(paths):
        at_once = 4 * (os.cpu_count() or 1)
        # where a pipeline would run, too: photos in full size are nothing for a GPU's memory
        with tf.device("/CPU:0"):
            return tf.map_fn(square, paths, fn_output_signature=shapes, parallel_iterations=at_once)

    return tf.function(_apart(squares), input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)


def _plain_files(split):
    """The paths of a split whose photos are files and are taken as they are; None of another."""
    return split.files if getattr(split, "adjust", None) is None else None


def _blocks(squares, files, rows, size):
    """Batches of `size` photos, each made while the one before is used, up to the first that `squares` fails with."""

    def made(start):
        taken = rows[start : start + size]
        try:
            images, sizes = squares(tf.constant([os.fsencode(files[row]) for row in taken]))
        except UNREADABLE:
            return None
        return tf.constant(taken), tf.ones(len(taken), tf.bool), sizes, images

    with ThreadPoolExecutor(1) as ahead:

        def begun(start):
            try:
                return ahead.submit(made, start).result
            except RuntimeError:  # the main thread has ended, and none may be started any more
                return functools.partial(made, start)

        coming = begun(0)
        for start in range(size, len(rows) + size, size):
            if (batch := coming()) is None:
                return
            coming = begun(start) if start < len(rows) else None
            yield batch


def _one_by_one(load, rows, ignore_errors):
    """What `load` gives of each of the rows, without a pipeline."""
    for row in rows:
        try:
            found = load(tf.constant(row))
        except UNREADABLE:
            if not ignore_errors:
                raise
        else:
            yield found


def _stacked(elements, size):
    """Batches of `size` elements, the last one perhaps of fewer, as `tf.data` makes them."""
    elements = iter(elements)
    while batch := list(itertools.islice(elements, size)):
        yield tuple(tf.stack(parts) for parts in zip(*batch, strict=True))


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
    return tuple(forward.func.get_concrete_function().structured_outputs.shape)


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
