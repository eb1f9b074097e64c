"""A trunk's graph in 8 bits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mg_keras import processor
from mg_keras.export.optimize import optimized_trunk
from mg_keras.export.quantize import observe, quantized_trunk, supported
from tests.export.small import cosines, made_up_statistics, operations

pytestmark = pytest.mark.skipif(
    processor.computes_int8() is not True or not supported(), reason="no 8-bit convolutions on this machine"
)


def images(count=4, height=33, width=40, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(-1, 1, (count, height, width, 3)).astype(np.float32))


def convolution(maps, channels, size=1, stride=1, activation=None):
    maps = layers.Conv2D(channels, size, stride, padding="same", use_bias=False)(maps)
    maps = layers.BatchNormalization()(maps)
    return layers.Activation(activation)(maps) if activation else maps


def bottleneck(maps, channels, stride=1):
    """As EfficientNet-Lite's: pointwise, depthwise and pointwise, which has no activation."""
    widened = convolution(maps, 4 * channels, activation="relu6")
    deep = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(widened)
    deep = layers.ReLU(6.0)(layers.BatchNormalization()(deep))
    narrowed = convolution(deep, channels)
    return layers.Add()([narrowed, maps]) if maps.shape[-1] == channels and stride == 1 else narrowed


def model(image, *outputs):
    keras.utils.set_random_seed(0)
    return made_up_statistics(keras.Model(image, list(outputs) if len(outputs) > 1 else outputs[0]))


def lite():
    """Two outputs are residuals that are added to later, and one is what it is the other way round."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    first = bottleneck(convolution(image, 8, 3, 2, "relu6"), 8, 2)
    second = bottleneck(first, 8)
    third = bottleneck(second, 8)
    return model(image, convolution(third, 24, activation="relu6"), first, second, -1.0 * third)


def residual():
    """As a ResNet: pooling, a residual before the activation, and one that a convolution gives."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    maps = layers.MaxPooling2D()(convolution(image, 8, 3, activation="relu"))
    for channels, stride in ((8, 1), (12, 2)):
        # zero padding that is not "SAME"
        padded = layers.ZeroPadding2D(1)(maps)
        branch = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(channels, 3, stride)(padded)))
        branch = convolution(branch, channels, 3)
        shortcut = maps if stride == 1 else convolution(maps, channels, 1, stride)
        maps = layers.ReLU()(layers.Add()([branch, shortcut]))
    return model(image, maps)


def in_8_bits(trunk, batch):
    return quantized_trunk(trunk, observe(trunk, [batch]))


def as_list(maps):
    return [found.numpy() for found in (maps if isinstance(maps, list) else [maps])]


def test_a_convolution_is_numpys_with_numbers_of_8_bits():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, layers.Conv2D(6, 1, bias_initializer="normal")(image))
    batch = images()
    found = in_8_bits(trunk, batch)(batch).numpy()
    kernel, bias = (weight.numpy().astype(np.float64) for weight in trunk.layers[1].weights)
    kernel = kernel[0, 0]
    values = batch.numpy().astype(np.float64)
    largest = np.abs(values).max() / 127
    read = np.round(values / largest) * largest
    steps = np.abs(kernel).max(axis=0) / 127
    rounded = np.round(kernel / steps) * steps
    exact = values @ kernel + bias
    step = (exact.max() - exact.min()) / 255
    zero = np.round(-exact.min() / step)
    expected = read @ rounded + bias + values.mean(axis=(0, 1, 2)) @ (kernel - rounded)
    expected = np.clip(np.round(expected / step) + zero, 0, 255) - zero
    np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-3)
    # but for what float32 has a hair above or below half a step
    difference = np.abs(np.round(found / step) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.005


@pytest.mark.parametrize("make", [lite, residual])
def test_a_network_answers_nearly_as_in_float32(make):
    trunk = make()
    batch = images(8)
    function = in_8_bits(trunk, batch)
    plain = optimized_trunk(trunk)
    left = operations(function.get_concrete_function().graph.as_graph_def())
    assert not {"Conv2D", "DepthwiseConv2dNative", "BiasAdd", "AddN", "Relu", "Relu6"} & set(left)
    # of another batch and size than what was observed
    for given in (batch, images(3, 47, 64, seed=1), images(1, 32, 32, seed=2)):
        for found, expected in zip(as_list(function(given)), as_list(plain(given)), strict=True):
            assert found.shape == expected.shape
            assert cosines(found, expected).min() > 0.999
            # rounded, or it was not computed in 8 bits
            assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


def test_a_residual_lies_in_memory_that_nobody_else_still_reads():
    trunk = lite()
    function = in_8_bits(trunk, images(8))
    given = images(8, 65, 65)
    expected = as_list(function(given))
    for _ in range(50):
        for found, first in zip(as_list(function(given)), expected, strict=True):
            np.testing.assert_array_equal(found, first)


def test_what_is_lost_on_the_mean_lies_in_the_bias():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, layers.Conv2D(4, 1)(image))
    # of the kernel's 127 steps all values but one are half of one, which is rounded to none
    kernel = np.full((1, 1, 3, 4), 0.499 / 127, np.float32)
    kernel[:, :, 0] = 1.0
    trunk.layers[1].set_weights([kernel, np.zeros(4, np.float32)])
    batch = tf.concat([0.01 * images()[..., :1], 1 + 0.01 * images(seed=1)[..., 1:]], axis=-1)
    exact = trunk(batch).numpy()
    observed = observe(trunk, [batch])
    uncorrected = observed._replace(means=[np.zeros(3, np.float32)])
    found, moved = (quantized_trunk(trunk, known)(batch).numpy() for known in (observed, uncorrected))
    assert abs(found.mean() - exact.mean()) < 0.2 * abs(moved.mean() - exact.mean())


def test_what_pads_a_map_whose_zero_is_another_number_stays_in_float32():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    trunk = model(image, layers.Conv2D(5, 3, padding="same")(layers.Conv2D(6, 1)(image)))
    batch = images()
    function = in_8_bits(trunk, batch)
    left = operations(function.get_concrete_function().graph.as_graph_def())
    assert (left.count("Conv2D"), left.count("_FusedQuantizedConv2D")) == (1, 1)
    assert cosines(function(batch).numpy(), trunk(batch).numpy()).min() > 0.999


def test_groups_of_channels_stay_in_float32():
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    trunk = model(image, layers.Conv2D(8, 3, groups=4, padding="same")(convolution(image, 8, activation="relu")))
    batch = images()
    assert cosines(in_8_bits(trunk, batch)(batch).numpy(), optimized_trunk(trunk)(batch).numpy()).min() > 0.999


def test_what_was_observed_is_of_the_trunk():
    observed = observe(lite(), [images()])
    with pytest.raises(ValueError, match="not this trunk's"):
        quantized_trunk(residual(), observed)
    with pytest.raises(ValueError, match="no photo to look at"):
        observe(lite(), [])


def test_what_is_observed_does_not_depend_on_how_photos_come():
    trunk = lite()
    together = observe(trunk, [images(6)])
    apart = observe(trunk, [images(6)[:4], images(6)[4:]])
    for one, other in zip(together.means, apart.means, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(together.read, apart.read, atol=1e-5)
    np.testing.assert_allclose(together.given, apart.given, atol=1e-5)
