"""TIFF, AVIF and HEIC as files that the decoder reads: each is converted once and kept in the cache.

Where the home folder can't be written to, as in many containers, they are kept in a temporary folder of this process.
"""

import functools
import hashlib
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from mg_keras.data.pillow_photos import opened, why_not, write
from mg_keras.data.sources.contract import cache_folder
from mg_keras.errors import UserError
from mg_keras.files import atomic_path, check_writable
from mg_keras.progress import mapped, say


def convert(kinds: dict[str, str], data_dir: str | os.PathLike | None, label: str) -> tuple[dict, dict]:
    """Makes copies, upright, 8 bits a value, of photos that the decoder does not read, where there are none yet.

    They are written as `mg_keras.data.pillow_photos.write` does. Of several pictures in a file the first (of HEIC the
    primary one) is taken. Colour profiles are passed over, as they are in other photos.

    Args:
        kinds: path -> kind.
        data_dir: None: the cache in the home folder; where that can't be written to, a temporary folder, which is
            removed when the process ends.
        label: what to call it while it runs.

    Returns:
        (copies, problems): path -> path of its copy, and path -> why there is none.

    Raises:
        UserError: the copies can't be written.
    """
    folder, least_free = _kept_in(data_dir), 0
    copies, problems, missing = _places(kinds, folder)
    if missing and data_dir is None and not _is_writable(folder):
        made, least_free = _temporary()
        folder = Path(made.name)
        say(f"photos converted from {', '.join(sorted(set(kinds.values())))} are kept in the temporary folder {folder}")
        others, more_problems, missing = _places({path: kinds[path] for path in missing}, folder)
        copies, problems = copies | others, problems | more_problems
    with warnings.catch_warnings():
        # the limit on pixels is ours
        warnings.simplefilter("ignore")
        results = mapped(
            lambda path: _convert(path, kinds[path], copies[path], folder, least_free),
            missing,
            label,
            "photos",
            together=1,
        )
    for path, problem in zip(missing, results, strict=True):
        if problem:
            problems[path] = problem
            del copies[path]
    return {path: os.fspath(copy) for path, copy in copies.items()}, problems


def _kept_in(data_dir):
    """The folder of the copies; None where nobody knows the home folder."""
    try:
        return cache_folder(data_dir) / "converted"
    except RuntimeError:
        return None


def _is_writable(folder):
    try:
        return folder is not None and bool(check_writable(folder))
    except UserError:
        return False


@functools.cache
def _temporary():
    """(a folder that goes with this process, how many bytes are to be left free where it lies)."""
    made = tempfile.TemporaryDirectory(prefix="mg-keras-converted-", ignore_cleanup_errors=True)
    return made, shutil.disk_usage(made.name).free // 2


def _places(kinds, folder):
    """(path -> where its copy lies, path -> why that can't be told, paths whose copy is still to be made)."""
    if folder is None:
        return {}, {}, list(kinds)
    copies, problems = {}, {}
    for path, kind in kinds.items():
        try:
            copies[path] = _copy_of(path, kind, folder)
        except OSError as error:
            problems[path] = f"could not be read: {error.strerror or error}"
    return copies, problems, [path for path, copy in copies.items() if not copy.exists()]


def _copy_of(path, kind, folder):
    """Where the copy of a photo lies: another place when the photo has changed."""
    found = os.stat(path)
    about = f"{found.st_size} {found.st_mtime_ns} ".encode() + os.fsencode(os.path.abspath(path))
    name = hashlib.sha256(about).hexdigest()
    # file systems slow down on folders of a million files
    return folder / name[:2] / (name[2:] + (".png" if kind == "TIFF" else ".jpg"))


def _convert(path, kind, copy, folder, least_free):
    """Writes the copy, in the cache's `folder`; returns why that can't be done, or None."""
    try:
        image = opened(path, kind)
    except Exception as error:  # decoders raise anything on broken files, and each means: not this photo
        return why_not(error, kind)
    try:
        if least_free and shutil.disk_usage(folder).free < least_free:
            raise UserError(
                f"photos converted from {kind} take half of what was free in {folder}, a temporary folder, as the home "
                "folder can't be written to (data_dir names another place)"
            )
        with atomic_path(copy) as partial:
            write(image, kind, partial)
    except OSError as error:
        raise UserError(
            f"{folder} can't be written: {error.strerror or error}; photos converted from {kind} are kept there "
            "(data_dir names another place)"
        ) from error
    return None
