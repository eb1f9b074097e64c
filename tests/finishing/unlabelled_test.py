"""The stages after training on photos without labels: what needs none is done, what needs some says so."""

import numpy as np
import pytest

from mg_keras.checkpoints import snapshot
from mg_keras.errors import UserError
from mg_keras.finishing import p_star
from mg_keras.finishing.settings import Choosing
from mg_keras.models import trunks
from mg_keras.programs import scores, stages
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.results import ChosenExponent
from mg_keras.runs.run import Run
from tests.train.tiny import CLASSES, draw_folder, pinhole


@pytest.fixture
def unlabelled(tmp_path, monkeypatch):
    """(a run of a network of three classes whose photos have none, its source)."""
    monkeypatch.setattr(trunks, "build", pinhole)
    config = TrainConfig(
        data=f"photos:{draw_folder(tmp_path / 'photos', per_class=5)}",
        trunk="resnet18",
        resolution=32,
        evaluation_resolutions=[32],
        batch_size=8,
        whitening_dimensions=2,
    )
    run = Run.start(tmp_path / "run", config)
    source = run_photos.open_source(config)
    run.save_class_names(CLASSES)
    run.save_data(source)
    model = build_model(config, len(CLASSES))
    for weight in model.classifier.weights:
        weight.assign(np.random.default_rng(0).standard_normal(weight.shape))
    run.checkpoints.save(1, snapshot({"model": model.state_variables}), {"best": {"step": 1}})
    run.results.save_choices({32: ChosenExponent(3.0, {3.0: 4.0})})
    return run, run_photos.matched(run, source)


@pytest.mark.slow
def test_what_needs_no_label_is_done(unlabelled):
    run, source = unlabelled
    assert (source.class_names, len(source.train), len(source.val)) == ([], 12, 3)
    assert stages.fit_whitening(run, source, measure_classes=True).startswith("12 training photos")
    entry = run.results.whitening_report[32]
    assert 0 <= entry["class_agreement"] <= 1
    assert not {"top1_embedding", "top1_descriptor"} & set(entry)
    metrics = scores.evaluate(run, source)
    assert sorted(metrics["benchmarks"]) == ["copies", "in_aug"]
    assert set(metrics["resolutions"]["32"]) == {
        "p_star",
        "instance",
        "instance_whitened",
        "copies",
        "copies_unwhitened",
    }
    assert (run.path / "retrieval.png").is_file()


def test_what_needs_labels_says_so_before_anything_is_measured(unlabelled, monkeypatch):
    run, source = unlabelled
    monkeypatch.setattr(p_star, "choose", None)
    with pytest.raises(UserError, match="classes needs photos of known classes, received 3 without labels"):
        scores.open_benchmarks(run, source, ["classes"])
    with pytest.raises(UserError, match=r"fine-tuned on the classes .* choose it by cross-validation"):
        stages.choose_p_star(run, source, Choosing(method="fine-tuning"))
    with pytest.raises(UserError, match="a sweep measures the accuracy on classes"):
        stages.choose_p_star(run, source, Choosing(sweep=True))
