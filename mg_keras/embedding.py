"""Photos of any size to embeddings, at a resolution s* and one or more pooling exponents p* (sections 3.5, 4.2)."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from mg_keras.data import resolutions
from mg_keras.data.images import BadImages, try_decode
from mg_keras.data.repeated import repeated_batches
from mg_keras.progress import Progress

# pixels in a batch at most: 64 photos of 224x224, so that memory stays level whatever the resolution
_PIXELS_A_BATCH = 64 * 224 * 224


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of photos, in the order of the photos.

    Attributes:
        rows: int64 [N], the photos' numbers in their split; the unusable ones are missing.
        values: float32 [P, N, d], pooled embeddings (not normalised) for each of P exponents.
        unusable: numbers of the photos that could not be used.
    """

    rows: np.ndarray
    values: np.ndarray
    unusable: np.ndarray

    def logits(self, model, exponent=0):
        """float32 [N, C]: the model's classifier on the embeddings of the exponent numbered `exponent`."""
        kernel, bias = (np.asarray(weight) for weight in model.classifier.weights)
        return self.values[exponent] @ kernel + bias


def embed(model, split, resolution, train_resolution, exponents=None, label=None):
    """Embeds every usable photo of a split.

    Up to the training resolution: smallest side to 256/224 of it, square centre crop. Beyond: largest side, no crop
    (section 7 of the protocol). Photos of one shape run together; decoding overlaps with the network.

    Args:
        model: `MultiGrain`.
        split: `mg_keras.data.sources.Split`.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        exponents: list of p*; None: the training exponent alone. The trunk runs once for all of them.
        label: what to call it while it runs; None shows nothing.

    Returns:
        `Embeddings`.
    """
    prepare = resolutions.for_resolution(resolution, train_resolution)

    def load(row):
        ok, image = try_decode(split.read, row)
        # an unusable photo goes on as a black one: its shape must be one that the network takes
        image = tf.cond(ok, lambda: image, lambda: tf.zeros((resolution, resolution, 3), tf.uint8))
        return row, ok, prepare(image, resolution)

    dataset = tf.data.Dataset.range(len(split)).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    size = max(1, _PIXELS_A_BATCH // resolution**2)

    def shape(row, ok, image):
        del row, ok
        height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
        return height * (1 << 20) + width

    dataset = dataset.group_by_window(shape, lambda _, window: window.batch(size), window_size=size)
    return _run(model, dataset.prefetch(2), len(split), exponents, label)


def embed_versions(model, split, augment, resolution, versions, exponents=None, seed=0, label=None):
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
    size = max(1, _PIXELS_A_BATCH // resolution**2)
    dataset = batches.unbatch().batch(size).map(lambda images, _, ids: (ids, tf.ones_like(ids, tf.bool), images))
    return _run(model, dataset.prefetch(2), versions * len(split), exponents, label)


def embed_photos(model, images, exponent):
    """float32 [N, d]: embeddings of a list of prepared photos (float32 [H, W, 3] in 0-255, any sizes), in order."""
    forward = _forward(model, (float(exponent),))
    return np.concatenate([forward(image[None]).numpy()[0] for image in images])


def _run(model, dataset, total, exponents, label):
    """Runs the network on a dataset of (row numbers, usable, images), each [B, ...]."""
    forward = _forward(model, (None,) if exponents is None else tuple(float(exponent) for exponent in exponents))
    rows, values, unusable = [], [], []
    with Progress(label or "", total if label else 0, "photos") as progress:
        for numbers, ok, images in dataset:
            found, numbers, ok = (value.numpy() for value in (forward(images), numbers, ok))  # noqa: PLW2901
            rows.append(numbers[ok])
            unusable.append(numbers[~ok])
            values.append(found[:, ok])
            if label:
                progress.advance(len(ok))
    rows = np.concatenate(rows).astype(np.int64)
    order = np.argsort(rows, kind="stable")
    return Embeddings(rows[order], np.concatenate(values, 1)[:, order], np.sort(np.concatenate(unusable)))


@functools.lru_cache(maxsize=4)
def _forward(model, exponents):
    """Images to embeddings for a tuple of exponents; kept, as validation asks for the same one after every epoch."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    def forward(images):
        features = model.trunk(model.normalize(images), training=False)
        return tf.stack([model.pool(features, p_star=exponent) for exponent in exponents])

    return forward
