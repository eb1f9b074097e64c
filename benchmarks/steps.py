"""What the benchmarks of training share: a step as a contestant, and the table of several."""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.timing import interleaved_times, print_ratios, ratio, timed, work_clock
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model, build_objective


def made_up_batch(config: TrainConfig, num_classes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(images, labels, instance ids) of a step of one replica: noise, and photos numbered from 0."""
    side = config.resolution
    images = np.random.default_rng(0).integers(0, 256, (config.batch_size, side, side, 3), dtype=np.uint8)
    instance_ids = np.arange(config.batch_size, dtype=np.int32) // config.versions
    return tuple(tf.constant(value) for value in (images, instance_ids % num_classes, instance_ids))


def trainer(config: TrainConfig, batch: tuple[tf.Tensor, tf.Tensor, tf.Tensor], num_classes: int, photos: int = 10_000):
    """A contestant: a training step of a new model as a run of this configuration takes it, always on the same batch.

    Args:
        config: `TrainConfig`; nothing is read, `init` is of no account.
        batch: of `made_up_batch`.
        num_classes: of the model.
        photos: how many there are to train on, by which a memory is sized.

    Returns:
        A function without arguments -> seconds, on `timing.work_clock`.
    """
    model = build_model(config, num_classes)
    model.freeze_stages(config.frozen_stages)
    objective = build_objective(config, model, photos)
    objective.start(model)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=config.momentum),
        objective=objective,
        weight_decay=config.weight_decay,
        jit_compile=config.jit_compile,
    )
    step = tf.function(model.train_step)
    return timed(lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), step(batch)), work_clock()[0])


def compare(steps, base, aims, config, repeats):
    """Times steps in turns; prints their table, and the ratios that are aimed for.

    Args:
        steps: {name: contestant of `trainer`}.
        base: name of the step that the others are divided by.
        aims: {name: the largest ratio that is aimed for}.
        config: `TrainConfig`, what all steps have in common.
        repeats: int, timed steps of each.
    """
    times = interleaved_times(steps, repeats)
    frozen = f", {config.frozen_stages} stages frozen" if config.frozen_stages else ""
    title = (
        f"A training step, {config.trunk} at {config.resolution} px{frozen}, batch {config.batch_size}, "
        f"m = {config.versions}, {config.dtype}{', XLA' * config.jit_compile}; {work_clock()[1]}"
    )
    print_ratios(title, "step", times, base, repeats)
    for name, most in aims.items():
        print(f"{name} step / plain cross-entropy: {ratio(times, name, base):.3f} (to be at most {most:g})")
    print()
