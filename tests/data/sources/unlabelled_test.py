import dataclasses
import os

import numpy as np
import pytest

from mg_keras.data.leaks import find_leaks
from mg_keras.data.sources import SplitOptions, open_source
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators
from mg_keras.finishing.pooling_exponent import in_aug_photos
from tests.data.sources_test import encoded, grey, write


def relative(split, folder):
    return [os.path.relpath(name, folder) for name in split.names]


@pytest.fixture
def album(tmp_path):
    """Twenty photos, most of them in no folder, one as TIFF; and a text and a film."""
    write(tmp_path / "album", [f"{i:02}.png" for i in range(12)])
    write(tmp_path / "album", [f"trip/train/{i:02}.png" for i in range(4)])
    write(tmp_path / "album", [f"trip/val/deep/{i:02}.png" for i in range(3)])
    (tmp_path / "album" / "scan").write_bytes(encoded(200, "TIFF"))
    (tmp_path / "album" / "notes.txt").write_text("words")
    (tmp_path / "album" / "film.mp4").write_bytes(b"a film")
    return tmp_path / "album"


def test_a_folder_of_any_structure_is_divided(album, tmp_path, capsys):
    source = open_source(f"photos:{album}", SplitOptions(val_fraction=0.3), data_dir=tmp_path / "cache")
    assert source.class_names == []
    assert (len(source.train), len(source.val), source.unlabelled) == (14, 6, None)
    names = relative(source.train, album) + relative(source.val, album)
    assert len(set(names)) == 20
    assert relative(source.train, album) == sorted(relative(source.train, album))
    for split in (source.train, source.val):
        assert not split.labelled
        np.testing.assert_array_equal(split.labels, np.full(len(split), -1))
        for row, name in enumerate(relative(split, album)):
            assert grey(split, row) == (200 if name == "scan" else expected(name))
    assert [os.path.relpath(name, album) for name, _ in source.passed_over] == ["film.mp4"]
    assert "passed over" in capsys.readouterr().err
    assert not find_leaks(dataclasses.replace(source, val=source.val.subset([])))


def expected(name):
    """What `write` drew."""
    return int(os.path.basename(name)[:2])


def test_the_seed_divides(album, tmp_path):
    parts = [
        relative(open_source(f"photos:{album}", SplitOptions(seed=seed), data_dir=tmp_path).val, album)
        for seed in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(
    ("count", "options", "sizes"),
    [(2, {}, (1, 1)), (3, {"val_fraction": 0.01}, (2, 1)), (9, {"train_per_class": 9}, (8, 1)),
     (9, {"train_per_class": 4, "val_per_class": 2}, (4, 2)), (9, {"val_fraction": 0.99}, (1, 8))],
)  # fmt: skip
def test_both_parts_have_photos(tmp_path, count, options, sizes):
    write(tmp_path, [f"{i}.png" for i in range(count)])
    source = open_source(f"photos:{tmp_path}", SplitOptions(**options))
    assert (len(source.train), len(source.val)) == sizes


@pytest.mark.parametrize(
    ("files", "message"),
    [(["one.png"], "has 1 photo only"), ([], "no photo below"), (None, "no such folder")],
)
def test_too_few_photos(tmp_path, files, message):
    folder = tmp_path / "album"
    if files is not None:
        folder.mkdir()
        write(folder, files)
    with pytest.raises(UserError, match=f"(?=.*{folder}).*{message}"):
        open_source(f"photos:{folder}")


def test_a_run_s_classes_are_none_of_the_photos(album, tmp_path):
    source = open_source(f"photos:{album}", data_dir=tmp_path)
    assert source.with_classes(["cat", "dog"]) is source


def test_in_aug_takes_a_seeded_sample(tmp_path):
    write(tmp_path, [f"{i:03}.png" for i in range(250)])
    train = open_source(f"photos:{tmp_path}", SplitOptions(val_fraction=0.1)).train
    photos = in_aug_photos(train, 2, seed=4)
    assert len(set(photos.names)) == len(photos) == 200
    assert photos.names == in_aug_photos(train, 2, seed=4).names != in_aug_photos(train, 2, seed=5).names
    assert len(in_aug_photos(train, 3)) == len(train)


def test_what_needs_classes_says_so(album, tmp_path):
    source = open_source(f"photos:{album}", data_dir=tmp_path)
    with pytest.raises(UserError, match="benchmark classes needs photos of known classes, received 4 without labels"):
        evaluators.classes(source.val, ["cat", "dog"])
