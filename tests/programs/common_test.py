"""What programs share: mistyped arguments in one line, and files that can't be written."""

import errno
import subprocess
import sys

import pytest

from mg_keras.errors import UserError
from mg_keras.files import atomic_write_text
from mg_keras.programs.common import Parser, list_of, number, run_program


@pytest.fixture
def parser():
    parser = Parser("mg-keras some", "Does something.")
    parser.add_argument("--size", type=number(int, at_least=1), default=3)
    parser.add_argument("--share", type=number(float, above=0, at_most=1))
    parser.add_argument("--sizes", type=list_of(int, at_least=1))
    parser.add_argument("--names", type=list_of(str))
    parser.add_argument("--whole", type=int)
    parser.add_argument("--really", type=bool, default=False)
    parser.add_argument("--which", choices=["last", "best"], default="last")
    return parser


def test_arguments_of_each_type(parser):
    options = parser.parse_args(
        ["--size=1", "--share=1", "--sizes=[3, 4]", "--names=a,b", "--really=true", "--whole=-1"]
    )
    assert (options.size, options.share, options.sizes, options.names) == (1, 1.0, [3, 4], ["a", "b"])
    assert (options.really, options.whole, options.which) == (True, -1, "last")
    assert parser.parse_args([]).size == 3
    # brackets of a name are its own
    assert parser.parse_args(["--names=a,holidays=photos[1]"]).names == ["a", "holidays=photos[1]"]


def test_the_home_folder_behind_an_equals_sign(parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = parser.parse_args(["--names=~/a,b~/c", "--which=last"])
    assert options.names == ["/home/me/a", "b~/c"]
    assert parser.parse_args(["--names=~a/b"]).names == ["~a/b"], "another's home is not ours"
    assert parser.parse_args(["--names=~"]).names == ["/home/me"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=0"], "--size must be a whole number, at least 1; received '0'"),
        (["--size=2.5"], "--size must be a whole number, at least 1; received '2.5'"),
        (["--share=nan"], "--share must be a number, above 0 and at most 1; received 'nan'"),
        (["--sizes=3,0"], "--sizes must be a list of whole numbers, at least 1; received '3,0'"),
        (["--whole=x"], "--whole must be a whole number; received 'x'"),
        (["--really=perhaps"], "--really must be true or false; received 'perhaps'"),
        (["--which=first"], "argument --which: invalid choice: 'first' (choose from"),
        (["--whol=1"], "unrecognized arguments: --whol=1; did you mean --whole?"),
        (["--xyz"], "unrecognized arguments: --xyz"),
        (["stray"], "unrecognized arguments: stray"),
        (["--size"], "argument --size: expected one argument"),
    ],
)
def test_mistyped_arguments(parser, arguments, message, capsys):
    with pytest.raises(UserError) as refused:
        parser.parse_args(arguments)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


def test_arguments_that_are_missing_are_named_as_they_are_typed(parser):
    parser.add_argument("--out", required=True)
    parser.add_argument("folder")
    with pytest.raises(UserError, match=r"arguments are required: (--out, folder|folder, --out)$"):
        parser.parse_args([])


def test_a_flag_that_is_near_is_named_as_it_is_typed_and_is_one(parser):
    parser.add_argument("--move-to")
    parser.add_argument("folder", nargs="?")
    for given, hint in (("--moveto=x", "; did you mean --move-to?"), ("--move-too=x", "; did you mean --move-to?")):
        with pytest.raises(UserError) as refused:
            parser.parse_args([given])
        assert str(refused.value).endswith(hint)
    with pytest.raises(UserError, match=r"unrecognized arguments: --folder=x$"):
        parser.parse_args(["--folder=x"])


def test_help_says_what_an_argument_takes(parser):
    help = " ".join(parser.format_help().split())
    assert "(type: a number, above 0 and at most 1)" in help


def test_a_reader_that_leaves_ends_it_silently():
    for count in (1, 100_000):
        code = f"from mg_keras.programs.common import run_program; run_program(lambda: print('line\\n' * {count}))"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
            program.stdout.close()
            told = program.stderr.read()
        assert (program.returncode, told) == (141, b"")

    def of_something_else():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_program(of_something_else)


def test_a_file_that_its_place_does_not_take_is_one_line(tmp_path, capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/demo/curves.png")

    with pytest.raises(SystemExit) as stopped:
        run_program(full)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: runs/demo/curves.png: No space left on device\n"

    def of_a_folder():
        atomic_write_text(tmp_path / "there", "scores")

    (tmp_path / "there" / "something").mkdir(parents=True)
    with pytest.raises(SystemExit):
        run_program(of_a_folder)
    assert capsys.readouterr().err.endswith("there: Is a directory\n")

    def our_bug():
        open("/no/such/file")  # noqa: SIM115

    with pytest.raises(FileNotFoundError):
        run_program(our_bug)
