"""Where the weights of a network start from: ImageNet, a run, a file."""

import os
from collections.abc import Sequence

from mg_keras.errors import UserError
from mg_keras.files import in_home
from mg_keras.models import Network, trunks
from mg_keras.poolings import Level
from mg_keras.pretrained import PACKAGED, checkpoint, keras_weights, lite0, packed
from mg_keras.pretrained.multigrain import from_torch_checkpoint
from mg_keras.pretrained.names import Head

IMAGENET = "imagenet"


def initialize(
    model: Network, weights: str | os.PathLike, trunk_name: str, class_names: Sequence[str] | None = None
) -> str:
    """Puts weights that were trained before into a model: the trunk's, and the classifier's where the classes agree.

    The classes agree where they have the same names, in whatever order, or, if either side knows no names, where there
    are as many. The margin loss's beta is taken from no one.

    Args:
        model: a `Network`, such as a `MultiGrain`.
        weights: one of

            * `"imagenet"`: for `efficientnet_lite0` the package of the extra `offline`, its classifier included; for
              others the keras-hub preset, which is downloaded on first use, and the trunk alone;
            * `"package"`: the model that comes with mg_keras, for `efficientnet_lite0`;
            * a run's folder: its last checkpoint;
            * the folder that `mg-keras pack` wrote;
            * a PyTorch file `.pth`, as `from_torch_checkpoint` takes it, or of EfficientNet-Lite0;
            * `.safetensors`, with the names of torchvision's ResNets (which timm's have too);
            * `.weights.h5` or `.keras`, of a `MultiGrain` or of the trunk alone;
            * the folder of a keras-hub preset.
        trunk_name: the name of the model's trunk in `mg_keras.models.trunks.TRUNKS`.
        class_names: list of str, the model's classes in the order of its logits; None: not known.

    Returns:
        A line on what was taken.

    Raises:
        UserError: the weights can't be had or read, or are another network's.

    Example:
        >>> model = mg_keras.MultiGrain("efficientnet_lite0", 101)  # doctest: +SKIP
        >>> print(initialize(model, "imagenet", "efficientnet_lite0"))  # doctest: +SKIP
        weights of imagenet: the trunk; new classifier, as its 1000 classes are not the 101 here
    """
    head = _fill(model.trunk, weights, trunk_name)
    if head is None:
        return f"weights of {weights}: the trunk; new classifier, as there is none to take over"
    if not head.reads(model.map_channels[0], model.levels):
        return f"weights of {weights}: the trunk; new classifier, as theirs reads other levels of the trunk"
    if head.bias.shape != (model.num_classes,):
        return (
            f"weights of {weights}: the trunk; new classifier, as its {len(head.bias)} classes are not the "
            f"{model.num_classes} here"
        )
    order = list(range(len(head.bias)))
    if None not in (head.class_names, class_names):
        if set(head.class_names) != set(class_names):
            return f"weights of {weights}: the trunk; new classifier, as its {len(head.bias)} classes have other names"
        order = [head.class_names.index(name) for name in class_names]
    model.set_classifier(head.kernel[:, order], head.bias[order])
    return f"weights of {weights}: the whole model, the classifier of its {len(head.bias)} classes included"


def class_names(weights: str | os.PathLike, trunk_name: str, levels: Sequence[str] = ()) -> list[str]:
    """The classes of a network that was trained before, in the order of its logits; where they have no names, numbers.

    Args:
        weights, trunk_name: as `initialize` takes them.
        levels: of the network that is to take the classifier over.

    Raises:
        UserError: the weights can't be had or read, come without a classifier, or with one that reads other levels.
    """
    trunk = trunks.build(trunk_name)
    head = _fill(trunk, weights, trunk_name)
    if head is None:
        raise UserError(f"weights of {weights} come without a classifier, and a teacher needs one")
    if not head.reads(trunk.output_shape[-1], [Level.of(level) for level in levels]):
        wanted = f"take --levels [{','.join(head.levels)}]" if head.levels else "which they don't name"
        raise UserError(
            f"the classifier of {weights} reads other levels of the trunk, and a teacher needs it: {wanted}"
        )
    return head.class_names or [f"class {number}" for number in range(len(head.bias))]


def _fill(trunk, weights, trunk_name):
    """Puts the trunk's weights in place; returns the `Head` beside them, or None."""
    if weights == IMAGENET:
        if trunk_name == lite0.TRUNK:
            return lite0.fill(trunk, lite0.package_file())
        return keras_weights.fill_from_preset(trunk, trunk_name)
    if weights == PACKAGED:
        return packed.Packed(packed.PACKAGE).fill(trunk, trunk_name)
    path = in_home(weights)
    if not path.exists():
        raise UserError(f"no weights at {path}: give package, imagenet, the folder of a run, or a file of weights")
    if path.is_dir():
        return _fill_from_folder(trunk, path, trunk_name)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        return lite0.fill(trunk, path) if trunk_name == lite0.TRUNK else _fill_from_torch(trunk, path, trunk_name)
    if path.suffix in (".h5", ".keras"):
        return keras_weights.fill_from_file(trunk, path, trunk_name)
    raise UserError(f"weights are read from .pth, .safetensors, .weights.h5 and .keras files, received {path}")


def _fill_from_torch(trunk, path, trunk_name):
    pretrained = from_torch_checkpoint(path)
    if pretrained.checkpoint.trunk != trunk_name:
        raise UserError(f"{path} holds a {pretrained.checkpoint.trunk}, where the trunk is {trunk_name}")
    return _fill_from_model(trunk, pretrained.model, pretrained.class_names)


def _fill_from_folder(trunk, path, trunk_name):
    if (path / "config.yaml").is_file():
        return checkpoint.fill(trunk, path, trunk_name)
    if (path / "model.json").is_file():
        return packed.Packed(path).fill(trunk, trunk_name)
    if (path / "config.json").is_file():
        return keras_weights.fill_from_preset(trunk, trunk_name, path)
    if (path / "saved_model.pb").is_file() or any(path.glob("*/saved_model.pb")):
        raise UserError(
            f"{path} is a SavedModel, whose weights are folded for use and can't be trained: give the folder of the "
            "run that it was exported from"
        )
    raise UserError(f"{path} is neither the folder of a run nor that of a keras-hub preset")


def _fill_from_model(trunk, model, class_names):
    for variable, value in zip(trunk.weights, model.trunk.weights, strict=True):
        variable.assign(value)
    kernel, bias = (weight.numpy() for weight in model.classifier.weights)
    return Head(kernel, bias, class_names)
