import numpy as np
import pytest

from mg_keras.models import trunks
from mg_keras.pretrained import lite0
from mg_keras.programs import whole_run
from mg_keras.programs.common import PRESETS
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import load_run
from tests.train.tiny import draw_folder

STAGES = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


@pytest.mark.slow
def test_a_transfer_starts_from_weights_and_goes_on_without_them(tmp_path, monkeypatch, capfd):
    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))
    # measured, it would take longer than trained
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    path, trunk = tmp_path / "a.weights.h5", trunks.build("resnet18")
    trunk.save_weights(path)
    config = TrainConfig(
        data=f"folder:{draw_folder(tmp_path / 'photos', per_class=4)}",
        trunk="resnet18",
        init=str(path),
        frozen_stages=2,
        frozen_statistics=True,
        trunk_rate=0.5,
        resolution=32,
        batch_size=8,
        epochs=1,
        iterations=2,
        learning_rate=0.01,
        # in turn, version after version
        augmentation=["standard", "none"],
    )
    run = whole_run.train_and_measure(config, tmp_path / "run", "single")
    assert f"weights of {path}: the trunk; new classifier" in capfd.readouterr().out
    found = load_run(run.path)
    assert (found.settings.init, found.settings.recipes) == (str(path), ["standard", "none"])
    after = found.model.trunk.weights
    for old, new in zip(trunk.weights, after, strict=True):
        # batch norms stay as they are in all stages
        trained = new.path.startswith("stack1") and "_bn" not in new.path
        assert np.array_equal(old, new) == (not trained), new.path

    # what it started from is needed no more
    path.unlink()
    whole_run.train_and_measure(config, tmp_path / "run", "single")
    output = capfd.readouterr().out
    assert "going on from step 2" in output
    assert "weights of" not in output
    for old, new in zip(after, load_run(run.path).model.trunk.weights, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    ("name", "init"), [("transfer", "package"), ("demo", "package"), ("caltech101_transfer", "imagenet")]
)
def test_presets_start_from_weights_that_are_to_be_had(name, init):
    config = TrainConfig.load(PRESETS / f"{name}.yaml")
    assert (config.trunk, config.init) == (lite0.TRUNK, init)
    # one replica and two hold whole groups
    assert config.part_size(2) % config.versions == 0
