"""The choice of the test exponent p* of a resolution, by cross-validation on IN-aug or fine-tuning (section 3.5)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mg_keras.data.augmentations import AugmentationName
from mg_keras.data.sources import Source, Split
from mg_keras.embedding.photos import EmbeddingNetwork
from mg_keras.errors import UserError
from mg_keras.finishing.pooling_exponent import (
    EXPONENTS,
    TOLERANCE,
    best_exponent,
    class_accuracies,
    fine_tune_exponent,
    in_aug_counts,
    paired_errors,
)

AUGMENTATION = "copies"
"""The recipe of IN-aug's versions that p* is chosen on; the paper's is `full`."""

METHODS = ("cross-validation", "fine-tuning", "both")


@dataclasses.dataclass(frozen=True)
class Choosing:
    """How p* is chosen.

    Attributes:
        exponents: those that cross-validation tries, each > 0.
        method: `"cross-validation"`, `"fine-tuning"`, or `"both"`: then the choice in use is cross-validation's.
        per_class: photos of each class to fine-tune on, at most.
        epochs: of fine-tuning.
        sweep: whether to measure class accuracy at each of the exponents and at the fine-tuned one, too.
        seed: of augmentations and of the photos to fine-tune on.
        augmentation: the recipe of IN-aug's versions.
        tolerance: how many standard errors below the best an exponent's score may be, at least 0; of those the one
            nearest to that of training is taken.

    Raises:
        UserError: an exponent, `per_class`, `epochs` or `tolerance` is out of range.
        ValueError: there is no such method.
    """

    exponents: Sequence[float] = EXPONENTS
    method: str = "cross-validation"
    per_class: int = 50
    epochs: int = 1
    sweep: bool = False
    seed: int = 0
    augmentation: AugmentationName = AUGMENTATION
    tolerance: float = TOLERANCE

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, received {self.method!r}")
        if not self.exponents or not all(0 < exponent < np.inf for exponent in self.exponents):
            raise UserError(f"exponents must be one or more numbers > 0, received {list(self.exponents)}")
        for name in ("per_class", "epochs"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, received {value}")
        if not 0 <= self.tolerance < np.inf:
            raise UserError(f"tolerance must be a number of at least 0, received {self.tolerance}")

    def check(self, source: Source) -> None:
        """Refuses, before anything is measured, photos that the method can't choose by.

        Raises:
            UserError: they have no classes, and p is to be fine-tuned, or accuracy to be measured.
        """
        if self.method != "cross-validation" and not source.train.labelled:
            raise UserError(
                "p is fine-tuned on the classes of photos, and these have none: choose it by cross-validation"
            )
        if self.sweep and not source.val.labelled:
            raise UserError("a sweep measures the accuracy on classes, and these photos have none: leave it out")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was found at one resolution.

    Attributes:
        p_star: the exponent to use.
        scores: exponent -> IN-aug score, 1 to 5; None where it was fine-tuned only.
        errors: exponent -> standard error of how far that is below the best, of `paired_errors`; None without.
        fine_tuned: `{"p_star", "initial", "photos"}`; None without.
        sweep: exponent -> `{"top1", "top5", "instance"}`; None without.
    """

    p_star: float
    scores: dict[float, float] | None
    errors: dict[float, float] | None
    fine_tuned: dict[str, Any] | None
    sweep: dict[float, dict[str, float]] | None


def choose(
    network: EmbeddingNetwork,
    source: Source,
    in_aug: Split,
    size: int,
    train_resolution: int,
    how: Choosing,
    learnt_before: float | None = None,
    training_exponent: float | None = None,
) -> Choice:
    """Chooses p* at one resolution.

    Args:
        network: `MultiGrain`, or another network of `mg_keras.embedding.photos`.
        source: its photos; those for validation are measured in a sweep only.
        in_aug: of `pooling_exponent.in_aug_photos`.
        size: s*, pixels.
        train_resolution: pixels of the training crops.
        how: `Choosing`.
        learnt_before: an exponent fine-tuned at this resolution before, to be measured in the sweep, too.
        training_exponent: p, which p* stays next to among equals; None: the best score counts alone.

    Returns:
        `Choice`.

    Raises:
        UserError: no photo can be used.
    """
    p_star, scores, errors, fine_tuned, swept = None, None, None, None, None
    if how.method != "cross-validation":
        learnt = fine_tune_exponent(
            network,
            source.train,
            size,
            train_resolution,
            per_class=how.per_class,
            epochs=how.epochs,
            seed=how.seed,
            label=f"fine-tuning p at {size} px",
        )
        p_star = learnt_before = learnt.p_star
        fine_tuned = {"p_star": learnt.p_star, "initial": learnt.initial, "photos": learnt.photos}
    if how.sweep or how.method != "fine-tuning":
        also = [] if learnt_before is None or not how.sweep else [learnt_before]
        tried = sorted({*how.exponents, *also})
        label = f"p* at {size} px"
        counts = in_aug_counts(network, in_aug, size, tried, how.seed, label, how.augmentation)
        means = {exponent: float(np.mean(found)) for exponent, found in counts.items()}
        scores = {exponent: means[exponent] for exponent in how.exponents}
        errors = paired_errors({exponent: counts[exponent] for exponent in how.exponents})
    if how.sweep:
        label = f"p sweep at {size} px, test photos"
        accuracies = class_accuracies(network, source.val, size, train_resolution, tried, label)
        swept = {exponent: {**accuracies[exponent], "instance": means[exponent]} for exponent in tried}
    if how.method != "fine-tuning":
        p_star = best_exponent(scores, errors, training_exponent, how.tolerance)
    return Choice(p_star, scores, errors, fine_tuned, swept)
