import os

import numpy as np
import pytest

from mg_keras.data.sources import SplitOptions, open_source
from mg_keras.errors import UserError
from tests.data.sources_test import encoded, grey, write


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """Twelve photos, grey value = number, in `tmp_path/photos`; the tables lie beside it."""
    write(tmp_path / "photos", [f"{i:02}.png" for i in range(12)])
    return tmp_path


def table(folder, text, encoding="utf-8"):
    path = folder / "photos.csv"
    path.write_bytes(text.encode(encoding))
    return f"csv:{path}"


def rows(*parts, delimiter=","):
    return "".join(delimiter.join(part) + "\n" for part in parts)


def pets(columns=("path", "label"), count=12, **options):
    """A table of photos that are a cat and a dog in turns."""
    values = {
        "path": lambda i: f"photos/{i:02}.png",
        "label": lambda i: ("cat", "dog")[i % 2],
        "coarse": lambda i: ("cat", "dog")[i % 2],
        "fine": lambda i: ("tabby", "beagle", "manx", "poodle")[i % 4],
        "split": lambda i: "val" if i % 4 > 1 else "train",
        "width": lambda i: "16",
    }
    return rows(columns, *([values[column](i) for column in columns] for i in range(count)), **options)


def number(name):
    return int(os.path.basename(name)[:2])


def check(source, label=("cat", "dog")):
    """Every photo is read as itself, with its label."""
    for split in (source.train, source.val):
        for row, name in enumerate(split.names):
            assert grey(split, row) == number(name)
            assert source.class_names[split.labels[row]] == label[number(name) % len(label)]


def test_photos_and_labels_of_a_table(folder):
    source = open_source(table(folder, pets()), SplitOptions(val_fraction=1 / 3))
    assert source.class_names == ["cat", "dog"]
    assert (len(source.train), len(source.val)) == (8, 4)
    assert source.train.labels.dtype == np.int32
    assert not {*source.train.names} & {*source.val.names}
    check(source)
    again = open_source(table(folder, pets()), SplitOptions(val_fraction=1 / 3, seed=1))
    assert again.val.names != source.val.names


WRITTEN = {
    "in another order": pets(("width", "label", "path")),
    "semicolons": pets(delimiter=";"),
    "tabs": pets(("label", "path", "width"), delimiter="\t"),
    "a mark at the beginning": "\ufeff" + pets(),
    "capitals and blanks": pets().replace("path,label", " Path , LABEL").replace(",cat", ", cat "),
    "Windows's lines": pets().replace("\n", "\r\n"),
    "old Macs' lines": pets().replace("\n", "\r"),
    "blank lines": pets().replace("\n", "\n\n,\n"),
    "no line break at the end": pets()[:-1],
    "in quotes": pets().replace("cat", '"cat"').replace("photos/00.png", '"photos/00.png"'),
    "nothing behind the last comma": pets().replace("\n", ",\n"),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_ways_to_write_a_table(folder, way):
    source = open_source(table(folder, WRITTEN[way]))
    assert source.class_names == ["cat", "dog"]
    assert len(source.train) + len(source.val) == 12
    check(source)


def test_names_with_commas_and_accents_and_paths_from_the_root(folder):
    write(folder, {"a, b.png": 50, "photos/été.png": 51})
    text = pets() + rows(['"a, b.png"', '"cafe\u0301, au lait"'], [str(folder / "photos/été.png"), "café, au lait"])
    with pytest.raises(UserError, match=r"row 15: .* put quotes"):
        open_source(table(folder, text))
    source = open_source(table(folder, text.replace("png,café, au lait", 'png,"café, au lait"')))
    assert source.class_names == ["café, au lait", "cat", "dog"]
    values = sorted(grey(split, row) for split in (source.train, source.val) for row in range(len(split)))
    assert values == [*range(12), 50, 51]


def test_numbers_are_in_order_of_size(folder):
    text = rows(["path", "label"], *([f"photos/{i:02}.png", str(i // 2 * 5)] for i in range(12)))
    source = open_source(table(folder, text), SplitOptions(val_fraction=0.5))
    assert source.class_names == ["0", "5", "10", "15", "20", "25"]
    check(source, ["0", "0", "5", "5", "10", "10", "15", "15", "20", "20", "25", "25"])


def test_a_column_of_the_split(folder, capsys):
    source = open_source(table(folder, pets(("path", "split", "label"))))
    assert sorted(map(number, source.train.names)) == [0, 1, 4, 5, 8, 9]
    assert sorted(map(number, source.val.names)) == [2, 3, 6, 7, 10, 11]
    check(source)
    assert capsys.readouterr().err == ""


def test_the_split_s_words_are_those_of_folders(folder, capsys):
    parts = ["Training", "TRAIN", "train", "train", "Validation", "dev", "test", "test", "unlabelled", "unlabeled"]
    labels = ["cat", "dog"] * 4 + ["", ""]
    text = rows(
        ["path", "split", "label"],
        *([f"photos/{i:02}.png", part, label] for i, (part, label) in enumerate(zip(parts, labels, strict=True))),
    )
    source = open_source(table(folder, text))
    assert sorted(map(number, source.train.names)) == [0, 1, 2, 3]
    assert [number(name) for name in source.val.names] == [4]
    assert [number(name) for name in source.unlabelled.names] == [8, 9]
    np.testing.assert_array_equal(source.unlabelled.labels, [-1, -1])
    said = capsys.readouterr().err
    assert said == f"not used for training or validation in {folder}/photos.csv: photos, 1 of dev, 2 of test\n"


def test_several_labels(folder):
    spec = table(folder, pets(("path", "coarse", "fine")))
    coarse = open_source(f"{spec}?label=coarse")
    assert (coarse.class_names, list(coarse.label_columns)) == (["cat", "dog"], ["coarse"])
    check(coarse)
    kinds = ["tabby", "beagle", "manx", "poodle"]
    source = open_source(f"{spec}?label=Fine, coarse", SplitOptions(val_per_class=1))
    assert source.class_names == sorted(kinds)
    assert source.label_columns == {"fine": sorted(kinds), "coarse": ["cat", "dog"]}
    check(source, kinds)
    with pytest.raises(
        UserError, match=r"row 4: 'fine' is empty: every photo has a label, or take \?label=coarse alone$"
    ):
        open_source(table(folder, pets(("path", "coarse", "fine")).replace("manx", "")) + "?label=coarse,fine")
    # the other columns go with the photos, and a run's order of its classes does not touch them
    part = source.with_classes(kinds).train.subset([5, 2])
    for row, name in enumerate(part.names):
        assert kinds[part.labels[row]] == kinds[number(name) % 4]
        assert source.label_columns["fine"][part.label_columns["fine"][row]] == kinds[number(name) % 4]
        assert source.label_columns["coarse"][part.label_columns["coarse"][row]] == ("cat", "dog")[number(name) % 2]


def test_photos_of_every_kind_and_none(folder, tmp_path, capsys):
    (folder / "photos" / "12").write_bytes(encoded(12, "TIFF"))
    (folder / "photos" / "13.mp4").write_bytes(b"a film")
    (folder / "photos" / "14.nef").write_bytes(b"II*\0")
    (folder / "photos" / "15.tif").write_bytes(b"II*\0 broken")
    others = ["photos/13.mp4", "photos/14.nef", "photos/15.tif", "photos"]
    text = pets() + rows(["photos/12", "cat"], *([path, "dog"] for path in others))
    source = open_source(table(folder, text), data_dir=tmp_path / "cache")
    assert len(source.train) + len(source.val) == 13
    check(source)
    passed_over = {os.path.relpath(name, folder): reason for name, reason in source.passed_over}
    assert list(passed_over) == ["photos", "photos/13.mp4", "photos/14.nef", "photos/15.tif"]
    assert passed_over["photos"] == "not a file"
    assert "TIFF that can't be converted" in passed_over["photos/15.tif"]
    assert "passed over" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no photo for class 'film' in .*photos\.csv: not a .*photos/13\.mp4"):
        open_source(table(folder, text.replace("13.mp4,dog", "13.mp4,film")), data_dir=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"a film", b"II*\0 broken"])
def test_validation_photos_that_cannot_be_used_are_not_replaced(folder, tmp_path, content):
    for i in range(2):
        (folder / "photos" / f"lost{i}").write_bytes(content)
    lost = [[f"photos/lost{i}", "val", label] for i, label in enumerate(("cat", "dog"))]
    text = pets(("path", "split", "label")).replace("val", "train") + rows(*lost)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"no photo for validation in .*photos\.csv, .*val.*: .*photos/lost0"):
        open_source(table(folder, text), data_dir=cache)
    # neither do those of another word take their place
    with pytest.raises(UserError, match="no photo for validation"):
        open_source(table(folder, text.replace("11.png,train", "11.png,test")), data_dir=cache)
    # one that can be used is enough
    source = open_source(table(folder, text.replace("11.png,train", "11.png,val")), data_dir=cache)
    assert [number(name) for name in source.val.names] == [11]


MISTAKES = {
    "no photo": (pets() + "photos/99.png,cat\n", r"row 14: no such file: .*photos/99\.png$"),
    "no photos": (pets().replace("photos/0", "fotos/0"), r"row 2: no such file: .*00\.png \(and those of 9 more rows"),
    "unknown column": (pets(("path", "coarse")), r"no column 'label' \(csv:FILE\?label=COLUMN .* has path, coarse"),
    "no path": (pets(("label", "width")), "has no column 'path': row 1 has label, width"),
    "a column twice": (pets(("path", "label", "label")), "has more than one column 'label'"),
    "empty label": (pets().replace("03.png,dog", "03.png, "), "row 5: 'label' is empty"),
    "no label": (pets().replace("03.png,dog", "03.png"), "row 5: 'label' is empty"),
    "empty path": (pets() + ",cat\n", "row 14: the path is empty"),
    "twice": (pets() + "./photos/03.png,cat\n", "row 14: a photo has one row, received .* as in row 5"),
    "unknown word": (pets(("path", "label", "split")).replace("val", "later"), "row 4: split must be train, .*'later'"),
    "no word": (pets(("path", "label", "split")).replace("val", ""), "row 4: split must be train, val, .*received ''"),
    "nothing to train on": (pets(("path", "label", "split")).replace("train", "val"), "has no photo to train on"),
    "a class of val": (
        pets(("path", "label", "split")).replace("02.png,cat", "02.png,cow"),
        "row 4: no photo for training has the label of this one for validation, received 'cow'",
    ),
    "one class": (pets().replace("dog", "cat"), "has one class only"),
    "empty": ("", "has no column 'path': row 1 has none"),
    "header alone": ("path,label\n", "names no photo"),
    "open quotes": (pets() + '"photos/00.png,cat\n', r"row 14 can't be read as a table: unexpected end of data"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_table_is_named(folder, mistake):
    text, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as raised:
        open_source(table(folder, text))
    assert f"{folder}/photos.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused(folder, encoding):
    with pytest.raises(UserError, match=r"photos\.csv must be text in UTF-8"):
        open_source(table(folder, pets().replace("cat", "café"), encoding))


@pytest.mark.parametrize(
    ("ending", "message"),
    [("?label=", "must name columns"), ("?label=fine,Fine", "must name columns"), ("?label=path", "not path or split"),
     ("?label=fine,kind", "no column 'kind': row 1 has path, coarse, fine"), ("?lable=fine", "no such file")],
)  # fmt: skip
def test_a_mistake_in_the_columns_is_named(folder, ending, message):
    with pytest.raises(UserError, match=message):
        open_source(table(folder, pets(("path", "coarse", "fine"))) + ending)


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*absent\.csv"):
        open_source(f"csv:{tmp_path}/absent.csv")
