"""What a value may be, as a check and in plain words: for settings, hand-edited files and command lines alike.

A kind is int, float (whole numbers are some), bool, str, a `Literal`, `list[...]` or a union of kinds, or
`Annotated[kind, Limits(...)]`.
"""

import dataclasses
import itertools
import math
import numbers
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mg_keras.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


@dataclasses.dataclass(frozen=True, repr=False)
class Limits:
    """Bounds of a number, or of each number of a list; None is none.

    Attributes:
        at_least, above: the lower bound, itself allowed or not.
        at_most, below: the upper bound, itself allowed or not.
        rising: whether each number of a list must be greater than the one before.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    rising: bool = False

    def hold(self, value: Any) -> bool:
        """Whether a number lies within, or each one of a list; a NaN or an infinity lies nowhere."""
        if isinstance(value, list):
            return all(map(self.hold, value)) and not (
                self.rising and any(second <= first for first, second in itertools.pairwise(value))
            )
        return value is None or (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __repr__(self):
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return " and ".join([*words, *(["each greater than the one before"] if self.rising else [])])


Count = Annotated[int, Limits(at_least=1)]
CountOrNull = Annotated[int | None, Limits(at_least=1)]
Positive = Annotated[float, Limits(above=0)]
NotNegative = Annotated[float, Limits(at_least=0)]


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0]) and parts[1].hold(value)
    if origin is Literal:
        return value in parts
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def wanted(kind: Any) -> str:
    """What a value of a kind is, in words: `a whole number, at least 1`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        words = wanted(parts[0]).removesuffix(" or null")
        return f"{words}, {parts[1]}" + (", or null" if fits(None, kind) else "")
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, types.UnionType):
        # jsonargparse adds null to what may be null already
        words = " or ".join(map(wanted, parts)).replace("or null or null", "or null")
        for part in parts:
            if get_origin(part) is list and get_args(part)[0] in parts:
                # what one may be is said: not again what each of a list may be
                words = words.replace(wanted(part), wanted(part).partition(" of ")[0])
        return words
    if origin is list:
        if get_origin(parts[0]) is not Literal:
            return f"a list of {_PLURALS[parts[0]]}"
        names = get_args(parts[0])
        return f"a list such as [{','.join(names[:2])}] of some of {', '.join(names)}"
    return _WORDS[kind]


def check(name: str, value: Any, kind: Any) -> None:
    """Refuses a value that is not of a kind.

    Raises:
        UserError: it is not; the message names it and says what would be right.
    """
    if not fits(value, kind):
        raise UserError(f"{name} must be {wanted(kind)}; received {'null' if value is None else repr(value)}")
