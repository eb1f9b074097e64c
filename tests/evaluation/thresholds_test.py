import numpy as np
import pytest

from mg_keras.evaluation.thresholds import threshold_at_precision, thresholds


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
