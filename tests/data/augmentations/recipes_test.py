"""What every recipe promises, whatever it does to the picture."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import augmentations, resolutions
from mg_keras.data.apart import as_written
from mg_keras.errors import UserError
from tests.shared import shared_path

SIZE = 32
RANDOM = [name for name in augmentations.NAMES if name != "none"]


def photo(height, width, seed=0):
    """Upscaled noise: every part of it is different, and resizing does not flatten it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


@functools.cache
def in_a_graph(name):
    """A recipe as a function (photo of any size, seed) -> picture, traced once."""
    recipe = augmentations.get(name)
    signature = [tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int64)]
    return tf.function(lambda image, seed: recipe(image, SIZE, seed), input_signature=signature, autograph=False)


def versions(name, image, count):
    """`count` versions of one picture, seeds (0, 0) ... (0, count - 1)."""
    return np.stack([in_a_graph(name)(image, [0, number]) for number in range(count)])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=f"'fulll'.*{', '.join(augmentations.NAMES)}"):
        augmentations.get("fulll")


def test_recipes_of_a_list_make_versions_in_turn():
    image, names = photo(90, 120), ("standard", "copies", "copies")
    expected = [in_a_graph(names[number % 3])(image, [0, number]) for number in range(7)]
    np.testing.assert_array_equal(versions(names, image, 7), expected)
    np.testing.assert_array_equal(versions(("copies",), image, 2), versions("copies", image, 2))
    with pytest.raises(UserError, match=r"a recipe or a list of some, received \[\]"):
        augmentations.get([])
    with pytest.raises(UserError, match="Unknown augmentation 'wild'"):
        augmentations.get(["standard", "wild"])


@pytest.mark.parametrize("name", augmentations.NAMES)
@pytest.mark.parametrize("shape", [(90, 120), (1, 1), (200, 3), (2, 500)])
@pytest.mark.slow
def test_shape_type_and_range_for_photos_of_any_size(name, shape):
    result = versions(name, photo(*shape), 12)
    assert result.shape == (12, SIZE, SIZE, 3)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 255.001  # float32 sums of filter weights


@pytest.mark.parametrize("name", augmentations.NAMES)
def test_the_static_shape_is_known_in_a_graph(name):
    assert in_a_graph(name).get_concrete_function().structured_outputs.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.slow
def test_the_same_seed_gives_the_same_picture_in_any_order_and_on_any_thread(name):
    image = photo(60, 80)
    seeds = np.stack([np.full(24, 7), np.arange(24)], axis=1)
    order = np.random.default_rng(0).permutation(24)
    recipe = as_written(lambda seed: augmentations.get(name)(image, SIZE, seed))
    dataset = tf.data.Dataset.from_tensor_slices(np.concatenate([seeds, seeds[order]]))
    pictures = list(dataset.map(recipe, num_parallel_calls=4).as_numpy_iterator())
    first, again = np.stack(pictures[:24]), np.stack(pictures[24:])
    np.testing.assert_array_equal(again, first[order])
    distinct = {picture.tobytes() for picture in first}
    assert len(distinct) == 24, "different seeds must give different pictures"


@pytest.mark.parametrize("name", RANDOM)
def test_both_numbers_of_the_seed_count(name):
    recipe, image = augmentations.get(name), photo(60, 80)
    pictures = {recipe(image, SIZE, seed).numpy().tobytes() for seed in ([1, 2], [2, 1], [1, 3], [0, 2])}
    assert len(pictures) == 4


def test_none_is_the_centre_crop_whatever_the_seed():
    image = photo(90, 120)
    result = versions("none", image, 3)
    for picture in result:
        np.testing.assert_array_equal(picture, resolutions.square(image, SIZE))


@pytest.mark.parametrize("name", RANDOM)
def test_a_float_picture_is_refused(name):
    with pytest.raises(ValueError, match="Received: dtype float32"):
        augmentations.get(name)(np.zeros((8, 8, 3), np.float32), SIZE, [0, 0])


@pytest.mark.parametrize("name", augmentations.NAMES)
def test_a_bad_size_is_named(name):
    with pytest.raises(ValueError, match="Received: 0"):
        augmentations.get(name)(photo(8, 8), 0, [0, 0])


# of what is recaptured, other things than the photo take up half
@pytest.mark.parametrize("name", [name for name in RANDOM if name != "recaptured"])
@pytest.mark.slow
def test_versions_of_a_real_photo_stay_close_to_it_in_colour(name):
    """Grey, black or negative versions may occur, but most must look like the photo they come from."""
    path = sorted(shared_path("data", "caltech101").glob("**/*.jpg"))[0]
    image = np.asarray(Image.open(path).convert("RGB"))
    difference = np.abs(versions(name, image, 40).mean((1, 2)) - image.mean((0, 1))).mean(-1)
    assert np.median(difference) < 40
