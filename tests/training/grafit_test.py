"""Whole runs of Grafit: killed and gone on with, its memory with it."""

import signal
import time

import numpy as np
import pytest

from mg_keras.programs import whole_run
from mg_keras.runs.config import TrainConfig
from mg_keras.training import loop
from tests.train.tiny import SETTINGS, arguments, draw_folder, finish, make_trunk_small, start, weights

OPTIONS = {
    "objective": "grafit",
    "versions": 2,
    "projection_dimensions": 8,
    "predictor_width": 8,
    "epochs": 1,
    "iterations": 40,
    "checkpoint_every": 5,
    "evaluation_resolutions": "[32]",
    "deterministic": True,
}


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_memory(tmp_path, monkeypatch):
    folder = draw_folder(tmp_path / "photos", per_class=8)
    run = tmp_path / "killed"
    # stopped at a checkpoint in the middle: what follows is nothing that could end before the kill
    process = start("train/run.py", *arguments(folder, run, strategy="mirrored", **OPTIONS), small_trunk=True)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-000000010.npz").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    begun = max(int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.npz"))
    assert begun < 40, "it ended before it was killed: the test shows nothing"

    make_trunk_small(monkeypatch)
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    # that would be for all tests of this process
    monkeypatch.setattr(loop, "enable_determinism", lambda config: None)
    settings = {**SETTINGS, **OPTIONS, "data": f"folder:{folder}", "evaluation_resolutions": [32]}
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
    (labels,) = (value for name, value in found["single"].items() if value.dtype == np.int32 and value.shape == (18,))
    assert sorted(set(labels)) == [0, 1, 2]
