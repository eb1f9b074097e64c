"""The choice of the test exponent p* of a resolution, by cross-validation on IN-aug or fine-tuning (section 3.5)."""

import dataclasses
from typing import Any

import numpy as np

from mg_keras.data.sources import Source, Split
from mg_keras.embedding.photos import EmbeddingNetwork
from mg_keras.finishing.pooling_exponent import (
    best_exponent,
    class_accuracies,
    fine_tune_exponent,
    in_aug_counts,
    paired_errors,
)
from mg_keras.finishing.settings import Choosing


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
    seed: int = 0,
    describing: EmbeddingNetwork | None = None,
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
        seed: of augmentations and of the photos to fine-tune on.
        describing: what embeds the photos, such as the network's optimised graph; None: the network. It is the network
            that is fine-tuned.

    Returns:
        `Choice`.

    Raises:
        UserError: no photo can be used.
    """
    p_star, scores, errors, fine_tuned, swept = None, None, None, None, None
    describing = describing or network
    if how.method != "cross-validation":
        learnt = fine_tune_exponent(
            network,
            source.train,
            size,
            train_resolution,
            per_class=how.per_class,
            epochs=how.epochs,
            seed=seed,
            label=f"fine-tuning p at {size} px",
        )
        p_star = learnt_before = learnt.p_star
        fine_tuned = {"p_star": learnt.p_star, "initial": learnt.initial, "photos": learnt.photos}
    if how.sweep or how.method != "fine-tuning":
        also = [] if learnt_before is None or not how.sweep else [learnt_before]
        tried = sorted({*how.exponents, *also})
        label = f"p* at {size} px"
        counts = in_aug_counts(describing, in_aug, size, tried, seed, label, how.augmentation)
        means = {exponent: float(np.mean(found)) for exponent, found in counts.items()}
        scores = {exponent: means[exponent] for exponent in how.exponents}
        errors = paired_errors({exponent: counts[exponent] for exponent in how.exponents})
    if how.sweep:
        label = f"p sweep at {size} px, test photos"
        accuracies = class_accuracies(describing, source.val, size, train_resolution, tried, label)
        swept = {exponent: {**accuracies[exponent], "instance": means[exponent]} for exponent in tried}
    if how.method != "fine-tuning":
        p_star = best_exponent(scores, errors, training_exponent, how.tolerance)
    return Choice(p_star, scores, errors, fine_tuned, swept)
