"""Choosing the test exponent p* of a resolution by cross-validation on IN-aug (PAPER: section 3.5)."""

import numpy as np

from mg_keras.data import augmentations
from mg_keras.embedding import embed_versions
from mg_keras.evaluation.metrics import group_score

EXPONENTS = tuple(range(1, 11))
VERSIONS = 5


def in_aug_photos(split, per_class, seed=0):
    """`per_class` photos of each class, drawn with a seed, as a split: what IN-aug is made of."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(split.labels == label))[:per_class] for label in np.unique(split.labels)]
    return split.subset(np.sort(np.concatenate(rows)))


def in_aug_scores(model, photos, resolution, exponents=EXPONENTS, seed=0, label=None):
    """The IN-aug score of each exponent at one resolution.

    Five "full" augmentations of each photo, each a query: the mean number of versions of its own photo among its five
    nearest, itself included, 1 to 5. The trunk runs once for all exponents.

    Args:
        model: `MultiGrain`.
        photos: split of `in_aug_photos`.
        resolution: pixels s* of the augmented crops.
        exponents: the p* to try.
        seed: of the augmentations.
        label: what to call it while it runs; None shows nothing.

    Returns:
        dict exponent -> score.
    """
    found = embed_versions(model, photos, augmentations.get("full"), resolution, VERSIONS, exponents, seed, label)
    return {
        exponent: group_score(values, found.rows, VERSIONS)
        for exponent, values in zip(exponents, found.values, strict=True)
    }


def best_exponent(scores):
    """The exponent with the highest score; the smallest of equals."""
    return min(scores, key=lambda exponent: (-scores[exponent], exponent))
