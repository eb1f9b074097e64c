"""Runs on photos in shards, from the settings to the scores."""

import numpy as np
import pytest

from mg_keras.models import trunks
from mg_keras.programs import whole_run
from mg_keras.runs.config import TrainConfig
from tests.data.shards_test import example, tar, tfrecords
from tests.train.tiny import CLASSES, draw_folder, weights

STAGES = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


@pytest.fixture
def small_trunk(monkeypatch):
    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))


def settings(tmp_path, data, **changes):
    values = {"resolution": 32, "batch_size": 8, "epochs": 1, "iterations": 6, "learning_rate": 0.01, **changes}
    return TrainConfig(data=data, data_dir=str(tmp_path / "cache"), trunk="resnet18", augmentation="standard", **values)


def photos(folder):
    """(class number, bytes) of a drawn folder, classes mixed."""
    draw_folder(folder)
    files = sorted(folder.rglob("*.jpg"), key=lambda path: (path.stem, path.parent.name))
    return [(CLASSES.index(path.parent.name), path.read_bytes()) for path in files]


@pytest.mark.slow
def test_tfrecords_are_trained_and_measured_on(tmp_path, small_trunk, capfd):
    records = [
        example(image__encoded=content, image__class__label=label + 1, image__class__text=CLASSES[label].encode())
        for label, content in photos(tmp_path / "photos")
    ]
    for shard in range(3):
        tfrecords(tmp_path / "set" / f"train-{shard:05}-of-00003", records[shard:27:3])
    tfrecords(tmp_path / "set" / "validation-00000-of-00001", records[27:])
    config = settings(tmp_path, f"tfrecord:{tmp_path / 'set'}", evaluation_resolutions=[32], whitening_shrinkage=0.1)
    run = whole_run.train_and_measure(config, tmp_path / "run", "single")
    assert "3 classes, 27 training and 9 validation photos" in capfd.readouterr().out
    assert run.class_names == list(CLASSES)
    assert set(run.results.metrics["resolutions"]) == {"32"}
    assert run.results.p_star[32] > 0
    assert run.results.whitening is not None
    assert not (run.path / "bad_images.txt").exists()


@pytest.mark.slow
def test_a_run_on_tars_goes_on_to_the_same_weights(tmp_path, small_trunk, monkeypatch, capfd):
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    members = [
        member
        for number, (label, content) in enumerate(photos(tmp_path / "photos"))
        for member in ((f"{number:02}.jpg", content), (f"{number:02}.cls", b"%d" % label))
    ]
    for shard in range(3):
        tar(tmp_path / "set" / f"{shard:03}.tar", members[24 * shard : 24 * shard + 24])
    config = settings(
        tmp_path, f"webdataset:{tmp_path}/set/{{000..002}}.tar", checkpoint_every=4, keep_checkpoints=2, val_every=9
    )
    run = whole_run.train_and_measure(config, tmp_path / "run", "single")
    expected = weights(run.path)
    max((run.path / "checkpoints").glob("step-*.npz")).unlink()
    whole_run.train_and_measure(config, tmp_path / "run", "single")
    assert "going on from step 4" in capfd.readouterr().out
    for name, values in weights(run.path).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
