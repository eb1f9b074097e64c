import math
from typing import Annotated, Literal

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.limits import Limits, check, fits, wanted

ONE_OR_SOME = Literal["a", "b"] | list[Literal["a", "b"]]
COUNT = Annotated[int, Limits(at_least=1)]
SHARE = Annotated[float | None, Limits(above=0, at_most=1)]
RISING = Annotated[list[int], Limits(at_least=0, rising=True)]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (int, [0, -3, np.int64(4)], [1.0, True, "1", None, [1]], "a whole number"),
        (float, [0.5, 3, np.float32(1)], [False, "0.5", None, math.nan, math.inf, [0.5]], "a number"),
        (bool, [True, False], [0, 1, "true", None], "true or false"),
        (str, ["", "1"], [1, None, ["a"]], "a text"),
        (str | None, ["a", None], [1], "a text or null"),
        (Literal["step", "cosine"], ["step"], ["Step", None, 1, ["step"]], "one of step, cosine"),
        (ONE_OR_SOME, ["a", [], ["b", "a"]], ["c", ["c"], None], "one of a, b or a list such as [a,b]"),
        (list[Literal["a", "b"]], [[], ["b"]], ["a", ["c"]], "a list such as [a,b] of some of a, b"),
        (COUNT, [1, 2], [0, 1.0, "1", None], "a whole number, at least 1"),
        (SHARE, [None, 1, 1e-9], [0, 1.01, -1, math.nan, "1"], "a number, above 0 and at most 1, or null"),
        (
            RISING,
            [[], [0], [0, 1, 7]],
            [[1, 1], [2, 1], [-1, 3], [0.5], 3, None, ["1"]],
            "a list of whole numbers, at least 0 and each greater than the one before",
        ),
        (Annotated[float, Limits(at_least=0, below=1)], [0, 0.99], [1, -0.1], "a number, at least 0 and below 1"),
    ],
)
def test_kinds(kind, good, bad, words):
    assert [value for value in good if not fits(value, kind)] == []
    assert [value for value in bad if fits(value, kind)] == []
    assert wanted(kind) == words


def test_a_refusal_names_the_value_and_what_would_be_right():
    check("epochs", 1, COUNT)
    with pytest.raises(UserError, match=r"^epochs must be a whole number, at least 1; received 'two'$"):
        check("epochs", "two", COUNT)
    with pytest.raises(UserError, match=r"received null$"):
        check("epochs", None, COUNT)
