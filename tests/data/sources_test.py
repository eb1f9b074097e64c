import functools
import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import demo, sources
from mg_keras.data.images import decode
from mg_keras.data.sources import SplitOptions, contract, open_source, photos
from mg_keras.data.sources import tfds as tfds_source
from mg_keras.errors import UserError
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run


def encoded(value, kind="PNG"):
    """A grey picture of 16 x 12 pixels, all of one value."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def grey(split, row):
    return int(decode(split.read(tf.constant(row, tf.int64)))[6, 8, 0])


def write(folder, files):
    """Writes pictures: path below `folder` -> grey value."""
    for number, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(files[name] if isinstance(files, dict) else number))
    return folder


def many(folder, counts):
    return write(folder, [f"{name}/{i:03}.png" for name, count in counts.items() for i in range(count)])


def stems(split):
    """The photos of a split as class/file."""
    return ["/".join(name.split(os.sep)[-2:]) for name in split.names]


# --- folder ---


def test_every_format_is_found_labelled_and_read(tmp_path):
    kinds = {"a.jpg": "JPEG", "b.JPEG": "JPEG", "c.png": "PNG", "d.webp": "WEBP", "e.bmp": "BMP", "f.GIF": "GIF"}
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number, (file, kind) in enumerate(kinds.items()):
                (folder / file).write_bytes(encoded(100 * label + 10 * number, kind))
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ["cat", "dog"]
    for split in (source.train, source.val):
        assert len(split) == 12
        np.testing.assert_array_equal(split.labels, [0] * 6 + [1] * 6)
        assert split.labels.dtype == np.int32
        values = [100 * label + 10 * list(kinds).index(os.path.basename(name)) for name, label in
                  zip(split.names, split.labels, strict=True)]  # fmt: skip
        assert np.abs(np.array([grey(split, row) for row in range(12)]) - values).max() <= 2
        assert split.instances is None


def test_nested_files_count_and_hidden_and_foreign_ones_do_not(tmp_path):
    write(tmp_path, ["a/1.png", "a/deep/er/2.png", "b/1.png", "b/2.png", "b/3.png"])
    write(tmp_path, ["a/.hidden.png", "a/.thumbnails/1.png", ".cache/1.png", "a/1.txt", "b/README.md", "3.png"])
    source = open_source(f"folder:{tmp_path}", SplitOptions(val_per_class=1))
    assert source.class_names == ["a", "b"]
    everything = sorted(os.path.relpath(name, tmp_path) for name in source.train.names + source.val.names)
    assert everything == ["a/1.png", "a/deep/er/2.png", "b/1.png", "b/2.png", "b/3.png"]


def test_a_name_that_is_no_utf_8(tmp_path):
    many(tmp_path, {"a": 2, "b": 2})
    name = os.fsdecode(b"\xe9t\xe9.png")
    (tmp_path / "a" / name).write_bytes(encoded(77))
    split = photos(tmp_path)
    row = next(row for row, name in enumerate(split.names) if "xe9" in name)
    split.names[row].encode("utf-8")
    assert grey(split, row) == 77


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_layout_with_its_own_validation_photos(tmp_path, held_out):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "train/b/2.png", f"{held_out}/b/3.png", "unlabelled/x/4.png"])
    source = open_source(f"folder:{tmp_path}", SplitOptions(train_per_class=1))
    assert stems(source.train) == ["a/1.png", "b/1.png", "b/2.png"]
    assert stems(source.val) == ["b/3.png"]
    # numbered among all classes, though a has no validation photo
    np.testing.assert_array_equal(source.val.labels, [1])
    assert stems(source.unlabelled) == ["x/4.png"]
    np.testing.assert_array_equal(source.unlabelled.labels, [-1])


# folders -> (where the validation photos are; None: drawn from training, what is said not to be used)
LAYOUTS = {
    "VAL beside TRAIN": ({"TRAIN": "ab", "VAL": "ab"}, "VAL", []),
    "dev beside Training": ({"Training": "ab", "dev": "ba"}, "dev", []),
    "testing alone": ({"train": "ab", "TESTING": "a"}, "TESTING", []),
    "test beside val": ({"train": "ab", "val": "ab", "test": "ab"}, "val", ["test"]),
    "two beside Valid": ({"train": "ab", "Valid": "ab", "Test": "ab", "eval": "ab"}, "Valid", ["Test", "eval"]),
    "a contest's": ({"train": "ab", "test": ""}, None, ["test"]),
    "a contest's with validation": ({"train": "ab", "Validation": "ab", "test": ""}, "Validation", ["test"]),
    "test photos in one folder": ({"train": "ab", "Test": ["unknown"]}, None, ["Test"]),
    "train by itself": ({"train": "ab"}, None, []),
    "US spelling": ({"train": "ab", "val": "ab", "Unlabeled": ""}, "val", []),
    "by class": ({"a": ["train", "val"], "b": ["train", "val"]}, "val", []),
    "by class, in capitals": ({"a": ["Train", "Testing"], "b": ["TRAIN"]}, "Testing", []),
    "by class, with a test": (
        {"a": ["train", "test", "valid"], "b": ["valid", "train", "test"]}, "valid", ["a/test", "b/test"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_validation_photos_are(tmp_path, layout, capsys):
    folders, held_out, unused = LAYOUTS[layout]
    for folder, inside in folders.items():
        write(tmp_path, [f"{folder}/{name}/{i}.png" for name in inside for i in range(5)] or [f"{folder}/1.png"])
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ["a", "b"]
    for split, wanted in ((source.train, "train"), (source.val, held_out or "train")):
        assert len(split)
        for name, label in zip(split.names, split.labels, strict=True):
            parts = os.path.relpath(name, tmp_path).split(os.sep)
            assert source.class_names[label] in parts
            assert wanted.casefold() in [part.casefold().replace("ing", "") for part in parts] or wanted in parts
    assert not set(source.train.names) & set(source.val.names)
    if held_out is None:
        assert len(source.train) + len(source.val) == 10
    assert (source.unlabelled is not None) == ("Unlabeled" in folders)
    said = capsys.readouterr().err
    expected = f"not used for training or validation in {tmp_path}: {', '.join(unused)}\n" if unused else ""
    assert said == expected


def test_photos_beside_the_folders_of_a_class_are_named(tmp_path):
    write(tmp_path, ["a/train/1.png", "a/val/2.png", "b/train/3.png", "b/4.png", "5.png"])
    source = open_source(f"folder:{tmp_path}")
    assert len(source.train) + len(source.val) == 3
    assert [os.path.relpath(name, tmp_path) for name, _ in source.passed_over] == ["5.png", "b/4.png"]


def test_folders_called_alike_are_one_class(tmp_path):
    composed, apart = "caf\xe9", "cafe\u0301"
    write(tmp_path, [f"train/{apart}/1.png", f"train/{composed}/2.png", "train/Dog/3.png", "train/dog/4.png",
                     f"val/{apart}/5.png"])  # fmt: skip
    source = open_source(f"folder:{tmp_path}")
    # those that differ in case are two
    assert source.class_names == ["Dog", composed, "dog"]
    assert sorted(name[-5:] for name in source.train.names) == ["1.png", "2.png", "3.png", "4.png"]
    np.testing.assert_array_equal(source.val.labels, [source.class_names.index(composed)])


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"se\xf1or", r"se\xf1or"), (b"one\rtwo\tthree", r"one\rtwo\tthree"), ("a\x85b".encode(), r"a\x85b")],
)
def test_a_class_is_a_line_of_text(tmp_path, name, shown):
    many(tmp_path / "photos", {os.fsdecode(name): 4, "plain": 4})
    source = open_source(f"folder:{tmp_path / 'photos'}")
    assert sorted(source.class_names) == sorted(["plain", shown])
    assert all(grey(source.train, row) >= 0 for row in range(len(source.train)))
    run = Run.start(tmp_path / "run", TrainConfig())
    run.save_class_names(source.class_names)
    assert Run.open(tmp_path / "run").class_names == source.class_names
    # names from elsewhere come out in the same number
    Run.start(tmp_path / "other", TrainConfig()).save_class_names(["one\ntwo", "three"])
    assert Run.open(tmp_path / "other").class_names == [r"one\ntwo", "three"]
    # names of files are lines of lists, too
    (tmp_path / "photos" / "plain" / "1\n2.png").write_bytes(encoded(3))
    split = photos(tmp_path / "photos" / "plain")
    assert r"1\n2.png" in [os.path.basename(name) for name in split.names]
    assert 3 in [grey(split, row) for row in range(len(split))]


# tops -> what lies in each
SPLITS = {
    "years": {"train2017": "abc", "val2017": "abc"},
    "a prefix": {"seg_pred": "", "seg_test": "abcd", "seg_train": "abcd"},
    "folds": {"fold1": "ab", "fold2": "ab", "fold3": "ab"},
    "a class that one lacks": {"dev-1": "abcd", "dev-2": "abc"},
    "others besides": {"Val_A": "abc", "Val_B": "abc", "cat": "", "dog": "ab"},
}


@pytest.mark.parametrize("case", SPLITS)
def test_splits_of_unusual_names_are_no_classes(tmp_path, case):
    for top, inside in SPLITS[case].items():
        many(tmp_path, {f"{top}/{name}": 3 for name in inside} or {top: 3})
    first, second = [top for top in sorted(SPLITS[case]) if len(SPLITS[case][top]) > 1][:2]
    message = rf"{first} and {second} in .* hold folders of the same names \(a, b.*call .* train .*\?label=coarse"
    with pytest.raises(UserError, match=message) as raised:
        open_source(f"folder:{tmp_path}")
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    # who says so has classes of these names
    assert open_source(f"folder:{tmp_path}?label=coarse").class_names == sorted(SPLITS[case])


@pytest.mark.parametrize(
    "folders",
    [
        # one folder of the same name in each, as Tiny ImageNet has
        ["n01/images", "n02/images", "n03/images"],
        # as a class may have photos of its own
        ["cat", "cat/2019", "cat/2020", "dog", "dog/2019", "dog/2020"],
        ["cat/anna", "cat/tom", "dog/rex", "dog/tom"],
        ["cat/indoors", "cat/outdoors", "dog/indoors", "dog/outdoors"],
        ["valley/summer", "valley/winter", "valentine/red", "valentine/white"],
        ["cat/train", "cat/val", "cat/test", "dog/train", "dog/val", "dog/test"],
        ["cat/val", "cat/test", "dog/Val", "dog/Test"],
        ["cat/anna", "cat/tom", "dog/anna", "dog/tom", *("emu", "fox", "gnu")],
    ],
)
def test_classes_with_folders_in_them(tmp_path, folders):
    many(tmp_path, dict.fromkeys(folders, 4))
    assert open_source(f"folder:{tmp_path}").class_names == sorted({folder.split("/")[0] for folder in folders})


def test_train_alone_is_a_class(tmp_path):
    many(tmp_path, {"train": 4, "tram": 4})
    assert open_source(f"folder:{tmp_path}").class_names == ["train", "tram"]


def test_unlabelled_is_no_class(tmp_path):
    many(tmp_path, {"a": 4, "b": 4, "unlabelled": 3})
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ["a", "b"]
    assert len(source.unlabelled) == 3


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({}, {"a": 16, "b": 8, "c": 2}, {"a": 4, "b": 2, "c": 1}),
        ({"val_fraction": 0.5}, {"a": 10, "b": 5, "c": 1}, {"a": 10, "b": 5, "c": 2}),
        ({"val_fraction": 0.99}, {"a": 1, "b": 1, "c": 1}, {"a": 19, "b": 9, "c": 2}),
        ({"val_per_class": 5}, {"a": 15, "b": 5, "c": 1}, {"a": 5, "b": 5, "c": 2}),
        ({"train_per_class": 8}, {"a": 8, "b": 8, "c": 3}, {"a": 12, "b": 2, "c": 0}),
        ({"train_per_class": 8, "val_per_class": 5}, {"a": 8, "b": 8, "c": 3}, {"a": 5, "b": 2, "c": 0}),
    ],
)
def test_sizes_of_a_seeded_split(tmp_path, options, train, val):
    many(tmp_path, {"a": 20, "b": 10, "c": 3})
    source = open_source(f"folder:{tmp_path}", SplitOptions(**options))
    for split, counts in ((source.train, train), (source.val, val)):
        found = dict(zip(source.class_names, np.bincount(split.labels, minlength=3).tolist(), strict=True))
        assert found == counts
    assert not set(source.train.names) & set(source.val.names)
    assert [name.split("/")[0] for name in stems(source.train)] == [source.class_names[i] for i in source.train.labels]


def test_split_is_drawn_from_the_seed_class_by_class(tmp_path):
    def val(folder, seed):
        return set(stems(open_source(f"folder:{folder}", SplitOptions(val_fraction=0.5, seed=seed)).val))

    first = many(tmp_path / "first", {"a": 20, "b": 20})
    # another place, another class beside: nothing changes for a and b
    second = many(tmp_path / "second", {"0": 7, "a": 20, "b": 20})
    assert val(first, 3) == val(first, 3)
    assert val(first, 3) == {name for name in val(second, 3) if name[0] in "ab"}
    assert val(first, 3) != val(first, 4)
    # classes are drawn apart from one another
    a, b = ({name[2:] for name in val(first, 3) if name[0] == letter} for letter in "ab")
    assert a != b


def test_split_draws_every_photo_equally_often(tmp_path):
    many(tmp_path, {"a": 10, "b": 2})
    draws = 400
    counts = np.zeros(10)
    for seed in range(draws):
        for name in contract.divide("a", list(range(10)), SplitOptions(val_fraction=0.3, seed=seed))[1]:
            counts[name] += 1
    assert counts.sum() == 3 * draws
    # four standard errors of a share of 0.3
    assert np.abs(counts / draws - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / draws)


def test_subset(tmp_path):
    many(tmp_path, {"a": 5, "b": 5})
    split = photos(tmp_path)
    split = sources.Split(split.names, split.read, lambda: np.arange(10), lambda name: name[-5])
    part = split.subset([7, 2, 5]).subset([2, 0])
    assert part.names == [split.names[5], split.names[7]]
    np.testing.assert_array_equal(part.labels, [5, 7])
    assert [grey(part, row) for row in range(2)] == [5, 7]
    np.testing.assert_array_equal(split.instances, [0, 1, 2, 3, 4] * 2)
    assert len(part) == 2


def test_photos_of_any_structure_in_order_of_name(tmp_path):
    write(tmp_path, {"b.png": 1, "a/c.png": 2, "a/b/d.png": 3, ".x/e.png": 4})
    split = photos(str(tmp_path))
    assert [os.path.relpath(name, tmp_path) for name in split.names] == ["a/b/d.png", "a/c.png", "b.png"]
    assert [grey(split, row) for row in range(3)] == [3, 2, 1]
    np.testing.assert_array_equal(split.labels, [-1] * 3)


# --- mistakes ---


def empty_class(folder):
    many(folder, {"a": 3, "b": 3})
    (folder / "hollow").mkdir()


def empty_class_of_val(folder):
    write(folder, ["train/a/1.png", "train/b/1.png", "val/a/1.png"])
    (folder / "val" / "b").mkdir()


def strange_folder_beside_train(folder):
    write(folder, ["train/a/1.png", "train/b/1.png", "keep/a/1.png", "keep/b/1.png", "Test/1.png"])


def class_without_training_folder(folder):
    write(folder, ["a/train/1.png", "a/val/1.png", "b/val/2.png", "c/train/1.png"])


def two_ways_to_write_one_class(folder):
    many(folder, {os.fsdecode(b"\xe9"): 3, r"\xe9": 3})


def class_of_something_else(folder):
    many(folder, {"a": 3, "b": 3})
    (folder / "c").mkdir()
    (folder / "c" / "film.mp4").write_bytes(b"a film")


MISTAKES = {
    "unknown folder beside train": (strange_folder_beside_train, "keep lies beside .*train, .* call it val, valid, "),
    "other folders beside train": (
        lambda folder: write(folder, ["train/a/1.png", "train/b/1.png", "more/1.png"]),
        "more lies beside .*train",
    ),
    "two folders for training": (
        lambda folder: write(folder, ["train/a/1.png", "Training/a/1.png", "val/a/1.png"]),
        "train and .*Training are both called",
    ),
    "no photo to train on": (
        lambda folder: write(folder, ["val/a/1.png", "val/b/1.png", "test/a/1.png"]),
        "val is called as validation photos are, and there is no .*train",
    ),
    "test beside the classes": (
        lambda folder: many(folder, {"a": 3, "b": 3, "Test": 3}),
        "Test is called as validation",
    ),
    "flat validation": (
        lambda folder: write(folder, ["train/a/1.png", "train/b/1.png", "valid/1.png"]),
        "valid has no subfolder",
    ),
    "flat training": (lambda folder: write(folder, ["train/1.png", "val/2.png"]), "train has no subfolder"),
    "class without a folder train": (class_without_training_folder, "class 'b' in .* has no photo in a folder train"),
    "one class written twice": (two_ways_to_write_one_class, r"are both written \\xe9: rename one"),
    "class of no photos": (class_of_something_else, r"no photo for class 'c' in .*: not a JPEG, .* \(c/film\.mp4\)"),
    "empty class": (empty_class, "class 'hollow' in "),
    "empty class of val": (empty_class_of_val, "class 'b' in .*val"),
    "no subfolder": (lambda folder: write(folder, ["1.png"]), "has no subfolder"),
    "one class": (lambda folder: many(folder, {"only": 5}), "one class only .'only'"),
    "unknown class in val": (
        lambda folder: write(folder, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/zebra/1.png"]),
        "val has classes that .*train has not: zebra",
    ),
    "nothing for validation": (lambda folder: many(folder, {"a": 1, "b": 2}), "no photo is left for validation"),
    "empty unlabelled": (
        lambda folder: (many(folder, {"a": 5, "b": 5}), (folder / "unlabelled").mkdir()),
        "no photo below .*unlabelled",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_folder_is_named(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    make(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        open_source(f"folder:{tmp_path}")
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["flickr", "web:cats", "folder", "folder:", "tfds", "demo:large", "", None])
def test_unknown_source(spec):
    with pytest.raises(UserError) as raised:
        open_source(spec)
    known = [f"{kind}:{place}" if place else kind for kind, (_, place) in sources._KINDS.items()]
    assert "csv:FILE" in known
    assert str(raised.value) == f"data must be {', '.join(known[:-1])} or {known[-1]}, received {spec!r}"


def test_missing_places(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: .*absent"):
        open_source(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match=r"no such folder: .*absent"):
        photos(tmp_path / "absent")
    with pytest.raises(UserError, match="no photo below"):
        photos(tmp_path)


@pytest.mark.parametrize(
    "value", [{"train_per_class": 0}, {"val_per_class": 0}, {"val_fraction": 0}, {"val_fraction": 1.0}, {"seed": -1}]
)
def test_options_out_of_range(value):
    ((name, number),) = value.items()
    with pytest.raises(UserError, match=f"{name} .*received {number}"):
        SplitOptions(**value)


# --- demo ---


def test_demo_knows_classes_instances_and_scenes(tmp_path, monkeypatch):
    small = functools.partial(demo.write_demo, instances_per_class=2, views_per_instance=2, num_unlabelled=3)
    monkeypatch.setattr(demo, "write_demo", small)
    source = open_source("demo", SplitOptions(seed=4), resolution=32, data_dir=tmp_path)
    classes = len(demo.CLASS_NAMES)
    assert source.class_names == sorted(demo.CLASS_NAMES)
    assert (len(source.train), len(source.val), len(source.unlabelled)) == (4 * classes, 2 * classes, 3)
    assert decode(source.train.read(tf.constant(5))).shape == (32, 32, 3)
    for split in (source.train, source.val):
        expected = [source.class_names.index(os.path.basename(os.path.dirname(name))) for name in split.names]
        np.testing.assert_array_equal(split.labels, expected)
        objects = [demo.instance_of(name) for name in split.names]
        same = np.array(objects)[:, None] == np.array(objects)
        np.testing.assert_array_equal(split.instances[:, None] == split.instances, same)
        assert same.sum() == 2 * len(split)
    # another release draws its own set beside it
    with monkeypatch.context() as patched:
        patched.setattr(demo, "VERSION", demo.VERSION + 1)
        open_source("demo", SplitOptions(seed=4), resolution=32, data_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    # a second opening draws nothing
    monkeypatch.setattr(demo, "draw_view", None)
    assert open_source("demo", SplitOptions(seed=4), resolution=32, data_dir=tmp_path).train.names == source.train.names


@pytest.mark.parametrize("halves", [("train/", "val/"), ("",)])
def test_a_tree_of_two_levels(tmp_path, halves):
    kinds = {"apple/red": 6, "apple/green": 6, "pear/green": 6}
    many(tmp_path, {f"{half}{kind}": count for half in halves for kind, count in kinds.items()})
    source = open_source(f"folder:{tmp_path}?label=coarse,fine")
    assert source.class_names == ["apple", "pear"]
    assert source.label_columns == {"coarse": ["apple", "pear"], "fine": sorted(kinds)}
    for split in (source.train, source.val):
        found = [source.label_columns["fine"][label] for label in split.label_columns["fine"]]
        assert found == ["/".join(name.split(os.sep)[-3:-1]) for name in split.names]
        np.testing.assert_array_equal(split.label_columns["coarse"], split.labels)
    fine = open_source(f"folder:{tmp_path}?label=fine")
    assert (fine.class_names, list(fine.label_columns)) == (sorted(kinds), ["fine"])
    np.testing.assert_array_equal(np.bincount(fine.val.labels), [6 if len(halves) == 2 else 1] * 3)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        # a class, and a finer one, may be called as the folders of a split are
        (["toy/train/old", "toy/car", "pet/test"], ["pet/test", "toy/car", "toy/train"]),
        (["train/toy/train", "train/toy/toy/a/b", "val/toy/toy", "train/val/x", "val/val/x"],
         ["toy/toy", "toy/train", "val/x"]),
        (["toy/train/val/a", "toy/val/val", "pet/train/pet", "pet/test/pet"], ["pet/pet", "toy/val"]),
    ],
)  # fmt: skip
def test_the_finer_label_is_the_folder_in_that_of_the_class(tmp_path, folders, expected):
    many(tmp_path, dict.fromkeys(folders, 3))
    source = open_source(f"folder:{tmp_path}?label=coarse,fine")
    assert source.label_columns["fine"] == expected


def test_a_tree_without_a_level_is_refused(tmp_path):
    many(tmp_path, {"apple/red": 3, "pear": 3})
    # which the coarse label alone does not need
    source = open_source(f"folder:{tmp_path}?label=coarse")
    assert source.label_columns == {"coarse": ["apple", "pear"]}
    with pytest.raises(UserError, match=r"pear/000.png has no fine label: .* such as pear/FINE"):
        open_source(f"folder:{tmp_path}?label=coarse,fine")
    with pytest.raises(UserError, match="the labels of a folder are coarse and fine, received 'kind'"):
        open_source(f"folder:{tmp_path}?label=kind")
    with pytest.raises(UserError, match=r"\?label= must name columns of labels, all different, received"):
        open_source(f"folder:{tmp_path}?label=fine,fine")


# --- tfds ---

LABELS = ["bird", "cat", "dog"]


def prepare(folder, name, file_format=None, features=None, **splits):
    """Prepares a set with tensorflow-datasets itself; splits give a label for each of their pictures."""
    import tensorflow_datasets as tfds

    features = features or {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=LABELS)}
    image, label, *others = features
    rows = {
        split: [(f"{i:03}", {image: io.BytesIO(encoded(10 * i + row_label + 1)), label: row_label,
                             **dict.fromkeys(others, row_label % 2)})
                for i, row_label in enumerate(labels)]
        for split, labels in splits.items()
    }  # fmt: skip
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets=rows,
        file_format=file_format,
    )
    return f"tfds:{name}"


def check(split, labels):
    """Reads a split by number within a tf.data map: each picture's grey value tells its label and its number."""
    rows = np.random.default_rng(0).permutation(len(split))
    dataset = tf.data.Dataset.from_tensor_slices(rows).map(split.read, num_parallel_calls=4)
    values = np.array([int(decode(contents)[0, 0, 0]) for contents in dataset])
    np.testing.assert_array_equal((values - 1) % 10, split.labels[rows])
    # each of the pictures that were written, and none twice
    assert sorted(values) == sorted(10 * i + label + 1 for i, label in enumerate(labels) if label >= 0)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_tfds_set_as_it_was_prepared(tmp_path, monkeypatch, file_format, held_out):
    import tensorflow_datasets as tfds

    train, val = [0, 1, 2, 0, 0, 2, 1, 1], [2, 2, 1]
    # a validation split is preferred to a test split, which may have no labels
    others = {"test": [-1, -1]} if held_out == "validation" else {}
    spec = prepare(tmp_path, "birds", file_format, train=train, **{held_out: val}, **others)

    def refuse(*args, **kwargs):
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(tfds.download, "DownloadManager", refuse)
    source = open_source(spec, data_dir=str(tmp_path))
    assert source.class_names == LABELS
    assert source.description == "tfds birds"
    assert source.unlabelled is None
    check(source.train, train)
    check(source.val, val)
    assert source.val.names == [f"birds/{held_out}/{row}" for row in range(3)]
    # bytes come as they were written, label 0 (whose record ends in a zero byte) included
    row = int(np.flatnonzero(source.train.labels == 0)[0])
    assert source.train.read(tf.constant(row)).numpy() == encoded(grey(source.train, row))


def test_tfds_set_in_many_files(tmp_path):
    paths = []
    for number, values in enumerate(([b"one", b"", b"three"], [], [b"x" * 5000])):
        paths.append(str(tmp_path / f"records-{number}"))
        with tf.io.TFRecordWriter(paths[-1]) as writer:
            for value in values:
                writer.write(value)
    records = tfds_source._TFRecords(paths)
    assert len(records) == 4
    assert [records[row] for row in (3, 0, 2, 1)] == [b"x" * 5000, b"one", b"three", b""]
    with open(paths[0], "rb+") as file:
        file.truncate(os.path.getsize(paths[0]) - 6)
    with pytest.raises(UserError, match="records-0 is cut off"):
        tfds_source._TFRecords(paths)


@pytest.mark.parametrize("test", [{}, {"test": [-1] * 4}], ids=["train alone", "test without labels"])
def test_tfds_set_without_validation_photos_is_divided(tmp_path, test):
    labels = [0] * 4 + [1] * 8 + [2] * 8
    spec = prepare(tmp_path, "birds", "array_record", train=labels, **test)
    options = SplitOptions(val_fraction=0.25, seed=1)
    source = open_source(spec, options, data_dir=tmp_path)
    np.testing.assert_array_equal(np.bincount(source.train.labels), [3, 6, 6])
    np.testing.assert_array_equal(np.bincount(source.val.labels), [1, 2, 2])
    assert len(set(source.train.names) | set(source.val.names)) == 20
    again = open_source(spec, options, data_dir=tmp_path)
    assert again.val.names == source.val.names
    other = open_source(spec, SplitOptions(val_fraction=0.25, seed=2), data_dir=tmp_path)
    assert other.val.names != source.val.names


def test_tfds_test_photos_without_label_are_left_out(tmp_path):
    labels = [0, -1, 2, -1, 1]
    source = open_source(prepare(tmp_path, "birds", train=[0, 1, 2], test=labels), data_dir=tmp_path)
    assert sorted(source.val.labels) == [0, 1, 2]
    check(source.val, labels)


def test_tfds_labels_of_several_levels(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=LABELS),
        "coarse_label": tfds.features.ClassLabel(names=["bird", "beast"]),
    }
    spec = prepare(tmp_path, "kinds", features=features, train=[0, 1, 2] * 4)
    source = open_source(f"{spec}?label=coarse_label,label", data_dir=tmp_path)
    assert source.class_names == ["bird", "beast"]
    assert source.label_columns == {"coarse_label": ["bird", "beast"], "label": LABELS}
    for split in (source.train, source.val):
        np.testing.assert_array_equal(split.labels, split.label_columns["label"] % 2)
        np.testing.assert_array_equal(split.label_columns["coarse_label"], split.labels)
    assert open_source(spec, data_dir=tmp_path).label_columns == {}
    with pytest.raises(UserError, match=r"needs the features image \(Image\) and size \(ClassLabel\)"):
        open_source(f"{spec}?label=size", data_dir=tmp_path)


def test_tfds_set_with_other_features_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    features = {"photo": tfds.features.Image(), "label": tfds.features.ClassLabel(names=LABELS)}
    spec = prepare(tmp_path, "odd", features=features, train=[0, 1])
    with pytest.raises(UserError, match=r"features image .*has .*photo \(Image\)") as raised:
        open_source(spec, data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_tfds_set_that_lost_a_file_is_refused(tmp_path):
    spec = prepare(tmp_path, "birds", train=[0, 1, 2], test=[0, 1, 2])
    next(tmp_path.rglob("birds-test*")).write_bytes(b"")
    with pytest.raises(UserError, match="should hold 3 records of test, and has 0"):
        open_source(spec, data_dir=tmp_path)


def test_tfds_set_that_is_unknown_or_out_of_reach(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    with pytest.raises(UserError, match="tfds:no_such_set: tensorflow-datasets knows no such set") as raised:
        open_source("tfds:no_such_set", data_dir=tmp_path)
    assert "\n" not in str(raised.value)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host\nafter ten attempts")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(UserError, match=r"tfds:mnist can't be opened: .*no route to host after ten attempts"):
        open_source("tfds:mnist", data_dir=tmp_path)
