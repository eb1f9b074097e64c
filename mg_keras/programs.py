"""What every program shares: arguments from YAML presets and flags, and one clear line for what a user can mend."""

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


def stage_arguments(program, description, more=None):
    """The arguments of a program that comes after training: `--run`, `--resolutions` and what `more(parser)` adds."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--run", type=str, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument(
        "--resolutions", type=list[int], help="pixels, such as [96,144]; default: those of the run's settings"
    )
    if more:
        more(parser)
    return parser.parse_args()
