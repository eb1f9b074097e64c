"""What readers of weights share: names and shapes that must agree, and the classifier that comes with a trunk."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mg_keras.errors import UserError
from mg_keras.poolings import Level
from mg_keras.pretrained.torch_file import shown

_MOST_NAMED = 20


class Head(NamedTuple):
    """A classifier that was trained with a trunk.

    Attributes:
        kernel: float32 [d, C].
        bias: float32 [C].
        class_names: list of C str in the order of the logits, or None where they are not known.
        levels: the further depths of the trunk that the kernel reads, behind the last map, as `Level` writes them; none
            where there are none, or a file does not name them.
    """

    kernel: np.ndarray
    bias: np.ndarray
    class_names: list | None
    levels: tuple[str, ...] = ()

    def reads(self, channels: int, levels: Sequence[Level]) -> bool:
        """Whether it reads what a network pools: the last map alone, or the very same levels besides.

        Args:
            channels: of the network's last map.
            levels: the network's.
        """
        return self.levels == tuple(map(str, levels)) if self.levels else len(self.kernel) == channels


def check(path: str | os.PathLike, network: str, wanted: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    """Refuses a file that does not hold exactly the arrays of a network.

    Args:
        path: the file, for the message.
        network: what the arrays should be of, such as `"resnet50"`.
        wanted: dict of name -> shape.
        found: dict of name -> shape.

    Raises:
        UserError: which lists what is missing, misshaped and unknown.
    """
    problems = {
        "missing": [name for name in wanted if name not in found],
        "misshaped": [
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
        "unknown": [str(name) for name in found if name not in wanted],
    }
    refuse(f"{path} does not hold the weights of a {network}", problems)


def refuse(what: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError(`what`) with the lists of names in `problems` (kind -> names), unless all are empty."""
    listed = [f"{kind}: {some(names)}" for kind, names in problems.items() if names]
    if listed:
        raise UserError(f"{what}; {'; '.join(listed)}")


def some(names: Sequence[str], most: int | None = _MOST_NAMED) -> str:
    """Names for a message: the first of them and how many more there are; all for None."""
    # a name and two shapes
    names = [shown(name, 200) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if most and len(names) > most else "")
