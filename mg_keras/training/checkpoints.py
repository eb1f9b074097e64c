"""Checkpoints of a run: one file each, whole or absent.

A checkpoint is an `.npz` with every variable of the model, both optimisers and the epoch's running means, and a JSON
text with the counters and the epochs so far. Nothing in it is pickled. The data position is the step: the stream of
photos is a function of it (`mg_keras.data.repeated`).
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from mg_keras.errors import UserError
from mg_keras.files import atomic_path, remove_leftovers

_META = "meta.json"


def snapshot(groups):
    """Variables by group -> arrays. Under several workers, all must call it: some variables are means over replicas.

    Args:
        groups: dict name -> list of Keras variables.

    Returns:
        dict of NumPy arrays, named by group, place and the variable's own name.
    """
    return {
        f"{group}/{place:04d}/{variable.name}": np.asarray(variable.numpy())
        for group, variables in groups.items()
        for place, variable in enumerate(variables)
    }


def assign(groups, arrays, path):
    """Puts arrays of `snapshot` back into variables; groups that are not asked for are left out.

    Raises:
        UserError: they are of another model; the message names the first variable that does not fit.
    """
    names = {}
    for name in arrays:
        group, place = name.split("/")[:2]
        names[group, int(place)] = name
    for group, variables in groups.items():
        found = sum(1 for key in names if key[0] == group)
        if found != len(variables):
            raise UserError(f"{path}: holds {found} variables of the {group}, expected {len(variables)}")
        for place, variable in enumerate(variables):
            array = arrays[names[group, place]]
            if tuple(array.shape) != tuple(variable.shape):
                raise UserError(
                    f"{path}: {names[group, place]} has shape {tuple(array.shape)}, expected {tuple(variable.shape)}"
                )
            variable.assign(array)


class Checkpoints:
    """The checkpoints of a run's folder.

    Args:
        folder: where they lie; made when needed.
        keep: how many of the last ones stay, the best one besides.
    """

    def __init__(self, folder, keep=2):
        self.folder = Path(folder)
        self.keep = keep

    def paths(self):
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step-*.npz"))

    def save(self, step, arrays, meta):
        """Writes the checkpoint of `step`, then removes those that need not stay and what a killed run left.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"step-{step:09d}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, **{_META: np.frombuffer(json.dumps(meta).encode(), np.uint8)})
        best = (meta.get("best") or {}).get("step")
        for path in self.paths()[: -self.keep]:
            if path.stem != f"step-{best:09d}" if best is not None else True:
                path.unlink()
        remove_leftovers(self.folder, "step-*.npz")

    def load(self, which="last"):
        """The `"last"` or `"best"` checkpoint as (path, arrays, meta), or None where there is none.

        A last checkpoint that can't be read (a disk that lost it) falls back to the one before.

        Raises:
            UserError: there are checkpoints, but none that can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                meta = json.loads(arrays.pop(_META).tobytes())
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                continue
            best = (meta.get("best") or {}).get("step")
            if which == "best" and best is not None and path.stem != f"step-{best:09d}":
                continue
            return path, arrays, meta
        if paths:
            raise UserError(f"no checkpoint in {self.folder} can be read ({len(paths)} files); remove the folder")
        return None
