"""Retrieval and classification by neighbours against loops, on labels of two levels."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from mg_keras.data.sources import Source, Split
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators import Answers, categories, probe
from mg_keras.evaluation.folders import NAMES, Options
from mg_keras.evaluation.metrics import mean_average_precision
from mg_keras.evaluation.neighbors import category_average_precisions, vote
from mg_keras.evaluation.tables import levels_tables, retrieval_table
from mg_keras.models import Network
from mg_keras.programs import evaluate
from mg_keras.programs.scores import evaluate_packed
from tests.multigrain.model_test import plain_trunk
from tests.train.tiny import CLASSES, draw_folder

FINE, TRAIN, TEST = 6, 40, 30


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def split_of(size, seed, fine=None):
    fine = np.random.default_rng(seed).integers(0, FINE, size) if fine is None else fine
    columns = {"coarse": np.int32(fine // 2), "fine": np.int32(fine)}
    return Split(
        [f"{seed}/{row}" for row in range(size)],
        lambda index: tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8)),
        lambda: columns["coarse"],
        label_columns=columns,
    )


def source_of():
    names = {"coarse": list("abc"), "fine": list("uvwxyz")}
    return Source("made-up photos", names["coarse"], split_of(TRAIN, 1), split_of(TEST, 2), label_columns=names)


def descriptors_of(source, noise=0.8):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(FINE, 5))
    fine = np.concatenate([part.label_columns["fine"] for part in (source.train, source.val)])
    return centres[fine] + noise * rng.normal(size=(len(fine), 5))


def slow_vote(query, database, labels, k, temperature):
    cosines = unit(database) @ unit(query)
    votes = {}
    for row in np.argsort(-cosines, kind="stable")[:k]:
        votes[labels[row]] = votes.get(labels[row], 0) + np.exp(cosines[row] / temperature)
    return max(votes, key=votes.get)


def slow_map(rows, labels):
    rankings, positives, ignored = [], [], []
    for query in range(len(rows)):
        right = [i for i in range(len(rows)) if i != query and labels[i] == labels[query]]
        if right:
            rankings.append(np.argsort(-(unit(rows) @ unit(rows[query])), kind="stable"))
            positives.append(right)
            ignored.append([query])
    return mean_average_precision(rankings, positives, ignored)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (500, 1.0)])
def test_votes_and_retrieval_are_those_of_loops(k, temperature):
    source = source_of()
    rows = descriptors_of(source)
    train, test = rows[:TRAIN], rows[TRAIN:]
    benchmark = categories(source, k, temperature)
    found = benchmark.measure(Answers(np.arange(TRAIN + TEST), rows))
    assert set(found) == set(benchmark.chance)
    for level in ("coarse", "fine"):
        labels, truth = (part.label_columns[level] for part in (source.train, source.val))
        hits = [slow_vote(row, train, labels, k, temperature) == label for row, label in zip(test, truth, strict=True)]
        assert found[f"{level} kNN"] == pytest.approx(np.mean(hits))
        assert found[f"{level} mAP"] == pytest.approx(slow_map(test, truth))
        assert 0 < benchmark.chance[f"{level} mAP"] < found[f"{level} mAP"]
    hits = []
    for row, coarse, fine in zip(test, *(source.val.label_columns[level] for level in ("coarse", "fine")), strict=True):
        own = source.train.label_columns["coarse"] == coarse
        hits.append(slow_vote(row, train[own], source.train.label_columns["fine"][own], k, temperature) == fine)
    assert found["fine kNN in coarse"] == pytest.approx(np.mean(hits))
    assert benchmark.chance["fine kNN in coarse"] == pytest.approx(0.5)
    assert "6 of fine" in benchmark.description


def test_chance_looks_at_a_class_once_however_many_photos_it_has(monkeypatch):
    source, calls, unique = source_of(), [], np.unique

    def counted(*arguments, **options):
        calls.append(1)
        return unique(*arguments, **options)

    monkeypatch.setattr(np, "unique", counted)
    many = categories(dataclasses.replace(source, val=split_of(10 * TEST, 2)))
    assert len(calls) < 10 * TEST
    # each query is as likely to be right as there are labels in its own
    assert many.chance["fine kNN in coarse"] == pytest.approx(0.5)


def test_photos_that_can_not_be_used_count_as_not_found():
    source = source_of()
    rows = descriptors_of(source, noise=0.01)
    measure = categories(source).measure
    perfect = measure(Answers(np.arange(TRAIN + TEST), rows))
    # those of one coarse label lie in two places
    assert {name for name, value in perfect.items() if value < 1 - 1e-9} == {"coarse mAP"}
    kept = np.delete(np.arange(TRAIN + TEST), [TRAIN + 3, TRAIN + 7, 5])
    found = measure(Answers(kept, rows[kept]))
    assert found["fine kNN"] == found["fine kNN in coarse"] == pytest.approx(1 - 2 / TEST)
    assert found["fine mAP"] < 1 - 2 / TEST
    nothing = np.zeros(0, int)
    assert set(measure(Answers(nothing, rows[nothing])).values()) == {0.0}


def test_one_level_is_called_class_and_one_photo_of_a_label_asks_nothing():
    labels = np.array([0, 0, 1])
    train = Split(["a", "b", "c"], None, lambda: labels)
    source = Source("photos", ["x", "y"], train, Split(["d", "e", "f"], None, lambda: labels))
    found = categories(source, 1).measure(Answers(np.arange(6), np.float64([[1, 0], [2, 0], [0, 1]] * 2)))
    assert found == {"class mAP": 1.0, "class kNN": 1.0}
    precisions = category_average_precisions([[1.0, 0], [1, 0], [0, 1]], {"class": labels})["class"]
    np.testing.assert_array_equal(precisions, [1, 1, np.nan])


def test_equal_similarities_are_ranked_in_the_order_of_the_rows():
    # three photos, each there four times, with labels at random
    rng = np.random.default_rng(0)
    rows, labels = np.eye(3)[rng.integers(0, 3, 12)], rng.integers(0, 3, 12)
    found = category_average_precisions(rows, {"class": labels})["class"]
    assert np.nanmean(found) == pytest.approx(slow_map(rows, labels))
    assert np.nanmean(found) != pytest.approx(slow_map(rows[::-1], labels[::-1]))


def test_labels_that_lie_in_two_coarse_ones_are_named():
    assert categories(source_of()).warnings == ()
    source = source_of()
    source.val.label_columns["coarse"][source.val.label_columns["fine"] == 3] = 2
    benchmark = categories(source)
    # 3 is `x`, which has `b` among the photos for training
    assert benchmark.warnings == (
        "no fine kNN in coarse, as fine labels lie in several coarse ones: 'x' is in 'b' and in 'c'",
    )
    assert "fine kNN in coarse" not in benchmark.chance


def test_neighbors_vote_for_names_too():
    rows, names = [[1.0, 0], [1, 0.1], [0, 1]], ["new", "new", "a longer name"]
    assert vote([[0.1, 1.0], [1, 0]], rows, names, 3).tolist() == ["a longer name", "new"]
    # numbers are no places: any will do
    assert vote([[0.1, 1.0], [1, 0]], rows, [-1, -1, 10**9], 3).tolist() == [10**9, -1]
    assert vote(np.zeros((0, 2)), rows, names).tolist() == []


def test_a_probe_is_linear():
    source = source_of()
    rows = descriptors_of(source, noise=0.01)
    found = probe(source, 3).measure(Answers(np.arange(TRAIN + TEST), rows))
    assert found == pytest.approx({f"{level} {kind}": 1 for level in ("coarse", "fine") for kind in ("kNN", "linear")})
    # a direction alone, which neighbours in other directions hide
    rng = np.random.default_rng(0)
    fine = np.concatenate([part.label_columns["fine"] for part in (source.train, source.val)])
    hidden = np.concatenate([0.4 * np.eye(FINE)[fine], rng.normal(size=(TRAIN + TEST, 8)) / 3], axis=1)
    found = probe(source).measure(Answers(np.arange(TRAIN + TEST), hidden))
    assert found["fine linear"] > found["fine kNN"]


def test_what_can_not_be_measured_is_refused():
    unknown = Split(["a"], None, lambda: np.array([-1]))
    with pytest.raises(UserError, match="categories needs photos that all have labels, received photos"):
        categories(Source("photos", [], unknown, unknown))
    with pytest.raises(ValueError, match="k must be at least 1, received 0"):
        vote(np.eye(2), np.eye(2), np.arange(2), 0)
    with pytest.raises(ValueError, match="temperature must be > 0, received 0"):
        vote(np.eye(2), np.eye(2), np.arange(2), 1, 0)
    with pytest.raises(ValueError, match="labels must be one a row"):
        vote(np.eye(2), np.eye(2), np.arange(3))


@pytest.mark.slow
def test_a_packed_network_stands_in_the_tables(tmp_path, monkeypatch):
    """As the model in the package: photos of any folder or table, by their places."""
    # no shell writes out what stands behind a =
    monkeypatch.setenv("HOME", str(tmp_path))
    draw_folder(tmp_path / "photos", per_class=5)
    rows = [f"photos/{name}/{number:02}.jpg,{name == 'disks'},{name}" for name in CLASSES for number in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,coarse,fine", *rows]))
    about = {"trunk": "plain", "resolution": 32, "pooling_exponent": 3.0, "p_star": {"32": 2.0}, "class_names": ["a"]}
    packed = SimpleNamespace(about=about, whitening=None, network=lambda: Network(plain_trunk(), 1))
    places = ["categories=~/labels.csv?label=coarse,fine", "probe=~/photos"]
    metrics = evaluate_packed(packed, places, options=Options(neighbors=2))
    assert list(metrics["benchmarks"]) == ["categories (table labels.csv)", "probe (folder photos)"]
    (found,) = metrics["benchmarks"]["categories (table labels.csv)"]["results"]["32"].values()
    assert found["pooling"] == 2.0
    assert 0 <= found["fine kNN in coarse"] <= 1
    console = Console(width=200, record=True, file=io.StringIO())
    for table in levels_tables(metrics):
        console.print(table)
    printed = console.export_text()
    for word in ("fine mAP %", "fine kNN in coarse %", "class linear %", "chance"):
        assert word in printed
    assert retrieval_table(metrics) is None
    with pytest.raises(UserError, match="a model without a run is measured on --benchmarks NAME=PATH"):
        evaluate_packed(packed, ["categories"])
    assert {"categories", "probe"} < set(NAMES)


def test_columns_of_labels_are_one_benchmark():
    given = ["categories=a.csv?label=coarse", "fine", "probe=b", "classes", "probe=c?label=x", "copies"]
    assert evaluate._whole(given) == [
        "categories=a.csv?label=coarse,fine",
        "probe=b",
        "classes",
        "probe=c?label=x",
        "copies",
    ]
