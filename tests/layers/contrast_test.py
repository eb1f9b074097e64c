"""InfoNCE and KoLeo against loops over the pairs."""

import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import InfoNCE, KoLeo, SupervisedContrast


def rows_of_images(seed=0, images=4, versions=3, size=6):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(images, 1, size)) + 0.7 * rng.normal(size=(images, versions, size))
    rows = rows.reshape(-1, size)
    order = rng.permutation(len(rows))
    ids = np.repeat(rng.permutation(100)[:images], versions)
    return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))[order], np.int32(ids[order])


def slow_info_nce(rows, ids, temperature):
    rows, losses = np.float64(rows), []
    for i in range(len(rows)):
        others = sum(np.exp(rows[i] @ rows[n] / temperature) for n in range(len(rows)) if ids[n] != ids[i])
        for p in range(len(rows)):
            if p != i and ids[p] == ids[i]:
                pair = np.exp(rows[i] @ rows[p] / temperature)
                losses.append(-np.log(pair / (pair + others)))
    return np.mean(losses)


def slow_koleo(rows, ids):
    rows = np.float64(rows)
    nearest = [
        min(np.linalg.norm(row - rows[j]) for j in range(len(rows)) if ids[j] != ids[i]) for i, row in enumerate(rows)
    ]
    return -np.mean(np.log(nearest))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_info_nce_is_the_mean_over_pairs(seed, temperature):
    rows, ids = rows_of_images(seed)
    assert float(InfoNCE(temperature)(rows, ids)) == pytest.approx(slow_info_nce(rows, ids, temperature), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_koleo_is_the_mean_over_rows(seed):
    rows, ids = rows_of_images(seed)
    assert float(KoLeo()(rows, ids)) == pytest.approx(slow_koleo(rows, ids), rel=1e-4)


def test_gradients_pull_versions_together_and_images_apart():
    rows, ids = rows_of_images(images=2, versions=2)
    for layer in (InfoNCE(0.5), KoLeo()):
        with tf.GradientTape() as tape:
            variable = tf.Variable(rows)
            loss = layer(variable, tf.constant(ids))
        moved = rows - 0.05 * tape.gradient(loss, variable).numpy()
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        assert float(layer(moved, ids)) < float(loss)


def test_where_there_are_no_pairs_the_loss_is_zero():
    rows, _ = rows_of_images()
    assert float(InfoNCE()(rows, np.arange(len(rows)))) == 0
    assert float(KoLeo()(rows, np.zeros(len(rows), int))) == 0
    # equal rows of two images: a large loss, and no infinity
    assert np.isfinite(float(KoLeo()(np.float32([[1, 0], [1, 0]]), np.array([0, 1]))))


@pytest.mark.parametrize("layer", [InfoNCE(), KoLeo(), SupervisedContrast()], ids=["info_nce", "koleo", "supervised"])
def test_one_id_is_not_for_all(layer):
    rows, ids = rows_of_images()
    with pytest.raises(ValueError, match="one value for each of 12 rows, received 1"):
        layer(rows, ids[:1])


def test_a_temperature_out_of_range_is_named():
    with pytest.raises(ValueError, match="temperature must be > 0, received 0"):
        InfoNCE(0)
