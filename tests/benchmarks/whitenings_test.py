import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import whitenings


def test_a_row_for_each_whitening(monkeypatch, capsys, tmp_path):
    for folder, names in (("h", ("100000", "100001", "100100", "100101")), ("p", range(9)), ("f", range(30))):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (40, 40)).save(tmp_path / folder / f"{name}.jpg")
    rng = np.random.default_rng(0)
    # one direction that all photos share hides the ones in which they differ
    content = rng.normal(size=(60, 6)) + 20 * rng.normal(size=(60, 1)) * np.ones(6)

    def describe(name, photos):
        if name == "versions":
            return np.repeat(content[:4], 5, axis=0), np.repeat(np.arange(4), 5)
        return content[: len(photos)], np.arange(len(photos))

    monkeypatch.setattr(whitenings, "embedder", lambda options: describe)
    folders = [f"--{name}={tmp_path / folder}" for name, folder in (("fit", "f"), ("photos", "p"), ("holidays", "h"))]
    more = ["--run=runs/a", "--counts=5,20,90", "--dimensions=3", "--edits=4"]
    monkeypatch.setattr(sys, "argv", ["whitenings", *folders, *more])
    whitenings.main()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [cells for cells in table if len(cells) == 7 and cells[0] in ("none", "f")]
    # five photos are too few for seven dimensions without shrinkage; of 90 there are 30
    assert [cells[1:4] for cells in rows] == [
        ["", "", ""],
        ["5", "7", "0.1"],
        ["5", "3", "–"],
        ["5", "3", "0.1"],
        *[[count, *how] for count in ("20", "30") for how in (("7", "–"), ("7", "0.1"), ("3", "–"), ("3", "0.1"))],
    ]
    assert float(rows[0][-1]) == pytest.approx(5)


def test_what_is_kept_is_of_the_network_and_the_photos_as_they_are_now(monkeypatch, tmp_path):
    class Corner:
        weights = "first"

        def fingerprint(self):
            return self.weights

        def embed_batch(self, images, poolings):
            return images[None, :, 0, 0]

    run = SimpleNamespace(model=Corner(), settings=SimpleNamespace(resolution=16))
    monkeypatch.setattr("mg_keras.runs.run.load_run", lambda path: run)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / f"{number}.png")
    given = {"run": "runs/a", "photos": tmp_path / "photos", "keep": tmp_path / "kept"}
    options = SimpleNamespace(**given, resolution=16, exponent=3.0, edits=2, seed=0)

    def kept():
        edits = [Image.new("RGB", (40, 40))] * 2
        whitenings.embedder(options)("edits", edits)
        return len(list(options.keep.iterdir()))

    assert [kept(), kept()] == [1, 1]
    run.model.weights = "others"
    assert kept() == 2
    # edits are of other photos, too
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "2.png")
    assert kept() == 3
