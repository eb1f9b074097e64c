"""A whitening that is trained, the network fixed: versions of a photo together, others apart, kinds in between."""

import keras
import numpy as np
import tensorflow as tf

from mg_keras.embedding.whitening import Whitening
from mg_keras.layers import InfoNCE, KoLeo
from mg_keras.progress import Progress
from mg_keras.whitening_formulas import unit_embeddings, unit_rows, whitened

TEMPERATURE = 0.05
SPREAD_WEIGHT = 10.0
CLASS_WEIGHT, CLASS_TEMPERATURE = 3.0, 0.1
# of the network's answers, as distillation softens them
_SOFTENED = 2.0
# of the first step, to which the projection's values, brought to a mean square of 1, are changed by it
LEARNING_RATE = 0.02
PHOTOS_A_STEP = 512


def contrasted(
    whitening: Whitening,
    embeddings: np.ndarray,
    versions: np.ndarray,
    steps: int,
    seed: int = 0,
    logits: np.ndarray | None = None,
    temperature: float = TEMPERATURE,
    spread_weight: float = SPREAD_WEIGHT,
    class_weight: float = CLASS_WEIGHT,
    label: str | None = None,
) -> Whitening:
    """Trains the projection of a whitening, so that a version of a photo is nearer to its others than to other photos.

    Each step draws up to 512 photos and two pictures of each, of its versions and the photo itself, and takes a step
    of Adam, at a rate that falls linearly to 0, down InfoNCE + s KoLeo + c `class_contrast` of their descriptors. What
    edits do to photos is not the same everywhere, and a covariance, which `Whitening.fit_on_versions` goes by, knows
    only its mean. The first two, which are SSCD's (Pizzi et al. 2022), would alone part photos of one class as any
    others.

    Args:
        whitening: to begin with, of such photos.
        embeddings, versions: [N, d] and [N, V, d], as `Whitening.fit_on_versions` takes them.
        steps: how many.
        seed: of what is drawn.
        logits: [N, C], the network's class logits of the photos; None: without `class_contrast`.
        temperature: T of InfoNCE.
        spread_weight: s.
        class_weight: c.
        label: what to call it while it runs; None shows nothing.

    Returns:
        A `Whitening` of as many dimensions.

    Raises:
        ValueError: fewer than two photos, or no version or step.
    """
    if len(embeddings) < 2:
        raise ValueError(f"photos are told apart from others: at least 2 are needed, received {len(embeddings)}")
    if steps < 1 or not versions.shape[1]:
        raise ValueError(f"there must be 1 version and 1 step at least, received {versions.shape[1]} and {steps}")
    pictures = np.concatenate([embeddings[:, None], versions], axis=1, dtype=np.float32)
    count, of_each, _ = pictures.shape
    a_step = min(PHOTOS_A_STEP, count)
    scale = np.sqrt(np.mean(whitening.projection_**2))
    projection = tf.Variable(whitening.projection_ / scale, dtype=tf.float32)
    mean = tf.constant(whitening.mean_, tf.float32)
    rate = keras.optimizers.schedules.PolynomialDecay(LEARNING_RATE, steps, 0.0)
    optimizer = keras.optimizers.Adam(rate, beta_2=0.99)
    optimizer.build([projection])
    info_nce, koleo, photos = InfoNCE(temperature), KoLeo(), tf.tile(tf.range(a_step), [2])
    classes = None if logits is None else tf.nn.softmax(tf.constant(logits, tf.float32) / _SOFTENED)

    @tf.function(
        input_signature=[tf.TensorSpec([2 * a_step, pictures.shape[2]]), tf.TensorSpec([a_step], tf.int64)],
        autograph=False,
    )
    def step(drawn, rows):
        unit = unit_embeddings(keras.ops, drawn, whitening.bias_channel)
        with tf.GradientTape() as tape:
            descriptors = unit_rows(keras.ops, whitened(keras.ops, unit, mean, projection))
            loss = info_nce(descriptors, photos) + spread_weight * koleo(descriptors, photos)
            if classes is not None:
                loss += class_weight * class_contrast(descriptors, tf.tile(tf.gather(classes, rows), [2, 1]), photos)
        optimizer.apply_gradients([(tape.gradient(loss, projection), projection)])

    rng = np.random.default_rng(seed)
    with Progress(label or "", steps if label else 0, "steps") as progress:
        for _ in range(steps):
            rows = rng.choice(count, a_step, replace=False)
            two = np.argsort(rng.random((a_step, of_each)), axis=1)[:, :2]
            step(np.concatenate(pictures[rows[:, None], two].transpose(1, 0, 2)), rows)
            if label:
                progress.advance()
    return Whitening.of_projection(embeddings, projection.numpy() * scale, whitening.bias_channel)


def class_contrast(descriptors: tf.Tensor, classes: tf.Tensor, photos: tf.Tensor) -> tf.Tensor:
    """Photos are to be as near to others as their classes are alike, by a network's soft answers q.

    With cosines s and the temperature T, `CLASS_TEMPERATURE`, over the pictures a of other photos than that of i:

        mean over i: - sum over a: w_ia log( exp(s_ia / T) / sum over b: exp(s_ib / T) )

    with w_ia the scalar products q_i q_a, divided so that their sum over a is 1. It is the supervised contrastive loss
    (Khosla et al. 2020) with soft labels, without a photo's own versions.

    Args:
        descriptors: float32 [B, k], unit norm.
        classes: float32 [B, C], probabilities.
        photos: int [B], equal for pictures of one photo, of which there are two at least.

    Returns:
        A scalar, float32.
    """
    others = photos[:, None] != photos[None, :]
    alike = tf.where(others, tf.matmul(classes, classes, transpose_b=True), 0.0)
    alike /= tf.maximum(tf.reduce_sum(alike, axis=1, keepdims=True), 1e-12)
    similarities = tf.where(others, tf.matmul(descriptors, descriptors, transpose_b=True) / CLASS_TEMPERATURE, -1e9)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(alike, similarities))
