"""Trains on one and on two logical CPU devices and writes what came out; run by multigrain_test.py.

Its own process: devices can be divided only before TensorFlow first uses them. All of it under one strategy: a second
MirroredStrategy in a process takes the numbers of the first one's collective operations, and they hang or fail.

    python -m tests.multigrain.two_replicas OUT.npz
"""

import functools
import sys

import keras
import numpy as np
import tensorflow as tf

from mg_keras import MultiGrain
from mg_keras.data import augmentations, repeated
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import Split
from mg_keras.layers import MemoryBank
from mg_keras.objectives.classification import Classification
from mg_keras.objectives.distilled_copies import DistilledCopies
from mg_keras.objectives.grafit import Grafit
from mg_keras.training.loop import make_strategy
from tests.imports import run_graphs_as_written

REPLICAS, STEPS, VERSIONS, CLASSES = 2, 4, 3, 4
PER_REPLICA = 6


def grafit(model, **memory):
    """An objective with a memory, which a step of all replicas fills; its target begins as the model."""
    keras.utils.set_random_seed(1)
    bank = MemoryBank(dimensions=4, **memory)
    objective = Grafit(model, bank, VERSIONS, temperature=0.5, predictor_width=5, target_momentum=0.5)
    objective.start(model)
    return objective


def copies(model):
    """An objective with a whitening that follows the embeddings of all replicas."""
    # a low temperature would make much of the last bits
    settings = {"contrast_temperature": 0.5, "spread_weight": 0.1, "contrast_dimensions": 4}
    objective = DistilledCopies(model.margin_loss, model.sampling, model.twin(), **settings)
    objective.start(model)
    return objective


def build(strategy, objective=None, **training):
    """The same compiled model whatever the strategy.

    Its trunk has no batch norm: each replica takes statistics of its own images, so that two replicas and one differ.
    """
    with strategy.scope():
        keras.utils.set_random_seed(0)
        features = images = keras.Input((None, None, 3))
        for filters in (6, 8):
            features = keras.layers.Conv2D(filters, 3, strides=2, activation="relu")(features)
        model = MultiGrain(keras.Model(images, features), CLASSES, versions=VERSIONS, seed=5, trainable_exponent=True)
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            None if objective else keras.optimizers.SGD(0.1, momentum=0.9),
            weight_decay=0.01,
            trunk_rate=0.5,
            class_weights=[0.5, 1.0, 2.0, 1.5],
            objective=objective and objective(model),
            **training,
        )
    return model


def batches():
    """One step's batch after the other, [STEPS, REPLICAS * PER_REPLICA, ...] each part."""
    rng = np.random.default_rng(3)
    size = REPLICAS * PER_REPLICA
    images = rng.uniform(0, 255, (STEPS, size, 20, 20, 3)).astype("float32")
    instances = np.arange(STEPS * size // VERSIONS, dtype="int32").repeat(VERSIONS)
    weights = rng.uniform(0.5, 1.5, (STEPS, size)).astype("float32")
    return images, (instances % CLASSES).reshape(STEPS, size), instances.reshape(STEPS, size), weights


def train(strategy, model):
    """The metrics of each step [STEPS, 7], and all weights afterwards, as one vector."""
    replicas = strategy.num_replicas_in_sync
    parts = [value.reshape(STEPS * replicas, -1, *value.shape[2:]) for value in batches()]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(parts))
    data = iter(dataset if replicas == 1 else strategy.distribute_datasets_from_function(lambda _: dataset))

    @tf.function(autograph=False)
    def step(batch):
        strategy.run(model.train_step, args=(batch,))

    values = []
    for _ in range(STEPS):
        step(next(data))
        values.append([float(metric.result()) for metric in model.metrics])
        for metric in model.metrics:
            metric.reset_state()
    parts = (model.trunk, model.pool, model.classifier, model.margin_loss)
    # but for the predictor's moving statistics, which nothing reads
    beside = [w for w in model.objective_variables if "moving_" not in w.path]
    trained = [*(w for part in parts for w in part.weights), *beside]
    return np.array(values), np.concatenate([np.ravel(w.numpy()) for w in trained])


def draws(strategy, model):
    """Each replica's negatives for the same embeddings."""
    embeddings = tf.math.l2_normalize(tf.random.stateless_normal((12, 8), [1, 2]), axis=-1)
    ids = tf.repeat(tf.range(4), VERSIONS)

    @tf.function(autograph=False)
    def draw():
        # what train_step draws with
        return strategy.run(lambda: model.sampling(embeddings, ids, seed=model.step.seed_of(0))[2])

    return np.stack([value.numpy() for value in strategy.experimental_local_results(draw())])


def distributed_ids(strategy, batch_size, parts):
    """The instance ids that each replica gets from a distributed stream: [steps, replicas, parts * batch_size]."""
    photos = tf.stack([tf.io.encode_png(tf.fill([24, 24, 3], tf.cast(i, tf.uint8))) for i in range(40)])
    split = Split([str(i) for i in range(40)], lambda index: photos[index], lambda: np.zeros(40, "int32"))

    def feed(_):
        return repeated_batches(
            split,
            augmentations.get("none"),
            size=16,
            batch_size=batch_size,
            versions=VERSIONS,
            parts=parts,
            replicas=REPLICAS,
            steps=5,
        )

    # what tells all kinds of photos apart takes a second to set up
    repeated.decode = lambda contents: tf.io.decode_png(contents, channels=3)
    data = iter(strategy.distribute_datasets_from_function(feed))
    return np.stack([[v.numpy() for v in strategy.experimental_local_results(next(data)[2])] for _ in range(5)])


def small_queue(strategy):
    """What a step says whose replicas overflow the queue together."""
    try:
        train(strategy, build(strategy, functools.partial(grafit, size=3, queue=True)))
    except ValueError as error:
        return str(error)
    return ""


def short_last_batch(strategy):
    """[fit, evaluate] x [loss, top1] of images whose last batch leaves a replica without one."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        # convolutions of no images at all fail on a CPU with oneDNN
        features = keras.layers.AveragePooling2D(4)(images := keras.Input((None, None, 3)))
        model = MultiGrain(keras.Model(images, keras.layers.Dense(8)(features)), CLASSES)
        model.compile(keras.optimizers.SGD(0.0), objective=Classification())
    images, labels = (part[:2].reshape(-1, *part.shape[2:])[: 4 * REPLICAS + 1] for part in batches()[:2])
    options = {"batch_size": 2 * REPLICAS, "verbose": 0}
    fit = {name: values[-1] for name, values in model.fit(images, labels, shuffle=False, **options).history.items()}
    evaluated = model.evaluate(images, labels, return_dict=True, **options)
    return np.array([[values["loss"], values["top1"]] for values in (fit, evaluated)])


def refusal(strategy):
    """What compile says to several steps at a time."""
    try:
        build(strategy, steps_per_execution=2)
    except ValueError as error:
        return str(error)
    return ""


def main(path):
    """Everything that multigrain_test.py asserts on."""
    (device,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)
    two, one = make_strategy("mirrored"), make_strategy("single")
    assert two.num_replicas_in_sync == REPLICAS
    found = {}
    for name, strategy, training in (
        ("plain_one", one, {"classification_weight": 1.0}),
        ("plain_two", two, {"classification_weight": 1.0}),
        # two parts after each other draw what two replicas do beside each other
        ("joint_one", one, {"classification_weight": 0.5, "accumulation_steps": REPLICAS}),
        ("joint_two", two, {"classification_weight": 0.5}),
        ("memory_one", one, {"objective": functools.partial(grafit, size=16), "accumulation_steps": REPLICAS}),
        ("memory_two", two, {"objective": functools.partial(grafit, size=16)}),
        ("queue_one", one, {"objective": functools.partial(grafit, size=7, queue=True), "accumulation_steps": 2}),
        ("queue_two", two, {"objective": functools.partial(grafit, size=7, queue=True)}),
        ("whitening_one", one, {"objective": copies, "accumulation_steps": REPLICAS}),
        ("whitening_two", two, {"objective": copies}),
    ):
        model = build(strategy, **training)
        found[name + "_values"], found[name + "_weights"] = train(strategy, model)
        if name == "joint_two":
            found["draws"] = draws(strategy, model)
    found["whole_ids"] = distributed_ids(two, batch_size=6, parts=1)
    found["cut_ids"] = distributed_ids(two, batch_size=5, parts=2)
    found["short_one"], found["short_two"] = short_last_batch(one), short_last_batch(two)
    found["refusal"], found["small_queue"] = refusal(two), small_queue(two)
    np.savez(path, **found)


if __name__ == "__main__":
    run_graphs_as_written()
    main(sys.argv[1])
