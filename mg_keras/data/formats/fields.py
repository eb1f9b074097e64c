"""Numbers in a file's bytes, in the graph. What lies behind the end reads as 0, so that no header can make it fail."""

from collections.abc import Callable, Sequence

import tensorflow as tf

# more than any program writes: a file of empty ones would take hours
_MOST_BLOCKS = 10_000


def at(contents: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """The `count` bytes from a position, a scalar of 0 or more: int32 [count]."""
    return tf.cast(tf.ensure_shape(tf.io.decode_raw(_padded(contents, position, count), tf.uint8), [count]), tf.int32)


def words(contents: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """The `count` numbers of four bytes from a position, each with its lowest byte first: int32 [count]."""
    return tf.ensure_shape(tf.io.decode_raw(_padded(contents, position, 4 * count), tf.int32), [count])


def _padded(contents, position, count):
    inside = tf.strings.substr(contents, tf.minimum(position, tf.strings.length(contents)), count)
    return tf.strings.substr(tf.strings.join([inside, b"\0" * count]), 0, count)


def has(contents: tf.Tensor, position: tf.Tensor | int, sign: bytes) -> tf.Tensor:
    """Whether the bytes `sign` stand at a position."""
    return tf.strings.substr(contents, tf.minimum(position, tf.strings.length(contents)), len(sign)) == sign


def little(values: tf.Tensor) -> tf.Tensor:
    """Bytes [..., n], the lowest first -> int32 [...]; four of them may make it negative."""
    return _weighed(values, range(values.shape[-1]))


def big(values: tf.Tensor) -> tf.Tensor:
    """Bytes [..., n], the highest first -> int32 [...]; four of them may make it negative."""
    return _weighed(values, reversed(range(values.shape[-1])))


def first_text(pairs: Sequence[tuple]) -> tf.Tensor:
    """The text of the first pair of (scalar bool, text) that is true: scalar string, empty where none is."""
    found = tf.constant("")
    for is_so, text in reversed(pairs):
        found = tf.where(is_so, text, found)
    return found


def first_block(contents: tf.Tensor, start: int, read: Callable) -> tuple[tf.Tensor, tf.Tensor]:
    """Looks for one of the blocks that a file consists of.

    Args:
        contents: the file.
        start: int, position of the first block.
        read: a block's first 8 bytes, scalar string -> (whether it is one at all, whether it is the one that is looked
            for, its bytes in all). It runs for every block: of few operations.

    Returns:
        (position, bytes in all) of the first one that is looked for; the bytes are 0 where there is none.
    """
    last = tf.strings.length(contents) - 8

    def following(position, length, *_):
        position += length
        is_block, is_wanted, length = read(tf.strings.substr(contents, tf.minimum(position, last), 8))
        is_block &= (length > 0) & (length <= last + 8 - position)
        return position, length, is_block & ~is_wanted, is_block & is_wanted

    position, length, _, found = tf.while_loop(
        lambda position, length, looking, found: looking,
        following,
        (tf.constant(0), tf.constant(start), start <= last, tf.constant(False)),
        parallel_iterations=1,
        maximum_iterations=_MOST_BLOCKS,
    )
    return position, tf.where(found, length, 0)


def _weighed(values, places):
    # a bit that is shifted into the sign must arrive there: 1 << 31 is no int32
    return tf.reduce_sum(tf.bitwise.left_shift(values, tf.constant([8 * place for place in places])), -1)
