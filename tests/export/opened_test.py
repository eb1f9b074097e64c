import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import mg_keras
from mg_keras.embedding.photos import embed
from mg_keras.errors import UserError
from mg_keras.export.opened import Exported
from mg_keras.export.saved_model import export_saved_model
from mg_keras.poolings import RMAC
from tests.embedding.small import folder  # noqa: F401

METADATA = {"class_names": ["a", "b", "c"], "p_star": {32: 3.0, 48: 4.5}, "training": {"resolution": 32}}

# Run by a Python that has no Keras.
CLIENT = """
import sys
for blocked in ("keras", "keras_hub"):
    sys.modules[blocked] = None
import numpy as np
from mg_keras.export.opened import Exported
network = Exported.load(sys.argv[1])
images = np.load(sys.argv[2])
descriptors = network.embed_batch(images, (2.0, 4.5)).numpy()
np.savez(sys.argv[3], descriptors=descriptors, logits=network.classify(descriptors[1]))
"""


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    trunk = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 5, strides=4, activation="relu")])
    return mg_keras.MultiGrain(trunk, num_classes=3, pooling_exponent=2.0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (4, 40, 30, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def whitening():
    return mg_keras.Whitening.fit(np.random.default_rng(0).uniform(size=(50, 6)))


@pytest.fixture(scope="module")
def exported(model, whitening, tmp_path_factory):
    return export_saved_model(model, whitening, tmp_path_factory.mktemp("models") / "tiny", metadata=METADATA)


@pytest.mark.slow
def test_describes_and_classifies_like_the_model_without_keras(exported, model, whitening, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", CLIENT, exported, tmp_path / "images.npy", tmp_path / "out.npz"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "out.npz")
    embeddings = model.embed_batch(images, (2.0, 4.5)).numpy()
    expected = [whitening.transform(values) for values in embeddings]
    np.testing.assert_allclose(found["descriptors"], expected, atol=1e-4)
    np.testing.assert_allclose(found["logits"], model.classify(embeddings[1]), rtol=1e-3, atol=1e-3)


def test_what_is_no_descriptor_gets_no_class(exported, images):
    network = Exported.load(exported)
    descriptors = network.embed_batch(images, (2.0,))[0].numpy()
    rows = np.insert(descriptors, [0, 2], np.nan, axis=0)
    found = network.classify(rows)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [True, False, False, True, False, False])
    np.testing.assert_allclose(found[[1, 2, 4, 5]], network.classify(descriptors), rtol=1e-5, atol=1e-5)
    assert np.isnan(network.classify(rows[:1])).all()
    for value, reason in ((0, "all 0"), (np.inf, "infinite")):
        rows[1] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"descriptor 0: values that are .*{reason}"):
            network.classify(rows)


@pytest.mark.slow
def test_embeds_photos(exported, model, whitening, folder):  # noqa: F811
    from mg_keras.data.sources import photos

    network, split = Exported.load(exported), photos(folder)
    found = embed(network, split, 40, network.train_resolution, [3, 4.5])
    plain = embed(model, split, 40, 32, [3, 4.5])
    np.testing.assert_array_equal(found.rows, plain.rows)
    np.testing.assert_allclose(found.values[1], whitening.transform(plain.values[1]), atol=1e-4)
    # the default is the training exponent
    default = embed(network, split, 32, 32)
    np.testing.assert_allclose(default.values[0], whitening.transform(embed(model, split, 32, 32).values[0]), atol=1e-4)


@pytest.mark.slow
def test_knows_what_it_was_exported_with(exported, model, tmp_path):
    network = Exported.load(exported.parent)
    assert network.path == exported
    assert network.class_names == ["a", "b", "c"]
    assert network.p_star == {32: 3.0, 48: 4.5}
    assert (network.train_resolution, network.pooling_exponent, network.whitened) == (32, 2.0, True)
    assert network.precision == "float32"
    bare = Exported.load(export_saved_model(model, None, tmp_path / "bare"))
    assert (bare.class_names, bare.p_star, bare.train_resolution, bare.whitened) == (None, {}, None, False)
    assert bare.fingerprint() != network.fingerprint() == Exported.load(exported).fingerprint()


def test_the_newest_version_is_the_highest_number(exported, tmp_path):
    for version in ("2", "10", "draft"):
        shutil.copytree(exported, tmp_path / "model" / version)
    (tmp_path / "model" / "11").mkdir()
    assert Exported.load(tmp_path / "model").path == tmp_path / "model" / "10"


@pytest.mark.slow
def test_r_mac_is_refused(exported, images):
    with pytest.raises(UserError, match="pools by GeM alone"):
        Exported.load(exported).embed_batch(images, (3.0, RMAC))


def test_what_is_no_such_saved_model_is_refused(exported, tmp_path):
    with pytest.raises(UserError, match=f"no SavedModel in {tmp_path / 'nowhere'}: give the folder"):
        Exported.load(tmp_path / "nowhere")
    tf.saved_model.save(tf.Module(), tmp_path / "foreign")
    with pytest.raises(UserError, match=r"is a SavedModel, but mg-keras export did not write it"):
        Exported.load(tmp_path / "foreign")
    (tmp_path / "foreign" / "assets").mkdir(exist_ok=True)
    about = (exported / "assets" / "multigrain.json").read_text()
    for text in ("{", "[]", "{}", about):
        (tmp_path / "foreign" / "assets" / "multigrain.json").write_text(text)
        with pytest.raises(UserError, match=r"can't be loaded as a SavedModel of mg-keras export"):
            Exported.load(tmp_path / "foreign")
    stretched = json.dumps({**json.loads(about), "preparation": "stretch"})
    (tmp_path / "foreign" / "assets" / "multigrain.json").write_text(stretched)
    with pytest.raises(UserError, match="preparation must be one of aspect, squash, received 'stretch'"):
        Exported.load(tmp_path / "foreign")
    shutil.copytree(exported, tmp_path / "cut")
    (tmp_path / "cut" / "saved_model.pb").write_bytes((exported / "saved_model.pb").read_bytes()[:1000])
    with pytest.raises(UserError, match="can't be loaded"):
        Exported.load(tmp_path / "cut")
