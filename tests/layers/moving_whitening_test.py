"""The whitening that follows embeddings, beside one that is fitted on all of them."""

import keras
import numpy as np
import pytest

from mg_keras import Whitening
from mg_keras.layers import MovingWhitening

SIZE, KEPT, PHOTOS, VERSIONS = 12, 5, 40, 3


@pytest.fixture(scope="module")
def embeddings():
    """[photos, versions, d]: photos differ in five directions, versions in others, and strongly."""
    rng = np.random.default_rng(0)
    photos = 1 + rng.normal(size=[PHOTOS, 1, SIZE]) * np.r_[np.linspace(0.3, 0.1, 5), np.full(7, 0.01)]
    edits = rng.normal(size=[PHOTOS, VERSIONS, SIZE]) * np.r_[np.full(5, 0.03), np.full(7, 0.4)]
    return np.float32(photos + edits)


def test_steps_of_all_photos_give_the_fitted_whitening(embeddings):
    layer = MovingWhitening(SIZE, KEPT, shrinkage=0.02, every=1)
    ids = np.repeat(np.arange(PHOTOS), VERSIONS)
    for _ in range(30):
        layer.update(ids, embeddings.reshape(-1, SIZE))

    rows = np.concatenate([embeddings, np.ones_like(embeddings[..., :1])], axis=-1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    mean = rows.mean(axis=(0, 1))
    deviations = rows - rows.mean(axis=1, keepdims=True)
    within = np.einsum("pvi,pvj->ij", deviations, deviations) / (PHOTOS * (VERSIONS - 1))
    total = np.einsum("pvi,pvj->ij", rows - mean, rows - mean) / (PHOTOS * VERSIONS)
    for average, expected in zip(layer.averages, (mean, total, within), strict=True):
        np.testing.assert_allclose(average, expected, atol=1e-6)
    shrunk = 0.98 * within + 0.02 * np.trace(within) / (SIZE + 1) * np.eye(SIZE + 1)
    values, vectors = np.linalg.eig(np.linalg.solve(shrunk, total - within))
    best = vectors[:, np.argsort(-values.real)[:KEPT]].real
    best = best @ np.linalg.inv(np.linalg.cholesky(best.T @ shrunk @ best)).T
    # the same space, in which a rotation changes no cosine
    found = (rows.reshape(-1, SIZE + 1) - mean) @ best
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    unit = layer(embeddings.reshape(-1, SIZE)).numpy()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(unit @ unit.T, found @ found.T, atol=2e-3)


def test_it_tells_photos_apart_as_the_fit_on_versions_does(embeddings):
    layer = MovingWhitening(SIZE, KEPT)
    order = np.random.default_rng(1)
    for _ in range(60):
        some = order.permutation(PHOTOS)[:8]
        layer.update(np.repeat(some, VERSIONS), embeddings[some].reshape(-1, SIZE))
    fitted = Whitening.fit_on_versions(embeddings[:, 0], embeddings[:, 1:], shrinkage=0.2, dimensions=KEPT)

    def found(describe):
        first, second = describe(embeddings[:, 0]), describe(embeddings[:, 1])
        return np.mean(np.argmax(second @ first.T, axis=1) == np.arange(PHOTOS))

    def plain(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    assert found(lambda rows: layer(rows).numpy()) > 0.9 * found(fitted.transform) > 2 * found(plain)


def test_averages_forget(embeddings):
    layer = MovingWhitening(SIZE, KEPT, momentum=0.5, every=100)
    for row in (embeddings[0], embeddings[1], embeddings[2]):
        layer.update([0] * VERSIONS, row)
    rows = np.concatenate([embeddings[:3], np.ones_like(embeddings[:3, :, :1])], axis=-1)
    means = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(layer.averages[0], (means[0] + 2 * means[1] + 4 * means[2]) / 7, atol=1e-6)


def test_a_single_version_of_each_says_nothing_of_versions(embeddings):
    layer = MovingWhitening(SIZE, KEPT)
    layer.update(np.arange(PHOTOS), embeddings[:, 0])
    assert not np.any(layer.averages[2])
    assert np.all(np.isfinite(layer.projection))


@pytest.mark.parametrize("noise", [0.3, 0.05, 0.0])
def test_many_directions_of_few_photos_that_are_alike_stay_finite(noise):
    size, kept, photos, versions = 320, 128, 32, 3
    layer = MovingWhitening(size, kept)
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows = rng.normal(size=[photos, 1, size]) + noise * rng.normal(size=[photos, versions, size])
        layer.update(np.repeat(np.arange(photos), versions), np.float32(rows.reshape(-1, size)))
    projection, (_, _, within) = layer.projection.numpy(), (average.numpy() for average in layer.averages)
    assert np.all(np.isfinite(projection))
    shrunk = 0.8 * within + (0.2 * np.trace(within) / (size + 1) + 1e-12) * np.eye(size + 1)
    np.testing.assert_allclose(projection.T @ shrunk @ projection, np.eye(kept), atol=1e-3)


def test_a_step_that_gives_no_numbers_keeps_the_projection(embeddings):
    layer = MovingWhitening(SIZE, KEPT)
    layer.update(np.repeat(np.arange(PHOTOS), VERSIONS), embeddings.reshape(-1, SIZE))
    before = layer.projection.numpy()
    layer.averages[2].assign(np.full([SIZE + 1, SIZE + 1], -1.0))
    layer.update(np.arange(PHOTOS), embeddings[:, 0])
    np.testing.assert_array_equal(layer.projection, before)


def test_its_configuration_makes_it_again():
    layer = MovingWhitening(SIZE, KEPT, momentum=0.9, shrinkage=0.5, every=3, seed=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    np.testing.assert_array_equal(layer.projection, again.projection)
    assert (again.momentum, again.shrinkage, again.every) == (0.9, 0.5, 3)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"dimensions": SIZE + 2}, "dimensions must be a whole number from 1 to 13, received 14"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), received 1.0"),
        ({"shrinkage": 0.0}, r"shrinkage must be in \(0, 1\], received 0.0"),
        ({"every": 0}, "every must be at least 1 step, received 0"),
    ],
)
def test_values_out_of_range_are_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        MovingWhitening(**{"size": SIZE, "dimensions": KEPT, **wrong})
