"""Every schedule, strategy and preset through the training loop, cut down to a trunk that builds in no time."""

import contextlib
import dataclasses
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mg_keras import MultiGrain
from mg_keras.data import images, repeated
from mg_keras.data.sources import open_source
from mg_keras.embedding.photos import Embeddings
from mg_keras.errors import UserError
from mg_keras.evaluation import pictures
from mg_keras.models import trunks
from mg_keras.programs import common, whole_run
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run
from mg_keras.training import loop
from mg_keras.training.loop import Stopped, Trainer, make_strategy, rate_schedule
from tests.train.tiny import CLASSES, draw_folder, pinhole

PRESETS = sorted(common.PRESETS.glob("*.yaml"))
EPOCHS, ITERATIONS = 2, 3
VALIDATE = Trainer._validate
SCHEDULES = {
    "step, as far as it gets": {"milestones": [30, 60, 90]},
    "step, reached": {"milestones": [1, 30]},
    "step, none": {"milestones": []},
    "cosine": {"schedule": "cosine"},
    "cosine after a warm-up": {"schedule": "cosine", "warmup_epochs": 0.5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return f"folder:{draw_folder(tmp_path_factory.mktemp('photos'), per_class=4)}"


@pytest.fixture(autouse=True)
def training_alone(monkeypatch):
    """Neither a trunk nor validation nor pictures, each of which takes longer than the steps."""
    monkeypatch.setattr(Trainer, "_validate", lambda trainer: {"val_top1": 0.5, "val_top5": 1.0})
    monkeypatch.setattr(pictures, "training_curves", lambda *given: None)
    monkeypatch.setattr(trunks, "build", pinhole)


def expected_rate(config, step):
    """The paper's schedule, step by step; the cosine's from its definition."""
    if config.schedule == "step":
        return config.learning_rate * config.decay ** sum(step // ITERATIONS >= epoch for epoch in config.milestones)
    warmup, total = round(config.warmup_epochs * ITERATIONS), EPOCHS * ITERATIONS
    if step < warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(
    ("schedule", "strategy"),
    [*((schedule, "mirrored") for schedule in SCHEDULES.values()), (next(iter(SCHEDULES.values())), "single")],
    ids=[*SCHEDULES, "single"],
)
@pytest.mark.slow
def test_every_schedule_and_strategy_trains(schedule, strategy, data, tmp_path):
    config = TrainConfig(
        data=data,
        batch_size=8,
        epochs=EPOCHS,
        iterations=ITERATIONS,
        learning_rate=0.01,
        beta_learning_rate=0.0,
        **schedule,
    )
    rates = [float(rate_schedule(config, 0.01)(step)) for step in range(EPOCHS * ITERATIONS)]
    np.testing.assert_allclose(rates, [expected_rate(config, step) for step in range(len(rates))], rtol=1e-5)
    trainer = Trainer(Run.start(tmp_path / "run", config), open_source(data), make_strategy(strategy))
    batch = tf.random.stateless_uniform((8, 16, 16, 3), [1, 2]), tf.range(8) % 3, tf.range(8) // 3
    state = trainer.train([batch] * len(rates))
    assert [row["epoch"] for row in state.history] == [1, 2]
    for row in state.history:
        assert row["learning_rate"] == pytest.approx(rates[row["step"] - 1])
        assert math.isfinite(row["loss"])
    # what it learnt comes back, with the rate that the next step is to have
    again = Trainer(Run.open(tmp_path / "run"), open_source(data), make_strategy(strategy))
    assert again.restore()
    assert again.state == state
    assert int(again.model.optimizer.iterations.numpy()) == EPOCHS * ITERATIONS


def test_a_run_stopped_as_an_epoch_ends_loses_nothing_of_it(data, tmp_path, monkeypatch):
    config = TrainConfig(data=data, objective="classification", versions=1, batch_size=4, epochs=2, iterations=2)
    batch = tf.random.stateless_uniform((4, 16, 16, 3), [1, 2]), tf.range(4) % 3, tf.range(4)
    received, source = [], open_source(data)
    monkeypatch.setattr(Trainer, "_watch_signals", lambda trainer: contextlib.nullcontext(received))

    def trained(name, batches):
        trainer = Trainer(Run.start(tmp_path / name, config), source, make_strategy("single"))
        trainer.restore()
        return [(row["epoch"], row["step"], row["loss"]) for row in trainer.train(batches).history]

    def stopped_with_the_second_step():
        yield batch
        received.append(2)
        yield batch

    whole = trained("whole", [batch] * 4)
    with pytest.raises(Stopped):
        trained("run", stopped_with_the_second_step())
    received.clear()
    # and in the last validation
    answers = iter([lambda: None, lambda: received.append(2)])
    monkeypatch.setattr(Trainer, "_validate", lambda trainer: next(answers)() or {"val_top1": 0.5, "val_top5": 1.0})
    with pytest.raises(Stopped):
        trained("run", [batch] * 2)
    received.clear()
    np.testing.assert_allclose(trained("run", []), whole, rtol=1e-5)


def classifier(data, **settings):
    """The settings of a plain classifier whose weights stay where they are, as far as a loss tells."""
    plain = {"objective": "classification", "versions": 1, "batch_size": 4, "learning_rate": 1e-12}
    return TrainConfig(data=data, **plain, **settings)


def some_batch(seed):
    return tf.random.stateless_uniform((4, 16, 16, 3), [seed, 2], 0, 255), tf.range(4) % 3, tf.range(4)


def test_the_optimisers_and_the_step_are_those_of_the_settings(data, tmp_path):
    settings = {"learning_rate": 0.02, "beta_learning_rate": 0.3, "momentum": 0.7, "milestones": []}
    of_a_step = {"weight_decay": 0.003, "trunk_rate": 0.25, "accumulation_steps": 2, "jit_compile": True}
    config = TrainConfig(data=data, batch_size=8, **settings, **of_a_step)
    model = Trainer(Run.start(tmp_path / "run", config), open_source(data), make_strategy("single")).model
    assert {name: getattr(model.step, name) for name in of_a_step} == of_a_step
    optimizers = {"weights": model.optimizer, **model.step.group_optimizers}
    found = {name: (float(of.learning_rate), of.momentum) for name, of in optimizers.items()}
    assert found == {"weights": (pytest.approx(0.02), 0.7), "beta": (pytest.approx(0.3), 0.7)}


def test_an_epoch_has_the_metrics_and_the_speed_of_its_own_steps(data, tmp_path, monkeypatch):
    source, batches = open_source(data), [some_batch(seed) for seed in range(4)]
    config = classifier(data, epochs=2, iterations=2, checkpoint_every=1)
    trainer = Trainer(Run.start(tmp_path / "run", config), source, make_strategy("single"))
    # two seconds a step
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: 2.0 * trainer.state.step))

    def loss(batch):
        logits = trainer.model(batch[0])["logits"].numpy().astype(np.float64)
        return -np.mean(np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[range(4), batch[1].numpy()])

    losses = [loss(batch) for batch in batches]
    history = trainer.train(batches).history
    np.testing.assert_allclose([row["loss"] for row in history], np.reshape(losses, (2, 2)).mean(1), rtol=1e-4)
    assert abs(np.diff([row["loss"] for row in history])) > 0.01
    assert [row["images_per_second"] for row in history] == [2.0, 2.0]
    assert [row["seconds"] for row in history] == [4.0, 8.0]


def test_validation_comes_when_it_is_due_and_the_best_is_the_highest(data, tmp_path, monkeypatch):
    answers = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(Trainer, "_validate", lambda trainer: {"val_top1": next(answers), "val_top5": 1.0})
    config = classifier(data, epochs=5, iterations=1, val_every=2)
    trainer = Trainer(Run.start(tmp_path / "run", config), open_source(data), make_strategy("single"))
    state = trainer.train([some_batch(0)] * 5)
    assert {row["epoch"]: row["val_top1"] for row in state.history if "val_top1" in row} == {2: 0.2, 4: 0.9, 5: 0.5}
    assert state.best == {"step": 4, "val_top1": 0.9}


@pytest.mark.parametrize("wrong", ["the loss is nan", "a photo: no photo"])
def test_what_is_wrong_is_noticed_before_the_epoch_ends(wrong, data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECK_EVERY", 2)
    config = classifier(data, epochs=1, iterations=4, on_bad_image="fail")
    trainer = Trainer(Run.start(tmp_path / "run", config), open_source(data), make_strategy("single"))

    def batches():
        images, labels, ids = some_batch(0)
        if wrong.startswith("the loss"):
            images *= np.nan
        else:
            trainer.bad_images.add([wrong.split(": ")])
        yield from [(images, labels, ids)] * 4

    with pytest.raises(UserError, match=f"^{wrong}"):
        trainer.train(batches())
    assert trainer.state.step == 2


def test_a_run_killed_before_the_row_of_its_last_epoch_has_it_when_it_goes_on(data, tmp_path, monkeypatch):
    config = TrainConfig(data=data, objective="classification", versions=1, batch_size=4, epochs=2, iterations=1)
    batch = tf.random.stateless_uniform((4, 16, 16, 3), [1, 2]), tf.range(4) % 3, tf.range(4)
    source, log = open_source(data), Trainer._log

    def killed_in_the_second(trainer, row, summaries):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        log(trainer, row, summaries)

    killed = Trainer(Run.start(tmp_path / "run", config), source, make_strategy("single"))
    monkeypatch.setattr(Trainer, "_log", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        killed.train([batch] * 2)
    again = Trainer(Run.open(tmp_path / "run"), source, make_strategy("single"))
    assert again.restore()
    again.train([])
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["1", "1"], ["2", "2"]]


@pytest.mark.parametrize(("policy", "usable"), [("skip", 1), ("skip", 0), ("fail", 1)])
def test_validation_photos_that_cannot_be_used_are_listed_too(policy, usable, tmp_path, monkeypatch):
    source = open_source(f"folder:{draw_folder(tmp_path / 'photos', per_class=3)}")
    rows, gone = np.arange(usable), [source.val.names[row] for row in range(usable, len(source.val))]
    for name in gone:
        Path(name).unlink()
    found = Embeddings(rows, np.ones((1, usable, 4), np.float32), np.arange(usable, len(source.val)))
    monkeypatch.setattr(loop, "embed", lambda *given: found)
    trainer = Trainer(Run.start(tmp_path / "run", TrainConfig(on_bad_image=policy)), source, make_strategy("single"))
    wanted = pytest.raises(UserError, match=rf"{re.escape(gone[0])}: .*(No such file|on_bad_image is fail)")
    with contextlib.nullcontext() if (policy, usable) == ("skip", 1) else wanted:
        assert VALIDATE(trainer)["val_top5"] == 1
    lines = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == gone


@pytest.mark.parametrize("strategy", ["single", "mirrored"])
@pytest.mark.slow
def test_photos_that_are_all_unusable_are_named(strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(repeated, "try_decode", images.try_decode)
    folder = draw_folder(tmp_path / "photos", per_class=4)
    source = open_source(f"folder:{folder}")
    for photo in folder.glob("*/*"):
        photo.write_bytes(b"no photo")
    config = TrainConfig(batch_size=6, epochs=1, iterations=2, resolution=32)
    trainer = Trainer(Run.start(tmp_path / "run", config), source, make_strategy(strategy))
    with pytest.raises(UserError, match=r"^16 photos drawn one after the other can't be used, such as \S+: not a JPEG"):
        trainer.train(trainer.batches())


def test_a_network_that_the_last_step_of_an_epoch_has_spoilt_is_told_so(tmp_path, monkeypatch):
    source = open_source(f"folder:{draw_folder(tmp_path / 'photos', per_class=3)}")
    found = Embeddings(np.arange(3), np.full((1, 3, 4), np.nan, np.float32), np.arange(0))
    monkeypatch.setattr(loop, "embed", lambda *given: found)
    trainer = Trainer(Run.start(tmp_path / "run", TrainConfig(learning_rate=9.0)), source, make_strategy("single"))
    with pytest.raises(UserError, match=r"validation gives nan at step 0: .*try a lower learning_rate \(it was 9.0\)"):
        VALIDATE(trainer)


@tf.function(autograph=False)
def _place_of(number):
    return tf.gather(tf.range(4), number)


@pytest.mark.parametrize("fails", [_place_of, lambda number: tf.gather(tf.range(4), number)], ids=["graph", "at once"])
def test_what_tensorflow_says_of_an_error_is_its_reason(fails):
    """Memory that is used up is told so, too: `OOM when allocating tensor ...`, as an error of a graph."""
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        fails(tf.constant(9))
    assert loop._reason(caught.value).startswith("indices = 9 is not in [0, 4)")


def test_of_several_errors_at_once_the_first_is_told():
    places = "Detected at node zeros defined at (most recent call last):\n<stack traces unavailable>\n" * 2
    error = tf.errors.ResourceExhaustedError(
        None,
        None,
        f"Graph execution error:\n\n{places}2 root error(s) found.\n  (0) RESOURCE_EXHAUSTED:  OOM when ...\n",
    )
    assert loop._reason(error) == "RESOURCE_EXHAUSTED:  OOM when ..."


def test_a_warm_up_that_a_schedule_has_not_is_refused():
    with pytest.raises(UserError, match="warmup_epochs is of the schedule cosine"):
        rate_schedule(TrainConfig(warmup_epochs=1.0), 0.1)


def kinds_of_presets():
    """Presets that differ in more than sizes, rates and photos: one of each kind."""
    kinds = {}
    for path in PRESETS:
        settings = dataclasses.asdict(TrainConfig.load(path)).items()
        kinds.setdefault(str([(name, what(value)) for name, value in settings if name not in OF_NO_KIND]), path)
    return list(kinds.values())


def what(value):
    """Of a number whether it is 0 or 1, which often have a branch of their own."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (value == 0, value == 1) if is_number else value


# what the test below changes, or no branch depends on, or another test here is about
OF_NO_KIND = {
    *("data", "trunk", "train_per_class", "val_per_class", "val_fraction", "resolution", "evaluation_resolutions"),
    *("batch_size", "epochs", "iterations", "augmentation", "frozen_stages", "levels", "preparation", "unlabelled"),
    *("learning_rate", "trunk_rate", "weight_decay", "schedule", "milestones", "warmup_epochs"),
    *("checkpoint_every", "val_every", "in_aug_per_class", "whitening_versions", "whitening_dimensions"),
}


def test_every_preset_is_one():
    for path in PRESETS:
        TrainConfig.load(path)


@pytest.mark.parametrize("path", kinds_of_presets(), ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_kind_of_preset_trains(path, data, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    preset = TrainConfig.load(path)
    changes = {
        "data": data,
        "train_per_class": None,
        "val_per_class": None,
        "resolution": 32,
        "evaluation_resolutions": [32],
        "batch_size": 8,
        # of which two photos fill a batch
        "versions": min(preset.versions, 4),
        "epochs": 1,
        "iterations": 2,
        # every recipe is traced and tested by itself: tests/data/augmentations
        "augmentation": "standard",
        # what belongs to the preset's trunk is tested with one: transfer_test.py
        "frozen_stages": 0,
        "levels": [],
        "val_fraction": 0.2,
        "warmup_epochs": min(preset.warmup_epochs, 0.5),
        "whitening_dimensions": preset.whitening_dimensions and 2,
        "projection_dimensions": 4,
        "contrast_dimensions": preset.contrast_dimensions and 4,
    }
    names = list(CLASSES)
    if preset.init:
        changes["init"] = str(tmp_path / "trunk.weights.h5")
        network = trunks.build(preset.trunk)
        if preset.objective.startswith("distilled_"):
            # a teacher has classes of its own, whose names a file of weights does not hold
            network, names = MultiGrain(network, 3), ["class 0", "class 1", "class 2"]
        network.save_weights(changes["init"])
    config = dataclasses.replace(preset, **changes)
    run = whole_run.train_and_measure(config, tmp_path / "run", "mirrored")
    assert run.checkpoints.paths()[-1].stem == "step-000000002"
    assert run.class_names == names
    assert TrainConfig.load(run.path / "config.yaml") == config
