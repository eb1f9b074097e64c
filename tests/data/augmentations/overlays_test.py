"""Stamping against Pillow's paste, and what the banks hold."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data.augmentations import overlays
from tests.data.augmentations.recipes_test import photo

MAIN, OTHER = (250, 10, 60), (0, 0, 90)


def two_layers(height, width):
    """Layers that share pixels but never more than there is, as soft edges do."""
    random = np.random.default_rng(2)
    total, share = random.uniform(0, 1, (2, height, width))
    return np.stack([total * share, total * (1 - share)], -1).astype(np.float32)


def stamp(image, mask, centre, height, opacity=1.0, degrees=0.0):
    colours = (tf.constant(colour, tf.float32) for colour in (MAIN, OTHER))
    return overlays.stamp(
        tf.cast(image, tf.float32),
        tf.constant(mask),
        *colours,
        tf.constant(opacity),
        tf.constant(centre, tf.float32),
        tf.constant(height),
        tf.constant(np.radians(degrees), tf.float32),
    ).numpy()


def slow(image, mask, left, top, opacity=1.0):
    """One pixel after the other; what lies outside the photo is lost."""
    result = image.astype(float)
    for row, column in np.ndindex(*mask.shape[:2]):
        y, x = top + row, left + column
        if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
            front, back = opacity * mask[row, column].astype(float)
            result[y, x] = (1 - front - back) * result[y, x] + front * np.array(MAIN) + back * np.array(OTHER)
    return result


@pytest.mark.parametrize(("left", "top"), [(5, 9), (-4, 20), (40, -3), (52, 27)])
@pytest.mark.parametrize("opacity", [1.0, 0.6])
def test_an_upright_mask_is_blended_where_it_lies(left, top, opacity):
    image, mask = photo(32, 60), two_layers(8, 14)
    result = stamp(image, mask, (left + 7, top + 4), 8, opacity)
    np.testing.assert_allclose(result, slow(image, mask, left, top, opacity), atol=1e-2)


@pytest.mark.parametrize(("degrees", "quarters"), [(90, -1), (180, 2), (-90, 1)])
def test_a_turned_mask_is_the_turned_picture(degrees, quarters):
    image, mask = photo(40, 40), two_layers(8, 14)
    turned = np.rot90(mask, quarters)
    result = stamp(image, mask, (20, 20), 8, degrees=degrees)
    expected = slow(image, turned, 20 - turned.shape[1] // 2, 20 - turned.shape[0] // 2)
    np.testing.assert_allclose(result, expected, atol=0.1)


@pytest.mark.parametrize("height", [6, 20])
def test_a_resized_mask_is_pillow_s_paste(height):
    mask = np.zeros((12, 24, 2), np.float32)
    mask[2:10, 4:20, 0] = 1
    image, alpha = photo(40, 60), Image.fromarray((mask[..., 0] * 255).astype(np.uint8))
    expected = Image.fromarray(image)
    expected.paste(MAIN, (30 - height, 20 - height // 2), alpha.resize((2 * height, height), Image.BILINEAR))
    # Pillow rounds the mask and the result.
    np.testing.assert_allclose(stamp(image, mask, (30, 20), height), np.asarray(expected, float), atol=1.6)


def test_a_slanted_mask_covers_its_own_area_and_is_not_cut_off():
    image, mask = np.zeros((60, 60, 3), np.uint8), np.dstack([np.ones((10, 30)), np.zeros((10, 30))])
    covered = stamp(image, mask.astype(np.float32), (30, 30), 10, degrees=35)[..., 0] / MAIN[0]
    assert abs(covered.sum() - 300) < 5
    rows, columns = np.nonzero(covered > 0.5)
    slope = np.polyfit(columns, rows, 1)[0]
    assert slope > 0.5, "clockwise: down to the right"


@pytest.mark.parametrize("bank", [overlays.text_bank, overlays.shape_bank])
def test_the_banks_hold_whole_masks(bank):
    masks, widths = bank()
    assert masks.dtype == np.uint8
    assert len(masks) == len(widths) >= 12
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    assert masks.astype(int).sum(-1).max() <= 255
    for mask, width in zip(masks, widths, strict=True):
        assert not mask[:, width:].any()
        main = mask[:, :width, 0]
        assert main.max() == 255
        assert not main[[0, -1]].any(), "cut off above or below"
        assert not main[:, [0, -1]].any(), "cut off left or right"
        assert (main > 0).mean() > 0.05


def test_half_of_the_texts_are_boxed_and_the_others_outlined():
    masks, widths = overlays.text_bank()
    filled = [mask[0, :width, 1].min() == 255 for mask, width in zip(masks, widths, strict=True)]
    assert np.mean(filled) == 0.5
    assert all(mask[..., 1].any() for mask in masks)


@pytest.mark.parametrize("overlay", [overlays.text, overlays.shapes])
def test_a_photo_gets_overlays_and_stays_recognisable(overlay):
    image = tf.cast(photo(64, 64), tf.float32)
    changed = [(np.abs(overlay(image, tf.constant([0, seed])) - image).max(-1) > 1).mean() for seed in range(30)]
    assert min(changed) > 0
    assert 0.02 < np.median(changed) < 0.5


@pytest.mark.parametrize("overlay", [overlays.text, overlays.shapes])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (3, 60)])
def test_small_pictures(overlay, shape):
    for seed in range(5):
        result = overlay(tf.zeros([*shape, 3]), tf.constant([seed, 0])).numpy()
        assert result.shape == (*shape, 3)
        assert result.min() >= -1e-3
        assert result.max() <= 255.001
