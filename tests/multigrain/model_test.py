import collections
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras import MultiGrain
from mg_keras.data import augmentations, repeated
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import Split
from mg_keras.models import trunks
from mg_keras.models.trunks import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).resolve().parents[2]
CLASSES, VERSIONS = 6, 3


def plain_trunk(batch_norm=False):
    """Two convolutions. Without batch norm the images of a batch don't depend on each other."""
    features = images = keras.Input((None, None, 3))
    for filters in (6, 8):
        features = keras.layers.Conv2D(filters, 3, strides=2)(features)
        if batch_norm:
            features = keras.layers.BatchNormalization()(features)
        features = keras.layers.ReLU()(features)
    return keras.Model(images, features)


def tiny_resnet(**overrides):
    stages = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
    return trunks.build("resnet18", **stages, **overrides)


def build(trunk=None, **arguments):
    keras.utils.set_random_seed(0)
    return MultiGrain(trunk or plain_trunk(), CLASSES, **{"versions": VERSIONS, "seed": 7, **arguments})


def batch(photos=4, size=20, seed=1):
    """`photos` groups of VERSIONS noisy images of one colour."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 255, (photos, 1, 1, 1, 3)) + rng.normal(0, 20, (photos, VERSIONS, size, size, 3))
    images = images.reshape(-1, size, size, 3).clip(0, 255).astype("float32")
    instance_ids = np.repeat(rng.permutation(100)[:photos], VERSIONS).astype("int32")
    return images, (instance_ids % CLASSES).astype("int32"), instance_ids


def tensors(data):
    return tuple(tf.constant(value) for value in data)


def weights(model):
    return [variable.numpy() for variable in model.network_variables]


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.mean(
        [np.log(np.exp(row - row.max()).sum()) + row.max() - row[k] for row, k in zip(logits, labels, strict=True)]
    )


# the call


@pytest.fixture(scope="module")
def model():
    return build(tiny_resnet())


def test_call_gives_embedding_and_logits(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    outputs = model(images)
    assert set(outputs) == {"embedding", "logits"}
    embedding, logits = outputs["embedding"].numpy(), outputs["logits"].numpy()
    assert embedding.shape == (2, model.embedding_dimension) == (2, 64)
    normalized = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    features = model.trunk(normalized.astype("float32"), training=False).numpy().astype(np.float64)
    expected = np.mean(np.maximum(features, 1e-6) ** 3, axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-6)
    kernel, bias = (weight.numpy() for weight in model.classifier.weights)
    np.testing.assert_allclose(logits, expected @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_uint8_and_float_are_the_same(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    for name, value in model(images).items():
        np.testing.assert_array_equal(value, model(images.astype("float32"))[name])


def test_p_star_is_a_scalar_or_one_an_image(model):
    images = batch(photos=1, size=40)[0]
    by_scalar = [model(images, p_star=p)["embedding"].numpy()[i] for i, p in enumerate((1.0, 3.0, 4.5))]
    by_image = model(images, p_star=np.array([1.0, 3.0, 4.5], "float32"))
    np.testing.assert_allclose(by_image["embedding"], by_scalar, rtol=1e-5)
    np.testing.assert_allclose(by_image["embedding"][1], model(images)["embedding"][1], rtol=1e-5)
    assert np.all(by_scalar[0] <= model(images, p_star=4.5)["embedding"][0] + 1e-6)


@pytest.mark.parametrize("size", [(32, 32), (64, 33), (35, 50)])
def test_any_size(model, size):
    assert model(np.zeros((1, *size, 3), "uint8"))["logits"].shape == (1, CLASSES)


def test_symbolic_call(model):
    outputs = model(keras.Input((None, None, 3)))
    assert outputs["embedding"].shape == (None, 64)
    assert outputs["logits"].dtype == "float32"


@pytest.mark.slow
def test_a_name_is_a_trunk():
    named = MultiGrain("mobilenet_v3_small", 2, dtype="mixed_bfloat16")
    assert named.embedding_dimension == 576
    assert named.trunk.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes.*0"),
        ({"versions": 0}, "versions.*0"),
        ({"pooling_exponent": -1.0}, "pooling_exponent.*-1"),
        ({"margin": 0.0}, "margin.*0"),
        ({"margin_normalization": "mean"}, "'mean'"),
        ({"pixel_mean": (0.5,)}, r"pixel_mean.*\(0.5,\)"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std.*0.0"),
        ({"pooling_exponent": float("nan")}, "pooling_exponent.*nan"),
        ({"pooling_exponent": float("inf")}, "pooling_exponent.*inf"),
        ({"margin": float("nan")}, "margin.*nan"),
        ({"pixel_std": (1.0, 1.0, float("nan"))}, "pixel_std.*nan"),
        ({"trunk": 18}, "trunk.*18"),
        ({"weights": "imagenet"}, "weights are for a trunk by name"),
        ({"trunk": keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])}, r"trunk.*\(None, 192\)"),
        ({"trunk": "resnet19"}, "'resnet19'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(Exception, match=message) as caught:
        MultiGrain(**{"trunk": plain_trunk(), "num_classes": 3, **arguments})
    assert type(caught.value).__name__ == ("UserError" if arguments.get("trunk") == "resnet19" else "ValueError")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classification_weight": 1.5}, "classification_weight.*1.5"),
        ({"accumulation_steps": 0}, "accumulation_steps.*0"),
        ({"weight_decay": -1e-4}, "weight_decay.*-0.0001"),
        ({"trunk_rate": 0.0}, "trunk_rate.*0.0"),
        ({"weight_decay": float("nan")}, "weight_decay.*nan"),
        ({"trunk_rate": float("nan")}, "trunk_rate.*nan"),
        ({"trunk_rate": float("inf")}, "trunk_rate.*inf"),
    ],
)
def test_bad_compile_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build().compile(**arguments)


def test_joint_loss_needs_pairs_and_no_float16():
    with pytest.raises(ValueError, match="versions=1"):
        build(versions=1).compile(classification_weight=0.5)
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        build(tiny_resnet(dtype="mixed_float16")).compile()


def test_bad_images_and_batches():
    model = build()
    with pytest.raises(ValueError, match=r"RGB.*\(1, 20, 20, 1\)"):
        model(np.zeros((1, 20, 20, 1), "uint8"))
    model.compile()
    with pytest.raises(ValueError, match=r"instance_ids.*2 parts"):
        model.train_step(tensors(batch()[:2]))


# mixed precision


@pytest.mark.slow
def test_mixed_bfloat16_keeps_the_ends_in_float32():
    model = build(tiny_resnet(dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    images = np.random.default_rng(0).uniform(100, 101, (2, 40, 40, 3)).astype("float32")
    normalized = model.normalize(images)
    assert normalized.dtype == "float32"
    np.testing.assert_allclose(
        normalized, (images / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), rtol=1e-4, atol=1e-5
    )
    # bfloat16 has no number between 100 and 100.5: rounded pixels would give something else
    features = model.trunk(normalized, training=False)
    assert features.dtype == "bfloat16"
    exponent = 3.003  # 3.0 in bfloat16
    outputs = model(images, p_star=exponent)
    assert all(value.dtype == "float32" for value in outputs.values())
    features = features.numpy().astype(np.float64)

    def gem(p):
        return np.mean(np.maximum(features, 1e-6) ** p, axis=(1, 2)) ** (1 / p)

    rounding = np.abs(gem(3.0) / gem(exponent) - 1).max()
    assert rounding > 1e-4
    np.testing.assert_allclose(outputs["embedding"], gem(exponent), rtol=rounding / 10)
    assert model.margin_loss.beta.dtype == model.pool.pooling_exponent.dtype == "float32"
    assert all(weight.dtype == "float32" for weight in model.network_variables)


def test_mixed_bfloat16_trains():
    model = build(tiny_resnet(dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    model.compile(keras.optimizers.SGD(0.01), weight_decay=1e-4)
    before, beta = weights(model), model.margin_loss.beta.numpy()
    logs = model.train_step(tensors(batch(size=32)))
    assert all(np.isfinite(value) for value in logs.values())
    assert model.margin_loss.beta.numpy() != beta
    for new, old in zip(weights(model), before, strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(new, old)


# saving


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = build(
        tiny_resnet(), pooling_exponent=2.0, margin=0.3, initial_beta=1.1, margin_normalization="active", versions=4
    )
    model.margin_loss.beta.assign(1.05)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = batch(size=40)[0]
    for name, value in model(images, p_star=1.5).items():
        np.testing.assert_allclose(loaded(images, p_star=1.5)[name], value, rtol=1e-6)
    before, after = model.get_config(), loaded.get_config()
    assert before.pop("trunk")["class_name"] == after.pop("trunk")["class_name"] == "ResNetBackbone"
    assert after == before
    assert loaded.margin_loss.beta.numpy() == np.float32(1.05)
    assert loaded.sampling.max_positives == 3


@pytest.mark.slow
def test_saved_in_training_it_goes_on(tmp_path):
    model = build()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.optimizers.SGD(0.2, momentum=0.5),
        classification_weight=0.7,
        weight_decay=0.01,
        accumulation_steps=2,
        trunk_rate=0.3,
    )
    data = tensors(batch())
    model.train_step(data)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.train_step(data)
    for expected, found in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(loaded.margin_loss.beta, model.margin_loss.beta, rtol=1e-6)


# the step


def slow_margin_terms(embeddings, triplets, beta, margin):
    """Sum of the terms, number of triplets and of active ones: equations 3 to 5, a triplet at a time."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    total, count, active = 0.0, 0, 0
    for a, p, n in zip(*triplets, strict=True):
        if a < 0:
            continue
        positive = max(0.0, margin + (np.linalg.norm(unit[a] - unit[p]) - beta))
        negative = max(0.0, margin - (np.linalg.norm(unit[a] - unit[n]) - beta))
        total, count, active = total + positive + negative, count + 1, active + (positive > 0 or negative > 0)
    return total, count, active


@pytest.mark.parametrize(("normalization", "trunk_rate"), [("pairs", 1.0), ("active", 0.25)])
@pytest.mark.slow
def test_steps_are_those_of_a_slow_oracle(normalization, trunk_rate):
    weight, margin, rate, beta_rate, momentum, decay = 0.3, 0.1, 0.02, 0.05, 0.9, 0.05
    model = build(margin=margin, margin_normalization=normalization, initial_beta=0.3)
    model.compile(
        keras.optimizers.SGD(rate, momentum=momentum),
        keras.optimizers.SGD(beta_rate, momentum=momentum),
        classification_weight=weight,
        weight_decay=decay,
        trunk_rate=trunk_rate,
    )
    rates = [rate * trunk_rate] * len(model.trunk.trainable_variables) + [rate] * 2
    velocities, beta_velocity = [0.0] * len(model.network_variables), 0.0
    actives = []
    for step in range(3):
        data = images, labels, instance_ids = batch(seed=step)
        variables = [variable.value for variable in model.network_variables]
        beta = model.margin_loss.beta.value
        beta_before = float(beta)
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            unit = tf.math.l2_normalize(outputs["embedding"], axis=-1)
            triplets = model.sampling(unit, tf.constant(instance_ids), seed=model.step.seed_of(0))
            a, p, n = (tf.gather(unit, rows) for rows in triplets)
            terms = (
                tf.nn.relu(margin + tf.norm(a - p, axis=1) - beta),
                tf.nn.relu(margin + beta - tf.norm(a - n, axis=1)),
            )
            total, count, active = slow_margin_terms(outputs["embedding"].numpy(), triplets, beta_before, margin)
            assert count == len(images) * (VERSIONS - 1)
            divisor = 2 * count if normalization == "pairs" else max(active, 1)
            logs = tf.nn.log_softmax(outputs["logits"])
            loss = -weight * tf.reduce_mean(tf.gather(logs, labels, batch_dims=1))
            loss += (1 - weight) * (tf.reduce_sum(terms[0]) + tf.reduce_sum(terms[1])) / divisor
        *gradients, beta_gradient = tape.gradient(loss, [*variables, beta])
        expected = []
        for i, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            velocities[i] = momentum * velocities[i] - rates[i] * (gradient.numpy() + decay * variable.numpy())
            expected.append(variable.numpy() + velocities[i])
        beta_velocity = momentum * beta_velocity - beta_rate * float(beta_gradient)
        expected_beta = beta_before + beta_velocity
        classification_loss = cross_entropy(outputs["logits"], labels)
        ranks = [int(np.sum(row > row[k])) for row, k in zip(outputs["logits"].numpy(), labels, strict=True)]

        model.reset_metrics()
        values = {name: float(value) for name, value in model.train_step(tensors(data)).items()}
        assert values == pytest.approx(
            {
                "loss": weight * classification_loss + (1 - weight) * total / divisor,
                "classification_loss": classification_loss,
                "retrieval_loss": total / divisor,
                "active_share": active / count,
                "top1": np.mean([rank < 1 for rank in ranks]),
                "top5": np.mean([rank < 5 for rank in ranks]),
                "beta": expected_beta,
            },
            abs=1e-5,
        )
        assert {metric.name for metric in model.metrics} == set(values)
        for new, wanted in zip(weights(model), expected, strict=True):
            np.testing.assert_allclose(new, wanted, atol=1e-5)
        assert model.margin_loss.beta.numpy() == pytest.approx(expected_beta, abs=1e-6)
        assert abs(expected_beta - beta_before) > 1e-4
        actives.append(active / count)
    # the two normalisations and the share can be told apart
    assert any(0 < active < 1 for active in actives), actives


def test_classification_alone_samples_nothing_and_leaves_beta(monkeypatch):
    model = build()

    def refuse(*args, **kwargs):
        raise AssertionError("sampled")

    monkeypatch.setattr(model.sampling, "call", refuse)
    model.compile(classification_weight=0.5)
    with pytest.raises(AssertionError, match="sampled"):
        model.train_step(tensors(batch()))
    model.compile(classification_weight=1.0, weight_decay=0.1)
    values = model.train_step(tensors(batch()))
    assert float(values["loss"]) == float(values["classification_loss"])
    assert float(values["retrieval_loss"]) == 0
    assert model.margin_loss.beta.numpy() == np.float32(1.2)


@pytest.mark.slow
def test_the_draws_depend_on_seed_and_step():
    data = tensors(batch(photos=6))

    def losses(seed, steps=1):
        # nothing moves, so only the draws differ
        model = build(seed=seed, initial_beta=0.5)
        model.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0), classification_weight=0.0)
        found = []
        for _ in range(steps):
            model.reset_metrics()
            found.append(float(model.train_step(data)["retrieval_loss"]))
        return found

    first, second = losses(seed=1, steps=2)
    assert first != second
    assert losses(seed=1) == [first]
    assert losses(seed=2) != [first]
    assert losses(seed=None) == losses(seed=0)


# accumulation


@pytest.mark.slow
def test_parts_give_the_update_of_the_whole_batch():
    found = []
    for accumulation_steps in (1, 4):
        model = build()
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            classification_weight=1.0,
            weight_decay=0.01,
            accumulation_steps=accumulation_steps,
        )
        step = tf.function(model.train_step, autograph=False)
        logs = [step(tensors(batch(seed=seed))) for seed in range(2)][-1]
        found.append(({name: float(value) for name, value in logs.items()}, weights(model)))
    (whole_logs, whole), (parts_logs, in_parts) = found
    assert parts_logs == pytest.approx(whole_logs, abs=1e-5)
    for new, expected in zip(in_parts, whole, strict=True):
        np.testing.assert_allclose(new, expected, atol=1e-5)


@pytest.mark.slow
def test_parts_keep_the_versions_of_a_photo_together(monkeypatch):
    photos = tf.stack([tf.io.encode_png(tf.fill([24, 24, 3], tf.cast(i, tf.uint8))) for i in range(12)])
    split = Split([str(i) for i in range(12)], lambda index: photos[index], lambda: np.zeros(12, "int32"))
    # what tells all kinds of photos apart takes a second to set up
    monkeypatch.setattr(repeated, "decode", lambda contents: tf.io.decode_png(contents, channels=3))
    data = repeated_batches(
        split, augmentations.get("none"), size=20, batch_size=5, versions=VERSIONS, parts=3, steps=1
    )
    model = build()
    model.compile(accumulation_steps=3)
    seen, sample = [], model.sampling.call

    def watch(embeddings, instance_ids, seed=None):
        seen.append((instance_ids.numpy(), seed.numpy()))
        return sample(embeddings, instance_ids, seed=seed)

    monkeypatch.setattr(model.sampling, "call", watch)
    model.train_step(next(iter(data)))
    counts = [collections.Counter(ids.tolist()) for ids, _ in seen]
    assert [sorted(count.values()) for count in counts] == [[2, 3]] * 3
    assert len(set().union(*counts)) == 6
    # no two parts draw alike
    assert len({tuple(seed) for _, seed in seen}) == 3


# Keras's own loops


@pytest.mark.slow
def test_fit_and_evaluate():
    images, labels, instance_ids = batch(photos=12)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, instance_ids)).batch(12)
    model = build(plain_trunk(batch_norm=True))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), weight_decay=1e-4)
    history = model.fit(dataset, epochs=8, verbose=0).history
    assert set(history) == {metric.name for metric in model.metrics}
    assert len(history["loss"]) == 8
    assert history["classification_loss"][-1] < history["classification_loss"][0]

    # the last batch is smaller, and counts by its images
    pairs = tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)
    found = model.evaluate(pairs, verbose=0, return_dict=True)
    logits = model(images)["logits"].numpy()
    expected = cross_entropy(logits, labels)
    assert found == pytest.approx(
        {
            "loss": expected,
            "classification_loss": expected,
            "top1": np.mean(logits.argmax(1) == labels),
            "top5": np.mean([np.sum(row > row[k]) < 5 for row, k in zip(logits, labels, strict=True)]),
        },
        abs=1e-5,
    )


@pytest.mark.slow
def test_compiled_by_xla_the_update_is_the_same():
    found = []
    for jit_compile in (False, True):
        # the trunk is made before `build` sets the seed
        keras.utils.set_random_seed(0)
        model = build(plain_trunk(batch_norm=True))
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            classification_weight=1.0,
            weight_decay=0.01,
            jit_compile=jit_compile,
        )
        step = tf.function(model.train_step, autograph=False)
        logs = [step(tensors(batch(seed=seed))) for seed in range(2)][-1]
        values = {name: float(value) for name, value in logs.items()}
        found.append((values, [variable.numpy() for variable in model.trunk.variables + model.classifier.variables]))
    (plain_values, plain), (xla_values, xla) = found
    assert xla_values == pytest.approx(plain_values, abs=1e-5)
    for new, expected in zip(xla, plain, strict=True):
        np.testing.assert_allclose(new, expected, atol=1e-5)


@pytest.mark.slow
def test_compiled_by_xla_the_joint_loss_trains():
    model = build(initial_beta=0.5)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    before = weights(model)
    values = {name: float(value) for name, value in model.train_step(tensors(batch())).items()}
    assert all(np.isfinite(value) for value in values.values())
    assert 0 < values["active_share"] <= 1
    assert values["retrieval_loss"] > 0
    for new, old in zip(weights(model), before, strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(new, old)


# replicas


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """What two_replicas.py found in a process of its own."""
    path = tmp_path_factory.mktemp("replicas") / "found.npz"
    command = [sys.executable, "-m", "tests.multigrain.two_replicas", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", ["plain", "joint", "memory", "queue", "whitening"])
@pytest.mark.slow
def test_two_replicas_train_like_one(replicas, kind):
    values, trained = replicas[f"{kind}_one_values"], replicas[f"{kind}_one_weights"]
    np.testing.assert_allclose(replicas[f"{kind}_two_values"], values, atol=1e-5)
    np.testing.assert_allclose(replicas[f"{kind}_two_weights"], trained, rtol=1e-5, atol=1e-5)
    # it has learnt something in the meantime; a memory has only been filled, a whitening found
    assert values[-1, 0] < values[0, 0] - 0.03 or kind in ("memory", "queue", "whitening")


@pytest.mark.slow
def test_a_replica_without_images_measures_nothing(replicas):
    found, expected = replicas["short_two"], replicas["short_one"]
    assert np.isfinite(found).all()
    # each image counts as much in evaluation
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.slow
def test_two_replicas_take_one_step_at_a_time(replicas):
    # Keras's own loop fails in the middle of a graph
    assert "steps_per_execution 2 is for one replica" in str(replicas["refusal"])


@pytest.mark.slow
def test_two_replicas_fill_one_queue(replicas):
    assert "a queue must hold a step's 4 photos at least, received 3" in str(replicas["small_queue"])


@pytest.mark.slow
def test_two_replicas_draw_different_negatives(replicas):
    first, second = replicas["draws"]
    assert (first >= 0).all()
    assert (second >= 0).all()
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("name", "sizes"), [("whole_ids", [3, 3]), ("cut_ids", [2, 2, 3, 3])])
@pytest.mark.slow
def test_all_versions_of_a_photo_are_on_one_replica(replicas, name, sizes):
    for step in replicas[name]:
        groups = [collections.Counter(ids.tolist()) for ids in step]
        assert [sorted(group.values()) for group in groups] == [sizes] * 2
        assert not set(groups[0]) & set(groups[1])
