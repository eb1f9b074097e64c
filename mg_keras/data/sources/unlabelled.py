"""`photos:FOLDER`: photos without labels, flat or nested, and `photos`, which takes all below a folder as one split."""

import dataclasses
import os

import numpy as np

from mg_keras.data.finding import existing, find_photos, told, why_none
from mg_keras.data.sources.contract import Source, Split, SplitOptions, divide, usable
from mg_keras.data.sources.file_splits import converted, file_split
from mg_keras.errors import UserError
from mg_keras.files import printable_name


def photos(folder: str | os.PathLike, data_dir: str | None = None) -> Split:
    """All photos below `folder`, whatever its structure, as an unlabelled `Split`, in order of name.

    What is found there and can't be used is counted in a line on standard error, and named in `Split.passed_over`.

    Args:
        folder: the folder.
        data_dir: where photos converted from TIFF, AVIF and HEIC are kept; None: the cache in the home folder.

    Raises:
        UserError: there is no such folder, or no photo in it.
    """
    folder = existing(folder)
    found = find_photos(folder)
    if not found.files:
        raise UserError(f"no photo below {printable_name(folder)}: {why_none(found.passed_over, folder)}")
    copies, problems = converted(found.files, found.kinds, folder, data_dir)
    found.passed_over |= problems
    files = [file for file in found.files if file not in problems]
    if not files:
        raise UserError(f"no photo below {printable_name(folder)}: {why_none(found.passed_over, folder)}")
    split = file_split(files, np.full(len(files), -1), copies)
    return dataclasses.replace(split, passed_over=told(found.passed_over, folder))


def open_photos(argument: str, options: SplitOptions, resolution: int, data_dir: str | None) -> Source:
    """All photos below a folder, without classes, divided with the seed as if they were one class.

    What the folders in it are called says nothing. At least one photo is for validation.
    """
    del resolution
    everything = photos(argument, data_dir)
    train, val = divide("", list(range(len(everything))), options)
    if not val:
        train, val = train[:-1], train[-1:]
    place = printable_name(existing(argument))
    if not train:
        raise UserError(f"{place} has 1 photo only: one to train on and one for validation are needed at least")
    source = Source(
        f"photos of {printable_name(existing(argument).name)}",
        [],
        everything.subset(np.sort(train)),
        everything.subset(np.sort(val)),
        passed_over=everything.passed_over,
    )
    return usable(source, place)
