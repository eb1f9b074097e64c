import runpy
import sys

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.pretrained import from_torch_checkpoint
from mg_keras.pretrained.layouts import MEAN, PROJECTION
from mg_keras.programs import stages
from mg_keras.programs.import_weights import save_run
from mg_keras.runs import photos as run_photos
from mg_keras.runs.run import load_run
from tests.pretrained import torch_writer as by_hand
from tests.pretrained.multigrain_test import CLASSES, SIZE, random_state
from tests.train.tiny import CLASSES as DRAWN
from tests.train.tiny import draw_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos of three classes."""
    return f"folder:{draw_folder(tmp_path_factory.mktemp('data') / 'photos', per_class=5)}"


def whitened_state():
    """A whitened checkpoint of five classes, whose Phi is ê minus its mean."""
    state = random_state()
    mean = np.full(SIZE + 1, 0.01, np.float32)
    weight = np.concatenate([state["classifier.weight"], state["classifier.bias"][:, None]], 1)
    state |= {PROJECTION: np.eye(SIZE + 1, dtype=np.float32), MEAN: mean}
    return state | {"classifier.weight": weight, "classifier.bias": weight @ mean}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return by_hand.write_state(tmp_path_factory.mktemp("checkpoint") / "a.pth", whitened_state())


@pytest.fixture(scope="module")
def network(checkpoint):
    return from_torch_checkpoint(checkpoint)


@pytest.mark.slow
def test_the_run_has_the_network(network, data, tmp_path):
    run, note = save_run(network, tmp_path / "run", data)
    assert "the 3 classes" in note
    assert "not the network's 5" in note
    found = load_run(run.path)
    assert found.class_names == [f"class {number}" for number in range(CLASSES)]
    assert (found.settings.trunk, found.settings.resolutions) == ("resnet18", [224, 500, 800])
    assert found.settings.pooling_exponent == np.float32(3.3)
    assert found.settings.classification_weight == 0.5
    # what a run trains has beta and the state of its draws behind the network's own
    given = network.model.state_variables
    assert len(found.model.state_variables) == len(given) + 2
    for value, expected in zip(found.model.state_variables[: len(given)], given, strict=True):
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(found.results.whitening.projection_, network.whitening.projection_)
    np.testing.assert_array_equal(found.results.whitening.mean_, network.whitening.mean_)
    # measured, it keeps this whitening: chosen for other embeddings, p* would make it void
    assert found.results.p_star == {224: found.settings.pooling_exponent}
    assert found.results.whitening_report[224]["p_star"] == found.settings.pooling_exponent
    assert found.results.whitening_report[224]["dimensions"] == SIZE + 1
    with pytest.raises(UserError, match="holds the checkpoints of a run"):
        save_run(network, tmp_path / "run", data)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        save_run(network, tmp_path / "other", data)


def test_a_run_that_is_there_stays_as_it_is(network, data, tmp_path):
    """Settings are the same wherever photos lie, so those of another `data` would be written over it."""
    run, _ = save_run(network, tmp_path / "run", data)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    elsewhere = draw_folder(tmp_path / "photos", per_class=5)
    with pytest.raises(UserError, match="holds the checkpoints of a run"):
        save_run(network, run.path, f"folder:{elsewhere}")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def with_names(network, names):
    """The network as if it had been opened with these names."""
    return type(network)(network.model, None, names, network.checkpoint)


@pytest.mark.slow
def test_class_names(network, data, tmp_path):
    names = [*DRAWN, "stars", "waves"]
    run, note = save_run(with_names(network, names), tmp_path / "run", data)
    assert run.class_names == names
    assert note is None
    # without a whitening, p* and the whitening are for what comes after
    assert run.results.p_star == {}
    assert run.results.whitening is None
    assert run.results.whitening_report == {}
    # by name, whatever the order
    turned, note = save_run(with_names(network, names[::-1]), tmp_path / "turned", data)
    assert note is None
    source = stages.open_run(turned.path)[1]
    assert source.class_names == names[::-1]
    assert [source.class_names[label] for label in source.val.labels] == [
        name.split("/")[-2] for name in source.val.names
    ]
    # without a record, as an older release left it
    (turned.path / "data.json").unlink()
    assert stages.open_run(turned.path)[1].class_names == names[::-1]


@pytest.mark.parametrize("recorded", [True, False])
def test_classes_that_are_not_the_networks(network, data, tmp_path, recorded):
    run, note = save_run(with_names(network, list("abcde")), tmp_path / "run", data)
    assert "class accuracy on them means nothing" in note
    if not recorded:
        (run.path / "data.json").unlink()
    source = stages.open_run(run.path)[1]
    assert source.class_names == sorted(DRAWN)
    np.testing.assert_array_equal(source.val.labels, run_photos.open_source(run.settings).val.labels)


@pytest.mark.parametrize(
    ("spec", "message"), [("cloud:x", "data must be demo, folder:PATH"), ("folder:/no/such", "no such folder")]
)
def test_data_that_are_not_there(network, tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        save_run(network, tmp_path / "run", spec)
    assert not (tmp_path / "run").exists()


def test_data_with_more_classes(network, tmp_path):
    for name in "abcdefg":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "photos" / name / f"{number}.jpg").touch()
    with pytest.raises(UserError, match="has 7 classes, of which the network, with 5, can't tell all"):
        save_run(network, tmp_path / "run", f"folder:{tmp_path / 'photos'}")


def program(monkeypatch, capsys, *arguments):
    """The program's exit status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["mg_keras.pretrained", *map(str, arguments)])
    status = 0
    try:
        runpy.run_module("mg_keras.pretrained", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("more", [(), ("--describe",)])
def test_the_program_says_what_a_file_is(checkpoint, monkeypatch, capsys, more):
    status, output, _ = program(monkeypatch, capsys, checkpoint, *more)
    assert status == 0
    assert f"{checkpoint}, PyTorch's zip format" in output
    assert "PCA of 513 values" in output


@pytest.mark.slow
def test_the_program_makes_a_run(data, tmp_path, monkeypatch, capsys):
    checkpoint = by_hand.write_state(tmp_path / "a.pth", whitened_state() | {"extra": np.zeros(3, np.float32)})
    names, classes = tmp_path / "names.txt", [*DRAWN, "stars", "waves"]
    # with the byte order mark that Windows writes
    names.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8-sig")
    command = [checkpoint, f"--run={tmp_path / 'run'}", f"--data={data}", f"--class_names={names}"]
    status, _, errors = program(monkeypatch, capsys, *command)
    assert (status, errors) == (2, f"error: {checkpoint} is no MultiGrain checkpoint of a resnet18; unknown: extra\n")
    status, output, errors = program(monkeypatch, capsys, *command, "--strict=false")
    assert status == 0, errors
    assert output.splitlines()[-1].startswith(f"written: {tmp_path / 'run'}")
    assert load_run(tmp_path / "run").class_names == classes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=run"], "--run needs --data"),
        (["--run=run", "--data=demo", "--class_names=/no/such"], "/no/such can't be read as a list of classes"),
        (["--data=demo"], "--data and --class_names are a run's: give --run"),
        (["--describe", "--class_names=names.txt"], "--data and --class_names are a run's: give --run"),
    ],
)
def test_mistakes_are_one_line(checkpoint, monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = program(monkeypatch, capsys, checkpoint, *arguments)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    status, _, errors = program(monkeypatch, capsys, tmp_path / "none.pth")
    assert (status, errors) == (2, f"error: {tmp_path / 'none.pth'} cannot be read: No such file or directory\n")
    assert not list(tmp_path.iterdir())
