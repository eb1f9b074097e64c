"""What a step minimises, one method a file. To add one, write its file and add a line to `_WHERE`."""

import importlib
from typing import TYPE_CHECKING

from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    from mg_keras.objectives.objective import Objective


# name of the method -> (module, class); loaded on first use: to read settings needs no TensorFlow
_WHERE = {
    "multigrain": ("multigrain", "MultiGrainObjective"),
    "classification": ("classification", "Classification"),
    "distilled_multigrain": ("distilled_multigrain", "DistilledMultiGrain"),
    "distilled_copies": ("distilled_copies", "DistilledCopies"),
    "grafit": ("grafit", "Grafit"),
    "grafit_fc": ("grafit", "GrafitFC"),
    "snca": ("grafit", "SNCA"),
    "supcon_info_nce": ("supcon_info_nce", "SupConInfoNCE"),
}
NAMES = tuple(_WHERE)

# of the methods that compare versions of a photo: whether they do so for any classification_weight, or below 1 alone
_PAIRED = {
    "multigrain": False,
    "distilled_multigrain": False,
    "distilled_copies": False,
    "grafit": True,
    "grafit_fc": True,
    "supcon_info_nce": False,
}


def get(name: str) -> "type[Objective]":
    """The class of the objective called `name`, one of `NAMES`.

    Raises:
        KeyError: there is none.
    """
    module, kind = _WHERE[name]
    import_tensorflow()
    return getattr(importlib.import_module(f"mg_keras.objectives.{module}"), kind)


def needs_pairs(name: str, classification_weight: float) -> bool:
    """Whether an objective of this name and weight needs versions of one photo: its `Objective.needs_pairs`."""
    return name in _PAIRED and (_PAIRED[name] or classification_weight < 1)
