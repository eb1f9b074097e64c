"""mg-keras pack, and mg-keras export of what it wrote."""

import dataclasses
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mg_keras
from mg_keras import loading, processor
from mg_keras.errors import UserError
from mg_keras.evaluation.thresholds import thresholds
from mg_keras.export.opened import Exported
from mg_keras.export.quantize import supported
from mg_keras.pretrained import packed
from mg_keras.programs import command, pack
from mg_keras.programs.pack import measured_thresholds, observe_photos
from mg_keras.runs.run import load_run
from tests.loading_test import SIZE, folder, make_run, small
from tests.train.tiny import CLASSES

__all__ = ["folder", "small"]

# how the run's whitening was fitted, which is not as its settings say
FIT = {"photos": 9, "versions": 2, "augmentations": ["standard"], "power": 0.5, "steps": 3, "shrinkage": 0.3}


@pytest.fixture(scope="module")
def run(small, folder, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "run", folder, whitened=True)
    run.results.save_whitening_report({SIZE: {"p_star": 4.0, **FIT, "fitted_on": f"photos of {folder}"}})
    return run


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("".join(f"{name} as shown\n" for name in CLASSES))
    return path


@pytest.fixture(scope="module")
def out(run, folder, names, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "out"
    command.main(
        [
            "pack",
            f"--run={run.path}",
            f"--out={out}",
            f"--copies={folder}",
            f"--instances={folder}",
            f"--class_names={names}",
        ]
    )
    return out


@pytest.mark.slow
def test_it_describes_as_the_run_does(out, run, folder):
    model, expected = mg_keras.load(out), mg_keras.load(run.path)
    similar = np.sum(model.embed(folder) * expected.embed(folder), axis=1)
    assert similar.min() > 0.999
    assert model.class_names == [f"{name} as shown" for name in CLASSES]
    assert (model.resolution, model.p_star) == (SIZE, {SIZE: 4.0})


def test_thresholds_are_cosines_at_two_precisions(out):
    about = json.loads((out / "model.json").read_text())
    assert set(about["thresholds"]) == {"copy", "instance"}
    for values in about["thresholds"].values():
        assert set(values) <= {"0.9", "0.99"}
        assert sorted(values.values()) == [values[name] for name in sorted(values)]
    assert about["class_ids"] == list(CLASSES)
    # nobody's folders
    assert about["whitening"] == FIT
    assert about["training"]["data"] is None


@pytest.mark.slow
def test_what_8_bits_need_to_know_is_observed_on_the_copies(out, folder, tmp_path):
    if processor.computes_int8() is not True or not supported():
        pytest.skip("no 8-bit convolutions on this machine")
    model, expected = mg_keras.load(out, precision="int8"), mg_keras.load(out, precision="float32")
    assert np.sum(model.embed(folder) * expected.embed(folder), axis=1).min() > 0.98
    # an index of the one is no index of the other
    assert model.fingerprint != expected.fingerprint
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"none of the photos in .*photos can be used"):
        observe_photos(out, tmp_path / "photos")


@pytest.mark.slow
@pytest.mark.parametrize("of_package", [True, False])
def test_a_run_is_made_of_it(out, run, folder, names, tmp_path, monkeypatch, capsys, of_package):
    monkeypatch.setattr(packed, "PACKAGE", out)
    given = ["import-weights", "package" if of_package else str(out)]
    command.main([*given, f"--run={tmp_path / 'run'}", f"--data=folder:{folder}"])
    printed = capsys.readouterr()
    assert "used at 32 px" in printed.out
    assert not printed.err
    found = load_run(tmp_path / "run")
    assert found.results.p_star == {SIZE: 4.0}
    assert found.results.whitening_report[SIZE]["p_star"] == 4.0
    assert found.results.whitening_report[SIZE].items() >= FIT.items()
    # further whitenings are fitted as this one was
    fit = {f"whitening_{name}": value for name, value in FIT.items() if name != "photos"}
    expected = dataclasses.replace(run.settings, data=f"folder:{folder}", evaluation_resolutions=[], **fit)
    assert found.settings == expected
    if of_package:
        # nothing is lost on the way: packed again it is the same file
        again = ["--class_names", str(names), "--out", str(tmp_path / "again")]
        command.main(["pack", f"--run={tmp_path / 'run'}", *again])
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds the checkpoints of a run"):
        command.main([*given, f"--run={tmp_path / 'run'}", f"--data=folder:{folder}"])


def test_a_packed_network_knows_its_classes(out, names, tmp_path, folder):
    more = [f"--run={tmp_path / 'run'}", f"--data=folder:{folder}", f"--class_names={names}"]
    with pytest.raises(UserError, match="knows its classes: leave --class_names out"):
        command.main(["import-weights", str(out), *more])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_is_exported_without_a_run(out, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packed, "PACKAGE", out)
    command.main(["export", f"--out={tmp_path / 'model'}"])
    assert "model = tf.saved_model.load" in capsys.readouterr().out
    exported = Exported.load(tmp_path / "model")
    assert (exported.whitened, exported.train_resolution, exported.p_star) == (True, SIZE, {SIZE: 4.0})
    served, expected = mg_keras.load(tmp_path / "model"), mg_keras.load(out, precision="float32")
    assert served.thresholds == expected.thresholds
    assert expected.thresholds["copy"]
    assert served.resolution == expected.resolution
    similar = np.sum(served.embed(folder) * expected.embed(folder), axis=1)
    assert similar.min() > 0.9999


@pytest.mark.slow
def test_the_model_in_the_package_is_embedded_with_by_name(out, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PACKAGE", out)
    where = [f"--photos={folder}", f"--out={tmp_path / 'x.npy'}"]
    command.main(["embed", "--model=package", *where])
    model = mg_keras.load()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), model.embed(folder), atol=1e-5)
    told = json.loads((tmp_path / "x.json").read_text())["made_from"]
    assert model.made_from(SIZE).items() <= told.items(), "an index of them is opened without --model"
    with pytest.raises(UserError, match="--engine ray takes a SavedModel: mg-keras export --out models/package makes"):
        command.main(["embed", "--model=package", "--engine=ray", *where])
    with pytest.raises(UserError, match="the descriptors of the model in the package are whitened"):
        command.main(["embed", "--model=package", "--whiten=false", *where])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--copies=nowhere"], "there is no folder nowhere"),
        (["--out={empty}"], "is there already: give a new folder"),
        (["--default_resolution=0"], "--default_resolution must be a whole number, at least 1"),
        (["--class_names={empty}"], "must name 3 classes, received 0 lines"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(run, tmp_path, arguments, message):
    (tmp_path / "empty").touch()
    arguments = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    with pytest.raises(UserError, match=message):
        command.main(["pack", f"--run={run.path}", f"--out={tmp_path / 'out'}", *arguments])
    assert not (tmp_path / "out").exists()


def test_copies_are_told_by_photos_that_can_be_used(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    model = SimpleNamespace(embed=lambda folder, on_error: np.full((1, 4), np.nan, np.float32))
    with pytest.raises(UserError, match=f"none of the photos in {tmp_path} can be used"):
        measured_thresholds(model, copies=str(tmp_path))


def tiny_photos(folder, count, side=2):
    """`count` photos in half as many subfolders."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        (folder / f"{number // 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number // 2}" / f"{number}.png")


class Random:
    """A model whose descriptors are noise, which notes how many pixels it was given at once."""

    def __init__(self, count):
        self.rng, self.count, self.given, self.pixels = np.random.default_rng(0), count, [], []

    def embed(self, photos, on_error="raise"):
        if not isinstance(photos, str):
            self.pixels.append(sum(image.shape[0] * image.shape[1] for image in photos))
        values = self.rng.normal(size=(self.count if isinstance(photos, str) else len(photos), 4))
        self.given.append((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))
        return self.given[-1]


def test_all_pairs_of_edits_and_photos_are_looked_at(tmp_path, monkeypatch):
    tiny_photos(tmp_path, 10, 16)
    monkeypatch.setattr(pack, "_PIXELS_AT_ONCE", 1000)
    model = Random(10)
    matching, blocks = pack.copy_pairs(model, str(tmp_path))
    similarities, matches = (np.concatenate(each) for each in zip(*blocks, strict=True))
    # a photo or so more than that, which a rotation makes twice as large
    assert max(model.pixels) < 1000 + 2 * 16**2
    assert len(model.pixels) < 10
    originals, edits = model.given[0], np.concatenate(model.given[1:])
    np.testing.assert_allclose(similarities, (edits @ originals.T).ravel(), atol=1e-6)
    np.testing.assert_array_equal(matches.reshape(20, 10), np.repeat(np.eye(10, dtype=bool), 2, axis=0))
    assert matching == 20


def test_pairs_of_many_photos_need_little_memory(tmp_path):
    count = 1000
    tiny_photos(tmp_path, count)
    model = Random(count)
    # without what is loaded once
    measured_thresholds(model, instances=str(tmp_path))
    tracemalloc.start()
    found = measured_thresholds(model, instances=str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6, "more than 24 bytes of each of 499,500 pairs"
    values, pairs = model.given[-1], np.triu_indices(count, 1)
    expected = thresholds((values @ values.T)[pairs], pairs[0] // 2 == pairs[1] // 2)
    assert found == {"instance": expected}


def test_where_no_cosine_tells_instances_that_of_copies_does(monkeypatch):
    # two objects are more alike than any one is with itself
    pairs = {
        "copy_pairs": (2, [(np.array([0.9, 0.8, 0.3]), np.array([True, True, False]))]),
        "instance_pairs": (
            10,
            [
                (np.array([0.7, 0.6]), np.array([False, True])),
                (np.array([*np.full(9, 0.5), 0.2, 0.2]), np.array([*[True] * 9, False, False])),
            ],
        ),
    }
    for name, found in pairs.items():
        monkeypatch.setattr(pack, name, lambda model, folder, found=found: found)
    found = measured_thresholds(None, "photos", "objects")
    assert found == {"copy": {"0.9": 0.8, "0.99": 0.8}, "instance": {"0.9": 0.5, "0.99": 0.8}}
    assert measured_thresholds(None, None, "objects") == {"instance": {"0.9": 0.5}}


def test_photos_of_a_run_need_the_run(tmp_path):
    with pytest.raises(UserError, match="--data says where the photos of a run lie"):
        command.main(["export", f"--out={tmp_path}", "--data=folder:photos"])
    with pytest.raises(UserError, match="--check_photos are of a run"):
        command.main(["export", f"--out={tmp_path}", "--check_photos=4"])
