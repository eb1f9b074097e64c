import functools

import keras
import numpy as np
import pytest

from mg_keras import MultiGrain, Whitening
from mg_keras.errors import UserError
from mg_keras.models import trunks
from mg_keras.pretrained import from_torch_checkpoint, save_torch_checkpoint, to_torch_state_dict
from mg_keras.pretrained.layouts import MEAN, PROJECTION, RESNETS, parameters, resnet_layers
from tests.pretrained import torch_writer as by_hand
from tests.shared import shared_path

SIZE, CLASSES = 512, 5


@functools.cache
def _drawn():
    rng = np.random.default_rng(0)
    state = {}
    for layer in resnet_layers("resnet18"):
        for name, shape in parameters(layer).items():
            values = (
                rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
                if len(shape) > 1
                else rng.uniform(0.3, 0.9, shape)
            )
            state[f"features.{name}"] = values.astype(np.float32)
        if len(layer.shape) == 1:
            state[f"features.{layer.torch}.num_batches_tracked"] = np.zeros((), np.int64)
    state["pool.p"] = np.float32(3.3)
    state["classifier.weight"] = (rng.standard_normal((CLASSES, SIZE)) * 0.05).astype(np.float32)
    state["classifier.bias"] = rng.standard_normal(CLASSES).astype(np.float32)
    return state


def random_state():
    """A published checkpoint of a ResNet-18 with few classes; no two values of a tensor are alike."""
    return dict(_drawn())


def images():
    return np.random.default_rng(1).integers(0, 256, (6, 48, 40, 3), dtype=np.uint8)


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == np.shape(value), name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint and what is made of it."""
    path = by_hand.write_state(tmp_path_factory.mktemp("published") / "a.pth", random_state(), prefix="module.")
    return path, from_torch_checkpoint(path, ["a", "b", "c", "d", "e"])


# reference values


def with_torch(path, state):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: the files written by hand stand in for its own"
    )
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    torch.save({"model_state": tensors, "epoch": 119}, path)
    return path


@pytest.mark.parametrize("write", [by_hand.write_state, with_torch])
@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
@pytest.mark.slow
def test_forward_values_are_the_references(tmp_path, trunk, write):
    with np.load(shared_path("goldens", f"{trunk}_forward.npz")) as file:
        goldens = dict(file)
    model = from_torch_checkpoint(write(tmp_path / "a.pth", by_hand.golden_state(trunk))).model
    cases = [name.removeprefix("embedding_") for name in goldens if name.startswith("embedding_")]
    assert cases
    for case in cases:
        size, exponent = case.split("_p")
        height, width = map(int, size.split("x"))
        normalized = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
        embedding = model.pool(model.trunk(normalized, training=False), p_star=float(exponent)).numpy()
        unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        np.testing.assert_allclose(embedding, goldens[f"embedding_{case}"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(unit, goldens[f"normalized_{case}"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(model.classifier(embedding), goldens[f"logits_{case}"], rtol=0, atol=1e-4)


# there and back


@pytest.mark.slow
def test_there_and_back_is_the_same_bits(published, tmp_path):
    _, network = published
    state = random_state()
    assert_same_bits(to_torch_state_dict(network.model), state)
    save_torch_checkpoint(tmp_path / "b.pth", network.model)
    again = from_torch_checkpoint(tmp_path / "b.pth")
    assert_same_bits(to_torch_state_dict(again.model), state)
    assert again.checkpoint.wrapper == "model_state"
    for name, value in network.model(images()).items():
        np.testing.assert_array_equal(again.model(images())[name], value)


def test_what_comes_with_the_model(published):
    path, network = published
    assert network.class_names == ["a", "b", "c", "d", "e"]
    assert network.whitening is None
    assert network.checkpoint.path == path
    assert network.checkpoint.beside == ["epoch"]
    model = network.model
    assert model.num_classes == CLASSES
    assert model.pool.pooling_exponent.numpy() == np.float32(3.3)
    with pytest.raises(UserError, match="has 5 classes, received 2 class names"):
        from_torch_checkpoint(path, ["a", "b"])


@pytest.mark.slow
def test_saved_by_keras_it_is_the_same(published, tmp_path):
    model = published[1].model
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(to_torch_state_dict(loaded), random_state())
    for name, value in model(images(), p_star=2.0).items():
        np.testing.assert_allclose(loaded(images(), p_star=2.0)[name], value, rtol=1e-6)


def test_pytorch_reads_what_was_saved(published, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    save_torch_checkpoint(tmp_path / "b.pth", published[1].model)
    state = torch.load(tmp_path / "b.pth", weights_only=True)["model_state"]
    assert_same_bits({name: value.numpy() for name, value in state.items()}, random_state())


def test_what_the_layout_has_no_place_for(published, tmp_path):
    with pytest.raises(ValueError, match="received the trunk <Sequential"):
        to_torch_state_dict(MultiGrain(keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]), 2))
    small = trunks.build(
        "resnet18", stackwise_num_filters=[64, 64], stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2]
    )
    with pytest.raises(ValueError, match="layout is that of resnet18, "):
        to_torch_state_dict(MultiGrain(small, 2))
    with pytest.raises(ValueError, match=r"\(0\.5, 0\.5, 0\.5\)"):
        to_torch_state_dict(MultiGrain(published[1].model.trunk, 2, pixel_mean=(0.5, 0.5, 0.5)))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        save_torch_checkpoint(tmp_path / "file" / "b.pth", published[1].model)


# torchvision


def test_torchvision_pools_by_the_average(published, tmp_path):
    # float16 is what some are stored in; the values here have that precision
    state = {
        name: value if value.dtype == np.int64 else value.astype(np.float16) for name, value in random_state().items()
    }
    bare = {
        name.removeprefix("features.").replace("classifier.", "fc."): value
        for name, value in state.items()
        if name != "pool.p"
    }
    network = from_torch_checkpoint(by_hand.write_state(tmp_path / "a.pth", bare, "legacy", wrapper=None))
    assert network.checkpoint.format == "legacy"
    expected = {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in state.items()}
    assert_same_bits(to_torch_state_dict(network.model), {**expected, "pool.p": np.float32(1)})
    # the pooled features are the average of those that torchvision averages, which are never negative
    model = network.model
    features = model.trunk(model.normalize(images()), training=False).numpy()
    np.testing.assert_allclose(model(images())["embedding"], features.mean((1, 2)), rtol=1e-4, atol=2e-6)


# whitened


@functools.cache
def _fitted():
    rng = np.random.default_rng(3)
    return Whitening.fit(rng.gamma(0.5, size=(700, SIZE)) * rng.uniform(0.05, 2, SIZE))


def whitened_state(transposed):
    """(state, whitening): a checkpoint with a whitening and the classifier that reads through it (section 3.4)."""
    state, whitening = random_state(), _fitted()
    kernel, bias = whitening.fold(state["classifier.weight"].T, state["classifier.bias"])
    matrix = whitening.projection_ if transposed else whitening.projection_.T
    changes = {"classifier.weight": kernel.T, "classifier.bias": bias, PROJECTION: matrix, MEAN: whitening.mean_}
    return {**state, **{name: value.astype(np.float32) for name, value in changes.items()}}, whitening


@pytest.mark.parametrize("transposed", [False, True])
def test_whitened_it_classifies_as_unwhitened(published, tmp_path, transposed):
    plain = published[1].model
    state, whitening = whitened_state(transposed)
    network = from_torch_checkpoint(by_hand.write_state(tmp_path / "a.pth", state))
    assert network.checkpoint.whitened
    outputs, expected = network.model(images()), plain(images())
    np.testing.assert_array_equal(outputs["embedding"], expected["embedding"])
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    # what the whitened network itself computes: logits of Phi, which are those of the embedding over its norm
    embedding = expected["embedding"].numpy().astype(np.float64)
    phi = network.whitening.transform(embedding, normalize=False)
    np.testing.assert_allclose(phi, whitening.transform(embedding, normalize=False), rtol=1e-3, atol=1e-3)
    norms = np.linalg.norm(np.concatenate([embedding, np.ones((len(embedding), 1))], 1), axis=1, keepdims=True)
    logits = phi @ state["classifier.weight"].T + state["classifier.bias"]
    np.testing.assert_allclose(logits * norms, expected["logits"], rtol=1e-4, atol=1e-4)
    # and from the unit descriptor alone
    unit = network.whitening.undo(network.whitening.transform(embedding))
    np.testing.assert_allclose(plain.classify(unit[:, :-1] / unit[:, -1:]), expected["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("classifier.bias", lambda value: value + 1, "the classifier does not undo the whitening"),
        (MEAN, lambda value: -value, "the classifier does not undo the whitening"),
        (PROJECTION, np.roll, "the classifier does not undo the whitening"),
        (MEAN, lambda value: value * np.nan, "pca_m holds NaN"),
    ],
)
def test_a_whitening_of_another_network(tmp_path, name, change, message):
    state, _ = whitened_state(False)
    state[name] = change(state[name], 1) if change is np.roll else change(state[name])
    with pytest.raises(UserError, match=message):
        from_torch_checkpoint(by_hand.write_state(tmp_path / "a.pth", state))


def test_a_whitening_without_inverse(tmp_path):
    state = random_state() | {
        "classifier.weight": np.zeros((CLASSES, SIZE + 1), np.float32),
        "classifier.bias": np.zeros(CLASSES, np.float32),
        PROJECTION: np.zeros((SIZE + 1, SIZE + 1), np.float32),
        MEAN: np.zeros(SIZE + 1, np.float32),
    }
    with pytest.raises(UserError, match="are no whitening: Singular matrix"):
        from_torch_checkpoint(by_hand.write_state(tmp_path / "a.pth", state))


def test_tensors_that_are_wrong(tmp_path):
    state = random_state()
    del state["features.bn1.weight"]
    state["extra"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"missing: features\.bn1\.weight; unknown: extra$"):
        from_torch_checkpoint(by_hand.write_state(tmp_path / "a.pth", state))
    with pytest.raises(UserError, match=r"missing: features\.bn1\.weight$"):
        from_torch_checkpoint(tmp_path / "a.pth", strict=False)


def test_the_layers_are_all_that_a_trunk_has():
    # of the others, the forward values are compared; their depths are in another test
    trunk, layers = trunks.build("resnet34"), resnet_layers("resnet34")
    assert {layer.name for layer in trunk.layers if layer.weights} == {layer.keras for layer in layers}
    for layer in layers:
        shape = tuple(trunk.get_layer(layer.keras).weights[0].shape)
        assert (shape if len(shape) == 1 else (shape[3], shape[2], *shape[:2])) == layer.shape
    # but those for photos of 32 px and the narrow ones, which the authors don't have
    others = {"resnet18_narrow", "resnet18_32px", "resnet18_32px_narrow"}
    assert {*RESNETS, *others} == {name for name in trunks.TRUNKS if name.startswith("resnet")}
