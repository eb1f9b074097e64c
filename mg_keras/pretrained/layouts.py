"""What networks' tensors are called in PyTorch: the published MultiGrain checkpoints, and torchvision's ResNets.

A checkpoint is recognised and checked by the names and shapes of its tensors alone; none of its numbers are read.
"""

import dataclasses
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg_keras.errors import UserError
from mg_keras.pretrained.names import refuse, some
from mg_keras.pretrained.safetensors_file import open_tensors
from mg_keras.pretrained.torch_file import Tensor, TorchFile, shown

PROJECTION, MEAN = "whitening.pca.pca_P", "whitening.pca.pca_m"

# blocks of each stage, and convolutions of a block: torchvision's ResNets
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
    "resnet152": ((3, 8, 36, 3), 3),
}

# below which keys training programs put the network's tensors: the authors', torchvision's and PyTorch's examples
_WRAPPERS = ("model_state", "model", "state_dict")
_COUNTER = "num_batches_tracked"


class Layer(NamedTuple):
    """A layer with weights of a ResNet: its names in PyTorch and in keras-hub, and its weight's shape in PyTorch.

    A convolution's is [out, in, height, width], a batch normalisation's [channels].
    """

    torch: str
    keras: str
    shape: tuple


class Layout(NamedTuple):
    """Where the parts of a network are, by the beginnings of their names; `exponent` is None where p is not kept."""

    name: str
    trunk: str
    classifier: str
    exponent: str | None


MULTIGRAIN = Layout("MultiGrain", "features.", "classifier.", "pool.p")
TORCHVISION = Layout("torchvision", "", "fc.", None)


def resnet_layers(trunk: str) -> list[Layer]:
    """The layers with weights of a trunk, a list of `Layer`.

    Args:
        trunk: a key of `RESNETS`.

    Example:
        >>> resnet_layers("resnet50")[2]
        Layer(torch='layer1.0.conv1', keras='stack0_block0_1_conv', shape=(64, 64, 1, 1))
    """
    blocks, convolutions = RESNETS[trunk]
    layers = [Layer("conv1", "conv1_conv", (64, 3, 7, 7)), Layer("bn1", "conv1_bn", (64,))]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            sides, widths = ((3, 3), (width, width)) if convolutions == 2 else ((1, 3, 1), (width, width, 4 * width))
            torch, keras = f"layer{stage + 1}.{block}", f"stack{stage}_block{block}"
            inputs = (channels, *widths)
            for number, (side, wanted) in enumerate(zip(sides, widths, strict=True), 1):
                shape = (wanted, inputs[number - 1], side, side)
                layers.append(Layer(f"{torch}.conv{number}", f"{keras}_{number}_conv", shape))
                layers.append(Layer(f"{torch}.bn{number}", f"{keras}_{number}_bn", shape[:1]))
            if channels != widths[-1]:
                shape = (widths[-1], channels, 1, 1)
                layers.append(Layer(f"{torch}.downsample.0", f"{keras}_0_conv", shape))
                layers.append(Layer(f"{torch}.downsample.1", f"{keras}_0_bn", shape[:1]))
            channels = widths[-1]
    return layers


def embedding_size(trunk: str) -> int:
    """d, the channels of a trunk's feature map."""
    return resnet_layers(trunk)[-1].shape[0]


def parameters(layer: Layer) -> dict[str, tuple]:
    """The tensors of a `Layer`: name in PyTorch -> shape. Batch normalisation's counter of batches is none of them."""
    if len(layer.shape) == 4:
        return {f"{layer.torch}.weight": layer.shape}
    return {f"{layer.torch}.{name}": layer.shape for name in ("weight", "bias", "running_mean", "running_var")}


@dataclasses.dataclass(frozen=True)
class TorchCheckpoint:
    """What a file holds of a network.

    Attributes:
        path: the file.
        format: `"zip"`, `"legacy"` or `"safetensors"`.
        layout: `MULTIGRAIN` or `TORCHVISION`.
        wrapper: the key below which the tensors are in the file, or None: at the top.
        prefix: what stands in front of every name, `"module."` or `""`.
        trunk: a name of `RESNETS`.
        num_classes: C, or None where there is no classifier.
        pooling_exponent: p of GeM, or None where it is missing; 1 in torchvision's layout.
        whitened: whether it has a whitening, with the classifier folded behind it.
        tensors: name, without the prefix -> `Tensor`: all that the layout has.
        counters: names of the numbers of batches that batch normalisation has seen, which no network here needs.
        missing: names of tensors that the layout has and the file has not.
        misshaped: a str on each tensor with another shape or type than the layout's.
        unknown: names in the network's dict that the layout has not.
        beside: keys in the file beside the network's dict, such as an optimiser's state.
    """

    path: Path
    format: str
    layout: Layout
    wrapper: str | None
    prefix: str
    trunk: str
    num_classes: int | None
    pooling_exponent: float | None
    whitened: bool
    tensors: dict
    counters: list
    missing: list
    misshaped: list
    unknown: list
    beside: list
    _file: TorchFile = dataclasses.field(repr=False)

    def array(self, name: str) -> np.ndarray:
        """A tensor of `tensors` as a NumPy array.

        Raises:
            UserError: the file is damaged, or a value is not finite.
        """
        values = self._file.array(self.tensors[name])
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: {name} holds NaN or infinite values")
        return values

    def check(self, strict: bool = True) -> None:
        """Refuses a file that does not have what its layout has.

        Args:
            strict: whether to refuse unknown tensors as well.

        Raises:
            UserError: which names the tensors.
        """
        problems = {"missing": self.missing, "misshaped": self.misshaped, "unknown": self.unknown if strict else []}
        refuse(f"{self.path} is no {self.layout.name} checkpoint of a {self.trunk}", problems)

    def describe(self) -> str:
        """What the file is, what is taken of it and what is not: lines to print."""
        size = embedding_size(self.trunk)
        held = [f"below {shown(self.wrapper)!r}"] if self.wrapper else []
        held += [f"names begin with {self.prefix!r}"] if self.prefix else []
        pooling = "GeM, p missing" if self.pooling_exponent is None else f"GeM, p = {self.pooling_exponent:.6g}"
        if self.layout is TORCHVISION:
            pooling = "average, which is GeM of p = 1"
        rows = {
            "file": f"{self.path}, PyTorch's {self.format} format, {self.path.stat().st_size / 1e6:,.1f} MB",
            "layout": ", ".join([self.layout.name, *held]),
            "trunk": f"{self.trunk}, embeddings of {size} values",
            "classes": "no classifier" if self.num_classes is None else f"{self.num_classes}",
            "pooling": pooling,
            "whitening": f"PCA of {size + 1} values, undone in the classifier" if self.whitened else "none",
            "taken": f"{len(self.tensors)} tensors",
            "counters": f"{len(self.counters)} numbers of batches seen, which only training needs: not taken",
        }
        for name in ("missing", "misshaped", "unknown"):
            if getattr(self, name):
                rows[name] = some(getattr(self, name), None)
        if self.beside:
            rows["beside"] = f"{some(self.beside, None)}: not taken"
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def open_torch_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Looks into a PyTorch checkpoint; runs nothing of it and reads none of its tensors but the exponent.

    Args:
        path: a `.pth` file, zip or legacy, or a `.safetensors` file. Its tensors are at the top or below `model_state`,
            `model` or `state_dict`; `module.` may stand in front of every name.

    Returns:
        `TorchCheckpoint`; whether it is complete, `TorchCheckpoint.check` says.

    Raises:
        UserError: it cannot be read (see `TorchFile`), or is of no layout that is known here.

    Example:
        >>> print(open_torch_checkpoint("joint_3B_0.5.pth").describe())  # doctest: +SKIP
    """
    file = open_tensors(path)
    wrapper, state, beside = _network(file)
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    layout = _layout(file, state)
    classes = _num_classes(state, layout)
    candidates = [_compare(state, layout, trunk, classes) for trunk in RESNETS]
    # the trunk to which the fewest names are wrong: a missing tensor makes no other trunk of it
    best = min(candidates, key=lambda found: sum(len(found[part]) for part in ("missing", "misshaped", "unknown")))
    exponent = None if layout.exponent else 1.0
    if layout.exponent in best["tensors"]:
        exponent = float(file.array(best["tensors"][layout.exponent]))
        if not 0 < exponent < math.inf:
            raise UserError(f"{file.path}: {layout.exponent} is {exponent}, and a pooling exponent is greater than 0")
    return TorchCheckpoint(
        path=file.path,
        format=file.format,
        layout=layout,
        wrapper=wrapper,
        prefix=prefix,
        num_classes=classes,
        pooling_exponent=exponent,
        beside=beside,
        _file=file,
        **best,
    )


def _network(file):
    """(wrapper, name -> value, keys beside it) of the dict in the file that holds tensors."""
    if not isinstance(file.contents, dict):
        kind = type(file.contents).__name__.lower()
        raise UserError(f"{file.path} holds a {kind}, where a dict of tensors is read: save model.state_dict()")
    top = dict(dict.items(file.contents))
    for wrapper in (*_WRAPPERS, None):
        state = top if wrapper is None else top.get(wrapper)
        if not isinstance(state, dict):
            continue
        named = {_name(key): value for key, value in dict.items(state)}
        if any(isinstance(value, Tensor) for value in named.values()):
            return wrapper, named, [] if wrapper is None else [_name(key) for key in top if key != wrapper]
    raise UserError(f"{file.path} holds no tensors by name: its keys are {some(map(_name, top)) or 'none'}")


def _name(key):
    # the text of any other key could be of any length, or fail
    return key if isinstance(key, str) else f"<{type(key).__name__}>"


def _layout(file, state):
    for layout in (MULTIGRAIN, TORCHVISION):
        # any of these: a file that lacks one shall be told so
        if any(f"{layout.trunk}{name}.weight" in state for name in ("conv1", "layer1.0.conv1", "layer4.0.conv1")):
            return layout
    raise UserError(
        f"{file.path} is of no layout that is known here, MultiGrain's (features.conv1.weight) or torchvision's "
        f"ResNets' (conv1.weight): its {len(state)} names are {some(state)}"
    )


def _num_classes(state, layout):
    for name in ("weight", "bias"):
        tensor = state.get(layout.classifier + name)
        if isinstance(tensor, Tensor) and tensor.shape:
            return tensor.shape[0]
    return None


def _compare(state, layout, trunk, classes):
    """What of `state` a layout with this trunk has, and what is wrong: fields of `TorchCheckpoint` by name."""
    size = embedding_size(trunk)
    weight = state.get(f"{layout.classifier}weight")
    # half a whitening shall be told what it lacks
    whitened = layout is MULTIGRAIN and (
        any(name.startswith("whitening.") for name in state)
        or (isinstance(weight, Tensor) and weight.shape[1:] == (size + 1,))
    )
    layers = resnet_layers(trunk)
    wanted = {layout.trunk + name: shape for layer in layers for name, shape in parameters(layer).items()}
    wanted |= {
        f"{layout.classifier}weight": (classes, size + whitened),
        f"{layout.classifier}bias": (classes,),
    }
    if layout.exponent:
        wanted[layout.exponent] = ()
    if whitened:
        wanted |= {PROJECTION: (size + 1, size + 1), MEAN: (size + 1,)}
    counters = {f"{layout.trunk}{layer.torch}.{_COUNTER}": () for layer in layers if len(layer.shape) == 1}
    tensors, misshaped = {}, []
    for name in [name for name in state if name in wanted or name in counters]:
        problem = _problem(state[name], name, wanted.get(name, ()), name in counters)
        if problem:
            misshaped.append(problem)
        elif name in wanted:
            tensors[name] = state[name]
    return {
        "trunk": trunk,
        "whitened": whitened,
        "tensors": tensors,
        "counters": [name for name in counters if name in state],
        "missing": [name for name in wanted if name not in state],
        "misshaped": misshaped,
        "unknown": [name for name in state if name not in wanted and name not in counters],
    }


def _problem(value, name, shape, is_counter):
    """What is wrong with a tensor, or None."""
    if not isinstance(value, Tensor):
        return f"{name} is a {type(value).__name__}, expected a tensor"
    # a mean may be a row or a column
    same = sorted(value.shape) == [1, *shape] if name == MEAN and len(value.shape) == 2 else value.shape == shape
    if not same or (shape and value.shape[0] < 1):
        return f"{name} is {list(value.shape)}, expected {list(shape)}"
    if not is_counter and "float" not in value.dtype:
        return f"{name} is of {value.dtype}, expected floating point"
    return None
