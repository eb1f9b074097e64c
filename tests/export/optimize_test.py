from collections import Counter
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.grappler import tf_optimizer

from mg_keras.export.optimize import optimized_trunk
from mg_keras.export.optimized import Optimized
from mg_keras.models import trunks
from tests.export.small import SERVABLE, cosines, made_up_statistics, operations
from tests.models.trunks_test import TINY


def images(height=61, width=80):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def built(name, dtype=None):
    keras.utils.set_random_seed(0)
    return made_up_statistics(trunks.build(name, dtype=dtype, **TINY[name]))


def operations_of(function):
    return operations(function.get_concrete_function().graph.as_graph_def())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.slow
def test_every_family_of_trunks_keeps_its_answers_in_operations_of_tf_serving(name):
    trunk = built(name)
    expected = trunk(images(), training=False).numpy()
    plain, half = optimized_trunk(trunk), optimized_trunk(trunk, "bfloat16")
    found = plain(tf.constant(images())).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    found = half(tf.constant(images()))
    assert found.dtype == tf.float32
    assert cosines(found.numpy(), expected).min() > 0.9998
    # rounded somewhere, or it was not computed in bfloat16
    assert np.abs(found.numpy() - expected).max() > 1e-3 * np.abs(expected).max()
    # the first layers are not rounded
    mixed = optimized_trunk(trunk, "mixed")
    found = mixed(tf.constant(images()))
    assert found.dtype == tf.float32
    assert cosines(found.numpy(), expected).min() > 0.9998
    for function in (plain, half, mixed):
        left = operations_of(function)
        assert set(left) <= SERVABLE
        # Keras compiles grouped convolutions with XLA
        assert not [operation for operation in left if "Call" in operation]


def grappler_rewrote(function):
    """What TensorFlow makes of a function's graph before it runs it: operations, fused ones with what they hold."""
    concrete = function.get_concrete_function()
    definition = concrete.graph.as_graph_def()
    for node in definition.node:
        node.device = "/device:CPU:0"
    graph = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=concrete.graph)
    graph.collection_def["train_op"].node_list.value.append(concrete.outputs[0].op.name)
    rewritten = tf_optimizer.OptimizeGraph(tf.compat.v1.ConfigProto(), graph).node
    return [(node.op, *(fused.decode() for fused in node.attr["fused_ops"].list.s)) for node in rewritten]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_left_of_a_resnet_tensorflow_runs_as_convolutions_alone(precision):
    function = optimized_trunk(built("resnet18"), precision)
    found = operations_of(function)
    assert not {"Mul", "Rsqrt", "Sub", "ReadVariableOp", "PartitionedCall"} & set(found)
    assert found.count("Conv2D") == found.count("BiasAdd") == 6
    assert found.count("Pad") == 1, "that of the max pooling; the others are the convolutions' own"
    fused = Counter(names[1:] for names in grappler_rewrote(function) if names[0] == "_FusedConv2D")
    # the residuals' other sides: the shortcuts
    assert fused == {("BiasAdd", "Relu"): 3, ("BiasAdd", "Add", "Relu"): 2, ("BiasAdd",): 1}


def test_a_trunk_of_mixed_precision_is_exported_in_either():
    trunk, reference = built("resnet18", "mixed_bfloat16"), built("resnet18")
    reference.set_weights(trunk.get_weights())
    expected = reference(images(), training=False).numpy()
    found = optimized_trunk(trunk, "float32")(tf.constant(images())).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert cosines(optimized_trunk(trunk, "bfloat16")(tf.constant(images())).numpy(), expected).min() > 0.9998


def channel_constants(features):
    """Every operation that folding knows, with the constant on either side."""
    channels = np.linspace(0.5, 1.5, features.shape[-1]).astype(np.float32)
    features = features * 2.0
    features = keras.ops.reshape(channels, (1, 1, 1, -1)) - features
    features = features / channels - channels
    return 0.25 + features


def odd_trunk():
    """Convolutions with everything around them that folding must take, or leave."""
    inputs = keras.Input((None, None, 3))
    features = layers.ZeroPadding2D(((1, 2), (0, 3)))(inputs)
    features = layers.Conv2D(6, 3, strides=2)(features)
    features = channel_constants(features)
    features = layers.BatchNormalization()(features)
    # seen twice: its factor can't be folded into one of the two
    seen_twice = layers.Conv2D(6, 1)(features)
    twice = layers.BatchNormalization()(seen_twice) + seen_twice
    features = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(layers.ZeroPadding2D(1)(twice))
    features = layers.BatchNormalization()(features)
    features = layers.Conv2D(8, 3, groups=4, use_bias=False)(features)
    features = layers.BatchNormalization(scale=False)(layers.ReLU()(features))
    # broadcast: no residual
    features = features + keras.ops.mean(features, axis=(1, 2), keepdims=True)
    # a factor of the image's, not a constant
    features = features * keras.ops.mean(features, axis=(1, 2, 3), keepdims=True)
    # divided by the features, which is no factor
    features = 1.0 / (2.0 + keras.ops.abs(features))
    return keras.Model(inputs, features)


def test_factors_and_padding_of_every_kind():
    keras.utils.set_random_seed(1)
    trunk = made_up_statistics(odd_trunk())
    found = optimized_trunk(trunk)
    for shape in ((61, 80), (32, 47)):
        expected = trunk(images(*shape), training=False).numpy()
        np.testing.assert_allclose(found(tf.constant(images(*shape))).numpy(), expected, rtol=1e-4, atol=1e-5)
    left = operations_of(found)
    assert left.count("Rsqrt") == 0
    assert left.count("AddN") == 1
    assert left.count("Pad") == 1, "that of the depthwise convolution"


def test_what_reads_large_maps_stays_in_float32_where_the_rest_is_bfloat16():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    features = inputs
    for strides in (2, 4, 1):
        features = layers.Conv2D(4, 3, strides, padding="same", activation="relu")(features)
    trunk = made_up_statistics(keras.Model(inputs, features))
    function = optimized_trunk(trunk, "mixed")
    nodes = function.get_concrete_function().graph.as_graph_def().node
    types = [(node.op, node.attr["T"].type) for node in nodes if node.op in ("Conv2D", "BiasAdd", "Relu")]
    float32, bfloat16 = tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum
    # the one that makes an eighth of a half reads the half, and what runs as one with it stays with it
    assert [kind for op, kind in types if op == "Conv2D"] == [float32, float32, bfloat16]
    assert [kind for op, kind in types if op == "Relu"] == [float32, float32, bfloat16]
    found, expected = function(tf.constant(images())).numpy(), trunk(images()).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(("padding", "size", "left"), [(1, 3, 0), (2, 5, 0), (1, 5, 1)])
def test_depthwise_convolutions_pad_themselves_where_that_is_their_same_padding(padding, size, left):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    features = layers.Conv2D(4, 1)(inputs)
    trunk = keras.Model(inputs, layers.DepthwiseConv2D(size)(layers.ZeroPadding2D(padding)(features)))
    found = optimized_trunk(made_up_statistics(trunk))
    expected = trunk(images()).numpy()
    np.testing.assert_allclose(found(tf.constant(images())).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert operations_of(found).count("Pad") == left


def test_weights_are_as_they_were_when_it_was_made():
    trunk = built("resnet18")
    found = optimized_trunk(trunk)
    before = found(tf.constant(images())).numpy()
    trunk.set_weights([weight * 0 for weight in trunk.get_weights()])
    np.testing.assert_array_equal(found(tf.constant(images())).numpy(), before)


def test_functions_run_as_before():
    assert not tf.config.functions_run_eagerly()
    optimized_trunk(built("vgg16"))
    assert not tf.config.functions_run_eagerly()


def test_precision_is_checked():
    with pytest.raises(ValueError, match="float32, mixed, bfloat16, received 'int8'"):
        optimized_trunk(built("vgg16"), "int8")


class SplitConstant(layers.Layer):
    """Adds both halves of a constant: the second is an output of an operation that has two."""

    def call(self, inputs):
        first, second = tf.split(tf.exp(tf.range(10.0)) / 5000, 2)
        return inputs + first - 2 * second


def test_a_constant_with_several_outputs():
    trunk = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(5, 3), SplitConstant()])
    expected = trunk(images()).numpy()
    found = optimized_trunk(trunk)(tf.constant(images())).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_8_bits_need_what_was_observed():
    network = SimpleNamespace(preparation="aspect", mapper=None)
    for precision, message in (
        ("int8", "int8 needs observed"),
        ("half", "precision must be one of .*, received 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            Optimized(network, precision)
