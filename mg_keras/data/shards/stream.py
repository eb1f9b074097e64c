"""Photos of shards for training: chunks of neighbours, read in parallel, through a buffer that is shuffled.

The order is a function of (seed, share, place in the stream) and of the index; nothing that was read before is in it.
So the stream begins at any step at the cost of one buffer, which is read but not decoded.
"""

import contextlib
import math
import os

import numpy as np
import tensorflow as tf

from mg_keras.data.apart import as_written
from mg_keras.data.shards.index import Index

# A request to an object store takes as long for a photo as for a megabyte.
CHUNK_BYTES = 1 << 20
# 128 chunks from anywhere: that many classes meet in a buffer even where each shard holds one class
BUFFER_BYTES = 128 << 20
# chunks that are read at the same time
CYCLE_LENGTH = 16


class Stream:
    """The training photos of an index, an endless sequence of passes over them.

    In each pass the chunks come in a new order. The sequence of their photos is cut into buffers, and a buffer is given
    out in an order of its own once it is full.

    Args:
        index: `Index`.
        chunk_bytes: bytes of neighbouring photos that are read by one request, at least one photo.
        buffer_bytes: bytes of photos in a buffer, about; up to three times as many are held in memory.
    """

    def __init__(self, index: Index, chunk_bytes: int = CHUNK_BYTES, buffer_bytes: int = BUFFER_BYTES):
        self.index = index
        self.first, self.count = _chunks(index, chunk_bytes)
        self.buffer = max(1, int(buffer_bytes // max(index.length.mean(), 1))) if len(index) else 1

    def __call__(
        self, *, seed: int, photos_a_step: int, share: tuple[int, int] = (0, 1), start_step: int = 0
    ) -> tf.data.Dataset:
        """The photos from a step on.

        Args:
            seed: int.
            photos_a_step: how many of this share a step takes. What does not fill a step at the end of a pass waits for
                another one, so that no step meets a photo twice.
            share: (number, shares in all): each gives other photos, as many a pass, for the machines of a cluster.
            start_step: int >= 0.

        Returns:
            tf.data.Dataset of (number of the photo, int64; its encoded bytes), endless. Bytes that could not be read
            are empty.
        """
        number, shares = share
        steps_a_pass = len(self.index) // shares // photos_a_step
        photos_a_pass = steps_a_pass * photos_a_step
        buffer = min(self.buffer, photos_a_pass)
        buffers_a_pass = math.ceil(photos_a_pass / buffer)
        first_pass, done = start_step // steps_a_pass, start_step % steps_a_pass * photos_a_step
        begin = number * (len(self.index) // shares)

        def plan(number):
            skipped = done // buffer * buffer if number == first_pass else 0
            pieces = self._pieces(seed, int(number), begin + skipped, begin + photos_a_pass)
            return np.concatenate([pieces, self._filling(buffers_a_pass * buffer - photos_a_pass)])

        def pieces(number):
            rows = tf.numpy_function(plan, [number], tf.int64, stateful=False)
            return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [None, 2]))

        def photos(piece):
            contents = tf.numpy_function(self._read, [piece[0], piece[1]], tf.string, stateful=False)
            numbers = tf.where(piece[0] < 0, tf.fill([piece[1]], piece[0]), piece[0] + tf.range(piece[1]))
            return numbers, tf.ensure_shape(contents, [None])

        def shuffled(place, values):
            # two numbers of 32 bits, whatever the seed
            key = tf.random.stateless_uniform([2], [tf.constant(seed, tf.int64), place], None, None, tf.int32)
            order = tf.random.experimental.stateless_shuffle(tf.range(buffer), key)
            return tuple(tf.gather(value, order) for value in values)

        dataset = tf.data.Dataset.range(first_pass, tf.int64.max).flat_map(pieces)
        dataset = dataset.interleave(
            # in a dataset of its own: what the function itself does, it does for one piece after the other
            lambda piece: tf.data.Dataset.from_tensors(piece).map(as_written(photos)).unbatch(),
            cycle_length=CYCLE_LENGTH,
            # whole pieces, one after the other: their end is seen before the turn goes on
            block_length=int(self.count.max()) + 1,
            num_parallel_calls=CYCLE_LENGTH,
            deterministic=True,
        )
        dataset = dataset.batch(buffer, drop_remainder=True).enumerate(first_pass * buffers_a_pass + done // buffer)
        # one buffer ahead; by default TensorFlow would fill as many as it has threads
        dataset = dataset.map(as_written(shuffled), num_parallel_calls=1, deterministic=True).unbatch()
        options = tf.data.Options()
        # a thread that waits for a store is no core at work
        options.threading.private_threadpool_size = CYCLE_LENGTH + (os.cpu_count() or 1)
        return dataset.filter(lambda number, contents: number >= 0).skip(done % buffer).with_options(options)

    def _pieces(self, seed, number, begin, end):
        """int64 [K, 2]: (first photo, how many) of the chunks of a pass, from its photo `begin` to before `end`."""
        order = np.random.default_rng([seed % 2**63, number]).permutation(len(self.first))
        first, count = self.first[order], self.count[order]
        after = np.cumsum(count)
        start, stop = np.maximum(after - count, begin), np.minimum(after, end)
        kept = start < stop
        return np.stack([first + start - (after - count), stop - start], 1)[kept]

    def _filling(self, count):
        """Pieces without photos, `count` places in all, that fill the last buffer of a pass."""
        longest = int(self.count.max())
        sizes = [min(longest, count - done) for done in range(0, count, longest)]
        return np.array([(-1, size) for size in sizes], np.int64).reshape(-1, 2)

    def _read(self, first, count):
        contents = np.full(count, b"", object)
        if first >= 0:
            # what is not read is noted as unusable, with the reason
            with contextlib.suppress(OSError):
                contents[:] = self.index.read(int(first), int(count))
        return contents


def _chunks(index, chunk_bytes):
    """(first, count), int64 [K]: neighbours in one shard that span at most `chunk_bytes`, or single photos."""
    end = index.position + index.length
    firsts = []
    for shard in range(len(index.paths)):
        row, stop = np.searchsorted(index.shard, [shard, shard + 1]).tolist()
        while row < stop:
            firsts.append(row)
            within = np.searchsorted(end[row:stop], index.position[row] + chunk_bytes, "right")
            row += max(1, int(within))
    return np.array(firsts, np.int64), np.diff([*firsts, len(index)])
