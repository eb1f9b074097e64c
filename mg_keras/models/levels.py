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
    return keras.Model(trunk.inputs, [trunk.output, *(_map_of(trunk, level) for level in levels)])


def in_two(
    trunk: keras.Model, levels: Sequence[Level], end: keras.KerasTensor
) -> tuple[keras.Model, keras.Model, list[int]]:
    """`with_levels` in two models one after the other, on a trunk's own layers.

    Args:
        trunk: a functional trunk.
        levels: known to be there.
        end: feature map of the trunk, through which all that comes after it passes.

    Returns:
        (images -> `end` and the maps of the levels up to there, `end` -> the other maps, of each map of `with_levels`
        its place in what the second model gives followed by what the first gives behind `end`).
    """
    maps = [trunk.output, *(_map_of(trunk, level) for level in levels)]
    before = {layer.name for layer in keras.Model(trunk.inputs, end).layers}
    is_early = [False, *(level.layer in before for level in levels)]
    early = [features for features, up_to in zip(maps, is_early, strict=True) if up_to]
    # once each: of a tensor that is asked for twice Keras connects one when it begins a model in the middle of another
    late = list({id(features): features for features, up_to in zip(maps, is_early, strict=True) if not up_to}.values())
    places = [next(place for place, other in enumerate([*late, *early]) if other is features) for features in maps]
    return keras.Model(trunk.inputs, [end, *early]), keras.Model(end, late), places


def _map_of(trunk, level):
    """The map of a level, a tensor of the functional trunk."""
    layer = next((layer for layer in trunk.layers if layer.name == level.layer), None)
    shape = getattr(getattr(layer, "output", None), "shape", ())
    if layer is None or len(shape) != 4 or shape[-1] is None:
        known = [layer.name for layer in trunk.layers if len(getattr(layer, "output", trunk.output).shape) == 4]
        why = "is no feature map" if layer is not None else "is not there"
        raise UserError(
            f"level {level.layer} {why} in this trunk: give a layer such as {', '.join(known[-4:-1] or known)}"
        )
    return keras.ops.negative(layer.output) if level.negative else layer.output


def as_list(maps: Any) -> list:
    """What a model of `with_levels` gives, as a list of maps."""
    return list(maps) if isinstance(maps, list | tuple) else [maps]
