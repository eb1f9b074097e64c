"""Photos are resized as PIL does, to the sides the paper asks for."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import resolutions


def photo(height, width, seed=0):
    """A picture with detail at every scale: a smooth part, an edge and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 128 + 60 * np.sin(x / 9)[..., None] + 40 * np.cos(y[..., None] / np.array([5, 11, 23]))
    smooth[height // 3 :, width // 2 :] -= 50
    return np.clip(smooth + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def pil_resize(image, height, width):
    """PIL's bilinear resize without its rounding: its float mode, one channel at a time."""
    channels = [Image.fromarray(channel).resize((width, height), Image.BILINEAR) for channel in channels_of(image)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def channels_of(image):
    return np.moveaxis(image.astype(np.float32), -1, 0).copy()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((200, 300), (96, 96)),
        ((375, 500), (224, 224)),
        ((40, 31), (96, 130)),  # enlarged
        ((40, 300), (96, 96)),  # one side enlarged, the other reduced
        ((96, 96), (96, 96)),
        ((1, 1), (8, 5)),
        ((7, 900), (1, 3)),
    ],
)
def test_resize_is_pil_bilinear(source, target):
    image = photo(*source)
    resized = resolutions.resize(image, *target)
    assert resized.dtype == tf.float32
    assert resized.shape == (*target, 3)
    # 0.01 of 255: both sum float32 weights, in another order.
    np.testing.assert_allclose(resized, pil_resize(image, *target), atol=0.01)
    # PIL's own 8-bit resize rounds, twice: once a direction.
    eight_bit = np.asarray(Image.fromarray(image).resize(target[::-1], Image.BILINEAR), np.float32)
    np.testing.assert_allclose(resized, eight_bit, atol=1.1)


@pytest.mark.parametrize("source", [(375, 500), (500, 375), (100, 90), (64, 64), (30, 700)])
@pytest.mark.parametrize("size", [96, 224])
def test_square_is_the_centre_of_the_resized_photo(source, size):
    image = photo(*source)
    height, width = source
    target = round(size * 256 / 224)
    scaled = (
        (target, int(width * target / height + 0.5))
        if height < width
        else (
            int(height * target / width + 0.5),
            target,
        )
    )
    whole = pil_resize(image, *scaled)
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    result = resolutions.square(image, size)
    assert result.shape == (size, size, 3)
    np.testing.assert_allclose(result, whole[top : top + size, left : left + size], atol=0.02)


def test_square_of_224_resizes_the_smallest_side_to_256():
    image = photo(256, 300)
    np.testing.assert_allclose(resolutions.square(image, 224), image[16:240, 38:262], atol=1e-3)


def test_square_of_a_panorama_costs_little():
    """The whole resized photo would be 256 × 384 000 pixels, 1.2 GB."""
    panorama = np.zeros((20, 30_000, 3), np.uint8)
    panorama[:, 14_995:15_005] = 200
    result = resolutions.square(panorama, 224).numpy()
    columns = result[0, :, 0]
    assert columns[112] == pytest.approx(200)
    assert columns[0] == columns[-1] == 0
    assert columns.sum() == pytest.approx(200 * 10 * 256 / 20, rel=1e-3)


@pytest.mark.parametrize(
    ("source", "size", "target"),
    [
        ((375, 500), 800, (600, 800)),
        ((500, 375), 800, (800, 600)),
        ((333, 500), 224, (149, 224)),  # 149.18
        ((3, 8), 4, (2, 4)),  # 1.5, halves go up
        ((2, 1000), 100, (1, 100)),  # 0.2, never less than one pixel
        ((64, 64), 33, (33, 33)),
    ],
)
def test_largest_side(source, size, target):
    image = photo(*source)
    result = resolutions.largest_side(image, size)
    assert result.shape == (*target, 3)
    np.testing.assert_allclose(result, pil_resize(image, *target), atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_takes_bytes_and_floats(dtype):
    image = photo(60, 80)
    expected = resolutions.square(image, 32)
    np.testing.assert_allclose(resolutions.square(image.astype(dtype), 32), expected, atol=1e-4)


def test_for_resolution():
    assert resolutions.for_resolution(96, 224) is resolutions.square
    assert resolutions.for_resolution(224, 224) is resolutions.square
    assert resolutions.for_resolution(225, 224) is resolutions.largest_side


def test_squashed_photos_are_squares():
    photo = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    np.testing.assert_array_equal(resolutions.squashed(photo, 32), resolutions.resize(photo, 32, 32))
    for size in (24, 32, 500):
        assert resolutions.for_resolution(size, 32, "squash") is resolutions.squashed
    assert resolutions.whole("aspect") is resolutions.largest_side
    with pytest.raises(ValueError, match="aspect, squash, received 'crop'"):
        resolutions.for_resolution(32, 32, "crop")


@pytest.mark.parametrize(
    ("size", "resolution", "preparation", "wanted"),
    [
        ((3000, 4000), 224, "squash", 4),
        ((3000, 4000), 224, "aspect", 8),
        ((375, 500), 224, "squash", 1),
        ((896, 1000), 224, "squash", 2),
        ((895, 1000), 224, "squash", 1),
        ((300, 900), 224, "aspect", 2),
        # a crop needs the smallest side, and 256 / 224 of it
        ((731, 1500), 160, "aspect", 1),
        ((732, 1500), 160, "aspect", 2),
        ((20000, 20000), 8, "squash", 8),
        ((20000, 20000), 0, "squash", 1),
    ],
)
def test_a_photo_reduced_is_still_twice_as_large_as_wanted(size, resolution, preparation, wanted):
    prepare = resolutions.for_resolution(resolution or 1000, 160, preparation)
    found = resolutions.reduction(tf.constant(size), resolution, prepare)
    assert found.numpy() == wanted


def test_runs_in_a_saved_model_with_sizes_chosen_by_the_caller(tmp_path):
    class Resizer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32)])
        def largest_side(self, image, size):
            return resolutions.largest_side(image, size)

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32)])
        def square(self, image, size):
            return resolutions.square(image, size)

    tf.saved_model.save(Resizer(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for image, size in ((photo(50, 70), 96), (photo(90, 31), 64)):
        for name in ("largest_side", "square"):
            expected = getattr(resolutions, name)(image, size)
            result = getattr(loaded, name)(image, tf.constant(size))
            np.testing.assert_allclose(result, expected, atol=1e-4)


def test_static_shape_is_known_in_a_graph():
    dataset = tf.data.Dataset.from_tensors(photo(30, 40)).map(lambda image: resolutions.square(image, 16))
    assert dataset.element_spec.shape == (16, 16, 3)


def test_bad_arguments_name_what_was_received():
    image = photo(8, 8)
    with pytest.raises(ValueError, match="Received: 0"):
        resolutions.square(image, 0)
    with pytest.raises(ValueError, match="Received: -3"):
        resolutions.largest_side(image, -3)
    with pytest.raises(ValueError, match=r"`width`.*Received: 0"):
        resolutions.resize(image, 8, 0)
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        resolutions.resize(image[..., 0], 4, 4)
    with pytest.raises(ValueError, match=r"`resolution`.*Received: 0"):
        resolutions.for_resolution(0, 224)
