"""Every operation against PIL, the policy against its printed form, and how often each part of it is drawn."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from mg_keras.data.augmentations import autoaugment
from tests.data.augmentations.recipes_test import photo

# As printed in AutoAugment's appendix: operation, probability, magnitude.
PRINTED = """
Posterize .4 8 + Rotate .6 9 · Solarize .6 5 + AutoContrast .6 5 · Equalize .8 8 + Equalize .6 3 · Posterize .6 7 +
Posterize .6 6 · Equalize .4 7 + Solarize .2 4 · Equalize .4 4 + Rotate .8 8 · Solarize .6 3 + Equalize .6 7 · Posterize
.8 5 + Equalize 1 2 · Rotate .2 3 + Solarize .6 8 · Equalize .6 8 + Posterize .4 6 · Rotate .8 8 + Color .4 0 · Rotate
.4 9 + Equalize .6 2 · Equalize 0 7 + Equalize .8 8 · Invert .6 4 + Equalize 1 8 · Color .6 4 + Contrast 1 8 · Rotate .8
8 + Color 1 2 · Color .8 8 + Solarize .8 7 · Sharpness .4 7 + Invert .6 8 · ShearX .6 5 + Equalize 1 9 · Color .4 0 +
Equalize .6 3 · Equalize .4 7 + Solarize .2 4 · Solarize .6 5 + AutoContrast .6 5 · Invert .6 4 + Equalize 1 8 · Color
.6 4 + Contrast 1 8 · Equalize .8 8 + Equalize .6 3
"""
GREY = (128, 128, 128)


def noise(height, width, low=0, high=256):
    return np.random.default_rng(3).integers(low, high, (height, width, 3), np.uint8)


PICTURES = {
    "smooth": photo(50, 70),
    "noise": noise(64, 48),
    "low contrast": noise(40, 40, 90, 140),
    "one colour": np.full((20, 30, 3), 77, np.uint8),
    "two colours": np.where(np.arange(30)[None, :, None] < 10, 40, 200).astype(np.uint8).repeat(20, 0).repeat(3, 2),
    "few pixels": noise(16, 17),  # equalisation works with a step of 1 here
}


def run(name, picture, value=0.0):
    result = autoaugment.OPERATIONS[name].function(tf.constant(picture), tf.constant(value, tf.float32))
    assert result.dtype == tf.uint8
    return result.numpy().astype(int)


@pytest.fixture(params=PICTURES)
def picture(request):
    return PICTURES[request.param]


def test_equalize_is_pil_s(picture):
    np.testing.assert_array_equal(run("Equalize", picture), ImageOps.equalize(Image.fromarray(picture)))


def test_autocontrast_is_pil_s(picture):
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(picture)), int)
    # One level: PIL truncates a product that rounding errors may have left just below a whole number.
    np.testing.assert_allclose(run("AutoContrast", picture), expected, atol=1)


def test_invert_is_pil_s(picture):
    np.testing.assert_array_equal(run("Invert", picture), ImageOps.invert(Image.fromarray(picture)))


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4])
def test_posterize_is_pil_s(picture, bits):
    np.testing.assert_array_equal(run("Posterize", picture, bits), ImageOps.posterize(Image.fromarray(picture), bits))


@pytest.mark.parametrize("threshold", [256, 128, 256 / 9, 0])
def test_solarize_is_pil_s(picture, threshold):
    expected = ImageOps.solarize(Image.fromarray(picture), threshold)
    np.testing.assert_array_equal(run("Solarize", picture, threshold), expected)


@pytest.mark.parametrize("offset", [-0.9, -0.4, 0.0, 0.2, 0.9])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("Color", ImageEnhance.Color), ("Contrast", ImageEnhance.Contrast), ("Sharpness", ImageEnhance.Sharpness)],
)
def test_enhancements_are_pil_s(picture, name, enhancer, offset):
    expected = np.asarray(enhancer(Image.fromarray(picture)).enhance(1 + offset), int)
    result = run(name, picture, offset)
    # One level: PIL rounds the degenerate picture to whole grey levels before it blends.
    np.testing.assert_allclose(result, expected, atol=1)
    if offset == 0:
        np.testing.assert_array_equal(result, picture)


@pytest.mark.parametrize("degrees", [-30.0, -11.0, 0.0, 7.5, 30.0])
def test_rotate_is_pil_s(picture, degrees):
    expected = np.asarray(Image.fromarray(picture).rotate(degrees, Image.NEAREST, fillcolor=GREY))
    assert differing_pixels(run("Rotate", picture, degrees), expected) <= 0.01


@pytest.mark.parametrize("slope", [-0.3, -0.1, 0.0, 1 / 6, 0.3])
def test_shear_is_pil_s(picture, slope):
    height, width, _ = picture.shape
    expected = Image.fromarray(picture).transform(
        (width, height), Image.AFFINE, (1, slope, 0, 0, 1, 0), Image.NEAREST, fillcolor=GREY
    )
    assert differing_pixels(run("ShearX", picture, slope), np.asarray(expected)) <= 0.01


def differing_pixels(result, expected):
    """The share of pixels that differ: a source place half-way between two pixels may fall to either."""
    return (result != expected).any(-1).mean()


@pytest.mark.parametrize("name", ["Rotate", "ShearX"])
def test_uncovered_pixels_are_mid_grey(name):
    corners = run(name, np.zeros((40, 40, 3), np.uint8), 30.0 if name == "Rotate" else 0.3)
    assert set(np.unique(corners)) == {0, 128}


def test_the_policy_is_the_printed_one():
    printed = [
        tuple((name, float(probability), int(magnitude)) for name, probability, magnitude in map(str.split, pair))
        for pair in (text.split("+") for text in PRINTED.split("·"))
    ]
    assert len(printed) == 25
    assert tuple(printed) == autoaugment.POLICY


@pytest.mark.parametrize(
    ("name", "weakest", "strongest"),
    [
        ("ShearX", 0, 0.3),
        ("Rotate", 0, 30),
        ("Posterize", 8, 4),
        ("Solarize", 256, 0),
        ("Color", 0, 0.9),
        ("Contrast", 0, 0.9),
        ("Sharpness", 0, 0.9),
    ],
)
def test_magnitudes_cover_the_published_ranges_evenly(name, weakest, strongest):
    values = autoaugment.OPERATIONS[name].values
    expected = [weakest + (strongest - weakest) * level / 9 for level in range(10)]
    np.testing.assert_allclose(values, np.round(expected) if name == "Posterize" else expected, atol=1e-12)


@pytest.mark.slow
def test_how_often_each_operation_is_drawn():
    draws = 5000
    names = [*autoaugment.OPERATIONS, None]
    dataset = tf.data.Dataset.range(draws).map(lambda i: autoaugment.sample_operations([i, 11]))
    drawn = [(operations, values) for operations, values in dataset.as_numpy_iterator()]

    for step in range(2):
        expected = Counter()
        for pair in autoaugment.POLICY:
            name, probability, level = pair[step]
            operation = autoaugment.OPERATIONS[name]
            value = round(float(operation.values[level]), 4)
            for sign in (-1, 1) if operation.signed else (1,):
                expected[name, sign * value] += probability / 25 / (2 if operation.signed else 1)
            expected[None] += (1 - probability) / 25
        observed = Counter()
        for operations, values in drawn:
            name = names[operations[step]]
            observed[None if name is None else (name, round(float(values[step]), 4))] += 1
        expected = {key: probability for key, probability in expected.items() if probability > 1e-9}
        assert set(observed) == set(expected)
        for key, probability in expected.items():
            # Four standard errors of a frequency.
            assert abs(observed[key] / draws - probability) < 4 * np.sqrt(probability * (1 - probability) / draws), key


def test_the_two_operations_are_applied_in_order():
    image, names = PICTURES["smooth"], list(autoaugment.OPERATIONS)
    nothing = len(names)
    invert, solarize = names.index("Invert"), names.index("Solarize")
    result = autoaugment.apply(tf.constant(image), tf.constant([invert, solarize]), tf.constant([0.0, 100.0]))
    expected = ImageOps.solarize(ImageOps.invert(Image.fromarray(image)), 100)
    np.testing.assert_array_equal(result, expected)
    untouched = autoaugment.apply(tf.constant(image), tf.constant([nothing, nothing]), tf.constant([1.0, 1.0]))
    np.testing.assert_array_equal(untouched, image)


def test_the_result_has_whole_grey_levels():
    result = autoaugment.augment(PICTURES["smooth"], 24, [0, 0]).numpy()
    np.testing.assert_array_equal(result, np.round(result))


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match="Received: 2"):
        autoaugment.augment(PICTURES["smooth"], 2, [0, 0])
