"""The weights of a run, from its last checkpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from mg_keras.checkpoints import Checkpoints, assign, first_of
from mg_keras.errors import UserError
from mg_keras.poolings import Level
from mg_keras.pretrained.names import Head

if TYPE_CHECKING:
    import keras


def fill(trunk: "keras.Model", folder: str | os.PathLike, trunk_name: str) -> Head:
    """Puts the weights of a run's last checkpoint into a trunk.

    Args:
        trunk: of `mg_keras.models.trunks.build`.
        folder: the run's.
        trunk_name: the trunk's name.

    Returns:
        `Head` of the run's classifier.

    Raises:
        UserError: the run is of another trunk, has no checkpoint yet, or can't be read.
    """
    folder = Path(folder)
    settings = _settings(folder / "config.yaml")
    theirs = settings.get("trunk")
    if theirs != trunk_name:
        raise UserError(f"{folder} is a run with the trunk {theirs}, where the trunk is {trunk_name}")
    found = Checkpoints(folder / "checkpoints").load()
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet: train/run.py makes one")
    path, arrays, _ = found
    count = len(trunk.variables)
    # a network's variables come first: the trunk's, the exponent, the classifier's kernel and bias
    head = first_of(arrays, "model", count + 3)[count + 1 :]
    if [name.rsplit("/", 1)[-1] for name, _ in head] != ["kernel", "bias"]:
        raise UserError(f"{path}: holds another network than a {trunk_name} with a classifier")
    assign({"model": trunk.variables}, dict(first_of(arrays, "model", count)), path)
    (_, kernel), (_, bias) = head
    levels = tuple(str(Level.of(level)) for level in settings.get("levels") or ())
    return Head(np.asarray(kernel), np.asarray(bias), class_names(folder), levels)


def class_names(folder: str | os.PathLike) -> list[str]:
    """The names of a run's classes, in the order of its logits.

    Raises:
        UserError: they are not noted.
    """
    path = Path(folder) / "classes.txt"
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} can't be read: it holds the names of the run's classes ({error.strerror})") from error


def _settings(path):
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as the settings of a run") from error
    return settings if isinstance(settings, dict) else {}
