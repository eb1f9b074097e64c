"""What sources of photo files share: the words for a split, conversion, and the split."""

import os
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from mg_keras.data.finding import CONVERTED
from mg_keras.data.sources.contract import Split
from mg_keras.data.sources.conversion import convert
from mg_keras.files import printable_name

TRAINING = ("train", "training")
"""What training photos are called, in any case."""

HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing")
"""What validation photos are called, in any case, the better choice first."""

UNLABELLED = ("unlabelled", "unlabeled")


def converted(
    files: Iterable[str], kinds: dict[str, str], place: str | os.PathLike, data_dir: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """(copies, problems), as `convert` gives them, of those `files` whose kind is among `kinds`."""
    wanted = {file: kinds[file] for file in files if file in kinds} if kinds else {}
    label = f"converting {', '.join(CONVERTED)} of {printable_name(place)}"
    return convert(wanted, data_dir, label) if wanted else ({}, {})


def file_split(
    files: list[str],
    labels: np.ndarray,
    copies: dict[str, str],
    instance_of: Callable | None = None,
    label_columns: dict[str, np.ndarray] | None = None,
) -> Split:
    """Photos that are files of their own, as a `Split`.

    Args:
        files: their paths.
        labels: int [N].
        copies: path -> the copy that is read in its place.
        instance_of, label_columns: as `Split` has them.
    """
    # opened by its bytes, which need not be valid UTF-8, and called something that can be printed
    places = [copies.get(file, file) for file in files]
    table = tf.constant([os.fsencode(place) for place in places], tf.string)
    names = [printable_name(file) for file in files]
    return Split(
        names,
        lambda index: tf.io.read_file(table[index]),
        lambda: labels,
        instance_of,
        files=places,
        label_columns=label_columns or {},
    )
