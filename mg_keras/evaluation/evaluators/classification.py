"""Class accuracy: any labelled photos, and ImageNet's validation set (Table 2)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg_keras.data import sources
from mg_keras.data.sources import Split
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators.contract import Answers, Benchmark, sizes
from mg_keras.evaluation.metrics import top_k_accuracy
from mg_keras.files import in_home

_EXPECTED = (
    "the ImageNet validation photos (ILSVRC 2012, https://image-net.org) in one folder for each class, named by its "
    "WordNet id such as n01440764"
)
_PUBLISHED = {"photos": 50_000, "classes": 1000}


def classes(
    split: Split,
    class_names: Sequence[str],
    name: str = "classes",
    description: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Benchmark:
    """Top-1 and top-5 accuracy (`top1`, `top5`) on labelled photos.

    A photo that could not be used counts as wrong.

    Args:
        split: photos whose labels are numbers of `class_names`.
        class_names: the network's classes, in the order of its logits. Of fewer than five, `top5` looks at all.
        name: what to call it.
        description: a line on it; None: how many photos and classes there are.
        warnings: what keeps the scores from being those of a published set.

    Raises:
        UserError: the photos have no labels.
    """
    if not split.labelled:
        raise UserError(f"the benchmark {name} needs photos of known classes, received {len(split):,} without labels")
    top5 = min(5, len(class_names))

    def measure(answers: Answers) -> dict[str, float]:
        if answers.logits is None:
            raise ValueError(f"the benchmark {name} needs logits, received None")
        if not len(answers.rows):
            return {"top1": 0.0, "top5": 0.0}
        labels, used = split.labels[answers.rows], len(answers.rows) / len(split)
        return {
            "top1": used * top_k_accuracy(answers.logits, labels, 1),
            "top5": used * top_k_accuracy(answers.logits, labels, top5),
        }

    return Benchmark(
        name,
        description or f"{len(split):,} photos of {len(class_names):,} classes",
        split,
        measure,
        {"top1": 1 / len(class_names), "top5": top5 / len(class_names)},
        needs_logits=True,
        warnings=warnings,
    )


def imagenet(spec: str, class_names: Sequence[str], data_dir: str | None = None) -> Benchmark:
    """ImageNet's 50 000 validation photos: `top1`, `top5` (Table 2).

    Photos are matched with the network's classes by name, so that the order of neither matters.

    Args:
        spec: `folder:PATH` or the path alone, of a folder with one subfolder for each class, named by its WordNet id,
            or of one that has those in `val/`, `valid/` or `validation/`; or `tfds:imagenet2012`, the validation split
            of that set; or `tfrecord:PATTERN` or `webdataset:PATTERN`, whose classes are called by their WordNet ids.
        class_names: the network's classes, WordNet ids in the order of its logits.
        data_dir: where tensorflow-datasets keeps its files and converted photos are; None: their own caches.

    Raises:
        UserError: no such folder or set, or photos of classes that the network does not have.
    """
    if spec.startswith(("tfds:", "tfrecord:", "webdataset:")):
        source = sources.open_source(spec, data_dir=data_dir)
        photos, names = source.val, source.class_names
    else:
        photos, names = _folder(in_home(spec.removeprefix("folder:")), data_dir)
    number_of = {name: number for number, name in enumerate(class_names)}
    without = sorted(set(class_names) - set(names))
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise UserError(
            f"the classes of {spec} must be the network's: not among the network's "
            f"{len(class_names):,}: {_some(unknown)}"
            + (f"; of these no photo there: {_some(without)}" if 0 < len(without) < len(class_names) else "")
            + f"; expected {_EXPECTED}"
        )
    table = np.array([number_of[name] for name in names])
    split = dataclasses.replace(photos, load_labels=lambda: table[photos.labels])
    words, warnings = sizes({"photos": len(split), "classes": len(names)}, _PUBLISHED)
    if without:
        warnings += (f"{len(without):,} of the network's {len(class_names):,} classes have no photo: {_some(without)}",)
    return classes(split, class_names, "imagenet", f"ImageNet validation: {words}", warnings)


def _folder(root, data_dir):
    """The photos below the subfolders of `root`, or of its `val`, and the subfolders' names, which are the labels."""
    root = Path((root.is_dir() and sources.validation_folder(root)) or root)
    try:
        photos = sources.photos(root, data_dir)
    except UserError as error:
        raise UserError(f"{error}; expected {_EXPECTED}") from None
    # relative to the folder as `photos` prints it, whose name need not be valid UTF-8
    parts = [Path(name).parts[len(root.parts) :] for name in photos.names]
    rows = [row for row, part in enumerate(parts) if len(part) > 1]
    if not rows:
        raise UserError(f"{root} has photos, but no folder of photos for each class; expected {_EXPECTED}")
    names, labels = np.unique([parts[row][0] for row in rows], return_inverse=True)
    photos = photos.subset(rows)
    return dataclasses.replace(photos, load_labels=lambda: labels), names.tolist()


def _some(names):
    """The first of many names."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"
