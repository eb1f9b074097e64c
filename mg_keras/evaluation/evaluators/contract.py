"""What every benchmark is: photos to describe, and a function from what a network says of them to scores."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data import sources
from mg_keras.data.sources import Split
from mg_keras.errors import UserError
from mg_keras.evaluation.metrics import chance_average_precision, mean_average_precision, positive_ranks
from mg_keras.evaluation.search import nearest


@dataclass(frozen=True)
class Answers:
    """What a network says of a benchmark's photos.

    Attributes:
        rows: int64 [n], the photos' numbers in `Benchmark.photos`; those of photos that could not be used are missing.
            In a benchmark of augmented versions, a photo's number stands once for each version.
        descriptors: float [n, D], compared by cosine.
        logits: float [n, C], or None where the benchmark doesn't need them.

    Raises:
        ValueError: arrays of different lengths.
    """

    rows: np.ndarray
    descriptors: np.ndarray
    logits: np.ndarray | None = None

    def __post_init__(self):
        for name in ("descriptors", "logits"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.rows):
                raise ValueError(
                    f"{name} must hold one row for each of the {len(self.rows)} rows, received {len(values)}"
                )


@dataclass(frozen=True)
class Search:
    """Which photos are searched for in which, all by their numbers in `Benchmark.photos`.

    Attributes:
        queries: int64 [Q], each once.
        database: int64 [N], each once; it may hold the queries.
        positives: for each query, int64 numbers of the photos of the database that are right, at least one.
        ignored: for each query, int64 numbers of the photos of the database that are taken out of its ranking.
    """

    queries: np.ndarray
    database: np.ndarray
    positives: Sequence[np.ndarray]
    ignored: Sequence[np.ndarray]

    def chance(self) -> float:
        """The mAP of rankings in random order."""
        return float(
            np.mean(
                [
                    chance_average_precision(len(right), len(self.database) - len(left_out))
                    for right, left_out in zip(self.positives, self.ignored, strict=True)
                ]
            )
        )


@dataclass(frozen=True)
class Benchmark:
    """Photos, and the scores of what a network says of them.

    A photo that could not be used (its number is not in `Answers.rows`) counts as not found: as a query it scores 0, as
    a positive it still counts among those that there are to find, as a distractor it is just absent.

    Attributes:
        name: what to call it in tables and files.
        description: a line on what is measured, and on how many photos.
        photos: the photos to describe, queries and database alike.
        measure: `Answers` -> {metric: value}. Accuracies, mAP and the like are shares, 0 to 1; a `score` is a mean
            number of photos.
        chance: {metric: value} of a network that knows nothing; metrics without a formula for it are missing.
        versions: how many augmented versions of each photo are described; 0: the photo itself.
        needs_logits: whether `measure` reads `Answers.logits`.
        warnings: what keeps the scores from being those of the published set, a sentence each.
        search: which photos are searched for in which, for a picture of what was found; None where it's not a search.
    """

    name: str
    description: str
    photos: Split
    measure: Callable[[Answers], dict[str, float]]
    chance: Mapping[str, float]
    versions: int = 0
    needs_logits: bool = False
    warnings: tuple[str, ...] = ()
    search: Search | None = None


@dataclass(frozen=True)
class Found:
    """What a search found, the photos of the database known by places of their own.

    Attributes:
        rankings: for each query, int64 [k] places, nearest first; empty for a query that could not be used.
        similarities: for each query, float32 [k] cosines.
        place_of: int64, number of a photo of the database -> its place. Photos that could not be used have places that
            no ranking holds.
    """

    rankings: list[np.ndarray]
    similarities: list[np.ndarray]
    place_of: np.ndarray

    def ranks(self, query: int, search: Search) -> np.ndarray:
        """Ranks from 0 of the right photos that query number `query` (0 to Q - 1) found, the ignored ones left out."""
        return positive_ranks(
            self.rankings[query], self.place_of[search.positives[query]], self.place_of[search.ignored[query]]
        )

    def average_precision(self, chosen: Iterable[int], search: Search) -> float:
        """The mAP over the queries numbered `chosen` (0 to Q - 1), at least one."""
        chosen = list(chosen)
        return mean_average_precision(
            [self.rankings[query] for query in chosen],
            [self.place_of[search.positives[query]] for query in chosen],
            [self.place_of[search.ignored[query]] for query in chosen],
        )


def find(answers: Answers, queries: np.ndarray, database: np.ndarray, k: int | None = None) -> Found:
    """Search the usable photos of `database` for each of `queries`, exactly.

    Args:
        answers: `Answers`.
        queries: int64 [Q], numbers of photos.
        database: int64 [N], numbers of photos.
        k: how many neighbours at most; None ranks the whole database.
    """
    usable, rows = _usable(answers, queries), _usable(answers, database)
    there = rows >= 0
    place_of = np.full(database.max(initial=-1) + 1, -1)
    place_of[np.concatenate([database[there], database[~there]])] = np.arange(len(database))
    rankings = [np.zeros(0, np.int64)] * len(queries)
    similarities = [np.zeros(0, np.float32)] * len(queries)
    if there.any():
        width = min(k or there.sum(), there.sum())
        cosines, places = nearest(
            answers.descriptors[usable[usable >= 0]], answers.descriptors[rows[there]], int(width)
        )
        for query, cosine, place in zip(np.flatnonzero(usable >= 0), cosines, places, strict=True):
            rankings[query], similarities[query] = place, cosine
    return Found(rankings, similarities, place_of)


def _usable(answers, photos):
    """Where in `answers` each photo stands; -1 for those that could not be used."""
    place = np.full(max(answers.rows.max(initial=-1), photos.max(initial=-1)) + 1, -1)
    place[answers.rows] = np.arange(len(answers.rows))
    return place[photos]


def mean_average_precision_of(search: Search) -> Callable[[Answers], dict[str, float]]:
    """The measure of a benchmark whose one score is the mAP of a search."""

    def measure(answers):
        found = find(answers, search.queries, search.database)
        return {"mAP": found.average_precision(range(len(search.queries)), search)}

    return measure


def photos_by_stem(folder: Path, expected: str, pattern: str = "(.*)") -> tuple[Split, dict[str, int]]:
    """The photos below a folder whose names fit a pattern, known by the part of the name in its one group.

    Args:
        folder: the folder, searched at any depth.
        expected: what should be there and where it comes from, for the message if it's not.
        pattern: regular expression of the whole name without its extension.

    Returns:
        The photos in order of their keys, and key -> number.

    Raises:
        UserError: no such folder, no such photo in it, or two of one key.
    """
    try:
        split = sources.photos(folder)
    except UserError as error:
        raise UserError(f"{error}; expected {expected}") from None
    rows = {}
    for row, name in enumerate(split.names):
        match = re.fullmatch(pattern, Path(name).stem)
        if match:
            twin = rows.setdefault(match[1], row)
            if twin != row:
                raise UserError(f"two photos of one name: {split.names[twin]} and {name}; remove one")
    if not rows:
        raise UserError(f"none of the {len(split):,} photos below {folder} has the right name; expected {expected}")
    keys = sorted(rows)
    return split.subset([rows[key] for key in keys]), {key: number for number, key in enumerate(keys)}


def sizes(found: Mapping[str, int], published: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """How many of how many photos are there, in words, and a warning where that's not the published set.

    Args:
        found: {what: how many there are}.
        published: {what: how many the published set has}.
    """
    words = ", ".join(
        f"{number:,} {what}" if number == published[what] else f"{number:,} of {published[what]:,} {what}"
        for what, number in found.items()
    )
    if found == published:
        return words, ()
    return words, (f"not the published set ({words}): scores do not compare with published ones",)


def joined(*splits: Split) -> Split:
    """Several splits as one, their photos one after the other; which instances they show is left behind."""
    starts = np.cumsum([0, *(len(split) for split in splits)])
    bounds = tf.constant(starts[1:-1], tf.int64)

    def of_its_split(index, take):
        part = tf.searchsorted(bounds, [index], side="right")[0]
        branches = [
            functools.partial(take, split, index - start) for split, start in zip(splits, starts[:-1], strict=True)
        ]
        return tf.switch_case(part, branches)

    def read(index):
        return of_its_split(tf.cast(index, tf.int64), lambda split, row: split.read(row))

    def adjust(index, image):
        def of_split(split, row):
            return split.adjust(row, image) if split.adjust else tf.identity(image)

        return of_its_split(tf.cast(index, tf.int64), of_split)

    return Split(
        [name for split in splits for name in split.names],
        read,
        lambda: np.concatenate([split.labels for split in splits]),
        adjust=adjust if any(split.adjust for split in splits) else None,
        parts=splits,
    )
