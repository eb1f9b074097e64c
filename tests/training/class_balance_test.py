import numpy as np
import pytest

from mg_keras.models import trunks
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run
from mg_keras.training.class_balance import class_weights
from mg_keras.training.loop import Trainer, make_strategy
from tests.train.tiny import draw_folder

STAGES = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


def slow_weights(labels, num_classes):
    labels = list(labels)
    present = {label for label in labels}
    return [len(labels) / (len(present) * labels.count(c)) if c in present else 0.0 for c in range(num_classes)]


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [2, 2, 0, 0, 0, 0, 0], [1], list(range(5)) * 3])
def test_classes_weigh_alike(labels):
    labels = np.array(labels, "int32")
    weights = class_weights("weights", labels, 5)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, slow_weights(labels, 5), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    sums = [weights[labels[labels == c]].sum() for c in np.unique(labels)]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-6)


def test_none_is_no_weights():
    assert class_weights("none", np.array([0, 1, 1]), 2) is None


@pytest.mark.slow
def test_a_run_trains_with_them(tmp_path, monkeypatch):
    backbone, arguments = trunks.TRUNKS["resnet18"]
    monkeypatch.setitem(trunks.TRUNKS, "resnet18", (backbone, {**arguments, **STAGES}))
    folder = draw_folder(tmp_path / "photos", per_class=10)
    for number in range(3, 10):
        (folder / "squares" / f"{number:02}.jpg").unlink()
    config = TrainConfig(
        data=f"folder:{folder}",
        class_balance="weights",
        # each photo once: the mean weight of the epoch is that of the photos
        val_per_class=1,
        versions=1,
        classification_weight=1.0,
        batch_size=20,
        iterations=1,
        epochs=1,
        # nothing moves
        learning_rate=1e-12,
        trunk="resnet18",
        resolution=32,
        augmentation="none",
        checkpoint_every=100,
    )
    source = run_photos.open_source(config)
    assert np.bincount(source.train.labels).tolist() == [9, 9, 2]
    trainer = Trainer(Run.start(tmp_path / "run", config), source, make_strategy("single"))
    trainer.model.classifier.kernel.assign(trainer.model.classifier.kernel * 0)
    trainer.model.classifier.bias.assign([0.0, 0.0, 2.0])
    trainer.train(trainer.batches())
    # each image's cross-entropy is known, as its logits are the biases
    cross_entropies = np.log(2 + np.exp(2)) - np.array([0, 0, 2])[source.train.labels]
    weights = np.array(slow_weights(source.train.labels, 3))
    expected = np.mean(weights[source.train.labels] * cross_entropies)
    assert expected < 0.9 * np.mean(cross_entropies)
    assert trainer.state.history[0]["classification_loss"] == pytest.approx(expected, rel=1e-5)
