"""Checkpoints of a run: one file each, whole or absent.

A checkpoint is an `.npz` with every variable of a training, and a JSON text with the counters and the epochs so far.
Nothing in it is pickled. The data position is the step: the stream of photos is a function of it
(`mg_keras.data.repeated`). Its groups (`mg_keras.training.loop.Trainer`):

* `model`: the network's;
* `optimizer`: its optimiser's, and `NAME_optimizer` that of each parameter group of the objective, as `beta_optimizer`;
* `metrics`: the epoch's running means;
* `projection`: kernel and bias of the projection that the objective trains, if it trains one;
* `objective`: what else the objective keeps, such as a memory, if there is any.

A variable lies under `group/place/path`, as in `model/0003/conv1_bn/moving_mean`, and its path is what it is known by
when it comes back. Older checkpoints say `group/place/name`, often the last part of the path alone. Where such names
recur in a group, variables are known by their place, and the name there must be the right one.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_keras.errors import UserError
from mg_keras.files import BROKEN_ARRAYS, atomic_path, remove_leftovers
from mg_keras.limits import Count

if TYPE_CHECKING:
    import keras

_META = "meta.json"
_RATE = "learning_rate"


def snapshot(groups: "Mapping[str, Sequence[keras.Variable]]") -> dict[str, np.ndarray]:
    """Variables by group -> arrays. Under several workers, all must call it: some variables are means over replicas.

    Args:
        groups: dict name -> list of Keras variables.

    Returns:
        dict of NumPy arrays, named by group, place and the variable's path.
    """
    return {
        f"{group}/{place:04d}/{variable.path}": np.asarray(variable.numpy())
        for group, variables in groups.items()
        for place, variable in enumerate(variables)
    }


def assign(
    groups: "Mapping[str, Sequence[keras.Variable]]", arrays: Mapping[str, np.ndarray], path: str | os.PathLike
) -> None:
    """Puts arrays of `snapshot` back into variables; groups that are not asked for are left out.

    Each goes to the variable of its path, whatever its place: another version of keras-hub may list its layers in
    another order.

    Raises:
        UserError: they are of another model; the message names the first variable that does not fit, and none has
            changed.
    """
    found = {}
    for key, array in arrays.items():
        group, place, name = key.split("/", 2)
        found.setdefault(group, []).append((int(place), name, array))
    pairs = [pair for group, variables in groups.items() for pair in _matched(group, variables, found, path)]
    for variable, array in pairs:
        variable.assign(array)


def _matched(group, variables, found, path):
    """(variable, its array) for each variable of a group."""
    stored = sorted(found.get(group, []), key=lambda entry: entry[0])
    if not any(variable.name == _RATE for variable in variables):
        # of a constant rate, before every rate was a schedule
        stored = [entry for entry in stored if entry[1].split("/")[-1] != _RATE]
    if len(stored) != len(variables):
        raise UserError(f"{path}: holds {len(stored)} variables of the {group}, expected {len(variables)}")
    names = [name for _, name, _ in stored]
    # no name has a slash in it, and every path has
    wanted = [variable.path if any("/" in name for name in names) else variable.name for variable in variables]
    known, expected = (_without_session(paths, inside=group != "model") for paths in (names, wanted))
    if len(set(known)) == len(set(expected)) == len(known):
        place_of = {name: place for place, name in enumerate(known)}
        places = [place_of.get(name) for name in expected]
    else:
        places = [place if known[place] == name else None for place, name in enumerate(expected)]
    pairs = []
    for place, (variable, name, there) in enumerate(zip(variables, wanted, places, strict=True)):
        if there is None:
            raise UserError(
                f"{path}: holds another network, or was written with another version of keras-hub: of the {group} it "
                f"lacks {name} and has {names[place]} in its place"
            )
        array = stored[there][2]
        if tuple(array.shape) != tuple(variable.shape):
            raise UserError(f"{path}: {group} {name} has shape {tuple(array.shape)}, expected {tuple(variable.shape)}")
        pairs.append((variable, array))
    return pairs


def _without_session(paths, inside):
    """Paths as they are whatever was built before in the process: to be compared, not to be read.

    Keras counts what has no name of its own through a whole session: `sgd`, `sgd_1`; `sequential_2_conv2d_5_kernel`.
    The order in which a network makes such layers stays, so numbers are replaced by their rank among those of a kind.

    Args:
        paths: list of str.
        inside: whether numbers within a part are such counts, too: an optimiser names its slots after layers and all.
    """
    split = [[_words_and_numbers(part, inside) for part in path.split("/")] for path in paths]
    counted = {}
    for parts in split:
        for level, (words, numbers) in enumerate(parts):
            counted.setdefault((level, words), set()).add(numbers)
    ranks = {kind: {numbers: rank for rank, numbers in enumerate(sorted(counted[kind]))} for kind in counted}
    return [
        tuple((words, ranks[level, words][numbers]) for level, (words, numbers) in enumerate(parts)) for parts in split
    ]


def _words_and_numbers(part, inside):
    """`conv2d_2_kernel` as its words, (`conv2d`, `kernel`), and the numbers behind them, (2, 0); 0 for none."""
    head, _, tail = part.rpartition("_")
    tokens = part.split("_") if inside else [head, tail] if head and tail.isdecimal() else [part]
    words, numbers = [], []
    for token in tokens:
        if token.isdecimal() and words and not numbers[-1]:
            numbers[-1] = int(token)
        else:
            words.append(token)
            numbers.append(0)
    return tuple(words), tuple(numbers)


def first_of(arrays: Mapping[str, np.ndarray], group: str, count: int) -> list[tuple[str, np.ndarray]]:
    """(name, array) of the first `count` variables of a group of `snapshot`, in their order; fewer if there are not."""
    places = {name: int(name.split("/", 2)[1]) for name in arrays if name.startswith(f"{group}/")}
    return [(name, arrays[name]) for name in sorted(places, key=places.get)[:count]]


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of `snapshot` to a file, whole or not at all.

    Raises:
        UserError: it could not be written.
    """
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote.

    Raises:
        UserError: it is not there or can't be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except BROKEN_ARRAYS as error:
        raise UserError(f"{path} can't be read, and the run can't go on without: {error}") from error


@dataclasses.dataclass
class Retention:
    """Which checkpoints stay, as the settings of a run say it.

    Args:
        keep_checkpoints: how many of the last checkpoints stay (the best one besides).
    """

    keep_checkpoints: Count = 2

    def staying(self, steps: Sequence[int], meta: Mapping[str, Any]) -> set[int]:
        """The steps whose checkpoints stay; of those that are not among `steps` there is none.

        Args:
            steps: of the checkpoints there are, ascending.
            meta: of the last one: `best`, and `history`, whose rows have `epoch` and `step`, if it has them.
        """
        last = set(steps[-self.keep_checkpoints :])
        return last | {meta["best"]["step"]} if meta.get("best") else last


class Checkpoints:
    """The checkpoints of a run's folder.

    Args:
        folder: where they lie; made when needed.
        retention: which of them stay; None: the default.
    """

    def __init__(self, folder: str | os.PathLike, retention: Retention | None = None):
        self.folder = Path(folder)
        self.retention = retention or Retention()

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first. A copy that somebody made under a name of its own is none."""
        return sorted(path for path in self.folder.glob("step-*.npz") if path.stem[5:].isdecimal())

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`, then removes those that need not stay and what a killed run left.

        Those of later steps can't be read, or the run would have gone on from them: they take no place of another.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"step-{step:09d}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, **{_META: np.frombuffer(json.dumps(meta).encode(), np.uint8)})
        paths = {int(path.stem[5:]): path for path in self.paths() if int(path.stem[5:]) <= step}
        for gone in set(paths) - self.retention.staying(list(paths), meta):
            paths[gone].unlink()
        remove_leftovers(self.folder, "step-*.npz")

    def load(
        self, which: str = "last", groups: Collection[str] | None = None
    ) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]] | None:
        """The `"last"` or `"best"` checkpoint as (path, arrays, meta), or None where there is none.

        A last checkpoint that can't be read (a disk that lost it) falls back to the one before.

        Args:
            which: `"last"` or `"best"`.
            groups: of `snapshot`, to read those alone: an optimiser and a memory are most of a file. None: all.

        Raises:
            UserError: there are checkpoints, but none that can be read, or not the best one.
        """
        paths, best = self.paths(), None
        for path in reversed(paths):
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = {
                        name: file[name]
                        for name in file.files
                        if groups is None or name == _META or name.split("/")[0] in groups
                    }
                meta = json.loads(arrays.pop(_META).tobytes())
            except (*BROKEN_ARRAYS, KeyError):
                continue
            if best is None:
                # the newest knows; of older ones, what was the best in their time
                step = (meta.get("best") or {}).get("step")
                best = path.name if step is None else f"step-{step:09d}.npz"
            if which == "last" or path.name == best:
                return path, arrays, meta
        if best:
            raise UserError(f"the best checkpoint of {self.folder}, {best}, is gone or can't be read: take the last")
        if paths:
            raise UserError(f"no checkpoint in {self.folder} can be read ({len(paths)} files); remove the folder")
        return None
