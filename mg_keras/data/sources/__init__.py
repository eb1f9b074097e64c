"""Where photos come from: folders, a CSV, shards, tensorflow-datasets, each kind behind the same small contract.

A `Source` has a training and a validation `Split` (and perhaps unlabelled photos). A split knows its labels, and reads
the encoded bytes of any photo by number within the graph; nothing is decoded here. To add a kind of source, write a
module with a function that makes a `Source` and name it in `_KINDS`.
"""

import os

from mg_keras.data.sources.contract import Source, Split, SplitOptions
from mg_keras.data.sources.csv_file import open_csv
from mg_keras.data.sources.demo import open_demo
from mg_keras.data.sources.folder import open_folder, validation_folder
from mg_keras.data.sources.shards import open_tfrecord, open_webdataset
from mg_keras.data.sources.tfds import open_tfds
from mg_keras.data.sources.unlabelled import open_photos, photos
from mg_keras.errors import UserError

__all__ = ["NAMES", "Source", "Split", "SplitOptions", "open_source", "photos", "validation_folder"]

# kind -> (what opens it, what follows its name)
_KINDS = {
    "demo": (open_demo, None),
    "folder": (open_folder, "PATH"),
    "photos": (open_photos, "PATH"),
    "csv": (open_csv, "FILE"),
    "tfds": (open_tfds, "NAME"),
    "tfrecord": (open_tfrecord, "PATTERN"),
    "webdataset": (open_webdataset, "PATTERN"),
}
NAMES = tuple(_KINDS)
"""The kinds of sources."""


def open_source(
    spec: str, options: SplitOptions | None = None, *, resolution: int = 128, data_dir: str | os.PathLike | None = None
) -> Source:
    """Opens a source of photos.

    Args:
        spec: one of

            * `"demo"`: the set of `mg_keras.data.demo`, drawn on first use;
            * `"folder:PATH"`: one subfolder a class, photos at any depth below it; or such subfolders in `train/` and
              `val/` (or what else these are called, in any case), or `train/` and `val/` in each of them.
              `unlabelled/` beside them is set apart. Photos are told by their content; what is none of them, or can't
              be read, is named in `Source.passed_over`, and counted in a line on standard error. Hidden files and what
              systems leave (thumbnails, lists, notes) are no photos. `"folder:PATH?label=coarse,fine"`: a tree of two
              levels of labels, the one to train on first;
            * `"photos:PATH"`: all photos below a folder, at any depth and without classes, found as those of `folder:`;
            * `"csv:FILE"`: a table with the columns `path` and `label`, perhaps `split`. `"csv:FILE?label=fine,coarse"`
              names other columns of labels, the one to train on first. See `mg_keras.data.sources.csv_file`;
            * `"tfds:NAME"`: a set of tensorflow-datasets with the features `image` and `label`, as `NAME`,
              `NAME/CONFIG` or `NAME:VERSION`; `"tfds:cifar100?label=coarse_label,label"` names other features of
              labels, the one to train on first. Its `validation` split, or else its `test` split, is for validation if
              it has labels; otherwise `train` is divided. What is prepared already is read as it is;
            * `"tfrecord:PATTERN"`, `"webdataset:PATTERN"`: shards, see `mg_keras.data.sources.shards`.
        options: `SplitOptions`, for sources that bring no validation photos.
        resolution: pixels of the demo set's pictures.
        data_dir: where the demo set, tensorflow-datasets, photos converted from TIFF, AVIF and HEIC, and indexes of
            shards are kept; None: caches in the home folder.

    Returns:
        A `Source`.

    Raises:
        UserError: no such kind of source, or what it names is missing or unusable.

    Example:
        >>> source = open_source("folder:photos", SplitOptions(train_per_class=30))  # doctest: +SKIP
        >>> source.class_names[source.train.labels[0]], source.train.read(tf.constant(0))  # doctest: +SKIP
    """
    kind, _, argument = str(spec).partition(":")
    opener, place = _KINDS.get(kind, (None, None))
    if opener is None or bool(argument) == (place is None):
        known = [f"{name}:{place}" if place else name for name, (_, place) in _KINDS.items()]
        raise UserError(f"data must be {', '.join(known[:-1])} or {known[-1]}, received {spec!r}")
    return opener(argument, options or SplitOptions(), resolution, data_dir)
