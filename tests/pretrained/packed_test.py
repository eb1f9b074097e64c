"""Networks packed into a folder."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file

import mg_keras
from mg_keras import Whitening, loading
from mg_keras.data.resolutions import square, squashed
from mg_keras.errors import UserError
from mg_keras.models import Network, trunks
from mg_keras.pretrained import class_names, initialize, packed
from mg_keras.pretrained.packed import Packed, pack, pack_observed
from mg_keras.programs.export import export_packed
from tests.export.small import TINY_RESNET, made_up_statistics, random_images

LEVELS = ["stack0_block0_out:3:0.5"]
NAMES = ["crane", "ketch", "tench"]


@pytest.fixture
def tiny_trunk(monkeypatch):
    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **TINY_RESNET}))


@pytest.fixture
def network(tiny_trunk):
    keras.utils.set_random_seed(0)
    network = Network("resnet18", 3, pooling_exponent=2.0, levels=LEVELS)
    made_up_statistics(network.trunk)
    return network


@pytest.fixture(params=["pca", "learned"])
def whitening(network, request):
    rows = network(random_images((48, 48), seed=2, count=60))["embedding"].numpy()
    if request.param == "pca":
        return Whitening.fit(rows, dimensions=12)
    versions = rows[:, None] * np.random.default_rng(0).uniform(0.9, 1.1, (60, 2, rows.shape[1]))
    return Whitening.fit_on_versions(rows, versions, dimensions=12)


@pytest.fixture
def folder(network, whitening, tmp_path):
    about = {"resolution": 32, "class_names": NAMES, "p_star": {"32": 4.0}, "thresholds": {"copy": {"0.99": 0.7}}}
    return pack(tmp_path / "packed", network, "resnet18", whitening, about)


@pytest.mark.slow
def test_how_photos_are_prepared_travels_with_the_weights(network, whitening, tmp_path):
    squashing = Network.from_config({**network.get_config(), "preparation": "squash"})
    squashing.take_weights(network)
    assert squashing.twin().preparation == "squash"
    assert squashing.fingerprint() != network.fingerprint()
    folder = pack(tmp_path / "packed", squashing, "resnet18", whitening, {"resolution": 32})
    images = list(random_images((40, 52), seed=5, count=3))
    model = mg_keras.load(folder, precision="float32")
    assert model.preparation == "squash"
    for resolution in (24, 48):
        prepared = np.stack([squashed(image, resolution) for image in images])
        expected = whitening.transform(network(prepared, p_star=2.0)["embedding"])
        assert np.sum(model.embed(images, resolution) * expected, axis=1).min() > 0.999
    exported = mg_keras.load(export_packed(folder, tmp_path / "exported"))
    assert exported.preparation == "squash"
    # one that is reduced while it is decoded
    Image.fromarray(random_images((300, 400), seed=6, count=1)[0].astype(np.uint8)).save(tmp_path / "a.jpg")
    found = model.embed(tmp_path / "a.jpg", 48)
    np.testing.assert_allclose(exported.embed(tmp_path / "a.jpg", 48), found, atol=1e-4)
    served = tf.saved_model.load(str(exported.path)).signatures["encoded"](
        image_bytes=tf.constant([(tmp_path / "a.jpg").read_bytes()]),
        resolution=tf.constant([48]),
        p_star=tf.constant([2.0]),
    )
    np.testing.assert_allclose(served["embedding"], found, atol=1e-4)
    # what older versions packed does not say
    about = json.loads((folder / "model.json").read_text())
    for value, wanted in ((None, "aspect"), ("stretch", None)):
        changed = {name: said for name, said in about.items() if name != "preparation"}
        (folder / "model.json").write_text(json.dumps({**changed, "preparation": value} if value else changed))
        if wanted:
            assert mg_keras.load(folder).preparation == wanted
        else:
            with pytest.raises(UserError, match="preparation must be one of aspect, squash, received 'stretch'"):
                mg_keras.load(folder)


def test_8_bits_need_to_know_what_convolutions_read(folder, monkeypatch):
    monkeypatch.setattr(loading, "supported", lambda: True)
    monkeypatch.setattr(loading, "computes_int8", lambda: True)
    assert Packed(folder).observed is None
    with pytest.raises(UserError, match=r"doesn't say what its convolutions read, .* mg-keras pack --copies PHOTOS"):
        mg_keras.load(folder, precision="int8")
    # of another network
    pack_observed(folder, [np.ones(3), np.arange(5.0)], np.array([[0, 1], [-2, 3]]), np.array([[0, 6], [-4, 5]]))
    means, read, given = Packed(folder).observed
    np.testing.assert_array_equal(np.concatenate(means), [1, 1, 1, 0, 1, 2, 3, 4])
    assert [len(mean) for mean in means] == [3, 5]
    np.testing.assert_array_equal(read, [[0, 1], [-2, 3]])
    np.testing.assert_array_equal(given, [[0, 6], [-4, 5]])
    with pytest.raises(UserError, match="2 convolutions were observed, which are not this trunk's"):
        mg_keras.load(folder, precision="int8")
    (folder / "eight_bits.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"eight_bits.safetensors can't be read"):
        mg_keras.load(folder, precision="int8")
    for name, value in (("supported", False), ("computes_int8", False)):
        with monkeypatch.context() as patched:
            patched.setattr(loading, name, lambda value=value: value)
            with pytest.raises(UserError, match="precision int8 needs a processor with avx512_vnni"):
                mg_keras.load(folder, precision="int8")


@pytest.mark.slow
def test_it_is_loaded_as_it_was_packed(folder, network, whitening):
    images = list(random_images((40, 52), seed=5, count=4))
    model = mg_keras.load(folder)
    assert (model.resolution, model.train_resolution, model.p_star) == (32, 32, {32: 4.0})
    assert (model.class_names, model.thresholds) == (NAMES, {"copy": {"0.99": 0.7}})
    found = model.embed(images)
    assert found.shape == (4, 12)
    prepared = np.stack([square(image, 32) for image in images])
    expected = whitening.transform(network(prepared, p_star=4.0)["embedding"])
    assert np.sum(found * expected, axis=1).min() > 0.999
    classes = model.classify(images)
    assert set(classes.names) <= set(NAMES)


def test_weights_come_back_to_half_precision_and_whitenings_to_8_bits(folder, network, whitening):
    packed = Packed(folder)
    again, images = packed.network(), random_images((48, 48), seed=3, count=5)
    assert again.levels == network.levels
    for name in ("embedding", "logits"):
        np.testing.assert_allclose(again(images)[name], network(images)[name], rtol=1e-2, atol=1e-2)
    for name in ("projection_", "inverse_"):
        found, expected = getattr(packed.whitening, name), getattr(whitening, name)
        assert np.abs(found - expected).max() < np.abs(expected).max() / 100
    np.testing.assert_allclose(packed.whitening.inverse_ @ packed.whitening.projection_, np.eye(12), atol=1e-9)
    np.testing.assert_allclose(packed.whitening.mean_, whitening.mean_, atol=1e-7)
    assert packed.whitening.discarded_variance_ == pytest.approx(whitening.discarded_variance_)


def test_large_kernels_come_back_to_8_bits(network, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_LARGE", 5000)
    pack(tmp_path / "small", network, "resnet18", None, {"resolution": 48})
    stored = load_file(tmp_path / "small" / "model.safetensors")
    kernels = {name: np.asarray(variable) for name, variable in packed._named(network.trunk).items()}
    large = {name for name, kernel in kernels.items() if kernel.ndim > 1 and kernel.size >= 5000}
    assert 0 < len(large) < len([name for name, kernel in kernels.items() if kernel.ndim > 1])
    assert {name for name, values in stored.items() if values.dtype == np.int8} == {*large, "classifier/kernel"}
    found = packed._named(Packed(tmp_path / "small").network().trunk)
    for name, kernel in kernels.items():
        # half a step of 8 bits and one of half precision
        step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 220 if name in large else np.abs(kernel) / 1000
        assert np.all(np.abs(np.asarray(found[name]) - kernel) < step + 1e-7), name


def test_a_square_projection_has_its_inverse_in_itself(network, tmp_path):
    size = network.embedding_dimension + 1
    square_one = Whitening(np.zeros(size), np.random.default_rng(0).normal(size=(size, size)) + size * np.eye(size))
    folder = pack(tmp_path / "packed", network, "resnet18", square_one, {"resolution": 32})
    assert "whitening/inverse" not in load_file(folder / "model.safetensors")
    found = Packed(folder).whitening
    np.testing.assert_allclose(found.inverse_ @ found.projection_, np.eye(size), atol=1e-9)


def test_training_starts_from_it(folder, network):
    same = Network("resnet18", 3, levels=LEVELS)
    assert "the classifier of its 3 classes included" in initialize(same, str(folder), "resnet18", NAMES)
    kernel = np.asarray(network.classifier.kernel)
    # a row of int8 is rounded by half a 127th of its largest value
    assert np.all(np.abs(same.classifier.kernel - kernel) <= np.abs(kernel).max(axis=1, keepdims=True) / 250)
    other = Network("resnet18", 3, levels=["stack1_block0_add"])
    assert "the trunk; new classifier" in initialize(other, str(folder), "resnet18", NAMES)
    np.testing.assert_allclose(other.trunk.variables[0], network.trunk.variables[0], rtol=1e-3, atol=1e-4)


def test_a_teacher_needs_the_levels_that_its_classifier_reads(folder):
    assert class_names(str(folder), "resnet18", LEVELS) == NAMES
    with pytest.raises(UserError, match=r"reads other levels of the trunk.*take --levels \[stack0_block0_out:3:0.5\]"):
        class_names(str(folder), "resnet18")
    # of the same width, and yet another
    with pytest.raises(UserError, match="reads other levels"):
        class_names(str(folder), "resnet18", ["stack0_block0_out:3:1"])


def test_a_file_that_does_not_name_its_levels_gives_no_classifier(network, tmp_path):
    path = tmp_path / "a.weights.h5"
    network.save_weights(path)
    assert "as theirs reads other levels" in initialize(Network("resnet18", 3), path, "resnet18")
    with pytest.raises(UserError, match=r"reads other levels of the trunk.*which they don't name"):
        class_names(path, "resnet18")


def test_what_is_wrong_with_it_is_named(folder, network):
    with pytest.raises(UserError, match="holds a resnet18, where the trunk is vgg16"):
        Packed(folder).fill(network.trunk, "vgg16")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({name: about[name] for name in about if name != "levels"}))
    with pytest.raises(UserError, match="does not say levels"):
        mg_keras.load(folder)
    (folder / "model.json").write_text(json.dumps(about))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="can't be read as a packed network"):
        mg_keras.load(folder)


def test_values_beyond_half_precision_are_refused(network, tmp_path):
    kernel = network.trunk.get_layer("conv1_conv").kernel
    kernel.assign(kernel * 0 + 1e6)
    with pytest.raises(ValueError, match="trunk/conv1_conv/kernel holds values that half precision can't hold"):
        pack(tmp_path / "packed", network, "resnet18", None, {"resolution": 32})
