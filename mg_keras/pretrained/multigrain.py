"""MultiGrain from PyTorch checkpoints, and PyTorch checkpoints from MultiGrain."""

import dataclasses
import os
from collections.abc import Sequence

import keras_hub
import numpy as np

from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.models import Network, trunks
from mg_keras.models.trunks import IMAGENET_MEAN, IMAGENET_STD
from mg_keras.pretrained import torch_file
from mg_keras.pretrained.layouts import (
    MEAN,
    MULTIGRAIN,
    PROJECTION,
    RESNETS,
    TorchCheckpoint,
    open_torch_checkpoint,
    parameters,
    resnet_layers,
)

# by how much of its largest possible value a folded bias may miss the mean's logit: float32 leaves 1e-6, the other
# reading of the projection 1e-2 and more
_FOLD_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network that was trained elsewhere.

    Attributes:
        model: `Network`, with the classifier of plain embeddings whether or not the file's was folded.
        whitening: `mg_keras.Whitening` with the bias channel, or None.
        class_names: list of str in the order of the logits, or None where none were given: no checkpoint has them.
        checkpoint: `TorchCheckpoint`, what the file holds.
    """

    model: Network
    whitening: Whitening | None
    class_names: list | None
    checkpoint: TorchCheckpoint


def from_torch_checkpoint(
    path: str | os.PathLike, class_names: Sequence[str] | None = None, strict: bool = True
) -> Pretrained:
    """Makes a MultiGrain of a PyTorch checkpoint, without PyTorch, and without running anything of the file.

    Known are the published MultiGrain checkpoints, plain and whitened, and torchvision's ResNet-18, 34, 50, 101 and
    152 with their classifier, which get average pooling (p = 1). The network computes what it computed in PyTorch:
    embeddings and logits agree to float32's rounding.

    A whitened checkpoint classifies from `Φ(ê)`, ê = [e; 1] / ||[e; 1]||, with `w' = S⁻ᵀ w` and `b' = <w, μ>`
    (section 3.4). Here Φ becomes a `Whitening` and the classifier the plain one, `w = Sᵀ w'`, which reads the same
    classes. Whether the file's matrix is S or Sᵀ shows in the classifier: only one of the two gives b'.

    Args:
        path: a `.pth` file in PyTorch's zip or legacy format.
        class_names: list of C str in the order of the logits, or None.
        strict: whether tensors that the layout does not have are refused; otherwise they are listed in
            `checkpoint.unknown`. Missing and misshaped ones always are.

    Returns:
        `Pretrained`.

    Raises:
        UserError: the file cannot be read, is of no known layout, lacks tensors or has wrong ones, which the message
            names; or there are more or fewer names than classes.

    Example:
        >>> network = from_torch_checkpoint("joint_3B_0.5.pth")  # doctest: +SKIP
        >>> network.model(images, p_star=4.0)["embedding"].shape  # doctest: +SKIP
        TensorShape([2, 2048])
    """
    checkpoint = open_torch_checkpoint(path)
    checkpoint.check(strict)
    layout, classes = checkpoint.layout, checkpoint.num_classes
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"{checkpoint.path} has {classes} classes, received {len(class_names)} class names")
    kernel, bias = (checkpoint.array(layout.classifier + name) for name in ("weight", "bias"))
    whitening = None
    if checkpoint.whitened:
        whitening, kernel, bias = _unfold(checkpoint, kernel, bias)
    model = Network(checkpoint.trunk, classes, pooling_exponent=checkpoint.pooling_exponent)
    for name, variable in _trunk_variables(model, checkpoint.trunk):
        variable.assign(_to_keras(checkpoint.array(layout.trunk + name)))
    model.classifier.kernel.assign(kernel.T)
    model.classifier.bias.assign(bias)
    return Pretrained(model, whitening, None if class_names is None else list(class_names), checkpoint)


def to_torch_state_dict(model: Network) -> dict[str, np.ndarray]:
    """A MultiGrain's weights under the names of the published checkpoints (`features.*`, `classifier.*`, `pool.p`).

    `from_torch_checkpoint` gives the same bits back; so does what `torch.load` reads of `save_torch_checkpoint`'s file
    in the authors' network. Training-only values, such as beta, have no place there.

    Args:
        model: a `Network`, such as a `MultiGrain`, whose trunk is `resnet18`, `resnet34`, `resnet50`, `resnet101` or
            `resnet152`.

    Returns:
        dict of str to float32 array in PyTorch's order of axes (batch normalisation's counters: int64, 0).

    Raises:
        ValueError: the trunk is another, or the images are normalised otherwise than the layout's networks do.

    Example:
        >>> to_torch_state_dict(Network("resnet18", 10))["classifier.weight"].shape  # doctest: +SKIP
        (10, 512)
    """
    trunk = _trunk_name(model.trunk)
    if (model.pixel_mean, model.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise ValueError(
            f"PyTorch's networks take images normalised with {IMAGENET_MEAN} and {IMAGENET_STD}, received a model "
            f"with {model.pixel_mean} and {model.pixel_std}"
        )
    variables = dict(_trunk_variables(model, trunk))
    state = {}
    for layer in resnet_layers(trunk):
        for name in parameters(layer):
            state[MULTIGRAIN.trunk + name] = _to_torch(np.asarray(variables[name].numpy()))
        if len(layer.shape) == 1:
            state[f"{MULTIGRAIN.trunk}{layer.torch}.num_batches_tracked"] = np.zeros((), np.int64)
    state[MULTIGRAIN.exponent] = np.asarray(model.pool.pooling_exponent.numpy())
    kernel, bias = (np.asarray(weight.numpy()) for weight in model.classifier.weights)
    return state | {
        f"{MULTIGRAIN.classifier}weight": np.ascontiguousarray(kernel.T),
        f"{MULTIGRAIN.classifier}bias": bias,
    }


def save_torch_checkpoint(path: str | os.PathLike, model: Network) -> None:
    """Writes a MultiGrain as a published checkpoint is: a `.pth` file with its weights below `model_state`.

    Args:
        path: the file, whole or not at all.
        model: as `to_torch_state_dict` takes it.

    Raises:
        ValueError: as `to_torch_state_dict`.
        UserError: it cannot be written there.
    """
    state = to_torch_state_dict(model)
    try:
        torch_file.write(path, {"model_state": state})
    except OSError as error:
        raise UserError(f"the checkpoint can't be written to {path}: {error.strerror or error}") from error


def _unfold(checkpoint, folded, folded_bias):
    """(whitening, weight [C, d], bias [C]) of a classifier that reads whitened embeddings."""
    folded, folded_bias = folded.astype(np.float64), folded_bias.astype(np.float64)
    mean = checkpoint.array(MEAN).astype(np.float64).reshape(-1)
    matrix = checkpoint.array(PROJECTION).astype(np.float64)
    readings = []
    for projection in (matrix.T, matrix):
        # a row of weights: w = Sᵀ w', with the projection Sᵀ
        weights = folded @ projection.T
        largest = np.maximum(np.linalg.norm(weights, axis=1) * np.linalg.norm(mean), 1e-30)
        readings.append((np.max(np.abs(weights @ mean - folded_bias) / largest), projection, weights))
    missed, projection, weights = min(readings, key=lambda reading: reading[0])
    if not missed < _FOLD_TOLERANCE:
        raise UserError(
            f"{checkpoint.path}: the classifier does not undo the whitening. {MULTIGRAIN.classifier}bias must be the "
            f"logits of {MEAN}, and misses them by {missed:.2g} of what they can be"
        )
    try:
        whitening = Whitening(mean, projection)
        np.linalg.inv(projection)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"{checkpoint.path}: {PROJECTION} and {MEAN} are no whitening: {error}") from error
    return whitening, weights[:, :-1], weights[:, -1]


def _trunk_variables(model, trunk):
    """Pairs of a parameter's name in PyTorch and its variable."""
    for layer in resnet_layers(trunk):
        # of a convolution the kernel; of a batch normalisation scale, offset, mean and variance, as PyTorch has them
        yield from zip(parameters(layer), model.trunk.get_layer(layer.keras).weights, strict=True)


def _trunk_name(trunk):
    """The name of a trunk that PyTorch's layout has."""
    config = trunk.get_config() if isinstance(trunk, keras_hub.models.ResNetBackbone) else {}
    for name in RESNETS:
        wanted = {**trunks.TRUNKS[name][1], "use_pre_activation": False}
        if all(config.get(key) == value for key, value in wanted.items()):
            return name
    raise ValueError(f"PyTorch's layout is that of {', '.join(RESNETS)}, received the trunk {trunk!r}")


def _to_keras(array):
    """A convolution's kernel [out, in, height, width] as [height, width, in, out]; other arrays as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _to_torch(array):
    """A convolution's kernel [height, width, in, out] as [out, in, height, width]; other arrays as they are."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
