import collections

import numpy as np
import pytest

from mg_keras.data import leaks
from mg_keras.data.leaks import find_leaks
from mg_keras.data.sources import Source, Split


def split(folder, contents, labels):
    folder.mkdir()
    files = []
    for number, content in enumerate(contents):
        files.append(str(folder / f"{number:03}"))
        (folder / f"{number:03}").write_bytes(content)
    return Split([f"{folder.name}/{n:03}" for n in range(len(files))], None, lambda: labels, files=files)


def by_bytes(source):
    """The slow way: groups of equal files, as (name, in validation, label)."""
    groups = collections.defaultdict(list)
    for part in (source.train, source.val):
        for name, file, label in zip(part.names, part.files, part.labels, strict=True):
            with open(file, "rb") as opened:
                content = opened.read()
            if content:
                groups[content].append((name, part is source.val, int(label)))
    return list(groups.values())


@pytest.mark.parametrize("seed", range(3))
def test_all_that_are_equal_and_no_others(tmp_path, seed):
    rng = np.random.default_rng(seed)
    long = rng.integers(0, 256, 30_000, np.uint8).tobytes()
    # of other sizes; of one size; equal in the middle; equal at the beginning; shorter than the part that is compared
    kinds = [long, long[:-1], long[::-1], b"x" + long[1:], long[:-1] + b"y", b"tiny", b"tinY", b"", bytes(30_000)]
    kinds += [rng.bytes(size) for size in (10, 4096, 4097, 30_000, 30_000)]

    def drawn(count):
        return [kinds[number] for number in rng.integers(0, len(kinds), count)], rng.integers(0, 3, count)

    source = Source("", list("abc"), split(tmp_path / "train", *drawn(16)), split(tmp_path / "val", *drawn(8)))
    found = find_leaks(source)
    groups = by_bytes(source)
    both = [group for group in groups if len({in_val for _, in_val, _ in group}) == 2]
    classes = [group for group in groups if len({label for *_, label in group}) > 1]
    assert {frozenset(names) for names in found.in_training} == {frozenset(n for n, *_ in group) for group in both}
    assert {frozenset(names) for names in found.in_classes} == {frozenset(n for n, *_ in group) for group in classes}
    assert found.validation_photos == sum(in_val for group in both for _, in_val, _ in group) > 0
    assert found.class_photos == sum(map(len, classes)) > 0
    assert all(names[0].startswith("val/") for names in found.in_training)
    first, second = found.lines("leaks.txt")
    assert f"{found.validation_photos} photo" in first
    assert found.in_training[0][0] in first
    assert f"{found.class_photos} photo" in second
    rows = [line.split("\t") for line in found.text().splitlines()]
    assert rows == [["training and validation", *names] for names in found.in_training] + [
        ["two classes", *names] for names in found.in_classes
    ]


def test_copies_within_a_class_of_training_are_no_leak(tmp_path, monkeypatch):
    train = split(tmp_path / "train", [b"same"] * 3 + [b"1234"], [0, 0, 0, 1])
    val = split(tmp_path / "val", [b"others", b"others"], [1, 1])
    # what is alone with its size is not opened
    monkeypatch.setattr(leaks, "_whole", lambda path: pytest.fail(f"{path} is read whole"))
    found = find_leaks(Source("", ["a", "b"], train, val))
    assert not found
    assert list(found.lines("leaks.txt")) == []


def test_photos_that_are_no_files_or_gone(tmp_path):
    records = Split(["a/1", "a/2"], None, lambda: [0, 1])
    assert not find_leaks(Source("", ["a", "b"], records, records))
    train = split(tmp_path / "train", [b"same", b"same"], [0, 1])
    (tmp_path / "train" / "001").unlink()
    assert not find_leaks(Source("", ["a", "b"], train, split(tmp_path / "val", [b"else"], [0])))
