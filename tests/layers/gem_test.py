import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import GeM
from mg_keras.layers.gem import SMALLEST_EXPONENT
from tests.shared import shared_path

EPSILON = 1e-6


def gem(features, exponent):
    """Eq. 1, one image and one channel at a time."""
    out = np.empty((features.shape[0], features.shape[3]))
    exponents = np.broadcast_to(exponent, out.shape[:1])
    for i, image in enumerate(features.astype(np.float64)):
        for c in range(out.shape[1]):
            out[i, c] = np.mean(np.maximum(image[..., c], EPSILON) ** exponents[i]) ** (1 / exponents[i])
    return out


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((3, 5, 7, 4)).astype("float32") * 3


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 3.0, 4.5, 10.0, 30.0])
def test_is_the_generalized_mean(features, exponent):
    expected = gem(features, exponent)
    np.testing.assert_allclose(GeM(exponent)(features), expected, rtol=2e-5)
    np.testing.assert_allclose(GeM(3.0)(features, p_star=exponent), expected, rtol=2e-5)


def test_one_p_star_an_image(features):
    exponents = np.array([1.0, 3.0, 4.5], "float32")
    np.testing.assert_allclose(GeM()(features, p_star=exponents), gem(features, exponents), rtol=2e-5)


def test_p_1_is_average_and_large_p_is_max():
    features = np.random.default_rng(1).uniform(0.1, 2, (2, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(GeM(1.0)(features), features.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(GeM(2000.0)(features), features.max((1, 2)), rtol=5e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e27])
def test_neither_overflows_nor_vanishes(features, scale):
    scaled = (features * scale).astype("float32")
    layer = GeM(10.0, trainable_exponent=True)
    x = tf.constant(scaled)
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = layer(x)
    np.testing.assert_allclose(pooled, gem(scaled, 10.0), rtol=5e-5)
    for gradient in tape.gradient(pooled, [x, layer.pooling_exponent.value]):
        assert np.isfinite(gradient).all()


def test_gradients_are_those_of_the_formula(features):
    layer = GeM(3.0, trainable_exponent=True)
    x = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(layer(x))
    by_features, by_exponent = tape.gradient(total, [x, layer.pooling_exponent.value])
    pooled = gem(features, 3.0)[:, None, None, :]
    expected = np.where(features > EPSILON, (features / pooled) ** 2 / 35, 0)
    np.testing.assert_allclose(by_features, expected, rtol=1e-3, atol=1e-7)
    slope = (gem(features, 3.001).sum() - gem(features, 2.999).sum()) / 0.002
    np.testing.assert_allclose(by_exponent, slope, rtol=1e-3)


def test_an_empty_map_pools_to_epsilon_with_no_gradient():
    x = tf.zeros((1, 4, 4, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = GeM()(x)
    np.testing.assert_allclose(pooled, np.full((1, 2), EPSILON), rtol=1e-5)
    np.testing.assert_array_equal(tape.gradient(pooled, x), np.zeros(x.shape))


def test_exponent_is_learnt_only_when_asked():
    assert GeM().trainable_weights == []
    layer = GeM(2.0, trainable_exponent=True)
    (weight,) = layer.trainable_weights
    assert weight.path.endswith("pooling_exponent")
    weight.assign(4.0)
    x = np.random.default_rng(2).uniform(size=(1, 3, 3, 2)).astype("float32")
    np.testing.assert_allclose(layer(x), gem(x, 4.0), rtol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_pools_in_float32_under_any_policy(features, policy):
    pooled = GeM(10.0, dtype=policy)(features)
    assert pooled.dtype == "float32"
    np.testing.assert_allclose(pooled, gem(features, 10.0), rtol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_takes_any_float(features, dtype):
    rounded = tf.cast(features, dtype)
    np.testing.assert_allclose(GeM()(rounded), gem(tf.cast(rounded, "float64").numpy(), 3.0), rtol=2e-5)


def test_one_graph_serves_every_size_and_p_star(features):
    layer = GeM()
    traces = []

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 4]), tf.TensorSpec([None])],
    )
    def pooled(x, p_star):
        traces.append(1)
        return layer(x, p_star=p_star)

    for x, p_star in [(features, [1.0, 2.0, 3.0]), (features[:2, :3, :2], [4.5, 10.0])]:
        np.testing.assert_allclose(pooled(x, p_star), gem(x, np.array(p_star)), rtol=2e-5)
    assert len(traces) == 1


def test_saves_and_loads_with_its_learnt_exponent(features, tmp_path):
    inputs = keras.Input((None, None, 4))
    layer = GeM(2.0, epsilon=1e-5, trainable_exponent=True, name="pool")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 4)
    layer.pooling_exponent.assign(2.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("pool").get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded(features), model(features))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "adagrad", "lion"])
def test_every_optimizer_keeps_a_learnt_exponent_positive(optimizer):
    layer = GeM(2.0, trainable_exponent=True)
    optimizer = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 5.0}})
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant(1.0), layer.pooling_exponent)])
        assert layer.pooling_exponent.numpy() == np.float32(SMALLEST_EXPONENT)
    optimizer.apply_gradients([(tf.constant(-50.0), layer.pooling_exponent)])
    assert layer.pooling_exponent.numpy() >= np.float32(SMALLEST_EXPONENT)


@pytest.mark.parametrize("p_star", [0, -1.5, float("nan"), float("inf"), [3.0, 0.0, 2.0], np.zeros(3), tf.zeros(())])
def test_no_exponent_that_is_no_number_above_0(features, p_star):
    with pytest.raises(ValueError, match="p_star must be a number > 0, received"):
        GeM()(features, p_star=p_star)


@pytest.mark.parametrize("p_star", ["rmac", ["3"], [3.0, None]])
def test_no_exponent_that_is_no_number(features, p_star):
    with pytest.raises(ValueError, match="p_star must be a number > 0, received"):
        GeM()(features, p_star=p_star)


@pytest.mark.parametrize("of", [list, np.float32, tf.constant])
def test_one_exponent_an_image_and_no_more(features, of):
    with pytest.raises(ValueError, match="one value for each of 1 images, received 3"):
        GeM()(features[:1], p_star=of([3.0, 4.0, 5.0]))
    with pytest.raises(ValueError, match="one value for each of 1 images, received 3"):
        tf.function(GeM())(tf.constant(features[:1]), p_star=tf.constant([3.0, 4.0, 5.0]))
    # one is for all
    np.testing.assert_allclose(GeM()(features, p_star=of([4.5])), GeM()(features, p_star=4.5), rtol=1e-6)


def test_refuses_what_makes_no_sense(features):
    nan, inf = float("nan"), float("inf")
    wrong = [{"pooling_exponent": value} for value in (0, nan, inf)] + [{"epsilon": value} for value in (-1e-6, nan)]
    for arguments in wrong:
        with pytest.raises(ValueError, match="must be > 0"):
            GeM(**arguments)
    with pytest.raises(ValueError, match=r"at least 0\.1 to be learnt, received 0\.05"):
        GeM(0.05, trainable_exponent=True)
    with pytest.raises(ValueError, match=r"scalar or \[batch\]"):
        GeM()(features, p_star=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        GeM()(features[:, 0, 0])


def test_golden():
    golden = np.load(shared_path("goldens", "gem.npz"))
    for exponent in (1.5, 3.0, 10.0):
        np.testing.assert_allclose(GeM(exponent)(golden["x"]), golden[f"p{exponent}"], rtol=1e-5)


@pytest.mark.parametrize("exponent", [1, 2.0, 3.0, 4])
def test_whole_exponents_given_as_numbers_are_the_same_by_products(exponent):
    features = np.abs(np.random.default_rng(0).normal(0, 3, (2, 5, 4, 6))).astype(np.float32)
    features[0, ..., 0], features[1, ..., 1] = 0, 1e6
    pool = GeM()
    np.testing.assert_allclose(pool(features, p_star=exponent), pool(features, p_star=[exponent] * 2), rtol=2e-5)
