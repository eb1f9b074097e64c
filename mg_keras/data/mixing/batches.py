"""A stream of batches, mixed: what is drawn depends on the seed, the step and the replica alone."""

from collections.abc import Sequence

import tensorflow as tf

from mg_keras.data import mixing
from mg_keras.data.apart import as_written


def mixed_batches(
    batches: tf.data.Dataset,
    kind: str,
    num_classes: int,
    alpha: float,
    *,
    seed: int = 0,
    start_step: int = 0,
    local_replicas: Sequence[int] = (0,),
) -> tf.data.Dataset:
    """Mixes the batches of `mg_keras.data.repeated.repeated_batches`.

    Args:
        batches: of (images float32 [B, H, W, 3], labels int32 [B], instance ids [B]), `len(local_replicas)` elements a
            step.
        kind: one of `mg_keras.data.mixing.NAMES`, but `"none"`.
        num_classes: C.
        alpha: > 0, of the Beta distribution from which a batch's share is drawn; large values mix half and half.
        seed, start_step, local_replicas: as `repeated_batches` takes them.

    Returns:
        tf.data.Dataset of the same images, mixed, with labels float32 [B, C], whose rows sum to 1.

    Raises:
        ValueError: for another kind, or an alpha out of range.
    """
    mix_batch = mixing.get(kind)
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, received {alpha}")
    replicas = tf.constant(local_replicas, tf.int64)

    def mix(number, batch):
        images, labels, instance_ids = batch
        step, replica = start_step + number // len(local_replicas), replicas[number % len(local_replicas)]
        key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0x6D6978], tf.int64), step)
        key = tf.random.experimental.stateless_fold_in(key, replica)
        shares = tf.one_hot(labels, num_classes)
        return *mix_batch(images, shares, alpha, key), instance_ids

    return batches.enumerate().map(as_written(mix), num_parallel_calls=tf.data.AUTOTUNE)
