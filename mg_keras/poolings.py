"""Poolings as values: an exponent p* > 0 of `GeM`, or `RMAC`; and the depths of a trunk that are pooled besides."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mg_keras.errors import UserError

RMAC = "rmac"
"""Regional maxima (`mg_keras.layers.RMAC`), which has no exponent."""


MOST_EXPONENT = 1000
"""The largest p* that exported networks and `mg_keras.load` take: beyond, GeM is the maximum to rounding."""


def checked(pooling: float | str) -> float | str:
    """A pooling, its exponent as a float.

    Raises:
        ValueError: it is neither a number > 0 nor `RMAC`.
    """
    if pooling == RMAC:
        return RMAC
    if not (isinstance(pooling, int | float | np.number) and pooling > 0):
        raise ValueError(f"a pooling must be a number > 0 or {RMAC!r}, received {pooling!r}")
    return float(pooling)


@dataclasses.dataclass(frozen=True)
class Level:
    """One depth of a trunk in the embedding: `scale * GeM_exponent(map)`, or `scale * GeM_exponent(-map)`.

    Both numbers are constants: p* is the exponent of the trunk's last map alone, and a classifier or a whitening folds
    over the joined embedding as over any other.

    Args:
        layer: the trunk's layer whose output [B, h, w, c] is pooled, such as `block4c_`.
        exponent: p of its GeM, > 0.
        scale: > 0, what its values are multiplied by, beside the last map's at 1.
        negative: whether it is what lies below 0 that is pooled. GeM takes values below 0 for 0, and maps that no
            activation follows, such as MobileNet's and EfficientNet's `block..._`, have half of theirs there.

    Raises:
        UserError: a number is out of range.
    """

    layer: str
    exponent: float = 3.0
    scale: float = 1.0
    negative: bool = False

    def __post_init__(self):
        for name in ("exponent", "scale"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise UserError(f"the {name} of level {self.layer} must be a number > 0, received {value!r}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def of(cls, value: "Level | str | Sequence") -> "Level":
        """A level from `layer`, `layer:exponent` or `layer:exponent:scale`, or from these as a sequence.

        A `-` before the layer stands for `negative`.

        Raises:
            UserError: it is none of these, or a number is out of range.

        Example:

        >>> Level.of("block4c_:3:0.5")
        Level(layer='block4c_', exponent=3.0, scale=0.5, negative=False)
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            layer, *numbers = value.split(":")
            try:
                numbers = [float(number) for number in numbers]
            except ValueError:
                numbers = [None] * 3
        else:
            layer, *numbers = value
        name = layer.removeprefix("-")
        if not name or len(numbers) > 2:
            raise UserError(f"a level is LAYER, LAYER:EXPONENT or LAYER:EXPONENT:SCALE, received {value!r}")
        return cls(name, *numbers, negative=name != layer)

    def __str__(self) -> str:
        return f"{'-' if self.negative else ''}{self.layer}:{self.exponent:g}:{self.scale:g}"
