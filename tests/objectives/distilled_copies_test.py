import keras
import numpy as np
import pytest

from mg_keras import objectives
from mg_keras.errors import UserError
from mg_keras.objectives.distilled_copies import DistilledCopies
from mg_keras.runs.config import TrainConfig
from tests.layers.contrast_test import slow_info_nce, slow_koleo
from tests.multigrain.model_test import batch, build, tensors, weights


def test_the_loss_is_the_weighted_sum_of_its_terms():
    model = build()
    objective = DistilledCopies(
        model.margin_loss, model.sampling, model.twin(), 0.25, contrast_temperature=0.2, spread_weight=3.0
    )
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, instance_ids = batch()
    embeddings = model(images)["embedding"].numpy()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    before, beta = weights(model), float(model.margin_loss.beta)
    found = model.train_step(tensors((images, np.full_like(labels, -1), instance_ids)))
    values = {name: float(value) for name, value in found.items()}
    assert values["info_nce"] == pytest.approx(slow_info_nce(unit, instance_ids, 0.2), rel=1e-3)
    assert values["koleo"] == pytest.approx(slow_koleo(unit, instance_ids), rel=1e-2)
    expected = 0.25 * values["classification_loss"] + 0.75 * (values["info_nce"] + 3 * values["koleo"])
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    assert values["top1"] == 1
    assert any(np.abs(new - old).max() > 0 for new, old in zip(weights(model), before, strict=True))
    # nothing learns it
    assert float(model.margin_loss.beta) == beta
    assert {metric.name for metric in objective.metrics} == set(values)


def test_a_run_has_it_by_name():
    config = TrainConfig(objective="distilled_copies", init="imagenet", contrast_temperature=0.1, spread_weight=0.5)
    objective = objectives.get("distilled_copies").from_settings(build(), config)
    assert (objective.info_nce.temperature, objective.spread_weight) == (0.1, 0.5)
    with pytest.raises(UserError, match="objective distilled_copies learns from the network it starts from"):
        TrainConfig(objective="distilled_copies")


def test_more_dimensions_than_an_embedding_has_are_refused():
    model = build()
    most = model.embedding_dimension + 1
    DistilledCopies(model.margin_loss, model.sampling, model.twin(), contrast_dimensions=most)
    with pytest.raises(UserError, match=f"contrast_dimensions must be at most {most}, .* received {most + 1}"):
        DistilledCopies(model.margin_loss, model.sampling, model.twin(), contrast_dimensions=most + 1)


def test_where_nothing_is_compared_no_whitening_moves():
    """With lambda 1, as one of several values in an ablation, batches need no instance ids."""
    model = build()
    objective = DistilledCopies(model.margin_loss, model.sampling, model.twin(), 1.0, contrast_dimensions=3)
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, instance_ids = batch()
    found = model.train_step(tensors((images, np.full_like(labels, -1), instance_ids)))
    assert float(found["loss"]) == pytest.approx(float(found["classification_loss"]))
    assert int(objective.whitening.steps) == 0


def test_it_compares_through_a_whitening_that_each_step_moves():
    model = build()
    objective = DistilledCopies(model.margin_loss, model.sampling, model.twin(), contrast_dimensions=3)
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, instance_ids = batch()
    embeddings = model(images)["embedding"].numpy()
    unit = objective.whitening(embeddings).numpy()
    assert unit.shape == (len(images), 3)
    found = model.train_step(tensors((images, np.full_like(labels, -1), instance_ids)))
    assert float(found["info_nce"]) == pytest.approx(slow_info_nce(unit, instance_ids, 0.05), rel=1e-3)
    assert int(objective.whitening.steps) == 1
    rows = np.concatenate([embeddings, np.ones([len(images), 1])], axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    # the embeddings that the step saw, of before its update
    np.testing.assert_allclose(objective.whitening.averages[0], rows.mean(axis=0), atol=1e-5)
    # a run saves them with the objective, and no step's gradient changes them
    saved = {variable.path.split("/")[-1] for variable in model.objective_variables}
    assert {"mean", "total", "within", "projection", "steps"} <= saved
    assert not objective.whitening.trainable_weights
