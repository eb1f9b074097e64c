"""The ablation program as a user starts, breaks and resumes it, on tiny real runs."""

import dataclasses
import json
import shutil
import signal
import time

import numpy as np
import pytest
import yaml

from mg_keras.errors import UserError
from mg_keras.programs import ablation, ablations, train
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.photos import open_source
from mg_keras.runs.run import Run
from tests.train.small_trunk.sitecustomize import MADE_UP, TRAINING_ALONE
from tests.train.tiny import SETTINGS, draw_folder, finish, start

PRESETS = {
    "mean": {"versions": 1, "classification_weight": 1.0, "pooling_exponent": 1.0},
    "gem": {"versions": 3, "classification_weight": 0.5, "pooling_exponent": 3.0},
    # a mistake that shows only once the run starts
    "impossible": {"whitening_dimensions": 9000},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos and presets."""
    folder = tmp_path_factory.mktemp("ablation")
    draw_folder(folder / "photos", per_class=8)
    common = {name: yaml.safe_load(str(value)) for name, value in SETTINGS.items() if name != "epochs"}
    common |= {"iterations": 3, "evaluation_resolutions": [32]}
    for name, values in PRESETS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **values}))
    return folder


def command(place, *names, seeds="[0,1]"):
    presets = ",".join(str(place / f"{name}.yaml") for name in names)
    return [f"--presets=[{presets}]", f"--seeds={seeds}", *settings(place), f"--out={place / 'out'}"]


def settings(place):
    return [f"--data=folder:{place / 'photos'}", "--epochs=1"]


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_and_ends_in_the_table(place, capsys):
    out = place / "out"
    names = ["impossible", "mean", "gem"]
    # what runs measure is their own tests' matter
    as_here = {"small_trunk": True, "training_alone": True, "env": {TRAINING_ALONE: MADE_UP}}
    process = start("train/ablation.py", *command(place, *names), **as_here)
    deadline = time.monotonic() + 400
    try:
        # one is done, the next begun
        while not (out / "gem-seed0" / "config.yaml").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        # ends when the run at work has let go of the pipe too
        process.communicate()
    first = (out / "mean-seed0" / "metrics.json").stat().st_mtime_ns
    assert json.loads((out / "ablation.json").read_text())["presets"]["mean"]["seeds"] == [0]
    assert not (out / "gem-seed0" / "metrics.json").exists()

    # runs that are finished, with scores of their own, in less time than training takes
    for name in ("mean", "gem"):
        other = shutil.copytree(out / "mean-seed0", out / f"{name}-seed1")
        config = yaml.safe_load((other / "config.yaml").read_text())
        (other / "config.yaml").write_text(yaml.safe_dump({**config, **PRESETS[name], "seed": 1}))
        metrics = json.loads((other / "metrics.json").read_text())
        metrics["resolutions"]["32"] = {
            name: 0.9 * value if isinstance(value, float) else value
            for name, value in metrics["resolutions"]["32"].items()
        }
        (other / "metrics.json").write_text(json.dumps(metrics))

    status, output, errors = finish(start("train/ablation.py", *command(place, *names), **as_here))
    assert status == 1, errors
    assert "run 2 of 6: mean-seed0 is finished" in output
    assert (out / "mean-seed0" / "metrics.json").stat().st_mtime_ns == first
    failed = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1] for line in failed] == [" impossible-seed0", " impossible-seed1"]
    assert all("whitening_dimensions must be at most" in line for line in failed)
    # the one that was at work when it was killed
    assert "run 3 of 6: gem-seed0" in output
    assert "run 6 of 6: gem-seed1 is finished" in output
    assert "Traceback" not in errors

    # the table's numbers are those of the runs' files
    summary = json.loads((out / "ablation.json").read_text())["presets"]
    assert list(summary) == ["mean", "gem"]
    markdown = (out / "ablation.md").read_text()
    for name, found in summary.items():
        metrics = [json.loads((out / f"{name}-seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
        assert set(found["resolutions"]) == {"32"}
        for score, scale, digits in (("top1", 100, 1), ("instance", 1, 2), ("copies", 100, 1)):
            values = [run["resolutions"]["32"][score] for run in metrics]
            row = found["resolutions"]["32"][score]
            assert row["mean"] == pytest.approx(np.mean(values))
            assert row["deviation"] == pytest.approx(np.std(values, ddof=1))
            cell = f"{np.mean(values) * scale:.{digits}f} ± {np.std(values, ddof=1) * scale:.{digits}f}"
            assert cell in markdown
            assert cell in output

    # a run is what train/run.py would have made of the same settings
    capsys.readouterr()
    more = [f"--config={place / 'gem.yaml'}", *settings(place), "--seed=0", "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        train.main(more)
    shown = yaml.safe_load(capsys.readouterr().out)
    assert yaml.safe_load((out / "gem-seed0" / "config.yaml").read_text()) == {
        name: shown[name] for name in TrainConfig.__dataclass_fields__
    }

    # the table again, of one preset
    ablation.main(["--table_only=true", f"--out={out}", f"--presets={place / 'gem.yaml'}"])
    again = capsys.readouterr().out
    assert "gem" in again
    assert "mean " not in again
    assert list(json.loads((out / "ablation.json").read_text())["presets"]) == ["gem"]


def test_each_length_is_a_run_of_so_many_epochs(tmp_path, monkeypatch):
    members = []
    monkeypatch.setattr(ablation, "train_members", lambda some, *_, **__: (members.extend(some), ({}, None))[1])
    with pytest.raises(SystemExit, match="0"):
        ablation.main(["--presets=[demo,transfer]", "--seeds=[0,1]", "--lengths=[60,20]", f"--out={tmp_path}"])
    presets, runs = ("demo", "transfer"), [(20, 0), (20, 1), (60, 0), (60, 1)]
    expected = [(f"{name}-{epochs}epochs-seed{seed}", epochs) for epochs, seed in runs for name in presets]
    assert [(member.name, member.config.epochs) for member in members] == expected


def test_each_value_of_a_setting_is_a_run(tmp_path, monkeypatch):
    members = []
    monkeypatch.setattr(ablation, "train_members", lambda some, *_, **__: (members.extend(some), ({}, None))[1])
    vary = "--vary=classification_weight=[0.5, 0.1]"
    with pytest.raises(SystemExit, match="0"):
        ablation.main(["--presets=demo", "--seeds=[0,1]", vary, f"--out={tmp_path}"])
    expected = [(f"demo-classification_weight={w}-seed{seed}", w) for seed in (0, 1) for w in (0.1, 0.5)]
    assert [(member.name, member.config.classification_weight) for member in members] == expected
    members.clear()
    with pytest.raises(SystemExit, match="0"):
        ablation.main(["--presets=demo", "--seeds=0", "--vary=epochs=60,9", f"--out={tmp_path}"])
    assert [(member.name, member.config.epochs) for member in members] == [
        ("demo-epochs=9-seed0", 9),
        ("demo-epochs=60-seed0", 60),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets=[imaginary]"], "unknown preset 'imaginary'; known: caltech101, "),
        (["--presets=nowhere.yaml"], "no such preset file: nowhere.yaml"),
        ([], "--presets must name at least one"),
        (["--presets=demo", "--seed=3"], "no --seed"),
        (["--presets=demo", "--lengths=[20,60]", "--epochs=3"], "give it or --epochs"),
        (["--presets=demo", "--lengths=[20,20]"], "twice: demo-20epochs-seed0"),
        (["--presets=demo", "--vary=classification_weights=1"], "did you mean 'classification_weight'?"),
        (["--presets=demo", "--vary=seed=1,2"], "--vary: unknown setting of one value 'seed'"),
        (["--presets=demo", "--vary=milestones=[1],[2]"], "--vary: unknown setting of one value 'milestones'"),
        (["--presets=demo", "--vary=init=runs/a,runs/b"], "--vary must be SETTING=VALUE,..., such as"),
        (["--presets=demo", "--vary=init=imagenet,"], "--vary must be SETTING=VALUE,..., such as"),
        (["--presets=demo", "--vary=classification_weight=1,0.5,1.0"], "--vary must have each value once"),
        (["--table_only=true", "--vary=versions=2,3"], "--presets must name at least one"),
        (["--presets=demo", "--vary=versions"], "--vary must be SETTING=VALUE,..., such as"),
        (
            ["--presets=demo", "--vary=versions=1,2", "--versions=3"],
            "--vary has the values of versions: give them once",
        ),
        (["--presets=demo", "--vary=versions=2,two"], "versions must be a whole number, at least 1; received 'two'"),
        (["--presets=[demo,demo]"], "twice: demo-seed0, demo-seed1"),
        (["--presets=demo", "--epochs=0"], "epochs must be a whole number, at least 1; received 0"),
        (["--presets=demo", "--vary=accumulation_steps=1,7"], "demo-accumulation_steps=7-seed0: batch_size "),
        (["--presets=demo", "--vary=trunk=resnet18,resnet19"], "demo-trunk=resnet19-seed0: unknown trunk 'resnet19'"),
        (["--table_only=true"], "no finished run in"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_get_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(ablations, "_train_apart", lambda member, *_: pytest.fail(f"{member.name} is trained"))
    with pytest.raises(UserError) as refused:
        ablation.main([*arguments, f"--out={tmp_path / 'out'}"])
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_photos_than_a_preset_was_trained_on_are_refused_before_any_training(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "_train_apart", lambda member, *_: pytest.fail(f"{member.name} is trained"))
    run = Run.start(tmp_path / "gem-seed0", TrainConfig.load(place / "gem.yaml"))
    run = Run(run.path, dataclasses.replace(run.settings, data=f"folder:{place / 'photos'}", epochs=1))
    run.begin(open_source(run.settings))
    others = draw_folder(tmp_path / "others", per_class=9)
    arguments = [f"--presets={place / 'gem.yaml'}", "--epochs=1", f"--out={tmp_path}"]
    with pytest.raises(UserError, match=r"others has 21 training and 6 validation photos, .*gem-seed0 .* 18 and 6"):
        ablation.main([*arguments, f"--data=folder:{others}"])
    # moved, they are the same; and a run that is alone goes on as `mg-keras train` does
    moved = shutil.copytree(place / "photos", tmp_path / "moved")
    for data, seeds in ((moved, "[0,1]"), (others, "0")):
        with pytest.raises(pytest.fail.Exception, match="gem-seed0 is trained"):
            ablation.main([*arguments, f"--data=folder:{data}", f"--seeds={seeds}"])


def test_a_table_that_cannot_be_made_is_told_with_what_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "train_members", lambda *_, **__: ({"demo-seed1": "that can't be"}, None))
    monkeypatch.setattr(ablation, "is_finished", lambda run: True)
    with pytest.raises(SystemExit, match="1"):
        ablation.main(["--presets=demo", f"--out={tmp_path}"])
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"no table: no finished run of demo in {tmp_path}: nothing to put into a table",
        "failed: demo-seed1: that can't be",
    ]
