"""Which files below a folder are photos: by their content, whatever they are called, and why others are none.

Folders of a million files are listed without a look at each: a file that is called as the photos are that the decoder
reads (`EXTENSIONS`) is taken to be one, and only of the others a few bytes are read.
"""

import dataclasses
import heapq
import importlib.util
import os
import stat
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mg_keras.data import formats
from mg_keras.data.formats import EXTENSIONS
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.progress import mapped, say

CONVERTED = ("TIFF", "AVIF", "HEIC")
"""Kinds that the decoder does not read: a copy that it reads is made of them."""

KINDS = ", ".join([*(kind.name for kind in formats.KINDS), *CONVERTED[:-1]]) + f" or {CONVERTED[-1]}"
"""All kinds, as messages have them."""

# what network storages and desktops leave beside photos; what begins with a dot is hidden already
_OF_SYSTEMS = {
    "@eadir",
    "__macosx",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
BESIDE_PHOTOS = frozenset(
    f".{ending}"
    for line in (
        "txt md rst json jsonl xml csv tsv yaml yml toml html htm log py sh npy npz",
        "xmp aae thm db ini lnk url",
    )
    for ending in line.split()
)
"""Endings of what lies beside photos for good reasons, perhaps once for each of a million, and is none for sure."""

# most look like a TIFF that holds a thumbnail
_RAW = frozenset(
    f".{ending}"
    for line in (
        "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos",
        "mrw nef nrw orf pef raf raw rw2 sr2 srf srw x3f",
    )
    for ending in line.split()
)

_IS_RAW = "a camera's raw file, which is not read: a JPEG or TIFF made of it is"

_HEADER_BYTES = 64
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


@dataclasses.dataclass
class Found:
    """What is below a folder.

    Attributes:
        files: paths of the photos, sorted: the same files have the same numbers on every machine.
        kinds: path -> kind, of those photos that are to be converted.
        passed_over: path -> why there is no photo to be had from it.
    """

    files: list
    kinds: dict
    passed_over: dict


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.casefold() in _OF_SYSTEMS


def find_photos(folder: str | os.PathLike, above: Sequence = (), recursive: bool = True) -> Found:
    """All photos below `folder`, at any depth and behind links, as `Found`.

    Args:
        folder: an existing folder.
        above: folders that a link below it must not lead back to.
        recursive: False: those in the folder itself alone.
    """
    found = Found([], {}, {})
    unknown = []
    _walk(os.fspath(folder), above, found, unknown, recursive)
    kinds = mapped(_kind, unknown, f"looking at files below {printable_name(folder)}")
    for path, (kind, problem) in zip(unknown, kinds, strict=True):
        if problem:
            found.passed_over[path] = problem
        else:
            found.files.append(path)
            if kind in CONVERTED:
                found.kinds[path] = kind
    found.files.sort()
    return found


def look_at(paths: list[str], label: str) -> tuple[Found, list[str]]:
    """Files that are named, as `Found`: in the order of `paths`, without those that are not there.

    Args:
        paths: list of str.
        label: what to call it while it runs.

    Returns:
        (found, missing): `Found`; and the paths that lead to no file, in order.
    """
    found, missing = Found([], {}, {}), []
    for path, (kind, problem, there) in zip(paths, mapped(_named, paths, label), strict=True):
        if not there:
            missing.append(path)
        elif problem:
            found.passed_over[path] = problem
        else:
            found.files.append(path)
            if kind in CONVERTED:
                found.kinds[path] = kind
    return found, missing


def subfolders(folder: str | os.PathLike) -> tuple[dict[str, str], dict[str, str]]:
    """The folders in `folder` and, if they are to be told of, the other things in it.

    Returns:
        (folders, passed_over): name -> path, in order of name; and path -> why there is no photo to be had from it.

    Raises:
        UserError: the folder can't be read.
    """
    folders, passed_over = {}, {}
    try:
        entries = _listed(folder)
    except OSError as error:
        raise UserError(f"{printable_name(folder)} {_unreadable(error)}") from None
    loose = []
    for entry in entries:
        kind, problem = _sort_of(entry)
        if kind == "folder":
            folders[entry.name] = entry.path
        elif problem:
            passed_over[entry.path] = problem
        elif kind == "photo" or (kind == "unknown" and _kind(entry.path)[0]):
            loose.append(entry.path)
    if folders:
        passed_over |= dict.fromkeys(loose, "lies beside the folders of the classes, in none of them")
    return folders, passed_over


def reasons(passed_over: Sequence[tuple[str, str]], place: str | os.PathLike) -> str:
    """Why things were passed over, the most frequent reasons with an example each, in one line.

    Args:
        passed_over: non-empty list of (name, reason).
        place: the folder in which they lie.
    """
    counts = Counter(reason for _, reason in passed_over)
    first = {}
    for name, reason in passed_over:
        first.setdefault(reason, os.path.relpath(name, printable_name(place)))
    shown = [
        f"{reason} ({first[reason]})" if count == 1 else f"{reason} ({count:,}, such as {first[reason]})"
        for reason, count in counts.most_common(3)
    ]
    left = len(passed_over) - sum(count for _, count in counts.most_common(3))
    if left:
        shown.append(f"{left:,} for other reasons")
    return "; ".join(shown)


def existing(folder: str | os.PathLike) -> Path:
    """The folder, if it is one.

    Raises:
        UserError: there is none.
    """
    folder = in_home(folder)
    if not folder.is_dir():
        wrong = "a file is no folder" if folder.is_file() else "no such folder"
        raise UserError(f"{wrong}: {printable_name(folder)}")
    return folder


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


def _walk(folder, above, found, unknown, recursive):
    """Adds to `found` what needs no look at its content, and to `unknown` the paths of the files that do.

    A folder that is reached in several ways is taken once, as itself rather than behind a link.
    """
    seen = {os.path.realpath(path) for path in above}
    inner, links = [(folder, os.path.realpath(folder))], []
    if os.path.islink(folder):
        inner, links = [], [folder]
    while inner or links:
        if inner:
            path, real = inner.pop()
        else:
            path = heapq.heappop(links)
            real = os.path.realpath(path)
            if real in seen:
                back = os.path.realpath(os.path.dirname(path))
                loop = back == real or back.startswith(os.path.join(real, ""))
                found.passed_over[path] = "a link that leads back to a folder it is in" if loop else (
                    "a link to a folder that is read already"
                )  # fmt: skip
                continue
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = _listed(path)
        except OSError as error:
            found.passed_over[path] = _unreadable(error)
            continue
        for entry in entries:
            kind, problem = _sort_of(entry)
            if problem:
                found.passed_over[entry.path] = problem
            elif kind == "photo":
                found.files.append(entry.path)
            elif kind == "unknown":
                unknown.append(entry.path)
            elif kind == "folder" and not recursive:
                continue
            elif kind == "folder" and entry.is_symlink():
                heapq.heappush(links, entry.path)
            elif kind == "folder":
                inner.append((entry.path, os.path.join(real, entry.name)))


def _listed(folder):
    """What is in a folder and may be the user's, in order of name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_ignored(entry.name)), key=lambda entry: entry.name)


def _named(path):
    """(kind or None, why it can't be used or None, whether it is there) of a file of this path."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None, "not a file", True
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None, None, False
    except OSError as error:
        return None, _unreadable(error), True
    ending = os.path.splitext(path)[1].lower()
    if ending in _RAW:
        return None, _IS_RAW, True
    return (None, None, True) if ending in EXTENSIONS else (*_kind(path), True)


def _sort_of(entry):
    """(`"folder"`, `"photo"`, `"unknown"` or None; why it is passed over or None). Asks the disk about links alone."""
    ending = os.path.splitext(entry.name)[1].lower()
    try:
        if entry.is_dir():
            return "folder", None
        if ending in BESIDE_PHOTOS:
            return None, None
        if not entry.is_file():
            return None, "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"
    except OSError as error:
        return None, _unreadable(error)
    if ending in _RAW:
        return None, _IS_RAW
    return "photo" if ending in EXTENSIONS else "unknown", None


def _kind(path):
    """(kind of a photo or None, why it can't be used or None), by a file's first bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        return None, _unreadable(error)
    if not header:
        return None, "the file is empty"
    kind = kind_of(header)
    if kind == "HEIC" and not importlib.util.find_spec("pillow_heif"):
        return kind, "HEIC, for which pillow-heif is missing: pip install pillow-heif"
    return kind, None if kind else f"not a {KINDS} file"


def kind_of(header: bytes) -> str | None:
    """The kind of a photo that begins with these bytes, at least 64 where it has as many; None for anything else."""
    if header.startswith((b"II*\0\x10\0\0\0CR", b"IIRO", b"IIRS")):
        return None
    for kind in formats.KINDS:
        if kind.begins(header):
            return kind.name
    if header.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if header[4:8] == b"ftyp":
        size = min(struct.unpack_from(">I", header)[0], len(header))
        brands = {header[8:12], *(header[place : place + 4] for place in range(16, size, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    return None


def _unreadable(error):
    return f"could not be read: {error.strerror or error}"
