import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.embedding.whitening import Whitening as FittedWhitening
from mg_keras.layers import Whitening


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 24)) + 0.3 * rng.standard_normal((300, 24))
    return np.abs(spread).astype("float32")


@pytest.mark.parametrize("bias_channel", [True, False])
@pytest.mark.parametrize("dimensions", [None, 7, 1])
def test_equals_the_fitted_whitening(embeddings, bias_channel, dimensions):
    fitted = FittedWhitening.fit(embeddings, bias_channel=bias_channel, dimensions=dimensions)
    layer = Whitening.from_whitening(fitted)
    descriptors = layer(embeddings)
    assert descriptors.shape == (300, dimensions or 24 + bias_channel)
    np.testing.assert_allclose(descriptors, fitted.transform(embeddings), atol=1e-5)
    np.testing.assert_allclose(layer.undo(descriptors), fitted.undo(fitted.transform(embeddings)), atol=1e-6)
    assert layer.trainable_weights == []


def test_the_norm_of_a_descriptor_is_of_no_account(embeddings):
    layer = Whitening.from_whitening(FittedWhitening.fit(embeddings))
    descriptors = layer(embeddings).numpy()
    for factor in np.float32([1e-25, 1e-3, 1e25, 3e38]):
        np.testing.assert_allclose(layer.undo(factor * descriptors), layer.undo(descriptors), atol=1e-6)


def test_logits_from_the_descriptor_alone(embeddings):
    rng = np.random.default_rng(1)
    kernel, bias = rng.standard_normal((24, 5)).astype("float32"), rng.standard_normal(5).astype("float32")
    layer = Whitening.from_whitening(FittedWhitening.fit(embeddings))

    @tf.function(input_signature=[tf.TensorSpec([None, 24])])
    def logits_of(rows):
        unit = layer.undo(layer(rows))
        return tf.matmul(unit, np.vstack([kernel, bias])) / unit[:, -1:]

    expected = embeddings @ kernel + bias
    np.testing.assert_allclose(logits_of(embeddings), expected, atol=1e-4 * np.abs(expected).max())


def test_starts_as_normalisation(embeddings):
    expected = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(Whitening(24, bias_channel=False)(embeddings), expected, rtol=1e-5)
    first = embeddings[:, :5] / np.linalg.norm(embeddings[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(Whitening(24, bias_channel=False, dimensions=5)(embeddings), first, rtol=1e-5)


def test_computes_in_float32_under_a_half_precision_policy(embeddings):
    fitted = FittedWhitening.fit(embeddings)
    layer = Whitening.from_whitening(fitted, dtype="mixed_bfloat16")
    assert layer.projection.dtype == "float32"
    descriptors = layer(embeddings)
    assert descriptors.dtype == layer.undo(descriptors).dtype == "float32"
    np.testing.assert_allclose(descriptors, fitted.transform(embeddings), atol=1e-5)


@pytest.mark.parametrize("dimensions", [None, 7])
def test_saves_and_loads(embeddings, dimensions, tmp_path):
    inputs = keras.Input((24,))
    layer = Whitening.from_whitening(FittedWhitening.fit(embeddings, dimensions=dimensions), name="whitening")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, dimensions or 25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("whitening").get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded(embeddings), model(embeddings))
    descriptors = model(embeddings)
    np.testing.assert_array_equal(loaded.get_layer("whitening").undo(descriptors), layer.undo(descriptors))


def test_refuses_what_makes_no_sense():
    for size in (0, 2.5):
        with pytest.raises(ValueError, match=f"received {size}"):
            Whitening(size)
    for dimensions in (0, 26, 2.5):
        with pytest.raises(ValueError, match=f"from 1 to 25, received {dimensions}"):
            Whitening(24, dimensions=dimensions)
