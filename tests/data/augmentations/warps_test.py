"""Maps of the plane against geometry, sampling against a slow definition and Pillow, how often backgrounds come."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data.augmentations import warps
from tests.data.augmentations.recipes_test import photo

CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)


def moved(matrix, points):
    """Where the points [N, 2] go."""
    homogeneous = np.c_[points, np.ones(len(points))] @ np.asarray(matrix, float).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def slow_project(image, to_image, height, width):
    """One pixel after the other: bilinear between pixels' middles, zero outside."""
    result = np.zeros((height, width, image.shape[2]))
    for row in range(height):
        for column in range(width):
            x, y = moved(to_image, [(column + 0.5, row + 0.5)])[0] - 0.5
            left, top = int(np.floor(x)), int(np.floor(y))
            for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    result[row, column] += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
    return result


def random_map(seed):
    random = np.random.default_rng(seed)
    inwards = tf.constant(random.uniform(0, 0.25, (4, 2)), tf.float32)
    turned = warps.turn(*(tf.constant(random.uniform(*ends), tf.float32) for ends in ((-3, 3), (0.5, 2), (0, 1))))
    scale, place = (tf.constant(random.uniform(0.4, 1, 2), tf.float32) for _ in range(2))
    return warps.inset(scale, place) @ warps.corners(inwards) @ turned


def test_corners_move_inwards_by_as_much_as_asked():
    inwards = np.random.default_rng(0).uniform(0, 0.25, (4, 2)).astype(np.float32)
    expected = CORNERS + inwards * [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    np.testing.assert_allclose(moved(warps.corners(inwards), CORNERS), expected, atol=1e-5)
    np.testing.assert_allclose(moved(warps.corners(np.zeros((4, 2), np.float32)), CORNERS), CORNERS, atol=1e-6)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("degrees", [-130, 0, 25, 90])
def test_a_turn_that_fits_fills_the_canvas_and_cuts_nothing(degrees, aspect):
    """As `Image.rotate(..., expand=True)`, reduced to the canvas, does."""
    turned = moved(warps.turn(tf.constant(np.radians(degrees), tf.float32), aspect, 1.0), CORNERS)
    np.testing.assert_allclose(turned.min(0), 0, atol=1e-5)
    np.testing.assert_allclose(turned.max(0), 1, atol=1e-5)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.7])
def test_a_turn_that_does_not_fit_keeps_all_lengths(aspect):
    """Clockwise on the photo as it is, `aspect` times as wide as high."""
    angle = np.radians(25)
    turned = (moved(warps.turn(tf.constant(angle, tf.float32), aspect, 0.0), CORNERS) - 0.5) * [aspect, 1]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(turned, (CORNERS - 0.5) * [aspect, 1] @ rotation.T, atol=1e-5)


def test_an_inset_lies_where_it_is_placed():
    inset = warps.inset(tf.constant([0.5, 0.8]), tf.constant([1.0, 0.5]))
    np.testing.assert_allclose(moved(inset, CORNERS), CORNERS * [0.5, 0.8] + [0.5, 0.1], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_size_in_the_middle_is_the_root_of_a_small_square_s_area(seed):
    matrix, step = random_map(seed), 1e-3
    around = moved(matrix, 0.5 + step * np.array([(-1, 0), (1, 0), (0, -1), (0, 1)]))
    x, y = (around[1::2] - around[::2]) / (2 * step)
    expected = np.sqrt(abs(x[0] * y[1] - x[1] * y[0]))
    np.testing.assert_allclose(warps.size_in_the_middle(matrix), expected, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_projecting_is_the_slow_definition(seed):
    image = photo(9, 13).astype(np.float32)[..., :2]
    to_image = np.diag([13.0, 9.0, 1.0]) @ np.linalg.inv(random_map(seed)) @ np.diag([1 / 20, 1 / 17, 1.0])
    result = warps.project(tf.constant(image), tf.constant(to_image, tf.float32), 17, 20)
    np.testing.assert_allclose(result, slow_project(image, to_image, 17, 20), atol=0.05)


def test_a_photo_laid_on_black_is_pillow_s():
    image, size = photo(64, 64), 64
    to_canvas = random_map(5).numpy().astype(float)
    # Pillow asks where each pixel comes from.
    back = np.diag([size, size, 1.0]) @ np.linalg.inv(to_canvas) @ np.diag([1 / size, 1 / size, 1.0])
    coefficients = (back / back[2, 2]).ravel()[:8]
    expected = Image.fromarray(image).transform((size, size), Image.Transform.PERSPECTIVE, coefficients, Image.BILINEAR)
    expected = np.asarray(expected, float)
    black = tf.zeros([1, 1, 3])
    result = warps.lay(tf.cast(image, tf.float32), tf.constant(to_canvas, tf.float32), black, size).numpy()
    difference = np.abs(result - expected).max(-1)
    # All but the photo's edge, where Pillow does not blend.
    covered = np.pad(np.ones((62, 62, 1)), ((1, 1), (1, 1), (0, 0)))
    inside = slow_project(covered, back, size, size)[..., 0]
    assert difference[inside == 1].max() < 2
    assert (expected[inside == 1].std()) > 20
    assert inside.mean() > 0.1


@pytest.mark.parametrize("seed", range(2))
def test_a_photo_covers_its_background_softly(seed):
    image, size, matrix = photo(20, 20).astype(np.float32), 24, random_map(seed)
    few = np.random.default_rng(seed).uniform(0, 255, (2, 2, 3)).astype(np.float32)
    to_photo = np.diag([20.0, 20, 1]) @ np.linalg.inv(matrix) @ np.diag([1 / size, 1 / size, 1])
    cover = slow_project(np.ones((20, 20, 1)), to_photo, size, size)
    layers = [Image.fromarray(few[..., c]).resize((size, size), Image.BILINEAR) for c in range(3)]
    canvas = np.stack([np.asarray(layer) for layer in layers], -1)
    expected = slow_project(image, to_photo, size, size) + (1 - cover) * canvas
    np.testing.assert_allclose(warps.lay(tf.constant(image), matrix, tf.constant(few), size), expected, atol=0.1)
    # One colour takes another way to the same end.
    one = tf.constant([[[10.0, 120.0, 250.0]]])
    several = tf.tile(one, [2, 2, 1])
    results = [warps.lay(tf.constant(image), matrix, colour, size) for colour in (one, several)]
    np.testing.assert_allclose(*results, atol=0.01)


def test_how_often_each_background_is_drawn():
    own, draws, kinds = tf.fill([9, 9, 3], 77.0), 1500, Counter()
    dataset = tf.data.Dataset.range(draws).map(lambda i: warps.sample_background(own, tf.stack([i, 4])))
    for few in dataset.as_numpy_iterator():
        assert few.min() >= 0
        assert few.max() <= 255
        if np.ptp(few) < 0.01:
            kinds[{0: "black", 255: "white", 77: "own"}[int(few[0, 0, 0].round())]] += 1
        else:
            assert len(few) < 64
            kinds[{1: "colour", 2: "gradient"}.get(len(few), "texture")] += 1
    expected = {"black": 0.35, "white": 0.15, "colour": 0.2, "gradient": 0.1, "texture": 0.1, "own": 0.1}
    assert set(kinds) == set(expected)
    for kind, probability in expected.items():
        assert abs(kinds[kind] / draws - probability) < 4 * np.sqrt(probability * (1 - probability) / draws), kind
