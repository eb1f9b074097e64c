"""What every program shares: arguments from YAML presets and flags, and one clear line for what a user can mend."""

import contextlib
import logging
import os
import sys
from pathlib import Path

from mg_keras.errors import UserError


def run_program(main):
    """Runs `main()`; a `UserError` becomes one line and exit status 2, Ctrl-C the status of its signal."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def import_tensorflow():
    """Imports TensorFlow without the start-up notes that it writes to standard error before it can be told not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def tensorflow_says(level):
    """TensorFlow's Python log keeps to notes of `level` (of `logging`) and above while the block runs."""
    logger = logging.getLogger("tensorflow")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def with_preset(arguments, folder):
    """Replaces `--preset NAME` by `--config FOLDER/NAME.yaml`, in front, so that other flags override it.

    Returns:
        (arguments, name): the name is None where no preset was asked for.

    Raises:
        UserError: there is no such preset.
    """
    arguments = list(arguments)
    for place, argument in enumerate(arguments):
        flag, equals, name = argument.partition("=")
        if flag != "--preset":
            continue
        if not equals:
            name = arguments[place + 1] if place + 1 < len(arguments) else ""
        rest = arguments[:place] + arguments[place + (1 if equals else 2) :]
        path = Path(folder) / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in Path(folder).glob("*.yaml")))
            raise UserError(f"unknown preset {name!r}; known: {known}")
        return ["--config", str(path), *rest], name
    return arguments, None


def list_of(kind):
    """A type for arguments: `224,500`, `[224,500]` (as YAML has it) or one value -> a list of `kind`."""

    def parse(text):
        values = text if isinstance(text, list | tuple) else str(text).strip().strip("[]").split(",")
        return [kind(value.strip() if isinstance(value, str) else value) for value in values]

    # what an error calls it
    parse.__name__ = f"list of {kind.__name__}"
    return parse


def stage_arguments(program, description, more=None, run_required=True):
    """The arguments of a program that comes after training: those that all have, and what `more(parser)` adds."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--run", type=str, required=run_required, help="the run's folder, such as runs/demo")
    parser.add_argument(
        "--resolutions", type=list_of(int), help="pixels, such as 224,500,800; default: those of the run's settings"
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=["last", "best"],
        help="which one to take; the results of best go into the run's folder best/",
    )
    if more:
        more(parser)
    return parser.parse_args()
