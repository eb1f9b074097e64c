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
}
NAMES = tuple(_WHERE)


def get(name: str) -> "type[Objective]":
    """The class of the objective called `name`, one of `NAMES`.

    Raises:
        KeyError: there is none.
    """
    module, kind = _WHERE[name]
    import_tensorflow()
    return getattr(importlib.import_module(f"mg_keras.objectives.{module}"), kind)
