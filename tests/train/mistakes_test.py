"""What users get wrong: one clear line and exit status 2."""

import re

import pytest
import yaml

from mg_keras.programs.common import PRESETS
from mg_keras.runs.config import TrainConfig
from tests.train.tiny import arguments, draw_folder, finish, make_trunk_small, run_in_process, start


@pytest.fixture
def folder(tmp_path):
    return draw_folder(tmp_path / "photos", per_class=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "folder:/no/such/place"}, "no such folder: /no/such/place"),
        (
            {"data": "cloud:x"},
            "data must be demo, folder:PATH, .* or webdataset:PATTERN, received 'cloud:x'",
        ),
        ({"trunk": "resnet19"}, "unknown trunk 'resnet19'"),
        (
            {"augmentation": "wild"},
            r"--augmentation must be one of full, .*, none or a list such as \[full,standard\]; received 'wild'",
        ),
        ({"augmentation": []}, r"augmentation must be a recipe or a list of some; received \[\]"),
        ({"strategy": "parallel"}, "strategy must be one of mirrored, multiworker, single, received 'parallel'"),
        ({"strategy": "multiworker"}, "TF_CONFIG"),
        ({"batch_size": 3}, "a batch of 3 .* is too small for 3 versions"),
        ({"batch_size": 96}, "32 different photos"),
        ({"accumulation_steps": 3}, "batch_size 8 can't be divided"),
        ({"learning_rate": -1}, "learning_rate must be a number, above 0; received -1"),
        ({"epochs": "ten"}, "--epochs must be a whole number, at least 1; received 'ten'"),
        ({"jit_compile": "maybe"}, "--jit_compile must be true or false; received 'maybe'"),
        ({"whitening_dimensions": 18}, "whitening_dimensions must be at most 17 for resnet18, received 18"),
        (
            {"objective": "snca", "projection_dimensions": 18},
            "projection_dimensions must be at most 17 for resnet18, received 18",
        ),
        ({"unlabelled": "/no/such/place"}, "no such folder: /no/such/place"),
        ({"warmup_epochs": 1, "schedule": "step"}, "warmup_epochs is of the schedule cosine"),
        pytest.param({"learning_rate": 1e30}, "the loss is nan at step .* lower learning_rate", marks=pytest.mark.slow),
        ({"versions": 1}, "versions 1 gives no positive pairs"),
        ({"preset": "imaginary"}, "unknown preset 'imaginary'; known: caltech101, .*demo"),
        ({"preset": "demos"}, "unknown preset 'demos', did you mean 'demo'?"),
        ({"learning_rat": 1}, "unrecognized arguments: --learning_rat=1; did you mean --learning_rate?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_arguments(folder, tmp_path, changes, message, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    make_trunk_small(monkeypatch)
    command = arguments(folder, tmp_path / "run", **changes)
    status, line = run_in_process("train/run.py", command, monkeypatch, capsys)
    assert status == 2
    assert re.search(message, line), line
    # what was mistyped can be given rightly to the same folder
    assert not (tmp_path / "run").exists() or "the loss is nan" in line


def test_an_empty_class_folder_is_named(folder, tmp_path, monkeypatch, capsys):
    (folder / "nothing").mkdir()
    status, line = run_in_process("train/run.py", arguments(folder, tmp_path / "run"), monkeypatch, capsys)
    assert status == 2
    assert "no photo for class 'nothing'" in line


@pytest.mark.slow
def test_the_first_bad_photo_stops_a_run_that_asks_for_it(folder, tmp_path, monkeypatch, capsys):
    make_trunk_small(monkeypatch)
    for name in ("crosses", "disks", "squares"):
        (folder / name / "bad.jpg").write_bytes(b"no photo")
    command = arguments(folder, tmp_path / "run", on_bad_image="fail", iterations=40, epochs=1)
    status, line = run_in_process("train/run.py", command, monkeypatch, capsys)
    assert status == 2
    assert "bad.jpg: not a JPEG" in line


def test_what_is_passed_over_stops_a_run_that_asks_for_it(folder, tmp_path, monkeypatch, capsys):
    (folder / "disks" / "lost").symlink_to("nowhere")
    command = arguments(folder, tmp_path / "run", on_bad_image="fail")
    status, line = run_in_process("train/run.py", command, monkeypatch, capsys)
    assert status == 2
    assert "disks/lost: a link that leads nowhere (on_bad_image is fail" in line


def test_a_folder_that_holds_another_run_is_refused(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    TrainConfig(data=f"folder:{folder}").save(tmp_path / "run" / "config.yaml")
    status, line = run_in_process("train/run.py", arguments(folder, tmp_path / "run"), monkeypatch, capsys)
    assert status == 2
    assert "batch_size: 512 -> 8" in line


@pytest.mark.parametrize("program", ["train/evaluate.py", "train/whiten.py", "train/choose_p_star.py", "export/run.py"])
def test_later_programs_name_a_folder_that_is_no_run(program, tmp_path, monkeypatch, capsys):
    command = [f"--run={tmp_path}", *([f"--out={tmp_path}"] if program == "export/run.py" else [])]
    status, line = run_in_process(program, command, monkeypatch, capsys)
    assert status == 2
    assert line.startswith(f"error: no run in {tmp_path}")


def test_presets_are_the_papers_settings():
    presets = {path.stem: yaml.safe_load(path.read_text()) for path in PRESETS.glob("*.yaml")}
    assert {"demo", "caltech101", "resnet50_imagenet", "resnet50_imagenet_autoaugment", "resnet50_baseline"} <= set(
        presets
    )
    configs = {name: TrainConfig(**values) for name, values in presets.items()}
    paper = configs["resnet50_imagenet"]
    assert (paper.trunk, paper.resolution, paper.batch_size, paper.epochs, paper.iterations) == (
        "resnet50",
        224,
        512,
        120,
        5005,
    )
    assert (paper.learning_rate, paper.milestones, paper.decay, paper.momentum) == (0.1, [30, 60, 90], 0.1, 0.9)
    assert (paper.weight_decay, paper.schedule, paper.versions, paper.pooling_exponent) == (1e-4, "step", 3, 3.0)
    assert (paper.margin, paper.initial_beta, paper.beta_learning_rate) == (0.2, 1.2, 0.1)
    assert (paper.classification_weight, paper.margin_normalization, paper.augmentation) == (0.5, "pairs", "full")
    assert paper.differences(configs["resnet50_imagenet_autoaugment"]) == [
        "augmentation: full -> autoaugment",
        "iterations: 5005 -> 7508",
    ]
    baseline = configs["resnet50_baseline"]
    assert (baseline.versions, baseline.classification_weight, baseline.pooling_exponent) == (1, 1.0, 1.0)


def test_print_config_shows_every_value_with_the_override():
    status, output, errors = finish(
        start("train/run.py", "--preset", "demo_from_scratch", "--epochs", "3", "--print_config")
    )
    assert status == 0, errors
    shown = yaml.safe_load(output)
    assert shown["epochs"] == 3
    assert shown["trunk"] == "resnet18"
    assert set(TrainConfig.__dataclass_fields__) <= set(shown)
