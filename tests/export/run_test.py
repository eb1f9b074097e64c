import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from mg_keras.checkpoints import snapshot
from mg_keras.export.warm_up import PLACE
from mg_keras.models import trunks
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.run import Run
from tests.export.small import TINY_RESNET
from tests.train.tiny import CLASSES, ROOT, SETTINGS, draw_folder, run_in_process

PROGRAM = str(ROOT / "export" / "run.py")

# Exports version after version of a network of one convolution.
AGAIN_AND_AGAIN = """
import sys
import keras
import numpy as np
from mg_keras.export.saved_model import export_saved_model
from mg_keras import MultiGrain
model = MultiGrain(keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, activation="relu")]), 3)
while True:
    photo = np.full((32, 32, 3), 99, np.uint8)
    export_saved_model(model, None, sys.argv[1], metadata={"training": {"resolution": 32}}, photos=[photo])
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with the small trunk, whose only checkpoint holds first weights."""
    build = trunks.build
    monkeypatch.setattr(trunks, "build", lambda name, **options: build(name, **{**TINY_RESNET, **options}))
    data = draw_folder(tmp_path / "photos", per_class=4)
    settings = {**SETTINGS, "data": f"folder:{data}", "evaluation_resolutions": [48], "resolution": 32}
    run = Run.start(tmp_path / "run", TrainConfig(**settings))
    run.save_class_names(CLASSES)
    run.checkpoints.save(1, snapshot({"model": build_model(run.settings, len(CLASSES)).state_variables}), {})
    return run.path


def versions(folder):
    return sorted(int(path.name) for path in folder.glob("[!.]*"))


def check_whole(path):
    about = json.loads((path / "assets" / "multigrain.json").read_text())
    assert len(about["check"]["figures"]) == 6
    assert sum(1 for _ in tf.data.TFRecordDataset(str(path / PLACE))) == 3
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    answer = served(images=tf.zeros([1, 32, 32, 3]), p_star=tf.constant([3.0]))
    np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, atol=1e-5)
    return about


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_whole_versions(tmp_path):
    command = [sys.executable, "-c", AGAIN_AND_AGAIN, str(tmp_path)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as exporting:
        # from the first one on, any moment of the next two or three
        while exporting.poll() is None and not versions(tmp_path):
            time.sleep(0.02)
        time.sleep(random.SystemRandom().uniform(0, 2))
        assert exporting.poll() is None, exporting.stderr.read()
        exporting.send_signal(signal.SIGKILL)
    left = versions(tmp_path)
    assert left == list(range(1, len(left) + 1))
    for version in left:
        check_whole(tmp_path / str(version))


@pytest.mark.slow
def test_the_program_writes_the_next_version(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "model"
    # what exports that were killed just now and two days ago may have left
    recent, old = (f".{version}.{digit * 32}" for version, digit in ((7, "a"), (6, "b")))
    for name in ("6", recent, old):
        (out / name).mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(out / old, (two_days_ago, two_days_ago))
    arguments = ["--run", run, "--out", out, "--check_photos", 2, "--precision", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["export/run.py", *map(str, arguments)])
    runpy.run_path(PROGRAM, run_name="__main__")
    assert versions(out) == [6, 7]
    assert (out / recent).exists()
    assert not (out / old).exists()
    assert f"{out / '7'} (not whitened)" in capsys.readouterr().out
    about = check_whole(out / "7")
    assert (about["precision"], about["trunk"], about["class_names"]) == ("bfloat16", "resnet18", list(CLASSES))
    assert about["check"]["photos"] == "given"
    assert about["check"]["figures"][0]["photos"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check_photos", 0], "error: --check_photos must be a whole number, at least 1; received '0'"),
        (["--version", 0], "error: --version must be a whole number, at least 1; received '0'"),
        (["--run", "nowhere"], "error: no run in nowhere"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message, run, tmp_path, monkeypatch, capsys):
    command = ["--run", run, "--out", tmp_path / "model", *arguments]
    status, line = run_in_process("export/run.py", command, monkeypatch, capsys)
    assert status == 2
    assert line.startswith(message)
    assert not (tmp_path / "model").exists()
