"""How often each edit is made, what each does to a version, and the part of the photo that is shown."""

import numpy as np
import pytest
import tensorflow as tf

from mg_keras.data.augmentations import copies
from tests.data.augmentations.recipes_test import photo

DRAWS = 2500
SIZE = 40
NOTHING = dict.fromkeys(copies.PROBABILITIES, False)
IMAGE = photo(60, 80)


@pytest.fixture(scope="module")
def drawn():
    """bool [DRAWS, edits]."""
    names = list(copies.PROBABILITIES)
    sample = tf.data.Dataset.range(DRAWS).map(lambda i: copies.sample_edits(tf.stack([i, 8])))
    return np.array([[edits[name] for name in names] for edits in sample.as_numpy_iterator()])


def test_each_edit_is_made_as_often_as_it_says(drawn):
    for name, frequency in zip(copies.PROBABILITIES, drawn.mean(0), strict=True):
        probability = copies.PROBABILITIES[name]
        assert abs(frequency - probability) < 4 * np.sqrt(probability * (1 - probability) / DRAWS), name


def test_edits_are_independent(drawn):
    assert np.abs(np.corrcoef(drawn.T) - np.eye(drawn.shape[1])).max() < 4.5 / np.sqrt(DRAWS)


def test_about_half_of_the_versions_combine_several(drawn):
    edits = [position for position, name in enumerate(copies.PROBABILITIES) if name not in ("crop", "mirror")]
    counts = drawn[:, edits].sum(1)
    for share, promised in (((counts == 0).mean(), 0.15), ((counts > 1).mean(), 0.55)):
        # four standard errors and the rounding of the promise
        assert abs(share - promised) < 4 * np.sqrt(0.25 / DRAWS) + 0.005


def window(shape, count=300, **edits):
    """`count` rows of top, left, height, width."""
    edits = {**NOTHING, **edits}
    sample = tf.data.Dataset.range(count).map(
        lambda i: tf.stack(copies.sample_window(*map(tf.constant, shape), edits, tf.stack([i, 6])))
    )
    return np.stack(list(sample.as_numpy_iterator()))


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (320, 320)])
def test_without_a_crop_nearly_all_of_the_photo_is_shown(shape):
    _, _, height, width = window(shape).T
    area, ratio = height * width / (shape[0] * shape[1]), width / height / (shape[1] / shape[0])
    assert area.min() > 0.84
    assert np.abs(np.log(ratio)).max() < 0.06
    assert len(np.unique(area)) > 50, "no two alike"


def test_a_crop_keeps_less_and_a_stretch_changes_the_shape():
    _, _, height, width = window((2000, 2000), crop=True).T
    area = height * width / 2000**2
    assert 0.08 - 1e-3 <= area.min() < 0.1
    assert 0.66 < area.max() <= 0.7 + 1e-3
    assert np.abs(np.log(width / height)).max() < np.log(4 / 3) + 0.01
    _, _, height, width = window((2000, 2000), crop=True, stretch=True).T
    stretched = np.abs(np.log(width / height)).max()
    assert np.log(1.6) < stretched < np.log(2 * 4 / 3) + 0.01


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (8, 8), (1, 1)])
def test_windows_of_odd_photos_lie_inside_and_are_not_squashed_beyond_recognition(shape):
    for edits in ({}, {"crop": True}, {"stretch": True}):
        top, left, height, width = window(shape, 60, **edits).T
        assert min(top.min(), left.min()) >= 0
        assert min(height.min(), width.min()) >= 1
        assert (top + height).max() <= shape[0]
        assert (left + width).max() <= shape[1]
        if min(shape) >= 8 and not edits:
            assert np.abs(np.log(width / height)).max() < np.log(2 * 1.05) + 0.1


def maps(count=200, **edits):
    """Where `count` photos of 4:3 lie: maps [count, 3, 3] and pixels [count] of a canvas of 100."""
    flags = [edits.get(name, False) for name in ("rotation", "perspective", "border", "background")]
    sample = tf.data.Dataset.range(count).map(
        lambda i: copies.sample_map(4 / 3, 100, tf.constant(flags), tf.stack([i, 1]))
    )
    return [np.stack(column) for column in zip(*sample.as_numpy_iterator(), strict=True)]


def places(matrices):
    """Where the unit square's corners lie, [count, 4, 2]."""
    corners = matrices @ np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], float)
    return np.moveaxis(corners[:, :2] / corners[:, 2:], 1, 2)


def test_nothing_moves_what_is_not_moved():
    matrices, sides = maps(2)
    np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(3), (2, 3, 3)))
    assert set(sides) == {100}


def test_half_of_the_turns_are_by_up_to_45_degrees_and_others_by_any_angle():
    matrices, _ = maps(600, rotation=True)
    # Of the upper edge, in the shape that the photo has; what is squashed to fit shows some other angle.
    edge = np.diff(places(matrices)[:, :2], axis=1)[:, 0]
    extent = np.ptp(places(matrices), axis=1)
    cut = extent.max(1) > 1.001
    angle = np.degrees(np.arctan2(edge[:, 1], edge[:, 0]))
    assert 0.5 < (np.abs(angle) < 55).mean() < 0.75
    counts, _ = np.histogram(angle, [-180, -135, -90, 90, 135, 180])
    assert (counts > 20).all(), "also upside down"
    assert cut.any()
    assert extent.max(1).min() > 0.99


@pytest.mark.slow
def test_perspective_border_and_background_stay_on_the_canvas():
    for edit in ("perspective", "border", "background"):
        matrices, sides = maps(**{edit: True})
        corners = places(matrices)
        assert corners.min() > -1e-5, edit
        assert corners.max() < 1 + 1e-5, edit
        assert len(np.unique(sides)) > 10, edit
    matrices, sides = maps(background=True)
    assert sides.min() in range(50, 55)
    assert sides.max() in range(85, 91)
    inset = np.ptp(places(maps(border=True)[0]), axis=1)
    full = inset > 0.9999
    assert inset.min() > 0.6 - 1e-4
    assert not full.all(1).any(), "a border on no side"
    assert all(0.2 < share < 0.5 for share in (full[:, 0].mean(), full[:, 1].mean(), (~full).all(1).mean()))


def version(monkeypatch, *names, image=IMAGE, seed=(3, 5)):
    edits = {**NOTHING, **dict.fromkeys(names, True)}
    monkeypatch.setattr(copies, "sample_edits", lambda _: {name: tf.constant(flag) for name, flag in edits.items()})
    return copies.augment(image, SIZE, tf.constant(seed)).numpy()


@pytest.mark.slow
def test_every_edit_changes_the_version_and_nothing_else_is_in_its_way(monkeypatch):
    plain = version(monkeypatch)
    for name in copies.PROBABILITIES:
        edited = version(monkeypatch, name)
        assert edited.shape == plain.shape
        assert np.abs(edited - plain).max() > 3, name
    np.testing.assert_array_equal(version(monkeypatch, "mirror"), plain[:, ::-1])
    grey = version(monkeypatch, "grey")
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-3)


def test_text_and_shapes_lie_over_what_moved_and_jpeg_is_last(monkeypatch):
    seen = []
    for where, names in ((copies._EDITS, copies._EDITS), (copies._OVERLAYS, copies._OVERLAYS)):
        for name in names:
            monkeypatch.setitem(where, name, lambda picture, _, name=name: seen.append(name) or picture)
    monkeypatch.setattr(copies, "_lay_on_background", lambda *_: seen.append("moved") or tf.zeros([SIZE, SIZE, 3]))
    version(monkeypatch, *(set(NOTHING) - {"background", "rotation", "perspective"}))
    assert seen[-4:] == ["moved", "text", "shapes", "jpeg"]
    assert len(seen) == 12


@pytest.mark.parametrize(("low", "high", "edit"), [(0.3, 2.5, "brightness"), (0.4, 2.5, "gamma")])
def test_a_flat_photo_s_light_changes_within_its_range(monkeypatch, low, high, edit):
    flat = np.full((9, 9, 3), 60, np.uint8)
    levels = np.array([version(monkeypatch, edit, image=flat, seed=(seed, 1)).mean() for seed in range(40)])
    factors = levels / 60 if edit == "brightness" else np.log(levels / 255) / np.log(60 / 255)
    assert low - 0.01 <= factors.min() < 0.6
    assert 1.7 < factors.max() <= high + 0.01
    assert 0.2 < (factors > 1).mean() < 0.8


@pytest.mark.parametrize(
    "image",
    [photo(8, 8), photo(10, 200), photo(200, 10), np.zeros((50, 60, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)],
    ids=["8x8", "wide", "tall", "black", "1x1"],
)
def test_all_edits_at_once_on_odd_photos(monkeypatch, image):
    for seed in range(3):
        result = version(monkeypatch, *copies.PROBABILITIES, image=image, seed=(seed, 0))
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 255.001


def test_versions_of_one_pixel(monkeypatch):
    monkeypatch.setattr(copies, "sample_edits", lambda _: dict.fromkeys(NOTHING, tf.constant(True)))
    assert copies.augment(IMAGE, 1, [0, 0]).shape == (1, 1, 3)
