"""Each program prints the rows and the ratios it promises; how fast is no matter here."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline
from mg_keras.models import Network, trunks
from mg_keras.programs.common import run_program
from tests.export.small import TINY_RESNET
from tests.train.tiny import decode_jpegs_alone, make_trunk_small

ROOT = Path(__file__).resolve().parents[2]


def run(program, *arguments):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", f"benchmarks.{program}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def run_here(program, *arguments):
    """As `run`, in this process, which has TensorFlow already."""
    module = importlib.import_module(f"benchmarks.{program}")
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                run_program(module.main)
            except SystemExit as stopped:
                status = stopped.code
    return SimpleNamespace(returncode=status, stdout=output.getvalue(), stderr=errors.getvalue())


def test_each_is_called_as_its_help_says(monkeypatch, capsys):
    programs = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text()]
    assert len(programs) > 15
    for program in programs:
        monkeypatch.setattr(sys, "argv", ["a.py", "--help"])
        with pytest.raises(SystemExit):
            importlib.import_module(f"benchmarks.{program}").main()
        assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks.{program} [-h]")


def rows(done):
    """First cell -> the other cells, of the table that was printed."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cores, load average" in done.stdout
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    return {name: cells for name, *cells in table}


@pytest.mark.slow
def test_activations(tmp_path, monkeypatch):
    # in place of the model in the package
    network = Network(trunks.build("resnet18", **TINY_RESNET), 2)
    monkeypatch.setattr("mg_keras.load", lambda model: SimpleNamespace(network=network))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    sizes = ["--photo", tmp_path / "a.png", "--resolutions", "64,96", "--exponents", "1,4", "--channel", 7]
    done = run_here("activations", *sizes, "--out", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    lines = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "│" in line]
    assert [line[0].strip() for line in lines] == ["64 px", "", "96 px", ""]
    assert all(0 < float(low) < float(high) <= 1 for _, _, low, high in lines[1::2])
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size[0] > 500
    refused = run_here("activations", *sizes[:-1], 16)
    assert "--channel must be one of 0 to 15, received 16" in refused.stderr


@pytest.mark.slow
def test_grafit(monkeypatch):
    make_trunk_small(monkeypatch)
    done = run_here("grafit", "--part", "memory", "--repeats", 1, "--photos", 500, "--queries", 8)
    assert set(rows(done)) == {"queries x memory", "queries x memory x memory", "loss and gradient", "update"}
    monkeypatch.setattr("benchmarks.grafit.OBJECTIVES", ("classification", "grafit"))
    small = ["--resolution", 32, "--batch-size", 6, "--versions", 2]
    done = run_here("grafit", "--part", "step", "--repeats", 1, "--frozen-stages", 2, *small)
    assert "2 stages frozen, batch 6, m = 2, float32; processor time" in done.stdout
    assert f"grafit step / plain cross-entropy: {rows(done)['grafit'][-1]} " in done.stdout


@pytest.mark.slow
def test_train_step(monkeypatch):
    make_trunk_small(monkeypatch)
    done = run_here("train_step", "--part", "step", "--repeats", 2, "--resolution", 32, "--batch-size", 6)
    table = rows(done)
    assert set(table) == {"cross-entropy", "joint"}
    assert table["cross-entropy"][-1] == "1.000"
    assert f"joint step / plain cross-entropy: {table['joint'][-1]} " in done.stdout


def test_the_loss_beside_its_peer():
    pytest.importorskip("pytorch_metric_learning")
    table = rows(run_here("train_step", "--part", "loss", "--repeats", 1))
    assert set(table) == {"96", "510"}
    assert all(cells[-1].startswith("1/") for cells in table.values())


@pytest.fixture
def jpegs_alone(monkeypatch):
    decode_jpegs_alone(monkeypatch)


PIPELINE = ("--size", 32, "--batch-size", 6, "--steps", 1, "--repeats", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("jpegs_alone")
def test_input_pipeline_with_generated_photos(monkeypatch):
    monkeypatch.setattr(input_pipeline, "WARM_UP_BATCHES", 1)
    monkeypatch.setattr(input_pipeline, "RECIPES", ("none", "none"))
    done = run_here("input_pipeline", "--part", "reading", *PIPELINE, "--latency", 1)
    assert set(rows(done)) == {"files by number", "records by number", "interleaved shards"}
    assert "interleaved shards / files and records by number: " in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("jpegs_alone")
def test_input_pipeline_with_a_folder(tmp_path, monkeypatch):
    # in whose place the paper's full one takes long to trace
    monkeypatch.setattr(input_pipeline, "RECIPES", ("none", "standard"))
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    done = run_here("input_pipeline", "--part", "decoding", "--data", f"folder:{tmp_path}", *PIPELINE)
    table = rows(done)
    assert set(table) == {"none", "standard"}
    assert all(float(cells[-1]) > 0 for cells in table.values())
    assert "from 6 photos" in done.stdout


@pytest.mark.slow
def test_augmentations():
    options = ("--recipes", "standard,none", "--sizes", "32", "--versions", 2, "--repeats", 1)
    table = rows(run("augmentations", *options))
    assert set(table) == {"standard", "none"}
    assert all(float(cell.split()[0]) > 0 for cells in table.values() for cell in cells)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("input_pipeline", ("--data", "tfds:mnist"), "received 'tfds:mnist'"),
        ("input_pipeline", ("--steps", "0"), "--steps must be at least 1, received 0"),
        ("train_step", ("--repeats", "0"), "received 0"),
        ("augmentations", ("--versions", "0"), "--versions must be at least 1, received 0"),
        ("augmentations", ("--sizes", "160,big"), "received 'big'"),
    ],
)
def test_mistakes_get_one_line(program, arguments, message):
    done = run_here(program, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
