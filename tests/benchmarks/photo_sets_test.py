"""The sets of photos of the model in the package, from small public ones drawn here."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import photo_sets
from mg_keras.errors import UserError

COUNTS = {
    "caltech101": {"": 3},
    "many": {"": 4},
    "imagenette": {"train/a": 3, "val/a": 10},
    "imagewoof": {"train/a": 3, "val/a": 10},
    "grocery": {"dataset/train/a": 3, "dataset/test/a": 10, "dataset/iconic-images-and-descriptions/a": 3},
    "cars": {"cars_train": 3},
}
PARTS = {"held_out": 4, "kept_aside": 2, "objects": 1, "objects_kept_aside": 1, "grounds": 2}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, parts in COUNTS.items():
        for below, count in parts.items():
            folder = tmp_path / name / below
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((80, 60)).save(folder / f"{number}.jpg")
    for name, value in {
        "_MIXED": dict.fromkeys(COUNTS, 2),
        "_PARTS": {name: dict.fromkeys(photo_sets._MEASURED, count) for name, count in PARTS.items()},
        "_PRODUCTS_SHOWN": 2,
    }.items():
        monkeypatch.setattr(photo_sets, name, value)
    return tmp_path


def make(folders, monkeypatch, out, *more):
    given = [f"--{name}={folders / name}" for name in COUNTS]
    monkeypatch.setattr("sys.argv", ["photo_sets", f"--out={folders / out}", *given, *more])
    photo_sets.main()
    return folders / out


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_what_is_measured_on_is_not_trained_on_and_a_seed_gives_the_same_sets(folders, monkeypatch):
    sets = make(folders, monkeypatch, "sets")
    found = {path.name: {file.resolve() for file in path.rglob("*.jpg")} for path in sets.iterdir()}
    counts = {"train": 19, "mixed": 12, "held_out": 12, "kept_aside": 6, "objects": 25, "objects_kept_aside": 20}
    assert {name: len(files) for name, files in found.items()} == counts
    assert found["mixed"] < found["train"]
    assert not found["held_out"] & (found["train"] | found["kept_aside"])
    assert not found["kept_aside"] & found["train"]
    # nor is an object among the photos that it is looked for in
    photos = [np.asarray(Image.open(file), np.float32) for name in ("train", "held_out") for file in found[name]]
    for file in sets.glob("objects/*/0.jpg"):
        seen = np.asarray(Image.open(file).resize((80, 60)), np.float32)
        assert min(np.abs(seen - photo).mean() for photo in photos) > 10
    again, other = make(folders, monkeypatch, "again"), make(folders, monkeypatch, "other", "--seed=1")
    assert files(again) == files(sets) != files(other)


def test_views_show_the_object_each_in_another_way(folders, monkeypatch):
    place = make(folders, monkeypatch, "sets") / "objects" / "000"
    views = [np.asarray(Image.open(place / f"{number}.jpg")) for number in range(1, 5)]
    assert {view.shape for view in views} == {(360, 480, 3)}
    assert min(np.abs(np.float32(a) - b).mean() for a in views for b in views if a is not b) > 10
    # without ground, light and noise: a plane seen from aside, whole and within the view
    white = np.full((60, 80, 3), 255, np.float32)
    for seed in range(20):
        seen, mask = photo_sets.from_aside(white, np.random.default_rng(seed))
        np.testing.assert_allclose(seen, 255 * mask[..., None] * np.ones(3), atol=2)
        assert 0.03 < mask.mean() < 0.8
        rows, columns = np.nonzero(mask > 0.5)
        assert max(np.ptp(rows) / 360, np.ptp(columns) / 480) > 0.45
        edge = np.r_[mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        assert np.mean(edge > 0.5) < 0.05


def test_views_of_two_sets_are_drawn_apart(folders, tmp_path):
    files = sorted((folders / "many").rglob("*.jpg"))
    for name in ("objects", "objects_kept_aside"):
        photo_sets.draw_objects(tmp_path / name, files[:1], files[1:], 0)
    views = [files_of.read_bytes() for files_of in sorted(tmp_path.glob("objects*/000/1.jpg"))]
    assert len(views) == len(set(views)) == 2
    # `objects` stays what it was
    rng = np.random.default_rng((0, 0, 1))
    picture = photo_sets.ImageOps.contain(photo_sets.opened(files[0]), photo_sets._VIEW)
    assert (tmp_path / "objects/000/1.jpg").read_bytes() == photo_sets.view(picture, files[1:], rng)


def test_mistakes_are_named(folders, monkeypatch):
    monkeypatch.setitem(photo_sets._MIXED, "cars", 5)
    with pytest.raises(UserError, match="cars has 3 photos, 5 are needed"):
        make(folders, monkeypatch, "sets")
    assert not (folders / "sets").exists()
    (folders / "there").mkdir()
    with pytest.raises(UserError, match="is there already"):
        make(folders, monkeypatch, "there")
