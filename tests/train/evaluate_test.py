"""Measuring a run and its SavedModel with the program, as a user does."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mg_keras.errors import UserError
from mg_keras.programs import evaluate, train
from tests.train.tiny import arguments, draw_folder, finish, make_trunk_small, run_in_process, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run trained, measured and exported."""
    folder = draw_folder(tmp_path_factory.mktemp("photos"))
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make_trunk_small(patch)
        train.main(arguments(folder, run, epochs=1))
    return run


@pytest.fixture(scope="module")
def holidays(tmp_path_factory):
    """Three groups as Holidays names them; the photos of a group are all but one grey level the same."""
    folder = tmp_path_factory.mktemp("holidays") / "jpg"
    folder.mkdir()
    for group in range(3):
        rng = np.random.default_rng(group)
        picture = np.kron(rng.integers(0, 250, (5, 6, 3)), np.ones((8, 8, 1))).astype("uint8")
        for number in range(3):
            Image.fromarray(picture + np.uint8(number)).save(folder / f"{100000 + 100 * group + number}.png")
    return folder.parent


def copy_of(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_measured_on_a_folder_beside_the_papers_figures(trained, holidays, tmp_path):
    run = copy_of(trained, tmp_path)
    before = json.loads((run / "metrics.json").read_text())
    benchmarks = f"--benchmarks=classes,holidays={holidays}"
    # 40 px is new: p* is chosen and the whitening fitted for it
    command = ["train/evaluate.py", f"--run={run}", benchmarks, "--resolutions", "40"]
    status, output, errors = finish(start(*command, small_trunk=True))
    assert status == 0, errors
    assert "p* 40 px" in output
    assert "whitening at 40 px" in output
    assert "Table 2" in output
    assert "Table 3" in output
    assert "paper: MultiGrain" in output
    assert "not the published set" in output
    # what was measured before, on other benchmarks and at other resolutions, is not what was asked for
    assert "\nclasses: " in output
    assert "\ncopies: " not in output
    assert "48 px" not in output
    metrics = json.loads((run / "metrics.json").read_text())
    results = metrics["benchmarks"]["holidays"]["results"]
    assert set(results) == {"32", "40"}
    rows = {"gem", "gem_whitened", "average", "average_whitened", "rmac", "rmac_whitened"}
    chosen = json.loads((run / "p_star.json").read_text())["p_star"]
    # where p* is 1, GeM and average pooling are one; both rows stand
    assert set(results["40"]) == rows
    # the photos of a group are next to equal
    assert all(scores["mAP"] == pytest.approx(1.0) for scores in results["40"].values())
    assert results["40"]["gem"]["pooling"] == chosen["40"]
    assert set(metrics["benchmarks"]["classes"]["results"]["40"]) == {"gem", "average"}
    # what was measured before stays
    assert metrics["benchmarks"]["copies"] == before["benchmarks"]["copies"]
    assert metrics["benchmarks"]["classes"]["results"]["48"] == before["benchmarks"]["classes"]["results"]["48"]
    assert metrics["paper"]["table_3"][4]["holidays"]["500"] == 91.5


def test_the_best_checkpoint_has_results_of_its_own(trained, tmp_path, monkeypatch):
    make_trunk_small(monkeypatch)
    run = copy_of(trained, tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    evaluate.main([f"--run={run}", "--checkpoint=best", "--comparison=false"])
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    written = {path.name for path in (run / "best").iterdir()}
    assert {"p_star.json", "whitening.npz", "whitening-48.npz", "metrics.json", "retrieval.png"} <= written
    # after one epoch the best checkpoint is the last: its scores are the same, found anew
    both = [json.loads((folder / "metrics.json").read_text())["resolutions"] for folder in (run, run / "best")]
    for size, row in both[0].items():
        assert both[1][size] == pytest.approx(row, abs=1e-6), size


def test_a_saved_model_is_measured_without_its_run(trained, holidays, tmp_path, capsys):
    out = tmp_path / "scores.json"
    model = trained / "saved_model" / "1"
    evaluate.main([f"--model={model}", f"--benchmarks=holidays={holidays}", f"--out={out}"])
    assert "as exported" in capsys.readouterr().out
    results = json.loads(out.read_text())["benchmarks"]["holidays"]["results"]
    assert set(results) == {"32", "48"}
    assert results["48"]["exported"]["mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --run"),
        (["--out=a.json"], "--out is for --model"),
        (["--benchmarks=holidays"], "no benchmark 'holidays': of its own photos there are classes, in_aug, copies"),
        (["--benchmarks=paris=photos"], "must be NAME=PATH of"),
        (["--benchmarks=holidays=nowhere"], "no such folder"),
        (["--resolutions=0"], "resolution"),
    ],
)
def test_mistakes_are_one_line(trained, options, message, monkeypatch, capsys):
    run = [f"--run={trained}"] if options else []
    status, line = run_in_process("train/evaluate.py", [*run, *options], monkeypatch, capsys)
    assert status == 2
    assert message in line


def test_a_checkpoint_is_a_runs():
    with pytest.raises(UserError, match="--checkpoint is one of a --run"):
        evaluate.main(["--model=package", "--benchmarks=ukb=x", "--checkpoint=best"])


def test_figures_of_a_model_need_a_place_before_it_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written to: .*file is no folder"):
        evaluate.main(["--model=package", "--benchmarks=ukb=x", f"--out={tmp_path}/file/a.json"])
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        evaluate.main(["--model=package", "--benchmarks=ukb=x", f"--out={tmp_path}"])
