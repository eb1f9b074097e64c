"""Photos in TFRecord files and tars: which files, which photos and labels, by number and as a stream."""

import dataclasses
import gzip
import io
import json
import math
import os
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import repeated, stores
from mg_keras.data.images import BadImages, decode
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.shards import Index, Stream, index
from mg_keras.data.sources import SplitOptions, open_source
from mg_keras.data.sources.shards import by_name, expand_braces, find_shards
from mg_keras.data.stores.through_fsspec import FsspecStore
from mg_keras.data.stores.through_tensorflow import TensorFlowStore
from mg_keras.errors import UserError
from mg_keras.progress import say


def encoded(value, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def example(**features):
    """A serialized record; a feature is called as in `image__encoded`."""
    record = tf.train.Example()
    for name, value in features.items():
        feature = record.features.feature[name.replace("__", "/")]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return record.SerializeToString()


def imagenet(value, label):
    """A record in ImageNet's layout: the label counts from 1."""
    return example(image__class__label=label + 1, image__class__synset=b"n%04d" % label, image__encoded=encoded(value))


def plain(value, label):
    return example(image=encoded(value), label=label)


def tfrecords(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def write_set(folder, layout, train=40, val=9, shards=4, classes=3):
    """Photo k has grey value k and class k mod `classes`; those for validation begin at 200."""
    for part, start, count, files in (("train", 0, train, shards), ("validation", 200, val, 1)):
        rows = np.array_split(np.arange(start, start + count), files)
        for number, values in enumerate(rows):
            if layout == "tfrecord":
                records = [imagenet(value, value % classes) for value in values]
                tfrecords(folder / f"{part}-{number:05}-of-{files:05}", records)
            else:
                samples = [
                    pair
                    for value in values
                    for pair in ((f"{value:03}.png", encoded(value)), (f"{value:03}.cls", b"%d" % (value % classes)))
                ]
                tar(folder / f"{part}-{number:03}.tar", samples)
    return folder


def grey(split, row):
    return int(decode(split.read(tf.constant(row, tf.int64)))[6, 8, 0])


def opened(folder, layout="tfrecord", options=None, pattern=None):
    return open_source(f"{layout}:{pattern or folder}", options, data_dir=folder.parent / "cache")


# --- which files ---


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{a,b{1..2},}", ["xa", "xb1", "xb2", "x"]),
        ("a-{0..1},b,{c,d}", ["a-0", "a-1", "b", "c", "d"]),
        ("odd{name", ["odd{name"]),
        ("{3..2}", []),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("paths", "train", "val"),
    [
        (["x/train-0.tar", "x/validation-0.tar", "x/test-0.tar"], [0], [1]),
        (["x/train-0.tar", "x/test-0.tar"], [0], [1]),
        (["s3://b/train/0.tar", "s3://b/val/0.tar"], [0], [1]),
        # the file's own name counts for more than its folder's
        (["test/train-0", "test/val-0"], [0], [1]),
        (["x/imagenet1k-train-00.tar", "x/imagenet1k-valid-00.tar"], [0], [1]),
        (["x/train_test_0.tar", "x/0.tar", "x/valley-0.tar"], [0, 1, 2], []),
        (["validation/x/0.tar"], [0], []),
    ],
)
def test_what_shards_are_for(paths, train, val):
    assert by_name(paths) == ([paths[row] for row in train], [paths[row] for row in val])


def test_folders_globs_and_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a/x-0.tar", "a/b/x-1.TAR", "a/.x-2.tar", "a/README", "c/x-3.tar", "c/odd"):
        tar(tmp_path / name, [])

    def found(argument):
        return [os.path.relpath(path, tmp_path) for path in find_shards(argument, "webdataset")]

    assert found(f"{tmp_path}/a") == ["a/b/x-1.TAR", "a/x-0.tar"]
    assert found(f"{tmp_path}/*/x-?.tar") == ["a/x-0.tar", "c/x-3.tar"]
    assert found(f"{tmp_path}/**/x-[03].tar,{tmp_path}/c/odd") == ["a/x-0.tar", "c/odd", "c/x-3.tar"]
    assert found("~/a/x-{0..0}.tar") == ["a/x-0.tar"]
    for argument in (f"{tmp_path}/a/x-{{0..1}}.tar", f"{tmp_path}/*.zip", f"{tmp_path}/none", ""):
        with pytest.raises(UserError, match="no shard"):
            found(argument)


def test_a_name_that_is_there_is_no_pattern(tmp_path):
    for name in ("set [1]/x.tar", "a,b/{1}.tar", "set 1/y.tar"):
        tar(tmp_path / name, [])
    for argument in ("set [1]/x.tar", "a,b/{1}.tar"):
        assert find_shards(f"{tmp_path}/{argument}", "webdataset") == [f"{tmp_path}/{argument}"]
    assert find_shards(f"{tmp_path}/set [1],{tmp_path}/set 1", "webdataset") == [
        f"{tmp_path}/set 1/y.tar",
        f"{tmp_path}/set [1]/x.tar",
    ]


def test_a_folder_that_lacks_a_shard(tmp_path):
    write_set(tmp_path / "set", "tfrecord")
    (tmp_path / "set" / "train-00002-of-00004").unlink()
    with pytest.raises(UserError, match=r"1 of 4 shards are missing, the first .*train-00002-of-00004: copy"):
        opened(tmp_path / "set")
    # a part that was asked for is a set of its own
    part = opened(tmp_path / "set", pattern=f"{tmp_path}/set/train-0000[01]*")
    assert len(part.train) + len(part.val) == 20


# --- what lies in them ---


@pytest.mark.parametrize("layout", ["tfrecord", "webdataset"])
def test_photos_are_read_by_number_from_shards(tmp_path, layout):
    source = opened(write_set(tmp_path / "set", layout), layout)
    assert source.class_names == (["n0000", "n0001", "n0002"] if layout == "tfrecord" else ["0", "1", "2"])
    for split, start, count in ((source.train, 0, 40), (source.val, 200, 9)):
        assert len(split) == count
        np.testing.assert_array_equal(split.labels, np.arange(start, start + count) % 3)
        rows = np.random.default_rng(0).permutation(count)
        dataset = tf.data.Dataset.from_tensor_slices(rows).map(split.read, num_parallel_calls=4)
        assert [int(decode(contents)[0, 0, 0]) for contents in dataset] == (start + rows).tolist()
    name = {"tfrecord": "train-00001-of-00004/2", "webdataset": "train-001.tar/012.png"}[layout]
    assert source.train.names[12] == name
    # bytes come as they were written, without what stands around them
    assert source.train.read(tf.constant(12)).numpy() == encoded(12)


@pytest.mark.parametrize("layout", ["tfrecord", "webdataset"])
def test_shards_without_validation_are_divided(tmp_path, layout):
    folder = write_set(tmp_path / "set", layout, train=60)
    source = opened(folder, layout, SplitOptions(val_fraction=0.25, seed=3), f"{folder}/train-*")
    values = [[grey(split, row) for row in range(len(split))] for split in (source.train, source.val)]
    assert sorted(values[0] + values[1]) == list(range(60))
    for split, found, count in zip((source.train, source.val), values, (15, 5), strict=True):
        np.testing.assert_array_equal(split.labels, np.array(found) % 3)
        np.testing.assert_array_equal(np.bincount(split.labels), [count] * 3)
        streamed = {int(number): content for number, content in stream_of(split, steps=1, a_step=len(split))}
        assert {number: int(decode(content)[0, 0, 0]) for number, content in streamed.items()} == dict(enumerate(found))


LABELS = {
    "from 1": ([1, 2, 3, 3], [0, 1, 2, 2], ["1", "2", "3"]),
    "from 0": ([0, 1, 2, 2], [0, 1, 2, 2], ["0", "1", "2"]),
    "from 0, one absent": ([0, 3, 3, 0], [0, 3, 3, 0], ["0", "1", "2", "3"]),
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("feature", ["image__class__label", "label"])
def test_labels_from_zero_and_from_one(tmp_path, case, feature):
    written, expected, names = LABELS[case]
    photo = "image" if feature == "label" else "image__encoded"
    records = [example(**{photo: encoded(value), feature: label}) for value, label in enumerate(written)]
    tfrecords(tmp_path / "set" / "train.tfrecord", records)
    tfrecords(tmp_path / "set" / "val.tfrecord", records[::-1])
    source = opened(tmp_path / "set")
    np.testing.assert_array_equal(source.train.labels, expected)
    np.testing.assert_array_equal(source.val.labels, expected[::-1])
    assert source.class_names == names


def test_names_of_classes_come_from_a_list_beside_the_shards(tmp_path):
    folder = write_set(tmp_path / "set", "webdataset")
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    assert opened(folder, "webdataset").class_names == ["ant", "bee", "cat", "dog"]
    # as Windows writes it; two classes of one name stay two, by name too
    (folder / "classes.txt").write_bytes("\ufeffant\r\nbee\r\nant\r\n".encode())
    source = opened(folder, "webdataset")
    assert source.class_names == ["ant (0)", "bee", "ant (2)"]
    np.testing.assert_array_equal(source.with_classes(source.class_names).train.labels, source.train.labels)
    (folder / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="list of classes beside the shards has 2, and labels are up to 3"):
        opened(folder, "webdataset")


@pytest.mark.parametrize(
    ("train", "val", "listed", "expected"),
    [
        # class 0 is not among the photos: with as many names as the highest label, they would count from 1
        ([1, 2, 3, 1, 2, 3], [1, 3], 4, [1, 2, 3, 1, 2, 3]),
        ([1, 2, 4, 1, 2, 4], [1, 4], 4, [0, 1, 3, 0, 1, 3]),
        ([2, 3, 4, 2, 3, 4], [4], 4, [1, 2, 3, 1, 2, 3]),
        ([1, 2, 1, 2], [0, 2], 4, [1, 2, 1, 2]),
        ([1, 2, 1, 2], [0, 2], 0, [1, 2, 1, 2]),
        ([1, 2, 1, 2], [1, 2], 0, [0, 1, 0, 1]),
    ],
)
def test_the_lowest_label_is_that_of_all_photos(tmp_path, capsys, train, val, listed, expected):
    for part, labels in (("train", train), ("val", val)):
        tfrecords(tmp_path / "set" / f"{part}.tfrecord", [plain(i, label) for i, label in enumerate(labels)])
    if listed:
        (tmp_path / "set" / "classes.txt").write_text("".join(f"class {number}\n" for number in range(listed)))
    source = opened(tmp_path / "set")
    np.testing.assert_array_equal(source.train.labels, expected)
    shift = train[0] - expected[0]
    np.testing.assert_array_equal(source.val.labels, np.array(val) - shift)
    if listed:
        assert source.class_names == [f"class {number}" for number in range(listed)]
    else:
        assert source.class_names == [str(number + shift) for number in range(max(expected) + 1)]
    said = capsys.readouterr().err
    assert "no photo or no label" not in said
    told = (
        "labels are 1 to 3, and the list beside the shards has 4 classes: taken to count from 0, so that 1 is 'class 1'"
    )
    assert (told in said) == (expected == [1, 2, 3, 1, 2, 3] and shift == 0 and val == [1, 3])


def test_two_classes_of_one_name_are_numbered(tmp_path):
    records = [example(image=encoded(0), label=k, image__class__text=b"crane") for k in (0, 1, 0, 1)]
    tfrecords(tmp_path / "set" / "x.tfrecord", records)
    assert opened(tmp_path / "set", options=SplitOptions(val_per_class=1)).class_names == ["0", "1"]


def test_tars_in_any_order_with_any_kind_of_label(tmp_path, capsys):
    members = [
        ("b.cls", b"1\n"),
        ("a.jpg", encoded(10, "JPEG")),
        ("c.json", json.dumps({"label": 2, "width": 16}).encode()),
        ("b.WEBP", encoded(20, "WEBP")),
        ("a.json", b'{"caption": "no label"}'),
        ("a.txt", b"0"),
        ("dir/c.mask.png", encoded(99)),
        ("c.jpeg", encoded(30, "JPEG")),
        ("alone.png", encoded(40)),
        ("label-alone.cls", b"1"),
        ("__key__.png", encoded(50)),
        ("./dir.v2/e.png", encoded(60)),
        ("./dir.v2/e.cls", b"1"),
        ("dir/\u00e9\n.png", encoded(70)),
        ("dir/\u00e9\n.cls", b"\xef\xbb\xbf0\r\n"),
        ("a.cls", b"0"),
        # added to the tar later, in place of the first
        ("b.cls", b"2"),
    ]
    tar(tmp_path / "set" / "train.tar", members)
    tar(tmp_path / "set" / "val.tar", [*members[:1], ("b.png", encoded(7))])
    source = opened(tmp_path / "set", "webdataset")
    found = {name.split("/", 1)[1]: grey(source.train, row) for row, name in enumerate(source.train.names)}
    expected = {"a.jpg": 10, "b.WEBP": 20, "c.jpeg": 30, "./dir.v2/e.png": 60, "dir/\u00e9\\n.png": 70}
    assert list(found) == list(expected)
    assert np.abs(np.array([*found.values()]) - [*expected.values()]).max() <= 2
    np.testing.assert_array_equal(source.train.labels, [0, 2, 2, 1, 0])
    said = capsys.readouterr().err
    assert "training: 2 of 7 records have no photo or no label, the first train.tar/dir/c.mask.png" in said
    assert "passed over" not in said


def links(path, members):
    """A tar in which a content that is a name is a link: hard, or symbolic where it begins with `->`."""
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                member.linkname = content.removeprefix("->")
                file.addfile(member)
            else:
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def test_a_mask_is_a_part_of_its_sample(tmp_path, capsys):
    of_class = [(f"{key}.cls", b"%d" % (key % 2)) for key in (1, 2)]
    masks = [
        ("1.jpg", encoded(10)),
        ("1.mask.png", encoded(99)),
        ("2.png", encoded(20)),
        ("2.seg.left.png", encoded(98)),
    ]
    for name in ("train", "val"):
        tar(tmp_path / "set" / f"{name}.tar", [*of_class, ("1.jpg", encoded(10)), *masks])
    source = opened(tmp_path / "set", "webdataset")
    assert [name.split("/", 1)[1] for name in source.train.names] == ["1.jpg", "2.png"]
    assert "a part of the sample 1, which has its photo" in capsys.readouterr().err


def test_no_photo_of_a_tar_vanishes(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    members = [
        # a name with dots, and its label
        ("a/holiday 2023.05.01.jpg", encoded(10)),
        ("a/holiday 2023.05.01.cls", b"1"),
        ("a/holiday 2023.05.02.jpg", encoded(20)),
        ("a/holiday 2023.05.02.cls", b"0"),
        # two photos of one key
        ("b/IMG_1.jpg", encoded(30)),
        ("b/IMG_1.cls", b"1"),
        ("b/IMG_1.png", encoded(40)),
        ("b/__one.png", encoded(45)),
        ("b/__one.txt", b"1"),
        # a tar keeps a file's second name as a link, photos and labels
        ("c/IMG_2.jpg", "b/IMG_1.jpg"),
        ("c/IMG_2.cls", "b/IMG_1.cls"),
        # what is in place of the first
        ("d.jpg", encoded(50)),
        ("d.cls", b"0"),
        ("d.jpg", encoded(60)),
        # no photo that is read, and links to nothing
        ("e.heic", b"heic"),
        ("f.jpg", "gone.jpg"),
        ("g.jpg", "->d.jpg"),
        # nobody misses these
        ("d.npy", b"descriptor"),
        ("readme.md", b"read me"),
        ("__key__.jpg", encoded(70)),
        (".hidden.jpg", encoded(80)),
    ]
    links(tmp_path / "set" / "train.tar", members)
    tar(tmp_path / "set" / "val.tar", [("b.png", encoded(7)), ("b.cls", b"1"), ("c.png", encoded(8)), ("c.cls", b"0")])
    for _ in range(2):
        say.cache_clear()
        source = opened(tmp_path / "set", "webdataset")
        found = {
            name.split("/", 1)[1]: (grey(source.train, row), int(source.train.labels[row]))
            for row, name in enumerate(source.train.names)
        }
        assert found == {
            "a/holiday 2023.05.01.jpg": (10, 1),
            "a/holiday 2023.05.02.jpg": (20, 0),
            "b/IMG_1.jpg": (30, 1),
            "b/IMG_1.png": (40, 1),
            "b/__one.png": (45, 1),
            "c/IMG_2.jpg": (30, 1),
            "d.jpg": (60, 0),
        }
        # also when the index was made before
        said = capsys.readouterr().err
        assert (
            f"passed over in tars: 3 members, the first {tmp_path}/set/train.tar#e.heic: neither a photo (.jpg, "
            in said
        )


def test_labels_that_are_names(tmp_path):
    words = [b"cat", b"dog", b"cat", b"dog"]
    for part in ("train", "val"):
        pairs = [((f"{i}.png", encoded(i)), (f"{i}.txt", word)) for i, word in enumerate(words)]
        tar(tmp_path / "set" / f"{part}.tar", [member for pair in pairs for member in pair])
    source = opened(tmp_path / "set", "webdataset")
    assert source.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(source.val.labels, [0, 1, 0, 1])
    tar(tmp_path / "set" / "val.tar", [("0.png", encoded(0)), ("0.txt", b"emu")])
    with pytest.raises(UserError, match="class 'emu' is not among the 2 classes for training"):
        opened(tmp_path / "set", "webdataset")


def test_records_without_photo_or_label_are_left_out(tmp_path, capsys):
    records = [plain(0, 0), b"\xff no example", example(label=1), example(image=encoded(3)), plain(4, 1), plain(5, -1)]
    tfrecords(tmp_path / "set" / "train.tfrecord", records)
    tfrecords(tmp_path / "set" / "val.tfrecord", [plain(9, 1)])
    source = opened(tmp_path / "set")
    assert source.train.names == ["train.tfrecord/0", "train.tfrecord/4"]
    assert [grey(source.train, row) for row in range(2)] == [0, 4]
    said = capsys.readouterr().err
    assert "4 of 6 records have no photo or no label, the first train.tfrecord/1" in said


def test_empty_shards_count_for_nothing(tmp_path):
    for layout in ("tfrecord", "webdataset"):
        folder = write_set(tmp_path / layout, layout, train=3, shards=5)
        (folder / "train-extra.tfrecord.tar").write_bytes(b"")
        source = opened(folder, layout)
        assert [grey(source.train, row) for row in range(3)] == [0, 1, 2]
        assert len(list(stream_of(source.train, steps=3, a_step=2))) == 6


@pytest.mark.parametrize(
    ("extension", "content", "expected"),
    [
        ("cls", b" 7\n", (7, "")),
        ("cls", b"-1", (-1, "")),
        ("cls", b"99999999999999999999", (-1, "99999999999999999999")),
        ("json", b"99999999999999999999", (-1, "99999999999999999999")),
        ("json", b'{"label": "1_0"}', (-1, "1_0")),
        ("json", b'{"label": " 10 "}', (10, "")),
        ("json", b'{"label": 0.5}', (-1, "0.5")),
        ("json", b'{"label": 3.0}', (3, "")),
        ("json", b'{"label": true}', (-1, "true")),
        ("json", b'{"label": null, "class_name": "dog"}', (-1, "dog")),
        ("json", b'{"label": null}', (-1, "")),
        ("json", b'{"label": [1, 2]}', (-1, "")),
        ("json", b"null", (-1, "")),
    ],
)
def test_which_labels_are_numbers(tmp_path, extension, content, expected):
    path = tar(tmp_path / "x.tar", [("a.png", encoded(0)), (f"a.{extension}", content)])
    found = index.open_index([str(path)], "webdataset", tmp_path / "cache")
    assert (int(found.label[0]), found.text[0]) == expected


def test_a_long_text_takes_the_room_of_its_own(tmp_path):
    texts = ["cat", "x" * 200, "y" * 201, "a caption\n" * 10_000, "\u5c71 \U0001f600"] + ["dog"] * 1000
    members = [pair for i, text in enumerate(texts) for pair in ((f"{i}.png", b"photo"), (f"{i}.txt", text.encode()))]
    path = tar(tmp_path / "x.tar", [*members, ("n" * 5000 + ".png", b"photo"), (os.fsdecode(b"\xff.png"), b"photo")])
    for _ in range(2):
        found = index.open_index([str(path)], "webdataset", tmp_path / "cache")
        assert found.text.tolist() == ["cat", "x" * 200, "", "", "\u5c71 \U0001f600"] + ["dog"] * 1000 + ["", ""]
        assert found.names[:2] == ["x.tar/0.png", "x.tar/1.png"]
        assert found.names[-2:] == [f"x.tar/{'n' * 5000}.png", r"x.tar/\xff.png"]
        assert found.text[5] is found.text[6]
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stat().st_size < 100 * len(texts)
    # of records, too
    path = tfrecords(tmp_path / "x", [example(image=b"photo", label=i, image__class__text=b"z" * n) for i, n in
                                      enumerate((200, 201))])  # fmt: skip
    assert index.open_index([str(path)], "tfrecord", tmp_path / "cache").text.tolist() == ["z" * 200, ""]


# --- mistakes ---


def cut(path, count):
    os.truncate(path, path.stat().st_size - count)


def compress(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


TORN = {
    "record cut": ("tfrecord", lambda path: cut(path, 7), "is cut off after 9 records"),
    "record's header cut": ("tfrecord", lambda path: os.truncate(path, 5), "is cut off after 0 records"),
    "no TFRecord": ("tfrecord", lambda path: path.write_bytes(b"some other file, and a long one"), "or is no TFRecord"),
    "TFRecord compressed": ("tfrecord", compress, "is compressed"),
    # 10 240 bytes are a tar's block: what is cut reaches into the last photo
    "photo cut": ("webdataset", lambda path: os.truncate(path, 512 * 3 + 20), "is cut off, or is no tar"),
    "header cut": ("webdataset", lambda path: os.truncate(path, 512 * 4 + 100), "is cut off, or is no tar"),
    "no tar": ("webdataset", lambda path: path.write_bytes(b"some other file" * 99), "is cut off, or is no tar"),
    "tar compressed": ("webdataset", compress, "is compressed"),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_shard_is_named_at_the_start(tmp_path, case):
    layout, tear, message = TORN[case]
    folder = write_set(tmp_path / "set", layout)
    path = sorted(folder.glob("train-*"))[1]
    tear(path)
    with pytest.raises(UserError, match=message) as raised:
        opened(folder, layout)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def labelled(*labels):
    return [((f"{i}.png", encoded(i)), (f"{i}.cls", label)) for i, label in enumerate(labels)]


MISTAKES = {
    "no label at all": (["a.png"], "no photo for training has a label; expected photos"),
    "captions": ([b"a cat", b"a dog", b"two"], "3 classes in 3 photos, such as 'a cat': texts are no labels"),
    "names and numbers": ([b"0", b"1", b"cat"], "some labels are numbers and some are names, such as 'cat'"),
    "numbers that are no classes": ([b"0", b"123456789"], "labels must be numbers from 0 or 1 on, received 123456789"),
    "one class": ([b"0", b"0", b"0"], "has one class only"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_labels(tmp_path, case):
    labels, message = MISTAKES[case]
    pairs = labelled(*labels) if isinstance(labels[0], bytes) else [((labels[0], encoded(0)),)]
    tar(tmp_path / "set" / "train.tar", [member for pair in pairs for member in pair])
    with pytest.raises(UserError, match=message) as raised:
        opened(tmp_path / "set", "webdataset")
    assert "\n" not in str(raised.value)


def test_shards_for_validation_alone_and_labels_beyond(tmp_path):
    folder = write_set(tmp_path / "set", "tfrecord")
    with pytest.raises(UserError, match=r"no shard for training, only such as .*validation-00000"):
        opened(folder, pattern=f"{folder}/validation-*")
    tfrecords(folder / "validation-00000-of-00001", [imagenet(0, 7)])
    with pytest.raises(UserError, match="a label for validation is 8, those for training are up to 3"):
        opened(folder)
    for path in folder.glob("train-*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no photo for training has a label"):
        opened(folder)


# --- the index, and other places ---


def test_an_index_is_made_once_and_again_when_a_shard_changes(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", "tfrecord")
    read = []
    entries = index.LAYOUTS["tfrecord"]
    monkeypatch.setitem(index.LAYOUTS, "tfrecord", lambda file, size: (read.append(size), entries(file, size))[1])
    first = opened(folder).train
    assert len(read) == 5
    again = opened(folder).train
    assert len(read) == 5
    assert again.names == first.names
    np.testing.assert_array_equal(again.labels, first.labels)
    tfrecords(folder / "train-00001-of-00004", [imagenet(99, 0)])
    assert len(opened(folder).train) == 31
    assert len(read) == 6
    # and where the cache has lost it
    next((tmp_path / "cache" / "shards").glob("*.npz")).write_bytes(b"")
    assert len(opened(folder).train) == 31


def test_an_index_that_cannot_be_kept_is_made_each_time(tmp_path):
    folder = write_set(tmp_path / "set", "tfrecord")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(opened(folder).train) == 40


@pytest.mark.parametrize("place", ["memory://shards", "ram://shards"])
@pytest.mark.parametrize("layout", ["tfrecord", "webdataset"])
def test_shards_behind_urls(tmp_path, place, layout):
    """fsspec's files in memory, and TensorFlow's."""
    folder = write_set(tmp_path / "set", layout, train=30)
    url = f"{place}-{layout}"
    if place.startswith("memory"):
        fsspec = pytest.importorskip("fsspec")
        files = fsspec.filesystem("memory")
        for path in folder.iterdir():
            files.pipe(f"{url}/{path.name}", path.read_bytes())
    else:
        tf.io.gfile.makedirs(url)
        for path in folder.iterdir():
            tf.io.gfile.copy(str(path), f"{url}/{path.name}", overwrite=True)
    first = "train-00000-of-00004" if layout == "tfrecord" else "train-000.tar"
    assert isinstance(stores.store_of(f"{url}/{first}"), FsspecStore if "mem" in url else TensorFlowStore)
    assert f"{url}/{first}" in stores.store_of(url).below(url)
    for pattern in (url, f"{url}/train-*,{url}/val*"):
        source = opened(folder, layout, pattern=pattern)
        assert [grey(source.train, row) for row in (29, 0, 13)] == [29, 0, 13]
        assert [grey(source.val, row) for row in (8, 0)] == [208, 200]
    found = dict(stream_of(source.train, steps=3, a_step=10))
    assert {number: int(decode(content)[0, 0, 0]) for number, content in found.items()} == {k: k for k in range(30)}
    assert [os.path.basename(path) for path in find_shards(f"{url}/{first}", layout)] == [first]
    with pytest.raises(UserError, match=r"absent.* can't be read|no shard matches .*absent"):
        opened(folder, layout, pattern=f"{url}/absent.tar")


def test_a_url_that_nothing_reads():
    with pytest.raises(UserError, match=r"install mg-keras\[fsspec\] and fsspec's driver for nowhere://"):
        find_shards("nowhere://bucket/train-*.tar", "webdataset")


def test_a_store_is_asked_again(monkeypatch):
    answers = [ConnectionError(), TimeoutError(), b"abcdef"]

    class Flaky:
        def read(self, path, start, end):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer[start:end]

    monkeypatch.setattr(stores, "store_of", lambda path: Flaky())
    monkeypatch.setattr(stores, "_RETRIES", (0, 0))
    assert photos_of([2], size=2).read(0) == [b"ab"]
    answers += [FileNotFoundError(), b"abc"]
    with pytest.raises(OSError, match="FileNotFoundError"):
        photos_of([2], size=2).read(0)
    assert answers == [b"abc"]


# --- the stream ---


def photos_of(counts, size=100):
    """The index of photos of `size` bytes, ten bytes apart, in shards of the given counts."""
    shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    position = np.concatenate([np.arange(count) * (size + 10) for count in counts]).astype(np.int64)
    total = len(shard)
    names = [f"{s}/{p}" for s, p in zip(shard, position, strict=True)]
    return Index(
        [f"shard-{number}" for number in range(len(counts))],
        shard,
        position,
        np.full(total, size, np.int64),
        np.arange(total) % 3,
        np.array([""] * total, object),
        names,
    )


class SlowStore:
    """Bytes that follow from where they lie, after a wait that is never the same; counts requests."""

    def __init__(self, seconds=0.0):
        self.seconds, self.lock = seconds, threading.Lock()
        self.requests, self.at_work, self.most = [], 0, 0

    def read(self, path, start, end):
        with self.lock:
            self.requests.append((path, start, end))
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        time.sleep(self.seconds * np.random.default_rng().uniform(0.2, 1))
        with self.lock:
            self.at_work -= 1
        return bytes_at(int(path.split("-")[1]), start, end)


def bytes_at(shard, start, end):
    return ((np.arange(start, end) + 97 * shard) % 251).astype(np.uint8).tobytes()


@pytest.fixture
def store(monkeypatch):
    store = SlowStore()
    monkeypatch.setattr(stores, "store_of", lambda path: store)
    return store


def stream_of(split_or_stream, *, steps, a_step, **options):
    """[(number, bytes)] of the photos of some steps."""
    stream = getattr(split_or_stream, "stream", split_or_stream)
    dataset = stream(**{"seed": 0, "photos_a_step": a_step, **options}).take(steps * a_step)
    return [(int(number), content) for number, content in dataset.as_numpy_iterator()]


def numbers(stream, **options):
    return np.array([number for number, _ in stream_of(stream, **options)])


def chunks_slowly(photos, chunk_bytes):
    """The chunks, one photo after the other: lists of numbers."""
    chunks = []
    for row in range(len(photos)):
        end = photos.position[row] + photos.length[row]
        first = chunks[-1][0] if chunks else None
        if first is None or photos.shard[row] != photos.shard[first] or end - photos.position[first] > chunk_bytes:
            chunks.append([])
        chunks[-1].append(row)
    return chunks


COUNTS = [7, 0, 23, 1, 12, 0, 30]


@pytest.mark.parametrize(
    ("chunk_bytes", "buffer", "a_step"),
    [(1, 10, 1), (330, 1, 9), (330, 10, 9), (1000, 64, 9), (1000, 10, 73), (10**6, 20, 36), (10**6, 10**6, 9)],
)
def test_each_pass_shows_every_photo_once(store, chunk_bytes, buffer, a_step):
    photos = photos_of(COUNTS)
    stream = Stream(photos, chunk_bytes, 100 * buffer)
    steps = 73 // a_step
    found = numbers(stream, steps=3 * steps, a_step=a_step).reshape(3, -1)
    chunks = chunks_slowly(photos, chunk_bytes)
    for number, shown in enumerate(found):
        # all but the few that fill no step
        assert len(set(shown.tolist())) == steps * a_step
        order = np.random.default_rng([0, number]).permutation(len(chunks))
        read = [row for chunk in order for row in chunks[chunk]][: steps * a_step]
        for start in range(0, len(read), buffer):
            assert sorted(shown[start : start + buffer]) == sorted(read[start : start + buffer])
    assert (found[0] != found[1]).any()
    assert (np.sort(found[0]) != found[0]).any()


def test_a_request_is_for_a_chunk(store):
    stream = Stream(photos_of([300, 300, 300]), 1000, 9000)
    numbers(stream, steps=9, a_step=100)
    # 9 photos of 100 bytes and the gaps between them; beyond the pass, a buffer of 10 chunks and those read ahead
    assert max(end - start for _, start, end in store.requests) == 980
    assert len(store.requests) <= 3 * 34 + 10 + 3 * 16


@pytest.mark.slow
def test_photos_are_shuffled_within_a_buffer_too(store):
    shown = numbers(Stream(photos_of([1000]), 10**6, 10**6), steps=10, a_step=1000).reshape(10, 1000)
    # one chunk: without the buffer each pass would be in order. Four standard errors of a rank correlation
    places = np.argsort(shown, 1)
    correlation = np.corrcoef([*places, np.arange(1000)]) - np.eye(11)
    assert np.abs(correlation).max() < 4 / math.sqrt(1000)


def test_bytes_are_those_of_the_photo(store):
    photos = photos_of(COUNTS)
    for number, content in stream_of(Stream(photos, 500, 2000), steps=20, a_step=7):
        start = photos.position[number]
        assert content == bytes_at(photos.shard[number], start, start + 100)


def test_order_is_that_of_the_seed_however_slow_the_store(store):
    store.seconds = 0.01
    streams = [Stream(photos_of(COUNTS), 300, 2000) for _ in range(2)]
    first, again = (numbers(stream, steps=30, a_step=7, seed=5) for stream in streams)
    np.testing.assert_array_equal(first, again)
    assert (first != numbers(streams[0], steps=30, a_step=7, seed=6)).any()


def test_many_requests_wait_at_the_same_time(store):
    store.seconds = 0.02
    stream_of(Stream(photos_of([400]), 200, 10**5), steps=20, a_step=20)
    assert store.most >= 12


@pytest.mark.parametrize("start", [1, 8, 23, 1000])
@pytest.mark.slow
def test_a_stream_begins_anywhere_and_reads_at_most_a_buffer_for_it(store, start):
    stream = Stream(photos_of(COUNTS), 300, 2000)
    options = {"a_step": 9, "seed": 2}
    tail = numbers(stream, steps=20, start_step=start, **options)
    if start < 1000:
        np.testing.assert_array_equal(tail, numbers(stream, steps=20 + start, **options)[9 * start :])
    store.requests.clear()
    numbers(stream, steps=1, start_step=start, **options)
    # of the buffer of 20 photos, the one after it, and chunks read ahead
    assert len(store.requests) <= 2 * 20 + 3 * 16


@pytest.mark.slow
def test_shares_are_disjoint_in_every_pass(store):
    stream = Stream(photos_of(COUNTS), 300, 2000)
    for shares, a_step in ((2, 6), (3, 5)):
        steps = 73 // shares // a_step
        found = [numbers(stream, steps=3 * steps, a_step=a_step, share=(k, shares)) for k in range(shares)]
        for shown in np.stack([values.reshape(3, -1) for values in found], 1):
            assert len(set(shown.ravel().tolist())) == shown.size == shares * steps * a_step


def test_what_a_store_does_not_give_is_empty(store, monkeypatch):
    monkeypatch.setattr(stores, "_RETRIES", ())
    read = store.read

    def refuse(path, start, end):
        if path == "shard-2":
            raise OSError("no route to host")
        return read(path, start, end)

    monkeypatch.setattr(store, "read", refuse)
    photos = photos_of(COUNTS)
    found = stream_of(Stream(photos, 300, 2000), steps=8, a_step=9)
    for number, content in found:
        assert (content == b"") == (photos.shard[number] == 2)
    assert len(found) == 72


# --- batches ---


def noisy(image, size, seed):
    noise = tf.random.stateless_uniform([size, size, 3], tf.cast(seed, tf.int32), 0, 0.49)
    return tf.cast(image[0, 0, 0], tf.float32) + noise


def batches(split, steps=12, **options):
    options = {"size": 4, "batch_size": 6, "versions": 3, **options}
    with pytest.MonkeyPatch.context() as patch:
        # where unusable photos are not noted: what tells all kinds of photos apart takes a second to set up
        patch.setattr(repeated, "decode", lambda contents: tf.io.decode_png(contents, channels=3))
        found = repeated_batches(split, noisy, steps=steps, **options)
    found = list(found.as_numpy_iterator())
    return tuple(np.stack(values) for values in zip(*found, strict=True))


def small_stream(split, photos=8):
    """The split with chunks of three photos and a buffer of a few, so that little data has many of both."""
    index = split.stream.index
    size = int(index.length.mean())
    return dataclasses.replace(split, stream=Stream(index, 3 * 600, photos * size))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return opened(write_set(tmp_path_factory.mktemp("source") / "set", "tfrecord", train=50))


@pytest.mark.parametrize(("batch_size", "versions", "parts", "replicas"), [(7, 3, 1, 1), (8, 3, 2, 2), (5, 1, 1, 2)])
@pytest.mark.slow
def test_batches_of_whole_groups(source, batch_size, versions, parts, replicas):
    options = {"batch_size": batch_size, "versions": versions, "parts": parts, "replicas": replicas}
    images, labels, ids = batches(small_stream(source.train), **options)
    assert images.shape == (12 * replicas, parts * batch_size, 4, 4, 3)
    assert (images.dtype, labels.dtype, ids.dtype) == (np.float32, np.int32, np.int32)
    for step in ids.reshape(12, replicas * parts, batch_size):
        for part in step:
            np.testing.assert_array_equal(part, np.repeat(part[::versions], versions)[:batch_size])
        assert len(set(step.ravel().tolist())) == replicas * parts * math.ceil(batch_size / versions)
    np.testing.assert_array_equal(labels, ids % 3)
    np.testing.assert_array_equal(np.floor(images), np.broadcast_to(ids[..., None, None, None], images.shape))
    noise = (images - np.floor(images)).reshape(12 * replicas * parts * batch_size, -1)
    assert len(np.unique(noise, axis=0)) == len(noise)


@pytest.mark.slow
def test_batches_resume_as_the_undisturbed_ones(source):
    split = small_stream(source.train)
    whole = batches(split, seed=3)
    for start in (5, 9):
        for mine, expected in zip(batches(split, 12 - start, start_step=start, seed=3), whole, strict=True):
            np.testing.assert_array_equal(mine, expected[start:])


@pytest.mark.slow
def test_a_step_is_the_same_however_many_replicas_share_a_machine(source):
    split = small_stream(source.train)
    one = batches(split, batch_size=12)
    for mine, expected in zip(batches(split, replicas=2), one, strict=True):
        np.testing.assert_array_equal(mine.reshape(expected.shape), expected)


@pytest.mark.slow
def test_machines_have_photos_of_their_own(source):
    split = small_stream(source.train)
    found = [batches(split, replicas=4, local_replicas=local, steps=6) for local in ([0, 1], [2, 3])]
    ids = np.concatenate([values[2].reshape(6, -1) for values in found], 1)[:, ::3]
    assert all(len(set(step.tolist())) == 8 for step in ids)
    # one augmentation for none twice: seeds belong to places in the steps of all
    noise = np.concatenate([(values[0] % 1).reshape(-1, 48) for values in found])
    assert len(np.unique(noise, axis=0)) == len(noise)
    for local in ([1, 2], [0, 1, 2], [3, 2]):
        with pytest.raises(ValueError, match=r"one of equal shares of 4 replicas .* received"):
            batches(split, replicas=4, local_replicas=local)


@pytest.mark.parametrize("layout", ["tfrecord", "webdataset"])
@pytest.mark.slow
def test_broken_photos_are_replaced_and_noted(tmp_path, layout):
    folder = write_set(tmp_path / "set", layout)
    if layout == "tfrecord":
        records = [imagenet(0, 0), example(image__encoded=encoded(1)[:-30], image__class__label=2), imagenet(2, 2)]
        tfrecords(folder / "train-00000-of-00004", records)
    else:
        members = [("0.png", encoded(0)), ("0.cls", b"0"), ("1.png", encoded(1)[:-30]), ("1.cls", b"1")]
        tar(folder / "train-000.tar", [*members, ("2.png", encoded(2)), ("2.cls", b"2")])
    split = opened(folder, layout).train
    assert len(split) == 33
    bad = BadImages(tmp_path / "bad_images.txt")
    options = {"versions": 1, "batch_size": 11, "steps": 6}
    images, labels, ids = batches(split, bad_images=bad, **options)
    assert set(ids.ravel().tolist()) == set(range(33)) - {1}
    np.testing.assert_array_equal(images[:, :, 0, 0, 0].astype(int) % 3, labels)
    name = "train-00000-of-00004/1" if layout == "tfrecord" else "train-000.tar/1.png"
    assert (tmp_path / "bad_images.txt").read_text() == f"{name}\tPNG data is broken or cut off\n"
    tail = batches(split, bad_images=BadImages(), start_step=4, **{**options, "steps": 2})
    for mine, expected in zip(tail, (images, labels, ids), strict=True):
        np.testing.assert_array_equal(mine, expected[4:])


@pytest.mark.slow
def test_a_shard_that_goes_away_does_not_stop_a_run(tmp_path):
    folder = write_set(tmp_path / "set", "tfrecord")
    split = opened(folder).train
    (folder / "train-00002-of-00004").unlink()
    bad = BadImages()
    ids = batches(split, bad_images=bad, versions=1, batch_size=20, steps=6)[2]
    assert set(ids.ravel().tolist()) == set(range(40)) - set(range(20, 30))
    assert sorted(bad.reasons) == [f"train-00002-of-00004/{k}" for k in range(10)]
    assert all("FileNotFoundError" in reason for reason in bad.reasons.values())
