"""Weights of images and classes, and labels, as Keras's loops hand them over."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.multigrain.model_test import CLASSES, batch, build, tensors
from tests.multigrain.model_test import weights as values_of

IMAGES, LABELS, IDS = batch()
N = len(IMAGES)
WEIGHTS = np.random.default_rng(5).uniform(0, 3, N).astype("float32")
CLASS_WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0, 0.25]


def cross_entropies(model):
    """[N], one photo at a time."""
    logits = np.asarray(model(IMAGES)["logits"], np.float64)
    return np.array([np.log(np.sum(np.exp(row))) - row[label] for row, label in zip(logits, LABELS, strict=True)])


def still(**arguments):
    """A compiled model that nothing moves."""
    model = build()
    model.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0), **arguments)
    return model


def batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(6)


# the step


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"classification_weight": 0.4, "accumulation_steps": 2},
        {"classification_weight": 0.4, "accumulation_steps": 2, "jit_compile": True},
    ],
)
@pytest.mark.slow
def test_a_step_weighs_the_cross_entropy(how):
    rate, part = 0.1, how.get("classification_weight", 1.0)
    model = build()
    model.compile(keras.optimizers.SGD(rate), class_weights=CLASS_WEIGHTS, **{"classification_weight": 1.0, **how})
    factors = WEIGHTS * np.array(CLASS_WEIGHTS)[LABELS]
    expected = np.mean(factors * cross_entropies(model))
    bias = model.classifier.bias.numpy()
    probabilities = tf.nn.softmax(model(IMAGES)["logits"]).numpy()
    values = tf.function(model.train_step, autograph=False)(tensors((IMAGES, LABELS, IDS, WEIGHTS)))
    assert float(values["classification_loss"]) == pytest.approx(expected, rel=1e-5)
    retrieval_loss = float(values["retrieval_loss"])
    assert float(values["loss"]) == pytest.approx(part * expected + (1 - part) * retrieval_loss, rel=1e-5)
    # of the bias the retrieval loss knows nothing
    gradient = part * np.mean(factors[:, None] * (probabilities - np.eye(CLASSES)[LABELS]), axis=0)
    np.testing.assert_allclose(model.classifier.bias, bias - rate * gradient, atol=1e-6)


def test_a_photo_of_weight_0_teaches_nothing():
    found = []
    for changed in (False, True):
        model = build()
        model.compile(keras.optimizers.SGD(0.1), classification_weight=1.0)
        images = IMAGES.copy()
        images[:3] = 255 - images[:3] if changed else images[:3]
        model.train_step(tensors((images, LABELS, IDS, np.r_[np.zeros(3), np.ones(N - 3)].astype("float32"))))
        found.append(values_of(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


# fit and evaluate


@pytest.mark.parametrize(
    ("parts", "given", "factors"),
    [
        ((IMAGES, LABELS, IDS), {}, np.ones(N)),
        ((IMAGES, LABELS, IDS, WEIGHTS), {}, WEIGHTS),
        ((IMAGES, LABELS, IDS.astype(str)), {"class_weight": {1: 5, 3: 2}}, np.array([1, 5, 1, 2, 1, 1])[LABELS]),
        ((IMAGES, LABELS, IDS, WEIGHTS), {"class_weight": {0: 2}}, WEIGHTS * np.array([2, 1, 1, 1, 1, 1])[LABELS]),
        # without instances
        ((IMAGES, LABELS), {"class_weight": {1: 5}}, np.array([1, 5, 1, 1, 1, 1])[LABELS]),
        ((IMAGES, LABELS.astype("float64"), WEIGHTS), {}, WEIGHTS),
        (None, {"x": IMAGES, "y": LABELS, "sample_weight": np.arange(N)}, np.arange(N)),
        (None, {"x": IMAGES, "y": LABELS, "class_weight": {0: 3}}, np.array([3, 1, 1, 1, 1, 1])[LABELS]),
    ],
)
def test_fit_takes_weights_in_every_form(parts, given, factors):
    joint = parts is not None and len(parts) > 2 and parts[2].dtype.kind != "f"
    model = still(classification_weight=0.5 if joint else 1.0)
    expected = np.mean(factors * cross_entropies(model))
    if parts is not None:
        given = {"x": batches(*parts), **given}
    history = model.fit(**given, batch_size=None if parts else 6, verbose=0).history
    assert history["classification_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert (history["active_share"][0] > 0) == joint


@pytest.mark.slow
def test_class_weight_is_for_one_fit_and_stands_in_for_the_compiled_ones():
    model = still(classification_weight=1.0, class_weights=CLASS_WEIGHTS)
    losses = cross_entropies(model)
    for class_weight, factors in ((None, CLASS_WEIGHTS), ({0: 4}, [4, 1, 1, 1, 1, 1]), (None, CLASS_WEIGHTS)):
        history = model.fit(batches(IMAGES, LABELS), class_weight=class_weight, verbose=0).history
        expected = np.mean(np.array(factors)[LABELS] * losses)
        assert history["classification_loss"][0] == pytest.approx(expected, rel=1e-5)
    # they are for training
    found = model.evaluate(batches(IMAGES, LABELS), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
def test_evaluate_weighs_the_cross_entropy_and_counts_photos():
    model = still()
    losses = cross_entropies(model)
    top1 = np.mean(model(IMAGES)["logits"].numpy().argmax(1) == LABELS)
    whole = (WEIGHTS * 10).astype("int64")
    for given, factors in (
        ({"x": batches(IMAGES, LABELS, IDS)}, np.ones(N)),
        ({"x": batches(IMAGES, LABELS, WEIGHTS)}, WEIGHTS),
        ({"x": batches(IMAGES, LABELS, IDS, WEIGHTS)}, WEIGHTS),
        ({"x": IMAGES, "y": LABELS, "sample_weight": whole, "batch_size": 5}, whole),
    ):
        found = model.evaluate(**given, verbose=0, return_dict=True)
        assert found["loss"] == found["classification_loss"] == pytest.approx(np.mean(factors * losses), rel=1e-5)
        assert found["top1"] == pytest.approx(top1)
    history = model.fit(
        batches(IMAGES, LABELS, IDS), validation_data=(IMAGES, LABELS, whole), validation_batch_size=5, verbose=0
    ).history
    assert history["val_loss"][0] == pytest.approx(np.mean(whole * losses), rel=1e-5)


def test_single_batches():
    model = still(classification_weight=1.0)
    expected = np.mean(WEIGHTS * cross_entropies(model))
    for method in (model.train_on_batch, model.test_on_batch):
        model.reset_metrics()
        found = method(IMAGES, LABELS, sample_weight=WEIGHTS, return_dict=True)
        assert found["classification_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="needs instance_ids"):
        still().train_on_batch(IMAGES, LABELS, IDS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": batches(IMAGES, LABELS)}, "needs instance_ids, received 2 parts"),
        ({"x": batches(IMAGES, LABELS), "class_weight": {0: 2}}, "needs instance_ids, received 2 parts"),
        ({"x": IMAGES, "y": LABELS, "sample_weight": np.ones(N, int)}, r"needs instance_ids, received 3 parts \(the"),
        ({"x": batches(IMAGES, LABELS, WEIGHTS)}, r"needs instance_ids, received 3 parts \(the last, floats, is w"),
        ({"x": batches(IMAGES)}, "received 1 part$"),
        ({"x": batches(IMAGES, LABELS, IDS, WEIGHTS, IDS)}, "received 5 parts"),
        (
            {"x": batches(IMAGES, LABELS, WEIGHTS, WEIGHTS)},
            "instance_ids must be integers or strings, received float32",
        ),
        ({"x": batches(IMAGES, LABELS, IDS, IDS)}, "weights must be floats, received int32"),
        ({"x": batches(IMAGES, LABELS, IDS > 3)}, "instance_ids must be integers or strings, received bool"),
        ({"x": batches(IMAGES, LABELS, IDS[:, None])}, r"instance_ids must be one an image, .*\(None, 1\)"),
        ({"x": batches(IMAGES[..., :1], LABELS, IDS)}, r"images must be RGB, .*\(None, 20, 20, 1\)"),
        ({"x": batches(IMAGES, LABELS, IDS), "class_weight": {CLASSES: 2}}, "classes from 0 to 5, received 6"),
        ({"x": batches(IMAGES, LABELS, IDS), "class_weight": [1.0] * CLASSES}, "must map .*received list"),
        ({"x": batches(IMAGES, LABELS, IDS), "class_weight": {0: -1}}, "class_weight .* at least 0, received -1.0"),
        ({"x": IMAGES, "y": LABELS, "sample_weight": np.full(N, np.nan)}, "sample_weight .* received nan"),
        ({"x": IMAGES, "y": LABELS, "sample_weight": np.ones((N, 2))}, r"sample_weight .*\(12, 2\)"),
        ({"x": IMAGES, "y": LABELS, "sample_weight": ["a"] * N}, "sample_weight must hold numbers, received list"),
    ],
)
def test_fit_refuses_in_one_line_and_changes_nothing(given, message):
    model = build()
    model.compile(keras.optimizers.SGD(0.1))
    before = values_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(**given, verbose=0)
    assert "\n" not in str(caught.value)
    for new, old in zip(values_of(model), before, strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_wrong_label_stops_before_the_update():
    model = build()
    model.compile(keras.optimizers.SGD(0.1))
    before, beta = values_of(model), model.margin_loss.beta.numpy()
    with pytest.raises(ValueError, match="received values from"):
        model.fit(batches(IMAGES, np.where(np.arange(N) == 4, CLASSES, LABELS), IDS), verbose=0)
    for new, old in zip(values_of(model), before, strict=True):
        np.testing.assert_array_equal(new, old)
    assert model.margin_loss.beta.numpy() == beta


def test_strings_are_no_ids_for_xla():
    model = still(jit_compile=True)
    with pytest.raises(ValueError, match="with jit_compile, instance_ids must be integers, received strings"):
        model.fit(batches(IMAGES, LABELS, IDS.astype(str)), verbose=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(CLASSES)[LABELS], r"class numbers, .*\(\w+, 6\); of one-hot labels take the argmax"),
        (LABELS[:, None], r"class numbers, one an image, received shape \(\w+, 1\)$"),
        (np.array(list("abcdef"))[LABELS], "class numbers, received strings"),
        (LABELS + 1, r"from 0 to 5, received values from \d to 6$"),
        (LABELS - 6, r"from 0 to 5, received values from -5 to -1$"),
        (LABELS + 2.0**33, r"from 0 to 5, received values from"),
        (LABELS + 0.5, r"from 0 to 5, received values from \d\.5 to \d\.5$"),
        (np.where(LABELS == 1, np.nan, LABELS), "from 0 to 5, received values from"),
    ],
    ids=["one-hot", "column", "strings", "above", "below", "huge", "halves", "nan"],
)
@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_labels_are_class_numbers(labels, message, form):
    model = still(classification_weight=1.0)
    given = {"x": IMAGES, "y": labels} if form == "arrays" else {"x": batches(IMAGES, labels)}
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message) as caught:
            method(**given, verbose=0)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        model.fit(IMAGES, LABELS, validation_data=(IMAGES, labels), verbose=0)


@pytest.mark.parametrize(
    ("class_weights", "message"),
    [([1.0, 2.0], "one weight for each of 6 classes, received 2"), ([1.0, -1.0] * 3, "at least 0, received -1.0")],
)
def test_class_weights_of_compile(class_weights, message):
    with pytest.raises(ValueError, match=message):
        still(class_weights=class_weights)
