"""Supplement A's experiment: its points, its batches, its training beside a slow loop, and its outcome."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import toy_model

ROOT = Path(__file__).resolve().parents[2]


def test_points_are_drawn_as_described_and_followed_by_their_mirrors():
    points, labels = toy_model.draw_points(np.random.default_rng(0), runs=50, deviation=5.0)
    assert points.shape == (50, 400, 2)
    np.testing.assert_array_equal(points[:, 200:], points[:, :200] * [-1, 1])
    np.testing.assert_array_equal(labels[200:], labels[:200])
    assert np.sum(labels[:200] == 1) == np.sum(labels[:200] == -1) == 100
    # 10 000 points: five standard errors of each mean and deviation
    x, y = points[:, :200, 0], points[:, :200, 1] - labels[:200]
    for values, deviation in ((x, 5), (y, 1)):
        assert abs(values.mean()) < 5 * deviation / 100
        assert abs(values.std() - deviation) < 5 * deviation / np.sqrt(2) / 100


def test_both_orders_visit_every_point_once_and_pairs_are_mirrors():
    random = np.random.default_rng(0)
    points, _ = toy_model.draw_points(random, runs=3, deviation=5.0)
    shuffled, paired = toy_model.random_batches(random, 3), toy_model.paired_batches(random, 3)
    for batches in (shuffled, paired):
        assert batches.shape == (3, 200, 2)
        np.testing.assert_array_equal(np.sort(batches.reshape(3, -1)), [np.arange(400)] * 3)
        assert len({tuple(order) for order in batches[..., 0]}) == 3, "the runs differ in their order"
    for run in range(3):
        left, right = points[run, paired[run, :, 0]], points[run, paired[run, :, 1]]
        np.testing.assert_array_equal(left, right * [-1, 1])
    # of the 399 points that may be beside a point, one is its mirror
    assert np.mean(shuffled[..., 0] % 200 == shuffled[..., 1] % 200) < 0.03


def slow_training(points, labels, batches, start, rate):
    """One run, a point at a time."""
    w = [float(start[0]), float(start[1])]
    history = [tuple(w)]
    for batch in batches:
        gradient = [0.0, 0.0]
        for row in batch:
            x, y = points[row]
            if labels[row] * (w[0] * x + w[1] * y) < 1:
                gradient[0] -= labels[row] * x / len(batch)
                gradient[1] -= labels[row] * y / len(batch)
        w = [w[0] - rate * gradient[0], w[1] - rate * gradient[1]]
        history.append(tuple(w))
    return history


def test_training_agrees_with_a_slow_loop():
    random = np.random.default_rng(1)
    points, labels = toy_model.draw_points(random, runs=3, deviation=5.0)
    start = random.normal(0, 1, (3, 2))
    for batches in (toy_model.random_batches(random, 3), toy_model.paired_batches(random, 3)):
        weights = toy_model.train(points, labels, batches, start, rate=0.3)
        assert weights.shape == (201, 3, 2)
        for run in range(3):
            slow = slow_training(points[run], labels, batches[run], start[run], 0.3)
            np.testing.assert_allclose(weights[:, run], slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [(0.0, 1.0), (0.3, 1.0), (1.0, 0.2), (-2.0, -1.0), (0.0, 0.0)])
def test_accuracy_is_that_of_many_points(w):
    random = np.random.default_rng(2)
    labels = random.choice([-1.0, 1.0], 200_000)
    scores = labels * (random.normal(0, 5, 200_000) * w[0] + random.normal(labels, 1) * w[1])
    counted = np.mean(scores > 0) + np.mean(scores == 0) / 2
    # a share of 200 000 points has a standard error of at most 0.0011
    assert toy_model.accuracy(np.array(w), 5.0) == pytest.approx(counted, abs=0.005)


def test_pairs_are_ahead_and_seeds_reproduce():
    scores = toy_model.experiment(seed=3)
    assert {kind: values.shape for kind, values in scores.items()} == {"random": (201, 100), "paired": (201, 100)}
    np.testing.assert_array_equal(scores["random"][0], scores["paired"][0])
    lead = scores["paired"] - scores["random"]
    for values in (lead[1:].mean(axis=0), lead[20], lead[50], lead[200]):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert toy_model.standard_error(values) == pytest.approx(error)
        assert values.mean() > 3 * error
    again, other = toy_model.experiment(seed=3), toy_model.experiment(seed=4)
    for kind, values in scores.items():
        np.testing.assert_array_equal(again[kind], values)
        assert np.any(other[kind] != values)


@pytest.mark.parametrize("wrong", [{"runs": 1}, {"rate": 0}, {"start": -1}, {"deviation": 0}])
def test_bad_arguments_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        toy_model.experiment(**wrong)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.toy_model", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_program_prints_what_the_experiment_gives_and_writes_the_plot(tmp_path):
    done = run("--runs", 30, "--seed", 5, "--out", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    scores = {kind: 100 * shares for kind, shares in toy_model.experiment(seed=5, runs=30).items()}
    rows = {}
    for line in done.stdout.splitlines():
        if "│" in line:
            step, *cells = [cell.strip() for cell in line.split("│")[1:-1]]
            rows[int(step)] = cells
    assert set(rows) == set(toy_model.SHOWN)
    for step, cells in rows.items():
        means = [values[step].mean() for values in scores.values()]
        assert [float(cell.split(" ± ")[0]) for cell in cells[:2]] == pytest.approx(means, abs=0.051)
        assert float(cells[2].split(" ± ")[0]) == pytest.approx(means[1] - means[0], abs=0.0051)
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) > 400


def test_a_wrong_argument_gets_one_line(tmp_path):
    done = run("--runs", 1, "--out", tmp_path / "plot.png")
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs must be at least 2")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
