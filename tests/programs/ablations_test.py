"""Ablations whose runs are trained by a stand-in: turns, failures, signals, resumption, and the table."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mg_keras.errors import UserError
from mg_keras.evaluation import pictures, tables
from mg_keras.evaluation.pictures import drawing
from mg_keras.evaluation.records import ABLATION_SCORES
from mg_keras.evaluation.scores import METRICS
from mg_keras.programs import ablations as ablation
from mg_keras.programs.ablation import show
from mg_keras.programs.ablations import train_members
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run
from tests.programs.pretend import lines, members_of, save, train_with

ROOT = Path(__file__).resolve().parents[2]


def test_members_take_turns_and_what_is_finished_is_not_done_again(tmp_path, capfd):
    log, out, reports = tmp_path / "log", tmp_path / "out", []
    members = members_of(out, {"mean": 1.0, "gem": 3.0})
    # a run that was made elsewhere, and one that was measured but not trained to its end
    save(Run.start(members[1].run.path, members[1].config))
    save(Run.start(members[2].run.path, members[2].config), share=0.9)
    assert train_members(members, train_with(log), lambda: reports.append(1)) == ({}, None)
    names = ["mean-seed0", "mean-seed1", "gem-seed1"]
    assert lines(log) == [f"{word} {name}" for name in names for word in ("begin", "end")]
    assert len(reports) == 3
    assert all(ablation.is_finished(member.run) for member in members)
    assert members[0].run.settings.seed == Run.open(out / "mean-seed0").settings.seed == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "run 1 of 4: mean-seed0"
    assert printed[1] == "run 2 of 4: gem-seed0 is finished"
    assert re.fullmatch(r"run 3 of 4: mean-seed1, about 0:00:\d\d left", printed[2])
    assert train_members(members, train_with(log)) == ({}, None)
    assert len(lines(log)) == 6


def test_what_was_measured_half_way_is_measured_again_at_its_end(tmp_path):
    """`mg-keras evaluate` of a stopped run, which was then trained to its end and killed before it measured."""
    log = tmp_path / "log"
    members = members_of(tmp_path / "out", {"gem": 3.0}, seeds=[0])
    run = Run.start(members[0].run.path, members[0].config)
    steps = run.settings.epochs * run.settings.iterations
    save(run, share=0.5)
    run.results.save_metrics({**run.results.metrics, "step": steps // 2})
    save(run, scored=False)
    assert not ablation.is_finished(run)
    assert ablation.collect(tmp_path / "out") == {"presets": {}}
    assert train_members(members, train_with(log)) == ({}, None)
    assert lines(log) == ["begin gem-seed0", "end gem-seed0"]
    run.results.save_metrics({**run.results.metrics, "step": steps})
    assert ablation.is_finished(run)


def test_a_failure_is_told_and_keeps_no_other_from_its_turn(tmp_path):
    log = tmp_path / "log"
    presets = {"wrong": "mistake", "broken": "bug", "killed": "crash", "good": "fine"}
    failures, stopped = train_members(members_of(tmp_path / "out", presets, seeds=[0]), train_with(log))
    assert stopped is None
    assert failures == {
        "wrong-seed0": "that can't be",
        "broken-seed0": "ZeroDivisionError: by nought",
        "killed-seed0": "killed by signal SIGKILL",
    }
    assert lines(log)[-1] == "end good-seed0"


def test_a_table_that_cannot_be_made_keeps_no_other_from_its_turn(tmp_path, capfd):
    def report():
        raise UserError("these can't be compared")

    members = members_of(tmp_path / "out", {"good": "fine"})
    assert train_members(members, train_with(tmp_path / "log"), report) == ({}, None)
    assert all(ablation.is_finished(member.run) for member in members)
    assert capfd.readouterr().err.splitlines() == ["no table: these can't be compared"] * 2


def start_slow_ablation(folder):
    """An ablation of a slow member and one after it, in a group of its own as a terminal would have it."""
    code = (
        "import pathlib, sys; from tests.programs.pretend import train_slowly; train_slowly(pathlib.Path(sys.argv[1]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_line(log, start, process=None, seconds=60):
    deadline = time.monotonic() + seconds
    while not any(line.startswith(start) for line in lines(log)):
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no line {start!r} in {lines(log)}"
        time.sleep(0.02)


@pytest.mark.parametrize("whole_group", [True, False], ids=["as a terminal does", "the program alone"])
@pytest.mark.slow
def test_ctrl_c_reaches_the_member_at_work_once_and_starts_no_other(tmp_path, whole_group):
    log = tmp_path / "log"
    process = start_slow_ablation(tmp_path)
    wait_for_line(log, "waiting", process)
    if whole_group:
        # the ablation hears of it later than others of its group, so that two signals could not pass for one
        os.kill(process.pid, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
    else:
        os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "({}, 2)"
    assert lines(log) == ["begin slow-seed0", "waiting", "saved after [2]"]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_killed_ablation_leaves_no_member_behind_and_the_next_one_goes_on(tmp_path):
    log = tmp_path / "log"
    process = start_slow_ablation(tmp_path)
    wait_for_line(log, "waiting", process)
    hold = tmp_path / "hold"
    hold.touch()
    process.kill()
    process.wait()
    # while the one left behind still saves: the same folder never has two at work
    process = start_slow_ablation(tmp_path)
    assert process.stdout.readline() == "run 1 of 2: slow-seed0\n"
    assert process.stdout.readline().endswith("slow-seed0: waiting for another process that still works there\n")
    hold.unlink()
    output, errors = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "({}, None)", errors
    assert lines(log) == [
        "begin slow-seed0",
        "waiting",
        f"saved after [{signal.SIGTERM}]",
        "begin slow-seed0",
        "end slow-seed0",
        "begin good-seed0",
        "end good-seed0",
    ]


def test_time_left_is_judged_by_whole_runs(tmp_path):
    members = members_of(tmp_path, {"mean": 1.0, "gem": 3.0, "third": 2.0})
    assert ablation._time_left(members, {}) == ""
    save(Run.start(members[0].run.path, members[0].config))
    save(Run.start(members[1].run.path, members[1].config), share=0.75, scored=False)
    # a quarter of a gem of 400 s, whole ones of mean (100 s) and gem, two of the third at the mean of 100, 300 and 500
    expected = 0.25 * 400 + 100 + 400 + 2 * 300
    assert expected == 1200
    assert ablation._time_left(members, {"mean": [100], "gem": [300, 500]}) == "about 0:20:00 left"


def test_unlike_runs_are_refused_before_any_training(tmp_path):
    save(Run.start(tmp_path / "mean-seed7", TrainConfig(seed=7, epochs=3)))
    with pytest.raises(UserError, match=r"mean-seed7 holds a run with other settings \(epochs: 3 -> 4\)"):
        train_members(members_of(tmp_path, {"mean": 3.0}, data="demo", epochs=4), print)
    ablation.check_members(members_of(tmp_path, {"mean": 3.0}, data="demo", epochs=3))
    with pytest.raises(UserError, match="twice: mean-seed0"):
        ablation.check_members(members_of(tmp_path, {"mean": 1.0}, seeds=[0, 1, 0]))
    # a table of runs that something else made
    save(Run.start(tmp_path / "mean-seed8", TrainConfig(seed=8, epochs=4)))
    with pytest.raises(UserError, match="epochs: 4 -> 3"):
        ablation.collect(tmp_path)


@pytest.fixture
def out(tmp_path):
    """Three seeds of one preset, one of another, and some that don't count."""
    for member in members_of(tmp_path, {"mean": 1.0}, seeds=[0, 1, 10]) + members_of(tmp_path, {"gem": 3.0}, seeds=[4]):
        save(Run.start(member.run.path, member.config))
    for member in members_of(tmp_path, {"mean": 1.0}, seeds=[2]):
        save(Run.start(member.run.path, member.config), share=0.5)
    for member in members_of(tmp_path, {"gem": 3.0}, seeds=[5]):
        save(Run.start(member.run.path, member.config), scored=False)
    (tmp_path / "notes-seed1").mkdir()
    return tmp_path


def test_scores_are_means_and_sample_deviations_of_the_metrics_files(out):
    summary = ablation.write_report(out, ["mean", "gem", "absent"])
    assert json.loads((out / "ablation.json").read_text()) == summary
    assert list(summary["presets"]) == ["mean", "gem"]
    assert list(ablation.collect(out)["presets"]) == ["gem", "mean"]
    mean, gem = summary["presets"].values()
    assert (mean["seeds"], gem["seeds"]) == ([0, 1, 10], [4])
    files = [json.loads((out / f"mean-seed{seed}" / "metrics.json").read_text()) for seed in (0, 1, 10)]
    assert list(mean["resolutions"]) == ["224", "336", "448"]
    for size, row in mean["resolutions"].items():
        assert row["p_star"] == [3.0, 3.0, 3.0]
        for score in ("top1", "instance", "copies", "copies_unwhitened"):
            values = [file["resolutions"][size][score] for file in files]
            centre = sum(values) / 3
            assert row[score]["values"] == values
            assert row[score]["mean"] == pytest.approx(centre)
            assert row[score]["deviation"] == pytest.approx(np.sqrt(sum((v - centre) ** 2 for v in values) / 2))
    assert all(gem["resolutions"]["224"][score]["deviation"] is None for score in ABLATION_SCORES)
    with Image.open(out / "ablation.png") as picture:
        assert min(picture.size) > 300


def test_runs_without_their_checkpoints_and_scores_not_measured(out):
    (path,) = (out / "gem-seed4" / "checkpoints").iterdir()
    path.unlink()
    run = Run.open(out / "gem-seed4")
    assert ablation.is_finished(run)
    metrics = run.results.metrics
    del metrics["resolutions"]["336"]["copies"]
    metrics["resolutions"]["448"]["copies"] = None
    run.results.save_metrics(metrics)
    rows = ablation.write_report(out, ["gem"])["presets"]["gem"]["resolutions"]
    assert ["copies" in row for row in rows.values()] == [True, False, False]
    last = (out / "ablation.md").read_text().splitlines()[-1].split(" | ")
    assert last[0] == "| 448 px"
    assert last[-2] == "–"


SUMMARY = {
    "presets": {
        "plain": {
            "seeds": [0, 1],
            "resolutions": {
                "96": {"p_star": [4.0, 3.0], "top1": {"mean": 0.5, "deviation": 0.0123, "values": [0.49, 0.51]}},
                "128": {"p_star": [5.0], "top1": {"mean": 0.4, "deviation": None, "values": [0.4]}},
            },
        },
        "other": {
            "seeds": [0],
            "resolutions": {"96": {"p_star": [2.5], "instance": {"mean": 4, "deviation": 0.5, "values": [3.6, 4.4]}}},
        },
    }
}


def test_tables_have_a_row_a_preset_and_resolution():
    expected = [
        ["96 px", "plain", "2", "3, 4", "50.0 ± 1.2", "–", "–", "–"],
        ["96 px", "other", "1", "2.5", "–", "4.00 ± 0.50", "–", "–"],
        ["128 px", "plain", "1", "5", "40.0", "–", "–", "–"],
    ]
    headings = ["resolution", "preset", "seeds", "p*", "top-1 %", "IN-aug /5", "copies mAP %", "unwhitened mAP %"]
    markdown = [line[2:-2].split(" | ") for line in tables.ablation_markdown(SUMMARY).splitlines()]
    assert markdown == [headings, ["---"] * 2 + ["---:"] * 6, *expected]
    console = Console(width=150, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(tables.ablation_table(SUMMARY))
    printed = [line for line in console.export_text().splitlines() if "│" in line]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed] == expected


def test_the_picture_has_a_point_a_seed_and_a_bar_at_the_mean(tmp_path, monkeypatch):
    figures, write = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure, path: (figures.append(figure), write(figure, path)))
    pictures.ablation_picture(tmp_path / "a.png", SUMMARY)
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels[:2]] == ["top-1 %", "IN-aug /5"]
    drawn = [[(line.get_marker(), list(line.get_xdata())) for line in axes.lines] for axes in panels]
    assert drawn[0] == [("o", [49, 51]), ("|", [50]), ("o", [40]), ("|", [40])]
    assert drawn[1] == [("o", [3.6, 4.4]), ("|", [4])]
    assert drawn[2:] == [[], []]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["plain", "other"]
    places = [line.get_ydata()[0] for line in panels[0].lines]
    assert places[0] == places[1] < 0 < places[2] == places[3]


def test_lengths_are_presets_of_their_own_and_a_picture(tmp_path, monkeypatch):
    figures, write = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure, path: (figures.append(figure), write(figure, path)))
    for name, exponent in (("mean", 1.0), ("gem", 3.0)):
        for epochs, seeds in ((20, [0, 1]), (60, [0])):
            for member in members_of(
                tmp_path, {ablation.row_name(name, epochs=epochs): exponent}, seeds, epochs=epochs
            ):
                save(Run.start(member.run.path, member.config))
    assert member.run.path.name == "gem-60epochs-seed0"
    summary = ablation.write_report(tmp_path)
    assert summary["presets"]["mean-20epochs"]["length"] == {"preset": "mean", "epochs": 20}
    _, drawn = figures
    assert [axes.get_title() for axes in drawn.axes] == ["224 px", "336 px", "448 px"]
    means = [summary["presets"][f"gem-{epochs}epochs"]["resolutions"]["336"]["top1"]["mean"] for epochs in (20, 60)]
    line = next(line for line in drawn.axes[1].lines if line.get_label() == "gem")
    assert list(line.get_xdata()) == [20, 60]
    np.testing.assert_allclose(line.get_ydata(), np.multiply(means, 100))
    assert (tmp_path / "lengths.png").is_file()
    # one length is no curve
    (tmp_path / "lengths.png").unlink()
    ablation.write_report(tmp_path, ["mean-20epochs", "gem-20epochs"])
    assert not (tmp_path / "lengths.png").exists()


def test_values_of_a_setting_are_rows_of_their_own_and_a_picture(tmp_path, monkeypatch):
    figures, write = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure, path: (figures.append(figure), write(figure, path)))
    for value in ("0.1", "0.5"):
        name = ablation.row_name("gem", "classification_weight", value, 20)
        for member in members_of(tmp_path, {name: 3.0}, [0, 1], epochs=20, classification_weight=float(value)):
            save(Run.start(member.run.path, member.config))
    assert member.run.path.name == "gem-classification_weight=0.5-20epochs-seed1"
    summary = ablation.write_report(tmp_path)
    rows = summary["presets"]
    about = {"preset": "gem", "setting": "classification_weight", "value": "0.1"}
    assert rows["gem-classification_weight=0.1-20epochs"]["varied"] == about
    (axes,) = figures[-1].axes
    assert axes.get_title() == "gem, 20 epochs, by classification_weight"
    line, *_ = axes.containers[1].lines
    means = [[row["resolutions"]["336"][score]["mean"] for row in rows.values()] for score in ("top1", "instance")]
    np.testing.assert_allclose(line.get_xydata().T, np.multiply(means, [[100], [METRICS["instance"].factor]]))
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.5"] * 3
    assert (tmp_path / "trade.png").is_file()


def test_the_line_of_a_setting_goes_from_number_to_number(tmp_path, monkeypatch):
    """The rows of a table that is made of what lies in a folder stand in the order of their names, 10 before 2."""
    figures = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: figures.append(figure))
    rows = {
        value: {
            "varied": {"preset": "gem", "setting": "versions", "value": value},
            "resolutions": {"64": {name: {"mean": float(value), "deviation": None} for name in ("top1", "instance")}},
        }
        for value in ("10", "2", "4")
    }
    pictures.trade_picture(tmp_path / "trade.png", {"presets": rows})
    line, *_ = figures[0].axes[0].containers[0].lines
    assert list(line.get_ydata()) == [2, 4, 10]


def test_a_picture_of_an_earlier_table_is_not_said_to_be_written(out, capsys):
    (out / "lengths.png").touch()
    show(ablation.write_report(out, ["mean"]), out)
    assert capsys.readouterr().out.endswith("; beside it ablation.md, ablation.png\n")


def test_nothing_to_show_is_told(tmp_path):
    with pytest.raises(UserError, match="no finished run of mean in"):
        ablation.write_report(tmp_path, ["mean"])
    with pytest.raises(ValueError, match="at least one preset"):
        pictures.ablation_picture(tmp_path / "a.png", {"presets": {}})
    with pytest.raises(ValueError, match="presets of a length"):
        pictures.lengths_picture(tmp_path / "a.png", SUMMARY)
    with pytest.raises(ValueError, match="a setting that is varied"):
        pictures.trade_picture(tmp_path / "a.png", SUMMARY)
    assert list(tmp_path.iterdir()) == []


def test_a_member_is_named_by_preset_and_seed(tmp_path):
    (member,) = members_of(tmp_path, {"ra-seed_p1": 1.0}, seeds=[12])
    assert member.name == "ra-seed_p1-seed12"
    save(Run.start(member.run.path, member.config))
    assert list(ablation.runs_in(tmp_path)) == ["ra-seed_p1"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        member.preset = "x"
