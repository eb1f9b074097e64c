"""What a step minimises, one method a file. To add one, write its file, and name it in `ObjectiveName` and `_WHERE`."""

import importlib
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    from mg_keras.objectives.objective import Objective


ObjectiveName = Literal[
    "multigrain",
    "classification",
    "distilled_multigrain",
    "distilled_copies",
    "grafit",
    "grafit_fc",
    "snca",
    "supcon_info_nce",
]
"""What a run's `objective` may be."""

NAMES = get_args(ObjectiveName)

# whether a method compares versions of a photo: for any classification_weight, or for those below 1
_NEVER, _BELOW_1, _ALWAYS = 0, 1, 2


class _Where(NamedTuple):
    """Where a method lies, and what of it settings are checked by: its class says the same (tested)."""

    module: str
    kind: str
    pairs: int
    labels: bool = True


# loaded on first use: to read settings needs no TensorFlow
_WHERE = {
    "multigrain": _Where("multigrain", "MultiGrainObjective", _BELOW_1),
    "classification": _Where("classification", "Classification", _NEVER),
    "distilled_multigrain": _Where("distilled_multigrain", "DistilledMultiGrain", _BELOW_1, labels=False),
    "distilled_copies": _Where("distilled_copies", "DistilledCopies", _BELOW_1, labels=False),
    "grafit": _Where("grafit", "Grafit", _ALWAYS),
    "grafit_fc": _Where("grafit", "GrafitFC", _ALWAYS),
    "snca": _Where("grafit", "SNCA", _NEVER),
    "supcon_info_nce": _Where("supcon_info_nce", "SupConInfoNCE", _BELOW_1),
}


def get(name: str) -> "type[Objective]":
    """The class of the objective called `name`, one of `NAMES`.

    Raises:
        KeyError: there is none.
    """
    where = _WHERE[name]
    import_tensorflow()
    return getattr(importlib.import_module(f"mg_keras.objectives.{where.module}"), where.kind)


def needs_pairs(name: str, classification_weight: float) -> bool:
    """Whether an objective of this name and weight needs versions of one photo: its `Objective.needs_pairs`."""
    pairs = _WHERE[name].pairs
    return pairs == _ALWAYS or (pairs == _BELOW_1 and classification_weight < 1)


def weight_of(name: str, classification_weight: float) -> float | None:
    """Lambda of an objective of this name, `classification_weight`; None: it weighs nothing against classes."""
    return classification_weight if _WHERE[name].pairs == _BELOW_1 else None


def needs_labels(name: str) -> bool:
    """Whether an objective of this name needs a class of each image; else it learns the classes of a teacher."""
    return _WHERE[name].labels
