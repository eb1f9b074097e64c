"""Finding edited copies: of any photos, and as in the Image Similarity Challenge."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras.data.images import UNREADABLE, decode
from mg_keras.data.leaks import equal_photos
from mg_keras.data.sources import Split
from mg_keras.errors import UserError
from mg_keras.evaluation.copies import strong_edit
from mg_keras.evaluation.evaluators.contract import (
    Answers,
    Benchmark,
    Found,
    Search,
    find,
    joined,
    photos_by_stem,
    sizes,
)
from mg_keras.evaluation.metrics import (
    chance_micro_average_precision,
    micro_average_precision,
    recall_at_precision,
)
from mg_keras.files import in_home
from mg_keras.progress import Progress

# pixels; photos whose smaller side is no longer are edited as they are, whatever resolutions are measured
_SMALLEST_SIDE = 512
# the challenge takes ten answers for each query
_CANDIDATES = 10
_ORIGIN = "the Image Similarity Challenge (DISC21), https://ai.meta.com/datasets/disc21-dataset/"
_PUBLISHED = {"queries": 50_000, "references": 1_000_000}


def copies(
    split: Split,
    distractors: Split | None = None,
    number: int = 150,
    seed: int = 0,
    largest_resolution: int | None = None,
) -> Benchmark:
    """Copy detection as on Copydays, with strong edits made of any photos.

    Up to `number` photos of a split get one strong edit each (`mg_keras.evaluation.copies.strong_edit`). The originals
    are the queries; the database holds the copies, the split's other photos and the distractors. Scores: `mAP`
    (trapezoid form), `micro-AP` and `recall at 90 % precision` over the ten nearest of each query, and `mAP EDIT` over
    the copies made by each edit. Photos equal to an original byte for byte are none of these themselves, and are left
    out of its answers: they would rank before its copy, and are no mistake.

    A photo that can't be decoded is not edited. Of the others, one that could not be used scores 0 as an original,
    counts as not found as a copy, and is absent otherwise. The edits are made once, here, and held in memory as PNG
    files, so that they are ordinary photos at every resolution. A large photo is reduced before.

    Args:
        split: the photos.
        distractors: photos to hide the copies among; None: the split's other photos alone.
        number: how many originals at most, at least 1; Copydays has 157.
        seed: of the choice of originals and of their edits.
        largest_resolution: pixels, the largest that will be measured: an original whose smaller side is more than twice
            that, and more than 512, is reduced to the larger of the two before it is edited. None: none is reduced.

    Returns:
        A benchmark whose `photos` are the split's, then the copies, then the distractors, and whose `search` says which
        are the originals and which photo is the copy of each.

    Raises:
        ValueError: `number` is below 1.
        UserError: no photo of the split can be used.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, received {number}")
    splits = [split] if distractors is None else [split, distractors]
    equals = {int(row): group for group in equal_photos(splits) for row in group}
    smallest_side = max(2 * largest_resolution, _SMALLEST_SIDE) if largest_resolution else math.inf
    originals, kinds, files, done = [], [], [], set()
    with Progress("edited copies", min(number, len(split)), "photos") as progress:
        for row in np.random.default_rng(seed).permutation(len(split)):
            if len(originals) == number:
                break
            if row in done:
                continue
            index = tf.constant(row, tf.int64)
            try:
                photo = decode(split.read(index))
            except UNREADABLE:
                continue
            photo = split.adjust(index, photo) if split.adjust else photo
            kind, copy = strong_edit(_reduced(photo.numpy(), smallest_side), [seed, int(row)])
            file = io.BytesIO()
            Image.fromarray(copy).save(file, "PNG")
            originals.append(row)
            kinds.append(kind)
            files.append(file.getvalue())
            done.update(equals.get(int(row), ()))
            progress.advance()
    if not originals:
        raise UserError(f"none of the {len(split):,} photos to make copies of can be used")
    kinds, queries = np.array(kinds), np.array(originals)
    table = tf.constant(files, tf.string)
    edited = Split(
        [f"{split.names[row]} ({kind})" for row, kind in zip(originals, kinds, strict=True)],
        lambda index: table[index],
        lambda: split.labels[queries],
    )
    parts = [split, edited]
    if distractors is not None:
        # their labels, if any, are numbers of other classes
        parts.append(dataclasses.replace(distractors, load_labels=lambda: np.full(len(distractors), -1)))
    photos = joined(*parts)
    made = len(split) + np.arange(len(queries))

    def ignored(query):
        """The numbers in `photos` of what equals an original."""
        others = np.array([row for row in equals.get(int(query), ()) if row != query], np.int64)
        return np.where(others < len(split), others, others + len(queries))

    search = Search(
        queries,
        np.setdiff1d(np.arange(len(photos)), queries),
        positives=list(made[:, None]),
        ignored=[ignored(query) for query in queries],
    )
    every = {"mAP": np.arange(len(queries))}
    every.update({f"mAP {kind}": np.flatnonzero(kinds == kind) for kind in np.unique(kinds)})

    def measure(answers: Answers) -> dict[str, float]:
        found = find(answers, search.queries, search.database)
        scores = {name: found.average_precision(chosen, search) for name, chosen in every.items()}
        return scores | _answer_scores(found, search.positives, search.ignored)

    chance = search.chance()
    sizes_without = len(search.database) - np.array([len(left_out) for left_out in search.ignored])
    others = len(photos) - 2 * len(queries)
    return Benchmark(
        "copies",
        f"one strong edit of each of {len(queries):,} photos among {others:,} others",
        photos,
        measure,
        dict.fromkeys(every, chance) | _answer_chance(search.positives, sizes_without),
        search=search,
    )


def image_similarity(folder: str | Path) -> Benchmark:
    """Copy detection as in the Image Similarity Challenge: `micro-AP` and `recall at 90 % precision`.

    Each query's answers are its ten nearest references, with the cosine as the score, so that a query with no reference
    costs precision where its answers score high. A query that could not be used gives no answers; what there was to
    find for it, or for a reference that could not be used, counts as not found.

    Args:
        folder: holds `queries/`, `references/` and `ground_truth.csv`, with a line `query_id,reference_id` for each
            pair, or with an empty reference for a query that has none; a header line is passed over. Ids are file names
            without extension. Queries without a line are left out.

    Raises:
        UserError: a part is missing, the file can't be read, or it ties no query to a reference in the folder.
    """
    folder = in_home(folder)
    queries, query_rows = photos_by_stem(folder / "queries", f"the queries of {_ORIGIN}, such as queries/Q00000.jpg")
    references, reference_rows = photos_by_stem(
        folder / "references", f"the references of {_ORIGIN}, such as references/R000000.jpg"
    )
    pairs = _read_pairs(folder / "ground_truth.csv")
    asked = [query for query in pairs if query in query_rows]
    positives = [
        np.array(sorted(reference_rows[name] for name in pairs[query] if name in reference_rows), np.int64)
        for query in asked
    ]
    found, named = sum(map(len, positives)), sum(map(len, pairs.values()))
    if not found:
        raise UserError(
            f"{folder / 'ground_truth.csv'} ties none of the {len(queries):,} queries to one of the "
            f"{len(references):,} references: its ids must be their file names without extension"
        )
    words, warnings = sizes({"queries": len(asked), "references": len(references)}, _PUBLISHED)
    if found < named:
        warnings += (f"{named - found:,} of the {named:,} pairs of the ground truth lack a photo and are left out",)
    chosen = np.array([len(references) + query_rows[query] for query in asked])
    database = np.arange(len(references))

    def measure(answers: Answers) -> dict[str, float]:
        nothing = [np.zeros(0, np.int64)] * len(chosen)
        return _answer_scores(find(answers, chosen, database, _CANDIDATES), positives, nothing)

    return Benchmark(
        "image_similarity",
        f"image similarity: {words}, {found:,} pairs",
        joined(references, queries),
        measure,
        _answer_chance(positives, len(database)),
        warnings=warnings,
    )


def _read_pairs(path):
    """{query: set of references} of a ground truth, in the order of the file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[word.strip() for word in line] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the ground truth {path} cannot be read: {error}; expected a line query_id,reference_id for each pair, "
            f"such as dev_queries_groundtruth.csv of {_ORIGIN}"
        ) from None
    pairs = {}
    for count, line in enumerate(lines, start=1):
        if not any(line) or (count == 1 and line == ["query_id", "reference_id"]):
            continue
        if len(line) != 2 or not line[0]:
            raise UserError(f"line {count} of {path} must be query_id,reference_id, received {','.join(line)!r}")
        pairs.setdefault(line[0], set()).update(filter(None, line[1:]))
    return pairs


def _answer_scores(found: Found, positives, ignored) -> dict[str, float]:
    """The scores of the nearest few of all queries in one list, without those ignored."""
    similarities, right = [], []
    for ranking, cosines, own, left_out in zip(found.rankings, found.similarities, positives, ignored, strict=True):
        kept = np.flatnonzero(~np.isin(ranking, found.place_of[left_out]))[:_CANDIDATES]
        similarities.append(cosines[kept])
        right.append(np.isin(ranking[kept], found.place_of[own]))
    answers = np.concatenate(similarities), np.concatenate(right), sum(map(len, positives))
    return {
        "micro-AP": micro_average_precision(*answers),
        "recall at 90 % precision": recall_at_precision(*answers, 0.9),
    }


def _answer_chance(positives, database_sizes):
    counts = [len(own) for own in positives]
    answers = min(_CANDIDATES, np.min(database_sizes))
    return {"micro-AP": chance_micro_average_precision(counts, database_sizes, answers)}


def _reduced(photo, smallest_side):
    """A photo uint8 [H, W, 3] whose smaller side is at most so many pixels."""
    height, width = photo.shape[:2]
    factor = smallest_side / min(height, width)
    if factor >= 1:
        return photo
    size = round(factor * width), round(factor * height)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
