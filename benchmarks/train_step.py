"""Times what MultiGrain's training adds to a step, beside its peers, in one run on one machine.

    python benchmarks/train_step.py --part loss

* `loss`: sampling and margin loss alone, forward and backward, for batches of 96 and 510 embeddings of size 2048 (three
  versions an image), against pytorch-metric-learning's DistanceWeightedMiner and MarginLoss
  (`pip install torch pytorch-metric-learning`, in the same environment).

Contestants take turns, so that whatever else the machine does falls on all alike; the table gives medians.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from mg_keras.layers import DistanceWeightedSampling, MarginLoss

EMBEDDING_SIZE = 2048
VERSIONS = 3  # of an image in a batch


def interleaved_times(contestants, repeats, warm_up=3):
    """Seconds each contestant takes, in turns.

    Args:
        contestants: {name: function without arguments that returns when its work is done}.
        repeats: Timed calls of each.
        warm_up: Calls of each beforehand, for tracing and allocation.

    Returns:
        {name: [seconds] * repeats}.
    """
    times = {name: [] for name in contestants}
    for repeat in range(-warm_up, repeats):
        for name, run in contestants.items():
            # The threads of one library go on spinning for a while after its work, on cores the next one needs.
            time.sleep(0.25)
            start = time.perf_counter()
            run()
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ours(embeddings, instance_ids):
    """One pass of mg_keras: normalise, sample, loss, gradients to embeddings and beta."""
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

    return lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), step())


def theirs(embeddings, instance_ids):
    """One pass of pytorch-metric-learning, with the same settings."""
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

    return step


def loss_part(repeats):
    """Prints the table of sampling and margin loss alone."""
    try:
        import pytorch_metric_learning
    except ImportError as error:
        sys.exit(
            f"--part loss compares with pytorch-metric-learning ({error}): pip install torch pytorch-metric-learning"
        )

    table = Table(
        title=f"Sampling + margin loss, forward and backward, d = {EMBEDDING_SIZE}, {os.cpu_count()} cores\n"
        f"median (fastest) ms of {repeats}"
    )
    peer = f"pytorch-metric-learning {pytorch_metric_learning.__version__}"
    for heading in ("batch", "mg_keras", peer, "ratio of medians"):
        table.add_column(heading, justify="right")
    for batch in (96, 510):
        embeddings = np.random.default_rng(0).standard_normal((batch, EMBEDDING_SIZE), dtype="float32")
        instance_ids = np.repeat(np.arange(batch // VERSIONS), VERSIONS)
        times = interleaved_times(
            {"ours": ours(embeddings, instance_ids), "theirs": theirs(embeddings, instance_ids)}, repeats
        )
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        cells = [f"{medians[name] * 1e3:.1f} ({min(times[name]) * 1e3:.1f})" for name in ("ours", "theirs")]
        table.add_row(str(batch), *cells, f"1/{medians['theirs'] / medians['ours']:.1f}")
    Console().print(table)


PARTS = {"loss": loss_part}


def main():
    """Parses the arguments and runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each contestant (30)")
    arguments = parser.parse_args()
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        PARTS[part](arguments.repeats)


if __name__ == "__main__":
    main()
