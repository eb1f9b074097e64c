"""A run and its photos: classes by name, photos that moved, more epochs, and what a refused command leaves alone."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from mg_keras.data.sources import open_source
from mg_keras.errors import UserError
from mg_keras.evaluation import pictures
from mg_keras.models import trunks
from mg_keras.programs import ablations as ablation
from mg_keras.programs import stages, whole_run
from mg_keras.programs.common import Parser
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig, add_settings, settings_of
from mg_keras.runs.run import Run, load_run
from mg_keras.training.loop import Trainer
from tests.train.tiny import CLASSES, decode_jpegs_alone, draw_folder, pinhole, run_in_process


@pytest.fixture(autouse=True, scope="module")
def quick():
    """In place of a trunk one convolution, and nothing is measured or drawn."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_validate", lambda trainer: {"val_top1": 0.5, "val_top5": 1.0})
        patched.setattr(pictures, "training_curves", lambda *given: None)
        patched.setattr(trunks, "build", pinhole)
        patched.setattr(whole_run, "_measure", lambda *of_a_run: None)
        decode_jpegs_alone(patched)
        yield


def settings(place, **changes):
    values = {
        "data": f"folder:{place / 'photos'}",
        "augmentation": "none",
        "resolution": 32,
        "evaluation_resolutions": [32],
        "batch_size": 8,
        "epochs": 1,
        "iterations": 2,
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    draw_folder(place / "photos", per_class=4)
    whole_run.train_and_measure(settings(place), place / "run", "single")
    return place


@pytest.fixture
def place(finished, tmp_path):
    """A folder with photos/ and their finished run/."""
    for name in ("photos", "run"):
        shutil.copytree(finished / name, tmp_path / name)
    settings(tmp_path).save(tmp_path / "run" / "config.yaml")
    return tmp_path


def digest(folder):
    """Every file and folder below, with its content."""
    return {
        str(path.relative_to(folder)): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def command_of(program, place):
    if program == "train/run.py":
        config = settings(place)
        default = TrainConfig()
        changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(default, f.name)}
        return [f"--run={place / 'run'}", *(f"--{name}={getattr(config, name)}" for name in changed)]
    return [f"--run={place / 'run'}"]


@pytest.mark.parametrize("program", ["train/run.py", "train/evaluate.py", "train/whiten.py", "train/choose_p_star.py"])
@pytest.mark.slow
def test_other_classes_are_refused_and_the_run_stays_as_it_is(program, place, monkeypatch, capsys):
    before = digest(place / "run")
    (place / "photos" / "disks").rename(place / "photos" / "wheels")
    status, line = run_in_process(program, command_of(program, place), monkeypatch, capsys)
    assert status == 2
    assert line.startswith(
        f"error: {place / 'run'} and folder:{place / 'photos'} have other classes: the data lacks disks"
    )
    assert "the data has wheels, which the run doesn't know; give the classes their names back" in line
    shutil.copytree(place / "photos" / "wheels", place / "photos" / "disks")
    status, line = run_in_process(program, command_of(program, place), monkeypatch, capsys)
    assert status == 2
    assert "have other classes: the data has wheels, which the run doesn't know; give" in line
    shutil.rmtree(place / "photos" / "wheels")
    shutil.rmtree(place / "photos" / "disks")
    status, line = run_in_process(program, command_of(program, place), monkeypatch, capsys)
    assert status == 2
    assert "have other classes: the data lacks disks, which the run knows; give" in line
    assert digest(place / "run") == before


@pytest.mark.parametrize("program", ["train/evaluate.py", "train/whiten.py", "train/choose_p_star.py"])
def test_photos_that_moved_are_named_with_data(program, place, monkeypatch, capsys):
    (place / "photos").rename(place / "album")
    before = digest(place / "run")
    status, line = run_in_process(program, command_of(program, place), monkeypatch, capsys)
    assert (status, line) == (2, f"error: no such folder: {place / 'photos'}")
    # the right place: as far as what is asked for besides, which is wrong
    wrong = {
        "train/evaluate.py": ("--benchmarks=nonsense", "this run has no benchmark 'nonsense'"),
        "train/whiten.py": ("--dimensions=99", "whitening on 9 training photos"),
        "train/choose_p_star.py": ("--resolutions=32,x", "--resolutions must be a list of whole numbers"),
    }
    option, message = wrong[program]
    command = [*command_of(program, place), f"--data=folder:{place / 'album'}", option]
    status, line = run_in_process(program, command, monkeypatch, capsys)
    assert status == 2
    assert message in line
    assert digest(place / "run") == before


def test_the_network_answers_the_same_for_photos_that_moved(place):
    (place / "photos").rename(place / "album")
    run, source = stages.open_run(place / "run", data=f"folder:{place / 'album'}")
    assert run.settings.data == f"folder:{place / 'album'}"
    # for what is done now, not for good
    assert load_run(place / "run").settings.data == f"folder:{place / 'photos'}"
    assert {names_of(source, split) for split in (source.train, source.val)} == {True}


def names_of(source, split):
    """Whether every photo has the class of the folder it lies in."""
    return [source.class_names[label] for label in split.labels] == [name.split("/")[-2] for name in split.names]


@pytest.mark.slow
def test_classes_in_another_order_are_matched_by_name(place):
    """As of a set of tensorflow-datasets, whose order is its own."""
    other = [CLASSES[2], CLASSES[0], CLASSES[1]]
    (place / "run" / "classes.txt").write_text("".join(f"{name}\n" for name in other))
    before = digest(place / "run")
    run, source = stages.open_run(place / "run")
    assert run.class_names == source.class_names == other
    assert names_of(source, source.train)
    assert names_of(source, source.val)
    plain = open_source(run.settings.data)
    np.testing.assert_array_equal(source.train.labels, [[1, 2, 0][label] for label in plain.train.labels])
    # resumed, too
    whole_run.train_and_measure(settings(place), place / "run", "single")
    after = digest(place / "run")
    assert after["classes.txt"] == before["classes.txt"]
    assert {name for name in before if before[name] != after[name]} == set()


def test_photos_without_a_label_keep_none(place):
    source = open_source(f"folder:{place / 'photos'}")
    some = dataclasses.replace(source.val, load_labels=lambda: np.where(np.arange(len(source.val)) == 1, -1, 0))
    turned = dataclasses.replace(source, val=some).with_classes(CLASSES[::-1])
    assert turned.val.labels.tolist() == [2, -1, 2]


def test_a_class_is_the_same_in_another_unicode_form(place):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    (place / "run" / "data.json").unlink()
    source = open_source(f"folder:{place / 'photos'}")
    for noted, found in ((composed, decomposed), (decomposed, composed), (decomposed, decomposed)):
        (place / "run" / "classes.txt").write_text(f"crosses\n{noted}\nsquares\n", encoding="utf-8")
        here = dataclasses.replace(source, class_names=[found, "crosses", "squares"])
        matched = run_photos.matched(load_run(place / "run"), here)
        assert matched.class_names == ["crosses", noted, "squares"]
        np.testing.assert_array_equal(matched.val.labels, [[1, 0, 2][label] for label in source.val.labels])


def test_the_list_of_classes_is_written_once(place):
    run = load_run(place / "run")
    run.save_class_names(CLASSES)
    with pytest.raises(UserError, match=r"classes\.txt holds other classes, or in another order"):
        run.save_class_names(CLASSES[::-1])
    assert Run.open(place / "run").class_names == list(CLASSES)
    (place / "run" / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt is missing"):
        Run.open(place / "run").class_names  # noqa: B018


@pytest.mark.slow
def test_training_goes_on_where_the_photos_are_now(place, capsys):
    (place / "photos").rename(place / "album")
    moved = settings(place, data=f"folder:{place / 'album'}")
    whole_run.train_and_measure(moved, place / "run", "single")
    assert "going on from step 2" in capsys.readouterr().out
    assert Run.open(place / "run").settings == moved
    before = digest(place / "run")
    # other photos of the same classes are no moved ones
    draw_folder(place / "photos", per_class=5)
    with pytest.raises(UserError, match="photos has 12 training photos, where the run was begun with 9: these are not"):
        whole_run.train_and_measure(settings(place), place / "run", "single")
    assert digest(place / "run") == before
    # in the same place it is the user's folder that has grown
    shutil.copy(place / "album" / "disks" / "00.jpg", place / "album" / "disks" / "more.jpg")
    shutil.copy(place / "album" / "disks" / "00.jpg", place / "album" / "disks" / "still_more.jpg")
    whole_run.train_and_measure(moved, place / "run", "single")
    assert "has 11 training photos, where the run was begun with 9" in capsys.readouterr().err


def test_photos_of_some_of_the_teachers_classes_are_known_again(place, capsys):
    """Labels are not needed, and so none is missing."""
    shutil.rmtree(place / "photos" / "crosses")
    config = settings(place, objective="distilled_multigrain", init=str(place / "run"))
    whole_run.train_and_measure(config, place / "on", "single")
    whole_run.train_and_measure(config, place / "on", "single")
    assert "going on from step 2" in capsys.readouterr().out
    _, source = stages.open_run(place / "on")
    assert source.class_names == list(CLASSES)
    assert names_of(source, source.train)


def test_photos_of_other_classes_than_the_teachers_have_no_labels_after_training_either(place):
    (place / "photos" / "crosses").rename(place / "photos" / "ticks")
    config = settings(place, objective="distilled_multigrain", init=str(place / "run"))
    run = Run.at(place / "on", config)
    names, source = run_photos.known_classes(run, run_photos.open_source(config))
    run.begin(source, class_names=names)
    run.checkpoints.save(2, {}, {})
    _, source = stages.open_run(place / "on")
    assert not source.class_names
    assert set(source.train.labels) == set(source.val.labels) == {-1}


@pytest.mark.slow
def test_a_run_of_an_older_release_goes_on(place, capsys):
    (place / "run" / "data.json").unlink()
    (place / "photos").rename(place / "album")
    whole_run.train_and_measure(settings(place, data=f"folder:{place / 'album'}"), place / "run", "single")
    assert "going on from step 2" in capsys.readouterr().out
    assert json.loads((place / "run" / "data.json").read_text()) == {
        "classes": list(CLASSES),
        "training_photos": 9,
        "validation_photos": 3,
    }


def test_other_unlabelled_photos_are_no_other_run(place):
    other = settings(place, unlabelled=str(place / "photos"))
    whole_run.train_and_measure(other, place / "run", "single")
    assert Run.open(place / "run").settings == other


@pytest.mark.slow
def test_more_epochs_on_a_finished_run(place, capsys):
    before = digest(place / "run")
    with pytest.raises(UserError, match=r"epochs: 1 -> 3\).*to train on") as refused:
        whole_run.train_and_measure(settings(place, epochs=3), place / "run", "single")
    assert digest(place / "run") == before
    # what it says, done
    said = str(refused.value).split("give another --run folder and ")[1].split()
    assert said == ["--config", str(place / "run" / "config.yaml"), "--init", str(place / "run")]
    parser = Parser("mg-keras train", "Trains.")
    add_settings(parser, "a YAML file")
    config = settings_of(parser.parse_args([*said, "--epochs=1", "--iterations=1"]))
    assert config == settings(place, iterations=1, init=str(place / "run"))
    whole_run.train_and_measure(config, place / "on", "single")
    assert "the whole model, the classifier of its 3 classes included" in capsys.readouterr().out
    assert digest(place / "run") == before


def test_a_place_that_can_not_be_written_to(place, monkeypatch, capsys):
    (place / "file").touch()
    with pytest.raises(UserError, match=r"file/run can't be written to: .*file is no folder"):
        whole_run.train_and_measure(settings(place), place / "file" / "run", "single")
    # as for whoever lacks the right; whoever runs the tests may have every right
    monkeypatch.setattr(os, "access", lambda path, mode: place / "run" not in (path, *path.parents))
    before = digest(place)
    for program in ("train/run.py", "train/evaluate.py", "train/whiten.py", "train/choose_p_star.py"):
        status, line = run_in_process(program, command_of(program, place), monkeypatch, capsys)
        assert status == 2
        assert line.startswith(f"error: {place / 'run'} can't be written to: {place / 'run'} is read-only for you")
    with pytest.raises(UserError, match=r"new/run can't be written to: .*run is read-only"):
        whole_run.train_and_measure(settings(place), place / "run" / "new" / "run", "single")
    with pytest.raises(UserError, match="can't be written to"):
        ablation.train_members([ablation.Member("a", settings(place), place / "run" / "out")], print)
    assert digest(place) == before


def test_an_ablation_knows_moved_photos_from_others(place):
    def member(seed, data):
        run = Run.start(place / "out" / f"a-seed{seed}", settings(place, seed=seed, data=data))
        run.begin(open_source(data))
        run.checkpoints.save(2, {}, {})
        run.results.save_metrics({"resolutions": {"32": {"p_star": 3.0, "top1": 0.5}}})

    member(0, f"folder:{place / 'photos'}")
    shutil.copytree(place / "photos", place / "album")
    member(1, f"folder:{place / 'album'}")
    assert ablation.collect(place / "out")["presets"]["a"]["seeds"] == [0, 1]
    draw_folder(place / "others", per_class=5)
    member(2, f"folder:{place / 'others'}")
    with pytest.raises(UserError, match=r"a-seed2 was trained on other photos \(folder:.*others\) than .*a-seed0"):
        ablation.collect(place / "out")
