"""The crop has torchvision's distribution; half of the pictures are mirrored."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from mg_keras.data import resolutions
from mg_keras.data.augmentations import standard

DRAWS = 3000
# Seeds are fixed, so these tests always give the same answer; a correct sampler would be refused by one set of seeds
# in a thousand.
SIGNIFICANCE = 1e-3


def drawn_crops(height, width, draws=DRAWS):
    """`draws` rows of top, left, height, width."""
    sample = tf.data.Dataset.range(draws).map(lambda i: tf.stack(standard.sample_crop(height, width, [i, 5])))
    return np.stack(list(sample.as_numpy_iterator()))


def slow_crop(rng, height, width):
    """Torchvision's definition, one try at a time."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return top, left, crop_height, crop_width
    if width / height < 3 / 4:
        crop_height, crop_width = round(width / (3 / 4)), width
    elif width / height > 4 / 3:
        crop_height, crop_width = height, round(height * 4 / 3)
    else:
        crop_height, crop_width = height, width
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@pytest.mark.parametrize("shape", [(300, 400), (333, 200), (160, 500)])
@pytest.mark.slow
def test_the_distribution_is_the_slow_one(shape):
    rng = np.random.default_rng(1)
    slow = np.array([slow_crop(rng, *shape) for _ in range(10 * DRAWS)])
    fast = drawn_crops(*shape)
    for name, column in (
        ("top", lambda crop: crop[:, 0]),
        ("left", lambda crop: crop[:, 1]),
        ("height", lambda crop: crop[:, 2]),
        ("width", lambda crop: crop[:, 3]),
        ("area", lambda crop: crop[:, 2] * crop[:, 3]),
        ("ratio", lambda crop: crop[:, 3] / crop[:, 2]),
        ("centre", lambda crop: crop[:, 0] + crop[:, 2] / 2 + crop[:, 1] + crop[:, 3] / 2),
    ):
        assert stats.ks_2samp(column(slow), column(fast)).pvalue > SIGNIFICANCE, name


def test_area_and_ratio_where_nothing_is_refused():
    """In a square photo every rectangle of less than 3/4 of the area fits: there both must be uniform."""
    _, _, height, width = drawn_crops(2000, 2000).T
    area, ratio = height * width / 2000**2, np.log(width / height)
    small = area < 0.74
    assert area.min() >= 0.08 - 1e-3
    assert stats.kstest(area[small], stats.uniform(0.08, 0.74 - 0.08).cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(ratio[small], stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > SIGNIFICANCE


def test_the_place_is_uniform_and_reaches_both_ends():
    top, left, height, width = drawn_crops(8, 8).T
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == 8
    half_high = height == 4
    counts = np.bincount(top[half_high], minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 30_000), (0, 14_993, 10, 13)),  # 10 * 4/3 = 13.3 wide
        ((900, 3), (448, 0, 4, 3)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_the_largest_centred_rectangle_where_none_fits(shape, expected):
    for crop in drawn_crops(*shape, draws=20):
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.slow
def test_the_picture_is_the_crop_resized_and_half_are_mirrored():
    """Red grows with the column and green with the row, so a version tells which crop it is and if it is mirrored."""
    image = np.zeros((120, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(200), np.arange(120)[:, None]
    draws = 400
    crops = tf.data.Dataset.range(draws).map(lambda i: standard.augment(image, 16, [i, 9]))
    pictures = np.stack(list(crops.as_numpy_iterator()))
    mirrored = pictures[:, 8, 0, 0] > pictures[:, 8, -1, 0]
    assert (pictures[:, 0, 8, 1] < pictures[:, -1, 8, 1]).all(), "never upside down"
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / draws)

    upright = np.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)
    # A linear ramp stays one when resized, but for the ends, where the filter is cut off: width = slope * 16.
    width = (upright[:, 8, 12, 0] - upright[:, 8, 4, 0]) / 8 * 16
    height = (upright[:, 12, 8, 1] - upright[:, 4, 8, 1]) / 8 * 16
    left = upright[:, 8, :, 0].mean(-1) + 0.5 - width / 2
    top = upright[:, :, 8, 1].mean(-1) + 0.5 - height / 2
    for i in range(0, draws, 40):
        # Within a pixel and a half: the ramp is known in whole grey levels.
        crop = image[round(top[i]) :, round(left[i]) :][: round(height[i]), : round(width[i])]
        np.testing.assert_allclose(upright[i], resolutions.resize(crop, 16, 16), atol=1.5)
    assert 0.08 - 0.01 < (width * height / (120 * 200)).min() < 0.12
