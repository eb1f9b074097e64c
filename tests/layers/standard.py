"""What every layer and model must bear, whatever it computes: Keras's ways to make, call, save and compile one."""

import keras
import numpy as np
import tensorflow as tf

# all compute in float32, or say where they don't
POLICIES = ("float32", "float64", "mixed_bfloat16", "mixed_float16")


class Holder(keras.Model):
    """A subclassed model of one layer, as people write them around a layer of another's."""

    def __init__(self, layer):
        super().__init__()
        self.held = layer

    def build(self, input_shape):
        self.held.build(input_shape)
        self.built = True

    def call(self, *inputs):
        return self.held(*inputs)


def check(kind, arguments, inputs, tmp_path, *, draws=False, half_precision=False, given=()):
    """Takes a layer through everything.

    Args:
        kind: the class of the layer.
        arguments: dict for its constructor.
        inputs: NumPy arrays, what its call takes; all axes but the last may be unknown in a graph.
        tmp_path: a folder to save in.
        draws: whether its outputs differ from call to call.
        half_precision: whether a mixed policy rounds inside of it.
        given: places of those float inputs that get no gradient.
    """
    layer = kind(**arguments)
    _check_configuration(kind, layer)
    _check_shapes(layer, inputs)
    for policy in POLICIES:
        _check_policy(kind, arguments, inputs, policy, None if draws else layer, half_precision)
    if not draws:
        _check_gradient(layer, inputs, given)
    _check_xla(layer, inputs, draws)
    _check_saving(kind, layer, inputs, tmp_path, draws)
    _check_summary(kind(**arguments), inputs)


def _check_configuration(kind, layer):
    for again in (
        kind.from_config(layer.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)),
    ):
        assert type(again) is kind
        assert _plain(again.get_config()) == _plain(layer.get_config())
        assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


def _plain(config):
    """Without the shared counter in the names of unnamed layers within layers."""
    return {name: value for name, value in config.items() if not isinstance(value, dict)}


def _check_shapes(layer, inputs):
    outputs = keras.tree.flatten(layer(*inputs))
    for unknown in (False, True):
        shapes = [(*((None,) * (x.ndim - 1) if unknown and x.ndim > 1 else x.shape[:-1]), x.shape[-1]) for x in inputs]
        # ids and the like, [batch]
        shapes = [(shapes[0][0],) if x.ndim == 1 else shape for x, shape in zip(inputs, shapes, strict=True)]
        symbolic = keras.tree.flatten(layer(*map(_symbolic, shapes, inputs)))
        by_place, by_name = layer.compute_output_shape(*shapes), layer.compute_output_shape(input_shape=shapes[0])
        assert by_place == by_name
        computed = keras.tree.flatten(keras.tree.map_shape_structure(keras.KerasTensor, by_place))
        for output, spec, shape in zip(outputs, symbolic, computed, strict=True):
            assert spec.dtype == keras.backend.standardize_dtype(output.dtype)
            assert tuple(spec.shape) == tuple(shape.shape)
            assert len(spec.shape) == len(output.shape)
            assert all(a in (None, b) for a, b in zip(spec.shape, output.shape, strict=True))
            if not unknown:
                assert None not in spec.shape


def _symbolic(shape, values):
    return keras.Input(batch_shape=shape, dtype=keras.backend.standardize_dtype(values.dtype))


def _check_policy(kind, arguments, inputs, policy, reference, half_precision):
    layer = kind(**arguments, dtype=policy)
    assert layer.get_config()["dtype"]["config"]["name"] == policy
    outputs = layer(*inputs)
    for output in keras.tree.flatten(outputs):
        assert keras.backend.standardize_dtype(output.dtype) in ("float32", "int32")
    if reference is not None and not (half_precision and policy.startswith("mixed")):
        layer.set_weights(reference.get_weights())
        _assert_equal(layer(*inputs), reference(*inputs))


def _check_gradient(layer, inputs, given):
    floats = {place: tf.constant(x) for place, x in enumerate(inputs) if x.dtype.kind == "f"}
    with tf.GradientTape() as tape:
        tape.watch(list(floats.values()))
        outputs = layer(*(floats.get(place, x) for place, x in enumerate(inputs)))
        total = sum(tf.reduce_sum(output) for output in keras.tree.flatten(outputs))
    gradients = tape.gradient(total, [*floats.values(), *(w.value for w in layer.trainable_weights)])
    assert {place for place, gradient in zip(floats, gradients, strict=False) if gradient is None} == set(given)
    # a model may have weights that training alone needs
    assert all(np.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def _check_xla(layer, inputs, draws):
    compiled = tf.function(layer, jit_compile=True)(*map(tf.constant, inputs))
    if not draws:
        _assert_equal(compiled, layer(*inputs), rtol=1e-4)


def _check_saving(kind, layer, inputs, tmp_path, draws):
    for weight in layer.weights:
        if weight.dtype == "float32":
            # other than a new layer's
            weight.assign(weight * 1.125 + 0.0625)
    symbolic = [_symbolic((None, *x.shape[1:]), x) for x in inputs]
    model = keras.Model(symbolic, layer(*symbolic))
    path = tmp_path / f"{kind.__name__}.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    (found,) = (each for each in loaded.layers if isinstance(each, kind))
    assert _plain(found.get_config()) == _plain(layer.get_config())
    model.save_weights(tmp_path / f"{kind.__name__}.weights.h5")
    again = keras.models.clone_model(model)
    again.load_weights(tmp_path / f"{kind.__name__}.weights.h5")
    assert keras.models.model_from_json(model.to_json()).count_params() == model.count_params()
    if not draws:
        for other in (loaded, again):
            _assert_equal(other(list(inputs)), layer(*inputs))


def _check_summary(layer, inputs):
    holder = Holder(layer)
    holder.build(inputs[0].shape)
    lines = []
    holder.summary(print_fn=lines.append, line_length=200)
    assert type(layer).__name__ in "".join(lines)


def _assert_equal(found, expected, rtol=1e-6):
    for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
