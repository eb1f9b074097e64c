"""Networks in one small folder: weights in half precision, the whitening, and what is known of them.

`model.safetensors` holds the trunk's variables under `trunk/<layer>/<variable>`, `classifier/kernel`, `scale` and
`bias`, `whitening/mean`, `projection`, `discarded_variance` and, unless the projection is square, `inverse`. The
trunk's kernels are float16, but for those of 2^18 values or more, which are int8 times a `scale` for each output; the
classifier's and the whitening's matrices are int8, each row times its `scale`; the rest is float32. Descriptors so
have cosines of 0.9997 with those of float32. `model.json` says the rest. Files of before have a projection in float16
without a scale, and no `inverse`: the pseudo-inverse takes its place. `eight_bits.safetensors`, which may be missing,
holds what the convolutions read and give, for running them in 8 bits.

The model that comes with mg_keras lies so in the package (`PACKAGE`).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.files import atomic_write_json
from mg_keras.models import Network
from mg_keras.preparations import ASPECT, checked
from mg_keras.pretrained.names import Head, check

PACKAGE = Path(__file__).resolve().parents[1] / "weights" / "multigrain_lite0"
"""The model in the package: MultiGrain on EfficientNet-Lite0."""

# values of a kernel from which on it is int8: a few hold a quarter of EfficientNet-Lite0's
_LARGE = 1 << 18
_WEIGHTS, _ABOUT, _EIGHT_BITS = "model.safetensors", "model.json", "eight_bits.safetensors"
_NEEDED = ("trunk", "num_classes", "pooling_exponent", "levels", "resolution")


class Packed:
    """A packed network, opened.

    Args:
        folder: where `pack` wrote it.

    Attributes:
        folder: Path.
        about: dict of `model.json`: `trunk`, `num_classes`, `pooling_exponent`, `levels`, `resolution` (pixels of
            training), and where known `class_names`, `class_ids` (WordNet's), `p_star`, `thresholds`,
            `default_resolution`, `preparation` (of `mg_keras.preparations`; `aspect` where it is missing).

    Raises:
        UserError: there is none, or it can't be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            self.about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
            self._arrays = {
                name: values.astype(np.float32) for name, values in load_file(self.folder / _WEIGHTS).items()
            }
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{self.folder} can't be read as a packed network: {error}") from error
        if missing := [name for name in _NEEDED if name not in self.about]:
            raise UserError(f"{self.folder / _ABOUT} does not say {', '.join(missing)}")

    @property
    def whitening(self) -> Whitening | None:
        """What its descriptors are whitened with; None: they are not."""
        found = {name.split("/")[1]: values for name, values in self._arrays.items() if name.startswith("whitening/")}
        if not found:
            return None
        # before there was a scale, the projection was float16
        matrices = {
            name: found[name] * found.get(f"{name}_scale", np.ones(1))[:, None]
            for name in ("projection", "inverse")
            if name in found
        }
        return Whitening(found["mean"], **matrices, discarded_variance=found["discarded_variance"].item())

    @property
    def observed(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray] | None:
        """(means, read, given) of `mg_keras.export.quantize.Observed`; None: nobody has observed it."""
        path = self.folder / _EIGHT_BITS
        if not path.is_file():
            return None
        try:
            found = load_file(path)
            means = np.split(np.float32(found["means"]), np.cumsum(found["channels"])[:-1])
            return means, found["read"], found["given"]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} can't be read: {error}") from error

    def fill(self, trunk: Any, trunk_name: str) -> Head:
        """Puts the weights into a trunk of that name.

        Raises:
            UserError: it is another trunk.
        """
        if self.about["trunk"] != trunk_name:
            raise UserError(f"{self.folder} holds a {self.about['trunk']}, where the trunk is {trunk_name}")
        wanted = _named(trunk)
        found = {
            name: values * self._arrays.get(f"{name}_scale", np.float32(1))
            for name, values in self._arrays.items()
            if name.startswith("trunk/") and not name.endswith("_scale")
        }
        shapes = {name: values.shape for name, values in found.items()}
        check(self.folder / _WEIGHTS, trunk_name, {name: tuple(v.shape) for name, v in wanted.items()}, shapes)
        for name, variable in wanted.items():
            variable.assign(found[name])
        names = self.about.get("class_ids") or self.about.get("class_names")
        kernel = self._arrays["classifier/kernel"] * self._arrays["classifier/scale"][:, None]
        return Head(kernel, self._arrays["classifier/bias"], names, tuple(self.about["levels"]))

    @property
    def preparation(self) -> str:
        """How it wants photos brought to a resolution, of `mg_keras.preparations`."""
        try:
            return checked(self.about.get("preparation", ASPECT))
        except ValueError as error:
            raise UserError(f"{self.folder / _ABOUT}: {error}") from error

    def describe(self) -> str:
        """What the folder holds: lines to print."""
        about, whitening = self.about, self.whitening
        levels = f", joined with {len(about['levels'])} levels" if about["levels"] else ""
        kept = "none" if whitening is None else "{1} of {0} values".format(*whitening.projection_.shape)
        rows = {
            "folder": f"{self.folder}, {(self.folder / _WEIGHTS).stat().st_size / 1e6:,.1f} MB",
            "trunk": about["trunk"],
            "classes": f"{about['num_classes']}",
            "pooling": f"GeM, p = {about['pooling_exponent']:.6g}{levels}",
            "whitening": kept,
            "resolution": f"trained at {about['resolution']} px, "
            f"used at {about.get('default_resolution') or about['resolution']} px",
        }
        return "\n".join(f"{name:<10}  {text}" for name, text in rows.items())

    def network(self) -> Network:
        """The whole network, with the training exponent and the levels that it was packed with."""
        about = self.about
        network = Network(
            about["trunk"],
            about["num_classes"],
            about["pooling_exponent"],
            levels=about["levels"],
            preparation=self.preparation,
        )
        head = self.fill(network.trunk, about["trunk"])
        network.set_classifier(head.kernel, head.bias)
        return network


def pack(
    folder: str | os.PathLike, network: Network, trunk: str, whitening: Whitening | None, about: Mapping[str, Any]
) -> Path:
    """Writes a network as `Packed` reads it.

    Args:
        folder: a new one; of `mg_keras.files.atomic_path`, so that it appears whole.
        network: whose trunk is that of `mg_keras.models.trunks` by the name `trunk`, with its own normalisation.
        whitening: with the bias channel; None: descriptors are not whitened.
        about: what else is known: `resolution` at least.

    Returns:
        The folder.

    Raises:
        ValueError: a weight is no number or too large for half precision.
        UserError: the folder can't be written to.
    """
    arrays = {}
    for name, variable in _named(network.trunk).items():
        values = _halved(name, variable)
        if values.ndim > 1 and values.size >= _LARGE:
            columns = np.float32(values).reshape(-1, values.shape[-1])
            rounded, scale = _rounded(columns.T)
            arrays |= {name: rounded.T.reshape(values.shape), f"{name}_scale": scale}
        else:
            arrays[name] = values
    kernel, bias = (np.asarray(weight, np.float32) for weight in network.classifier.weights)
    if not np.isfinite(kernel).all():
        raise ValueError("the classifier's kernel holds values that are no numbers")
    rounded, scale = _rounded(kernel)
    arrays |= {"classifier/kernel": rounded, "classifier/scale": scale, "classifier/bias": bias}
    if whitening is not None:
        arrays |= {
            "whitening/mean": np.float32(whitening.mean_),
            "whitening/discarded_variance": np.float32(whitening.discarded_variance_),
        }
        matrices = {"projection": whitening.projection_}
        if len(set(whitening.projection_.shape)) > 1:
            # the way back, too: the pseudo-inverse of a rounded projection would be a poor one
            matrices["inverse"] = whitening.inverse_
        for name, matrix in matrices.items():
            arrays[f"whitening/{name}"], arrays[f"whitening/{name}_scale"] = _rounded(np.float32(matrix))
    known = {
        "trunk": trunk,
        "num_classes": network.num_classes,
        "pooling_exponent": float(network.pool.pooling_exponent),
        "levels": [str(level) for level in network.levels],
        "preparation": network.preparation,
        **about,
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / _WEIGHTS)
        # safetensors lets nobody else read it
        (folder / _WEIGHTS).chmod(0o644)
        atomic_write_json(folder / _ABOUT, known)
    except OSError as error:
        raise UserError(f"{folder} can't be written to: {error.strerror or error}") from error
    return folder


def pack_observed(folder: str | os.PathLike, means: list[np.ndarray], read: np.ndarray, given: np.ndarray) -> None:
    """Adds what `Packed.observed` gives to a folder that `pack` wrote; arguments as it gives them.

    Raises:
        UserError: the folder can't be written to.
    """
    path = Path(folder) / _EIGHT_BITS
    arrays = {
        "means": np.concatenate(means).astype(np.float16),
        "channels": np.array([len(mean) for mean in means], np.int32),
        "read": np.float32(read),
        "given": np.float32(given),
    }
    try:
        save_file(arrays, path)
        path.chmod(0o644)
    except OSError as error:
        raise UserError(f"{folder} can't be written to: {error.strerror or error}") from error


def _rounded(matrix):
    """int8 and float32 [rows]: a matrix's values in 8 bits, and what to multiply each row by."""
    scale = np.maximum(np.abs(matrix).max(axis=1), 1e-12) / 127
    return np.round(matrix / scale[:, None]).astype(np.int8), scale


def _named(trunk):
    """Name in the file -> variable of a trunk."""
    # not the random states of dropout
    variables = [variable for variable in trunk.variables if "seed_generator" not in variable.path]
    named = {"/".join(["trunk", *variable.path.split("/")[-2:]]): variable for variable in variables}
    if len(named) != len(variables):
        raise ValueError("two variables of the trunk have one name")
    return named


def _halved(name, values):
    """float16 of what has two dimensions or more, float32 of the rest."""
    values = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        packed = values.astype(np.float16) if values.ndim > 1 else values
    if not np.isfinite(packed).all():
        raise ValueError(f"{name} holds values that half precision can't hold")
    return packed
