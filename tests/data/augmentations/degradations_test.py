"""Blur, few pixels, noise and JPEG against slow definitions and Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFilter

from mg_keras.data.augmentations import degradations
from tests.data.augmentations.recipes_test import photo

PICTURES = {"smooth": photo(30, 41), "noise": np.random.default_rng(1).integers(0, 256, (23, 17, 3), np.uint8)}


@pytest.fixture(params=PICTURES)
def picture(request):
    return PICTURES[request.param]


def floats(picture):
    return tf.cast(picture, tf.float32)


def slow_mean(picture, weight):
    """Each pixel is the weighted mean of those of its row, and then of its column."""
    for axis in (0, 1):
        lines = np.moveaxis(np.asarray(picture, float), axis, 0)
        means = []
        for place in range(len(lines)):
            weights = np.array([weight(abs(place - other)) for other in range(len(lines))])
            means.append((weights[:, None, None] * lines).sum(0) / weights.sum())
        picture = np.moveaxis(np.stack(means), 0, axis)
    return picture


@pytest.mark.parametrize("sigma", [0.3, 2.0, 7.0])
def test_gaussian_blur_is_the_slow_one(picture, sigma):
    expected = slow_mean(picture, lambda distance: np.exp(-(distance**2) / (2 * sigma**2)))
    np.testing.assert_allclose(degradations.gaussian_blur(floats(picture), sigma), expected, atol=1e-2)


@pytest.mark.parametrize("sigma", [1.5, 4.0])
def test_gaussian_blur_is_pillow_s_away_from_the_border(sigma):
    image = photo(80, 90)
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), float)
    inner = slice(int(3 * sigma), -int(3 * sigma))
    # Pillow's is three means over boxes.
    result = degradations.gaussian_blur(floats(image), sigma).numpy()
    np.testing.assert_allclose(result[inner, inner], expected[inner, inner], atol=2)


@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5])
def test_box_blur_is_pillow_s_away_from_the_border(picture, radius):
    expected = np.asarray(Image.fromarray(picture).filter(ImageFilter.BoxBlur(radius)), float)
    inner = slice(3, -3)
    result = degradations.box_blur(floats(picture), radius).numpy()
    # Pillow rounds after each of the two passes.
    np.testing.assert_allclose(result[inner, inner], expected[inner, inner], atol=1.01)


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.0, 15.0), (-15.0, 0.0), (11.0, -6.0)])
def test_motion_blur_is_the_mean_of_moved_pictures(picture, down, right):
    height, width, _ = picture.shape
    steps = [[round(way * 2**bit / 15) for bit in range(4)] for way in (down, right)]
    mean = np.zeros(picture.shape)
    for number in range(16):
        moved = [sum(step for bit, step in enumerate(way) if number >> bit & 1) for way in steps]
        rows = np.clip(np.arange(height) + moved[0], 0, height - 1)
        columns = np.clip(np.arange(width) + moved[1], 0, width - 1)
        mean += picture[rows][:, columns] / 16
    result = degradations.motion_blur(floats(picture), tf.constant(down), tf.constant(right))
    np.testing.assert_allclose(result, mean, atol=1e-3)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0])
def test_coarse_is_reducing_and_enlarging_with_pillow(picture, factor, smooth):
    image = Image.fromarray(picture)
    small = image.resize([max(1, round(side / factor)) for side in image.size], Image.BILINEAR)
    expected = np.asarray(small.resize(image.size, Image.BILINEAR if smooth else Image.NEAREST), float)
    result = degradations.coarse(floats(picture), factor, tf.constant(smooth)).numpy()
    # A pixel whose middle lies on the border of two blocks may fall to either.
    rows, columns = (
        (2 * np.arange(side) + 1) * reduced % (2 * side) != 0
        for side, reduced in zip(image.size[::-1], small.size[::-1], strict=True)
    )
    clear = np.s_[:, :] if smooth else np.ix_(rows, columns)
    np.testing.assert_allclose(result[clear], expected[clear], atol=1.5)


@pytest.mark.parametrize("quality", [5, 10, 50, 90])
def test_jpeg_is_pillow_s(picture, quality):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer), float)
    np.testing.assert_array_equal(degradations.jpeg(floats(picture), quality), expected)
    if quality == 10:
        assert np.abs(expected - picture).mean() > 5, "the picture must lose something"


def test_noise_has_the_deviation_and_stays_in_range():
    grey = tf.fill([100, 100, 3], 128.0)
    added = degradations.noise(grey, 20.0, [1, 2]).numpy() - 128
    assert abs(added.mean()) < 4 * 20 / np.sqrt(added.size)
    assert abs(added.std() - 20) < 4 * 20 / np.sqrt(2 * added.size)
    black = degradations.noise(tf.zeros([50, 50, 3]), 20.0, [1, 2]).numpy()
    assert black.min() == 0
    assert 0.45 < (black == 0).mean() < 0.55


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (8, 8)])
def test_pictures_of_a_few_pixels(shape):
    """A picture of one colour stays that colour, whatever it loses."""
    flat = tf.fill([*shape, 3], 200.0)
    results = [
        degradations.gaussian_blur(flat, 5.0),
        degradations.box_blur(flat, 5.0),
        degradations.motion_blur(flat, tf.constant(9.0), tf.constant(9.0)),
        degradations.coarse(flat, 20.0, tf.constant(True)),
        degradations.jpeg(flat, 10),
    ]
    for result in results:
        np.testing.assert_allclose(result, flat, atol=8 if result is results[-1] else 1e-3)
