"""Keras's own tools on a MultiGrain: what a user of any Keras model tries."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras import MultiGrain
from mg_keras.objectives.classification import Classification
from tests.layers import standard
from tests.multigrain.model_test import CLASSES, VERSIONS, batch, build, plain_trunk, tensors
from tests.multigrain.model_test import weights as values_of

IMAGES, LABELS, IDS = batch()


def dataset():
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, IDS)).batch(6)


@pytest.mark.parametrize("trainable_exponent", [False, True])
@pytest.mark.slow
def test_the_model_is_a_layer_like_any(trainable_exponent, tmp_path):
    arguments = {"trunk": plain_trunk(), "num_classes": CLASSES, "trainable_exponent": trainable_exponent}
    standard.check(MultiGrain, arguments, [IMAGES], tmp_path)


def test_summary_names_the_parts_and_their_outputs():
    lines = []
    build().summary(print_fn=lines.append)
    table = re.sub(r"\x1b\[[0-9;]*m", "", "".join(lines))
    for part, shape in (("pool", "(None, 8)"), ("classifier", "(None, 6)"), ("margin_loss", "()")):
        assert any(part in line and shape in line for line in table.splitlines()), part


@pytest.mark.parametrize("size", [(None, None), (20, 24)])
def test_export_has_a_signature_of_its_own(size, tmp_path):
    images = keras.Input((*size, 3))
    model = build(keras.Model(images, keras.layers.Conv2D(8, 3, activation="relu")(images)), dtype="mixed_bfloat16")
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    photos = np.random.default_rng(0).uniform(0, 255, (3, 20, 24, 3)).astype("float32")
    expected = model(photos)
    for found in (loaded.serve(photos), loaded.signatures["serving_default"](images=tf.constant(photos))):
        assert set(found) == {"embedding", "logits"}
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_quantize_is_refused_and_changes_nothing():
    model = build()
    expected = model(IMAGES)["logits"].numpy()
    with pytest.raises(ValueError, match=r"export/run\.py --precision bfloat16"):
        model.quantize("int8")
    np.testing.assert_array_equal(model(IMAGES)["logits"], expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": IMAGES[0]}, r"images must be RGB, \[B, H, W, 3\], received shape \(20, 20, 3\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"received shape \(12, 3, 20, 20\)"),
        ({"images": IMAGES, "p_star": 0.0}, "p_star must be a number > 0, received 0.0"),
        ({"images": IMAGES, "p_star": tf.constant([1.0, -1.0])}, "received -1.0"),
        ({"images": IMAGES, "p_star": float("nan")}, "received nan"),
        ({"images": IMAGES, "p_star": "rmac"}, "p_star must be a number > 0, received 'rmac'"),
        ({"images": IMAGES[:1], "p_star": [3.0, 4.0, 5.0]}, "one value for each of 1 images, received 3"),
        ({"images": IMAGES, "p_star": np.float32([3.0, 4.0])}, "one value for each of 12 images, received 2"),
        ({"images": keras.Input((20, 20, 1))}, r"received shape \(None, 20, 20, 1\)"),
    ],
)
def test_a_wrong_call_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()(**given)
    assert "\n" not in str(caught.value)


def test_a_trunk_of_one_size_says_which():
    images = keras.Input((20, 24, 3))
    model = build(keras.Model(images, keras.layers.Conv2D(8, 3)(images)))
    model(np.zeros((1, 20, 24, 3), "uint8"))
    with pytest.raises(
        ValueError, match=r"images of 20x24 pixels alone, received 20x20: .*\(None, None, 3\) to take any$"
    ):
        model(IMAGES)


def test_a_trunk_of_channels_first_is_refused():
    trunk = keras.Sequential([keras.Input((3, None, None)), keras.layers.Permute((2, 3, 1))])
    with pytest.raises(ValueError, match=r"images \[B, H, W, 3\], .* input shape is \(None, 3, None, None\)"):
        build(trunk)


# compile


@pytest.mark.slow
def test_steps_per_execution_and_eager_steps_give_the_same_weights():
    found, batches_seen = [], []
    for arguments in ({}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        model = build()
        model.compile(keras.optimizers.SGD(0.1), **arguments)
        seen = []
        counter = keras.callbacks.LambdaCallback(on_train_batch_end=lambda number, logs, seen=seen: seen.append(number))
        model.fit(dataset(), epochs=2, callbacks=[counter], verbose=0)
        model.evaluate(dataset(), verbose=0)
        assert model.run_eagerly == arguments.get("run_eagerly", False)
        found.append(values_of(model))
        batches_seen.append(len(seen))
    assert batches_seen == [4, 4, 2]
    for other in found[1:]:
        for one, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "sparse_categorical_crossentropy"}, "the model's own: leave loss out of compile"),
        ({"metrics": ["accuracy"]}, "leave metrics out"),
        ({"weighted_metrics": []}, "leave weighted_metrics out"),
        ({"loss_weights": [1.0]}, "leave loss_weights out"),
        ({"steps_per_execution": 0}, "steps_per_execution must be at least 1, received 0"),
        ({"jit_compile": True, "run_eagerly": True}, "exclude each other"),
        ({"jit_compile": "yes"}, "jit_compile must be True, False or 'auto', received 'yes'"),
        ({"jit_compile": 1}, "jit_compile must be True, False or 'auto', received 1"),
        ({"optimizer": None}, "optimizer must be .*received None"),
        ({"objective": "multigrain"}, "objective must be .*received 'multigrain'"),
        ({"objective": Classification(), "classification_weight": 0.1}, "classification_weight 0.1 has no effect"),
        ({"accumulation_steps": 1.5}, "accumulation_steps must be a whole number of at least 1, received 1.5"),
        ({"optimizer": keras.optimizers.SGD(use_ema=True)}, "use_ema"),
        ({"optimizer": keras.optimizers.SGD(loss_scale_factor=1024.0)}, "SGD with loss_scale_factor 1024.0 divides"),
        ({"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())}, "LossScaleOptimizer divides"),
        ({"beta_optimizer": keras.optimizers.SGD(loss_scale_factor=2.0)}, "of beta: SGD with loss_scale_factor 2.0"),
        (
            {"group_optimizers": {"beta": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())}},
            "of beta: LossScaleOptimizer",
        ),
        ({"optimizer": "adam", "trunk_rate": 0.1}, r"trunk_rate 0\.1 needs keras\.optimizers\.SGD: Adam takes"),
        ({"optimizer": keras.optimizers.RMSprop(), "trunk_rate": 0.1}, "RMSprop takes the scale out"),
        ({"optimizer": keras.optimizers.Lion(), "trunk_rate": 2.0}, "Lion takes the scale out"),
        ({"optimizer": keras.optimizers.SGD(clipnorm=1.0), "trunk_rate": 0.1}, "SGD with clipnorm takes"),
    ],
)
def test_compile_refuses_what_has_no_effect(arguments, message):
    with pytest.raises(ValueError, match=message):
        build().compile(**arguments)


def test_compile_takes_what_has_one():
    model = build()
    with pytest.raises(TypeError, match="no argument 'looss'"):
        model.compile(looss="mse")
    for arguments in ({"optimizer": "adam"}, {"loss": None, "metrics": None, "jit_compile": "auto"}):
        model.compile(**arguments)
        assert not model.step.jit_compile
    # all gradients scaled alike, the ratio stays
    model.compile(keras.optimizers.SGD(0.1, global_clipnorm=1.0), trunk_rate=0.1)


def test_what_was_compiled_is_saved(tmp_path):
    model = build()
    given = {"class_weights": [1.0, 2.0, 0.5, 1.0, 1.0, 0.0], "run_eagerly": True, "steps_per_execution": 3}
    model.compile("sgd", **given)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    config = loaded.get_compile_config()
    assert {name: config[name] for name in given} == given
    # one that was saved before these were there
    model.compile_from_config({name: value for name, value in config.items() if name not in given})
    assert (model.run_eagerly, model.steps_per_execution) == (False, 1)
    assert model.get_compile_config()["class_weights"] is None


# what is frozen


@pytest.mark.parametrize("part", ["margin_loss", "beta"])
def test_a_frozen_beta_stays(part):
    model = build()
    frozen = model.margin_loss if part == "margin_loss" else model.margin_loss.beta
    frozen.trainable = False
    model.compile(keras.optimizers.SGD(0.1), weight_decay=0.1)
    model.train_step(tensors((IMAGES, LABELS, IDS)))
    assert model.margin_loss.beta.numpy() == np.float32(1.2)
    with pytest.raises(ValueError, match="an optimizer of beta"):
        model.compile(beta_optimizer="sgd")


def test_with_all_frozen_it_is_evaluated_and_not_trained():
    model = build()
    model.trainable = False
    model.compile("sgd")
    assert np.isfinite(model.test_on_batch(IMAGES, LABELS)).all()
    with pytest.raises(ValueError, match="nothing to train: "):
        model.train_step(tensors((IMAGES, LABELS, IDS)))


# batches


def test_a_batch_that_cannot_be_divided_is_refused():
    model = build()
    model.compile("sgd", accumulation_steps=5)
    with pytest.raises(ValueError, match="12 images can't be divided into accumulation_steps=5 parts"):
        model.train_step(tensors((IMAGES, LABELS, IDS)))


@pytest.mark.parametrize(
    ("place", "name"), [(1, "labels"), (2, "instance_ids"), (3, "weights")], ids=["labels", "ids", "weights"]
)
def test_one_value_for_many_images_is_refused(place, name):
    parts = [IMAGES, LABELS, IDS, np.ones(len(IDS), "float32")]
    parts[place] = parts[place][:1]
    model = build()
    model.compile("sgd")
    with pytest.raises(ValueError, match=rf"{name} must be one an image, 12, received 1"):
        model.train_step(tensors(parts))
    signature = [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in parts]
    step = tf.function(lambda *parts: model.train_step(parts), input_signature=signature, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{name} must be one an image"):
        step(*tensors(parts))


def test_labels_may_be_a_list():
    model = build()
    model.compile(keras.optimizers.SGD(0.01), classification_weight=1.0)
    labels = LABELS.tolist()
    history = model.fit(IMAGES, labels, validation_data=(IMAGES, labels), batch_size=12, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    np.testing.assert_allclose(model.evaluate(IMAGES, labels, verbose=0), model.evaluate(IMAGES, LABELS, verbose=0))


# a learnt exponent


def test_a_learnt_exponent_takes_the_weights_rate_and_no_decay():
    rate, found = 0.5, {}
    for decay in (0.0, 0.3):
        model = build(trainable_exponent=True, pooling_exponent=2.0)
        model.compile(keras.optimizers.SGD(rate), classification_weight=1.0, weight_decay=decay)
        with tf.GradientTape() as tape:
            logs = tf.nn.log_softmax(model(IMAGES, training=True)["logits"])
            loss = -tf.reduce_mean(tf.gather(logs, LABELS, batch_dims=1))
        gradient = tape.gradient(loss, model.pool.pooling_exponent.value)
        assert abs(gradient) > 1e-4
        model.train_step(tensors((IMAGES, LABELS, IDS)))
        found[decay] = model.pool.pooling_exponent.numpy()
        assert found[decay] == pytest.approx(2.0 - rate * float(gradient), abs=1e-5)
    assert found[0.0] == found[0.3]


def test_a_learnt_exponent_stays_positive_and_is_saved(tmp_path):
    model = build(trainable_exponent=True, pooling_exponent=0.2)
    model.compile(keras.optimizers.SGD(0.01))
    for step in range(2):
        # towards the bound, whatever the images
        model.optimizer.apply_gradients([(tf.constant(100.0), model.pool.pooling_exponent)])
        logs = model.train_step(tensors((IMAGES, LABELS, IDS)))
        assert np.isfinite(float(logs["loss"])), step
    assert model.pool.pooling_exponent.numpy() >= np.float32(0.1)
    model.pool.pooling_exponent.assign(1.75)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.pool.trainable_exponent
    assert loaded.pool.pooling_exponent.numpy() == 1.75
    loaded.train_step(tensors((IMAGES, LABELS, IDS)))


def test_models_of_before_are_what_they_were():
    model = build()
    *paths, seed = (variable.path for variable in model.state_variables[-5:])
    assert paths == ["pool/pooling_exponent", "classifier/kernel", "classifier/bias", "margin_loss/beta"]
    assert seed.endswith("seed_generator_state")
    assert len(model.state_variables) == len(model.trunk.variables) + 5
    assert "pool/pooling_exponent" not in [variable.path for variable in model.network_variables]
    # the same places, so that a checkpoint of one is one of the other
    learnt = build(trainable_exponent=True)
    assert [variable.path for variable in learnt.state_variables[-5:-1]] == paths
    config = model.get_config()
    assert config.pop("trainable_exponent") is False
    assert MultiGrain.from_config(config).get_config()["trainable_exponent"] is False


# callbacks


@pytest.mark.slow
def test_callbacks(tmp_path):
    model = build(trainable_exponent=True, versions=VERSIONS)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    history = model.fit(
        dataset(),
        validation_data=tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(6),
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True),
            keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, restore_best_weights=True),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 / (epoch + 1)),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TensorBoard(tmp_path / "board"),
        ],
    ).history
    assert history["learning_rate"] == pytest.approx([0.05, 0.025, 0.05 / 3])
    best = keras.saving.load_model(tmp_path / "best.keras")
    found = best.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-5)
    for one, other in zip(values_of(best), values_of(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    again = build(trainable_exponent=True)
    again.load_weights(tmp_path / "last.weights.h5")
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


def test_the_rate_falls_on_a_plateau():
    model = build()
    model.compile(keras.optimizers.SGD(0.05))
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, factor=0.1, min_delta=10.0)
    model.fit(dataset(), epochs=3, callbacks=[plateau], verbose=0)
    assert float(model.optimizer.learning_rate) < 0.02
