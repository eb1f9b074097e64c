"""The files of an exported SavedModel, and what they say of the model; without TensorFlow."""

import hashlib
import json
import os
from pathlib import Path

from mg_keras.errors import UserError, first_line
from mg_keras.files import in_home
from mg_keras.preparations import ASPECT, checked


class ExportedFiles:
    """What lies in the folder of a SavedModel that mg-keras export wrote.

    Args:
        path: the folder of a version, `models/multigrain/1`, or of the model, `models/multigrain`, whose newest version
            is taken.

    Attributes:
        path: Path of the version's folder.
        about: dict, what `assets/multigrain.json` says.
        class_names: list of str, or None where it names none.
        p_star: {resolution in pixels: exponent}, perhaps empty.
        pooling_exponent: the training exponent.
        train_resolution: pixels of the training crops, or None where it does not say.
        default_resolution: pixels at which photos are described where nothing else is asked for, or None.
        whitened: whether the descriptors are whitened.
        preparation: of `mg_keras.preparations`, how photos are brought to a resolution.
        precision: of `mg_keras.export.optimize.PRECISIONS`, what its trunk computes in; None where it does not say.

    Raises:
        UserError: there is no SavedModel, or one that mg-keras export did not write.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = _version_folder(in_home(path))
        notes = self.path / "assets" / "multigrain.json"
        try:
            self.about = about = json.loads(notes.read_text(encoding="utf-8"))
            self.class_names = about.get("class_names")
            self.p_star = {int(resolution): float(value) for resolution, value in about.get("p_star", {}).items()}
            self.pooling_exponent = float(about["pooling_exponent"])
            self.train_resolution = about.get("training", {}).get("resolution")
            self.default_resolution = about.get("default_resolution") or self.train_resolution
            self.whitened = bool(about["whitened"])
            self.precision = about.get("precision")
            self.preparation = checked(about.get("preparation", ASPECT))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} is a SavedModel, but mg-keras export did not write it: it lacks {notes}"
            ) from error
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise self._not_exported(error) from error

    def _not_exported(self, error):
        return UserError(f"{self.path} can't be loaded as a SavedModel of mg-keras export: {first_line(error)}")

    def fingerprint(self) -> str:
        """A str that is equal for SavedModels that embed and classify alike: a hash of its graph and weights."""
        digest = hashlib.sha256()
        for file in [self.path / "saved_model.pb", *sorted((self.path / "variables").glob("*"))]:
            with open(file, "rb") as content:
                while block := content.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def _version_folder(path: Path) -> Path:
    """`path` itself, or the highest-numbered version in it."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = [found.parent for found in path.glob("*/saved_model.pb") if found.parent.name.isdecimal()]
    if not versions:
        raise UserError(
            f"no SavedModel in {path}: give the folder that mg-keras export wrote, which holds numbered versions, or "
            "one of those"
        )
    return max(versions, key=lambda version: int(version.name))
