import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.objectives.distilled_multigrain import DistilledMultiGrain
from tests.multigrain.model_test import batch, build, tensors, weights


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def distilled(model, **arguments):
    return DistilledMultiGrain(model.margin_loss, model.sampling, model.twin(), **arguments)


def test_the_classes_are_the_teachers():
    temperature, rate = 3.0, 0.5
    model = build()
    objective = distilled(model, classification_weight=1.0, temperature=temperature)
    objective.start(model)
    # the student has moved on from its teacher
    kernel = model.classifier.kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
    model.compile(keras.optimizers.SGD(rate), objective=objective)
    images, labels, instance_ids = batch()
    before = [variable.numpy() for variable in objective.fixed_variables]
    outputs = model(images)
    student, teacher = outputs["logits"].numpy(), objective.teacher(images)["logits"].numpy()
    assert not np.allclose(student, teacher, atol=0.01)
    bias = model.classifier.bias.numpy()
    values = model.train_step(tensors((images, np.full_like(labels, -1), instance_ids)))
    wanted, found = softmax(teacher / temperature), softmax(student / temperature)
    loss = temperature**2 * np.mean([-np.sum(p * np.log(q)) for p, q in zip(wanted, found, strict=True)])
    assert float(values["loss"]) == float(values["classification_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(values["top1"]) == pytest.approx(np.mean(student.argmax(1) == teacher.argmax(1)))
    # of the bias the gradient is T times the difference of the softened answers
    expected = bias - rate * temperature * (found - wanted).mean(axis=0)
    np.testing.assert_allclose(model.classifier.bias, expected, atol=1e-6)
    for variable, value in zip(objective.fixed_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert model.objective_variables == []


def test_beside_it_stands_the_margin_loss():
    model = build(initial_beta=0.3)
    objective = distilled(model, classification_weight=0.25)
    objective.start(model)
    model.compile(keras.optimizers.SGD(0.1), objective=objective)
    images, labels, instance_ids = batch()
    before, beta = weights(model), float(model.margin_loss.beta)
    values = {name: float(value) for name, value in model.train_step(tensors((images, labels, instance_ids))).items()}
    assert values["retrieval_loss"] > 0
    expected = 0.25 * values["classification_loss"] + 0.75 * values["retrieval_loss"]
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    # the student starts where the teacher is
    assert values["top1"] == 1
    assert float(model.margin_loss.beta) != beta
    assert any(not np.array_equal(new, old) for new, old in zip(weights(model), before, strict=True))
    assert set(values) == {metric.name for metric in objective.metrics}


def test_a_teacher_pools_as_it_was_trained():
    model = build(pooling_exponent=3.0)
    teacher = model.twin(pooling_exponent=1.0)
    teacher.take_weights(model)
    images = tf.constant(batch()[0])
    for name, value in teacher(images).items():
        np.testing.assert_allclose(value, model(images, p_star=1.0)[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"temperature": 0.0}, "temperature.*0"), ({"classification_weight": 1.5}, "classification_weight.*1.5")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        distilled(build(), **arguments)
