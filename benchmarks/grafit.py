"""Times what Grafit adds to a step, and its memory against the matrix product that it can't do without.

    python -m benchmarks.grafit

* `step`: the steps of Grafit and its kin against plain cross-entropy on the same trunk and the same batches, with as
  many versions of a photo: ResNet-18 at 96 px, batches of 64, four versions, a memory of 10,000 photos.
* `memory`: the nearest-neighbour loss and its gradient for 128 photos over a memory of 1.2 million embeddings of 256
  values in float16, and the memory's update, against the products of float32 matrices of that size: queries times
  memory, and, as a gradient needs it, their result times the memory again.

`--part step` or `--part memory` runs one alone. Contestants take turns; the tables give medians of the
processor time (`benchmarks.timing.work_clock`).
"""

import dataclasses

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import interleaved_times, machine, print_ratios, timed, work_clock
from mg_keras.errors import UserError
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow

NUM_CLASSES, DIMENSIONS = 20, 256
ALL = "grafit, targets of all versions"
OBJECTIVES = ("classification", "snca", "grafit_fc", "grafit", ALL)


def step_part(options):
    """Prints the table of whole training steps."""
    from benchmarks.steps import compare, made_up_batch, trainer
    from mg_keras.runs.config import TrainConfig

    config = TrainConfig(
        trunk=options.trunk,
        frozen_stages=options.frozen_stages,
        resolution=options.resolution,
        batch_size=options.batch_size,
        versions=options.versions,
        dtype=options.dtype,
        jit_compile=options.jit_compile,
    )
    batch = made_up_batch(config, NUM_CLASSES)
    steps = {}
    for name in OBJECTIVES:
        targets = options.versions if name == ALL else None
        of_step = dataclasses.replace(config, objective=name.partition(",")[0], target_versions=targets)
        steps[name] = trainer(of_step, batch, NUM_CLASSES)
    aims = {name: 1.25 for name in ("grafit", ALL) if name in steps}
    compare(steps, "classification", aims, config, options.repeats)


def memory_part(options):
    """Prints the table of the memory."""
    import tensorflow as tf

    from mg_keras.layers import MemoryBank, NearestNeighborLoss

    random, count = np.random.default_rng(0), options.queries
    memory = MemoryBank(options.photos, DIMENSIONS, dtype="float16")
    for start in range(0, options.photos, 100_000):
        ids = np.arange(start, min(start + 100_000, options.photos))
        rows = tf.math.l2_normalize(random.standard_normal((len(ids), DIMENSIONS), dtype="float32"), axis=1)
        memory.embeddings.value[start : start + len(ids)].assign(tf.cast(rows, tf.float16))
    memory.labels.assign(random.integers(0, 1000, options.photos))
    ids = tf.constant(random.permutation(options.photos)[:count], tf.int32)
    labels = tf.gather(memory.labels.value, ids)
    queries = tf.constant(random.standard_normal((count, DIMENSIONS), dtype="float32"))
    matrix = tf.cast(memory.embeddings.value, tf.float32)
    loss = NearestNeighborLoss()

    @tf.function
    def loss_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(queries)
            value = tf.reduce_mean(loss(queries, labels, ids, memory.embeddings.value, memory.labels.value))
        return value, tape.gradient(value, queries)

    @tf.function
    def product():
        return tf.matmul(queries, matrix, transpose_b=True)[:, 0]

    @tf.function
    def two_products():
        return tf.matmul(tf.matmul(queries, matrix, transpose_b=True), matrix)

    @tf.function
    def update():
        memory.update(ids, labels, queries)
        return tf.zeros(())

    contestants = {
        "queries x memory": product,
        "queries x memory x memory": two_products,
        "loss and gradient": loss_and_gradient,
        "update": update,
    }
    clock, measured = work_clock()
    timers = {
        name: timed(lambda run=run: tf.nest.map_structure(lambda tensor: tensor.numpy(), run()), clock)
        for name, run in contestants.items()
    }
    times = interleaved_times(timers, options.repeats)
    size = sum(np.prod(value.shape) * tf.as_dtype(value.dtype).size for value in memory.variables) / 1e9
    title = (
        f"A memory of {options.photos:,} photos x {DIMENSIONS} in float16, {size:.3f} GB; {count} queries; {measured}"
    )
    print_ratios(title, "what", times, "queries x memory x memory", options.repeats)


PARTS = {"step": step_part, "memory": memory_part}


def main():
    """Parses the arguments and runs the parts asked for."""
    parser = benchmark_parser("grafit", __doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each contestant (15)")
    step = parser.add_argument_group("of --part step")
    step.add_argument("--trunk", default="resnet18", help="name of a trunk (resnet18)")
    step.add_argument("--frozen-stages", type=int, default=0, help="of the trunk, not trained (0)")
    step.add_argument("--resolution", type=int, default=96, help="pixels (96)")
    step.add_argument("--batch-size", type=int, default=64, help="versions in a batch (64)")
    step.add_argument("--versions", type=int, default=4, help="of a photo (4)")
    step.add_argument("--dtype", default="float32", help="float32 or mixed_bfloat16 (float32)")
    step.add_argument("--jit-compile", action="store_true", help="compile the steps with XLA")
    memory = parser.add_argument_group("of --part memory")
    memory.add_argument("--photos", type=int, default=1_200_000, help="in the memory (1200000)")
    memory.add_argument("--queries", type=int, default=128, help="photos of a step (128)")
    options = parser.parse_args()
    if options.repeats < 1 or options.versions < 2 or options.batch_size < options.versions:
        raise UserError(
            f"--repeats must be at least 1, --versions at least 2 and --batch-size at least that, received "
            f"{options.repeats}, {options.versions} and {options.batch_size}"
        )
    import_tensorflow()
    print(machine())
    for part in PARTS if options.part == "all" else [options.part]:
        PARTS[part](options)


if __name__ == "__main__":
    run_program(main)
