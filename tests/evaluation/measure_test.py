import numpy as np
import pytest
import tensorflow as tf

from mg_keras import Whitening
from mg_keras.data.sources import Split
from mg_keras.embedding.embedder import Embedder
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators, measure
from mg_keras.poolings import RMAC
from tests.colours import Colours, colour_split

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3))


def test_rows_of_a_resolution_are_gem_and_for_comparison_two_more():
    whitening = Whitening(np.zeros(3), np.eye(3))
    assert [row.name for row in measure.rows(3.0, lambda pooling: None)] == ["gem"]
    rows = measure.rows(3.0, lambda pooling: whitening if pooling == 3.0 else None, comparison=True)
    assert [(row.name, row.pooling) for row in rows] == [
        ("gem", 3.0),
        ("gem_whitened", 3.0),
        ("average", 1.0),
        ("rmac", RMAC),
    ]
    assert [row.classifies for row in rows] == [True, False, True, False]


def test_every_row_is_scored_from_its_own_descriptors():
    """The measure is handed what the slow, obvious way gives: each photo alone, pooled and whitened by hand."""
    split, seen = colour_split(COLOURS), {}
    whitening = Whitening(np.full(3, 0.1), np.diag([1.0, 2.0, 3.0]), bias_channel=False)

    def note(answers):
        seen[len(seen)] = answers
        return {"score": float(len(answers.rows))}

    benchmark = evaluators.Benchmark("noted", "a line", split, note, {"score": 0.5})
    rows = measure.rows(2.0, lambda pooling: whitening if pooling == 2.0 else None, comparison=True)
    scores, found = measure.measure(Embedder(Colours(), 32), benchmark, 16, rows)
    assert scores == {name: {"score": 12.0} for name in ("gem", "gem_whitened", "average", "rmac")}
    assert list(found.rows) == list(range(12))
    colours = COLOURS / 255 + 0.01
    unit = colours**2 / np.linalg.norm(colours**2, axis=1, keepdims=True)
    white = (unit - 0.1) * [1, 2, 3]
    expected = [colours**2, white / np.linalg.norm(white, axis=1, keepdims=True), colours, colours[:, ::-1]]
    for answers, values in zip(seen.values(), expected, strict=True):
        np.testing.assert_allclose(answers.descriptors, values, atol=1e-5)
        assert answers.logits is None


def test_a_benchmark_of_classes_has_rows_that_the_classifier_reads():
    split = colour_split(COLOURS)
    benchmark = evaluators.classes(split, ["red", "green", "blue"])
    rows = measure.rows(2.0, lambda pooling: Whitening(np.zeros(4), np.eye(4)), comparison=True)
    scores, _ = measure.measure(Embedder(Colours(), 32), benchmark, 16, rows)
    # the embedding is the colour, and the label its strongest channel
    assert {name: score["top1"] for name, score in scores.items()} == {"gem": 1.0, "average": 1.0}


def test_benchmarks_of_one_name_are_refused():
    split = colour_split(COLOURS)
    same = [evaluators.classes(split, ["red", "green", "blue"], name=name) for name in ("a", "b", "a")]
    with pytest.raises(UserError, match="2 benchmarks are called a, and the scores of one alone would be kept"):
        measure.measure_all(Embedder(Colours(), 32), same, {16: measure.rows(1.0, lambda pooling: None)})
    assert measure.measure_all(Embedder(Colours(), 32), [], {16: []}) == {}


@pytest.mark.slow
def test_photos_that_benchmarks_share_are_described_once():
    split, network = colour_split(COLOURS), Colours()
    chosen = [evaluators.classes(split, ["red", "green", "blue"]), evaluators.copies(split, number=3)]
    rows_at = {16: measure.rows(1.0, lambda pooling: None), 20: measure.rows(1.0, lambda pooling: None)}
    measured = measure.measure_all(Embedder(network, 32), chosen, rows_at)
    # at each of two resolutions a batch of test photos and a batch of copies
    assert network.runs == 4
    assert measured["classes"]["results"][16]["gem"] == {"pooling": 1.0, "top1": 1.0, "top5": 1.0}
    assert measured["copies"]["photos"] == 15
    assert 0 <= measured["copies"]["results"][20]["gem"]["mAP"] <= 1
    # what shared photos give is what they give alone
    alone = measure.measure_all(Embedder(Colours(), 32), chosen[1:], {16: rows_at[16]})
    assert alone["copies"]["results"][16] == measured["copies"]["results"][16]


def test_what_a_measure_is_made_from_is_handed_on():
    kept = []
    measure.measure_all(
        Embedder(Colours(), 32),
        [evaluators.classes(colour_split(COLOURS), ["red", "green", "blue"])],
        {size: measure.rows(1.0, lambda pooling: None) for size in (16, 20)},
        keep=lambda benchmark, size, found: kept.append((benchmark.name, size, len(found.rows))),
    )
    assert kept == [("classes", 16, 12), ("classes", 20, 12)]


@pytest.mark.slow
def test_unusable_photos_are_named():
    good = colour_split(COLOURS[:3])
    table = tf.constant([good.read(tf.constant(i)).numpy() for i in range(3)] + [b"no photo"])
    split = Split([*good.names, "broken"], lambda index: table[index], lambda: np.append(good.labels, 0))
    measured = measure.measure_all(
        Embedder(Colours(), 32),
        [evaluators.classes(split, list("rgb"))],
        {16: measure.rows(1.0, lambda pooling: None)},
    )
    assert measured["classes"]["unusable"] == ["broken"]
    # it counts as wrong
    assert measured["classes"]["results"][16]["gem"]["top1"] == pytest.approx(3 / 4)
