"""The soak at a small size, in which no request may be lost, and the table; how fast is no matter here."""

import re
import runpy
import sys

import pytest
import tensorflow as tf

from tests.serving import stand_in


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_in") / "multigrain"
    stand_in.save(folder, version=3)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program in this process, which has TensorFlow already; the server has one of its own all the same."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["serving", *map(str, arguments)])
        runpy.run_module("benchmarks.serving", run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_soak(model, run):
    printed = run("--model", model, "--resolution", 32, "--soak", 400)
    assert "360 answered right, 40 malformed refused (11 kinds), 0 faults" in printed
    assert re.search(r"memory, MB: \d+ before the first swap of versions; after each swap (\d+, ){3}\d+\n", printed)


@pytest.mark.slow
def test_table(model, run):
    printed = run("--model", model, "--resolution", 32, "--requests", 8)
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[0] for row in table] == [f"{kind}, {clients}" for clients in (1, 4, 16) for kind in ("REST", "gRPC")]
    for _, *cells in table:
        p50, p95, p99, rate = map(float, cells)
        assert 0 < p50 <= p95 <= p99
        assert rate > 0


@pytest.mark.slow
def test_a_model_that_takes_no_files_gets_one_line(tmp_path, run, capsys):
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path / "1"), module.double)
    with pytest.raises(SystemExit) as stopped:
        run("--model", tmp_path, "--soak", 10)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / '1'} does not answer (mg-keras export writes a model that does): ")
    assert 'key "encoded" not found' in error


def test_a_folder_without_a_model_gets_one_line(tmp_path, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--model", tmp_path)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "holds no version of a model" in error
