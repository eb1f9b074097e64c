"""Settings: what each may be, from Python, the command line and a hand-edited file."""

import dataclasses
import math
import subprocess
import sys
import typing

import pytest
import yaml

from mg_keras import objectives
from mg_keras.errors import UserError
from mg_keras.programs.common import PRESETS, Parser
from mg_keras.runs.config import TrainConfig, add_settings, settings_of

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
HINTS = typing.get_type_hints(TrainConfig)
# the numbers at each end, and beyond it
ENDS = {
    "train_per_class": ([1], [0]),
    "val_per_class": ([1], [0]),
    "val_fraction": ([0.01, 0.99], [0.0, 1.0]),
    "resolution": ([1], [0]),
    "versions": ([2], [0]),
    "mixing_alpha": ([1e-9], [0, -1]),
    "temperature": ([1e-9], [0, -1]),
    "contrast_temperature": ([1e-9], [0, -1]),
    "spread_weight": ([0, 30], [-1]),
    "contrast_dimensions": ([1], [0]),
    "projection_dimensions": ([1], [0]),
    "neighbor_temperature": ([1e-9], [0, -1]),
    "memory_size": ([1], [0]),
    "predictor_width": ([1], [0]),
    "target_momentum": ([0, 0.999], [-0.1, 1]),
    "target_versions": ([1], [0]),
    "teacher_exponent": ([1e-9], [0, -1]),
    "frozen_stages": ([0], [-1]),
    "trunk_rate": ([1e-6], [0.0]),
    "pooling_exponent": ([1e-6], [0.0]),
    "classification_weight": ([0, 1], [-0.1, 1.1]),
    "margin": ([1e-6], [0.0]),
    "initial_beta": ([-1.0], []),
    "batch_size": ([1], [0]),
    "accumulation_steps": ([1], [0]),
    "epochs": ([1], [0]),
    "iterations": ([1], [0]),
    "learning_rate": ([1e-9], [0.0]),
    "beta_learning_rate": ([0.0], [-1.0]),
    "momentum": ([0.0, 0.99], [-3.0, 1.0]),
    "weight_decay": ([0.0], [-1.0]),
    "decay": ([1e-6, 1], [0.0, 1.1]),
    "warmup_epochs": ([0.0, 0.5], [-1.0]),
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "val_every": ([1], [0]),
    "checkpoint_every": ([1], [0]),
    "keep_checkpoints": ([1], [0, -1]),
    "in_aug_per_class": ([1], [0]),
    "max_whitening_photos": ([1], [0]),
    "whitening_shrinkage": ([1e-6, 1], [0.0, 1.5]),
    "whitening_dimensions": ([1], [0]),
    "whitening_versions": ([0, 3], [-1]),
    "whitening_power": ([0.0, 1.0], [-0.1, 1.1]),
    "whitening_steps": ([0, 1], [-1]),
}


def of_numbers(name):
    parts = () if typing.get_origin(HINTS[name]) is list else typing.get_args(HINTS[name])
    return {int, float} & {HINTS[name], *parts}


def test_every_number_has_its_ends_tried():
    assert {name for name in FIELDS if of_numbers(name)} == set(ENDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_refuses_what_it_may_not_be(name):
    wrong = [{"a": 1}, object(), math.nan]
    wrong += [] if type(None) in typing.get_args(HINTS[name]) else [None]
    wrong += [] if HINTS[name] in (str, str | None) else ["float99"]
    wrong += [[1]] if of_numbers(name) else [-7]
    for value in wrong + ENDS.get(name, ([], []))[1]:
        with pytest.raises(UserError, match=f"^{name} must be"):
            TrainConfig(**{name: value})
    others = {"whitening_versions": 1} if name == "whitening_steps" else {}
    for value in [FIELDS[name].default, *ENDS.get(name, ([], []))[0]]:
        if value is not dataclasses.MISSING:
            assert getattr(TrainConfig(**others, **{name: value}), name) == value


@pytest.mark.parametrize(
    "values",
    [
        {"milestones": [3, 1]},
        {"milestones": [1, 1]},
        {"milestones": [-1]},
        {"milestones": [0.5]},
        {"milestones": 3},
        {"evaluation_resolutions": [96, 0]},
        {"evaluation_resolutions": 96},
        {"versions": 1},
        {"schedule": "cosine", "epochs": 2, "warmup_epochs": 2.0},
        {"whitening_steps": 10},
        {"whitening_augmentations": ["copies"]},
        {"whitening_versions": 1, "whitening_augmentations": ["copies", "copies"]},
        {"whitening_versions": 1, "whitening_augmentations": ["copies", "none"]},
        {"whitening_versions": 1, "whitening_augmentations": ["copied"]},
    ],
    ids=str,
)
def test_lists_and_what_does_not_go_together(values):
    with pytest.raises(UserError, match=next(reversed(values))):
        TrainConfig(**values)


def test_lists_that_may_be():
    assert TrainConfig(milestones=[]).milestones == []
    assert TrainConfig(milestones=[0, 5]).milestones == [0, 5]
    assert TrainConfig(resolution=64, evaluation_resolutions=[96, 96, 64]).resolutions == [64, 96]
    assert TrainConfig(resolution=64, evaluation_resolutions=[]).resolutions == [64]
    assert TrainConfig(resolution=64).resolutions == [64, 96, 128]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: three", "epochs must be a whole number, at least 1; received 'three'"),
        ("epochs: '3'", "epochs must be a whole number, at least 1; received '3'"),
        ("epochs: null", "epochs must be a whole number, at least 1; received null"),
        ("learning_rate: [0.1]", r"learning_rate must be a number, above 0; received \[0.1\]"),
        ("milestones: 30", "milestones must be a list of whole numbers.*; received 30"),
        ("deterministic: 1", "deterministic must be true or false; received 1"),
        ("dtype: float99", "dtype must be one of float32, mixed_bfloat16; received 'float99'"),
        ("momentum: 1.5", "momentum must be a number, at least 0 and below 1; received 1.5"),
        ("versions: 1", "versions 1 gives no positive pairs"),
        ("learning_rat: 1", "unknown setting 'learning_rat', did you mean 'learning_rate'?"),
        ("3: 1", "unknown setting 3"),
        ("epochs: 3\nseed: 1\nepochs: 4", r"epochs is set twice \(lines 1 and 3\): leave one"),
        ("- epochs", " holds no settings: a line for each is wanted"),
        ("epochs", " holds no settings: a line for each is wanted"),
        ("", " holds no settings: a line for each is wanted"),
        ("epochs: [1", r" is no YAML \(line \d\): "),
        ("a: !!python/object:os.system x", r" is no YAML \(line 1\): could not determine a constructor"),
        (b"data: \xff", " is no YAML: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_edited_by_hand(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as refused:
        TrainConfig.load(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml can't be read: No such file"):
        TrainConfig.load(tmp_path / "none.yaml")


def test_settings_and_names_are_read_without_tensorflow():
    modules = "mg_keras.runs.config, mg_keras.evaluation.folders, mg_keras.finishing.settings, mg_keras.data.finding"
    code = f"import sys, {modules}; assert not {{'tensorflow', 'keras'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_saved_is_read_and_what_an_older_release_lacked_has_its_default(tmp_path):
    config = TrainConfig(learning_rate=1e-5, milestones=[], init="imagenet", evaluation_resolutions=[96])
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["whitening_dimensions"], values["frozen_stages"]
    # a person's way to write it, which YAML 1.1 takes for a text
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values).replace("1.0e-05", "1e-5"))
    assert "learning_rate: 1e-5" in (tmp_path / "config.yaml").read_text()
    assert TrainConfig.load(tmp_path / "config.yaml") == config


def parse(*arguments):
    parser = Parser("mg-keras some", "Trains.")
    add_settings(parser, "a YAML file")
    parser.add_argument("--strategy")
    return settings_of(parser.parse_args(list(map(str, arguments))))


def test_settings_of_the_command_line_and_of_files(tmp_path):
    path = tmp_path / "mine.yaml"
    # what --print_config writes has the program's other arguments, too
    path.write_text("epochs: 7\nstrategy: single\nmilestones: [2]\n")
    assert parse("--config", path, "--epochs=8") == TrainConfig(epochs=8, milestones=[2])
    assert parse("--config", PRESETS / "demo_from_scratch.yaml").resolution == 64
    for arguments, message in (
        (["--epochs=x"], "--epochs must be a whole number, at least 1; received 'x'"),
        (["--milestones=x"], "--milestones must be a list of whole numbers, .*; received 'x'"),
        (["--schedule=stp"], "--schedule must be one of step, cosine; received 'stp'"),
        (["--momentum=2"], "momentum must be a number, at least 0 and below 1; received 2"),
        (["--config", tmp_path / "no.yaml"], f"{tmp_path / 'no.yaml'} can't be read"),
    ):
        with pytest.raises(UserError, match=message):
            parse(*arguments)
    path.write_text("epochs: 7\nmomentum: 2\n")
    with pytest.raises(UserError, match=rf"{path}: momentum must be a number, at least 0 and below 1; received 2"):
        parse("--config", path)
    path.write_text("epohcs: 7\n")
    with pytest.raises(UserError, match=rf"{path}: unknown setting 'epohcs', did you mean 'epochs'"):
        parse("--config", path)


@pytest.mark.parametrize("between", ["=", " "])
def test_lists_of_the_command_line_need_no_brackets(between):
    def given(name, value):
        others = [] if name == "milestones" else ["--milestones=[3]"]
        first = [f"--{name}={value}"] if between == "=" else [f"--{name}", value]
        return getattr(parse(*others, "--whitening_versions=1", *first, "--seed=3"), name)

    for value, expected in (
        ("96", [96]),
        ("96,128", [96, 128]),
        ("96, 128", [96, 128]),
        ("[96]", [96]),
        ("null", None),
    ):
        assert given("evaluation_resolutions", value) == expected
    assert given("milestones", "3") == given("milestones", "- 3") == [3]
    assert given("milestones", "[]") == []
    assert given("levels", "block4c_:3:0.5,block2b_:3:1") == ["block4c_:3:0.5", "block2b_:3:1"]
    assert given("whitening_augmentations", "copies") == given("whitening_augmentations", "[copies]") == ["copies"]
    assert given("augmentation", "standard,copies") == ["standard", "copies"]
    # what it may be by itself is not a list of one
    assert given("augmentation", "copies") == "copies"
    assert given("augmentation", "[copies]") == ["copies"]
    with pytest.raises(UserError, match=r"--levels.*: expected one argument"):
        parse("--levels", "--seed", "3")
    for name, value in (
        ("evaluation_resolutions", "96,0"),
        ("evaluation_resolutions", "96,,128"),
        ("milestones", "5,3"),
        ("milestones", "5 6"),
        ("augmentation", "copies,copied"),
        ("whitening_augmentations", "copied"),
    ):
        with pytest.raises(UserError, match=f"^--{name} must be .*a list.*; received '{value}'$"):
            given(name, value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mixing": "mixup"},
            "mixup mixes labels, which the objective multigrain does not take: take --objective class",
        ),
        ({"mixing": "blend"}, "mixing"),
        ({"objective": "distilled_multigrain"}, "learns from the network it starts from: name it by init"),
        ({"objective": "distilled_multigrain", "init": "a", "class_balance": "weights"}, "class_balance needs labels"),
        ({"objective": "distilled_multigrain", "init": "a", "versions": 1}, "no positive pairs"),
        ({"objective": "proxies"}, "objective"),
    ],
)
def test_objectives_and_what_does_not_go_with_them(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_every_objective_that_can_be_named_is_there():
    assert set(objectives._WHERE) == set(objectives.NAMES)
    for name in objectives.NAMES:
        assert objectives.needs_labels(name) == objectives.get(name).needs_labels


def test_classification_needs_no_pairs_and_takes_mixed_labels():
    config = TrainConfig(objective="classification", versions=1, mixing="cutmix", batch_size=8)
    assert config.part_size(8) == 1


def test_a_queue_holds_a_step():
    config = TrainConfig(objective="snca", versions=2, batch_size=20, accumulation_steps=2, memory_size=12)
    assert config.part_size(1) == 10
    # of two replicas with two parts of three photos each, the last in one version
    with pytest.raises(UserError, match="memory_size must be at least 12, the photos of a step, received 11"):
        dataclasses.replace(config, memory_size=11).part_size(2)
