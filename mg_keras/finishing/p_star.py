"""The choice of the test exponent p* of a resolution, by cross-validation on IN-aug or fine-tuning (section 3.5)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mg_keras.data.sources import Source, Split
from mg_keras.embedding.photos import EmbeddingNetwork
from mg_keras.errors import UserError
from mg_keras.finishing.pooling_exponent import (
    EXPONENTS,
    best_exponent,
    exponent_sweep,
    fine_tune_exponent,
    in_aug_scores,
)

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

    Raises:
        UserError: an exponent, `per_class` or `epochs` is out of range.
        ValueError: there is no such method.
    """

    exponents: Sequence[float] = EXPONENTS
    method: str = "cross-validation"
    per_class: int = 50
    epochs: int = 1
    sweep: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, received {self.method!r}")
        if not self.exponents or not all(0 < exponent < np.inf for exponent in self.exponents):
            raise UserError(f"exponents must be one or more numbers > 0, received {list(self.exponents)}")
        for name in ("per_class", "epochs"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, received {value}")

    def check(self, source: Source) -> None:
        """Refuses photos that the method can't choose by.

        Raises:
            UserError: they have no classes, and p is to be fine-tuned.
        """
        if self.method != "cross-validation" and not source.train.labelled:
            raise UserError(
                "p is fine-tuned on the classes of photos, and these have none: choose it by cross-validation"
            )


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was found at one resolution.

    Attributes:
        p_star: the exponent to use.
        scores: exponent -> IN-aug score, 1 to 5; None where it was fine-tuned only.
        fine_tuned: `{"p_star", "initial", "photos"}`; None without.
        sweep: exponent -> `{"top1", "top5", "instance"}`; None without.
    """

    p_star: float
    scores: dict[float, float] | None
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

    Returns:
        `Choice`.

    Raises:
        UserError: no photo can be used.
    """
    p_star, scores, fine_tuned, swept = None, None, None, None
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
    if how.sweep:
        also = None if learnt_before is None else {size: [learnt_before]}
        swept = exponent_sweep(
            network, source.val, in_aug, [size], train_resolution, how.exponents, also, how.seed, "p sweep"
        )[size]
        scores = {exponent: swept[exponent]["instance"] for exponent in how.exponents}
    elif how.method != "fine-tuning":
        scores = in_aug_scores(network, in_aug, size, how.exponents, how.seed, f"p* at {size} px")
    if how.method != "fine-tuning":
        p_star = best_exponent(scores)
    return Choice(p_star, scores, fine_tuned, swept)
