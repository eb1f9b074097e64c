import json
import math

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.pretrained import layouts, open_torch_checkpoint
from mg_keras.pretrained.layouts import MEAN, PROJECTION, RESNETS, resnet_layers
from tests.pretrained import torch_writer as by_hand
from tests.shared import shared_path


def published(trunk="resnet18", classes=10, whitened=False):
    """Names and shapes of a published checkpoint."""
    shapes = {}
    for layer in resnet_layers(trunk):
        shapes |= {f"features.{name}": shape for name, shape in layouts.parameters(layer).items()}
        if len(layer.shape) == 1:
            shapes[f"features.{layer.torch}.num_batches_tracked"] = ()
    size = layouts.embedding_size(trunk) + whitened
    shapes |= {"classifier.weight": (classes, size), "classifier.bias": (classes,), "pool.p": ()}
    return shapes | ({PROJECTION: (size, size), MEAN: (size,)} if whitened else {})


def torchvision(trunk="resnet18", classes=10):
    """Names and shapes of a torchvision network's state."""
    shapes = {name.removeprefix("features."): shape for name, shape in published(trunk, classes).items()}
    del shapes["pool.p"]
    return {name.replace("classifier.", "fc."): shape for name, shape in shapes.items()}


def write(path, shapes, wrapper=None, prefix="", other=None):
    """A checkpoint whose tensors all begin at the same numbers, which are small to write."""
    room = max(math.prod(shape) for shape in shapes.values())
    numbers = by_hand.storage("0", room)
    counter = by_hand.storage("1", 1, "int64")
    steps = {
        prefix + name: by_hand.tensor(counter if name.endswith("tracked") else numbers, shape)
        for name, shape in shapes.items()
    } | (other or {})
    content = by_hand.mapping(steps)
    if wrapper:
        content = by_hand.mapping({wrapper: content, "optimizer": b"}", "epoch": b"K\x05"}, ordered=False)
    return by_hand.write_zip(path, content, {"0": np.full(room, 3, np.float32).tobytes(), "1": bytes(8)})


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_names_and_shapes_are_those_of_the_reference(trunk):
    layout = json.loads(shared_path("goldens", "checkpoint_layout.json").read_text())[trunk]
    assert published(trunk, 1000) == {name: tuple(shape) for name, shape in layout.items()}


@pytest.mark.parametrize(
    ("trunk", "millions"),
    [
        ("resnet18", 11.689512),
        ("resnet34", 21.797672),
        ("resnet50", 25.557032),
        ("resnet101", 44.549160),
        ("resnet152", 60.192808),
    ],
)
def test_as_many_parameters_as_torchvision_says(trunk, millions):
    shapes = torchvision(trunk, 1000)
    trained = [shape for name, shape in shapes.items() if not name.endswith(("mean", "var", "tracked"))]
    assert sum(map(math.prod, trained)) == round(millions * 1e6)


@pytest.mark.parametrize("trunk", RESNETS)
@pytest.mark.parametrize("shapes", [published, torchvision])
def test_trunks_are_recognised(tmp_path, trunk, shapes):
    found = open_torch_checkpoint(write(tmp_path / "a.pth", shapes(trunk, 7)))
    found.check()
    assert found.layout is (layouts.MULTIGRAIN if shapes is published else layouts.TORCHVISION)
    assert (found.trunk, found.num_classes, found.whitened) == (trunk, 7, False)
    assert found.pooling_exponent == (3 if shapes is published else 1)
    assert not found.missing + found.misshaped + found.unknown + found.beside
    assert {*found.tensors, *found.counters} == set(shapes(trunk))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model_state", "state_dict", "model"])
def test_wrappers_and_prefixes(tmp_path, prefix, wrapper):
    found = open_torch_checkpoint(write(tmp_path / "a.pth", published(), wrapper, prefix))
    found.check()
    assert (found.wrapper, found.prefix) == (wrapper, prefix)
    assert found.beside == (["optimizer", "epoch"] if wrapper else [])


def test_without_counters_it_is_whole(tmp_path):
    # PyTorch before 0.4.1 had none
    shapes = {name: shape for name, shape in published().items() if not name.endswith("tracked")}
    found = open_torch_checkpoint(write(tmp_path / "a.pth", shapes))
    found.check()
    assert found.counters == []


@pytest.mark.parametrize("mean", [(513,), (1, 513), (513, 1)])
def test_whitened(tmp_path, mean):
    found = open_torch_checkpoint(write(tmp_path / "a.pth", published(whitened=True) | {MEAN: mean}))
    found.check()
    assert found.whitened
    assert "PCA of 513 values" in found.describe()


def test_description(tmp_path):
    path = write(tmp_path / "a.pth", published("resnet50"), "model_state", "module.")
    rows = [line.split(None, 1) for line in open_torch_checkpoint(path).describe().splitlines()]
    assert rows[0] == ["file", f"{path}, PyTorch's zip format, 9.5 MB"]
    assert [" ".join(row) for row in rows[1:]] == [
        "layout MultiGrain, below 'model_state', names begin with 'module.'",
        "trunk resnet50, embeddings of 2048 values",
        "classes 10",
        "pooling GeM, p = 3",
        "whitening none",
        "taken 268 tensors",
        "counters 53 numbers of batches seen, which only training needs: not taken",
        "beside optimizer, epoch: not taken",
    ]


WRONG = {
    "missing": (published(), "features.layer3.1.bn2.running_var", None, "missing: features.layer3.1.bn2.running_var"),
    # a trunk without this one would else be taken for another
    "missing of the first block": (
        published("resnet50"),
        "features.layer1.0.conv3.weight",
        None,
        "of a resnet50; missing: features.layer1.0.conv3.weight$",
    ),
    "missing first": (torchvision(), "conv1.weight", None, "missing: conv1.weight$"),
    "no exponent": (published(), "pool.p", None, "missing: pool.p$"),
    "no classifier": (torchvision(), "fc.weight", None, "missing: fc.weight$"),
    "misshaped": (published(), "features.bn1.bias", (63,), r"misshaped: features.bn1.bias is \[63\], expected \[64\]$"),
    "turned": (
        torchvision(),
        "fc.weight",
        (512, 10),
        r"fc.weight is \[512, 10\], expected \[512, 512\], fc.bias is \[10\]",
    ),
    "no class": (torchvision(classes=0), "fc.bias", (0,), r"fc.bias is \[0\]"),
    "exponents": (published(), "pool.p", (2,), r"pool.p is \[2\], expected \[\]$"),
    "unknown": (torchvision(), "layer1.0.se.fc1.weight", (4, 64), "unknown: layer1.0.se.fc1.weight$"),
    "half a whitening": (published(whitened=True), PROJECTION, None, f"missing: {PROJECTION}$"),
    "whitening without its classifier": (
        published() | {PROJECTION: (513, 513), MEAN: (513,)},
        "pool.p",
        (),
        r"classifier.weight is \[10, 512\], expected \[10, 513\]$",
    ),
    "classifier without its whitening": (
        published() | {"classifier.weight": (10, 513)},
        "pool.p",
        (),
        f"missing: {PROJECTION}, {MEAN}$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_named(tmp_path, name):
    shapes, changed, shape, message = WRONG[name]
    shapes = {**shapes, changed: shape}
    if shape is None:
        del shapes[changed]
    found = open_torch_checkpoint(write(tmp_path / "a.pth", shapes))
    with pytest.raises(UserError, match=message):
        found.check()
    # and told by the description, which does not fail
    assert changed in found.describe() or "classifier" in message or changed == "pool.p"


def test_unknown_ones_can_be_admitted(tmp_path):
    found = open_torch_checkpoint(write(tmp_path / "a.pth", published() | {"extra": (3,)}))
    found.check(strict=False)
    assert found.unknown == ["extra"]
    assert "extra" in found.describe()


def test_what_is_no_tensor(tmp_path):
    counter = by_hand.tensor(by_hand.storage("1", 1, "int64"), (1,))
    other = {"features.bn1.bias": b"K\x05", "features.bn1.weight": counter, "a\x1b[31m": b"N"}
    with pytest.raises(UserError, match=r"features\.bn1\.bias is a int, expected a tensor") as caught:
        open_torch_checkpoint(write(tmp_path / "a.pth", published(), other=other)).check()
    assert r"unknown: 'a\x1b[31m'" in str(caught.value)
    del other["features.bn1.bias"]
    other["features.bn1.weight"] = by_hand.tensor(by_hand.storage("2", 64, "int64"), (64,))
    path = tmp_path / "b.pth"
    write(path, published(), other=other)
    with pytest.raises(UserError, match="storage 2, which it does not have"):
        open_torch_checkpoint(path)


def test_many_wrong_names_are_counted(tmp_path):
    with pytest.raises(UserError, match=r"resnet18; missing: bn1\.weight, .* and 81 more$"):
        open_torch_checkpoint(write(tmp_path / "a.pth", {"conv1.weight": (64, 3, 7, 7)})).check()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (b"]", "holds a list, where a dict of tensors is read"),
        (by_hand.tensor(by_hand.storage("0", 1), (1,)), "holds a tensor"),
        (b"}", "holds no tensors by name: its keys are none"),
        (b"}(K\x01K\x02K\x03]u", "no tensors by name: its keys are <int>, <int>"),
        (by_hand.mapping({"epoch": b"K\x01"}), "no tensors by name: its keys are epoch"),
        (
            by_hand.mapping({"vgg.0.weight": by_hand.tensor(by_hand.storage("0", 1), (1,))}),
            r"no layout that is known here.*its 1 names are vgg\.0\.weight",
        ),
    ],
)
def test_what_is_no_network(tmp_path, steps, message):
    path = by_hand.write_zip(tmp_path / "a.pth", steps, {"0": np.float32([1]).tobytes()})
    with pytest.raises(UserError, match=message):
        open_torch_checkpoint(path)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_exponent_that_is_none(tmp_path, value):
    path = by_hand.write_state(tmp_path / "a.pth", {"features.conv1.weight": 0.0, "pool.p": np.float32(value)})
    with pytest.raises(UserError, match=r"pool\.p is .*greater than 0"):
        open_torch_checkpoint(path)


def test_values_that_are_not_finite(tmp_path):
    path = by_hand.write_state(
        tmp_path / "a.pth", {"features.bn1.bias": np.float32([1] * 63 + [math.nan]), "features.conv1.weight": 0.0}
    )
    with pytest.raises(UserError, match=r"features\.bn1\.bias holds NaN or infinite values"):
        open_torch_checkpoint(path).array("features.bn1.bias")
