"""Mixed images and labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), of a batch as a whole.

Each image is mixed with another of the replica's batch, and its label becomes shares of the classes. What is drawn
depends on the seed, the step and the replica alone, so a resumed run repeats it. The first of a pair never has the
smaller share: its instance id stays the id of what is mostly seen. As each image is first and second once, and the draw
of the share is symmetric, a batch holds the same mixtures as without that.
"""

from collections.abc import Sequence

import tensorflow as tf

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
        kind: one of `KINDS`, but `"none"`.
        num_classes: C.
        alpha: > 0, of the Beta distribution from which a batch's share is drawn; large values mix half and half.
        seed, start_step, local_replicas: as `repeated_batches` takes them.

    Returns:
        tf.data.Dataset of the same images, mixed, with labels float32 [B, C], whose rows sum to 1.

    Raises:
        ValueError: for another kind, or an alpha out of range.
    """
    if kind not in _MIXERS:
        raise ValueError(f"kind must be one of {', '.join(_MIXERS)}, received {kind!r}")
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, received {alpha}")
    replicas = tf.constant(local_replicas, tf.int64)

    def mix(number, batch):
        images, labels, instance_ids = batch
        step, replica = start_step + number // len(local_replicas), replicas[number % len(local_replicas)]
        key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0x6D6978], tf.int64), step)
        key = tf.random.experimental.stateless_fold_in(key, replica)
        shares = tf.one_hot(labels, num_classes)
        return *_MIXERS[kind](images, shares, alpha, key), instance_ids

    return batches.enumerate().map(as_written(mix), num_parallel_calls=tf.data.AUTOTUNE)


def mixup(images: tf.Tensor, labels: tf.Tensor, alpha: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`lambda x_i + (1 - lambda) x_j` of images and labels, lambda of Beta(alpha, alpha), at least 1/2.

    Args:
        images: float32 [B, H, W, 3].
        labels: float32 [B, C].
        alpha: > 0.
        seed: integers [2].

    Returns:
        (images, labels) of the same shapes.
    """
    share, partners, _ = _draws(alpha, tf.shape(images)[0], seed)
    return _blend(images, partners, share), _blend(labels, partners, share)


def cutmix(images: tf.Tensor, labels: tf.Tensor, alpha: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A box of each image is another image's, at the same place in all of a batch.

    The box has the image's proportions and the area 1 - lambda, lambda of Beta(alpha, alpha) and at least 1/2; its
    middle is anywhere in the image, and what is outside is cut off. Labels are mixed by the areas that are seen.

    Args:
        images: float32 [B, H, W, 3].
        labels: float32 [B, C].
        alpha: > 0.
        seed: integers [2].

    Returns:
        (images, labels) of the same shapes.
    """
    share, partners, middle = _draws(alpha, tf.shape(images)[0], seed)
    sides = tf.shape(images)[1:3]
    lengths = tf.cast(sides, tf.float32)
    half = lengths * tf.sqrt(1.0 - share) / 2.0
    first = tf.cast(tf.round(tf.clip_by_value(middle * lengths - half, 0.0, lengths)), tf.int32)
    last = tf.cast(tf.round(tf.clip_by_value(middle * lengths + half, 0.0, lengths)), tf.int32)
    rows, columns = (
        tf.logical_and(tf.range(sides[axis]) >= first[axis], tf.range(sides[axis]) < last[axis]) for axis in (0, 1)
    )
    box = tf.logical_and(rows[:, None], columns[None, :])
    seen = 1.0 - tf.reduce_mean(tf.cast(box, tf.float32))
    return tf.where(box[..., None], tf.gather(images, partners), images), _blend(labels, partners, seen)


def _draws(alpha, count, seed):
    """lambda of Beta(alpha, alpha), at least 1/2; a permutation of `count` rows; a point [2] in 0-1."""
    keys = tf.random.experimental.stateless_split(seed, 3)
    # Beta as a ratio of Gammas, which for a small alpha may both be zero in float32
    gammas = tf.random.stateless_gamma([2], keys[0], tf.constant(alpha, tf.float64), dtype=tf.float64)
    share = tf.cast(tf.math.divide_no_nan(tf.reduce_max(gammas), tf.reduce_sum(gammas)), tf.float32)
    share = tf.where(share > 0, share, 1.0)
    partners = tf.argsort(tf.random.stateless_uniform([count], keys[1]))
    return share, partners, tf.random.stateless_uniform([2], keys[2])


def _blend(values, partners, share):
    return share * values + (1.0 - share) * tf.gather(values, partners)


_MIXERS = {"mixup": mixup, "cutmix": cutmix}
KINDS = ("none", *_MIXERS)
"""What a run's `mixing` may be."""
