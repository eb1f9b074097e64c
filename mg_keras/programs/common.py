"""What every program shares: arguments from YAML presets and flags, and one clear line for what a user can mend."""

import builtins
import contextlib
import difflib
import errno
import os
import re
import select
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader

import mg_keras
from mg_keras.errors import UserError
from mg_keras.limits import Limits, fits, wanted
from mg_keras.programs.help import HelpFormatter

if TYPE_CHECKING:
    from rich.table import Table

PRESETS = Path(mg_keras.__file__).with_name("presets")
"""The folder of the presets, YAML files of settings, which is installed with the package."""

# what the place of a file can be guilty of, and its user can mend
_OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


def run_program(main: Callable[[], Any]) -> None:
    """Runs `main()`; a `UserError` becomes one line and its exit status, Ctrl-C the status of its signal.

    So does a file that can't be written because of where it lies: a full disk, a folder without the right to write, a
    folder that has its name. Where nobody reads what is printed any more, as behind `| head`, it ends silently, with
    the status of the signal that this is to other programs.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not any([_is_unread(sys.stdout), _is_unread(sys.stderr)]):
            raise
        sys.exit(141)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        if error.errno not in _OF_THE_PLACE or error.filename is None:
            raise
        # of a file that is renamed, the name that it was to have
        print(f"error: {error.filename2 or error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _is_unread(stream):
    """Whether a stream leads to a pipe whose reader is gone; what it still holds is dropped, so that Python can end."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        # what stands for it in a test
        return False
    poll = select.poll()
    poll.register(number, 0)
    gone = bool(poll.poll(0))
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return gone


def print_table(table: "Table") -> None:
    """Prints a table, whole where there is no terminal to fit it into."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def with_preset(arguments: Sequence[str], folder: str | os.PathLike) -> tuple[Sequence[str], str | None]:
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
            raise UserError(unknown("preset", name, preset_names(folder)))
        return ["--config", str(path), *rest], name
    return arguments, None


def preset_names(folder: str | os.PathLike) -> list[str]:
    """The names of the presets in a folder, in order."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """That there is no `what` of this name, with the nearest of the known names, or all where none is near."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return f"unknown {what} {name!r}{hint}"


def given(arguments: Sequence[str] | None) -> list[str]:
    """The arguments that a program's `main` was given; None stands for those of the command line."""
    return list(sys.argv[1:] if arguments is None else arguments)


class Parser(ArgumentParser):
    """The arguments of a program; what is wrong with them is one line, a `UserError`.

    Args:
        program: what people start it by, as in `mg-keras train`.
        description: its help.
    """

    def __init__(self, program: str, description: str):
        super().__init__(prog=program, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        # argument -> what it may be, as `mg_keras.limits` has it, where its type alone doesn't say it
        self.kinds = {}

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **keywords: Any) -> Namespace:
        """As jsonargparse has it; the `~` of `--name=~/folder`, which no shell expands, is the home folder.

        A list needs no brackets: `96,128` and `96` are taken for it where they may be nothing else.
        """
        home = os.path.expanduser("~")
        arguments = [re.sub(r"^(--\w+=)~(?=/|$)", lambda found: found[1] + home, each) for each in given(args)]
        for place, argument in enumerate(arguments):
            flag, equals, value = argument.partition("=")
            kind = self.kinds.get(flag.removeprefix("--"))
            if kind is None or not flag.startswith("--"):
                continue
            if equals:
                arguments[place] = f"{flag}={_as_list(value, kind)}"
            elif place + 1 < len(arguments) and not arguments[place + 1].startswith("--"):
                arguments[place + 1] = _as_list(arguments[place + 1], kind)
        return super().parse_args(arguments, *more, **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a `UserError` in place of jsonargparse's lines of usage."""
        raise UserError(self._plain(message)) from ex

    def _plain(self, message):
        """A message of jsonargparse's in this project's words; one that is not known, as one line."""
        name = re.match(r'Parser key "(.+?)":', message)
        kind = re.search(r"Expected an? <class '(.+?)'>", message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if name and value and (kind or name[1] in self.kinds):
            words = wanted(self.kinds.get(name[1]) or getattr(builtins, kind[1]))
            return f"--{name[1]} must be {words}; received {value[1]!r}"
        if invalid := re.fullmatch(r"argument (--\w+): invalid (.+) value: (.*)", message):
            return "{} must be {}; received {}".format(*invalid.groups())
        if unknown := re.match(r"unrecognized arguments: --([\w-]+)", message):
            flags = {flag.lstrip("-"): flag for action in self._actions for flag in action.option_strings}
            near = difflib.get_close_matches(unknown[1], flags, 1)
            return message + (f"; did you mean {flags[near[0]]}?" if near else "")
        if missing := re.match(r"the following arguments are required: (.*)", message):
            return f"the following arguments are required: {', '.join(map(self._typed, missing[1].split(', ')))}"
        return " ".join(message.split())

    def _typed(self, name):
        """An argument as it is typed; jsonargparse leaves out the dashes."""
        flags = [flag for action in self._actions if action.dest == name for flag in action.option_strings]
        return flags[0] if flags else name


def _as_list(text, kind):
    """`[96,128]` for `96,128`, where it is of the kind and `96,128` is not; any other text as it is."""
    if "list" in wanted(kind):
        load = get_loader("yaml")
        with contextlib.suppress(yaml.YAMLError, ValueError):
            if not fits(load(text), kind) and fits(load(f"[{text}]"), kind):
                return f"[{text}]"
    return text


class _ArgumentType:
    """A type for arguments, which help and errors call what it takes."""

    def __init__(self, kind, bounds, parse):
        self.kind, self.parse = Annotated[kind, Limits(**bounds)] if bounds else kind, parse
        self.__name__ = wanted(self.kind)

    def __call__(self, text):
        value = self.parse(text)
        if not fits(value, self.kind):
            raise ValueError(f"{text} is not {self}")
        return value

    def __repr__(self):
        return self.__name__


def number(kind: type[int] | type[float], **bounds) -> "_ArgumentType":
    """A type for arguments: an int or a float within bounds, those of `Limits`."""
    return _ArgumentType(kind, bounds, kind)


def list_of(kind: type, **bounds) -> "_ArgumentType":
    """A type for arguments: `224,500`, `[224,500]` (as YAML has it) or one value -> a list of `kind`, within bounds."""

    def parse(text):
        values = text
        if not isinstance(text, list | tuple):
            text = str(text).strip()
            # a name may end in a bracket, too
            values = (text[1:-1] if text.startswith("[") and text.endswith("]") else text).split(",")
        return [kind(value.strip() if isinstance(value, str) else value) for value in values]

    return _ArgumentType(list[kind], bounds, parse)


def stage_arguments(
    program: str,
    description: str,
    arguments: Sequence[str] | None = None,
    more: Callable[[Parser], Any] | None = None,
    run_required: bool = True,
) -> Namespace:
    """The arguments of a program that comes after training: those that all have, and what `more(parser)` adds.

    Args:
        program, description: as `Parser` takes them.
        arguments: list of str; None takes those of the command line.
        more: adds arguments of the program's own to the `Parser` that it is given.
        run_required: whether there must be a `--run`.
    """
    parser = Parser(program, description)
    parser.add_argument("--run", type=str, required=run_required, help="the run's folder, such as runs/demo")
    parser.add_argument("--data", type=str, help="where the run's photos lie now; default: where they were")
    parser.add_argument(
        "--resolutions",
        type=list_of(int, at_least=1),
        help="pixels, such as 224,500,800, and of a run that of its training besides; default: those of its settings",
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=["last", "best"],
        help="which one to take; the results of best go into the run's folder best/",
    )
    if more:
        more(parser)
    return parser.parse_args(arguments)
