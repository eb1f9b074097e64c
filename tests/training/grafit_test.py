"""Whole runs of Grafit: killed and gone on with, its memory with it; what is measured and exported afterwards."""

import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

import mg_keras
from mg_keras.embedding.photos import Embeddings
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.evaluation.folders import Options
from mg_keras.finishing import whitening
from mg_keras.programs import scores, stages, whole_run
from mg_keras.programs.stages import take_projection
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.projection import projection_of
from mg_keras.runs.results import ChosenExponent
from mg_keras.training import loop
from tests.train.tiny import CLASSES, SETTINGS, arguments, draw_folder, finish, make_trunk_small, start, weights

OPTIONS = {
    "objective": "grafit",
    "versions": 2,
    "projection_dimensions": 8,
    "predictor_width": 8,
    "epochs": 1,
    "iterations": 24,
    "checkpoint_every": 4,
    "evaluation_resolutions": "[32]",
    "deterministic": True,
}


def labelled_table(folder):
    """Three kinds of photos, of which two have one coarse label."""
    draw_folder(folder / "photos", per_class=8)
    lines = ["path,coarse,fine"]
    for label, name in enumerate(CLASSES):
        lines += [f"photos/{name}/{number:02}.jpg,{'ab'[label > 0]},{name}" for number in range(8)]
    (folder / "labels.csv").write_text("\n".join(lines))
    return f"csv:{folder / 'labels.csv'}?label=coarse,fine"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_memory(tmp_path, monkeypatch):
    data = labelled_table(tmp_path)
    run = tmp_path / "killed"
    # stopped at a checkpoint in the middle: what follows is nothing that could end before the kill
    process = start("train/run.py", *arguments(None, run, data=data, strategy="mirrored", **OPTIONS), small_trunk=True)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-000000008.npz").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    begun = max(int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.npz"))
    assert begun < 24, "it ended before it was killed: the test shows nothing"

    make_trunk_small(monkeypatch)
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    # that would be for all tests of this process
    monkeypatch.setattr(loop, "enable_determinism", lambda config: None)
    settings = {**SETTINGS, **OPTIONS, "data": data, "evaluation_resolutions": [32]}
    found = {}
    for name, strategy in (("killed", "mirrored"), ("single", "single")):
        whole_run.train_and_measure(TrainConfig(**settings), tmp_path / name, strategy)
        found[name] = weights(tmp_path / name)
    assert found["killed"].keys() == found["single"].keys()
    groups = {name.split("/")[0] for name in found["single"]}
    assert groups == {"model", "optimizer", "metrics", "projection", "objective"}
    for name, value in found["single"].items():
        np.testing.assert_allclose(found["killed"][name], value, rtol=0, atol=1e-6, err_msg=name)
    # every one of the photos has its place in the memory
    (labels,) = (value for value in found["single"].values() if value.dtype == np.int32 and value.shape == (19,))
    assert sorted(set(labels)) == [0, 1]
    check_what_is_measured(tmp_path / "single")


def check_what_is_measured(path):
    """At both levels, the embedding and its projection, which can take the place of a whitening."""
    run, source = stages.open_run(path)
    metrics = scores.evaluate(run, source, scores.open_benchmarks(run, source, ["categories"], Options(neighbors=3)))
    (results,) = metrics["benchmarks"]["categories"]["results"].values()
    assert set(results) == {"gem", "gem_projected"}
    wanted = {f"{level} {kind}" for level in ("coarse", "fine") for kind in ("mAP", "kNN")} | {"fine kNN in coarse"}
    assert set(results["gem"]) == set(results["gem_projected"]) == wanted | {"pooling"}
    assert "categories" in {benchmark.name for benchmark in scores.open_benchmarks(run, source)}
    assert (path / "categories.png").stat().st_size > 0

    kernel, bias = (variable for name, variable in weights(path).items() if name.startswith("projection/"))
    embeddings = mg_keras.load(path).embed(source.val.files)
    # [e; 1] of unit norm, whose projection has another norm and the same direction
    expected = embeddings @ np.concatenate([kernel, bias[None]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(projection_of(run).transform(run_embeddings(run, source)), expected, atol=1e-5)
    assert take_projection(run, source) == "the projection that grafit trained"
    np.testing.assert_allclose(mg_keras.load(path).embed(source.val.files), expected, atol=1e-5)
    report = json.loads((path / "whitening.json").read_text())["32"]
    assert report["dimensions"] == 8
    assert 0 < report["variance_kept"] < 1


def run_embeddings(run, source):
    return stages.embedder_of(run).embed(source.val, 32, [run.settings.pooling_exponent]).values[0]


def test_a_projection_that_was_taken_is_the_descriptor_at_other_resolutions_and_exponents_too(tmp_path, monkeypatch):
    settings = TrainConfig(objective="grafit", versions=2, resolution=32, evaluation_resolutions=[48])
    run, source = loop.Run(tmp_path, settings), SimpleNamespace(val=range(3))
    run.fingerprint = "trained"
    projection, found = Whitening(np.zeros(5), np.eye(5)[:, :2]), Embeddings(np.arange(3), np.ones((1, 3, 4)), None)
    monkeypatch.setattr(stages, "projection_of", lambda run: projection)
    monkeypatch.setattr(whitening, "_usable", lambda *given: found)
    monkeypatch.setattr(whitening, "_classes_kept", lambda *given: {})
    run.results.save_choices({32: ChosenExponent(3.0), 48: ChosenExponent(3.0)})
    embedder = SimpleNamespace(network=None)
    take_projection(run, source, [32], embedder)
    assert list(stages.complete(run, source, embedder)) == ["descriptor at 48 px: the projection that grafit trained"]
    run.results.save_choices({32: ChosenExponent(2.0), 48: ChosenExponent(3.0)})
    (said,) = stages.complete(run, source, embedder)
    assert said.startswith("descriptor at 32 px")
    report = run.results.whitening_report
    assert {size: (entry["p_star"], entry["fitted_on"]) for size, entry in report.items()} == {
        32: (2.0, "projection of the objective grafit"),
        48: (3.0, "projection of the objective grafit"),
    }


def test_a_run_that_projects_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.programs.stages.projection_of", lambda run: None)
    run = loop.Run(tmp_path, TrainConfig(objective="classification"))
    with pytest.raises(UserError, match="with the objective classification, which projects nothing"):
        take_projection(run, None)
