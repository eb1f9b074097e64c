"""Which resolutions and rows are measured."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mg_keras.embedding.whitening import Whitening
from mg_keras.programs import scores
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.results import ChosenExponent, Results


def test_a_saved_model_without_p_star_is_measured_at_the_resolution_that_it_describes_photos_at(monkeypatch):
    """As a packed network is, and as `mg-keras embed` describes photos with it."""
    monkeypatch.setattr(scores, "open_benchmark", lambda *arguments: "opened")
    monkeypatch.setattr(scores, "_measured", lambda exported, resolution, chosen, rows_at, method: rows_at)
    about = {"path": "model", "about": {"trunk": "small"}, "class_names": ["a"], "pooling_exponent": 3.0}
    sizes = {"train_resolution": 160, "default_resolution": 320}
    for p_star, expected in (({}, [320]), ({160: 2.0}, [160])):
        exported = SimpleNamespace(**about, **sizes, p_star=p_star)
        assert list(scores.evaluate_exported(exported, ["ukb=x"])) == expected


def test_scores_in_short_of_other_resolutions_stay(tmp_path, monkeypatch):
    """`mg-keras evaluate --resolutions 500` says nothing of 96 px, where the run was measured before."""
    results = Results(tmp_path, 64, 3.0)
    # 96 px at the exponent in use, 128 px before another was chosen
    exponents = {64: 3.0, 96: 4.0, 128: 5.0, 500: 5.0}
    results.save_choices({size: ChosenExponent(exponent) for size, exponent in exponents.items()})
    found = {size: {"gem": {"pooling": 4.0, "top1": 0.5}} for size in ("96", "128")}
    entry = {"description": "6 photos", "warnings": [], "photos": 6, "unusable": [], "chance": {"top1": 0.1}}
    results.save_metrics({"network": "trained", "benchmarks": {"classes": {**entry, "results": found}}})
    now = {size: {"gem": {"pooling": p, "top1": 0.6}} for size, p in ((64, 3.0), (500, 5.0))}
    monkeypatch.setattr(scores.measure, "measure_all", lambda *given: {"classes": {**entry, "results": now}})
    monkeypatch.setattr(scores, "projection_of", lambda run: None)
    monkeypatch.setattr(scores.pictures, "scores_picture", lambda *given: None)
    settings = TrainConfig(resolution=64, evaluation_resolutions=[500])
    network = {"fingerprint": "trained", "model_step": 20}
    run = SimpleNamespace(settings=settings, results=results, class_names=["a", "b"], **network)
    source = SimpleNamespace(train=range(9), val=range(6))
    in_short = scores.evaluate(run, source, chosen=[], embedder="of the run")["resolutions"]
    assert {size: row["top1"] for size, row in in_short.items()} == {"64": 0.6, "96": 0.5, "500": 0.6}
    assert in_short["96"]["p_star"] == pytest.approx(4.0)
    assert results.metrics["step"] == 20
    # of a training that has gone on
    run.fingerprint = "trained for longer"
    assert list(scores.evaluate(run, source, chosen=[], embedder="of the run")["resolutions"]) == ["64", "500"]


def test_a_whitening_of_another_p_star_or_network_is_not_measured(tmp_path, monkeypatch):
    """It may be there still, where no new one could be fitted: its rows stay empty."""
    results = Results(tmp_path, 64, 3.0)
    for size, pooling in itertools.product((64, 96), (None, 1.0)):
        Whitening(np.zeros(4), np.eye(4)).save(results.whitening_path(size, pooling))
    results.save_whitening_report({size: {"p_star": 3.0, "network": "trained"} for size in (64, 96)})
    results.save_choices({64: ChosenExponent(3.0), 96: ChosenExponent(9.0)})
    rows, pictured = {}, []

    def measured(embedder, chosen, rows_at, seed, keep):
        rows.update({size: [row.name for row in found] for size, found in rows_at.items()})
        for size in rows_at:
            keep(SimpleNamespace(name="copies"), size, None)
        found = {
            size: {row.name: {"pooling": row.pooling, "mAP": 0.7 if row.whitening else 0.6} for row in found}
            for size, found in rows_at.items()
        }
        about = {"description": "6 photos", "warnings": [], "photos": 6, "unusable": [], "chance": {}}
        return {"copies": {**about, "results": found}}

    monkeypatch.setattr(scores.measure, "measure_all", measured)
    monkeypatch.setattr(scores, "projection_of", lambda run: None)
    monkeypatch.setattr(scores, "copies_picture", lambda *given: pictured.append(given[5]))
    monkeypatch.setattr(scores.pictures, "scores_picture", lambda *given: None)
    settings = TrainConfig(resolution=64, evaluation_resolutions=[96])
    network = {"fingerprint": "trained", "model_step": 20}
    run = SimpleNamespace(settings=settings, results=results, class_names=["a", "b"], **network)
    source = SimpleNamespace(train=range(9), val=range(6))
    plain = ["gem", "average", "rmac"]

    in_short = scores.evaluate(run, source, [], True, "of the run")["resolutions"]
    assert rows == {64: ["gem", "gem_whitened", "average", "average_whitened", "rmac"], 96: plain}
    assert {size: row["copies"] for size, row in in_short.items()} == {"64": 0.7, "96": 0.6}
    assert pictured[0] is not None
    run.fingerprint = "trained for longer"
    in_short = scores.evaluate(run, source, [], True, "of the run")["resolutions"]
    assert rows == {64: plain, 96: plain}
    assert {row["copies"] for row in in_short.values()} == {0.6}
    assert pictured[1] is None
