"""p* of a run: what is chosen, written and kept."""

import json

import numpy as np
import pytest

from mg_keras.checkpoints import snapshot
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.evaluation import pictures as drawn
from mg_keras.finishing import p_star
from mg_keras.finishing.pooling_exponent import FineTuned
from mg_keras.finishing.settings import Choosing
from mg_keras.programs import choose_p_star, stages
from mg_keras.runs import descriptor
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.run import Run
from tests.train.tiny import CLASSES, draw_folder, finish, make_trunk_small, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("photos"), per_class=5)


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """A run with a network that has learnt nothing."""
    make_trunk_small(monkeypatch)
    config = TrainConfig(
        data=f"folder:{folder}", trunk="resnet18", resolution=32, evaluation_resolutions=[40], in_aug_per_class=1
    )
    run = Run.start(tmp_path / "run", config)
    run.save_class_names(CLASSES)
    run.checkpoints.save(1, snapshot({"model": build_model(config, len(CLASSES)).state_variables}), {})
    return run


@pytest.fixture
def made_up(run, monkeypatch):
    """The run, its measures replaced: p* is 2 at 32 px and 3 at 40 px by cross-validation, SIZE / 10 by fine-tuning."""
    monkeypatch.setattr(Run, "model", "network")
    monkeypatch.setattr(Run, "fingerprint", "trained")
    monkeypatch.setattr(stages, "Optimized", "optimised {}".format)
    pictures = []

    def draw(path, *shown, score):
        assert score.startswith("IN-aug score (of 5), versions by copies")
        pictures.append((path.name, *map(dict, shown)))

    monkeypatch.setattr(drawn, "exponent_picture", draw)
    monkeypatch.setattr(drawn, "sweep_picture", lambda path, *shown: pictures.append((path.name, *map(dict, shown))))

    def score(size, exponent):
        return 4 - abs(exponent - (2 if size == 32 else 3)) / 10

    def in_aug_counts(network, photos, size, exponents, seed, label, augmentation):
        assert (network, len(photos), seed, augmentation) == ("optimised network", 3, 0, "copies")
        # exponents differ on all photos by as much: nothing is left to chance
        return {exponent: score(size, exponent) + np.array([-0.5, 0, 0.5]) for exponent in exponents}

    def fine_tune_exponent(network, split, size, train_resolution, per_class, epochs, seed, label):
        assert (network, len(split), train_resolution, seed) == ("network", 12, 32, 0)
        return FineTuned(3.0, np.array([3.1, size / 10]), np.zeros(2), [np.arange(per_class), np.arange(epochs)])

    def class_accuracies(network, val, size, train_resolution, exponents, label):
        assert (network, len(val), train_resolution) == ("optimised network", 3, 32)
        return {exponent: {"top1": exponent / 100, "top5": 0.9} for exponent in exponents}

    for function in (in_aug_counts, fine_tune_exponent, class_accuracies):
        monkeypatch.setattr(p_star, function.__name__, function)
    run.pictures = pictures
    return run


def written(run, name="p_star.json"):
    return json.loads((run.path / name).read_text())


def test_cross_validation_is_the_default(made_up):
    source = run_photos.open_source(made_up.settings)
    assert stages.choose_p_star(made_up, source) == {32: 2, 40: 3}
    content = written(made_up)
    assert content["p_star"] == {"32": 2, "40": 3}
    assert list(content["scores"]["40"]) == [str(p) for p in range(1, 11)]
    assert content["fine_tuned"] == {}
    assert (content["photos"], content["versions"]) == (3, 5)
    assert made_up.results.choices[40].scores[3.0] == 4.0
    assert made_up.pictures[-1][0] == "p_star.png"
    assert made_up.pictures[-1][2:4] == ({32: 2, 40: 3}, {})
    assert content["errors"]["40"]["3"] == 0
    rule = {"augmentation": "copies", "tolerance": 1.0, "training_exponent": 3.0, "photos": 3}
    assert content["rules"] == {"32": rule, "40": rule}
    assert content["networks"] == dict.fromkeys(("32", "40"), made_up.fingerprint)
    # a table by resolution for each of what is known, and how it was measured
    tables = ["p_star", "scores", "fine_tuned", "errors", "rules", "networks"]
    assert list(content) == [*tables, "photos", "versions"]


def test_of_exponents_that_are_level_the_one_nearest_to_training_is_taken(made_up, monkeypatch):
    levels = {2.0: [3, 4, 5], 4.0: [3, 4, 4.9], 6.0: [4, 4, 4.4]}

    def in_aug_counts(network, photos, size, exponents, *how):
        return {exponent: np.array(levels[exponent]) for exponent in exponents}

    monkeypatch.setattr(p_star, "in_aug_counts", in_aug_counts)
    source = run_photos.open_source(made_up.settings)
    assert stages.choose_p_star(made_up, source, Choosing([2.0, 4.0, 6.0], tolerance=0), [32]) == {32: 6}
    assert stages.choose_p_star(made_up, source, Choosing([2.0, 4.0, 6.0]), [40]) == {32: 6, 40: 2}
    differences = np.subtract(levels[6], levels[4])
    assert made_up.results.choices[40].errors == {
        2: pytest.approx(np.std(np.subtract(levels[6], levels[2]), ddof=1) / np.sqrt(3)),
        4: pytest.approx(np.std(differences, ddof=1) / np.sqrt(3)),
        6: 0,
    }
    # each resolution keeps the rule that it was chosen by
    assert made_up.pictures[-1][2] == {32: 6, 40: 2}


def test_what_is_not_asked_for_stays(made_up):
    source = run_photos.open_source(made_up.settings)
    stages.choose_p_star(made_up, source)
    found = stages.choose_p_star(made_up, source, Choosing(method="fine-tuning", per_class=4))
    assert found == {32: 3.2, 40: 4.0}
    content = written(made_up)
    assert content["fine_tuned"]["40"] == {"p_star": 4.0, "initial": 3.0, "photos": 4}
    assert content["scores"]["32"]["2"] == 4.0
    assert made_up.pictures[-1][2:4] == ({32: 2, 40: 3}, {32: 3.2, 40: 4.0})
    # the list asked for now replaces what was tried at a resolution; fine-tuned values stay beside
    assert stages.choose_p_star(made_up, source, Choosing([2.5, 3.5])) == {32: 2.5, 40: 2.5}
    content = written(made_up)
    assert list(content["scores"]["32"]) == ["2.5", "3.5"]
    assert content["fine_tuned"]["32"]["p_star"] == 3.2


def test_a_whitening_at_another_exponent_is_named(made_up, monkeypatch, capsys):
    identity = Whitening(np.zeros(512), np.eye(512), bias_channel=False)
    for size in (32, 40):
        identity.save(made_up.results.whitening_path(size))
    made_up.results.save_whitening_report({32: {"p_star": 2.0}, 40: {"p_star": 5.0}})
    opened = made_up, run_photos.open_source(made_up.settings)
    monkeypatch.setattr(stages, "open_run", lambda *arguments: opened)
    choose_p_star.main([f"--run={made_up.path}"])
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("the whitening at 40 px was fitted at another p*: mg-keras whiten --run ")
    assert line.endswith(f"{made_up.path} --resolutions 40 fits it anew")
    # what the objective trained is not to be lost to a whitening
    objective = made_up.settings.objective
    made_up.results.save_whitening_report(
        {32: {"p_star": 2.0, "fitted_on": f"projection of the objective {objective}"}}
    )
    assert descriptor.whiten_command(made_up, [40]).endswith("--resolutions 40 --descriptor projected")


def test_what_was_chosen_before_training_went_on_is_chosen_anew(made_up, monkeypatch):
    source, fitted = run_photos.open_source(made_up.settings), []
    monkeypatch.setattr(stages, "fit_whitening", lambda *of_a_run, resolutions, **how: fitted.extend(resolutions))
    stages.choose_p_star(made_up, source, Choosing(method="fine-tuning"))
    assert not any(said.startswith("p*") for said in stages.complete(made_up, source))
    monkeypatch.setattr(Run, "fingerprint", "trained for longer")
    (note,) = descriptor.notes(made_up, [32, 40], [32, 40])
    assert note.startswith("p* at 32,40 px was chosen before training went on: mg-keras choose-p-star --run ")
    assert note.endswith("run --resolutions 32,40 chooses it anew")
    first, *_ = stages.complete(made_up, source)
    before = "(before training went on {}, fine-tuned)".format
    assert first == f"p* 32 px: 2 {before(3.2)}, 40 px: 3 {before(4)}"
    assert stages.fine_tuned(made_up.results.choices) == {}
    # a choice of an older release, which doesn't say for which network, counts
    content = written(made_up)
    del content["networks"]
    (made_up.path / "p_star.json").write_text(json.dumps(content))
    monkeypatch.setattr(Run, "fingerprint", "trained for longest")
    assert not any(said.startswith("p*") for said in stages.complete(made_up, source))
    assert fitted == [32, 40] * 3


def test_with_both_the_choice_is_cross_validations(made_up):
    source = run_photos.open_source(made_up.settings)
    assert stages.choose_p_star(made_up, source, Choosing(method="both")) == {32: 2, 40: 3}
    assert stages.fine_tuned(made_up.results.choices) == {32: 3.2, 40: 4.0}


def test_fine_tuning_alone_has_no_scores_to_draw(made_up):
    assert stages.choose_p_star(made_up, run_photos.open_source(made_up.settings), Choosing(method="fine-tuning")) == {
        32: 3.2,
        40: 4.0,
    }
    assert made_up.pictures == []


def test_a_sweep_brings_the_scores_of_cross_validation(made_up, monkeypatch):
    source = run_photos.open_source(made_up.settings)
    stages.choose_p_star(made_up, source, Choosing(method="fine-tuning"))
    assert stages.choose_p_star(made_up, source, Choosing([1.0, 3.0], sweep=True)) == {32: 3.0, 40: 3.0}
    assert written(made_up)["scores"]["32"] == {"1": pytest.approx(3.9), "3": pytest.approx(3.9)}
    assert {size: list(found) for size, found in made_up.results.exponent_sweep.items()} == {
        32: [1.0, 3.0, 3.2],
        40: [1.0, 3.0, 4.0],
    }
    scores = made_up.results.exponent_sweep[40][3.0]
    assert scores == {"top1": 0.03, "top5": 0.9, "instance": 4.0}
    assert list(written(made_up, "sweep.json")["32"]) == ["1", "3", "3.2"]
    assert made_up.pictures[-1][0] == "sweep.png"
    assert made_up.pictures[-1][2:4] == ({32: 3.0, 40: 3.0}, {32: 3.2, 40: 4.0})


def test_a_resolution_is_written_as_soon_as_it_is_known(made_up, monkeypatch):
    score = p_star.in_aug_counts

    def stopped(network, photos, size, *rest):
        if size == 40:
            raise KeyboardInterrupt
        return score(network, photos, size, *rest)

    monkeypatch.setattr(p_star, "in_aug_counts", stopped)
    with pytest.raises(KeyboardInterrupt):
        stages.choose_p_star(made_up, run_photos.open_source(made_up.settings))
    assert made_up.results.p_star == {32: 2}


def test_files_of_before_still_read(made_up):
    old = {
        "p_star": {"32": 4, "64": 7},
        "scores": {"32": {"4": 4.5, "5": 4.4}, "64": {"7.0": 4.2}},
        "method": "cross-validation on IN-aug",
        "photos": 6,
        "versions": 5,
    }
    (made_up.path / "p_star.json").write_text(json.dumps(old))
    assert stages.fine_tuned(made_up.results.choices) == {}
    assert stages.choose_p_star(made_up, run_photos.open_source(made_up.settings)) == {32: 2, 40: 3, 64: 7}
    assert written(made_up)["scores"]["64"] == {"7": 4.2}
    assert set(written(made_up)["rules"]) == set(written(made_up)["networks"]) == {"32", "40"}
    assert made_up.pictures[-1][2] == {32: 2, 40: 3, 64: 7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponents": [3, 0.0]}, r"exponents .* received \[3, 0.0\]"),
        ({"exponents": []}, r"exponents .* received \[\]"),
        ({"exponents": [3, 2000]}, r"exponents .* at most 1000, received \[3, 2000\]"),
        ({"exponents": [float("nan")]}, r"exponents .* received \[nan\]"),
        ({"exponents": [float("inf")]}, r"exponents .* received \[inf\]"),
        ({"per_class": 0}, "per_class must be at least 1, received 0"),
        ({"epochs": 0}, "epochs must be at least 1, received 0"),
        ({"tolerance": -1.0}, "tolerance must be a number of at least 0, received -1.0"),
        ({"tolerance": float("nan")}, "tolerance must be .* received nan"),
    ],
)
def test_wrong_arguments_are_the_users_to_mend(arguments, message):
    with pytest.raises(UserError, match=message):
        Choosing(**arguments)


@pytest.mark.slow
def test_the_program_chooses_learns_and_measures(run):
    options = ["--method=both", "--exponents=[1,3.5]", "--resolutions=[32]", "--per_class=2", "--sweep=true"]
    # another recipe than the default, which takes longer to set up
    options.append("--augmentation=standard")
    status, output, errors = finish(start("train/choose_p_star.py", f"--run={run.path}", *options, small_trunk=True))
    assert status == 0, errors
    assert "32 px: p* = " in output
    assert "on 6 photos" in output
    for name in ("p_star.json", "p_star.png", "sweep.json", "sweep.png"):
        assert name in output
        assert (run.path / name).stat().st_size > 0
    sweep, choice = run.results.exponent_sweep, run.results.choices[32]
    assert choice.p_star in (1.0, 3.5)
    assert set(choice.scores) == {1.0, 3.5}
    assert choice.rule["augmentation"] == "standard"
    assert set(sweep[32]) == {1.0, 3.5, choice.fine_tuned["p_star"]}
    assert choice.fine_tuned["initial"] == 3.0
    assert f"{choice.fine_tuned['p_star']:.4g}" in output
