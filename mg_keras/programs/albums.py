"""What the programs for folders of photos share: the model, and the index of a folder, where it lies and made new."""

import hashlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mg_keras.errors import UserError
from mg_keras.files import check_writable, in_home, printable_name
from mg_keras.programs.common import Parser, number
from mg_keras.quiet import import_tensorflow

DESCRIBED_BY = "a run, a SavedModel (such as models/multigrain), a file of weights, or package"


def add_arguments(parser: Parser) -> None:
    """The arguments by which every such program describes photos."""
    parser.add_argument("--model", type=str, help=f"{DESCRIBED_BY}; default: the model in the package")
    parser.add_argument("--resolution", type=number(int, at_least=1), help="s*, pixels; default: the model's")
    parser.add_argument("--recursive", type=bool, default=True, help="false: photos in the folder itself alone")
    parser.add_argument("--index", type=str, help="the index's folder; default: in the cache in the home folder")


def loaded(options: Any) -> Any:
    """The model of the options, opened; without one, that of the package."""
    import_tensorflow()
    from mg_keras.loading import load

    return load(options.model)


def existing(folder: str) -> Path:
    """The folder, if it is one; before seconds are spent on a model."""
    path = in_home(folder)
    if path.is_file():
        raise UserError(f"{printable_name(path)} is a file: give the folder of an album before it")
    if not path.is_dir():
        raise UserError(f"no such folder: {printable_name(path)}")
    return path


def index_of(folder: Path, model: Any, options: Any) -> Any:
    """The index of a folder, as the folder is now; each model has its own where none is named.

    A folder that mg-keras index made is such an index itself.

    Raises:
        UserError: there is no photo in it that can be used; the message says why.
    """
    from mg_keras.search.index import Index
    from mg_keras.search.sharded import is_sharded

    if is_sharded(folder):
        given = {"index": options.index, "recursive": not options.recursive, "resolution": options.resolution}
        for flag in (flag for flag, value in given.items() if value):
            raise UserError(f"--{flag} is for folders of photos: {printable_name(folder)} is an index of shards")
        return Index.open(folder, model)
    path = place(folder, model, options)
    index = Index.build(
        folder,
        model,
        path,
        recursive=options.recursive,
        resolution=options.resolution,
        label=f"photos of {printable_name(folder.name or folder)}",
    )
    try:
        index.check_usable()
    except UserError:
        index.close()
        raise
    return index


def show_unusable(photos: Sequence[Any]) -> None:
    """A line on photos of an index (`Photo`) that can't be used, if there are any."""
    if photos:
        print(f"{len(photos):,} could not be used, such as {printable_name(photos[0].name)}: {photos[0].problem}")


def indexed_demo(run: Any, model: Path) -> str:
    """Indexes the validation photos of a run on the demo set, and gives the command that opens the page on them.

    The command indexes what is not there: where it can't be done now, that is a warning.

    Args:
        run: `mg_keras.runs.run.Run` with `data: demo`.
        model: its SavedModel.
    """
    from mg_keras.loading import load
    from mg_keras.runs.photos import open_source

    folder = Path(os.path.commonpath(open_source(run.settings).val.files))
    options = SimpleNamespace(index=None, recursive=True, resolution=None)
    try:
        index_of(folder, load(model), options).close()
    except Exception as error:  # whatever it is, the run is done and whole
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"warning: the photos could not be indexed for the search: {reason}", file=sys.stderr)
    # the page needs an extra
    missing = importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None
    first = 'pip install -e ".[serving]" && ' if missing else ""
    return first + shlex.join(["mg-keras", "search", str(folder), "--model", str(model)])


def place(folder: Path, model: Any, options: Any) -> Path:
    """Where the index of a folder lies, as the options say; it can be written to."""
    path = in_home(options.index) if options.index else default_place(folder, model, options)
    check_writable(path)
    return path


def default_place(folder: Path, model: Any, options: Any) -> Path:
    """Where the index of a folder lies: nothing is written among the photos."""
    real = os.path.realpath(folder)
    made_of = (model.fingerprint, options.resolution or model.resolution, options.recursive)
    number = hashlib.sha256(repr(made_of).encode() + os.fsencode(real)).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() else "-" for letter in printable_name(os.path.basename(real)))[:40]
    return Path.home() / ".cache" / "mg_keras" / "indexes" / f"{name}-{number}"
