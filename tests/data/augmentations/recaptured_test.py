"""Where the print lies in the new photo, and how it is lit."""

import numpy as np
import pytest
import tensorflow as tf

from mg_keras.data.augmentations import recaptured
from tests.data.augmentations.recipes_test import in_a_graph

DRAWS, SIZE = 400, 100


@pytest.fixture(scope="module")
def maps():
    """float32 [DRAWS, 3, 3] and int32 [DRAWS], of photos twice as wide as high."""
    sample = tf.data.Dataset.range(DRAWS).map(lambda i: recaptured.sample_map(2.0, tf.constant(SIZE), tf.stack([i, 3])))
    return tuple(map(np.stack, zip(*sample.as_numpy_iterator(), strict=True)))


def corners(to_canvas):
    """[4, 2], where the corners of the unit square come to lie, clockwise from the upper left."""
    moved = to_canvas @ np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    return (moved[:2] / moved[2]).T


def area(points):
    """Of a polygon, positive where its corners go clockwise on a canvas with y down."""
    x, y = points.T
    return np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2


def test_all_of_the_print_is_on_the_canvas_and_nothing_is_mirrored(maps):
    places = np.array([corners(to_canvas) for to_canvas in maps[0]])
    assert places.min() > -1e-4
    assert places.max() < 1 + 1e-4
    areas = np.array([area(points) for points in places])
    assert areas.min() > 0.05
    assert areas.max() > 0.5
    assert 0.2 < np.median(areas) < 0.5


def test_most_prints_are_nearly_upright_and_some_are_upside_down(maps):
    places = np.array([corners(to_canvas) for to_canvas in maps[0]])
    top, bottom = places[:, :2].mean(1), places[:, 2:].mean(1)
    upside_down = np.mean(top[:, 1] > bottom[:, 1])
    # half of those that are turned by up to 180 degrees either way
    assert abs(upside_down - recaptured.FAR_TURNED / 2) < 4 * np.sqrt(0.075 * 0.925 / DRAWS)


def test_the_print_has_as_many_pixels_as_it_takes_up(maps):
    for to_canvas, side in zip(*maps, strict=True):
        # in the middle; near corners are larger, far ones smaller
        assert 0.5 < side**2 / (SIZE**2 * area(corners(to_canvas))) < 2


def test_a_flat_photo_is_lit_unevenly_on_something_else():
    flat = np.full((60, 80, 3), 200, np.uint8)
    pictures = np.stack([in_a_graph("recaptured")(flat, [4, number]) for number in range(20)])
    assert np.all(pictures.std(axis=(1, 2)).mean(-1) > 10)
    assert len({round(float(picture.mean())) for picture in pictures}) > 10


def test_what_is_on_the_photo_is_still_there():
    """A black photo and a white one give versions of one seed that differ where the print lies."""
    black, white = (
        np.stack([in_a_graph("recaptured")(np.full((60, 80, 3), level, np.uint8), [5, n]) for n in range(12)])
        for level in (0, 255)
    )
    shown = np.mean(np.abs(white - black).min(-1) > 60, axis=(1, 2))
    assert shown.min() > 0.05
    assert 0.2 < shown.mean() < 0.6
