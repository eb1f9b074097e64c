"""What ways of mixing share: share, partners and place are drawn once for a batch."""

import tensorflow as tf


def draws(alpha: float, count: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """lambda of Beta(alpha, alpha), at least 1/2; a permutation of `count` rows; a point [2] in 0-1."""
    keys = tf.random.experimental.stateless_split(seed, 3)
    # Beta as a ratio of Gammas, which for a small alpha may both be zero in float32
    gammas = tf.random.stateless_gamma([2], keys[0], tf.constant(alpha, tf.float64), dtype=tf.float64)
    share = tf.cast(tf.math.divide_no_nan(tf.reduce_max(gammas), tf.reduce_sum(gammas)), tf.float32)
    share = tf.where(share > 0, share, 1.0)
    partners = tf.argsort(tf.random.stateless_uniform([count], keys[1]))
    return share, partners, tf.random.stateless_uniform([2], keys[2])


def blend(values: tf.Tensor, partners: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """`share * x_i + (1 - share) * x_j` of each row i and its partner j."""
    return share * values + (1.0 - share) * tf.gather(values, partners)
