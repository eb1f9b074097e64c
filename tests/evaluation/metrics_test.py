import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mg_keras.evaluation.metrics import (
    average_precision,
    chance_average_precision,
    chance_group_score,
    chance_micro_average_precision,
    chance_precision_at,
    group_score,
    mean_average_precision,
    micro_average_precision,
    positive_ranks,
    precision_at,
    recall_at_precision,
    top_k_accuracy,
)
from tests.shared import shared_path


def slow_average_precision(ranks, num_positives):
    """The area under the precision-recall points, walked one by one."""
    area = 0.0
    for n, rank in enumerate(sorted(ranks)):
        before = 1.0 if rank == 0 else n / rank
        after = (n + 1) / (rank + 1)
        area += (before + after) / 2 * (1 / num_positives)
    return area


def test_top_k_accuracy_against_sorting():
    rng = np.random.default_rng(0)
    # Few different values, so that many logits tie.
    logits, labels = rng.integers(0, 5, (200, 7)).astype(float), rng.integers(0, 7, 200)
    for k in range(1, 8):
        right = [
            label in sorted(range(7), key=lambda c, row=row: (-row[c], c))[:k]
            for row, label in zip(logits, labels, strict=True)
        ]
        assert top_k_accuracy(logits, labels, k) == pytest.approx(np.mean(right))


def test_equal_logits_do_not_count_as_right():
    assert top_k_accuracy(np.zeros((10, 5)), np.arange(10) % 5, 1) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("logits", "labels", "k", "message"),
    [
        (np.zeros((2, 3)), [0], 1, r"shapes \(2, 3\) and \(1,\)"),
        (np.zeros((0, 3)), [], 1, r"shapes \(0, 3\)"),
        (np.zeros((2, 3)), [0, 3], 1, "from 0 to 3"),
        (np.zeros((2, 3)), [0, -1], 1, "from -1 to 0"),
        (np.zeros((2, 3)), [0.0, 1.0], 1, "labels must be integers, received the type float64"),
        (np.zeros((2, 3)), [0, 1], 4, "3 classes, received 4"),
        ([[0, 1.0], [0, np.nan]], [0, 1], 1, "row 1"),
    ],
)
def test_top_k_accuracy_names_bad_arguments(logits, labels, k, message):
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(logits, labels, k)


def test_average_precision_meets_the_reference():
    for case in json.loads(shared_path("goldens", "average_precision.json").read_text()):
        computed = average_precision(case["ranks"], case["num_positives"])
        assert computed == pytest.approx(case["average_precision"], rel=1e-12)


def test_average_precision_against_the_slow_form():
    rng = np.random.default_rng(1)
    for _ in range(50):
        num_positives = rng.integers(1, 9)
        ranks = rng.choice(30, rng.integers(0, num_positives + 1), replace=False)
        expected = slow_average_precision(ranks, num_positives)
        assert average_precision(ranks, num_positives) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    assert average_precision([0, 1, 2], 3) == 1.0
    assert average_precision([], 3) == 0.0
    assert average_precision([1], 1) == pytest.approx(0.25)
    # Half of the positives found, at once: half of the area.
    assert average_precision([0], 2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ranks", "num_positives", "message"),
    [
        ([0], 0, "at least 1, received 0"),
        ([0, 1, 2], 2, "at most 2"),
        ([3, 3], 2, r"distinct and from 0, received \[3, 3\]"),
        ([-1], 2, "from 0"),
        ([0.5], 2, "integers"),
    ],
)
def test_average_precision_names_bad_arguments(ranks, num_positives, message):
    with pytest.raises(ValueError, match=message):
        average_precision(ranks, num_positives)


def test_mean_average_precision_leaves_the_ignored_out():
    rng = np.random.default_rng(2)
    rankings = [rng.permutation(40) for _ in range(20)]
    positives = [rng.choice(40, 5, replace=False) for _ in rankings]
    ignored = [[row for row in range(40) if row not in right][:6] for right in positives]
    expected = []
    for ranking, right, left_out in zip(rankings, positives, ignored, strict=True):
        kept = [row for row in ranking.tolist() if row not in left_out]
        expected.append(slow_average_precision([kept.index(row) for row in right], 5))
    assert mean_average_precision(rankings, positives, ignored) == pytest.approx(np.mean(expected))
    assert mean_average_precision(np.array(rankings), positives) != pytest.approx(np.mean(expected))


def test_a_positive_outside_a_short_ranking_adds_nothing():
    assert mean_average_precision([[4, 7]], [{4, 9}]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rankings", "positives", "ignored", "message"),
    [
        ([], [], None, "received 0, 0 and 0"),
        ([[0, 1]], [[0], [1]], None, "received 1, 2 and 1"),
        ([[0, 1]], [[]], None, "query 0 has no positives"),
        ([[0, 0]], [[0]], None, "each once"),
        ([[0, -1]], [[0]], None, "from 0"),
        ([[0, 1]], [[0]], [[0]], r"both positive and ignored: \[0\]"),
    ],
)
def test_mean_average_precision_names_bad_arguments(rankings, positives, ignored, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(rankings, positives, ignored)


def test_group_score_against_counting():
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(12), 4))
    embeddings = rng.normal(size=(12, 6))[groups] + rng.normal(0, 0.8, (48, 6))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    counts = [
        np.sum(groups[np.argsort(-(unit @ query))[:4]] == group) for query, group in zip(unit, groups, strict=True)
    ]
    assert 1.5 < np.mean(counts) < 3.5
    assert group_score(embeddings, groups, 4) == pytest.approx(np.mean(counts))


def test_group_score_counts_the_query_itself_and_takes_names():
    embeddings = np.eye(6)
    assert group_score(embeddings, list("abcdef"), 1) == 1.0
    perfect = np.repeat(np.eye(3), 5, axis=0)
    assert group_score(perfect, np.repeat(["x", "y", "z"], 5), 5) == 5.0


def test_group_score_names_bad_groups():
    with pytest.raises(ValueError, match=r"each of the 4 embeddings, received the shape \(3,\)"):
        group_score(np.eye(4), [0, 1, 2], 2)


def test_micro_average_precision_against_scikit_learn():
    rng = np.random.default_rng(4)
    # Rounded, so that many scores tie.
    scores, is_positive = np.round(rng.normal(size=300), 1), rng.random(300) < 0.2
    for missing in (0, 17):
        found = is_positive.sum()
        expected = average_precision_score(is_positive, scores) * found / (found + missing)
        assert micro_average_precision(scores, is_positive, found + missing) == pytest.approx(expected)


def test_micro_average_precision_without_answers_is_zero():
    assert micro_average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    assert micro_average_precision([0.5, 0.4], [False, False], 3) == 0.0


@pytest.mark.parametrize(
    ("scores", "is_positive", "num_positives", "message"),
    [
        ([0.5], [True, False], 2, r"\(1,\) and \(2,\)"),
        ([0.5], [1], 2, "type int64"),
        ([np.nan], [True], 2, "number 0 is"),
        ([0.5, 0.4], [True, True], 1, "the 2 right answers given, received 1"),
        ([0.5], [False], 0, "received 0"),
    ],
)
def test_micro_average_precision_names_bad_arguments(scores, is_positive, num_positives, message):
    with pytest.raises(ValueError, match=message):
        micro_average_precision(scores, is_positive, num_positives)


@pytest.mark.parametrize(("num_positives", "database_size"), [(1, 1), (1, 50), (3, 20), (7, 7)])
def test_chance_average_precision_is_the_mean_of_random_rankings(num_positives, database_size):
    rng = np.random.default_rng(5)
    draws = [average_precision(rng.permutation(database_size)[:num_positives], num_positives) for _ in range(4000)]
    # Four standard errors of the mean.
    tolerance = 4 * np.std(draws) / len(draws) ** 0.5 + 1e-12
    assert chance_average_precision(num_positives, database_size) == pytest.approx(np.mean(draws), abs=tolerance)


def test_chance_group_score_is_the_score_of_random_descriptors():
    rng = np.random.default_rng(6)
    draws = [group_score(rng.normal(size=(30, 10)), np.repeat(np.arange(6), 5), 5) for _ in range(200)]
    tolerance = 4 * np.std(draws) / len(draws) ** 0.5
    assert chance_group_score(5, 30, 5) == pytest.approx(np.mean(draws), abs=tolerance)


def test_chance_levels_name_bad_arguments():
    with pytest.raises(ValueError, match="database's 3, received 4"):
        chance_average_precision(4, 3)
    with pytest.raises(ValueError, match="received 6, 1 and 5"):
        chance_group_score(6, 5, 1)


def test_positive_ranks_against_lists():
    rng = np.random.default_rng(5)
    for _ in range(20):
        ranking = rng.permutation(30)[: rng.integers(1, 31)]
        positives, ignored = np.split(rng.permutation(30)[:12], 2)
        kept = [row for row in ranking.tolist() if row not in ignored]
        expected = [rank for rank, row in enumerate(kept) if row in positives]
        np.testing.assert_array_equal(positive_ranks(ranking, positives, ignored), expected)
    np.testing.assert_array_equal(positive_ranks([], [1], [2]), [])
    with pytest.raises(ValueError, match=r"both positive and ignored: \[3\]"):
        positive_ranks([1], np.array([2, 3]), np.array([3]))


def slow_precision_at(order, k):
    """Of booleans in the order of a ranking: the first k, or those up to the last right one if that comes before."""
    last = max(rank for rank, right in enumerate(order) if right)
    first = order[: min(k, last + 1)]
    return sum(first) / min(k, last + 1)


def test_precision_at_against_the_slow_form():
    rng = np.random.default_rng(6)
    for _ in range(50):
        order = rng.permutation(np.arange(30) < rng.integers(1, 8)).tolist()
        ranks = rng.permutation(np.flatnonzero(order))
        assert precision_at(ranks, len(ranks), 10) == pytest.approx(slow_precision_at(order, 10))


def test_a_positive_that_was_not_found_stands_behind_all_others():
    assert precision_at([0, 1, 2], 3, 10) == 1.0
    assert precision_at([0, 1, 2], 4, 10) == pytest.approx(0.3)
    assert precision_at([], 2, 10) == 0.0
    with pytest.raises(ValueError, match="the 2 found, received 10 and 1"):
        precision_at([0, 1], 1, 10)
    with pytest.raises(ValueError, match="received 0 and 2"):
        precision_at([0, 1], 2, 0)


@pytest.mark.parametrize(("num_positives", "database_size", "k"), [(1, 12, 10), (3, 12, 10), (9, 10, 10), (2, 6, 10)])
def test_chance_precision_at_is_the_mean_of_random_rankings(num_positives, database_size, k):
    rng = np.random.default_rng(7)
    draws = [precision_at(rng.permutation(database_size)[:num_positives], num_positives, k) for _ in range(4000)]
    # four standard errors
    tolerance = 4 * np.std(draws) / 4000**0.5
    assert tolerance < 0.02
    assert chance_precision_at(num_positives, database_size, k) == pytest.approx(np.mean(draws), abs=tolerance)


def slow_recall_at_precision(scores, is_positive, num_positives, precision):
    best = 0.0
    for threshold in scores:
        given = [right for score, right in zip(scores, is_positive, strict=True) if score >= threshold]
        if sum(given) >= precision * len(given):
            best = max(best, sum(given) / num_positives)
    return best


def test_recall_at_precision_against_the_slow_form():
    rng = np.random.default_rng(8)
    reached = []
    for _ in range(40):
        # few different scores, so that many tie
        is_positive = rng.random(60) < 0.7
        scores = rng.integers(0, 25, 60) + 12 * is_positive
        found = recall_at_precision(scores, is_positive, 70, 0.9)
        assert found == pytest.approx(slow_recall_at_precision(scores.tolist(), is_positive.tolist(), 70, 0.9))
        reached.append(found)
    assert len(set(reached)) > 5


def test_recall_at_precision_by_hand():
    # nine of the first ten are right: exactly 90 %
    is_positive = np.array([True] * 5 + [False] + [True] * 4 + [False] * 5)
    scores = np.arange(15, 0, -1)
    assert recall_at_precision(scores, is_positive, 10) == 0.9
    assert recall_at_precision(scores, is_positive, 10, precision=1.0) == 0.5
    # with one score for all there is one threshold, and 9 of 15 are not enough
    assert recall_at_precision(np.ones(15), is_positive, 10) == 0.0
    assert recall_at_precision([], np.zeros(0, bool), 3) == 0.0
    # a larger recall counts even if the precision was too low before
    assert recall_at_precision(np.arange(20, 0, -1), np.arange(20) > 0, 19) == 1.0
    for precision in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"at most 1, received {precision}"):
            recall_at_precision([1.0], np.array([True]), 1, precision)
    with pytest.raises(ValueError, match="number 0 is"):
        recall_at_precision([np.nan], np.array([True]), 1)


@pytest.mark.parametrize(
    ("positives", "database_size", "k"), [([1, 1, 1, 1], 20, 10), ([1, 0, 0, 3, 2], 12, 5), ([2], 6, 6), ([1], 1, 1)]
)
def test_chance_micro_average_precision_is_the_mean_of_random_answers(positives, database_size, k):
    rng = np.random.default_rng(9)
    draws = []
    for _ in range(4000):
        right = [rng.permutation(database_size)[:k] < count for count in positives]
        draws.append(micro_average_precision(rng.random(k * len(positives)), np.concatenate(right), sum(positives)))
    tolerance = max(4 * np.std(draws) / 4000**0.5, 1e-9)
    assert tolerance < 0.03
    assert chance_micro_average_precision(positives, database_size, k) == pytest.approx(np.mean(draws), abs=tolerance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chance_precision_at(5, 4, 10), "database's 4 and k at least 1, received 5 and 10"),
        (lambda: chance_precision_at(1, 4, 0), "received 1 and 0"),
        (lambda: chance_micro_average_precision([0, 0], 4, 2), r"received 2 and \[0, 0\]"),
        (lambda: chance_micro_average_precision([5], 4, 2), r"received 2 and \[5\]"),
        (lambda: chance_micro_average_precision([1], 4, 5), r"received 5 and \[1\]"),
    ],
)
def test_more_chance_levels_name_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
