"""Whole runs, as users start, break and resume them."""

import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from mg_keras.programs import choose_p_star, evaluate, train, whiten, whole_run
from tests.train.tiny import CLASSES, arguments, draw_folder, finish, make_trunk_small, start, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A whole run, among whose photos are all kinds of odd and broken ones."""
    data = draw_folder(tmp_path_factory.mktemp("odd") / "photos")
    add_odd_photos(data)
    run = tmp_path_factory.mktemp("runs") / "odd"
    options = {"augmentation": "full", "data_dir": tmp_path_factory.mktemp("cache")}
    status, output, errors = finish(start("train/run.py", *arguments(data, run, **options), small_trunk=True))
    assert status == 0, errors
    assert f"passed over in {data}: 2 files or folders: " in errors
    return run, output


def add_odd_photos(data):
    good = Image.open(data / "disks" / "00.jpg")
    # photos that a user would expect to work
    good.convert("L").save(data / "disks" / "grey.jpg")
    good.convert("CMYK").save(data / "disks" / "cmyk.jpg")
    good.convert("RGBA").save(data / "disks" / "alpha.png")
    Image.fromarray(np.asarray(good.convert("L")).astype("uint16") * 257).save(data / "disks" / "sixteen.png")
    good.resize((30_000, 12)).save(data / "disks" / "panorama.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    good.save(data / "disks" / "turned.jpg", exif=exif)
    good.save(data / "disks" / "scan.tif")
    good.save(data / "disks" / "a photo", "JPEG")
    # the same in another class
    shutil.copy(data / "disks" / "01.jpg", data / "squares" / "mistaken.jpg")
    # nothing of a photo
    (data / "squares" / "film.mov").write_bytes(b"a film")
    (data / "squares" / "gone").symlink_to("nowhere")
    # photos that can't be used
    buffer = io.BytesIO()
    good.save(buffer, "JPEG", quality=95)
    (data / "crosses" / "zero.jpg").write_bytes(b"")
    (data / "crosses" / "text.jpg").write_text("no photo")
    (data / "squares" / "cut.jpg").write_bytes(buffer.getvalue()[:600])
    Image.new("RGB", (1, 1)).save(data / "squares" / "dot.png")


BROKEN = {"zero.jpg", "text.jpg", "cut.jpg", "dot.png"}
NONE = {"film.mov", "gone"}


def test_a_run_leaves_everything_its_folder_promises(undisturbed):
    run, output = undisturbed
    for name in [
        "config.yaml",
        "classes.txt",
        "data.json",
        "metrics.csv",
        "curves.png",
        "p_star.json",
        "p_star.png",
        "whitening.npz",
        "whitening-48.npz",
        "metrics.json",
        "scores.png",
        "retrieval.png",
        "saved_model/1/saved_model.pb",
        "saved_model/1/assets/multigrain.json",
    ]:
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["resolutions"]) == {"32", "48"}
    assert 0 <= metrics["resolutions"]["32"]["top1"] <= 1
    assert 1 <= metrics["resolutions"]["48"]["instance"] <= 5
    assert "tf.saved_model.load" in output


def test_unusable_photos_are_passed_over_and_listed(undisturbed):
    run, output = undisturbed
    listed = dict(line.split("\t") for line in (run / "bad_images.txt").read_text().splitlines())
    assert {name.rsplit("/", 1)[-1] for name in listed} == BROKEN | NONE
    assert all(listed.values())
    assert f"files and folders that are passed over are listed in {run / 'bad_images.txt'}" in output
    assert "6 photos could not be used or were passed over" in output


def test_a_photo_in_two_classes_is_named_at_the_start(undisturbed):
    run, output = undisturbed
    (listed,) = [line.split("\t") for line in (run / "leaks.txt").read_text().splitlines() if line[:3] == "two"]
    assert [name.rsplit("/", 2)[-2:] for name in sorted(listed[1:])] == [
        ["disks", "01.jpg"],
        ["squares", "mistaken.jpg"],
    ]
    warned = output.index("warning: 2 photos are in two classes, the same byte for byte: ")
    assert warned < output.index("epoch 1/2")


def test_the_saved_model_of_a_run_needs_tensorflow_alone(undisturbed):
    run, _ = undisturbed
    script = """
        import sys
        for name in ("mg_keras", "keras_hub", "keras"):
            sys.modules[name] = None
        import numpy as np, tensorflow as tf
        served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
        for size in ((32, 32), (40, 70)):
            answer = served(images=tf.zeros((2, *size, 3)), p_star=tf.constant([1.0, 4.5]))
            assert answer["logits"].shape == (2, 3)
            np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, rtol=1e-5)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(run / "saved_model" / "1")], check=True)


def test_later_programs_take_the_run_alone(undisturbed, monkeypatch, capsys):
    run, _ = undisturbed
    make_trunk_small(monkeypatch)
    for program, more, expected in (
        (choose_p_star, ["--resolutions=[40]", "--augmentation=standard"], "40 px: p* ="),
        (whiten, ["--shrinkage=0.2", "--resolutions=[40]"], "training photos"),
        (evaluate, ["--benchmarks=classes", "--comparison=false"], "metrics.json"),
    ):
        program.main([f"--run={run}", *more])
        assert expected in capsys.readouterr().out
    table = json.loads((run / "p_star.json").read_text())
    assert set(table["p_star"]) == {"32", "40", "48"}
    assert set(table["scores"]["40"]) == {str(p) for p in range(1, 11)}


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def begin(command, **more):
    """The program that trains: what comes after training is not looked at."""
    return start("train/run.py", *command, small_trunk=True, training_alone=True, **more)


def train_only(command):
    """Its output."""
    status, output, errors = finish(begin(command))
    assert status == 0, errors
    return output


def test_killed_runs_resume_to_the_same_weights(folder, tmp_path):
    """kill -9 in the middle of the second epoch, Ctrl-C after it resumed: the end is that of a run left alone."""
    # the signals come many steps before the end, of steps that take a hundredth of a second
    options = {"epochs": 2, "iterations": 80, "checkpoint_every": 29, "deterministic": True}
    train_only(arguments(folder, tmp_path / "whole", **options))

    run = tmp_path / "broken"
    command = arguments(folder, run, **options)
    process = begin(command)
    wait_for((run / "checkpoints" / "step-000000087.npz").exists, process)
    process.kill()
    finish(process)
    steps = [int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.npz")]
    assert max(steps) < 160, "it ended before it was killed: the test shows nothing"

    process = begin(command)
    wait_for((run / "checkpoints" / "step-000000116.npz").exists, process)
    process.send_signal(signal.SIGINT)
    status, output, errors = finish(process)
    assert status == 130, errors
    assert "going on from step" in output
    assert "the same command goes on" in errors

    assert "going on from step" in train_only(command)
    whole, broken = weights(tmp_path / "whole"), weights(run)
    assert whole.keys() == broken.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(broken[name], value, rtol=0, atol=1e-6, err_msg=name)
    # the log knows both epochs once, and the running means of the broken one too
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "broken")]
    assert [len(lines) for lines in rows] == [3, 3]
    columns = rows[0][0].split(",")
    for mine, theirs in zip(rows[0][1:], rows[1][1:], strict=True):
        for column, left, right in zip(columns, mine.split(","), theirs.split(","), strict=True):
            if column not in ("seconds", "images_per_second"):
                assert float(left) == pytest.approx(float(right), abs=1e-5), column


def test_a_full_disk_is_one_line_and_a_run_that_resumes(folder, tmp_path, monkeypatch):
    command = arguments(folder, tmp_path / "run", epochs=1)

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    status, _, errors = finish(begin(command, preexec_fn=no_large_files))
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: checkpoint of step 4 could not be written")
    assert "Traceback" not in errors
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    make_trunk_small(monkeypatch)
    monkeypatch.setattr(whole_run, "_measure", lambda *of_a_run: None)
    monkeypatch.setattr(train, "finish", lambda run: None)
    train.main(command)
    assert (tmp_path / "run" / "checkpoints" / "step-000000006.npz").exists()


def test_classes_are_those_of_the_folder(undisturbed):
    run, _ = undisturbed
    assert tuple((run / "classes.txt").read_text().split()) == CLASSES
