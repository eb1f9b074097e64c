"""A network becomes a MultiGrain on photos without its classes: its own answers stand in for labels."""

import csv
import shutil

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.models import trunks
from mg_keras.programs import whole_run
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import load_run
from tests.train.tiny import draw_folder, weights

STAGES = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
SETTINGS = {
    "trunk": "resnet18",
    "resolution": 32,
    "batch_size": 8,
    "epochs": 1,
    "learning_rate": 0.01,
    "augmentation": "standard",
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with other classes than the teacher's; nothing is measured after training, which would take longer."""
    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    folder = draw_folder(tmp_path / "photos", per_class=4)
    (folder / "disks").rename(folder / "plates")
    return folder


@pytest.mark.slow
def test_a_teacher_stands_in_for_labels_and_is_kept(photos, tmp_path, capfd):
    labelled = draw_folder(tmp_path / "labelled", per_class=4)
    teacher = whole_run.train_and_measure(
        TrainConfig(data=f"folder:{labelled}", objective="classification", iterations=2, **SETTINGS),
        tmp_path / "teacher",
        "single",
    )
    expected = load_run(teacher.path).model
    config = TrainConfig(
        data=f"folder:{photos}",
        init=str(teacher.path),
        objective="distilled_multigrain",
        iterations=4,
        checkpoint_every=2,
        **SETTINGS,
    )
    run = whole_run.train_and_measure(config, tmp_path / "run", "mirrored")
    assert "the classifier of its 3 classes included" in capfd.readouterr().out
    assert load_run(run.path).class_names == ["crosses", "disks", "squares"]
    with np.load(run.path / "objective.npz") as kept:
        arrays = [kept[name] for name in kept.files]
    for array, variable in zip(
        arrays[:-3] + arrays[-2:], expected.trunk.variables + expected.classifier.variables, strict=True
    ):
        np.testing.assert_array_equal(array, variable)
    with open(run.path / "metrics.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["val_top1"]) <= float(row["val_top5"]) == 1
    assert float(row["classification_loss"]) > 0

    # its own trunk has moved on; killed at step 2 it goes on with the same teacher, whose run is gone
    whole = weights(run.path)
    shutil.rmtree(teacher.path)
    (run.path / "checkpoints" / "step-000000004.npz").unlink()
    whole_run.train_and_measure(config, run.path, "mirrored")
    assert "going on from step 2" in capfd.readouterr().out
    resumed = weights(run.path)
    assert set(resumed) == set(whole)
    for name in (name for name in whole if name.startswith(("model/", "optimizer/"))):
        np.testing.assert_allclose(resumed[name], whole[name], atol=1e-6, err_msg=name)

    (run.path / "objective.npz").unlink()
    with pytest.raises(UserError, match=r"objective\.npz can't be read"):
        whole_run.train_and_measure(config, run.path, "mirrored")


def test_a_teacher_has_classes(photos, tmp_path):
    trunks.build("resnet18").save_weights(tmp_path / "trunk.weights.h5")
    config = TrainConfig(
        data=f"folder:{photos}", init=str(tmp_path / "trunk.weights.h5"), objective="distilled_multigrain", **SETTINGS
    )
    with pytest.raises(UserError, match=r"trunk\.weights\.h5 come without a classifier, and a teacher needs one"):
        whole_run.train_and_measure(config, tmp_path / "run", "single")
    assert not (tmp_path / "run").exists()
