"""What a run may be told of its objective."""

import dataclasses
from typing import Annotated, Literal

from mg_keras.limits import Count, CountOrNull, Limits, NotNegative, Positive
from mg_keras.objectives import ObjectiveName


@dataclasses.dataclass
class ObjectiveSettings:
    """What a step of a run minimises, and the settings of each objective.

    Args:
        objective: what a step minimises: `multigrain` (cross-entropy and margin loss), `classification`
            (cross-entropy), `distilled_multigrain` (a teacher's answers in place of labels, and margin loss; the
            teacher is the network that `init` gives, with its classes), or `distilled_copies` (the same with InfoNCE
            between versions and KoLeo in place of the margin loss); `grafit` (nearest neighbours in a memory, and
            instances), `grafit_fc` (cross-entropy and instances), `snca` (nearest neighbours alone), or
            `supcon_info_nce` (supervised contrast and InfoNCE), for finer descriptors than the labels.
        classification_weight: lambda; 1 is cross-entropy alone.
        temperature: by which the `distilled_` objectives divide both networks' logits.
        contrast_temperature: of InfoNCE in `distilled_copies`, and of both terms of `supcon_info_nce`.
        spread_weight: times KoLeo in `distilled_copies`.
        contrast_dimensions: in `distilled_copies`, of the whitening through which versions are compared, learned as
            training goes on (`mg_keras.layers.MovingWhitening`); null: they are compared as they are.
        teacher_exponent: p of GeM that the teacher's classifier was trained with, 1 for ordinary ImageNet networks;
            null: `pooling_exponent`.
        projection_dimensions: values of the projection that `grafit` and its kin compare.
        neighbor_temperature: by which `grafit` and `snca` divide cosines.
        memory_size: embeddings in the memory of `grafit` and `snca`, which is then a queue of the last ones; null: one
            a training photo.
        memory_dtype: `float32`, or `float16`, which takes half the memory.
        predictor_width: of the hidden layer of the predictor in `grafit` and `grafit_fc`.
        target_momentum: in `grafit` and `grafit_fc`, of the moving average of the network that gives the targets.
        target_versions: in `grafit` and `grafit_fc`, of how many versions of a photo there are targets, at a cost of a
            forward pass each; null: half of them, rounded up.
        class_balance: `weights` weighs the cross-entropy of an image, and the nearest-neighbour loss of a photo, by its
            class, inversely to the class's number of training photos (`mg_keras.training.class_balance`); `none` counts
            images alike.
        margin: alpha of the margin loss.
        initial_beta: where the learnt threshold of the margin loss starts.
        margin_normalization: `pairs` (the paper's) or `active` (the reference's).
    """

    objective: ObjectiveName = "multigrain"
    classification_weight: Annotated[float, Limits(at_least=0, at_most=1)] = 0.5
    temperature: Positive = 2.0
    contrast_temperature: Positive = 0.05
    spread_weight: NotNegative = 1.0
    contrast_dimensions: CountOrNull = None
    teacher_exponent: Annotated[float | None, Limits(above=0)] = None
    projection_dimensions: Count = 256
    neighbor_temperature: Positive = 0.05
    memory_size: CountOrNull = None
    memory_dtype: Literal["float32", "float16"] = "float32"
    predictor_width: Count = 4096
    target_momentum: Annotated[float, Limits(at_least=0, below=1)] = 0.996
    target_versions: CountOrNull = None
    class_balance: Literal["none", "weights"] = "none"
    margin: Positive = 0.2
    initial_beta: float = 1.2
    margin_normalization: Literal["pairs", "active"] = "pairs"
