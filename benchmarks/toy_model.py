"""Pairs a point with its mirror in each batch, or draws batches at random: which learns faster? (supplement A)

    python -m benchmarks.toy_model --out toy_model.png

Each run draws 100 positive and 100 negative points, x ~ N(0, 5) and y ~ N(label, 1), adds the mirror (-x, y) of each,
which keeps its label, and trains a linear SVM w·p on the hinge loss max(0, 1 - label w·p) by plain SGD, in batches of
two, once over all 400 points. Batches are two of the points at random, or a point and its mirror, in random order. Both
have the same points and the same start in a run, so that their difference is that of the batches. Of the paper's silent
choices: 5 is read as the standard deviation, w starts at N(0, 1) in both directions, the rate is 0.1 throughout, and
there is no other regularisation. The test accuracy is exact: that on infinitely many points.
"""

import math

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.errors import UserError
from mg_keras.files import atomic_path
from mg_keras.programs.common import run_program

PER_CLASS = 100
STEPS = 2 * PER_CLASS
SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 150, STEPS)


def draw_points(random, runs, deviation):
    """The points of each run, then their mirrors in the same order.

    Args:
        random: `np.random.Generator`.
        runs: int.
        deviation: float, standard deviation of x.

    Returns:
        (points [runs, 400, 2], labels [400] of +1 and -1).
    """
    labels = np.repeat([1.0, -1.0], PER_CLASS)
    x = random.normal(0, deviation, (runs, len(labels)))
    y = random.normal(labels, 1, (runs, len(labels)))
    points = np.stack([x, y], axis=-1)
    return np.concatenate([points, points * [-1, 1]], axis=1), np.tile(labels, 2)


def random_batches(random, runs):
    """[runs, 200, 2]: batches of two of the 400 points, each point once."""
    return random.permuted(np.tile(np.arange(4 * PER_CLASS), (runs, 1)), axis=1).reshape(runs, STEPS, 2)


def paired_batches(random, runs):
    """[runs, 200, 2]: batches of a point and its mirror, each point once."""
    order = random.permuted(np.tile(np.arange(STEPS), (runs, 1)), axis=1)
    return np.stack([order, order + STEPS], axis=-1)


def train(points, labels, batches, start, rate):
    """One pass of SGD on the mean hinge loss of each batch, all runs at once.

    Args:
        points: [runs, 400, 2].
        labels: [400], +1 or -1.
        batches: int [runs, steps, 2], rows of points.
        start: [runs, 2], w before the first step.
        rate: float, the learning rate.

    Returns:
        [steps + 1, runs, 2], w before the first and after each step.
    """
    weights = [start]
    every_run = np.arange(len(points))[:, None]
    for step in range(batches.shape[1]):
        rows = batches[:, step]
        signed = points[every_run, rows] * labels[rows][..., None]
        active = np.einsum("rbd,rd->rb", signed, weights[-1]) < 1
        weights.append(weights[-1] + rate * np.mean(signed * active[..., None], axis=1))
    return np.stack(weights)


def accuracy(weights, deviation):
    """The share of all points there could be that `weights` [..., 2] classify right, as an array [...].

    label w·p is normal with mean w_y and variance (deviation w_x)² + w_y², so the share is that of a standard normal
    below mean / √variance; half of the points where w is 0.
    """
    x, y = weights[..., 0], weights[..., 1]
    spread = np.hypot(deviation * x, y)
    z = np.divide(y, spread, out=np.zeros_like(y), where=spread > 0)
    return 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def experiment(seed=0, runs=100, rate=0.1, start=1.0, deviation=5.0):
    """The test accuracy by iteration with each kind of batch.

    Args:
        seed: int, of everything random.
        runs: int >= 2, how many.
        rate: float > 0, the learning rate.
        start: float >= 0, standard deviation of both values of w at the start.
        deviation: float > 0, standard deviation of the points' x.

    Returns:
        {"random": [201, runs], "paired": [201, runs]}, shares, before the first and after each of the 200 steps.

    Raises:
        ValueError: an argument out of its range.
    """
    if runs < 2 or rate <= 0 or start < 0 or deviation <= 0:
        raise ValueError(
            f"runs must be at least 2, rate and deviation above 0 and start at least 0, received runs {runs}, "
            f"rate {rate}, deviation {deviation}, start {start}"
        )
    random = np.random.default_rng(seed)
    points, labels = draw_points(random, runs, deviation)
    begin = random.normal(0, 1, (runs, 2)) * start
    batches = {"random": random_batches(random, runs), "paired": paired_batches(random, runs)}
    return {kind: accuracy(train(points, labels, order, begin, rate), deviation) for kind, order in batches.items()}


def standard_error(values):
    """Of the mean over the last axis."""
    return np.std(values, axis=-1, ddof=1) / math.sqrt(values.shape[-1])


def picture(path, scores, best):
    """Draws both mean accuracies by iteration, with two standard errors about them, and the best there is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(STEPS + 1)
    for (kind, shares), colour in zip(scores.items(), ("#D55E00", "#0072B2"), strict=True):
        mean, error = 100 * shares.mean(axis=1), 200 * standard_error(shares)
        label = {"random": "two points at random", "paired": "a point and its mirror"}[kind]
        axes.plot(steps, mean, color=colour, label=f"batches: {label}")
        axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(100 * best, color="black", linestyle="--", linewidth=1, label=f"best possible, {100 * best:.1f} %")
    runs = scores["random"].shape[1]
    axes.set(
        xlabel="iteration (batches of two, one pass over the points)",
        ylabel="test accuracy (%)",
        title=f"Toy model: mean of {runs} runs, bands of two standard errors",
        xlim=(0, STEPS),
    )
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120, facecolor="white")


def main():
    """Arguments, the experiment, the table and the plot."""
    parser = benchmark_parser("toy_model", __doc__)
    parser.add_argument("--out", default="toy_model.png", help="the plot (toy_model.png)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--runs", type=int, default=100, help="how many (100)")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate (0.1)")
    parser.add_argument("--start", type=float, default=1.0, help="standard deviation of w at the start (1)")
    parser.add_argument("--deviation", type=float, default=5.0, help="standard deviation of x (5)")
    options = parser.parse_args()
    try:
        scores = experiment(options.seed, options.runs, options.rate, options.start, options.deviation)
    except ValueError as error:
        raise UserError(str(error)) from error
    percent = {kind: 100 * shares for kind, shares in scores.items()}
    lead = percent["paired"] - percent["random"]
    print_table(
        f"Test accuracy in %, mean ± deviation over {options.runs} runs; lead of the pairs ± its standard error",
        ("iteration", "random batches", "paired batches", "lead"),
        [
            [
                str(step),
                *(f"{values[step].mean():.1f} ± {values[step].std(ddof=1):.1f}" for values in percent.values()),
                f"{lead[step].mean():+.2f} ± {standard_error(lead[step]):.2f}",
            ]
            for step in SHOWN
        ],
    )
    whole = lead[1:].mean(axis=0)
    print(f"lead of the pairs, mean of all iterations: {whole.mean():+.2f} ± {standard_error(whole):.2f}")
    picture(options.out, scores, float(accuracy(np.array([0.0, 1.0]), options.deviation)))
    print(f"written: {options.out}")


if __name__ == "__main__":
    run_program(main)
