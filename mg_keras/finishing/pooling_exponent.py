"""Choosing the test exponent p* of a resolution: cross-validation on IN-aug, or fine-tuning p alone (section 3.5).

Two things differ from the paper, each measured in docs/claims.md: IN-aug's versions are made by the recipe `copies`,
and of exponents that it can't tell from the best the one nearest to that of training is taken.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from mg_keras.data import augmentations
from mg_keras.data.sources import Split
from mg_keras.embedding.photos import EmbeddingNetwork, embed, embed_versions, preparation_of, prepared_batches
from mg_keras.errors import UserError
from mg_keras.evaluation.metrics import group_counts, top_k_accuracy
from mg_keras.finishing.settings import EXPONENTS, TOLERANCE
from mg_keras.layers.gem import SMALLEST_EXPONENT
from mg_keras.models import Network
from mg_keras.progress import Progress

VERSIONS = 5

# unlabelled photos are taken for IN-aug as if they were of so many classes
_CLASSES_UNLABELLED = 100

# photos whose feature maps are held at once in fine-tuning, counted in pixels: with ResNet-50, 400 MB
_PIXELS_A_BLOCK = 1024 * 224 * 224


def in_aug_photos(split: Split, per_class: int, seed: int = 0) -> Split:
    """`per_class` photos of each class, drawn with a seed, as a split: what IN-aug is made of.

    Of photos without labels, as many as of 100 classes.
    """
    if not split.labelled:
        per_class *= _CLASSES_UNLABELLED
    return split.subset(_rows_of_classes(split, per_class, seed))


def in_aug_counts(
    network: EmbeddingNetwork,
    photos: Split,
    resolution: int,
    exponents: Sequence[float] = EXPONENTS,
    seed: int = 0,
    label: str | None = None,
    augmentation: str = "full",
) -> dict[float, np.ndarray]:
    """What each photo adds to the IN-aug score of each exponent at one resolution.

    Five versions of each photo, each a query: the number of versions of its own photo among its five nearest, itself
    included, 1 to 5, and of that the mean over a photo's versions. The trunk runs once for all exponents.

    Args:
        network: `MultiGrain`, or another network with `embed_batch` (`mg_keras.embedding.photos`).
        photos: split of `in_aug_photos`.
        resolution: pixels s* of the augmented crops.
        exponents: the p* to try, each > 0.
        seed: of the augmentations.
        label: what to call it while it runs; None shows nothing.
        augmentation: the recipe of the versions, of `mg_keras.data.augmentations`; the paper's is `"full"`.

    Returns:
        dict exponent -> float64 [n], for each of the n photos that have versions; the score is the mean.

    Raises:
        UserError: as `embed_versions`: photos can't be used.
    """
    recipe = augmentations.get(augmentation)
    found = embed_versions(network, photos, recipe, resolution, VERSIONS, exponents, seed, label)
    _, photo = np.unique(found.rows, return_inverse=True)
    return {
        exponent: np.bincount(photo, group_counts(values, found.rows, VERSIONS)) / np.bincount(photo)
        for exponent, values in zip(exponents, found.values, strict=True)
    }


def paired_errors(found: Mapping[float, np.ndarray]) -> dict[float, float]:
    """The standard error of how far the score of each exponent is below the highest one, photo by photo.

    Exponents see the same versions, so their difference is known far better than either score.

    Args:
        found: exponent -> [n], of `in_aug_counts`.

    Returns:
        dict exponent -> std over the photos of (highest - its own) / sqrt(n); 0 for the best. Of one photo nothing is
        known, and all are 0.
    """
    best = found[best_exponent({exponent: counts.mean() for exponent, counts in found.items()})]
    if len(best) < 2:
        return dict.fromkeys(found, 0.0)
    return {exponent: float(np.std(best - counts, ddof=1) / np.sqrt(len(best))) for exponent, counts in found.items()}


def best_exponent(
    scores: Mapping[float, float],
    errors: Mapping[float, float] | None = None,
    training: float | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """The p* to use: of the exponents that IN-aug can't tell from the best, the one nearest to the training exponent.

    Args:
        scores: exponent -> IN-aug score.
        errors: exponent -> standard error, of `paired_errors`; those that are not known count as 0.
        training: p; None takes the exponent with the highest score whatever the errors, as the paper does.
        tolerance: how many standard errors below the highest score a score may be.

    Returns:
        One of the exponents; the smallest of equals.

    Example:
        >>> best_exponent({1: 4.0, 3: 4.294, 7: 4.299}, {1: 0.02, 3: 0.01, 7: 0.0}, training=3)
        3
    """
    best = min(scores, key=lambda exponent: (-scores[exponent], exponent))
    if training is None:
        return best
    errors = errors or {}
    level = [p for p in scores if scores[best] - scores[p] <= tolerance * errors.get(p, 0.0)]
    return min(level, key=lambda exponent: (abs(exponent - training), exponent))


def class_accuracies(
    network: EmbeddingNetwork,
    val: Split,
    resolution: int,
    train_resolution: int,
    exponents: Sequence[float] = EXPONENTS,
    label: str | None = None,
) -> dict[float, dict[str, float]]:
    """Class accuracy of each exponent at one resolution, from one run of the trunk over the validation photos.

    Args:
        network: `MultiGrain`, or another network with `embed_batch` and `classify` (`mg_keras.embedding.photos`).
        val: labelled split of the validation photos; those that can't be used are left out.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        exponents: the p* to measure, each > 0.
        label: what to call it while it runs; None shows nothing.

    Returns:
        dict exponent -> `{"top1": share, "top5": share}`. With fewer than five classes `top5` looks at all of them.

    Raises:
        UserError: none of the validation photos can be used.

    Example:
        >>> class_accuracies(model, source.val, 500, train_resolution=224)[4]["top1"]  # doctest: +SKIP
        0.786
    """
    found = embed(network, val, resolution, train_resolution, exponents, label)
    if not len(found.rows):
        raise UserError("none of the validation photos can be used: nothing to measure")
    labels, accuracies = val.labels[found.rows], {}
    for number, exponent in enumerate(exponents):
        logits = found.logits(network, number)
        accuracies[exponent] = {
            "top1": top_k_accuracy(logits, labels, 1),
            "top5": top_k_accuracy(logits, labels, min(5, logits.shape[1])),
        }
    return accuracies


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """An exponent learnt by `fine_tune_exponent`, and its history.

    Attributes:
        initial: where p started.
        exponents: float64 [steps], p after each step.
        losses: float64 [steps], the mean cross-entropy of the step's photos before it; NaN where none could be used.
        batches: for each step the rows of its photos in the split, int64; the unusable ones are missing.
    """

    initial: float
    exponents: np.ndarray
    losses: np.ndarray
    batches: list

    @property
    def p_star(self) -> float:
        """The learnt exponent."""
        return float(self.exponents[-1])

    @property
    def photos(self) -> int:
        """How many photos it was learnt from."""
        return len(np.unique(np.concatenate(self.batches)))


def fine_tune_exponent(
    network: Network,
    split: Split,
    resolution: int,
    train_resolution: int,
    initial: float | None = None,
    per_class: int = 50,
    learning_rate: float = 0.005,
    momentum: float = 0.9,
    batch_size: int = 4,
    epochs: int = 1,
    seed: int = 0,
    label: str | None = None,
) -> FineTuned:
    """Learns the test exponent of a resolution by SGD, all else in the network fixed (section 3.5; supplement E).

    The loss is the cross-entropy of the network's own classifier on photos prepared as for a test at s*, batch norm in
    inference mode. Step i of n, with g the mean of its photos' gradients in p:

        v ← momentum v + g,    p ← max(p - learning_rate (1 - i/n)^0.9 v, 0.1)

    p itself is learnt, as in the reference, not its logarithm. The bound of 0.1 is the one of a learnt `GeM`
    (`mg_keras.layers.gem.SMALLEST_EXPONENT`). Every epoch goes through the drawn photos in an order of its own; a photo
    that can't be used is missing from its step.

    The photos of a step may differ in shape, so each is pooled from a feature map of its own. The trunk makes these for
    many steps at a time, photos of one shape together: about 1000 photos of 224x224, or fewer larger ones, however many
    there are in all.

    Args:
        network: `MultiGrain`. Its weights, the training exponent among them, stay as they are.
        split: labelled photos to learn from, those of training.
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        initial: p to start from, at least 0.1; None: the training exponent.
        per_class: photos of each class at most, drawn with the seed.
        learning_rate: > 0, of the first step.
        momentum: in [0, 1).
        batch_size: photos in a step; the last one of an epoch may have fewer.
        epochs: passes over the photos.
        seed: of the draw and the orders.
        label: what to call it while it runs; None shows nothing.

    Returns:
        `FineTuned`.

    Raises:
        ValueError: a value is out of range, the classifier has no class of that label, or the network is no
            `MultiGrain`.
        UserError: none of the photos can be used, or a step gave no number.

    Example:
        >>> fine_tune_exponent(model, source.train, 500, train_resolution=224).p_star  # doctest: +SKIP
        4.37
    """
    if not isinstance(network, Network):
        raise ValueError(
            f"network must be a MultiGrain, whose trunk and classifier can be told apart, received {network!r}"
        )
    initial = float(network.pool.pooling_exponent if initial is None else initial)
    labels = split.labels
    counts = {"per_class": per_class, "batch_size": batch_size, "epochs": epochs}
    _check_fine_tuning(initial, learning_rate, momentum, counts, labels, network.num_classes)
    rows, rng = _rows_of_classes(split, per_class, seed), np.random.default_rng([seed, 1])
    orders = [rng.permutation(rows) for _ in range(epochs)]
    batches = [order[start : start + batch_size] for order in orders for start in range(0, len(rows), batch_size)]
    # an order of several short epochs fits one block, and its photos pass through the trunk once
    steps_a_block = max(1, _PIXELS_A_BLOCK // (resolution**2 * batch_size))
    blocks = [np.unique(np.concatenate(batches[i : i + steps_a_block])) for i in range(0, len(batches), steps_a_block)]
    loss_and_gradient = _loss_and_gradient(network)

    exponent, velocity = initial, 0.0
    exponents, losses, used = [], [], []
    with Progress(label or "", sum(map(len, blocks)) if label else 0, "photos") as progress:
        maps_of_blocks = _maps_of_blocks(network, split, blocks, resolution, train_resolution, label and progress)
        for step, batch in enumerate(batches):
            if step % steps_a_block == 0:
                maps = next(maps_of_blocks)
            used.append(np.array([row for row in batch if row in maps], np.int64))
            loss = np.nan
            if len(used[-1]):
                pairs = [loss_and_gradient(list(maps[row]), labels[row], exponent) for row in used[-1]]
                loss, gradient = np.mean(np.array(pairs, np.float64), axis=0)
                velocity = momentum * velocity + gradient
                rate = learning_rate * (1 - step / len(batches)) ** 0.9
                exponent = max(exponent - rate * velocity, SMALLEST_EXPONENT)
                if not np.isfinite(loss + exponent):
                    raise UserError(
                        f"fine-tuning p at {resolution} px: step {step + 1} gave the loss {loss:g} and p {exponent:g}"
                    )
            exponents.append(exponent)
            losses.append(loss)
    if not any(map(len, used)):
        raise UserError(f"none of the {len(rows)} photos to fine-tune p on can be used")
    return FineTuned(initial, np.array(exponents), np.array(losses), used)


def _rows_of_classes(split, per_class, seed):
    """int64, ascending: `per_class` rows of each class, drawn with the seed."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(split.labels == label))[:per_class] for label in np.unique(split.labels)]
    return np.sort(np.concatenate(rows))


def _check_fine_tuning(initial, learning_rate, momentum, counts, labels, num_classes):
    """Raises the ValueError of `fine_tune_exponent`."""
    if not initial >= SMALLEST_EXPONENT:
        raise ValueError(f"initial must be at least {SMALLEST_EXPONENT}, received {initial}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, received {learning_rate}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), received {momentum}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, received {value}")
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, received {np.unique(labels)}")


def _maps_of_blocks(network, split, blocks, resolution, train_resolution, progress):
    """For each block of rows its feature maps, row -> those of the photo [1, h, w, c]; unusable photos are missing.

    It is one dict for all, filled anew.
    """
    trunk, maps = _trunk(network), {}
    for block in blocks:
        maps.clear()  # those of the last block must be gone before the next ones come
        photos = prepared_batches(split, resolution, train_resolution, block, preparation_of(network))
        for found, unusable, images, _ in photos:
            if len(found):
                maps.update(zip(found.tolist(), _by_photo(trunk(images), len(found)), strict=True))
            if progress:
                progress.advance(len(found) + len(unusable))
        yield maps


def _trunk(network):
    """Images float32 [B, H, W, 3] in 0-255 -> list of maps float32 [B, h, w, c], whatever their shape."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)], autograph=False)
    def trunk(images):
        return [tf.cast(features, tf.float32) for features in network.feature_maps(images)]

    return trunk


def _by_photo(maps, count):
    """Maps of a batch -> those of each photo."""
    return zip(*(tf.split(features, count) for features in maps), strict=True)


def _loss_and_gradient(network):
    """One photo's feature maps [1, h, w, c], its label and p -> cross-entropy and its derivative in p."""

    @tf.function(
        input_signature=[
            [tf.TensorSpec([1, None, None, width], tf.float32) for width in network.map_channels],
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.float32),
        ],
        autograph=False,
    )
    def loss_and_gradient(maps, label, exponent):
        with tf.GradientTape() as tape:
            tape.watch(exponent)
            logits = network.classifier(network.pooled(maps, exponent))
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(label[None], logits)[0]
        return loss, tape.gradient(loss, exponent)

    return loss_and_gradient
