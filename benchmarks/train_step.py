"""Times what MultiGrain's training adds to a step, beside its peers, in one run on one machine.

    python -m benchmarks.train_step

* `step`: the joint step (classification weight 0.5, three versions an image, sampling and margin loss) against plain
  cross-entropy (classification weight 1) on the same trunk and the same batches: ResNet-18 at 96 px, batches of 96.
* `loss`: sampling and margin loss alone, forward and backward, for batches of 96 and 510 embeddings of size 2048 (three
  versions an image), against pytorch-metric-learning's DistanceWeightedMiner and MarginLoss
  (`pip install torch pytorch-metric-learning`, in the same environment).

`--part step` or `--part loss` runs one alone. Contestants take turns; the tables give medians, those of
steps in processor time (`benchmarks.timing.work_clock`).
"""

import dataclasses

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import interleaved_times, machine, milliseconds, print_table, ratio, timed
from mg_keras.errors import UserError
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow

EMBEDDING_SIZE = 2048
VERSIONS = 3  # of an image in a batch
NUM_CLASSES = 101


def step_part(options):
    """Prints the table of whole training steps."""
    from benchmarks.steps import compare, made_up_batch, trainer
    from mg_keras.runs.config import TrainConfig

    config = TrainConfig(
        trunk=options.trunk,
        resolution=options.resolution,
        batch_size=options.batch_size,
        versions=VERSIONS,
        dtype=options.dtype,
    )
    batch = made_up_batch(config, NUM_CLASSES)
    weights = {"cross-entropy": 1.0, "joint": 0.5}
    steps = {
        name: trainer(dataclasses.replace(config, classification_weight=weight), batch, NUM_CLASSES)
        for name, weight in weights.items()
    }
    compare(steps, "cross-entropy", {"joint": 1.05}, config, options.repeats)


def ours(embeddings, instance_ids):
    """A contestant: one pass of mg_keras, that is normalise, sample, loss, gradients to embeddings and beta."""
    import tensorflow as tf

    from mg_keras.layers import DistanceWeightedSampling, MarginLoss

    embeddings, instance_ids = tf.constant(embeddings), tf.constant(instance_ids)
    sampling = DistanceWeightedSampling(max_positives=VERSIONS - 1, seed=0)
    margin_loss = MarginLoss(initial_beta=1.2)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            unit = tf.math.l2_normalize(embeddings, axis=-1)
            loss, _ = margin_loss.from_rows(unit, sampling(unit, instance_ids))
        return loss, tape.gradient(loss, [embeddings, margin_loss.beta.value])

    return timed(lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), step()))


def theirs(embeddings, instance_ids):
    """A contestant: one pass of pytorch-metric-learning, with the same settings."""
    import torch
    from pytorch_metric_learning.losses import MarginLoss as TheirMarginLoss
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    embeddings = torch.tensor(embeddings, requires_grad=True)
    instance_ids = torch.tensor(instance_ids)
    miner = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
    margin_loss = TheirMarginLoss(margin=0.2, nu=0, beta=1.2, triplets_per_anchor="all", learn_beta=True)

    def step():
        embeddings.grad = margin_loss.beta.grad = None
        margin_loss(embeddings, instance_ids, miner(embeddings, instance_ids)).backward()

    return timed(step)


def loss_part(options):
    """Prints the table of sampling and margin loss alone."""
    try:
        import pytorch_metric_learning
    except ImportError as error:
        raise UserError(
            f"--part loss compares with pytorch-metric-learning ({error}): pip install torch pytorch-metric-learning; "
            "--part step does without"
        ) from None

    rows, shares = [], []
    for batch in (96, 510):
        embeddings = np.random.default_rng(0).standard_normal((batch, EMBEDDING_SIZE), dtype="float32")
        instance_ids = np.repeat(np.arange(batch // VERSIONS), VERSIONS)
        times = interleaved_times(
            {"ours": ours(embeddings, instance_ids), "theirs": theirs(embeddings, instance_ids)}, options.repeats
        )
        shares.append(f"B = {batch}: 1/{ratio(times, 'theirs', 'ours'):.1f}")
        rows.append([str(batch), milliseconds(times["ours"]), milliseconds(times["theirs"]), shares[-1].split()[-1]])
    print_table(
        f"Sampling + margin loss, forward and backward, d = {EMBEDDING_SIZE}\nms, median (fastest) of "
        f"{options.repeats}",
        ("batch", "mg_keras", f"pytorch-metric-learning {pytorch_metric_learning.__version__}", "ratio of medians"),
        rows,
    )
    print(f"mg_keras / pytorch-metric-learning: {', '.join(shares)} (to be at most 1/6 at B = 510)\n")


PARTS = {"step": step_part, "loss": loss_part}


def main():
    """Parses the arguments and runs the parts asked for."""
    parser = benchmark_parser("train_step", __doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each contestant (30)")
    step = parser.add_argument_group("of --part step")
    step.add_argument("--trunk", default="resnet18", help="name of a trunk (resnet18)")
    step.add_argument("--resolution", type=int, default=96, help="pixels (96)")
    step.add_argument("--batch-size", type=int, default=96, help="versions in a batch (96)")
    step.add_argument("--dtype", default="float32", help="float32 or mixed_bfloat16 (float32)")
    options = parser.parse_args()
    if options.repeats < 1 or options.batch_size < 2 * VERSIONS:
        raise UserError(
            f"--repeats must be at least 1 and --batch-size at least {2 * VERSIONS}, received {options.repeats} and "
            f"{options.batch_size}"
        )
    import_tensorflow()
    print(machine())
    for part in PARTS if options.part == "all" else [options.part]:
        PARTS[part](options)


if __name__ == "__main__":
    run_program(main)
