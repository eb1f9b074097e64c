"""Maps of a trunk at several depths."""

from collections.abc import Sequence
from typing import Any

import keras

from mg_keras.errors import UserError
from mg_keras.poolings import Level


def with_levels(trunk: keras.Model, levels: Sequence[Level]) -> keras.Model:
    """A model on a trunk's own layers that gives the list of its last map and that of each level, or its negative.

    Without levels it is the trunk itself, which gives its last map.

    Raises:
        UserError: the trunk has no such layer, or its output is no feature map.
    """
    if not levels:
        return trunk
    if not isinstance(trunk, keras.Model) or isinstance(trunk, keras.Sequential):
        raise UserError("levels are for a functional trunk, such as those by name: its layers are known by their names")
    maps = [trunk.output]
    for level in levels:
        layer = next((layer for layer in trunk.layers if layer.name == level.layer), None)
        shape = getattr(getattr(layer, "output", None), "shape", ())
        if layer is None or len(shape) != 4 or shape[-1] is None:
            known = [layer.name for layer in trunk.layers if len(getattr(layer, "output", trunk.output).shape) == 4]
            why = "is no feature map" if layer is not None else "is not there"
            raise UserError(
                f"level {level.layer} {why} in this trunk: give a layer such as {', '.join(known[-4:-1] or known)}"
            )
        maps.append(keras.ops.negative(layer.output) if level.negative else layer.output)
    return keras.Model(trunk.inputs, maps)


def as_list(maps: Any) -> list:
    """What a model of `with_levels` gives, as a list of maps."""
    return list(maps) if isinstance(maps, list | tuple) else [maps]
