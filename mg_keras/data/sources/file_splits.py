"""What sources of photo files share: the words for a split, conversion, telling what was passed over, and the split."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data.finding import CONVERTED, KINDS, reasons
from mg_keras.data.sources.contract import Split, say
from mg_keras.data.sources.conversion import convert
from mg_keras.errors import UserError
from mg_keras.files import printable_name

TRAINING = ("train", "training")
"""What training photos are called, in any case."""

HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing")
"""What validation photos are called, in any case, the better choice first."""

UNLABELLED = ("unlabelled", "unlabeled")


def existing(folder: str | os.PathLike) -> Path:
    """The folder, if it is one.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no such folder: {printable_name(folder)}")
    return folder


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


def told(passed_over: dict[str, str], place: str | os.PathLike) -> tuple[tuple[str, str], ...]:
    """What was passed over (path -> reason), as (name, reason); the user is told how much.

    Args:
        passed_over: path -> reason.
        place: the folder in which they lie.
    """
    named = _by_printable_name(passed_over)
    if named:
        count = "1 file or folder" if len(named) == 1 else f"{len(named):,} files or folders"
        say(f"passed over in {printable_name(place)}: {count}: {reasons(named, place)}")
    return named


def why_none(passed_over: dict[str, str], place: str | os.PathLike) -> str:
    """Why there is no photo to be had: what was passed over, or that there was nothing of the kind."""
    if not passed_over:
        return f"none of its files is a {KINDS}"
    return reasons(_by_printable_name(passed_over), place)


def _by_printable_name(passed_over):
    return tuple((printable_name(path), printable_name(reason)) for path, reason in sorted(passed_over.items()))
