import keras
import keras_hub
import numpy as np
import pytest

from mg_keras import MultiGrain
from mg_keras.errors import UserError
from mg_keras.models import trunks
from mg_keras.pretrained import keras_weights

STAGES = {"stackwise_num_filters": [64, 16], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


def build(seed=1, **overrides):
    keras.utils.set_random_seed(seed)
    return trunks.build("resnet18", **{**STAGES, **overrides})


def assert_equal(trunk, other):
    for variable, expected in zip(trunk.weights, other.weights, strict=True):
        np.testing.assert_array_equal(variable, expected, err_msg=variable.path)


@pytest.fixture(scope="module")
def model():
    """A model of four classes, none of whose values is another's."""
    made = MultiGrain(build(seed=0), 4)
    rng = np.random.default_rng(0)
    for variable in made.trunk.weights + made.classifier.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return made


@pytest.mark.parametrize("name", ["whole.weights.h5", "whole.keras", "trunk.weights.h5", "trunk.keras"])
def test_files_of_a_model_and_of_its_trunk(model, tmp_path, name):
    saved = model if name.startswith("whole") else model.trunk
    path = tmp_path / name
    (saved.save if path.suffix == ".keras" else saved.save_weights)(path)
    trunk = build()
    head = keras_weights.fill_from_file(trunk, path, "resnet18")
    assert_equal(trunk, model.trunk)
    if saved is model:
        np.testing.assert_array_equal(head.kernel, model.classifier.kernel)
        np.testing.assert_array_equal(head.bias, model.classifier.bias)
        assert head.class_names is None
    else:
        assert head is None


def test_a_model_that_was_saved_in_training(model, tmp_path):
    made = MultiGrain(build(seed=3), 2)
    made.compile()
    made.save(tmp_path / "a.keras")
    trunk = build()
    assert keras_weights.fill_from_file(trunk, str(tmp_path / "a.keras"), "resnet18").bias.shape == (2,)
    assert_equal(trunk, made.trunk)


def test_what_is_wrong_is_listed_and_nothing_changed(model, tmp_path):
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    wider, longer = build(stackwise_num_filters=[64, 32]), build(stackwise_num_blocks=[1, 2])
    before = [variable.numpy() for variable in wider.weights]
    with pytest.raises(
        UserError, match=r"a\.weights\.h5 does not hold the weights of a resnet18; misshaped: \S+ is \["
    ):
        keras_weights.fill_from_file(wider, path, "resnet18")
    for variable, expected in zip(wider.weights, before, strict=True):
        np.testing.assert_array_equal(variable, expected)
    with pytest.raises(UserError, match=r"; missing: layers/\S+"):
        keras_weights.fill_from_file(longer, path, "resnet18")
    longer.save_weights(path)
    with pytest.raises(UserError, match=r"; unknown: layers/\S+"):
        keras_weights.fill_from_file(build(), path, "resnet18")


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras"])
def test_broken_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"neither HDF5 nor a zip archive")
    with pytest.raises(UserError, match="can't be read as Keras's file of weights"):
        keras_weights.fill_from_file(build(), path, "resnet18")


# keras-hub's presets


def test_a_presets_folder(model, tmp_path):
    model.trunk.save_to_preset(tmp_path / "preset")
    trunk = build()
    assert keras_weights.fill_from_preset(trunk, "resnet18", tmp_path / "preset") is None
    assert_equal(trunk, model.trunk)
    with pytest.raises(UserError, match=r"is a ResNetBackbone and no resnet18; stackwise_num_strides is \[1, 2\], exp"):
        keras_weights.fill_from_preset(build(stackwise_num_strides=[1, 1]), "resnet18", tmp_path / "preset")
    with pytest.raises(UserError, match=r"the keras-hub preset in .* can't be read"):
        keras_weights.fill_from_preset(trunk, "resnet18", tmp_path)


def test_without_a_network(monkeypatch):
    def refuse(preset):
        raise ConnectionError(f"no route to the host of {preset}\nand more")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", refuse)
    with pytest.raises(UserError) as error:
        MultiGrain("resnet18", 3, weights="imagenet")
    assert str(error.value) == (
        "the keras-hub preset resnet_18_imagenet, which is downloaded on first use, can't be had: no route to the host "
        "of resnet_18_imagenet; the trunk efficientnet_lite0 has its ImageNet weights in a package, mg_keras[offline]"
    )


def test_trunks_with_and_without_imagenet_weights():
    assert set(keras_weights.PRESETS) <= set(trunks.TRUNKS)
    for name, preset in keras_weights.PRESETS.items():
        backbone = trunks.TRUNKS[name][0]
        assert preset in backbone.presets, name
    with pytest.raises(UserError, match=r"no ImageNet weights for the trunk resnet34; there are for .*resnet18"):
        keras_weights.fill_from_preset(build(), "resnet34")
