"""Where photos come from: `demo`, `folder:PATH`, `tfds:NAME`, shards, each behind the same small contract.

A `Source` has a training and a validation `Split` (and perhaps unlabelled photos). A split knows its labels, and reads
the encoded bytes of any photo by number within the graph; nothing is decoded here. To add a kind of source, write a
module with a function that makes a `Source` and name it in `_KINDS`.
"""

from mg_keras.data.sources.contract import Source, Split, SplitOptions
from mg_keras.data.sources.demo import open_demo
from mg_keras.data.sources.folder import open_folder, photos, validation_folder
from mg_keras.data.sources.shards import open_tfrecord, open_webdataset
from mg_keras.data.sources.tfds import open_tfds
from mg_keras.errors import UserError

__all__ = ["Source", "Split", "SplitOptions", "open_source", "photos", "validation_folder"]

_KINDS = {
    "demo": open_demo,
    "folder": open_folder,
    "tfds": open_tfds,
    "tfrecord": open_tfrecord,
    "webdataset": open_webdataset,
}


def open_source(spec, options=None, *, resolution=128, data_dir=None):
    """Opens a source of photos.

    Args:
        spec: one of

            * `"demo"`: the set of `mg_keras.data.demo`, drawn on first use;
            * `"folder:PATH"`: one subfolder a class, photos at any depth below it; or such subfolders in `train/` and
              `val/` (or what else these are called, in any case), or `train/` and `val/` in each of them.
              `unlabelled/` beside them is set apart. Photos are told by their content; what is none of them, or can't
              be read, is named in `Source.passed_over`, and counted in a line on standard error. Hidden files and what
              systems leave (thumbnails, lists, notes) are no photos;
            * `"tfds:NAME"`: a set of tensorflow-datasets with the features `image` and `label`, as `NAME`,
              `NAME/CONFIG` or `NAME:VERSION`. Its `validation` split, or else its `test` split, is for validation if
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
    if kind not in _KINDS or bool(argument) == (kind == "demo"):
        raise UserError(
            f"data must be demo, folder:PATH, tfds:NAME, tfrecord:PATTERN or webdataset:PATTERN, received {spec!r}"
        )
    return _KINDS[kind](argument, options or SplitOptions(), resolution, data_dir)
