"""A folder of made-up photos and the programs as a user starts them, for tests of whole runs."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.small_trunk.sitecustomize import STAGES, TRAINING_ALONE

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("crosses", "disks", "squares")

SETTINGS = {
    "trunk": "resnet18",
    "resolution": 32,
    "evaluation_resolutions": "[48]",
    "batch_size": 8,
    "epochs": 2,
    "iterations": 6,
    "checkpoint_every": 4,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "whitening_shrinkage": 0.1,
    # of which the graph is made in a second; runs that are about photos take the full one
    "augmentation": "standard",
}


def draw_folder(folder, per_class=12):
    """Writes `per_class` photos of each of three classes, small and learnable."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            image = rng.uniform(0, 255, 3) + rng.normal(0, 20, (40, 48, 3))
            y, x = np.mgrid[:40, :48] - rng.uniform(14, 26, 2)[:, None, None]
            shape = [np.minimum(abs(x), abs(y)) < 3, x**2 + y**2 < 64, np.maximum(abs(x), abs(y)) < 7][label]
            image[shape] = rng.uniform(0, 255, 3)
            Image.fromarray(np.clip(image, 0, 255).astype("uint8")).save(folder / name / f"{number:02}.jpg")
    return folder


def pinhole(name, dtype=None):
    """In place of `mg_keras.models.trunks.build`: one convolution, whatever the name."""
    import keras

    return keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, strides=4, dtype=dtype)])


def arguments(folder, run, **changes):
    """The command line of a tiny training run, as train/run.py takes it."""
    settings = {**SETTINGS, "data": f"folder:{folder}", "run": run, **changes}
    return [f"--{name}={value}" for name, value in settings.items()]


def start(program, *arguments, small_trunk=False, training_alone=False, **options):
    """Starts a program as a user does; its output is collected.

    With `small_trunk`, resnet18 is two small blocks, in the processes that it starts too; with `training_alone` also,
    they measure and export nothing after training.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = small_environment(training_alone) if small_trunk else {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= options.pop("env", {})
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environment, **{**pipes, **options})


def small_environment(training_alone=False):
    """The environment of a process whose resnet18 is small, as `start` takes it."""
    # the checkout that is tested, whichever is installed
    places = [str(ROOT / "tests" / "train" / "small_trunk"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)} | ({TRAINING_ALONE: "1"} if training_alone else {})


def make_trunk_small(monkeypatch):
    """In this process resnet18 is what it is in programs that are started with `small_trunk`."""
    from mg_keras.models import trunks

    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))


def decode_jpegs_alone(monkeypatch):
    """In this process training takes JPEGs alone, and none that is broken: all kinds take nearly a second to set up."""
    import tensorflow as tf

    from mg_keras.data import repeated

    def decode(contents):
        return tf.io.decode_jpeg(contents, channels=3)

    monkeypatch.setattr(repeated, "decode", decode)
    monkeypatch.setattr(repeated, "try_decode", lambda read, key: (tf.constant(True), decode(read(key))))


def run_in_process(program, command, monkeypatch, capsys):
    """The program's exit status and the last line it wrote to standard error; quicker than a process of its own."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, command)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def finish(process, timeout=400):
    """Waits for a program; returns (exit status, standard output, standard error)."""
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def weights(run):
    """`group/place` -> array of a run's last checkpoint; variables' names hold numbers that a process counts up."""
    with np.load(sorted((Path(run) / "checkpoints").glob("step-*.npz"))[-1]) as file:
        return {"/".join(name.split("/")[:2]): file[name] for name in file.files if name != "meta.json"}
