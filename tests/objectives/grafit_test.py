"""Grafit and its kin: one step of each against the equations, written out over photos."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras import objectives
from mg_keras.errors import UserError
from mg_keras.layers import MemoryBank
from mg_keras.models.trunks import freeze_statistics
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.grafit import SNCA, Grafit, GrafitFC
from mg_keras.objectives.supcon_info_nce import SupConInfoNCE
from mg_keras.runs.config import TrainConfig
from tests.layers.contrast_test import slow_info_nce
from tests.layers.grafit_test import (
    slow_instance_loss,
    slow_memory,
    slow_nearest_neighbor_loss,
    slow_supervised_contrast,
    unit,
)
from tests.multigrain.model_test import (
    VERSIONS,
    batch,
    build,
    cross_entropy,
    plain_trunk,
    tensors,
    tiny_resnet,
    weights,
)

PHOTOS, DIMENSIONS, MOMENTUM = 100, 4, 0.75


def full_memory(seed=0):
    rng = np.random.default_rng(seed)
    memory = MemoryBank(PHOTOS, DIMENSIONS, name="memory")
    memory.embeddings.assign(unit(rng.normal(size=(PHOTOS, DIMENSIONS))))
    memory.labels.assign(rng.integers(0, 6, PHOTOS))
    return memory


def predicted(objective, rows):
    """q by its definition: linear, batch statistics, ReLU, linear."""
    hidden, scale, offset, _, _, kernel, bias = (w.numpy() for w in objective.instances.predictor.weights)
    middle = rows @ hidden
    middle = (middle - middle.mean(axis=0)) / np.sqrt(middle.var(axis=0) + 1e-3) * scale + offset
    return np.maximum(middle, 0) @ kernel + bias


@pytest.mark.parametrize(("with_xla", "batch_norm"), [(False, True), (True, False)])
@pytest.mark.slow
def test_a_step_of_grafit(with_xla, batch_norm):
    model = build(plain_trunk(batch_norm), trainable_exponent=True)
    objective = Grafit(model, full_memory(), VERSIONS, 0.2, 5, MOMENTUM, target_versions=VERSIONS)
    # the target begins as the network is when training starts
    model.classifier.bias.assign_add(tf.ones(6))
    model.trunk.weights[0].assign_add(0.01 * tf.ones_like(model.trunk.weights[0]))
    model.pool.pooling_exponent.assign(2.0)
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective, jit_compile=with_xla)
    images, labels, ids = batch()
    kernel, bias = (w.numpy() for w in objective.projector.weights)
    # the network is asked for what it gives in training: with the statistics of the batch
    maps = model.trunk(model.normalize(images), training=True)
    embeddings = model.pooled([maps]).numpy()
    model.trunk.set_weights([w.numpy() for w in objective.instances.target.trunk.weights])
    targets = model(images)["embedding"].numpy() @ kernel + bias
    projections = embeddings @ kernel + bias
    memory, memory_labels = objective.memory.embeddings.numpy(), objective.memory.labels.numpy()
    first = slice(None, None, VERSIONS)
    neighbors = np.mean(
        slow_nearest_neighbor_loss(
            projections[first], labels[first], ids[first], memory, memory_labels, range(PHOTOS), 0.2
        )
    )
    instances = slow_instance_loss(predicted(objective, projections), targets, ids)
    logits = embeddings @ model.classifier.kernel.numpy() + model.classifier.bias.numpy()
    before = [w.numpy() for w in model.trunk.weights], weights(model)

    values = {name: float(value) for name, value in model.train_step(tensors((images, labels, ids))).items()}
    assert values["neighbor_loss"] == pytest.approx(neighbors, abs=1e-4)
    assert values["instance_loss"] == pytest.approx(instances, abs=1e-4)
    assert values["loss"] == pytest.approx(neighbors + instances, abs=1e-4)
    assert values["classification_loss"] == pytest.approx(cross_entropy(logits, labels), abs=1e-4)
    assert {metric.name for metric in objective.metrics} == set(values)
    expected, expected_labels = slow_memory(memory, memory_labels, ids[first], labels[first], projections[first])
    np.testing.assert_allclose(objective.memory.embeddings, expected, atol=1e-5)
    np.testing.assert_array_equal(objective.memory.labels, expected_labels)
    for target, old, new in zip(objective.instances.target.trunk.weights, before[0], model.trunk.weights, strict=True):
        np.testing.assert_allclose(target, MOMENTUM * old + (1 - MOMENTUM) * new.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        objective.instances.target_projector.kernel,
        MOMENTUM * kernel + (1 - MOMENTUM) * objective.projector.kernel.numpy(),
        atol=1e-6,
    )
    assert all(np.abs(new - old).max() > 0 for new, old in zip(weights(model), before[1], strict=True))
    stored = {variable.path for variable in model.objective_variables}
    assert {path.rsplit("/", 2)[-2] for path in stored} >= {
        "memory",
        "projector",
        "target_projector",
        "normalization",
    }


def test_the_online_classifier_learns_and_changes_no_descriptor():
    found = []
    for shift in (0.0, 1.0):
        model = build()
        objective = SNCA(model, full_memory(), VERSIONS)
        model.compile(keras.optimizers.SGD(0.1), objective=objective)
        model.classifier.kernel.assign_add(shift * tf.random.stateless_normal(model.classifier.kernel.shape, [1, 2]))
        images, labels, ids = batch()
        before = model.classifier.kernel.numpy()
        found.append(model.train_step(tensors((images, labels, ids))))
        assert np.abs(model.classifier.kernel.numpy() - before).max() > 0
        found.append([w.numpy() for w in model.trunk.weights])
    assert float(found[0]["loss"]) == float(found[2]["loss"]) == float(found[0]["neighbor_loss"])
    for one, other in zip(found[1], found[3], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("target_versions", "count", "frozen"), [(None, 2, 0), (1, 1, 0), (7, 3, 0), (None, 2, 2)])
def test_grafit_fc_is_cross_entropy_and_instances(target_versions, count, frozen):
    model = build(tiny_resnet() if frozen else None)
    freeze_statistics(model.trunk)
    model.freeze_stages(frozen)
    objective = GrafitFC(model, DIMENSIONS, 5, MOMENTUM, VERSIONS, target_versions)
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, ids = batch()
    outputs = model(images)
    projections = objective.projector(outputs["embedding"]).numpy()
    # of half of three versions, rounded up, where no number is given
    known = [row for row in range(len(ids)) if row % VERSIONS < count]
    instances = slow_instance_loss(predicted(objective, projections), projections, ids, known)
    values = model.train_step(tensors((images, labels, ids)))
    assert float(values["instance_loss"]) == pytest.approx(instances, abs=1e-4)
    assert float(values["loss"]) == pytest.approx(cross_entropy(outputs["logits"], labels) + instances, abs=1e-4)


def test_stages_are_frozen_before_it_is_made():
    model = build(tiny_resnet())
    objective = GrafitFC(model, DIMENSIONS, 5, MOMENTUM, VERSIONS)
    model.freeze_stages(2)
    with pytest.raises(ValueError, match="0 were then, 2 are now"):
        objective.start(model)


def test_the_target_takes_the_maps_of_frozen_stages():
    """They are computed once, and what comes after them by the target's own weights."""
    model = build(tiny_resnet())
    model.freeze_stages(2)
    objective = Grafit(model, full_memory(), VERSIONS, 0.2, 5, MOMENTUM, target_versions=VERSIONS)
    objective.start(model)
    target = objective.instances.target
    for variable in target.trunk.get_layer("stack1_block0_2_conv").variables:
        variable.assign_add(0.1 * tf.ones_like(variable))
    images, labels, ids = tensors(batch())
    frozen = model.frozen_maps(images)
    projections = objective.projector(model(images)["embedding"])
    kernel, bias = (w.numpy() for w in objective.instances.target_projector.weights)
    targets = target(images)["embedding"].numpy() @ kernel + bias
    found = objective.instances.loss(Batch(images, labels, ids), frozen, projections)
    expected = slow_instance_loss(predicted(objective, projections.numpy()), targets, ids.numpy())
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert not np.allclose(targets, objective.projector(model(images)["embedding"]), atol=1e-3)


def test_photos_are_weighed_in_the_neighbor_loss_too():
    model, of_class = build(), np.float32([0.5, 1, 2, 0, 3, 1.5])
    objective = SNCA(model, full_memory(), VERSIONS, 0.2)
    model.compile(keras.optimizers.SGD(0.1), objective=objective, class_weights=of_class)
    images, labels, ids = (value[::VERSIONS] for value in batch())
    projections = objective.projector(model(images)["embedding"]).numpy()
    memory = objective.memory.embeddings.numpy(), objective.memory.labels.numpy(), range(PHOTOS)
    losses = slow_nearest_neighbor_loss(projections, labels, ids, *memory, 0.2)
    values = model.train_step(tensors(batch()))
    assert float(values["neighbor_loss"]) == pytest.approx(np.mean(of_class[labels] * losses), rel=1e-3)


def test_similarities_are_of_float32_whatever_the_network_computes_in():
    """At the paper's temperature, over a queue of float16 that has the photos themselves among others."""
    model = build(tiny_resnet(dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    memory, rng = MemoryBank(12, DIMENSIONS, queue=True, dtype="float16"), np.random.default_rng(2)
    images, labels, ids = batch()
    memory.update(np.r_[ids[::VERSIONS], np.arange(200, 208)], np.arange(12) % 2, rng.normal(size=(12, DIMENSIONS)))
    objective = SNCA(model, memory, VERSIONS, 0.05)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    kernel, bias = (w.numpy() for w in objective.projection)
    projections = (model(images, training=True)["embedding"].numpy() @ kernel + bias)[::VERSIONS]
    entries = [value.numpy() for value in (memory.embeddings, memory.labels, memory.ids)]
    first = labels[::VERSIONS] % 2, ids[::VERSIONS]
    expected = slow_nearest_neighbor_loss(projections, *first, *entries, 0.05)
    values = model.train_step(tensors((images, labels % 2, ids)))
    assert float(values["neighbor_loss"]) == pytest.approx(np.mean(expected), rel=1e-3)
    # which took the places of the oldest
    assert memory.ids.numpy().tolist() == [*ids[::VERSIONS], *range(200, 208)]
    np.testing.assert_allclose(memory.embeddings[:4], unit(projections), atol=1e-3)


def test_instance_ids_are_the_numbers_of_photos():
    model = build()
    model.compile(objective=SNCA(model, full_memory(), VERSIONS))
    images, labels, ids = tensors(batch())
    with pytest.raises(ValueError, match=r"a memory knows photos by numbers: .* integers, received strings"):
        model.train_step((images, labels, tf.strings.as_string(ids)))
    with pytest.raises(ValueError, match=r"^SNCA needs instance_ids, received 2 parts: give .* weights\)$"):
        model.train_step((images, labels))


def test_supervised_contrast_and_info_nce():
    model = build()
    objective = SupConInfoNCE(model, DIMENSIONS, 0.25, 0.2)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, ids = batch()
    rows = unit(objective.projector(model(images)["embedding"]).numpy())
    values = {name: float(value) for name, value in model.train_step(tensors((images, labels % 2, ids))).items()}
    assert values["supervised_contrast"] == pytest.approx(slow_supervised_contrast(rows, labels % 2, 0.2), rel=1e-3)
    assert values["info_nce"] == pytest.approx(slow_info_nce(rows, ids, 0.2), rel=1e-3)
    expected = 0.25 * values["supervised_contrast"] + 0.75 * values["info_nce"]
    assert values["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_is_saved_without_it(tmp_path):
    model = build()
    model.compile(objective=SNCA(model, full_memory(), VERSIONS))
    with pytest.raises(ValueError, match=r"not saved with the objective SNCA: take save_weights, or compile\(\) it"):
        model.save(tmp_path / "model.keras")
    model.compile()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.trunk.weights[0], model.trunk.weights[0])


def test_versions_are_those_of_the_network():
    model = build()
    with pytest.raises(ValueError, match=f"versions must be the network's, {model.versions}, received"):
        SNCA(model, MemoryBank(30, 6), versions=model.versions + 1)


@pytest.mark.parametrize("name", ["grafit", "grafit_fc", "snca", "supcon_info_nce"])
def test_a_run_has_them_by_name(name):
    config = TrainConfig(
        objective=name, projection_dimensions=6, neighbor_temperature=0.1, memory_dtype="float16", predictor_width=7
    )
    model = build()
    objective = objectives.get(name).from_settings(model, config, 30)
    assert objective.projector.kernel.shape == (model.embedding_dimension, 6)
    assert objective.projection[0] is objective.projector.kernel
    assert objective.needs_pairs == objectives.needs_pairs(name, config.classification_weight) == (name != "snca")
    if name in ("grafit", "snca"):
        assert objective.memory.embeddings.shape == (30, 6)
        assert objective.memory.embeddings.dtype == "float16"
        queue = objectives.get(name).from_settings(model, TrainConfig(objective=name, memory_size=9), 30)
        assert queue.memory.queue
        assert queue.memory.size == 9
        with pytest.raises(ValueError, match="needs the number of photos, received 0"):
            objectives.get(name).from_settings(model, config)


def test_what_does_not_go_together_is_refused():
    assert TrainConfig(objective="snca", versions=1).versions == 1
    with pytest.raises(UserError, match=r"versions 1 gives no positive pairs: take at least 2$"):
        TrainConfig(objective="grafit", versions=1)
    model = build(versions=1)
    with pytest.raises(ValueError, match="GrafitFC needs positive pairs, that is versions >= 2, received versions=1"):
        model.compile(objective=GrafitFC(model, 4, 5, versions=1))
    with pytest.raises(ValueError, match=r"target_momentum must lie in \[0, 1\), received 1"):
        GrafitFC(model, 4, 5, 1, versions=1)
    with pytest.raises(ValueError, match="target_versions must be at least 1, received 0"):
        GrafitFC(model, 4, 5, versions=1, target_versions=0)
    with pytest.raises(ValueError, match=r"classification_weight must lie in \[0, 1\], received 2"):
        SupConInfoNCE(model, 4, 2)
    # a queue that a step would overflow
    small = build()
    small.compile(objective=SNCA(small, MemoryBank(3, 4, queue=True), VERSIONS))
    with pytest.raises(ValueError, match="a queue must hold a step's 4 photos at least, received 3"):
        small.train_step(tensors(batch()))
