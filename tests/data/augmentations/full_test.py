"""Colour operations against PIL, their distributions, and the lighting noise against the slow definition."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance
from scipy import stats

from mg_keras.data.augmentations import full, ops
from tests.data.augmentations.recipes_test import photo

SIGNIFICANCE = 1e-3  # of fixed seeds: these tests always give the same answer
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def draw(sample, count):
    dataset = tf.data.Dataset.range(count).map(lambda i: sample([i, 3]))
    return [np.stack(column) for column in zip(*dataset.as_numpy_iterator(), strict=True)]


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("operation", "enhancer"), zip((ops.brightness, ops.contrast, ops.saturation), ENHANCERS, strict=True)
)
def test_colour_operations_are_pil_s(operation, enhancer, factor):
    image = photo(48, 64)
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor), np.float32)
    # PIL rounds the grey picture or the mean grey (half a level at most) and truncates the result (one level).
    np.testing.assert_allclose(operation(tf.cast(image, tf.float32), factor), expected, atol=1.5)


@pytest.mark.parametrize("exponent", [0.4, 1.0, 2.5])
def test_gamma_is_pil_s_table(exponent):
    image = photo(48, 64)
    table = [round(255 * (value / 255) ** exponent) for value in range(256)]
    expected = np.asarray(Image.fromarray(image).point(table * 3), np.float32)
    np.testing.assert_allclose(ops.gamma(tf.cast(image, tf.float32), exponent), expected, atol=0.5)


def test_the_jitter_applies_all_three_in_the_given_order():
    image, factors = photo(48, 64), np.float32([1.3, 0.7, 1.3])
    results = []
    for order in itertools.permutations(range(3)):
        expected = Image.fromarray(image)
        for index in order:
            expected = ENHANCERS[index](expected).enhance(float(factors[index]))
        result = ops.color_jitter(tf.cast(image, tf.float32), tf.constant(order), tf.constant(factors)).numpy()
        # Each of three operations may be 1.5 levels away, and the later ones scale it by 1.3 at most.
        np.testing.assert_allclose(result, np.asarray(expected, np.float32), atol=1.5 * (1 + 1.3 + 1.3**2))
        results.append(result)
    for first, second in itertools.combinations(results, 2):
        assert np.abs(first - second).max() > 1, "the order must matter"


def test_jitter_distribution():
    orders, factors = draw(lambda seed: ops.sample_jitter(seed, full.JITTER), 2000)
    for column in factors.T:
        assert stats.kstest(column, stats.uniform(0.7, 0.6).cdf).pvalue > SIGNIFICANCE
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 4 / np.sqrt(2000)
    permutations, counts = np.unique(orders, axis=0, return_counts=True)
    np.testing.assert_array_equal(permutations, list(itertools.permutations(range(3))))
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_lighting_distribution():
    coefficients = np.concatenate(draw(lambda seed: (full.sample_lighting(seed),), 2000))
    for column in coefficients.T:
        assert stats.kstest(column, stats.norm(0, 0.1).cdf).pvalue > SIGNIFICANCE
    assert np.abs(np.corrcoef(coefficients.T) - np.eye(3)).max() < 4 / np.sqrt(2000)


@pytest.mark.parametrize("coefficients", [(0.1, 0.0, 0.0), (0.0, -2.0, 0.5), (-3.0, 1.0, 2.0)])
def test_lighting_is_the_slow_definition(coefficients):
    image = photo(20, 30)
    eigenvalues = 0.2175, 0.0188, 0.0045
    eigenvectors = (-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203)
    expected = image / 255.0
    for coefficient, eigenvalue, eigenvector in zip(coefficients, eigenvalues, eigenvectors, strict=True):
        expected = expected + coefficient * eigenvalue * np.array(eigenvector)
    expected = 255.0 * np.clip(expected / 1.1, 0, 1)
    result = full.lighting(tf.cast(image, tf.float32), tf.constant(coefficients))
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_the_recipe_is_jitter_then_lighting(monkeypatch):
    """On a flat grey picture contrast and saturation do nothing, and any crop is the same."""
    coefficients = np.float32([1.0, 0.0, 0.0])
    monkeypatch.setattr(ops, "sample_jitter", lambda *_: (tf.constant([2, 0, 1]), tf.constant([0.9, 0.7, 1.3])))
    monkeypatch.setattr(full, "sample_lighting", lambda _: tf.constant(coefficients))
    result = full.augment(np.full((30, 40, 3), 100, np.uint8), 16, [0, 0])
    expected = (0.9 * 100 - 255 * 0.2175 * np.array([0.5675, 0.5808, 0.5836])) / 1.1
    np.testing.assert_allclose(result, np.broadcast_to(expected, (16, 16, 3)), atol=0.01)
