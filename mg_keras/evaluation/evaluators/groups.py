"""How many photos of a query's own group are among its nearest: UKB, views of known objects, IN-aug."""

from pathlib import Path

import numpy as np

from mg_keras.data.sources import Split
from mg_keras.evaluation.evaluators.contract import Answers, Benchmark, photos_by_stem, sizes
from mg_keras.evaluation.metrics import chance_group_score, group_score
from mg_keras.evaluation.scores import METRICS

_UKB = (
    "the 10,200 photos ukbench00000.jpg to ukbench10199.jpg of the University of Kentucky benchmark "
    "(https://archive.org/details/ukbench), in the folder itself or in full/ below it"
)
_PUBLISHED = {"photos": 10_200}
_GROUP = 4


def ukb(folder: str | Path) -> Benchmark:
    """UKB: the mean number of an object's four photos among the four nearest, the photo itself included (`score`).

    Every photo is a query; files in groups of four by number show one object. A photo that could not be used scores 0
    and is not found by the others.

    Args:
        folder: holds `ukbench00000.jpg` to `ukbench10199.jpg`, at any depth (the archive has them in `full/`).

    Raises:
        UserError: no such folder, or no such photo in it.
    """
    split, numbers = photos_by_stem(Path(folder), _UKB, r"ukbench(\d{5})")
    groups = np.array([int(number) // _GROUP for number in numbers])
    words, warnings = sizes({"photos": len(split)}, _PUBLISHED)
    _, members = np.unique(groups, return_counts=True)
    if members.min() < _GROUP:
        best = METRICS["score"].text(np.sum(members**2) / len(groups))
        warnings += (f"{np.sum(members < _GROUP):,} objects lack photos: the best possible score is {best}",)
    return _benchmark("ukb", f"UKB: {words}", split, groups, _GROUP, warnings)


def views(split: Split) -> Benchmark:
    """The UKB score (`score`, with four neighbours) on photos of known instances.

    Args:
        split: photos whose `instances` are known.

    Raises:
        ValueError: they are not.
    """
    if split.instances is None:
        raise ValueError("views needs a split with known instances, received one whose instances are None")
    words = f"{len(split):,} photos of {len(np.unique(split.instances)):,} instances"
    return _benchmark("views", f"views of one instance among the four nearest: {words}", split, split.instances, _GROUP)


def in_aug(photos: Split, versions: int = 5) -> Benchmark:
    """IN-aug (sections 3.5 and 4.2): the mean number of a photo's versions among the nearest (`score`).

    Each of the `versions` augmented versions of a photo is a query for as many nearest, itself included: 1 to
    `versions` of them are its own. A version that is missing scores 0 and is not found by the others.

    Args:
        photos: the photos; the paper takes two of each class (`mg_keras.finishing.pooling_exponent.in_aug_photos`).
        versions: how many of each, at least 2. `Answers.rows` holds a photo's number once for each.

    Raises:
        ValueError: fewer versions.
    """
    if versions < 2:
        raise ValueError(f"versions must be at least 2, received {versions}")
    description = f"IN-aug: {versions} augmented versions of {len(photos):,} photos"
    return _benchmark("in_aug", description, photos, np.arange(len(photos)), versions, versions=versions)


def _benchmark(name, description, split, groups, k, warnings=(), versions=0):
    repeated = max(versions, 1)
    total = repeated * len(groups)

    def measure(answers: Answers) -> dict[str, float]:
        used = len(answers.rows)
        if not used:
            return {"score": 0.0}
        return {"score": used / total * group_score(answers.descriptors, groups[answers.rows], min(k, used))}

    _, members = np.unique(groups, return_counts=True)
    by_size = [chance_group_score(repeated * size, total, min(k, total)) for size in members]
    chance = {"score": float(np.average(by_size, weights=members))}
    return Benchmark(name, description, split, measure, chance, versions=versions, warnings=tuple(warnings))
