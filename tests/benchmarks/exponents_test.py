import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import exponents
from mg_keras import Whitening


@pytest.fixture
def holidays(tmp_path):
    """Six groups of two photos, by name."""
    folder = tmp_path / "holidays"
    folder.mkdir()
    for group in range(6):
        for place in range(2):
            Image.new("RGB", (8, 8)).save(folder / f"{1000 + group}0{place}.jpg")
    return folder


def test_tables_of_made_up_embeddings(monkeypatch, capsys, holidays):
    """Groups lie close together at p = 4, versions at p = 4 (copies) or 1 (full), elsewhere there is noise."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 12))

    def embedded(path, size, kind, options):
        if kind == "photos":
            return rng.normal(size=(10, 40, 12)), np.arange(40)
        numbers = np.repeat(np.arange(6), 2 if kind == "holidays" else 5)
        best = 0 if kind == "full" else 3
        noise = np.where(np.arange(10) == best, 0.01, 3)[:, None, None]
        return centres[numbers] + noise * rng.normal(size=(10, len(numbers), 12)), numbers

    monkeypatch.setattr(exponents, "embedded", embedded)
    settings = SimpleNamespace(settings=SimpleNamespace(pooling_exponent=3.0))
    monkeypatch.setattr(exponents, "opened", lambda path: settings)
    arguments = ["--photos=photos", "--run=runs/a", "--resolutions=160", "--dimensions=12"]
    monkeypatch.setattr(sys, "argv", ["exponents", f"--holidays={holidays}", *arguments])
    exponents.main()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [cells for cells in table if cells and cells[0] == "4"]
    assert rows[0][1:3] == ["100.0", "100.0"]
    assert rows[0][-2] == "5.000 ± 0.000"
    assert [cells[-1] for cells in table if cells and cells[0] == "10"] == ["1.000"]
    choices = {tuple(cells[1:3]): cells[3:] for cells in table if cells and cells[0] == "a, 160 px" and len(cells) == 6}
    assert choices["copies, whitened", "one standard error"] == ["4", "0.0 ± 0.0", "0.0 ± 0.0"]
    assert choices["full, as pooled", "best"][0] == "1"
    assert choices["–", "training exponent"][0] == "3"
    assert choices["–", "always 5"][0] == "5"
    means = {tuple(cells[1:3]): cells[3:] for cells in table if cells and cells[0] == "mean of all"}
    assert means["copies, whitened", "one standard error"] == ["0.0", "0.0"]
    # of six photos no samples of ten
    assert [cells[1:] for cells in table if cells and len(cells) == 6 and cells[1] == "–" and cells[2] == "–"]


def test_how_far_an_exponent_is_below_the_best():
    precisions = {1: np.array([0.5, 0.5, 0.8]), 2: np.array([0.6, 0.8, 1.0])}
    loss = exponents.lost(precisions, 1)
    np.testing.assert_allclose(loss, [0.1, 0.3, 0.2])
    assert exponents.with_error(loss) == f"20.0 ± {100 * np.std(loss, ddof=1) / np.sqrt(3):.1f}"
    assert exponents.with_error(exponents.lost(precisions, 2)) == "0.0 ± 0.0"


def test_what_half_of_the_queries_know_of_the_others():
    alike = {1: np.full(20, 0.4), 2: np.full(20, 0.7)}
    assert exponents.halves(alike, 0) == "0.0, 100%"
    # one query decides: the half that has it chooses 1, which the other half has 10 points less with, and inversely
    decided = {1: np.array([1.0] + [0.5] * 19), 2: np.array([0.0] + [0.6] * 19)}
    missed = 100 * (0.5 * 0.1 + 0.5 * (1.0 - 0.1 * 9) / 10)
    assert abs(float(exponents.halves(decided, 0).split(",")[0]) - missed) < 1
    assert exponents.halves(decided, 0).endswith(" 0%")


def test_a_whitening_learned_from_versions_of_each_photo(monkeypatch, holidays):
    rng = np.random.default_rng(0)
    photos, numbers = rng.normal(size=(10, 40, 12)), np.arange(40)
    found = {
        "photos": (photos, numbers),
        exponents.VERSIONS_OF_ALL: (photos.repeat(3, axis=1) + 0.1 * rng.normal(size=(10, 120, 12)), None),
        "holidays": (rng.normal(size=(10, 12, 12)), np.arange(12)),
        **{recipe: (rng.normal(size=(10, 10, 12)), np.arange(2).repeat(5)) for recipe in exponents.RECIPES},
    }
    monkeypatch.setattr(exponents, "embedded", lambda path, size, kind, options: found[kind])
    options = SimpleNamespace(holidays=holidays, dimensions=6, versions=3)
    precisions, counts, _ = exponents.measured("runs/a", 160, options)
    assert list(precisions) == ["whitened", "as pooled", "learned"]
    assert ("copies", "learned") in counts
    versions = found[exponents.VERSIONS_OF_ALL][0][2].reshape(40, 3, 12)
    learned = Whitening.fit_on_versions(photos[2], versions, dimensions=6).transform(found["holidays"][0][2])
    np.testing.assert_array_equal(
        precisions["learned"][3], exponents.holidays_precisions(learned, exponents.photo_files(holidays))
    )


def test_what_is_kept_is_of_the_network_and_the_photos_as_they_are_now(monkeypatch, tmp_path, holidays):
    """A run that was trained on lies where it did, and so does a folder with one photo more."""

    class Corner:
        weights = "first"

        def fingerprint(self):
            return self.weights

        def embed_batch(self, images, poolings):
            return tf.stack([images[:, 0, 0]] * len(poolings))

    run = SimpleNamespace(model=Corner(), settings=SimpleNamespace(resolution=16))
    monkeypatch.setattr(exponents, "opened", lambda path: run)
    options = SimpleNamespace(photos=tmp_path, holidays=holidays, in_aug=2, seed=0, keep=tmp_path / "kept", versions=0)

    def count():
        values, _ = exponents.embedded("runs/a", 16, "holidays", options)
        return values.shape[1], len(list(options.keep.iterdir()))

    assert [count(), count()] == [(12, 1), (12, 1)]
    run.model.weights = "others"
    assert count() == (12, 2)
    Image.new("RGB", (8, 8)).save(holidays / "100600.jpg")
    assert count() == (13, 3)


@pytest.mark.slow
def test_the_model_in_the_package_stands_in_for_a_run(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.jpg")
    options = SimpleNamespace(photos=tmp_path, holidays=tmp_path, in_aug=2, seed=0, keep=None, versions=2)
    values, numbers = exponents.embedded("package", 64, exponents.VERSIONS_OF_ALL, options)
    assert (values.shape, numbers.tolist()) == ((10, 4, 2688), [0, 0, 1, 1])
