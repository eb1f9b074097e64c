from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mg_keras.evaluation.copies import STRONG_EDITS, strong_edit


@pytest.fixture
def photo():
    """Waves of colour: smooth, with detail, and no two places alike."""
    y, x = np.mgrid[0:90, 0:120]
    channels = [np.sin(x / 9 + y / 31), np.sin(x / 23 - y / 7), np.cos((x + y) / 13)]
    return np.uint8(np.stack(channels, -1) * 90 + 128)


def edit(name, photo, seed=0):
    return np.asarray(STRONG_EDITS[name](Image.fromarray(photo), np.random.default_rng(seed)))


def test_the_edits_are_the_eight_of_the_benchmark():
    assert list(STRONG_EDITS) == [
        "crop_half", "jpeg_10", "blur", "text", "rotation", "perspective", "grey", "brightness",
    ]  # fmt: skip


@pytest.mark.parametrize("name", STRONG_EDITS)
@pytest.mark.parametrize("shape", [(90, 120), (1, 1), (3, 200)])
def test_every_edit_takes_any_size_changes_the_picture_and_repeats_by_seed(name, shape, photo):
    photo = np.resize(photo, (*shape, 3))
    before = photo.copy()
    copy = edit(name, photo)
    assert copy.dtype == np.uint8
    assert copy.shape[2] == 3
    np.testing.assert_array_equal(copy, edit(name, photo))
    np.testing.assert_array_equal(photo, before)
    if shape == (90, 120):
        assert copy.shape != photo.shape or np.abs(copy.astype(int) - photo).mean() > 2


def test_crop_keeps_half_of_the_area_as_it_was(photo):
    copy = edit("crop_half", photo)
    assert copy.shape[0] * copy.shape[1] == pytest.approx(0.5 * 90 * 120, rel=0.02)
    places = [
        (top, left)
        for top in range(90 - copy.shape[0] + 1)
        for left in range(120 - copy.shape[1] + 1)
        if np.array_equal(photo[top : top + copy.shape[0], left : left + copy.shape[1]], copy)
    ]
    assert len(places) == 1


def test_rotation_cuts_nothing_off(photo):
    bright = np.maximum(photo, 60)
    kept = [np.sum(edit("rotation", bright, seed).max(axis=2) > 30) for seed in range(5)]
    np.testing.assert_allclose(kept, 90 * 120, rtol=0.03)


def test_perspective_moves_each_corner_inwards_by_up_to_a_quarter():
    white = np.full((100, 100, 3), 255, np.uint8)
    for seed in range(5):
        copy = edit("perspective", white, seed)[..., 0]
        assert copy.shape == (100, 100)
        assert copy[27:73, 27:73].min() > 250
        assert 0.25 * 100 * 100 < (copy > 128).sum() < 100 * 100


def test_perspective_lands_the_corners_where_they_were_moved():
    # Four coloured corner patches must still be found in their own quarters.
    photo = np.full((120, 120, 3), 90, np.uint8)
    colours = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 1): (0, 0, 255), (1, 0): (255, 255, 0)}
    for (row, column), colour in colours.items():
        photo[row * 100 : row * 100 + 20, column * 100 : column * 100 + 20] = colour
    copy = edit("perspective", photo, 1).astype(int)
    for (row, column), colour in colours.items():
        quarter = copy[row * 60 : row * 60 + 60, column * 60 : column * 60 + 60]
        assert np.abs(quarter - colour).sum(-1).min() < 60


def test_grey_has_no_colour_and_brightness_goes_both_ways(photo):
    grey = edit("grey", photo)
    assert np.ptp(grey, axis=2).max() == 0
    ratios = np.array([edit("brightness", photo, seed).mean() / photo.mean() for seed in range(20)])
    assert np.all((ratios < 0.55) | (ratios > 1.25))
    assert 2 <= np.sum(ratios < 1) <= 18


def test_strong_edit_draws_each_edit_as_often_and_repeats_by_seed(photo):
    small = photo[:8, :8]
    names = Counter(strong_edit(small, (7, number))[0] for number in range(1600))
    # 200 of each are expected with a deviation of 13: four deviations.
    assert set(names) == set(STRONG_EDITS)
    assert all(abs(count - 200) < 53 for count in names.values())
    first, again = strong_edit(photo, 3), strong_edit(photo, 3)
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_strong_edit_names_what_is_no_photo(bad):
    with pytest.raises(ValueError, match="must be uint8"):
        strong_edit(bad, 0)
