"""The stages after training, in one sitting: they share what they find out about the photos."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mg_keras import processor
from mg_keras.embedding import embedder
from mg_keras.embedding.photos import Embeddings, embed
from mg_keras.errors import UserError
from mg_keras.export.optimized import Optimized
from mg_keras.models import trunks
from mg_keras.programs import scores as evaluation
from mg_keras.programs import stages, whole_run
from mg_keras.programs.ablations import is_finished
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.results import ChosenExponent
from mg_keras.training import loop
from tests.train.tiny import decode_jpegs_alone, draw_folder

STAGES = {"stackwise_num_filters": [64, 24], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(a run trained and measured with the training exponent as p*, what was embedded for it, what was said)."""
    folder = tmp_path_factory.mktemp("run")
    backbone, arguments = trunks.TRUNKS["resnet18"]
    passes, said = Counter(), []

    def counted(network, split, size, *arguments):
        passes[len(split)] += len(split)
        return embed(network, split, size, *arguments)

    def choose(run, source, embedder):
        run.results.save_choices({32: ChosenExponent(3.0, {3.0: 4.0})})
        return run.results.p_star

    config = TrainConfig(
        data=f"folder:{draw_folder(folder / 'photos')}",
        trunk="resnet18",
        resolution=32,
        augmentation="standard",
        evaluation_resolutions=[32],
        batch_size=8,
        epochs=2,
        iterations=1,
        whitening_dimensions=4,
    )
    with pytest.MonkeyPatch.context() as patch:
        decode_jpegs_alone(patch)
        patch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))
        for module in (embedder, loop):
            patch.setattr(module, "embed", counted)
        for module in (stages, evaluation):
            patch.setattr(module, "announce", said.append)
        patch.setattr(stages, "choose_p_star", choose)
        run = whole_run.train_and_measure(config, folder / "run", "single")
        yield run, passes, said


@pytest.mark.slow
def test_photos_are_embedded_once(measured):
    run, passes, _ = measured
    source = run_photos.open_source(run.settings)
    assert (len(source.train), len(source.val)) == (30, 6)
    # the six validation photos after each of two epochs, and for neither class agreement nor accuracy again; the six
    # edited copies of them
    assert passes == {30: 30, 6: 2 * 6 + 6}
    assert {"class_agreement", "validation_photos"} <= set(run.results.whitening_report[32])


@pytest.mark.slow
def test_scores_are_those_that_each_stage_finds_by_itself(measured):
    run, passes, _ = measured
    together, report, whitening = run.results.metrics, run.results.whitening_report, run.results.whitening
    passes.clear()
    source = run_photos.open_source(run.settings)
    stages.fit_whitening(run, source, stages.COMPARISON)
    evaluation.evaluate(run, source)
    assert run.results.metrics == together
    assert run.results.whitening_report == report
    np.testing.assert_array_equal(run.results.whitening.projection_, whitening.projection_)
    # they were found anew, for each stage: it was no comparison with itself
    assert passes == {30: 30, 6: 2 * 6 + 6}


def test_only_embeddings_of_the_weights_that_were_saved_are_taken_over(measured, monkeypatch):
    run, _, _ = measured
    source = run_photos.open_source(run.settings)
    other = build_model(dataclasses.replace(run.settings, seed=5), 3)
    validated = [3.0], Embeddings(np.arange(6), np.zeros((1, 6, 24), np.float32), np.arange(0))
    found = []

    def note(run, source, embedder):
        found.append(embedder.embed(source.val, 32, [3.0]).values)
        return {"resolutions": {"32": {"p_star": 3.0}}}

    monkeypatch.setattr(stages, "fit_whitening", lambda *arguments, embedder: "no photos")
    monkeypatch.setattr(evaluation, "evaluate", note)
    for copy in (run.model, other):
        whole_run._measure(run, source, SimpleNamespace(copy=copy, validated=validated))
    assert not found[0].any()
    np.testing.assert_array_equal(found[1], embed(Optimized(run.model), source.val, 32, 32, [3.0]).values)


@pytest.mark.slow
def test_of_a_finished_run_is_done_what_is_missing_or_no_longer_of_it(measured, capsys):
    run, passes, said = measured
    report = run.results.whitening_report
    # of the training there are others, which are written anew from its checkpoint
    written = [run.path / name for name in ("p_star.json", "whitening.npz", "metrics.json", "scores.png")]
    times = [path.stat().st_mtime_ns for path in written]

    def again(**settings):
        passes.clear()
        before = len(said)
        whole_run.train_and_measure(dataclasses.replace(run.settings, **settings), run.path, "single")
        out, err = capsys.readouterr()
        assert "Scores by resolution" in out
        assert ("edited copies" in err) == (len(said) > before)
        return f"{run.path} is trained and measured" in out, [line.partition(" ")[0] for line in said[before:]]

    assert again() == (True, [])
    assert not passes
    assert [path.stat().st_mtime_ns for path in written] == times
    (run.path / "scores.png").unlink()
    assert again() == (False, ["measuring"])
    run.results.save_whitening_report({32: {**report[32], "p_star": 9.0}})
    assert again() == (False, ["fitting", "measuring"])
    assert again() == (True, [])
    # to be fitted on other photos
    photos = run.settings.data.removeprefix("folder:")
    assert again(unlabelled=photos) == (False, ["fitting", "measuring"])
    assert run.results.whitening_report[32]["settings"]["unlabelled"] == photos
    assert again(unlabelled=photos) == (True, [])
    assert again() == (False, ["fitting", "measuring"])
    assert run.results.whitening_report == report


def test_where_none_can_be_fitted_it_is_said_whether_an_earlier_whitening_stays(measured, monkeypatch, capsys):
    run, _, _ = measured

    def no_photos(*arguments, embedder):
        raise UserError("no such folder: U")

    monkeypatch.setattr(stages, "fit_whitening", no_photos)
    monkeypatch.setattr(evaluation, "evaluate", lambda run, source, embedder: {"resolutions": {"32": {"p_star": 3.0}}})
    trainer, report = SimpleNamespace(validated=None), run.results.whitening_report
    command = f"(mg-keras whiten --run {run.path} --unlabelled FOLDER takes other photos)"
    try:
        for p_star, expected in ((3.0, "the whitening fitted earlier stays: "), (9.0, "not whitened: ")):
            run.results.save_whitening_report({32: {**report[32], "p_star": p_star}})
            whole_run._measure(run, None, trainer)
            assert capsys.readouterr().err == f"{expected}no such folder: U {command}\n"
        # at a size that comes later there is none
        run.results.save_whitening_report(report)
        whole_run._measure(run.changed(evaluation_resolutions=[48]), None, trainer)
        where = "not whitened at 48 px, elsewhere the whitening fitted earlier stays"
        assert capsys.readouterr().err == f"{where}: no such folder: U {command}\n"
    finally:
        run.results.save_whitening_report(report)


def test_who_trains_a_run_keeps_others_out_and_says_nothing_of_it(measured, capsys):
    run, _, _ = measured
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    with run.claimed(), pytest.raises(UserError, match=f"{run.path} is being trained by another process"):
        whole_run.train_and_measure(run.settings, run.path, "single")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    with run.claimed():
        pass
    nowhere = dataclasses.replace(run.settings, data="folder:nowhere")
    with pytest.raises(UserError, match="nowhere"):
        whole_run.train_and_measure(nowhere, run.path, "single")
    assert capsys.readouterr().out == ""


def test_what_takes_long_is_said_before(measured):
    _, _, said = measured
    first, second = said[:2]
    assert first.startswith("fitting a whitening at 32 px on 30 training photos")
    assert second == "measuring at 32 px: classes (6 photos), in_aug (6 photos), copies (12 photos)"


def test_scores_tell_the_step_that_they_are_of(measured):
    run, _, _ = measured
    assert run.results.metrics["step"] == run.model_step == run.trained_steps == 2
    # as an ablation asks
    assert is_finished(run)


def test_in_aug_is_measured_of_whitened_descriptors_too_whatever_p_star_was_chosen_by(measured):
    run, _, _ = measured
    row = run.results.metrics["resolutions"]["32"]
    assert 1 <= row["instance_whitened"] <= 5


def test_who_trains_in_emulated_bfloat16_is_told(monkeypatch, capsys):
    def said(dtype, computes):
        monkeypatch.setattr(processor, "computes_bfloat16", lambda: computes)
        whole_run._warn_of_emulation(TrainConfig(dtype=dtype))
        return capsys.readouterr().out

    assert "--dtype float32" in said("mixed_bfloat16", False)
    # it computes it, or nobody knows
    assert not any(said("mixed_bfloat16", computes) for computes in (True, None))
    assert not said("float32", False)
