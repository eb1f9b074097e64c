"""mAP of finding an instance again: INRIA Holidays, Copydays, Oxford and Paris revisited (Table 3 and beyond)."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras import safe_pickle
from mg_keras.data import sources
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators.contract import (
    Answers,
    Benchmark,
    Search,
    find,
    joined,
    mean_average_precision_of,
    photos_by_stem,
    sizes,
)
from mg_keras.evaluation.metrics import chance_precision_at, precision_at
from mg_keras.files import in_home

_INRIA = "https://lear.inrialpes.fr/people/jegou/data.php"
_HOLIDAYS = f"the 1,491 photos of INRIA Holidays, 100000.jpg, 100001.jpg and on, from {_INRIA}"
_HOLIDAYS_PUBLISHED = {"photos": 1491, "queries": 500}
_COPYDAYS = {
    "original": f"the 157 originals of INRIA Copydays, original/200000.jpg and on, from {_INRIA}",
    "strong": f"the 229 strongly edited copies of INRIA Copydays, strong/200001.jpg and on, from {_INRIA}",
}
_COPYDAYS_PUBLISHED = {"originals": 157, "strong copies": 229, "distractors": 10_000}
_REVISITED_PUBLISHED = {
    "roxford5k": {"photos": 4993, "queries": 70},
    "rparis6k": {"photos": 6322, "queries": 70},
}
_PRECISION_AT = 10
# difficulty -> which lists of the ground truth are right, which are taken out of the ranking
_DIFFICULTIES = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


def holidays(folder: str | Path, rotations: str | Path | None = None) -> Benchmark:
    """INRIA Holidays: mAP of finding the other photos of a query's group (`mAP`, trapezoid form).

    Photos are in groups by file number // 100, the multiples of 100 are the queries, and a query is left out of its own
    ranking. A photo that could not be used scores 0 as a query and counts as not found as a positive. Queries whose
    group has no other photo in the folder are not asked.

    Args:
        folder: holds `100000.jpg` and so on, at any depth (the archives have them in `jpg/`).
        rotations: text file that turns photos upright, a line `NAME DEGREES` each (`100301.jpg 90`): clockwise, in
            multiples of 90; `#` starts a comment. The turn comes on top of a JPEG's EXIF orientation, which is always
            applied. None turns nothing.

    Raises:
        UserError: no such folder, no query with a positive in it, or a line of `rotations` that can't be read.
    """
    split, numbers = photos_by_stem(Path(folder), _HOLIDAYS, r"(\d{6})")
    groups = np.array([int(number) // 100 for number in numbers])
    asked = np.array([int(number) % 100 == 0 for number in numbers])
    queries, positives = [], []
    for query in np.flatnonzero(asked):
        others = np.flatnonzero(groups == groups[query])
        if len(others) > 1:
            queries.append(query)
            positives.append(others[others != query])
    if not queries:
        raise UserError(f"no query (a number that ends in 00) with another photo of its group; expected {_HOLIDAYS}")
    queries = np.array(queries)
    words, warnings = sizes({"photos": len(split), "queries": len(queries)}, _HOLIDAYS_PUBLISHED)
    if rotations is not None:
        turns, notes = _read_rotations(in_home(rotations), numbers)
        turned_twice = [name for name, turn in zip(split.names, turns, strict=True) if turn and _has_orientation(name)]
        if turned_twice:
            notes += (
                f"{len(turned_twice):,} of the rotated photos also have an EXIF orientation, which is applied first, "
                f"such as {turned_twice[0]}: make sure that the list means photos turned by it",
            )
        warnings += notes
        split = dataclasses.replace(split, adjust=_turning(turns))
    search = Search(queries, np.arange(len(split)), positives, ignored=queries[:, None])
    return _searched("holidays", f"INRIA Holidays: {words}", split, search, warnings)


def _searched(name, description, photos, search, warnings):
    """A benchmark whose one measure is the mean average precision of its search."""
    measure, chance = mean_average_precision_of(search), {"mAP": search.chance()}
    return Benchmark(name, description, photos, measure, chance, warnings=warnings, search=search)


def _read_rotations(path, numbers):
    """Quarter turns, clockwise, of each photo that `numbers` names; and a warning about names that are no photo."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the rotations {path} cannot be read: {error}") from None
    turns, elsewhere, seen = np.zeros(len(numbers), np.int32), [], set()
    for count, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"line {count} of {path}"
        try:
            name, degrees = words[0], int(words[1])
        except (ValueError, IndexError):
            name, degrees = "", 1
        if len(words) != 2 or degrees % 90:
            raise UserError(f"{where} must be NAME DEGREES, in multiples of 90, received {line.strip()!r}")
        stem = Path(name).stem
        if stem in seen:
            raise UserError(f"{where} names {name} a second time")
        seen.add(stem)
        if stem in numbers:
            turns[numbers[stem]] = degrees // 90 % 4
        else:
            elsewhere.append(name)
    if not elsewhere:
        return turns, ()
    return turns, (f"{len(elsewhere):,} of the {len(seen):,} rotations name no photo here, such as {elsewhere[0]}",)


def _has_orientation(path):
    try:
        with Image.open(path) as photo:
            return photo.getexif().get(0x0112, 1) != 1
    except Exception:  # Pillow raises many types; a photo that can't be read is reported where it is embedded
        return False


def _turning(turns):
    table = tf.constant(turns, tf.int32)
    # rot90 counts counter-clockwise
    return lambda index, image: tf.ensure_shape(tf.image.rot90(image, -table[index] % 4), [None, None, 3])


def copydays(folder: str | Path, distractors: str | Path | None = None) -> Benchmark:
    """Copydays "strong": mAP of finding the strongly edited copies of each original (`mAP`, trapezoid form).

    The originals are the queries and not in the database, which holds the copies and the distractors. A photo that
    could not be used scores 0 as an original, counts as not found as a copy, and is absent as a distractor. Originals
    of which the folder has no copy are not asked.

    Args:
        folder: holds `original/` (157 photos) and `strong/` (229); file number // 100 ties a copy to its original.
        distractors: folder of any photos, at any depth; the paper takes 10 000 of YFCC100M. None: no distractors.

    Raises:
        UserError: a folder is missing or has no such photos, or no copy has its original.
    """
    folder = Path(folder)
    originals, original_numbers = photos_by_stem(folder / "original", _COPYDAYS["original"], r"(\d{6})")
    copies, copy_numbers = photos_by_stem(folder / "strong", _COPYDAYS["strong"], r"(\d{6})")
    copy_of = np.array([int(number) // 100 for number in copy_numbers])
    parts, queries, positives = [originals, copies], [], []
    for number, query in original_numbers.items():
        right = np.flatnonzero(copy_of == int(number) // 100)
        if len(right):
            queries.append(query)
            positives.append(len(originals) + right)
    if not queries:
        raise UserError(f"no copy in {folder / 'strong'} has its original; expected {_COPYDAYS['strong']}")
    if distractors is not None:
        parts.append(sources.photos(distractors))
    photos = joined(*parts)
    count = len(photos) - len(originals) - len(copies)
    words, warnings = sizes(
        {"originals": len(queries), "strong copies": len(copies), "distractors": count}, _COPYDAYS_PUBLISHED
    )
    astray = len(copies) - sum(len(right) for right in positives)
    if astray:
        warnings += (f"{astray:,} strong copies have no original in the folder and are distractors",)
    database = np.arange(len(originals), len(photos))
    search = Search(np.array(queries), database, positives, ignored=[np.zeros(0, np.int64)] * len(queries))
    return _searched("copydays", f"Copydays strong: {words}", photos, search, warnings)


def revisited(folder: str | Path) -> Benchmark:
    """Oxford and Paris revisited: mAP and precision at 10, easy, medium and hard (`mAP medium`, `mP@10 hard`, ...).

    Radenović et al., *Revisiting Oxford and Paris*, CVPR 2018. Easy: photos marked easy are right, hard and junk ones
    are ignored. Medium: easy and hard are right, junk is ignored. Hard: hard is right, easy and junk are ignored. A
    query without a right photo is left out of that difficulty. Queries are cropped to their box and not in the
    database. A photo that could not be used scores 0 as a query and counts as not found as a positive; one that is
    ignored or a distractor is absent.

    Args:
        folder: holds `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, and the photos in `jpg/`, at any depth. The .pkl is
            read by `mg_keras.safe_pickle`, which runs nothing of it.

    Returns:
        A benchmark named after the set, `roxford5k` or `rparis6k`. Its `search` is the medium one.

    Raises:
        UserError: the ground truth is missing or not of this protocol, or no query with a positive is in the folder.
    """
    folder = in_home(folder)
    paths = {name: folder / f"gnd_{name}.pkl" for name in _REVISITED_PUBLISHED}
    name = next((name for name, path in paths.items() if path.is_file()), None)
    if name is None:
        raise UserError(
            f"neither {' nor '.join(path.name for path in paths.values())} in {folder}; expected the ground truth from "
            "http://cmp.felk.cvut.cz/revisitop, and beside it the photos in jpg/"
        )
    truth = _GroundTruth.read(paths[name])
    expected = (
        f"the photos of {name} in jpg/, named as in {paths[name].name}; http://cmp.felk.cvut.cz/revisitop says where "
        "they come from"
    )
    photos, row_of = photos_by_stem(folder / "jpg", expected)
    # a photo's number in the benchmark; -1 where the folder does not have it
    there = np.array([stem in row_of for stem in truth.photos], bool)
    number_of = np.where(there, np.cumsum(there) - 1, -1)
    asked = [query for query, stem in enumerate(truth.queries) if stem in row_of]
    rows = [row_of[stem] for stem in truth.photos if stem in row_of] + [row_of[truth.queries[q]] for q in asked]
    split = dataclasses.replace(
        photos.subset(rows), adjust=_cropping(there.sum(), [truth.boxes[query] for query in asked])
    )

    def numbers(query, kinds):
        found = number_of[np.concatenate([truth.marked[query][kind] for kind in kinds])]
        return np.unique(found[found >= 0])

    searches, database = {}, np.arange(there.sum())
    for difficulty, (right, ignored) in _DIFFICULTIES.items():
        positives = [numbers(query, right) for query in asked]
        chosen = [place for place, found in enumerate(positives) if len(found)]
        if chosen:
            searches[difficulty] = Search(
                len(database) + np.array(chosen),
                database,
                [positives[place] for place in chosen],
                [np.setdiff1d(numbers(asked[place], ignored), positives[place]) for place in chosen],
            )
    if not searches:
        raise UserError(f"no query in {folder / 'jpg'} has a photo to find; expected {expected}")
    words, warnings = sizes({"photos": len(database), "queries": len(asked)}, _REVISITED_PUBLISHED[name])
    return Benchmark(
        name,
        f"{name}, revisited: {words}",
        split,
        lambda answers: _by_difficulty(answers, searches),
        _chance_by_difficulty(searches),
        warnings=warnings,
        search=searches.get("medium"),
    )


def _by_difficulty(answers: Answers, searches):
    queries = np.unique(np.concatenate([search.queries for search in searches.values()]))
    # what is found does not depend on the difficulty, so it is searched for once
    every = find(answers, queries, next(iter(searches.values())).database)
    scores = {}
    for difficulty, search in searches.items():
        places = np.searchsorted(queries, search.queries)
        found = dataclasses.replace(
            every,
            rankings=[every.rankings[place] for place in places],
            similarities=[every.similarities[place] for place in places],
        )
        scores[f"mAP {difficulty}"] = found.average_precision(range(len(places)), search)
        precisions = [
            precision_at(found.ranks(query, search), len(right), _PRECISION_AT)
            for query, right in enumerate(search.positives)
        ]
        scores[f"mP@{_PRECISION_AT} {difficulty}"] = float(np.mean(precisions))
    return scores


def _chance_by_difficulty(searches):
    chance = {}
    for difficulty, search in searches.items():
        chance[f"mAP {difficulty}"] = search.chance()
        precisions = [
            chance_precision_at(len(right), len(search.database) - len(left_out), _PRECISION_AT)
            for right, left_out in zip(search.positives, search.ignored, strict=True)
        ]
        chance[f"mP@{_PRECISION_AT} {difficulty}"] = float(np.mean(precisions))
    return chance


def _cropping(count, boxes):
    """Crops the photos after the first `count` to their boxes (left, top, right, bottom), a pixel of each at least."""
    largest = 1 << 30
    table = np.concatenate([np.tile([0, 0, largest, largest], (count, 1)), np.reshape(boxes, (-1, 4))])
    table = tf.constant(np.clip(np.round(table), 0, largest), tf.int32)

    def adjust(index, image):
        left, top, right, bottom = tf.unstack(table[index])
        height, width = tf.unstack(tf.shape(image)[:2])
        left, top = tf.clip_by_value(left, 0, width - 1), tf.clip_by_value(top, 0, height - 1)
        return image[top : tf.maximum(bottom, top + 1), left : tf.maximum(right, left + 1)]

    return adjust


@dataclasses.dataclass(frozen=True)
class _GroundTruth:
    """The ground truth of a revisited set: names without extension, boxes in pixels, and numbers of `photos`."""

    photos: Sequence[str]
    queries: Sequence[str]
    boxes: Sequence[np.ndarray]
    marked: Sequence[dict[str, np.ndarray]]

    @classmethod
    def read(cls, path):
        content = safe_pickle.load_file(path)
        try:
            photos, queries = ([os.fspath(name) for name in content[key]] for key in ("imlist", "qimlist"))
            boxes = [np.asarray(entry["bbx"], np.float64) for entry in content["gnd"]]
            marked = [{kind: _numbers(entry[kind]) for kind in ("easy", "hard", "junk")} for entry in content["gnd"]]
        except (TypeError, KeyError, ValueError, IndexError) as error:
            raise UserError(f"{path} is no ground truth of the revisited protocol: {error!r}") from None
        every = np.concatenate([found for kinds in marked for found in kinds.values()]) if marked else np.zeros(0)
        problem = None
        if len(queries) != len(marked):
            problem = f"it has {len(queries):,} queries and marks for {len(marked):,}"
        elif len(set(photos)) < len(photos):
            problem = "it names a photo twice"
        elif len(every) and not 0 <= every.min() <= every.max() < len(photos):
            problem = f"it marks photos from {every.min()} to {every.max()}, and there are {len(photos):,}"
        elif any(box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any() for box in boxes):
            problem = "a box (bbx) must be left, top, right and bottom, left < right and top < bottom"
        if problem:
            raise UserError(f"{path} is no ground truth of the revisited protocol: {problem}")
        return cls(photos, queries, boxes, marked)


def _numbers(values):
    found = np.asarray(values)
    if found.size and (found.ndim != 1 or not np.issubdtype(found.dtype, np.integer)):
        raise ValueError(f"photos must be marked by a list of their numbers, received {found.dtype} {found.shape}")
    return found.astype(np.int64).reshape(-1)
