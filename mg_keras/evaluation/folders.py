"""Benchmarks with a folder of their own, by name: a new one is its file in `evaluators` and a line in `_OPENERS`."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.errors import UserError

if TYPE_CHECKING:
    from mg_keras.evaluation.evaluators.contract import Benchmark


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
    neighbors: int = 20
    neighbor_temperature: float = 0.07
    data_dir: str | None = None

    @property
    def votes(self) -> tuple[int, float]:
        """What `categories` and `probe` take of it."""
        return self.neighbors, self.neighbor_temperature


# name -> (module in evaluators, what opens a folder by it); of the classes and the options each takes what it needs;
# loaded on first use: programs list the names before they need TensorFlow
_OPENERS: dict[str, tuple[str, Callable]] = {
    "imagenet": ("classification", lambda of, place, classes, options: of.imagenet(place, classes, options.data_dir)),
    "holidays": ("retrieval", lambda of, place, _, options: of.holidays(place, options.rotations)),
    "ukb": ("groups", lambda of, place, *_: of.ukb(place)),
    "copydays": ("retrieval", lambda of, place, _, options: of.copydays(place, options.distractors)),
    "revisited": ("retrieval", lambda of, place, *_: of.revisited(place)),
    "image_similarity": ("copy_detection", lambda of, place, *_: of.image_similarity(place)),
    "categories": ("categories", lambda of, place, _, options: of.opened(of.categories, place, options)),
    "probe": ("categories", lambda of, place, _, options: of.opened(of.probe, place, options)),
}
NAMES = tuple(_OPENERS)
"""What `open_benchmark` opens."""


def open_benchmark(spec: str, class_names: Sequence[str], options: Options | None = None) -> "Benchmark":
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
    module, opener = _OPENERS[name]
    found = importlib.import_module(f"mg_keras.evaluation.evaluators.{module}")
    return opener(found, place, class_names, options or Options())
