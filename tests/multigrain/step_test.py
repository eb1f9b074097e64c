"""The step knows no method: an objective with a memory, a projector and a group of its own goes through it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.metric import TrainingMetric
from mg_keras.objectives.classification import Classification
from mg_keras.objectives.objective import LOSSES, Objective, ParameterGroup
from tests.multigrain.model_test import CLASSES, batch, build, cross_entropy, tensors, weights


class Toy(Objective):
    """loss = scale * mean(projector . embedding) + scale^2, and a memory of the last part's mean embedding."""

    metrics = tuple(TrainingMetric(name, "", name=name, panel=LOSSES, curve=name) for name in ("loss", "parts"))

    def __init__(self):
        super().__init__()
        self.projector = self.add_weight(shape=(8,), initializer="ones", name="projector")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.memory = self.add_weight(shape=(8,), initializer="zeros", name="memory", trainable=False)

    def parameter_groups(self, network):
        return (ParameterGroup("scale", [self.scale], 0.25, "scale_rate"),)

    def loss(self, network, batch, seed):
        embedding = network(batch.images, training=True)["embedding"]
        loss = self.scale * tf.reduce_mean(tf.linalg.matvec(embedding, self.projector.value)) + self.scale**2
        return loss, {"loss": loss}, tf.reduce_mean(embedding, axis=0)

    def after_step(self, network, carries):
        self.memory.assign(carries[-1])
        return {"parts": tf.constant(float(len(carries)))}


@pytest.mark.parametrize(("parts", "jit_compile"), [(1, False), (2, True)])
def test_an_objective_with_variables_of_its_own(parts, jit_compile):
    model, objective = build(), Toy()
    decay, rate = 0.1, 0.5
    model.compile(
        keras.optimizers.SGD(rate),
        objective=objective,
        weight_decay=decay,
        accumulation_steps=parts,
        jit_compile=jit_compile,
    )
    images, labels, instance_ids = batch()
    embedding = model(images)["embedding"].numpy()
    values = model.train_step(tensors((images, labels, instance_ids)))
    mean = embedding.mean(axis=0)
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {"loss": mean.sum() + 1, "parts": parts}, rel=1e-5
    )
    # the projector has the rate and the decay of the weights, the group the rate that it asks for and no decay
    np.testing.assert_allclose(objective.projector, 1 - rate * (mean + decay), rtol=1e-5)
    np.testing.assert_allclose(objective.scale, 1 - 0.25 * (mean.sum() + 2), rtol=1e-5)
    np.testing.assert_allclose(objective.memory, embedding[-len(images) // parts :].mean(axis=0), rtol=1e-5)
    names = [variable.name for variable in model.objective_variables]
    assert sorted(names) == ["memory", "projector", "scale"]
    assert [metric.name for metric in model.metrics] == ["loss", "parts"]


def test_an_objective_of_other_metrics_is_evaluated():
    images, labels, instance_ids = batch()
    model = build()
    model.compile(keras.optimizers.SGD(0.01), objective=Toy())
    dataset = tf.data.Dataset.from_tensors((images, labels, instance_ids))
    history = model.fit(dataset, validation_data=(images, labels), epochs=2, verbose=0).history
    validated = {"val_loss", "val_classification_loss", "val_top1", "val_top5"}
    assert set(history) == {"loss", "parts", *validated}
    logits = model(images)["logits"].numpy()
    # begun anew each time: no mean of all evaluations
    found = model.evaluate(images, labels, batch_size=5, verbose=0, return_dict=True)
    expected = cross_entropy(logits, labels)
    assert found["loss"] == pytest.approx(expected, rel=1e-4) == found["classification_loss"]
    assert found["top1"] == pytest.approx(np.mean(logits.argmax(1) == labels)) == history["val_top1"][-1]
    # what a checkpoint holds, and a run shows
    assert [metric.name for metric in model.metrics] == ["loss", "parts"]


def test_what_a_subclass_lacks_is_named():
    class Without(Objective):
        pass

    with pytest.raises(TypeError, match=r"Without .*\bloss"):
        Without()
    with pytest.raises(NotImplementedError, match="Toy has no from_settings"):
        Toy.from_settings(None, None)


def test_no_optimizer_for_a_group_that_is_not_there():
    with pytest.raises(ValueError, match="groups are scale, received an optimizer of beta"):
        build().compile(objective=Toy(), beta_optimizer="sgd")
    with pytest.raises(ValueError, match="groups are none, received an optimizer of beta"):
        build().compile(objective=Classification(), beta_optimizer="sgd")


# classification


def test_classification_is_the_joint_loss_with_nothing_sampled():
    found = []
    for training in ({"classification_weight": 1.0}, {"objective": Classification()}):
        model = build(versions=1)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), weight_decay=0.01, **training)
        values = model.train_step(tensors(batch()[:2]))
        found.append((weights(model), float(values["loss"]), set(values)))
    (joint, loss, _), (alone, same_loss, names) = found
    assert loss == same_loss
    assert names == {"loss", "classification_loss", "top1", "top5"}
    for one, other in zip(joint, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_labels_are_shares_of_the_classes():
    images, labels, _ = batch()
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(CLASSES), len(labels)).astype("float32")
    model = build()
    model.compile(keras.optimizers.SGD(0.0), objective=Classification(), class_weights=[0, 1, 2, 3, 4, 5])
    logits = model(images)["logits"].numpy().astype(np.float64)
    values = model.train_step(tensors((images, shares)))
    factors = [sum(share * k for k, share in enumerate(row)) for row in shares]
    # a row's cross-entropy to shares is the mean of those to its classes
    expected = [
        factor * sum(share * cross_entropy(row[None], [k]) for k, share in enumerate(row_shares))
        for factor, row, row_shares in zip(factors, logits, shares, strict=True)
    ]
    assert float(values["classification_loss"]) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(values["top1"]) == pytest.approx(np.mean(logits.argmax(1) == shares.argmax(1)))
    with pytest.raises(ValueError, match=r"\[B, 6\], received shape \(12, 5\)"):
        model.train_step(tensors((images, shares[:, :5])))
    model.compile()
    with pytest.raises(ValueError, match="labels must be class numbers"):
        model.train_step(tensors((images, shares, labels)))
