"""Repeated-augmentation batches (section 3.3): a photo is decoded once and seen in m versions.

The order is a pure function of (seed, position): which photos a step sees, and how each is transformed, depends on
nothing that came before. So a run resumes in the middle of an epoch by starting at its step, on any number of threads.
A photo that can't be used is replaced by another, drawn from its position too.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from mg_keras.data.apart import as_written
from mg_keras.data.images import BadImages, decode, try_decode
from mg_keras.data.sources.contract import Split
from mg_keras.errors import UserError

_ATTEMPTS = 16
_UNUSABLE = f"{_ATTEMPTS} photos drawn one after the other are unusable"


def repeated_batches(
    split: Split,
    augment: Callable,
    *,
    size: int,
    batch_size: int,
    versions: int = 3,
    parts: int = 1,
    replicas: int = 1,
    local_replicas: Sequence[int] | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    bad_images: BadImages | None = None,
) -> tf.data.Dataset:
    """Batches for one replica each, in the order the steps use them.

    A part of `batch_size` items holds `ceil(batch_size / versions)` different photos, each in `versions` versions one
    after the other (the last one perhaps in fewer). A replica's batch is `parts` such parts, for gradient
    accumulation. Each pass over the photos is a permutation of them, drawn from the seed and the pass; the few that
    don't fill a step at its end wait for another pass, so that a step never meets a photo twice. (One that stands in
    for an unusable photo may be among the step's others by chance: their versions then share their id, as they should.)
    Where the split reads its photos as a stream, a pass is in the stream's order instead, and datasets for several
    machines have a share of the photos each.

    Args:
        split: `Split`, the photos.
        augment: a recipe of `mg_keras.data.augmentations`.
        size: int, pixels of the square versions.
        batch_size: int, items in a part.
        versions: int m >= 1.
        parts: int >= 1.
        replicas: int, replicas in all that share the stream.
        local_replicas: the numbers of those that this dataset feeds, in turn; None: all of them.
        seed: int.
        start_step: int >= 0, the first step to give: what it and later ones hold does not depend on it.
        steps: int or None (without end), how many steps to give.
        bad_images: `BadImages` to note unusable photos in and go on with another, or None: they stop the iteration with
            `tf.errors.InvalidArgumentError`, as 16 of them drawn for one place do in any case (`unusable_named`).

    Returns:
        tf.data.Dataset of (images float32 [parts * batch_size, size, size, 3] in 0-255, labels int32 [...],
        instance_ids int32 [...]), `len(local_replicas)` elements a step. Items with one id come from one photo.

    Raises:
        ValueError: a number is out of range, or the replicas are no equal share where the split has a stream.
        UserError: there are fewer photos than a step takes.

    Example:
        >>> source = open_source("demo", resolution=64)  # doctest: +SKIP
        >>> batches = repeated_batches(source.train, augment, size=64, batch_size=6, versions=3)  # doctest: +SKIP
        >>> next(iter(batches))[2].numpy()  # doctest: +SKIP
        array([ 512,  512,  512, 1033, 1033, 1033], dtype=int32)
    """
    numbers = {"size": size, "batch_size": batch_size, "versions": versions, "parts": parts, "replicas": replicas}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, received {value}")
    if start_step < 0 or (steps is not None and steps < 0):
        raise ValueError(f"start_step and steps must be at least 0, received {start_step} and {steps}")
    local_replicas = range(replicas) if local_replicas is None else local_replicas
    if not len(local_replicas) or not all(0 <= replica < replicas for replica in local_replicas):
        raise ValueError(f"local_replicas must be some of 0 to {replicas - 1}, received {list(local_replicas)}")
    photos_a_part = math.ceil(batch_size / versions)
    order = _Order(len(split), photos_a_part * parts, replicas, local_replicas, seed)
    if len(split) < order.photos_a_step:
        raise UserError(
            f"a step takes {order.photos_a_step} different photos ({replicas} replicas x {parts} parts x "
            f"{photos_a_part}), but there are only {len(split)} to train on: take a smaller batch"
        )
    labels = tf.constant(split.labels)

    def note(index):
        name = split.names[int(index)]
        bad_images.record(name, lambda: split.read(tf.constant(index)))
        return True

    def fetch(position, index, *contents):
        if bad_images is None:
            return position, index, decode(*contents or [split.read(index)])

        def attempt_at(ok, attempt, index, image):
            del ok, image
            is_first = attempt == 0
            index = tf.cond(is_first, lambda: index, lambda: order.photo(position, attempt))

            def its_own_or_by_number(index):
                return tf.cond(is_first, lambda: contents[0], lambda: split.read(index))

            ok, image = try_decode(its_own_or_by_number if contents else split.read, index)
            noted = tf.cond(ok, lambda: True, lambda: tf.ensure_shape(tf.numpy_function(note, [index], tf.bool), []))
            with tf.control_dependencies([noted]):
                return tf.identity(ok), attempt + 1, index, image

        # a loop from the first attempt on: decoding is in the graph once
        ok, _, index, image = tf.while_loop(
            lambda ok, attempt, index, image: ~ok & (attempt < _ATTEMPTS),
            attempt_at,
            (tf.constant(False), tf.constant(0, tf.int64), index, tf.zeros([1, 1, 3], tf.uint8)),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([]),
                tf.TensorShape([]),
                tf.TensorShape([None, None, 3]),
            ),
        )
        check = tf.debugging.assert_equal(ok, True, _UNUSABLE)
        with tf.control_dependencies([check]):
            return position, index, tf.identity(image)

    def transform(position, index, image):
        seeds = tf.stack([tf.fill([versions], position * versions) + tf.range(versions, dtype=tf.int64)], 1)
        seeds = tf.concat([tf.fill([versions, 1], tf.constant(seed, tf.int64)), seeds], 1)
        # a loop in the graph, not as many graphs as versions: a recipe is traced and set up once
        picture = tf.TensorSpec([size, size, 3], tf.float32)
        images = tf.map_fn(lambda one: augment(image, size, one), seeds, fn_output_signature=picture)
        return images, tf.repeat(labels[index], versions), tf.repeat(tf.cast(index, tf.int32), versions)

    def one_part(images, labels, instance_ids):
        images = tf.reshape(images, [photos_a_part * versions, size, size, 3])[:batch_size]
        return images, tf.reshape(labels, [-1])[:batch_size], tf.reshape(instance_ids, [-1])[:batch_size]

    def join(*values):
        return tuple(tf.reshape(value, [parts * batch_size, *value.shape[2:]]) for value in values)

    # as many at a time as the cores and the disk take; the order stays that of the stream. Threads that wait for shards
    # would count as cores: on two of them, decoding on 18 threads takes up to twice as long
    parallel = tf.data.AUTOTUNE if split.stream is None else os.cpu_count() or 1
    dataset = _places(split, order, start_step, steps).map(
        as_written(fetch), num_parallel_calls=parallel, deterministic=True
    )
    dataset = dataset.map(as_written(transform), num_parallel_calls=parallel, deterministic=True)
    dataset = dataset.batch(photos_a_part, drop_remainder=True).map(as_written(one_part))
    dataset = dataset.batch(parts, drop_remainder=True).map(as_written(join))
    return dataset.prefetch(2 * len(local_replicas))


class _Order:
    """Which photo stands where: arithmetic alone, on int64 scalars in a graph or out of it.

    Args:
        count: photos in all, at least as many as a step takes.
        photos_a_replica: photos of a replica's batch.
        replicas: in all that share the stream.
        local_replicas: the numbers of those that are fed here.
        seed: of the order.
    """

    def __init__(self, count, photos_a_replica, replicas, local_replicas, seed):
        self.count, self.photos_a_replica, self.replicas, self.seed = count, photos_a_replica, replicas, seed
        self.local_replicas = list(local_replicas)
        self.photos_a_step = photos_a_replica * replicas
        self.local_photos_a_step = photos_a_replica * len(local_replicas)

    def position(self, number):
        """The n-th photo that is fed here -> its position in the stream that all replicas share."""
        local = tf.constant(self.local_replicas, tf.int64)
        row, photo = number // self.photos_a_replica, number % self.photos_a_replica
        step, replica = row // len(self.local_replicas), local[row % len(self.local_replicas)]
        return (step * self.replicas + replica) * self.photos_a_replica + photo

    def photo(self, position, attempt):
        """The number of the photo at a position of the stream; attempts after the first are for unusable photos."""
        steps_a_pass = self.count // self.photos_a_step
        step, rest = position // self.photos_a_step, position % self.photos_a_step
        key = tf.stack([tf.constant(self.seed, tf.int64), step // steps_a_pass * _ATTEMPTS + attempt])
        # index_shuffle makes use of few bits of its seed: counted up, it repeats its orders every sixteenth pass
        key = tf.random.stateless_uniform([2], key, None, None, tf.int32)
        place = (step % steps_a_pass) * self.photos_a_step + rest
        return tf.random.experimental.index_shuffle(place, key, self.count - 1)

    def located(self, number):
        """The n-th photo that is fed here -> (its position, its number)."""
        position = self.position(number)
        return position, self.photo(position, tf.constant(0, tf.int64))


def _places(split, order, start_step, steps):
    """(position, number of the photo), and its bytes where the split reads them in an order of its own."""
    first, stop = start_step * order.local_photos_a_step, tf.int64.max // 2
    numbers = tf.data.Dataset.range(first, stop if steps is None else first + steps * order.local_photos_a_step)
    if split.stream is None:
        return numbers.map(as_written(order.located))
    photos = split.stream(
        seed=order.seed,
        photos_a_step=order.local_photos_a_step,
        share=_share(order.local_replicas, order.replicas),
        start_step=start_step,
    )
    return tf.data.Dataset.zip(numbers.map(as_written(order.position)), photos).map(
        lambda position, photo: (position, *photo)
    )


@contextlib.contextmanager
def unusable_named(split: Split, bad_images: BadImages) -> Iterator[None]:
    """Where `repeated_batches` of a split are taken: photos that can't be used, and stop them, are told in a line.

    Raises:
        UserError: 16 photos drawn for one place can't be used; it names one and says why.
    """
    try:
        yield
    except tf.errors.OpError as error:
        bad = next((name for name in split.names if name in bad_images.reasons), None)
        if _UNUSABLE not in str(error) or bad is None:
            raise
        bad_images.check()
        raise UserError(
            f"{_ATTEMPTS} photos drawn one after the other can't be used, such as {bad}: {bad_images.reasons[bad]}"
        ) from error


def _share(local_replicas, replicas):
    """(number, how many in all) of the equal shares of replicas, of which these are one."""
    size = len(local_replicas)
    number = local_replicas[0] // size
    if replicas % size or local_replicas != list(range(number * size, (number + 1) * size)):
        raise ValueError(
            f"local_replicas must be one of equal shares of {replicas} replicas for photos in shards, received "
            f"{local_replicas}"
        )
    return number, replicas // size
