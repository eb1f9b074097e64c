"""The layout of a program's help."""

from typing import Annotated, Literal

import pytest

from mg_keras.limits import Limits
from mg_keras.programs.common import Parser
from mg_keras.programs.help import laid_out

DOCSTRING = """Does a thing: mg-keras thing --with this and with so much else that the line is a long one.

    mg-keras thing --with an example that is longer than any line of this width may be

--out is one of
* a file, which is
  explained in two lines and is wrapped like any other text is;
* --a-folder.

The end.
"""


def test_paragraphs_examples_and_lists_stay_what_they_are():
    assert laid_out(DOCSTRING, width=50).splitlines() == [
        "Does a thing: mg-keras thing --with this and with",
        "so much else that the line is a long one.",
        "",
        "    mg-keras thing --with an example that is longer than any line of this width may be",
        "",
        "--out is one of",
        "* a file, which is explained in two lines and is",
        "  wrapped like any other text is;",
        "* --a-folder.",
        "",
        "The end.",
    ]


@pytest.fixture
def parser():
    return Parser("mg-keras thing", DOCSTRING)


def lines_of(parser, argument):
    """What the help says of an argument, on one line."""
    text = " ".join(parser.format_help().split())
    return text[text.rindex(argument) :]


@pytest.mark.parametrize(
    ("kind", "default", "said"),
    [
        (Annotated[int | None, Limits(at_least=1)], None, "how many (type: a whole number, at least 1, or null)"),
        (Annotated[float, Limits(above=0)], 0.5, "how many (type: a number, above 0, default: 0.5)"),
        (Literal["few", "many"], "few", "how many (default: few)"),
        (str, None, "how many"),
        (str, "all", "how many (default: all)"),
    ],
)
def test_types_are_told_in_words_and_null_is_not_told(parser, kind, default, said):
    parser.add_argument("--count", type=kind, default=default, help="how many")
    assert lines_of(parser, "how many") == said


def test_the_usage_of_a_program_with_many_options_names_what_it_needs(parser):
    parser.add_argument("folder", help="of photos")
    parser.add_argument("--out", required=True, help="where to")
    for number in range(10):
        parser.add_argument(f"--option_{number}", help="of little account")
    assert parser.format_help().splitlines()[0] == "usage: mg-keras thing --out OUT folder [--OPTION VALUE ...]"


def test_the_usage_of_a_program_with_few_options_names_all(parser):
    parser.add_argument("--out", required=True, help="where to")
    assert parser.format_help().splitlines()[0] == "usage: mg-keras thing --out OUT"
