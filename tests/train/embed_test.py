"""train/embed.py, as users start, kill and resume it."""

import re
import runpy
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from mg_keras import MultiGrain
from mg_keras.checkpoints import snapshot
from mg_keras.data.formats import NO_PHOTO
from mg_keras.data.sources import photos
from mg_keras.embedding.photos import embed
from mg_keras.embedding.whitening import Whitening
from mg_keras.export.optimized import Optimized
from mg_keras.export.saved_model import export_saved_model
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.run import Run
from tests.train.tiny import CLASSES, ROOT, draw_folder, finish, make_trunk_small, run_in_process, start


@pytest.fixture(scope="module", autouse=True)
def small_trunk():
    with pytest.MonkeyPatch.context() as patch:
        make_trunk_small(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose network was never trained, with its p* and a whitening at 48 px."""
    config = TrainConfig(trunk="resnet18", resolution=32, pooling_exponent=2.0)
    run = Run.start(tmp_path_factory.mktemp("runs") / "tiny", config)
    run.save_class_names(CLASSES)
    model = build_model(config, len(CLASSES))
    run.checkpoints.save(0, snapshot({"model": model.state_variables}), {})
    (run.path / "p_star.json").write_text('{"p_star": {"48": 4.0}}')
    values = embed(model, photos(draw_folder(tmp_path_factory.mktemp("others") / "x")), 48, 32, [4.0]).values[0]
    Whitening.fit(values, shrinkage=0.5).save(run.results.whitening_path(48))
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """21 photos of two shapes, and one that is none."""
    folder = draw_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=7)
    for path in folder.glob("*/*[246].jpg"):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "film.mov").write_bytes(b"a film")
    return folder


def command(run, folder, out, **more):
    return [f"--run={run.path}", f"--photos={folder}", f"--out={out}", *(f"--{k}={v}" for k, v in more.items())]


@pytest.mark.slow
def test_a_killed_program_goes_on_to_the_same_file(run, folder, tmp_path, monkeypatch, capsys):
    out, shards = tmp_path / "features.npy", tmp_path / "features.npy.shards"
    arguments = command(run, folder, out, resolution=700, photos_a_shard=1)
    process = start("train/embed.py", *arguments, small_trunk=True)
    deadline = time.monotonic() + 300
    while not list(shards.glob("shard-*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    process.kill()
    finish(process)
    assert not out.exists(), "it ended before it was killed: the test shows nothing"
    assert not out.with_suffix(".txt").exists()

    in_process(arguments, monkeypatch)
    output, errors = capsys.readouterr()
    done = int(re.search(r"going on after (\d+) of 22 photos", errors)[1])
    assert 0 < done < 22
    assert "22/22 photos" in errors
    split = photos(folder)
    found = embed(run.model, split, 700, 32, [2.0])
    np.testing.assert_allclose(np.load(out), found.values[0], rtol=1e-5, atol=1e-6)
    assert out.with_suffix(".txt").read_text().splitlines() == [split.names[row] for row in found.rows]
    assert "21 photos at 700 px, p* = 2, not whitened" in output
    assert "2 photos could not be used or were passed over" in output
    assert f"passed over in {folder}: 1 file or folder: " in errors
    broken, film = out.with_suffix(".unusable.txt").read_text().splitlines()
    assert broken == f"{folder / 'broken.jpg'}\t{NO_PHOTO}"
    assert film.startswith(f"{folder / 'film.mov'}\tnot a JPEG, PNG, ")


def in_process(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train/embed.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "train" / "embed.py"), run_name="__main__")


@pytest.mark.slow
def test_the_run_says_p_star_and_whitening(run, folder, tmp_path, monkeypatch, capsys):
    out, network = tmp_path / "features.npy", Optimized(run.model)
    in_process(command(run, folder, out, resolution=48), monkeypatch)
    assert "21 photos at 48 px, p* = 4, whitened" in capsys.readouterr().out
    expected = run.results.whitening_at(48).transform(embed(network, photos(folder), 48, 32, [4.0]).values[0])
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.load(out), axis=1), 1, atol=1e-6)
    other = tmp_path / "other.parquet"
    in_process(command(run, folder, other, resolution=48, p_star=1.5, whiten="false", dtype="float32"), monkeypatch)
    output = capsys.readouterr().out
    assert "p* = 1.5, not whitened" in output
    assert "1 photos could not be used: the column error says why" in output
    found = parquet.read_table(other)
    assert set(found["class"].to_pylist()) <= {*CLASSES, None}
    found = found.filter(found["error"].is_null())["embedding"].combine_chunks()
    values = np.asarray(found.flatten()).reshape(21, -1)
    np.testing.assert_allclose(values, embed(network, photos(folder), 48, 32, [1.5]).values[0], atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_describes_as_it_serves(folder, tmp_path, monkeypatch, capsys):
    keras.utils.set_random_seed(0)
    trunk = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 5, strides=4, activation="relu")])
    model, split = MultiGrain(trunk, len(CLASSES), pooling_exponent=2.0), photos(folder)
    whitening = Whitening.fit(embed(model, split, 48, 32, [4.0]).values[0])
    metadata = {"p_star": {48: 4.0}, "training": {"resolution": 32}}
    saved = export_saved_model(model, whitening, tmp_path / "model", metadata=metadata)
    out = tmp_path / "features.npy"
    arguments = [f"--model={saved.parent}", f"--photos={folder}", f"--out={out}", "--resolution=48"]
    in_process(arguments, monkeypatch)
    assert "21 photos at 48 px, p* = 4, whitened" in capsys.readouterr().out
    expected = whitening.transform(embed(model, split, 48, 32, [4.0]).values[0])
    np.testing.assert_allclose(np.load(out), expected, atol=1e-3)
    status, line = run_in_process("train/embed.py", [*arguments, "--whiten=false"], monkeypatch, capsys)
    assert status == 2
    assert "--whiten must be left out with --model" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"folder": "empty"}, "no photo below empty"),
        ({"folder": "/no/such/place"}, "no such folder, photo or list: /no/such/place"),
        ({"workers": 2}, "--workers is for --engine ray; received --engine local"),
        ({"engine": "ray"}, "--engine ray takes a SavedModel: mg-keras export --run .* makes one for --model"),
        ({"out": "features.txt"}, r"a name in \.npy or \.parquet or to a folder, received features\.txt"),
        ({"resolution": 0}, "--resolution must be a whole number, at least 1; received '0'"),
        ({"p_star": -1}, "--p_star must be a number, above 0 and at most 1000; received '-1'"),
        ({"resolution": 64, "whiten": "true"}, r"no whitening for 64 px: run mg-keras whiten --run .* --whiten false"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.slow
def test_mistakes_get_one_line(run, folder, tmp_path, more, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = command(run, **{"folder": folder, "out": "x.npy", **more})
    status, line = run_in_process("train/embed.py", arguments, monkeypatch, capsys)
    assert status == 2
    assert re.search(message, line), line
