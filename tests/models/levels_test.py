"""Descriptors that join several depths of the trunk."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras import MultiGrain, Whitening
from mg_keras.errors import UserError
from mg_keras.export.opened import Exported
from mg_keras.export.saved_model import export_saved_model
from mg_keras.models import Network, trunks
from mg_keras.poolings import RMAC, Level
from mg_keras.runs.config import TrainConfig
from tests.export.small import METADATA, TINY_RESNET, made_up_statistics, photos, random_images
from tests.models.trunks_test import TINY

# the activation after the residual of the first stage, and the map before the last activation, which has values below 0
LEVELS = ("stack0_block0_out:2:0.5", "stack1_block0_add:4:3")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return MultiGrain(made_up_statistics(trunks.build("resnet18", **TINY_RESNET)), 7, levels=LEVELS)


@pytest.fixture(scope="module")
def images():
    return random_images((48, 64), seed=1, count=6)


def slow_gem(features, exponent):
    """[h, w, c] -> [c], in float64."""
    return np.mean(np.maximum(np.float64(features), 1e-6) ** exponent, axis=(0, 1)) ** (1 / exponent)


def test_the_embedding_is_the_pooled_maps_side_by_side(model, images):
    exponents = np.linspace(1, 5, len(images))
    outputs = model(images, p_star=exponents)
    names = ["stack0_block0_out", "stack1_block0_add"]
    maps = keras.Model(
        model.trunk.inputs, [model.trunk.output, *(model.trunk.get_layer(name).output for name in names)]
    )(model.normalize(images))
    expected = [
        np.concatenate([slow_gem(a, p), 0.5 * slow_gem(b, 2), 3 * slow_gem(c, 4)])
        for a, b, c, p in zip(*maps, exponents, strict=True)
    ]
    assert model.embedding_dimension == 16 + 64 + 16
    np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-4, atol=1e-6)


def test_what_lies_below_0_is_a_level_of_its_own(images):
    keras.utils.set_random_seed(0)
    trunk = trunks.build("resnet18", **TINY_RESNET)
    network = Network(trunk, 3, levels=["stack1_block0_add:2:0.5", "-stack1_block0_add:2:0.5"])
    features = keras.Model(trunk.inputs, trunk.get_layer("stack1_block0_add").output)(network.normalize(images))
    both = network(images)["embedding"].numpy()[:, 16:]
    np.testing.assert_allclose(both[0, :16], 0.5 * slow_gem(features[0], 2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(both[0, 16:], 0.5 * slow_gem(-features[0], 2), rtol=1e-4, atol=1e-6)
    assert str(network.levels[1]) == "-stack1_block0_add:2:0.5"
    assert Level.of(str(network.levels[1])) == network.levels[1]


@pytest.mark.slow
def test_the_classifier_starts_as_that_of_the_last_map(images):
    keras.utils.set_random_seed(0)
    plain = MultiGrain("resnet18", 5)
    joined = Network("resnet18", 5, levels=["stack1_block0_out:3:2"])
    for mine, theirs in zip(joined.trunk.variables, plain.trunk.variables, strict=True):
        mine.assign(theirs)
    joined.set_classifier(np.asarray(plain.classifier.kernel), np.arange(5.0))
    plain.classifier.bias.assign(np.arange(5.0))
    np.testing.assert_allclose(joined(images)["logits"], plain(images)["logits"], rtol=1e-5, atol=1e-6)


def test_poolings_are_taken_of_one_pass(model, images):
    found = model.embed_batch(images, (None, 2.0, RMAC))
    np.testing.assert_allclose(found[0], model(images)["embedding"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[1], model(images, p_star=2.0)["embedding"], rtol=1e-5, atol=1e-7)
    assert np.abs(found[2] - found[0]).min(axis=1).max() > 0


def test_a_saved_model_and_its_twin_have_them(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.levels == model.levels == tuple(map(Level.of, LEVELS))
    np.testing.assert_allclose(again(images)["embedding"], model(images)["embedding"], atol=1e-6)
    twin = model.twin()
    twin.take_weights(model)
    np.testing.assert_allclose(twin(images)["logits"], model(images)["logits"], atol=1e-6)
    assert twin.fingerprint() == model.fingerprint() != Network(model.trunk, 7).fingerprint()


def test_a_twin_has_the_exponent_as_it_was_learnt():
    trunk = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    network = Network(trunk, 3, pooling_exponent=2.0, trainable_exponent=True)
    network.pool.pooling_exponent.assign(2.5)
    assert float(network.twin().pool.pooling_exponent) == 2.5
    assert float(network.twin(4.0).pool.pooling_exponent) == 4


def test_frozen_stages_are_as_in_a_test(images):
    """Also what drops paths in training, and with levels on both sides of their end."""
    trunk = trunks.build("efficientnet_lite0", **TINY["efficientnet_lite0"], dropout=0.9)
    ends = [trunk.pyramid_outputs[name] for name in ("P1", "P2")]
    names = [next(layer.name for layer in trunk.layers if layer.output is end) for end in ends]
    network = Network(trunk, 3, levels=[names[1], f"-{names[0]}", names[0]])
    expected = network.feature_maps(images)
    network.freeze_stages(1)
    for one, other in zip(network.feature_maps(images), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    last, second, negative, first = network.feature_maps(images, training=True)
    np.testing.assert_array_equal(first, expected[3])
    np.testing.assert_array_equal(negative, expected[2])
    # the others are of the batch's statistics
    assert not np.allclose(second, expected[1])
    assert not np.allclose(last, expected[0])
    assert not {variable.path for variable in network.trunk.trainable_variables} & {
        variable.path for layer in keras.Model(trunk.input, ends[0]).layers for variable in layer.variables
    }


def test_training_reaches_all_depths(images):
    keras.utils.set_random_seed(0)
    model = MultiGrain(trunks.build("resnet18", **TINY_RESNET), 7, levels=LEVELS[:1], versions=2)
    model.compile(classification_weight=0.5)
    before = model.classifier.kernel.numpy()
    model.train_step((tf.constant(images), tf.constant([0, 0, 1, 1, 2, 2]), tf.constant([0, 0, 1, 1, 2, 2])))
    changed = np.abs(model.classifier.kernel.numpy() - before).max(axis=1)
    assert (changed[16:] > 0).mean() > 0.9
    assert len(model.network_variables) == len(model.trunk.trainable_variables) + 2


@pytest.mark.slow
def test_it_is_exported_with_all_depths_whitened(model, images, tmp_path):
    rows = model(random_images((48, 48), seed=3, count=80))["embedding"].numpy()
    whitening = Whitening.fit(rows, dimensions=32, shrinkage=0.01)
    path = export_saved_model(model, whitening, tmp_path / "model", metadata=METADATA, photos=photos())
    served = Exported.load(path).served(images=tf.constant(images, tf.float32), p_star=tf.fill([len(images)], 4.0))
    outputs = model(images, p_star=4.0)
    np.testing.assert_allclose(served["embedding"], whitening.transform(outputs["embedding"]), atol=1e-4)
    np.testing.assert_allclose(served["logits"], outputs["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("", "a level is LAYER"),
        ("a:1:2:3", "a level is LAYER"),
        ("a:wide", "a level is LAYER"),
        ("a:0", "the exponent of level a must be a number > 0, received 0.0"),
        ("a:3:-1", "the scale of level a must be a number > 0, received -1.0"),
        ("a:nan", "the exponent of level a must be a number > 0, received nan"),
    ],
)
def test_what_is_no_level_is_named(level, message):
    with pytest.raises(UserError, match=message):
        Level.of(level)
    with pytest.raises(UserError, match=message):
        TrainConfig(levels=[level])


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(UserError, match="level block9 is not there in this trunk: give a layer such as"):
        Network(trunks.build("resnet18", **TINY_RESNET), 3, levels=["block9"])
