import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras import MultiGrain
from mg_keras.data import augmentations, resolutions
from mg_keras.data.images import BadImages, decode
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import Split
from mg_keras.errors import UserError
from mg_keras.finishing import pooling_exponent
from mg_keras.finishing.pooling_exponent import (
    VERSIONS,
    best_exponent,
    class_accuracies,
    fine_tune_exponent,
    in_aug_counts,
    in_aug_photos,
    paired_errors,
)

CLASSES, TRAIN_SIZE, LARGER = 3, 24, 40


def split_of(images, labels):
    """Photos from arrays, or from bytes as they are."""
    contents = []
    for image in images:
        buffer = io.BytesIO()
        if isinstance(image, bytes):
            buffer.write(image)
        else:
            Image.fromarray(image).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    table = tf.constant(contents)
    return Split([f"{row}.png" for row in range(len(contents))], lambda row: table[row], lambda: labels)


@pytest.fixture(scope="module")
def split():
    """Six photos of each class, of five shapes."""
    rng = np.random.default_rng(0)
    shapes = [(30, 40), (40, 30), (48, 48), (26, 50), (40, 40)]
    photos = [
        np.clip(rng.uniform(0, 255, 3) + rng.normal(0, 60, (*shapes[row % 5], 3)), 0, 255).astype("uint8")
        for row in range(6 * CLASSES)
    ]
    return split_of(photos, np.arange(6 * CLASSES) % CLASSES)


@pytest.fixture(scope="module")
def model():
    """Two convolutions and a batch norm whose inference is not its training."""
    keras.utils.set_random_seed(0)
    features = images = keras.Input((None, None, 3))
    for filters in (6, 8):
        features = keras.layers.Conv2D(filters, 3, strides=2)(features)
        features = keras.layers.BatchNormalization()(features)
        features = keras.layers.ReLU()(features)
    model = MultiGrain(keras.Model(images, features), CLASSES)
    rng = np.random.default_rng(1)
    for layer in model.trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.uniform(-0.3, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.1, 0.3, layer.moving_variance.shape))
    model.classifier.kernel.assign(rng.normal(0, 1, model.classifier.kernel.shape))
    return model


def logits_of(model, split, row, size):
    """p -> float64 [C]: one photo through the network, its GeM and classifier in NumPy."""
    image = decode(split.read(tf.constant(row)))
    if split.adjust:
        image = split.adjust(tf.constant(row), image)
    image = resolutions.for_resolution(size, TRAIN_SIZE)(image, size)
    features = np.asarray(model.trunk(model.normalize(image[None]), training=False), np.float64)[0]
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.classifier.weights)

    def logits(p):
        return np.mean(np.maximum(features, 1e-6) ** p, axis=(0, 1)) ** (1 / p) @ kernel + bias

    return logits


def cross_entropy(logits, label):
    return np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[label]


def check_recursion(found, model, split, size, rate, momentum):
    """The history is that of SGD in NumPy, with numerical gradients, on the same batches."""
    logits = {row: logits_of(model, split, row, size) for batch in found.batches for row in batch}

    def loss(p, batch):
        return np.mean([cross_entropy(logits[row](p), split.labels[row]) for row in batch])

    p, velocity, steps = found.initial, 0.0, len(found.batches)
    for i, batch in enumerate(found.batches):
        assert found.losses[i] == pytest.approx(loss(p, batch), rel=1e-4)
        velocity = momentum * velocity + (loss(p + 1e-5, batch) - loss(p - 1e-5, batch)) / 2e-5
        p = max(p - rate * (1 - i / steps) ** 0.9 * velocity, 0.1)
        assert found.exponents[i] == pytest.approx(p, rel=1e-4)
    assert found.p_star == found.exponents[-1]


@pytest.mark.parametrize("size", [TRAIN_SIZE, LARGER])
@pytest.mark.slow
def test_fine_tuning_is_sgd_on_the_exponent(model, split, size):
    before = [np.array(variable) for variable in model.variables]
    found = fine_tune_exponent(model, split, size, TRAIN_SIZE, learning_rate=0.4, momentum=0.8, epochs=2, seed=3)
    assert found.initial == 3.0
    assert np.ptp(found.exponents) > 0.2, "p hardly moved: the test would show nothing"
    check_recursion(found, model, split, size, 0.4, 0.8)
    # batches of 4, 4, 4, 4 and 2, in another order each epoch
    assert [len(batch) for batch in found.batches] == [4, 4, 4, 4, 2] * 2
    epochs = np.concatenate(found.batches[:5]), np.concatenate(found.batches[5:])
    assert [sorted(rows) for rows in epochs] == [list(range(18))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


@pytest.mark.slow
def test_fine_tuning_finds_the_optimum_elsewhere():
    """Each photo is there once as either of two classes: the loss is least where the logits are equal, at p = 5."""
    images = keras.Input((None, None, 3))
    model = MultiGrain(keras.Model(images, keras.layers.AveragePooling2D(4)(images)), num_classes=2)
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype="uint8")
    twins = split_of([photo] * 16, np.arange(16) % 2)
    model.classifier.kernel.assign([[40.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    model.classifier.bias.assign(-logits_of(model, twins, 0, LARGER)(5.0))
    found = fine_tune_exponent(
        model, twins, LARGER, TRAIN_SIZE, initial=1.5, learning_rate=0.3, momentum=0.5, batch_size=16, epochs=40
    )
    assert found.p_star == pytest.approx(5.0, abs=0.1)
    assert found.losses[-1] == pytest.approx(np.log(2), abs=1e-3)
    assert found.losses[0] > found.losses[-1] + 0.01


@pytest.mark.slow
def test_fine_tuning_depends_on_the_seed_alone(model, split):
    runs = [fine_tune_exponent(model, split, TRAIN_SIZE, TRAIN_SIZE, seed=seed) for seed in (5, 5, 6)]
    np.testing.assert_allclose(runs[0].exponents, runs[1].exponents, rtol=1e-6)
    assert np.array_equal(np.concatenate(runs[0].batches), np.concatenate(runs[1].batches))
    assert not np.array_equal(np.concatenate(runs[0].batches), np.concatenate(runs[2].batches))


@pytest.mark.slow
def test_fine_tuning_in_blocks_is_the_same(model, split, monkeypatch):
    asked, batches = [], pooling_exponent.prepared_batches

    def counted(split, resolution, train_resolution, rows, preparation):
        asked.append(len(rows))
        return batches(split, resolution, train_resolution, rows, preparation)

    monkeypatch.setattr(pooling_exponent, "prepared_batches", counted)
    monkeypatch.setattr(pooling_exponent, "_PIXELS_A_BLOCK", 9 * LARGER**2)
    found = fine_tune_exponent(model, split, LARGER, TRAIN_SIZE, learning_rate=0.4)
    assert asked == [8, 8, 2]
    check_recursion(found, model, split, LARGER, 0.4, 0.9)


def test_fine_tuning_compiles_once_for_all_shapes(model, split, monkeypatch):
    functions = []
    for name in ("_trunk", "_loss_and_gradient"):
        build = getattr(pooling_exponent, name)
        monkeypatch.setattr(
            pooling_exponent, name, lambda network, build=build: functions.append(build(network)) or functions[-1]
        )
    fine_tune_exponent(model, split, LARGER, TRAIN_SIZE)
    assert [function.experimental_get_tracing_count() for function in functions] == [1, 1]


def test_fine_tuning_draws_some_photos_of_each_class(model, split):
    found = fine_tune_exponent(model, split, TRAIN_SIZE, TRAIN_SIZE, per_class=2)
    assert found.photos == 6
    assert np.bincount(split.labels[np.concatenate(found.batches)]).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_fine_tuning_leaves_broken_photos_out(model, split):
    photos = [decode(split.read(tf.constant(row))).numpy() for row in range(8)]
    photos[3] = photos[6] = b"no photo"
    some = split_of(photos, split.labels[:8])
    found = fine_tune_exponent(model, some, LARGER, TRAIN_SIZE, batch_size=1, learning_rate=0.4, momentum=0.0)
    assert sorted(np.concatenate(found.batches)) == [0, 1, 2, 4, 5, 7]
    assert found.photos == 6
    # a step without a photo changes nothing
    empty = [i for i, batch in enumerate(found.batches) if not len(batch)]
    assert len(empty) == 2
    assert np.isnan(found.losses).nonzero()[0].tolist() == empty
    before = np.array([found.initial, *found.exponents])
    assert np.all((before[1:] == before[:-1]) == np.isnan(found.losses))
    pairs = fine_tune_exponent(model, some, LARGER, TRAIN_SIZE, batch_size=4, learning_rate=0.4, seed=1)
    assert sum(map(len, pairs.batches)) == 6
    check_recursion(pairs, model, some, LARGER, 0.4, 0.9)


def test_fine_tuning_sees_adjusted_photos(model, split):
    turned = Split(split.names, split.read, split.load_labels, adjust=lambda row, image: image[:20, :25])
    found = fine_tune_exponent(model, turned, LARGER, TRAIN_SIZE, learning_rate=0.4)
    check_recursion(found, model, turned, LARGER, 0.4, 0.9)


def test_the_exponent_stays_above_its_bound(model, split):
    found = fine_tune_exponent(model, split, TRAIN_SIZE, TRAIN_SIZE, initial=0.3, learning_rate=50.0, epochs=3)
    assert found.exponents.min() == pooling_exponent.SMALLEST_EXPONENT
    assert np.isfinite(found.losses).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": 0.0}, "initial must be at least 0.1, received 0.0"),
        ({"initial": float("nan")}, "initial .* received nan"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, received 0.0"),
        ({"momentum": 1.0}, "momentum .* received 1.0"),
        ({"per_class": 0}, "per_class must be at least 1, received 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, received 0"),
        ({"epochs": 0}, "epochs must be at least 1, received 0"),
        ({"network": "resnet50"}, "MultiGrain.*'resnet50'"),
        ({"split": split_of([np.zeros((9, 9, 3), "uint8")] * 2, np.array([0, 3]))}, r"from 0 to 2, received \[0 3\]"),
        ({"split": split_of([np.zeros((9, 9, 3), "uint8")], np.array([-1]))}, r"from 0 to 2, received \[-1\]"),
    ],
)
def test_fine_tuning_names_bad_arguments(model, split, changes, message):
    arguments = {"network": model, "split": split, "resolution": 24, "train_resolution": 24, **changes}
    with pytest.raises(ValueError, match=message):
        fine_tune_exponent(**arguments)


@pytest.mark.slow
def test_nothing_to_fine_tune_on_is_the_users_to_mend(model):
    broken = split_of([b"no photo", b"nor this"], np.array([0, 1]))
    with pytest.raises(UserError, match="none of the 2 photos"):
        fine_tune_exponent(model, broken, LARGER, TRAIN_SIZE)


def test_a_step_that_gives_no_number_is_named(split):
    images = keras.Input((None, None, 3))
    model = MultiGrain(keras.Model(images, keras.layers.AveragePooling2D(4)(images)), CLASSES)
    model.classifier.bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(UserError, match="at 24 px: step 1 gave the loss nan and p nan"):
        fine_tune_exponent(model, split, TRAIN_SIZE, TRAIN_SIZE)


def naive_score(embeddings, numbers):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = [
        np.sum(numbers[np.argsort(-(unit @ query), kind="stable")[:VERSIONS]] == number)
        for query, number in zip(unit, numbers, strict=True)
    ]
    return np.mean(found)


@pytest.mark.slow
def test_in_aug_counts_are_those_of_the_versions(model, split):
    photos = in_aug_photos(split, 2, seed=4)
    assert np.bincount(photos.labels).tolist() == [2, 2, 2]
    assert photos.names != in_aug_photos(split, 2, seed=5).names
    batches = repeated_batches(
        photos,
        augmentations.get("full"),
        size=LARGER,
        batch_size=VERSIONS,
        versions=VERSIONS,
        seed=4,
        steps=6,
        bad_images=BadImages(),
    )
    images, _, numbers = (np.concatenate(part) for part in zip(*batches.as_numpy_iterator(), strict=True))
    counts = in_aug_counts(model, photos, LARGER, [1, 3.5], seed=4)
    assert {exponent: found.shape for exponent, found in counts.items()} == {1: (6,), 3.5: (6,)}
    scores = {exponent: found.mean() for exponent, found in counts.items()}
    for exponent, score in scores.items():
        assert score == pytest.approx(naive_score(model(images, p_star=exponent)["embedding"].numpy(), numbers))
    assert scores[1] != scores[3.5]
    # the versions of another recipe are others
    assert in_aug_counts(model, photos, LARGER, [1], seed=4, augmentation="standard")[1].mean() != scores[1]


@pytest.mark.slow
def test_photos_of_in_aug_that_are_all_unusable_are_named(model):
    with pytest.raises(UserError, match=r"16 photos drawn one after the other .*such as 0.png: not a JPEG"):
        in_aug_counts(model, split_of([b"no photo"] * 3, np.zeros(3, int)), LARGER, [1])


def test_paired_errors_are_those_of_the_difference_photo_by_photo():
    rng = np.random.default_rng(0)
    found = {1: rng.uniform(1, 5, 30), 3: rng.uniform(3, 5, 30)}
    found[2] = found[3] - 0.1
    differences = found[3] - found[1]
    naive = np.sqrt(np.sum((differences - differences.mean()) ** 2) / 29 / 30)
    assert paired_errors(found) == {1: pytest.approx(naive), 2: pytest.approx(0, abs=1e-12), 3: 0}
    assert paired_errors({1: np.ones(1), 2: np.zeros(1)}) == {1: 0, 2: 0}


def test_best_exponent_is_the_smallest_of_equals():
    assert best_exponent({3: 4.0, 1: 3.9, 2.5: 4.0}) == 2.5


@pytest.mark.parametrize(
    ("errors", "training", "tolerance", "expected"),
    [
        ({}, 1, 1, 7),  # nothing is known of errors
        ({1: 0.02, 3: 0.02, 5: 0.02}, 1, 1, 3),
        ({1: 0.02, 3: 0.02, 5: 0.02}, 4, 1, 3),  # 3 and 5 are as near
        ({1: 0.02, 3: 0.02, 5: 0.02}, 9, 1, 7),
        ({1: 0.02, 3: 0.02, 5: 0.02}, 1, 0, 7),
        ({1: 0.02, 3: 0.02, 5: 0.02}, 1, 11, 1),
        ({1: 0.02, 3: 0.02, 5: 0.02}, None, 1, 7),
    ],
)
def test_of_exponents_that_cant_be_told_apart_the_one_nearest_to_training_is_best(
    errors, training, tolerance, expected
):
    assert best_exponent({1: 4.1, 3: 4.29, 5: 4.295, 7: 4.3}, errors, training, tolerance) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("size", "exponents"), [(TRAIN_SIZE, [0.5, 8]), (LARGER, [0.5, 2.7, 8])])
def test_class_accuracy_is_measured_at_each_exponent(model, split, size, exponents):
    contents = [split.read(tf.constant(row)).numpy() for row in range(12)]
    val = split_of([b"no photo", *contents], split.labels[:13])
    found = class_accuracies(model, val, size, TRAIN_SIZE, exponents)
    assert list(found) == exponents
    logits = [logits_of(model, val, row, size) for row in range(1, 13)]
    for exponent, scores in found.items():
        right = [np.argmax(of(exponent)) == label for of, label in zip(logits, val.labels[1:], strict=True)]
        assert scores == {"top1": pytest.approx(np.mean(right)), "top5": 1.0}
    assert len({scores["top1"] for scores in found.values()}) > 1


@pytest.mark.slow
def test_accuracy_without_photos_is_the_users_to_mend(model):
    with pytest.raises(UserError, match="none of the validation photos"):
        class_accuracies(model, split_of([b"x"], np.array([0])), 24, 24, [1])
