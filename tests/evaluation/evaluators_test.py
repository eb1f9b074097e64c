"""Benchmarks on made-up folders with the real sets' names; descriptors are invented, right answers slow or by hand."""

import dataclasses
import io
import os
import pickle

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import sources
from mg_keras.data.images import decode, try_decode
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators
from mg_keras.evaluation.evaluators import Answers
from mg_keras.evaluation.folders import open_benchmark

# a picture of four colours, whose turns and crops can be told apart: top left, top right, bottom left, bottom right
QUARTERS = np.array([[(200, 40, 40), (40, 200, 40)], [(40, 40, 200), (200, 200, 40)]], np.uint8)


def photo(height=16, width=24, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture = np.repeat(np.repeat(QUARTERS, height // 2, 0), width // 2, 1)
    Image.fromarray(picture).save(buffer, kind, **{"quality": 95, **options})
    return buffer.getvalue()


def write(folder, names, contents=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents or photo())
    return folder


def names_of(benchmark, rows=None):
    names = [os.path.basename(name) for name in benchmark.photos.names]
    return names if rows is None else [names[row] for row in rows]


def seen(split, row):
    """A photo as it will be measured."""
    index = tf.constant(row, tf.int64)
    image = decode(split.read(index))
    return (split.adjust(index, image) if split.adjust else image).numpy()


def corners(image):
    """Which of the four colours is seen top left, top right, bottom left and bottom right."""
    height, width = image.shape[:2]
    places = [(height // 4, width // 4), (height // 4, 3 * width // 4)]
    places += [(height - 1 - row, column) for row, column in places]
    colours = QUARTERS.reshape(4, 3).astype(int)
    return [int(np.abs(colours - image[place]).sum(1).argmin()) for place in places]


def invented(benchmark, seed=0, noise=0.7, groups=None, dimensions=16):
    """Descriptors [N, 16]: one direction for each group, and noise."""
    rng = np.random.default_rng(seed)
    groups = np.arange(len(benchmark.photos)) if groups is None else np.asarray(groups)
    return rng.normal(size=(groups.max() + 1, dimensions))[groups] + rng.normal(0, noise, (len(groups), dimensions))


def numbers_of(benchmark):
    return [int(os.path.splitext(name)[0][-6:]) for name in names_of(benchmark)]


def groups_of(benchmark):
    """The group of each photo by its number // 100."""
    return np.unique(np.array(numbers_of(benchmark)) // 100, return_inverse=True)[1]


def all_of(descriptors, without=()):
    rows = np.setdiff1d(np.arange(len(descriptors)), without)
    return Answers(rows, descriptors[rows])


def slow_ranking(descriptors, query, database):
    """The database by falling cosine."""

    def cosine(row):
        a, b = descriptors[query], descriptors[row]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    return sorted(database, key=lambda row: -cosine(row))


def slow_average_precision(ranking, right):
    score = 0.0
    found = 0
    for rank, row in enumerate(ranking):
        if row in right:
            before = 1.0 if rank == 0 else found / rank
            found += 1
            score += (before + found / (rank + 1)) / 2 / len(right)
    return score


def at_chance(benchmark, answers, metrics=None, permutations=60, seed=0):
    """Asserts that descriptors given to the wrong photos score at chance, within four standard errors."""
    rng = np.random.default_rng(seed)
    draws = [
        benchmark.measure(
            Answers(
                answers.rows,
                *(
                    None if values is None else values[rng.permutation(len(answers.rows))]
                    for values in (answers.descriptors, answers.logits)
                ),
            )
        )
        for _ in range(permutations)
    ]
    good = benchmark.measure(answers)
    for metric in metrics or benchmark.chance:
        values = [draw[metric] for draw in draws]
        tolerance = 4 * np.std(values) / len(values) ** 0.5
        assert np.mean(values) == pytest.approx(benchmark.chance[metric], abs=tolerance), metric
        assert good[metric] > benchmark.chance[metric] + 2 * tolerance, metric


# --- the contract ---


def test_answers_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="descriptors must hold one row for each of the 3 rows, received 2"):
        Answers(np.arange(3), np.ones((2, 4)))
    with pytest.raises(ValueError, match="logits must hold one row for each of the 3 rows, received 1"):
        Answers(np.arange(3), np.ones((3, 4)), np.ones((1, 4)))


def test_open_benchmark_parses_names_and_folders(tmp_path):
    write(tmp_path / "a=b" / "full", ["ukbench00000.jpg", "ukbench00001.jpg"])
    assert open_benchmark(f"ukb={tmp_path}/a=b", []).name == "ukb"
    for spec in ("ukb", "ukb=", "oxford=x", "", f"classes={tmp_path}"):
        with pytest.raises(UserError, match=r"NAME=PATH of imagenet, holidays, .*received '"):
            open_benchmark(spec, [])


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("imagenet", "image-net.org"),
        ("holidays", "100000.jpg, 100001.jpg and on, from https://lear.inrialpes.fr"),
        ("ukb", "ukbench10199.jpg .*archive.org/details/ukbench"),
        ("copydays", "original/200000.jpg .*lear.inrialpes.fr"),
        ("revisited", "cmp.felk.cvut.cz/revisitop"),
        ("image_similarity", "queries/Q00000.jpg"),
    ],
)
def test_missing_and_foreign_folders_say_what_was_expected_and_where_it_comes_from(name, origin, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path, write(tmp_path / "other", ["cat.jpg"])):
        with pytest.raises(UserError, match=f"expected.*{origin}"):
            open_benchmark(f"{name}={folder}", ["n01440764"])


# --- classes, ImageNet ---


def class_folder(folder, counts):
    return write(folder, [f"{name}/{name}_{i}.JPEG" for name, count in counts.items() for i in range(count)])


def test_classes_by_hand(tmp_path):
    class_folder(tmp_path / "train", dict.fromkeys("abcdefg", 1))
    class_folder(tmp_path / "val", {"a": 2, "c": 2})
    source = sources.open_source(f"folder:{tmp_path}")
    benchmark = evaluators.classes(source.val, source.class_names)
    assert benchmark.needs_logits
    assert benchmark.chance == {"top1": pytest.approx(1 / 7), "top5": pytest.approx(5 / 7)}
    # a first, then b ... g: class c is third for every photo
    logits = np.tile(np.arange(7.0, 0, -1), (4, 1))
    assert benchmark.measure(Answers(np.arange(4), logits, logits)) == {"top1": 0.5, "top5": 1.0}
    # a photo that could not be used counts as wrong
    some = np.array([1, 2, 3])
    assert benchmark.measure(Answers(some, logits[some], logits[some])) == {"top1": 0.25, "top5": 0.75}
    assert benchmark.measure(Answers(some[:0], logits[:0], logits[:0])) == {"top1": 0.0, "top5": 0.0}
    with pytest.raises(ValueError, match="needs logits, received None"):
        benchmark.measure(Answers(np.arange(4), logits))


@pytest.mark.parametrize("place", ["", "val", "Validation"])
@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_imagenet_matches_classes_by_name_whatever_their_order(place, prefix, tmp_path):
    counts = {"n01440764": 3, "n01443537": 2, "n01484850": 4}
    class_folder(tmp_path / place, counts)
    if place:
        class_folder(tmp_path / "train", {"n00000001": 5})
    network = ["n01484850", "n99999999", "n01440764", "n01443537"]
    benchmark = evaluators.imagenet(f"{prefix}{tmp_path}", network)
    assert len(benchmark.photos) == 9
    for name, label in zip(names_of(benchmark), benchmark.photos.labels, strict=True):
        assert name.startswith(network[label])
    assert benchmark.description == "ImageNet validation: 9 of 50,000 photos, 3 of 1,000 classes"
    assert "do not compare" in benchmark.warnings[0]
    assert benchmark.warnings[1] == "1 of the network's 4 classes have no photo: 'n99999999'"
    logits = np.eye(4)[benchmark.photos.labels]
    assert benchmark.measure(Answers(np.arange(9), logits, logits))["top1"] == 1.0


def test_imagenet_names_the_classes_that_the_network_does_not_have(tmp_path):
    class_folder(tmp_path, {"n01440764": 1, "n01443537": 1})
    with pytest.raises(
        UserError, match=r"not among the network's 2: 'n01443537'; of these no photo there: 'tench'; expected"
    ):
        evaluators.imagenet(str(tmp_path), ["n01440764", "tench"])


def test_imagenet_through_tensorflow_datasets(tmp_path, monkeypatch):
    class_folder(tmp_path / "train", {"n1": 1, "n2": 1})
    class_folder(tmp_path / "val", {"n1": 1, "n2": 2})
    prepared = sources.open_source(f"folder:{tmp_path}")
    asked = []
    monkeypatch.setattr(sources, "open_source", lambda *args, **options: asked.append((args, options)) or prepared)
    benchmark = evaluators.imagenet("tfds:imagenet2012", ["n2", "n1"], data_dir="sets")
    assert asked == [(("tfds:imagenet2012",), {"data_dir": "sets"})]
    assert len(benchmark.photos) == 3
    np.testing.assert_array_equal(benchmark.photos.labels, [1, 0, 0])


def test_classes_of_permuted_logits_are_at_chance(tmp_path):
    names = [f"n{i}" for i in range(8)]
    class_folder(tmp_path, dict.fromkeys(names, 5))
    benchmark = evaluators.imagenet(str(tmp_path), names)
    logits = np.eye(8)[benchmark.photos.labels] * 2 + np.random.default_rng(0).normal(size=(40, 8))
    at_chance(benchmark, Answers(np.arange(40), logits, logits))


# --- Holidays ---

HOLIDAYS = [f"{100000 + 100 * group + i}.jpg" for group, size in enumerate([2, 3, 4, 2, 6]) for i in range(size)]


@pytest.mark.parametrize("place", ["", "jpg"])
def test_holidays_against_the_slow_form(place, tmp_path):
    write(tmp_path / place, HOLIDAYS)
    benchmark = evaluators.holidays(tmp_path)
    groups = groups_of(benchmark)
    descriptors = invented(benchmark, noise=1.3, groups=groups)
    assert names_of(benchmark) == sorted(HOLIDAYS)
    queries = [row for row, number in enumerate(numbers_of(benchmark)) if number % 100 == 0]
    assert len(queries) == 5
    scores = []
    for query in queries:
        right = {row for row in range(17) if groups[row] == groups[query] and row != query}
        ranking = slow_ranking(descriptors, query, [row for row in range(17) if row != query])
        scores.append(slow_average_precision(ranking, right))
    assert 0.4 < np.mean(scores) < 0.95
    assert benchmark.measure(all_of(descriptors)) == {"mAP": pytest.approx(np.mean(scores))}
    assert benchmark.name == "holidays"
    assert benchmark.description == "INRIA Holidays: 17 of 1,491 photos, 5 of 500 queries"
    assert len(benchmark.warnings) == 1
    at_chance(benchmark, all_of(descriptors))


def test_holidays_photos_that_could_not_be_used(tmp_path):
    write(tmp_path, ["100000.jpg", "100001.jpg", "100002.jpg", "100100.jpg", "100101.jpg"])
    benchmark = evaluators.holidays(tmp_path)
    descriptors = np.eye(2)[[0, 0, 0, 1, 1]] + 0.01
    assert benchmark.measure(all_of(descriptors))["mAP"] == 1.0
    # a query scores 0; one of two positives is found, first: (1 + 1) / 2 of 1/2
    assert benchmark.measure(all_of(descriptors, [3]))["mAP"] == pytest.approx(0.5)
    assert benchmark.measure(all_of(descriptors, [2]))["mAP"] == pytest.approx((0.5 + 1.0) / 2)
    assert benchmark.measure(all_of(descriptors, [1, 2]))["mAP"] == pytest.approx((0.0 + 1.0) / 2)
    for without in ([0, 1, 2, 3, 4], [1, 2, 4], [0, 3]):
        assert benchmark.measure(all_of(descriptors, without))["mAP"] == 0.0


def test_holidays_samples(tmp_path):
    write(tmp_path, ["100000.jpg", "100100.jpg", "100101.jpg", "100203.jpg"])
    benchmark = evaluators.holidays(tmp_path)
    # 100000 has nothing to find, 100203 has no query
    assert names_of(benchmark, benchmark.search.queries) == ["100100.jpg"]
    assert benchmark.description == "INRIA Holidays: 4 of 1,491 photos, 1 of 500 queries"
    (tmp_path / "100100.jpg").unlink()
    with pytest.raises(UserError, match=r"no query .*lear\.inrialpes\.fr"):
        evaluators.holidays(tmp_path)
    write(tmp_path / "copy", ["100000.jpg"])
    with pytest.raises(UserError, match=r"two photos of one name: .*100000.jpg and .*copy.*100000.jpg"):
        evaluators.holidays(tmp_path)


def test_the_published_size_raises_no_warning(tmp_path):
    # a photo's content is not looked at here
    sizes = [2] * 9 + [3] * 491
    names = [f"{100000 + 100 * group + i}.jpg" for group, size in enumerate(sizes) for i in range(size)]
    benchmark = evaluators.holidays(write(tmp_path, names, b"x"))
    assert benchmark.description == "INRIA Holidays: 1,491 photos, 500 queries"
    assert benchmark.warnings == ()


def test_holidays_rotations_are_seen_in_the_pixels(tmp_path):
    names = ["100000.jpg", "100001.jpg", "100002.jpg", "100003.jpg", "100100.jpg", "100101.jpg"]
    write(tmp_path / "set", names)
    rotations = tmp_path / "rotations.txt"
    rotations.write_text(
        "# name, degrees clockwise\n\n100001.jpg 90\n100002 180  # upside down\n100003.jpg 270\n"
        "100101.jpg -90\n100100.jpg 0\n"
    )
    benchmark = evaluators.holidays(tmp_path / "set", rotations)
    pictures = {name: seen(benchmark.photos, row) for row, name in enumerate(names_of(benchmark))}
    assert {name: corners(picture) for name, picture in pictures.items()} == {
        "100000.jpg": [0, 1, 2, 3],
        "100001.jpg": [2, 0, 3, 1],
        "100002.jpg": [3, 2, 1, 0],
        "100003.jpg": [1, 3, 0, 2],
        "100100.jpg": [0, 1, 2, 3],
        "100101.jpg": [1, 3, 0, 2],
    }
    assert pictures["100001.jpg"].shape == (24, 16, 3)
    assert len(benchmark.warnings) == 1
    # within a pipeline, and for some of the photos
    some = benchmark.photos.subset([2, 1])
    dataset = tf.data.Dataset.range(2).map(lambda row: some.adjust(row, try_decode(some.read, row)[1]))
    assert [corners(image.numpy()) for image in dataset] == [[3, 2, 1, 0], [2, 0, 3, 1]]


def test_holidays_rotations_that_name_nothing_or_turn_twice(tmp_path):
    write(tmp_path / "set", ["100000.jpg", "100001.jpg"])
    orientation = Image.Exif()
    orientation[0x0112] = 6
    write(tmp_path / "set", ["100002.jpg"], photo(exif=orientation))
    rotations = tmp_path / "rotations.txt"
    # as Windows writes it
    rotations.write_text("100000.jpg 90\n100002.jpg 90\n149902.jpg 180\n", encoding="utf-8-sig")
    benchmark = evaluators.holidays(tmp_path / "set", rotations)
    assert benchmark.warnings[1] == "1 of the 3 rotations name no photo here, such as 149902.jpg"
    assert "1 of the rotated photos also have an EXIF orientation" in benchmark.warnings[2]
    # the file's orientation is a quarter turn clockwise, the list's another
    assert corners(seen(benchmark.photos, 2)) == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("100001.jpg 45", "line 2 of .*multiples of 90, received '100001.jpg 45'"),
        ("100001.jpg", "line 2"),
        ("100001.jpg 90 180", "line 2"),
        ("100001.jpg left", "line 2"),
        ("100000.jpg 90", "line 2 of .* names 100000.jpg a second time"),
    ],
)
def test_holidays_rotations_that_can_not_be_read(line, message, tmp_path):
    write(tmp_path / "set", ["100000.jpg", "100001.jpg"])
    (tmp_path / "rotations.txt").write_text(f"100000.jpg 90\n{line}\n")
    with pytest.raises(UserError, match=message):
        evaluators.holidays(tmp_path / "set", tmp_path / "rotations.txt")
    with pytest.raises(UserError, match=r"missing\.txt cannot be read"):
        evaluators.holidays(tmp_path / "set", tmp_path / "missing.txt")


# --- UKB, views, IN-aug ---


@pytest.mark.parametrize("place", ["", "full"])
def test_ukb_against_the_slow_form(place, tmp_path):
    names = [f"ukbench{number:05}.jpg" for number in range(24)]
    write(tmp_path / place, names)
    write(tmp_path / "thumbnails", ["ukbench00000th.jpg"])
    benchmark = evaluators.ukb(tmp_path)
    assert names_of(benchmark) == names
    groups = np.arange(24) // 4
    descriptors = invented(benchmark, groups=groups)
    counts = [np.sum(groups[slow_ranking(descriptors, row, range(24))[:4]] == groups[row]) for row in range(24)]
    assert 1.5 < np.mean(counts) < 3.9
    assert benchmark.measure(all_of(descriptors)) == {"score": pytest.approx(np.mean(counts))}
    assert benchmark.description == "UKB: 24 of 10,200 photos"
    at_chance(benchmark, all_of(descriptors))


def test_ukb_photos_that_could_not_be_used(tmp_path):
    write(tmp_path, [f"ukbench{number:05}.jpg" for number in range(8)])
    benchmark = evaluators.ukb(tmp_path)
    descriptors = np.repeat(np.eye(2), 4, axis=0)
    assert benchmark.measure(all_of(descriptors))["score"] == 4.0
    # three of a group find three each, the fourth finds none
    assert benchmark.measure(all_of(descriptors, [1]))["score"] == pytest.approx((3 * 3 + 4 * 4) / 8)
    assert benchmark.measure(all_of(descriptors, range(1, 8)))["score"] == pytest.approx(1 / 8)
    assert benchmark.measure(all_of(descriptors, range(8)))["score"] == 0.0


def test_ukb_sample_says_what_can_be_reached(tmp_path):
    write(tmp_path, [f"ukbench{number:05}.jpg" for number in (0, 1, 2, 3, 10196, 10197)])
    benchmark = evaluators.ukb(tmp_path)
    best = benchmark.measure(all_of(np.eye(2)[[0, 0, 0, 0, 1, 1]]))["score"]
    assert best == pytest.approx((4 * 4 + 2 * 2) / 6)
    assert benchmark.warnings[1] == f"1 objects lack photos: the best possible score is {best:.2f}"


def test_views_of_instances_of_different_sizes(tmp_path):
    split = sources.photos(write(tmp_path, [f"{name}-{i}.jpg" for name, n in zip("abcd", (2, 3, 4, 7), strict=True)
                                           for i in range(n)]))  # fmt: skip
    with pytest.raises(ValueError, match="instances are None"):
        evaluators.views(split)
    split = sources.Split(
        split.names, split.read, split.load_labels, instance_of=lambda name: os.path.basename(name)[0]
    )
    benchmark = evaluators.views(split)
    assert benchmark.description.endswith("16 photos of 4 instances")
    groups = np.repeat(np.arange(4), (2, 3, 4, 7))
    perfect = benchmark.measure(all_of(np.eye(4)[groups]))["score"]
    assert perfect == pytest.approx((2 * 2 + 3 * 3 + 11 * 4) / 16)
    at_chance(benchmark, all_of(invented(benchmark, groups=groups)))


def test_in_aug_counts_versions(tmp_path):
    split = sources.photos(write(tmp_path, [f"{i}.jpg" for i in range(6)]))
    benchmark = evaluators.in_aug(split, versions=5)
    assert benchmark.versions == 5
    rows = np.repeat(np.arange(6), 5)
    descriptors = np.random.default_rng(0).normal(size=(6, 16))[rows]
    descriptors += np.random.default_rng(1).normal(0, 0.8, descriptors.shape)
    counts = [np.sum(rows[slow_ranking(descriptors, row, range(30))[:5]] == rows[row]) for row in range(30)]
    assert 2 < np.mean(counts) < 4.9
    assert benchmark.measure(Answers(rows, descriptors)) == {"score": pytest.approx(np.mean(counts))}
    at_chance(benchmark, Answers(rows, descriptors))
    # another photo in the place of an unusable one has ten versions, of which five are nearest
    same = np.repeat([0, 1, 2, 3, 4, 4], 5)
    assert benchmark.measure(Answers(np.sort(same), np.eye(5)[same]))["score"] == 5.0
    assert benchmark.measure(Answers(rows[:15], np.eye(6)[rows[:15]]))["score"] == 2.5
    assert benchmark.measure(Answers(rows[:0], descriptors[:0]))["score"] == 0.0
    with pytest.raises(ValueError, match="at least 2, received 1"):
        evaluators.in_aug(split, versions=1)


# --- Copydays ---


def copydays_folder(folder, copies):
    """The originals 200000, 200100, ... with their numbers of strong copies."""
    write(folder, [f"original/{200000 + 100 * i}.jpg" for i in range(len(copies))])
    return write(folder, [f"strong/{200000 + 100 * i + j + 1}.jpg" for i, n in enumerate(copies) for j in range(n)])


def test_copydays_against_the_slow_form(tmp_path):
    copydays_folder(tmp_path / "set", [1, 2, 1, 3])
    # the archive's other folders hold files of the same names
    write(tmp_path / "set" / "jpeg" / "10", ["200000.jpg", "200100.jpg"])
    write(tmp_path / "others", ["200000.jpg", "a/b.png", "c.jpg", "deep/d/e.jpg", "f.jpg"])
    benchmark = evaluators.copydays(tmp_path / "set", tmp_path / "others")
    assert names_of(benchmark)[:11] == [
        "200000.jpg", "200100.jpg", "200200.jpg", "200300.jpg",
        "200001.jpg", "200101.jpg", "200102.jpg", "200201.jpg", "200301.jpg", "200302.jpg", "200303.jpg",
    ]  # fmt: skip
    assert len(benchmark.photos) == 16
    groups = np.array([0, 1, 2, 3, 0, 1, 1, 2, 3, 3, 3, *range(4, 9)])
    descriptors = invented(benchmark, groups=groups)
    scores = [
        slow_average_precision(
            slow_ranking(descriptors, query, range(4, 16)), {row for row in range(4, 16) if groups[row] == query}
        )
        for query in range(4)
    ]
    assert 0.4 < np.mean(scores) < 0.98
    assert benchmark.measure(all_of(descriptors)) == {"mAP": pytest.approx(np.mean(scores))}
    assert benchmark.description == (
        "Copydays strong: 4 of 157 originals, 7 of 229 strong copies, 5 of 10,000 distractors"
    )
    at_chance(benchmark, all_of(descriptors))


def test_copydays_photos_that_could_not_be_used(tmp_path):
    copydays_folder(tmp_path / "set", [2, 1])
    write(tmp_path / "others", ["a.jpg"])
    benchmark = evaluators.copydays(tmp_path / "set", tmp_path / "others")
    # two originals, their copies, and a distractor nearer to the second than its copy
    descriptors = np.array([[1, 0], [0, 1], [1, 0], [1, 0.1], [0.5, 1], [0, 1]])
    assert benchmark.measure(all_of(descriptors))["mAP"] == pytest.approx((1 + 0.25) / 2)
    assert benchmark.measure(all_of(descriptors, [5]))["mAP"] == 1.0
    assert benchmark.measure(all_of(descriptors, [1]))["mAP"] == pytest.approx(0.5)
    assert benchmark.measure(all_of(descriptors, [2, 4]))["mAP"] == pytest.approx(0.25)
    assert benchmark.measure(all_of(descriptors, [2, 3, 4, 5]))["mAP"] == 0.0


def test_copydays_samples_and_missing_parts(tmp_path):
    copydays_folder(tmp_path, [1, 1])
    write(tmp_path, ["original/200200.jpg", "strong/200301.jpg"])
    benchmark = evaluators.copydays(tmp_path)
    assert names_of(benchmark, benchmark.search.queries) == ["200000.jpg", "200100.jpg"]
    assert "0 of 10,000 distractors" in benchmark.description
    assert benchmark.warnings[1] == "1 strong copies have no original in the folder and are distractors"
    write(tmp_path / "apart", ["original/200000.jpg"])
    with pytest.raises(UserError, match=r"no such folder: .*strong; expected the 229 .* from https://lear"):
        evaluators.copydays(tmp_path / "apart")
    write(tmp_path / "apart", ["strong/200101.jpg"])
    with pytest.raises(UserError, match=r"no copy in .*strong has its original"):
        evaluators.copydays(tmp_path / "apart")
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        evaluators.copydays(tmp_path, tmp_path / "nowhere")


# --- Oxford and Paris revisited ---

MARKS = [
    {"easy": [0, 3], "hard": [1, 7], "junk": [2, 8]},
    {"easy": [], "hard": [4, 5], "junk": []},
    {"easy": [9], "hard": [], "junk": [10, 11]},
    {"easy": [], "hard": [], "junk": [6]},
]


def revisited_folder(folder, name="roxford5k", marks=MARKS, protocol=2, **changes):
    photos = [f"all_souls_{number:06}" for number in range(12)]
    queries = [f"radcliffe_camera_{number:06}" for number in range(len(marks))]
    write(folder / "jpg", [f"{photo}.jpg" for photo in photos + queries])
    as_array = protocol % 2
    truth = {
        "imlist": photos,
        "qimlist": queries,
        "gnd": [
            {"bbx": np.array([1.2, 2.4, 11.7, 7.6]) if as_array else [1.2, 2.4, 11.7, 7.6],
             **{kind: np.array(rows, np.int64) if as_array else rows for kind, rows in entry.items()}}
            for entry in marks
        ],
        **changes,
    }  # fmt: skip
    (folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(truth, protocol))
    return folder


def slow_revisited(descriptors, difficulty):
    """mAP and mP@10 of MARKS, with photos 0 to 11 and queries 12 to 15."""
    kinds = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}[difficulty]
    scores, precisions = [], []
    for query, entry in enumerate(MARKS):
        right = [row for kind in kinds for row in entry[kind]]
        ignored = [row for kind in entry if kind not in kinds for row in entry[kind]]
        if not right:
            continue
        ranking = [row for row in slow_ranking(descriptors, 12 + query, range(12)) if row not in ignored]
        scores.append(slow_average_precision(ranking, right))
        last = max(ranking.index(row) for row in right)
        first = ranking[: min(10, last + 1)]
        precisions.append(sum(row in right for row in first) / len(first))
    return np.mean(scores), np.mean(precisions), len(scores)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_revisited_against_the_slow_form(protocol, tmp_path):
    benchmark = evaluators.revisited(revisited_folder(tmp_path, protocol=protocol))
    assert benchmark.name == "roxford5k"
    assert benchmark.description == "roxford5k, revisited: 12 of 4,993 photos, 4 of 70 queries"
    descriptors = invented(benchmark, seed=3, groups=[0, 0, 0, 0, 1, 1, 3, 0, 0, 2, 2, 2, 0, 1, 2, 3])
    found = benchmark.measure(all_of(descriptors))
    for difficulty, count in (("easy", 2), ("medium", 3), ("hard", 2)):
        average, precision, queries = slow_revisited(descriptors, difficulty)
        assert queries == count
        assert found[f"mAP {difficulty}"] == pytest.approx(average)
        assert found[f"mP@10 {difficulty}"] == pytest.approx(precision)
    assert len(set(found.values())) > 3
    assert names_of(benchmark, benchmark.search.queries) == [f"radcliffe_camera_{i:06}.jpg" for i in range(3)]
    if protocol == 2:
        at_chance(benchmark, all_of(descriptors))


def test_revisited_crops_the_queries_alone(tmp_path):
    benchmark = evaluators.revisited(revisited_folder(tmp_path, "rparis6k"))
    assert benchmark.name == "rparis6k"
    assert seen(benchmark.photos, 11).shape == (16, 24, 3)
    assert corners(seen(benchmark.photos, 11)) == [0, 1, 2, 3]
    # left 1.2, top 2.4, right 11.7, bottom 7.6 lie in the first quarter of the picture
    crop = seen(benchmark.photos, 12)
    assert crop.shape == (8 - 2, 12 - 1, 3)
    assert corners(crop) == [0, 0, 0, 0]
    image = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    np.testing.assert_array_equal(benchmark.photos.adjust(tf.constant(12, tf.int64), image), image[2:8, 1:12])


def test_revisited_boxes_stay_within_the_photo(tmp_path):
    marks = [{"easy": [0], "hard": [], "junk": []}] * 3
    revisited_folder(tmp_path, marks=marks)
    boxes = [[-5, -5, 4, 1e12], [20, 10, 100, 100], [500, 500, 600, 600]]
    truth = pickle.loads((tmp_path / "gnd_roxford5k.pkl").read_bytes())
    for entry, box in zip(truth["gnd"], boxes, strict=True):
        entry["bbx"] = box
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    benchmark = evaluators.revisited(tmp_path)
    assert [seen(benchmark.photos, 12 + query).shape[:2] for query in range(3)] == [(16, 4), (6, 4), (1, 1)]


def test_revisited_by_hand_with_photos_that_could_not_be_used(tmp_path):
    marks = [{"easy": [0, 1], "hard": [2], "junk": [3]}]
    benchmark = evaluators.revisited(revisited_folder(tmp_path, marks=marks))
    # the query's ranking is junk, 0, hard, 4, 1, then the others
    order = [3, 0, 2, 4, 1, 5, 6, 7, 8, 9, 10, 11]
    angles = np.zeros(13)
    angles[order] = np.arange(1, 13) * 0.1
    descriptors = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = benchmark.measure(all_of(descriptors))
    # easy: ranks 0 and 2 of 0, 4, 1, ...; medium: 0, 1 and 3; hard: rank 1 of 4 left after junk, 0 and 1 are out: 0
    assert found["mAP easy"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["mP@10 easy"] == pytest.approx(2 / 3)
    assert found["mAP medium"] == pytest.approx((1 + 1 + (2 / 3 + 3 / 4) / 2) / 3)
    assert found["mP@10 medium"] == pytest.approx(3 / 4)
    assert found["mAP hard"] == found["mP@10 hard"] == 1.0
    # without photo 1: one of two, at rank 0, and one in the first ten
    found = benchmark.measure(all_of(descriptors, [1]))
    assert found["mAP easy"] == pytest.approx(1 / 2)
    assert found["mP@10 easy"] == pytest.approx(1 / 10)
    # without the junk and without a distractor in front, nothing is lost
    assert benchmark.measure(all_of(descriptors, [3, 4]))["mAP medium"] == 1.0
    assert set(benchmark.measure(all_of(descriptors, [12])).values()) == {0.0}


def test_revisited_samples_and_missing_parts(tmp_path):
    revisited_folder(tmp_path)
    (tmp_path / "jpg" / "all_souls_000000.jpg").unlink()
    (tmp_path / "jpg" / "radcliffe_camera_000001.jpg").unlink()
    benchmark = evaluators.revisited(tmp_path)
    assert benchmark.description == "roxford5k, revisited: 11 of 4,993 photos, 3 of 70 queries"
    # photo 0 of the sample is all_souls_000001: the marks follow the photos
    assert names_of(benchmark, benchmark.search.positives[0]) == [f"all_souls_{i:06}.jpg" for i in (1, 3, 7)]
    assert corners(seen(benchmark.photos, 11)) == [0, 0, 0, 0]
    for query in range(4):
        (tmp_path / "jpg" / f"radcliffe_camera_{query:06}.jpg").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"no query in .* has a photo to find; expected the photos of roxford5k"):
        evaluators.revisited(tmp_path)
    (tmp_path / "gnd_roxford5k.pkl").rename(tmp_path / "gnd.pkl")
    with pytest.raises(UserError, match=r"neither gnd_roxford5k.pkl nor gnd_rparis6k.pkl"):
        evaluators.revisited(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": []}, "it has 4 queries and marks for 0"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [12], "hard": [], "junk": []}] * 4}, "photos from 12 to 12"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [-1], "hard": [], "junk": []}] * 4}, "photos from -1 to -1"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [0.5], "hard": [], "junk": []}] * 4}, "received float64"),
        ({"gnd": [{"bbx": [0, 0, 1], "easy": [1], "hard": [], "junk": []}] * 4}, "left < right"),
        ({"gnd": [{"bbx": [5, 0, 1, 1], "easy": [1], "hard": [], "junk": []}] * 4}, "left < right"),
        ({"gnd": [{"bbx": [0, 0, 1, np.nan], "easy": [1], "hard": [], "junk": []}] * 4}, "left < right"),
        ({"gnd": [{"easy": [1], "hard": [], "junk": []}] * 4}, "KeyError.*bbx"),
        ({"imlist": ["a"] * 12}, "names a photo twice"),
        ({"imlist": [1] * 12}, "TypeError"),
        ({"qimlist": None}, "TypeError"),
    ],
)
def test_revisited_ground_truth_that_makes_no_sense(changes, message, tmp_path):
    revisited_folder(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"gnd_roxford5k.pkl is no ground truth of .*protocol: .*{message}"):
        evaluators.revisited(tmp_path)


class Call:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_revisited_runs_nothing_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    revisited_folder(tmp_path, gnd=Call())
    with pytest.raises(UserError, match=r"gnd_roxford5k.pkl names \w+.system"):
        evaluators.revisited(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- copy detection ---


def similarity_folder(folder, lines, queries=6, references=9):
    write(folder, [f"queries/Q{i:05}.jpg" for i in range(queries)])
    write(folder, [f"references/R{i:06}.jpg" for i in range(references)])
    (folder / "ground_truth.csv").write_text("\n".join(lines) + "\n")
    return folder


PAIRS = ["Q00000,R000003", "Q00001,", "Q00002,R000008", "Q00003,R000000", "Q00003,R000001", "Q00005,"]


def slow_answers(descriptors, queries, references, right, k):
    """(cosine, right) of the k nearest references of each query, surest first."""
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    answers = []
    for query in queries:
        nearest = sorted(((float(unit[query] @ unit[row]), row) for row in references), reverse=True)[:k]
        answers += [(cosine, (query, row) in right) for cosine, row in nearest]
    return sorted(answers, reverse=True)


def slow_micro_ap_and_recall(answers, num_positives):
    """µAP and recall at 90 % precision of answers without ties."""
    area, found, recall = 0.0, 0, 0.0
    for count, (_, right) in enumerate(answers, start=1):
        found += right
        area += right * found / count / num_positives
        if found >= 0.9 * count:
            recall = found / num_positives
    return area, recall


@pytest.mark.parametrize("header", [[], ["query_id,reference_id"]])
def test_image_similarity_against_the_slow_form(header, tmp_path):
    benchmark = evaluators.image_similarity(similarity_folder(tmp_path, header + PAIRS, references=12))
    # references 0 to 11, then queries 12 to 17, of which number 16 (Q00004) is in no line
    right = {(12, 3), (14, 8), (15, 0), (15, 1)}
    descriptors = invented(
        benchmark, seed=4, noise=1.0, groups=[0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 3, 12, 8, 0, 0, 13]
    )
    answers = slow_answers(descriptors, (12, 13, 14, 15, 17), range(12), right, 10)
    area, recall = slow_micro_ap_and_recall(answers, 4)
    assert 0.3 < area < 1
    assert recall > 0
    assert benchmark.measure(all_of(descriptors)) == {
        "micro-AP": pytest.approx(area),
        "recall at 90 % precision": pytest.approx(recall),
    }
    assert benchmark.description == "image similarity: 5 of 50,000 queries, 12 of 1,000,000 references, 4 pairs"
    if not header:
        at_chance(benchmark, all_of(descriptors))


def test_image_similarity_photos_that_could_not_be_used(tmp_path):
    benchmark = evaluators.image_similarity(
        similarity_folder(tmp_path, ["Q00000,R000000", "Q00001,R000001", "Q00002,"], queries=3, references=2)
    )
    # references 0 and 1, queries 2 to 4; the query without a reference resembles none
    descriptors = np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0.2, 1, 0], [0, 0, 1.0]])
    measure = benchmark.measure
    assert measure(all_of(descriptors)) == {"micro-AP": 1.0, "recall at 90 % precision": 1.0}
    for without in ([2], [0]):
        assert measure(all_of(descriptors, without)) == {"micro-AP": 0.5, "recall at 90 % precision": 0.5}
    assert measure(all_of(descriptors, [4])) == {"micro-AP": 1.0, "recall at 90 % precision": 1.0}
    for without in ([2, 3, 4], [0, 1], range(5)):
        assert measure(all_of(descriptors, without)) == {"micro-AP": 0.0, "recall at 90 % precision": 0.0}
    # a query without a reference that is surest of all costs precision
    descriptors[4] = [1, 0, 0]
    found = measure(all_of(descriptors))
    assert found["micro-AP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["recall at 90 % precision"] == 0.0


def test_image_similarity_ground_truth(tmp_path):
    similarity_folder(tmp_path, ["Q00000,R000003", "Q00009,R000001", "Q00001,R000009"])
    benchmark = evaluators.image_similarity(tmp_path)
    assert benchmark.warnings[1] == "2 of the 3 pairs of the ground truth lack a photo and are left out"
    for lines, message in (
        (["Q00000,R000003,1"], "line 1 of .* must be query_id,reference_id, received 'Q00000,R000003,1'"),
        (["Q00000,R000003", "Q00001"], "line 2"),
        ([",R000003"], "line 1"),
        (["Q00000,", "Q00001,"], "ties none of the 6 queries to one of the 9 references"),
        (["Q00000.jpg,R000000.jpg"], "ties none .* without extension"),
    ):
        similarity_folder(tmp_path, lines)
        with pytest.raises(UserError, match=message):
            evaluators.image_similarity(tmp_path)
    (tmp_path / "ground_truth.csv").unlink()
    with pytest.raises(UserError, match=r"ground_truth.csv cannot be read: .*dev_queries_groundtruth.csv"):
        evaluators.image_similarity(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty photos, the third of which is broken, each of a colour of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        noise = rng.integers(-30, 31, (24, 32, 3))
        picture = np.clip(rng.integers(40, 216, 3) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    (folder / "02.png").write_bytes(b"no photo")
    return sources.photos(folder)


def test_copies_are_ordinary_photos_made_once(pictures, tmp_path):
    reads = []
    counted = sources.Split(
        pictures.names,
        lambda index: tf.py_function(lambda i: reads.append(int(i)) or pictures.read(i), [index], tf.string),
        lambda: np.arange(40) % 3,
    )
    others = sources.photos(write(tmp_path, ["a.jpg", "b.jpg"]))
    benchmark = evaluators.copies(counted, others, number=20, seed=5)
    # to tell equal ones each is read, since they are no files, and those that are edited once more
    assert len(reads) == 40 + len(set(reads[40:])) <= 40 + 21
    queries = benchmark.search.queries
    assert len(queries) == 20
    assert 2 not in queries
    assert len(benchmark.photos) == 40 + 20 + 2
    again = evaluators.copies(pictures, others, number=20, seed=5)
    # not of all orders alike: another seed draws other photos
    assert set(queries) != set(evaluators.copies(pictures, number=20, seed=6).search.queries)
    kinds = set()
    for query, (copy,) in zip(queries, benchmark.search.positives, strict=True):
        name, kind = benchmark.photos.names[copy].rsplit(" (", 1)
        assert name == pictures.names[query]
        kinds.add(kind.rstrip(")"))
        image = seen(benchmark.photos, copy)
        np.testing.assert_array_equal(image, seen(again.photos, copy))
        assert image.shape != (24, 32, 3) or np.any(image != seen(pictures, query))
        assert benchmark.photos.labels[copy] == query % 3
    assert 3 < len(kinds) <= 8
    assert set(benchmark.photos.labels[60:]) == {-1}
    np.testing.assert_array_equal(seen(benchmark.photos, 61), seen(others, 1))
    np.testing.assert_array_equal(seen(benchmark.photos, 7), seen(pictures, 7))
    assert benchmark.description == "one strong edit of each of 20 photos among 22 others"


def test_copies_against_the_slow_form(pictures):
    benchmark = evaluators.copies(pictures, number=12)
    queries, copies = benchmark.search.queries, np.concatenate(benchmark.search.positives)
    groups = np.arange(52)
    groups[copies] = queries
    descriptors = invented(benchmark, seed=1, groups=groups, noise=0.8)
    database = [row for row in range(52) if row not in queries]
    np.testing.assert_array_equal(benchmark.search.database, database)
    scores = [
        slow_average_precision(slow_ranking(descriptors, query, database), [copy])
        for query, copy in zip(queries, copies, strict=True)
    ]
    answers = slow_answers(descriptors, queries, database, set(zip(queries, copies, strict=True)), 10)
    area, recall = slow_micro_ap_and_recall(answers, 12)
    found = benchmark.measure(all_of(descriptors))
    assert 0.2 < np.mean(scores) < 0.98
    assert found["mAP"] == pytest.approx(np.mean(scores))
    assert found["micro-AP"] == pytest.approx(area)
    assert found["recall at 90 % precision"] == pytest.approx(recall)
    kinds = np.array([benchmark.photos.names[copy].rsplit(" (", 1)[1].rstrip(")") for copy in copies])
    for kind in set(kinds):
        assert found[f"mAP {kind}"] == pytest.approx(np.mean(np.array(scores)[kinds == kind]))
    assert len(found) == 3 + len(set(kinds))
    at_chance(benchmark, all_of(descriptors), ["mAP", "micro-AP"])
    # unusable: the broken photo, an original, a copy
    without = [2, queries[0], copies[1]]
    assert benchmark.measure(all_of(np.eye(52)[groups] + 0.01, without))["mAP"] == pytest.approx(10 / 12)


@pytest.mark.parametrize("as_files", [True, False])
@pytest.mark.parametrize("among_distractors", [True, False])
def test_photos_that_equal_an_original_are_no_mistakes(pictures, tmp_path, among_distractors, as_files):
    for number in range(12):
        data = tf.io.read_file(pictures.files[number + 3]).numpy()
        for folder in ("once", "again") if among_distractors else ("once", "once/again"):
            write(tmp_path / folder, [f"{number:02}.png"], data)
    album = sources.photos(tmp_path / "once")
    if not as_files:
        album = dataclasses.replace(album, files=None)
    benchmark = evaluators.copies(album, sources.photos(tmp_path / "again") if among_distractors else None)
    search = benchmark.search
    assert len(search.queries) == 12
    # equal photos get equal descriptors
    groups = np.r_[np.arange(12), np.arange(12)]
    groups = np.r_[groups[: len(album)], groups[search.queries], groups[len(album) :]]
    perfect = benchmark.measure(all_of(np.eye(12)[groups]))
    assert set(perfect.values()) == {1.0}
    for query, ignored in zip(search.queries, search.ignored, strict=True):
        (equal,) = ignored
        assert equal != query
        np.testing.assert_array_equal(seen(benchmark.photos, equal), seen(benchmark.photos, query))
    at_chance(benchmark, all_of(invented(benchmark, groups=groups)), ["mAP", "micro-AP"])


def test_the_names_of_copies_need_not_be_utf_8(pictures):
    def read(index):
        if int(index) == 2:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return pictures.read(index)

    benchmark = evaluators.copies(dataclasses.replace(pictures, read=read, files=None))
    assert sorted(benchmark.search.queries) == [row for row in range(40) if row != 2]


def test_large_originals_are_reduced_before_they_are_edited(tmp_path, capfd):
    rng = np.random.default_rng(0)
    for name, size in (("large.png", (1600, 1200)), ("small.png", (700, 512))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / name)
    split = sources.photos(tmp_path)

    def areas(**options):
        benchmark = evaluators.copies(split, seed=3, **options)
        pairs = zip(benchmark.search.queries, benchmark.search.positives, strict=True)
        return {int(query): np.prod(seen(benchmark.photos, copy).shape[:2]) for query, (copy,) in pairs}

    whole, at_300, at_64 = areas(), areas(largest_resolution=300), areas(largest_resolution=64)
    # the edits keep the same share of a picture's area, whatever that is
    assert at_300[0] / whole[0] == pytest.approx((600 / 1200) ** 2, rel=0.01)
    assert at_64[0] / whole[0] == pytest.approx((512 / 1200) ** 2, rel=0.01)
    assert whole[1] == at_300[1] == at_64[1]
    assert "2/2 photos" in capfd.readouterr().err


def test_copies_follow_what_the_split_adjusts(tmp_path):
    write(tmp_path / "set", ["100000.jpg"], photo(160, 240))
    write(tmp_path / "set", ["100001.jpg"], photo(160, 240, quality=90))
    (tmp_path / "turns.txt").write_text("100001.jpg 90\n")
    turned = evaluators.holidays(tmp_path / "set", tmp_path / "turns.txt").photos
    benchmark = evaluators.copies(turned, sources.photos(tmp_path / "set"), seed=2)
    assert sorted(benchmark.search.queries) == [0, 1]
    assert [seen(benchmark.photos, row).shape for row in (0, 1, 4, 5)] == [
        (160, 240, 3), (240, 160, 3), (160, 240, 3), (160, 240, 3),
    ]  # fmt: skip
    assert corners(seen(benchmark.photos, 1)) == [2, 0, 3, 1]
    # neither of these edits turns a picture
    for query, (copy,) in zip(benchmark.search.queries, benchmark.search.positives, strict=True):
        tall = seen(benchmark.photos, copy).shape[0] > seen(benchmark.photos, copy).shape[1]
        assert tall == (query == 1), benchmark.photos.names[copy]


def test_copies_of_nothing(pictures):
    with pytest.raises(ValueError, match="at least 1, received 0"):
        evaluators.copies(pictures, number=0)
    with pytest.raises(UserError, match="none of the 1 photos"):
        evaluators.copies(pictures.subset([2]))
    alone = evaluators.copies(pictures.subset([3]))
    assert set(alone.measure(all_of(np.ones((2, 4)))).values()) == {1.0}
