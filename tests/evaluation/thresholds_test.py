import numpy as np
import pytest

from mg_keras.evaluation.thresholds import TopPairs, threshold_at_precision, thresholds


def slow_threshold(similarities, matches, precision):
    good = [
        value
        for value in similarities
        if matches[similarities >= value].any() and np.mean(matches[similarities >= value]) >= precision
    ]
    return min(good, default=None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("precision", [0.5, 0.9, 1.0])
def test_it_is_the_smallest_that_gives_the_precision(seed, precision):
    rng = np.random.default_rng(seed)
    matches = rng.random(200) < 0.3
    # rounded, so that some are equal
    similarities = np.round(rng.normal(matches * 1.0, 0.6), 1)
    assert threshold_at_precision(similarities, matches, precision) == slow_threshold(similarities, matches, precision)


def test_where_no_threshold_gives_it_there_is_none():
    assert threshold_at_precision(np.array([0.9, 0.5]), np.array([False, True]), 0.9) is None
    assert threshold_at_precision(np.zeros(0), np.zeros(0, bool), 0.9) is None


def test_thresholds_go_by_the_precision_as_people_write_it():
    similarities, matches = np.array([0.9, 0.85, 0.8]), np.array([True, False, True])
    assert thresholds(similarities, matches) == {"0.9": 0.9, "0.99": 0.9}
    assert thresholds(similarities, matches, [0.6]) == {"0.6": 0.8}
    assert thresholds(similarities, ~matches) == {}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [1, 2, 8])
@pytest.mark.parametrize("apart", [0.0, 2.0, 6.0])
def test_the_pairs_that_decide_are_found_in_blocks(seed, digits, apart, monkeypatch):
    monkeypatch.setattr("mg_keras.evaluation.thresholds._FEWEST", 10)
    rng = np.random.default_rng(seed)
    matches = rng.random(3000) < 0.02
    # rounded, so that some are equal, and many just where they are dropped
    similarities = np.round(rng.normal(matches * apart, 0.6), digits).astype(np.float32)
    top = TopPairs(matches.sum())
    for start in range(0, 3000, 100):
        block = slice(start, start + 100)
        top.add(similarities[block], matches[block])
        assert top.held <= 10 + 2 * (matches.sum() / 0.9 + 2)
    assert top.thresholds() == thresholds(similarities, matches)


def test_without_pairs_that_match_no_cosine_tells(monkeypatch):
    top = TopPairs(0)
    assert top.thresholds() == {}
    top.add(np.array([0.9, 0.3]), np.array([False, False]))
    assert top.thresholds() == {}


@pytest.mark.parametrize("value", [0.99997, 0.12345, -0.00001, 0.8, 0.0003, np.float32(0.9)])
def test_what_a_threshold_stands_for_is_not_below_it(value):
    (threshold,) = thresholds(np.full(50, value), np.ones(50, bool), [0.99]).values()
    assert value - 1e-4 < threshold <= value
    assert threshold == round(threshold, 4)


@pytest.mark.parametrize(
    ("arguments", "message"), [(([1.0], [True, False], 0.9), "received"), (([1.0], [True], 0), "precision must lie")]
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        threshold_at_precision(*arguments)
