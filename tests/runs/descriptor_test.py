"""What programs say of a run whose whitening is not of its network and p* as they are now."""

from argparse import Namespace

import pytest

import mg_keras
from mg_keras.export import saved_model
from mg_keras.programs import command
from mg_keras.programs.embed import _of_run
from mg_keras.programs.export import export_run
from mg_keras.runs.descriptor import notes
from mg_keras.runs.results import ChosenExponent
from mg_keras.runs.run import load_run
from tests.loading_test import SIZE, folder, make_run, small

__all__ = ["folder", "small"]


@pytest.fixture
def run(small, folder, tmp_path):
    """A run whose p* is 4 now."""
    run = make_run(tmp_path / "run", folder, whitened=True)
    run.results.save_whitening_report({SIZE: {"p_star": 2.0}})
    return run


def embedded(run, **options):
    return _of_run(Namespace(**{"run": run.path, "resolution": None, "p_star": None, "whiten": None, **options}))


def test_what_is_not_of_now_is_said_where_it_is_handed_out(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saved_model, "export_saved_model", lambda *what: None)
    ways = {
        "export": lambda: export_run(load_run(run.path), tmp_path / "model", photos=1),
        "embed": lambda: embedded(run),
        "pack": lambda: command.main(["pack", f"--run={run.path}", f"--out={tmp_path / 'packed'}"]),
        "load": lambda: mg_keras.load(run.path),
    }
    at_another = f"the whitening at {SIZE} px was fitted at another p*: mg-keras whiten --run {run.path} --resolutions"
    for name, hand_out in ways.items():
        hand_out()
        assert at_another in capsys.readouterr().err, name
    # what is not taken need not be of now
    embedded(run, whiten=False)
    assert not capsys.readouterr().err
    run.results.save_whitening_report({SIZE: {"p_star": 4.0, "network": run.fingerprint}})
    mg_keras.load(run.path)
    assert not capsys.readouterr().err


def test_the_best_checkpoint_is_named(run):
    best = run.changed("best")
    best.results.folder.mkdir()
    best.results.save_choices({SIZE: ChosenExponent(4.0, network="of before")})
    best.fingerprint = "of now"
    (note,) = notes(best, [SIZE], [SIZE])
    assert f"mg-keras choose-p-star --run {run.path} --resolutions {SIZE} --checkpoint best" in note
