"""Several names written as one: lists with commas, `{000..146}` and `{a,b}`."""

import itertools
import re

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(argument: str) -> list[str]:
    """Patterns without braces: those of a list with commas, `{000..146}` and `{a,b}` written out.

    Example:
        >>> expand_braces("a-{08..10}.tar,{b,c}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b.tar', 'c.tar']
    """
    return list(itertools.chain.from_iterable(_expanded(part) for part in _split_outside(argument) if part))


def _split_outside(text):
    """The parts between commas that stand in no braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _expanded(text):
    """A pattern with its braces written out, from the first on."""
    start = text.find("{")
    end, depth = start, 0
    while start >= 0 and end < len(text):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            break
        end += 1
    if start < 0 or end == len(text):
        return [text]
    inner = text[start + 1 : end]
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = itertools.chain.from_iterable(_expanded(choice) for choice in _split_outside(inner))
    return [text[:start] + choice + rest for choice in choices for rest in _expanded(text[end + 1 :])]
