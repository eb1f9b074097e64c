"""Benchmarks with one contract: photos to describe, and scores of what a network says of them.

`contract` says what a `Benchmark` is. Those with a folder of their own are opened by name, as programs do, with
`open_benchmark`; each checks its folder and says what is missing and where it comes from. `classes`, `in_aug`,
`copies`, `views`, `categories` and `probe` measure on any photos.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mg_keras.data import sources
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators.categories import NEIGHBORS, TEMPERATURE, categories, probe
from mg_keras.evaluation.evaluators.classification import classes, imagenet
from mg_keras.evaluation.evaluators.contract import Answers, Benchmark, Search
from mg_keras.evaluation.evaluators.copy_detection import copies, image_similarity
from mg_keras.evaluation.evaluators.groups import in_aug, ukb, views
from mg_keras.evaluation.evaluators.retrieval import copydays, holidays, revisited

__all__ = [
    "NAMES",
    "NEIGHBORS",
    "TEMPERATURE",
    "Answers",
    "Benchmark",
    "Options",
    "Search",
    "categories",
    "classes",
    "copies",
    "copydays",
    "holidays",
    "image_similarity",
    "imagenet",
    "in_aug",
    "open_benchmark",
    "probe",
    "revisited",
    "ukb",
    "views",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """What a benchmark may need beside its photos.

    Attributes:
        rotations: the file that turns photos upright, for Holidays.
        distractors: folder of photos to hide copies among, for Copydays and the copies of a run's own photos.
        neighbors, neighbor_temperature: of the votes in `categories` and `probe`.
        data_dir: where tensorflow-datasets keeps its files.
    """

    rotations: str | Path | None = None
    distractors: str | Path | None = None
    neighbors: int = NEIGHBORS
    neighbor_temperature: float = TEMPERATURE
    data_dir: str | None = None

    @property
    def votes(self) -> tuple[int, float]:
        """What `categories` and `probe` take of it."""
        return self.neighbors, self.neighbor_temperature


# name -> what opens a folder; of the classes and the options each takes what it needs
_OPENERS: dict[str, Callable[[str, Sequence[str], Options], Benchmark]] = {
    "imagenet": lambda place, class_names, options: imagenet(place, class_names, options.data_dir),
    "holidays": lambda place, _, options: holidays(place, options.rotations),
    "ukb": lambda place, _, options: ukb(place),
    "copydays": lambda place, _, options: copydays(place, options.distractors),
    "revisited": lambda place, _, options: revisited(place),
    "image_similarity": lambda place, _, options: image_similarity(place),
    "categories": lambda place, _, options: _of_labels(categories, place, options),
    "probe": lambda place, _, options: _of_labels(probe, place, options),
}
NAMES = tuple(_OPENERS)
"""What `open_benchmark` opens."""


def open_benchmark(spec: str, class_names: Sequence[str], options: Options | None = None) -> Benchmark:
    """Open a benchmark by its name and folder.

    Args:
        spec: `NAME=PATH`, NAME one of `NAMES`: `holidays=data/holidays`; ImageNet also as `imagenet=tfds:imagenet2012`.
            Of `categories` and `probe` PATH is a folder or a table, or any photos as `--data` takes them:
            `categories=csv:labels.csv?label=coarse,fine`.
        class_names: the network's classes in the order of its logits, for ImageNet.
        options: what else it needs; None: nothing.

    Raises:
        UserError: no such benchmark, or a folder that is missing or not right.

    Example:
        >>> open_benchmark("ukb=data/ukbench", class_names=[]).description  # doctest: +SKIP
        'UKB: 10,200 photos'
    """
    name, _, place = spec.partition("=")
    if name not in NAMES or not place:
        raise UserError(f"a benchmark with a folder must be NAME=PATH of {', '.join(NAMES)}; received {spec!r}")
    return _OPENERS[name](place, class_names, options or Options())


def _of_labels(kind, place, options):
    """`categories` or `probe` of photos: as `--data` says it, or of a folder or a table by its path alone."""
    spec = place
    if place.partition(":")[0] not in sources.NAMES:
        spec = f"csv:{place}" if Path(place.partition("?")[0]).is_file() else f"folder:{place}"
    source = sources.open_source(spec, data_dir=options.data_dir)
    # several of them stand in one table
    return kind(source, *options.votes, name=f"{kind.__name__} ({source.description})")
