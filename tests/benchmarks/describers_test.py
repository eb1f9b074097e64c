"""The benchmark of descriptors on drawn photos, with describers that need no network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import describers
from mg_keras.errors import UserError


def small_pixels(photos, label):
    rows = [np.asarray(describers.opened(photo).convert("L").resize((12, 12)), float).ravel() for photo in photos]
    rows = [row - row.mean() for row in rows]
    return np.array([row / np.linalg.norm(row) for row in rows])


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)
        image.save(path)
        return image

    for number in range(16):
        draw(tmp_path / "photos" / f"{number:02}.png")
    for number in (100000, 100100):
        image = draw(tmp_path / "holidays" / f"{number}.jpg")
        image.save(tmp_path / "holidays" / f"{number + 1}.jpg", quality=50)
    for name in "ab":
        image = draw(tmp_path / "objects" / name / "0.png")
        image.resize((40, 30)).save(tmp_path / "objects" / name / "1.png")
    return tmp_path


def run(folders, monkeypatch, capsys, *more):
    monkeypatch.setattr(describers, "describers", lambda options: [("pixels", small_pixels, None)])
    monkeypatch.setattr("sys.argv", ["describers", f"--photos={folders}/photos", "--edits=16", *more])
    describers.main()
    return capsys.readouterr().out


def test_the_table_has_each_set_and_each_kind_of_edit(folders, monkeypatch, capsys):
    output = run(folders, monkeypatch, capsys, f"--holidays={folders}/holidays", f"--objects={folders}/objects")
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines() if "│" in line]
    found = dict(cells)
    assert found["of grey"] == found["of jpeg_10"] == "100.0"
    assert found["Holidays mAP %"] == found["objects R@1 %"] == "100.0"
    kinds = [float(value) for title, value in found.items() if title.startswith("of ")]
    assert float(found["copies R@1 %"]) == pytest.approx(np.mean(kinds), abs=0.1)


def test_what_is_not_given_is_not_measured(folders, monkeypatch, capsys):
    assert run(folders, monkeypatch, capsys).count("–") >= 2


def test_of_several_runs_the_mean_and_the_deviation_are_told(folders, monkeypatch, capsys):
    def opposite(photos, label):
        """Its edits are as far from their photos as can be."""
        found = small_pixels(photos, label)
        return -found if "edits" in label else found

    def copies(*describe):
        monkeypatch.setattr(describers, "describers", lambda options: [("seeds", one, None) for one in describe])
        monkeypatch.setattr("sys.argv", ["describers", f"--photos={folders}/photos", "--edits=16"])
        describers.main()
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "copies R@1" in line]
        return line.strip("│ ").split("│")[1].strip()

    first, second = float(copies(small_pixels)), float(copies(opposite))
    assert first > second
    mean, deviation = map(float, copies(small_pixels, opposite).split(" ± "))
    assert mean == pytest.approx((first + second) / 2, abs=0.1)
    assert deviation == pytest.approx((first - second) / 2**0.5, abs=0.1)


def test_a_pattern_stands_for_several_models(tmp_path):
    for name in ("mine-seed1", "mine-seed0", "other-seed0"):
        (tmp_path / name).mkdir()
    found = describers.models_of(f"{tmp_path}/mine-seed*")
    assert found == [f"{tmp_path}/mine-seed0", f"{tmp_path}/mine-seed1"]
    assert describers.models_of("package") == ["package"]


def test_mistakes_are_named(folders, monkeypatch, capsys):
    with pytest.raises(UserError, match="--edits must be from 1 to 16"):
        run(folders, monkeypatch, capsys, "--edits=17")
    with pytest.raises(UserError, match="there is no folder"):
        run(folders, monkeypatch, capsys, "--holidays=nowhere")
    (folders / "holidays" / "cover.png").touch()
    with pytest.raises(UserError, match=r"named as Holidays' are, such as 100000\.jpg; received cover\.png"):
        run(folders, monkeypatch, capsys, f"--holidays={folders}/holidays")
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match="has no photos"):
        run(folders, monkeypatch, capsys, f"--objects={folders}/empty")


def test_classes_are_read_from_the_folders_called_by_wordnet_numbers():
    files = [Path("a/n02102040/1.jpg"), Path("a/n01440764/2.jpg"), Path("a/n03888257/3.jpg")]
    assert [describers.wordnet_number(file) for file in [*files, Path("a/n1/b.jpg")]] == [
        "n02102040",
        "n01440764",
        "n03888257",
        None,
    ]
    # of another list of classes than ImageNet's 1000: by its number alone
    others = [Path("a/n00000001/1.jpg"), Path("a/n00000002/2.jpg")]
    assert describers.classes_found(["n00000001", "tench"], others) == 0.5
    # by its name or its number
    assert describers.classes_found(["English springer", "n01440764", "tench"], files) == pytest.approx(2 / 3)


def test_of_a_class_all_photos_are_to_come_first():
    files = [Path("a/n00000001/1.jpg"), Path("a/n00000001/2.jpg"), Path("a/n00000002/3.jpg"), Path("a/other/4.jpg")]
    # of both photos of the first class the fourth is the nearest, then the other: between 0 and 1 / 2 in trapezoids
    descriptors = np.array([[1, 0.0], [0.8, 0.6], [0.8, -0.6], [0.96, 0.28]])
    assert describers.same_class_map(descriptors, files) == pytest.approx(0.25)
    assert describers.same_class_map(descriptors[2:], files[2:]) is None


def test_micro_ap_is_of_all_pairs_in_one_list():
    photos = np.eye(3)
    order = describers.edited_rows(3, 3, 0)
    edits = photos[order]
    assert describers.edits_micro_ap(edits, photos, 0) == pytest.approx(1)
    # each is nearest to its own photo; one is nearer to another than the rest are to theirs
    edits = 0.1 * edits
    edits[0] = photos[order[0]] + 0.9 * photos[order[1]]
    assert np.all(describers.edits_found(edits, photos, 0))
    assert describers.edits_micro_ap(edits, photos, 0) == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
