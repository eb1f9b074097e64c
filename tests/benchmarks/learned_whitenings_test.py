import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import learned_whitenings
from benchmarks.kept import some_photos
from mg_keras.embedding.whitening import Whitening
from mg_keras.finishing import contrast


def test_a_row_for_each_fit(monkeypatch, capsys, tmp_path):
    for folder, count in (("p", 9), ("f", 30)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 40)).save(tmp_path / folder / f"{number}.jpg")
    rng = np.random.default_rng(0)
    edit = 9 * rng.normal(size=6)
    photos = rng.normal(size=(40, 6))

    def embedded(name, files, options):
        if name == "copies":
            return np.repeat(photos[10:], 2, axis=0) + np.tile([edit, -edit], (30, 1))
        if name == "full":
            return np.repeat(photos[10:], 2, axis=0)
        if name == "edits":
            return photos[np.random.default_rng(options.seed).permutation(9)[:8]] + edit
        return photos[:9] if name == "photos" else photos[10:]

    trained = []

    def contrasted(whitening, embeddings, versions, steps, seed, logits, label):
        trained.append((steps, seed))
        np.testing.assert_array_equal(logits, embeddings[:, :3])
        np.testing.assert_array_equal(embeddings, photos[10:])
        # two by each recipe, of each photo
        np.testing.assert_allclose(versions - photos[10:, None], np.tile([edit, -edit, 0 * edit, 0 * edit], (30, 1, 1)))
        return Whitening.of_projection(embeddings, np.eye(7)[:, :4])

    monkeypatch.setattr(contrast, "contrasted", contrasted)
    network = SimpleNamespace(classify=lambda embeddings: embeddings[:, :3])
    monkeypatch.setattr(learned_whitenings, "opened", lambda run: SimpleNamespace(model=network))
    monkeypatch.setattr(learned_whitenings, "embedded", embedded)
    folders = [f"--fit={tmp_path / 'f'}", f"--photos={tmp_path / 'p'}"]
    more = ["--run=runs/a", "--versions=2", "--dimensions=4", "--edits=8", "--shrinkages=0.01", "--powers=0,1"]
    monkeypatch.setattr(
        sys, "argv", ["learned_whitenings", *folders, *more, "--steps=0,2", "--augmentations=copies,full"]
    )
    learned_whitenings.main()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [cells for cells in table if len(cells) == 8]
    fits = [["0.01", "0", "0"], ["0.01", "0", "2"], ["0.01", "1", "0"], ["0.01", "1", "2"]]
    assert [cells[:3] for cells in rows] == [["none", "", ""], *fits]
    # a strong edit hides the photo until the whitening knows edits
    assert float(rows[0][3]) < 50
    assert [rows[number][3:] for number in (1, 3)] == [["100.0", "100.0", "–", "–", "–"]] * 2
    assert trained == [(2, 0), (2, 0)]
    assert float(rows[2][3]) < 50, "the row is of what was trained"


def test_kept_edits_are_of_the_files_in_the_folder(monkeypatch, tmp_path):
    network, made = SimpleNamespace(model=SimpleNamespace(fingerprint=lambda: "network")), []
    monkeypatch.setattr(learned_whitenings, "opened", lambda run: network)

    def embed_all(run, photos, *how):
        made.append(len(photos))
        return SimpleNamespace(values=np.full((1, len(photos), 2), len(made)), rows=np.arange(len(photos)))

    monkeypatch.setattr(learned_whitenings, "embed_all", embed_all)
    options = SimpleNamespace(
        run="runs/a", resolution=32, exponent=3.0, augmentations=[], photos="p", edits=2, seed=0, versions=4,
        keep=tmp_path / "kept",
    )  # fmt: skip
    options.keep.mkdir()
    for place in ("first", "second"):
        (tmp_path / place / "p").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / place / "p" / "0.jpg")

    def edits():
        return learned_whitenings.embedded("edits", [None, None], options)[0, 0]

    monkeypatch.chdir(tmp_path / "first")
    assert edits() == edits() == 1
    # one more photo, and the same words in another place: other edits
    Image.new("RGB", (40, 40)).save("p/1.jpg")
    assert edits() == 2
    monkeypatch.chdir(tmp_path / "second")
    assert edits() == 3
    # the same folder in other words
    options.photos = str(tmp_path / "second" / "p")
    assert edits() == 3


@pytest.mark.parametrize("mistake", ["--shrinkages=0", "--shrinkages=0.1,2", "--powers=-1", "--steps=-1"])
def test_settings_out_of_range_are_refused_before_photos_are_embedded(monkeypatch, capsys, mistake):
    monkeypatch.setattr(sys, "argv", ["learned_whitenings", "--run=x", "--fit=x", "--photos=x", mistake])
    with pytest.raises(SystemExit):
        learned_whitenings.main()
    assert f"argument {mistake.split('=')[0]}: invalid" in capsys.readouterr().err


def test_photos_are_those_that_versions_are_made_of(tmp_path):
    """Names that sort otherwise as paths than as text, and files that others pass over."""
    for name in ("a/b.jpg", "a b/c.jpg", "a-b/d.jpg", ".hidden.jpg", "e.gif", "f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    whole, some = some_photos(tmp_path, None, 0), some_photos(tmp_path, 3, 0)
    assert len(some) == 3
    assert [file for file in whole.files if file in some.files] == some.files
    assert some.files == some_photos(tmp_path, 3, 0).files != some_photos(tmp_path, 3, 1).files
