import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import RMAC


def starts(side, width, count):
    return [0] if count == 1 else [int(np.floor(i * (side - width) / (count - 1) + 1e-9)) for i in range(count)]


def regions(height, width, levels):
    """(top, left, side) of every region of Tolias et al. 2015, section 3.2."""
    shortest, longest = min(height, width), max(height, width)
    count = 1
    if longest > shortest:
        overlaps = {m: 1 - (longest - shortest) / (m - 1) / shortest for m in range(2, 200)}
        count = min(overlaps, key=lambda m: (round(abs(overlaps[m] - 0.4), 9), m))
    found = []
    for level in range(1, levels + 1):
        side = max(2 * shortest // (level + 1), 1)
        rows = level + (count - 1 if height > width else 0)
        columns = level + (count - 1 if width > height else 0)
        found += [(y, x, side) for y in starts(height, side, rows) for x in starts(width, side, columns)]
    return found


def rmac(features, levels):
    total = np.zeros((features.shape[0], features.shape[3]))
    for top, left, side in regions(*features.shape[1:3], levels):
        maxima = features[:, top : top + side, left : left + side].astype(np.float64).max((1, 2))
        total += maxima / np.maximum(np.linalg.norm(maxima, axis=1, keepdims=True), 1e-12)
    return total


def features_of(height, width, channels=6, seed=0):
    return np.random.default_rng(seed).standard_normal((2, height, width, channels)).astype("float32")


def test_regions_of_the_oracle():
    assert regions(6, 6, 1) == [(0, 0, 6)]
    assert regions(7, 10, 1) == [(0, 0, 7), (0, 3, 7)]
    # 22 = 10 + 12: two steps of 0.6 widths, three regions overlapping by exactly 40 %.
    assert regions(22, 10, 1) == [(0, 0, 10), (6, 0, 10), (12, 0, 10)]
    assert len(regions(7, 10, 3)) == 2 + 2 * 3 + 3 * 4


SIZES = [(7, 7), (7, 10), (10, 7), (8, 9), (7, 16), (30, 3), (1, 5), (1, 1), (2, 2), (22, 10)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("levels", [1, 3, 4])
def test_sums_unit_maxima_of_the_regions(height, width, levels):
    features = features_of(height, width)
    np.testing.assert_allclose(RMAC(levels)(features), rmac(features, levels), rtol=1e-5, atol=1e-6)


def test_one_graph_serves_every_size():
    layer = RMAC()
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 6])])
    def pooled(features):
        traces.append(1)
        return layer(features)

    for height, width in SIZES:
        features = features_of(height, width)
        np.testing.assert_allclose(pooled(features), rmac(features, 3), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_compiles_with_known_sizes():
    layer, features = RMAC(), features_of(7, 10)
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(features), rmac(features, 3), rtol=1e-5, atol=1e-6)


def test_an_empty_map_gives_zeros_and_a_finite_gradient():
    x = tf.zeros((1, 4, 6, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = RMAC()(x)
    np.testing.assert_array_equal(pooled, np.zeros((1, 3)))
    assert np.isfinite(tape.gradient(pooled, x)).all()


def test_pools_in_float32_under_a_half_precision_policy():
    features = features_of(5, 7)
    pooled = RMAC(dtype="mixed_bfloat16")(features)
    assert pooled.dtype == "float32"
    np.testing.assert_allclose(pooled, rmac(features, 3), rtol=1e-5, atol=1e-6)


def test_saves_and_loads(tmp_path):
    inputs = keras.Input((None, None, 6))
    model = keras.Model(inputs, RMAC(levels=2, name="pool")(inputs))
    assert model.output_shape == (None, 6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("pool").levels == 2
    np.testing.assert_array_equal(loaded(features_of(4, 9)), model(features_of(4, 9)))


def test_refuses_what_makes_no_sense():
    for levels in (0, 1.5):
        with pytest.raises(ValueError, match=f"received {levels}"):
            RMAC(levels)
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        RMAC()(features_of(3, 3)[:, 0, 0])
