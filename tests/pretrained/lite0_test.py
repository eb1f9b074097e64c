import keras
import numpy as np
import pytest

from mg_keras import MultiGrain
from mg_keras.errors import UserError
from mg_keras.finishing.settings import Choosing
from mg_keras.models import trunks
from mg_keras.pretrained import lite0
from mg_keras.pretrained.torch_file import TorchFile
from mg_keras.programs import imagenet, stages
from mg_keras.runs import photos as run_photos
from mg_keras.runs.run import load_run
from tests.models.trunks_test import TINY
from tests.pretrained import torch_writer as by_hand
from tests.train.tiny import CLASSES, draw_folder

pytest.importorskip(lite0.PACKAGE, reason="the extra offline is not installed")

IDS = ["n01440764", "n02110341", "n02509815"]


@pytest.fixture(scope="module")
def state():
    """The package's tensors by their names in PyTorch."""
    file = TorchFile(lite0.package_file())
    return {name: file.array(tensor) for name, tensor in dict.items(file.contents)}


@pytest.fixture(scope="module")
def network():
    return lite0.imagenet_network()


# a slow, obvious network


def convolved(images, kernel, stride=1):
    """[B, H, W, C] by PyTorch's kernel [out, C, k, k], or [C, 1, k, k] channel by channel; TensorFlow's padding."""
    side = kernel.shape[-1]
    padding = [(0, 0)]
    for size in images.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        padding.append((total // 2, total - total // 2))
    padded = np.pad(images, [*padding, (0, 0)])
    heights, widths = (-(-size // stride) for size in images.shape[1:3])
    answer = 0.0
    for y in range(side):
        for x in range(side):
            window = padded[:, y : y + stride * heights : stride, x : x + stride * widths : stride]
            window = window[:, :heights, :widths]
            weight = kernel[:, :, y, x]
            answer = answer + (window * weight[:, 0] if kernel.shape[1] == 1 else window @ weight.T)
    return answer


def slow_logits(state, images):
    """EfficientNet-Lite0 (TensorFlow's release notes of March 2020) on normalised images, in float64."""

    def layer(features, convolution, norm, stride=1, activation=True):
        found = convolved(features, state[f"{convolution}.weight"].astype(np.float64), stride)
        weight, bias, mean, variance = (
            state[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
        )
        found = (found - mean) / np.sqrt(variance + 1e-3) * weight + bias
        return np.clip(found, 0, 6) if activation else found

    features = layer(images, "_conv_stem", "_bn0", 2)
    number = 0
    for repeats, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            block, stride, before = f"_blocks.{number}", first_stride if repeat == 0 else 1, features
            if number:
                features = layer(features, f"{block}._expand_conv", f"{block}._bn0")
            features = layer(features, f"{block}._depthwise_conv", f"{block}._bn1", stride)
            features = layer(features, f"{block}._project_conv", f"{block}._bn2", activation=False)
            if repeat:
                features = features + before
            number += 1
    embedding = layer(features, "_conv_head", "_bn1").mean((1, 2))
    return embedding, embedding @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("size", [(64, 64), (50, 37)])
@pytest.mark.slow
def test_the_network_computes_what_it_computed_in_tensorflow(state, network, size):
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    embedding, logits = slow_logits(state, (images.astype(np.float64) - 127) / 128)
    found = network.model(images)
    np.testing.assert_allclose(found["embedding"], embedding, atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    assert logits.std() > 0.5


def test_the_convolution_of_the_oracle():
    # at stride 2, an even side is padded at its end alone
    images = np.arange(16.0).reshape(1, 4, 4, 1)
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 0, 0] = 1
    np.testing.assert_array_equal(convolved(images, kernel, 2)[0, ..., 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(convolved(images, kernel)[0, ..., 0][1:, 1:], images[0, :3, :3, 0])


# classes


def test_imagenets_classes(network):
    ids = lite0.class_ids()
    assert len(set(ids)) == 1000
    # tench, dalmatian, giant panda, toilet tissue: the places that are known by heart
    assert [ids[place] for place in (0, 251, 388, 999)] == ["n01440764", "n02110341", "n02510455", "n15075141"]
    assert network.class_names == ids
    assert network.model.pool.initial_pooling_exponent == 1.0


@pytest.mark.slow
def test_a_part_of_the_classes(network):
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    part = lite0.imagenet_network(IDS[::-1])
    places = [network.class_names.index(name) for name in IDS[::-1]]
    logits = network.model(images)["logits"].numpy()
    np.testing.assert_allclose(part.model(images)["logits"], logits[:, places], atol=1e-5)
    with pytest.raises(UserError, match="n00000001 is none of the WordNet ids"):
        lite0.imagenet_network([*IDS, "n00000001"])


# files


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"not installed: pip install -e \".\[offline\]\" in the checkout$"):
        lite0.package_file()


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_listed(state, network, tmp_path):
    trunk = network.model.trunk
    changed = {name: value for name, value in state.items() if name not in ("_bn0.bias", "_conv_head.weight")}
    changed["_blocks.2._depthwise_conv.weight"] = np.zeros((144, 1, 5, 5), np.float32)
    changed["extra.weight"] = np.zeros(3, np.float32)
    path = by_hand.write_state(tmp_path / "changed.pth", changed, wrapper=None)
    with pytest.raises(UserError) as error:
        lite0.fill(trunk, path)
    for part in (
        "missing: _bn0.bias, _conv_head.weight;",
        "misshaped: _blocks.2._depthwise_conv.weight is [144, 1, 5, 5], expected [144, 1, 3, 3];",
        "unknown: extra.weight",
    ):
        assert part in str(error.value)
    empty = by_hand.write_state(tmp_path / "empty.pth", {"a": np.zeros(1, np.float32)}, wrapper=None)
    with pytest.raises(UserError, match=r"missing: _conv_stem.weight.* and \d+ more; unknown: a"):
        lite0.fill(trunk, empty)
    broken = {**state, "_bn1.bias": np.full(1280, np.nan, np.float32)}
    path, trunk = by_hand.write_state(tmp_path / "nan.pth", broken, wrapper=None), trunks.build(lite0.TRUNK)
    with pytest.raises(UserError, match=r"_bn1\.bias holds NaN"):
        lite0.fill(trunk, path)


# the run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three classes that are called as three of ImageNet's."""
    folder = draw_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=5)
    for name, number in zip(CLASSES, IDS, strict=True):
        (folder / name).rename(folder / number)
    return folder


@pytest.mark.slow
def test_a_run_of_it_chooses_p_star_by_both_methods(photos, tmp_path, capsys):
    arguments = [f"--run={tmp_path / 'run'}", f"--data=folder:{photos}"]
    imagenet.main(arguments)
    output = capsys.readouterr().out
    assert f"written: {tmp_path / 'run'}" in output
    assert "note:" not in output
    run = load_run(tmp_path / "run", [96])
    assert run.class_names == IDS
    # no margin loss trained it
    assert run.settings.classification_weight == 1.0
    assert run.settings.trunk == lite0.TRUNK
    # an export takes the normalisation from the model
    assert run.model.pixel_mean == (127 / 255,) * 3
    assert run.model.pixel_std == (128 / 255,) * 3
    source = run_photos.open_source(run.settings)
    stages.choose_p_star(run, source, Choosing((1.0, 3.0), "both", per_class=2, augmentation="standard"), [96])
    assert run.results.p_star[96] in (1.0, 3.0)
    learnt = run.results.choices[96].fine_tuned
    assert learnt["initial"] == 1.0
    assert learnt["p_star"] != 1.0


def test_saved_and_loaded_it_is_the_same(tmp_path):
    # cut down to two stages, one of each kind of block
    mean, std = trunks.normalization(lite0.TRUNK)
    model = MultiGrain(trunks.build(lite0.TRUNK, **TINY[lite0.TRUNK]), 3, pixel_mean=mean, pixel_std=std)
    images = np.random.default_rng(0).uniform(0, 255, (1, 40, 40, 3)).astype(np.float32)
    model.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(loaded(images)["logits"], model(images)["logits"])
    assert (loaded.pixel_mean, loaded.pixel_std) == (mean, std)
