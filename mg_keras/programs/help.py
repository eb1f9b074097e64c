"""How the help of a program is laid out: what it is for and how it is called first, types in plain words."""

import re
import textwrap
from argparse import Action
from typing import Literal, get_origin

from jsonargparse import DefaultHelpFormatter

from mg_keras.limits import wanted

# a usage that names more arguments is longer than what it is to explain
_MOST_IN_USAGE = 8


class HelpFormatter(DefaultHelpFormatter):
    """`jsonargparse.DefaultHelpFormatter` that keeps the paragraphs, examples and lists of a module's docstring."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(laid_out(text, width - len(indent)), indent)

    def _format_usage(self, usage, actions, *arguments, **options):
        if usage is None and len(actions) > _MOST_IN_USAGE:
            named = [action for action in actions if action.required or not action.option_strings]
            usage = super()._format_usage(None, named, *arguments, **options)
            return f"{usage.rstrip()} [--OPTION VALUE ...]\n\n"
        return super()._format_usage(usage, actions, *arguments, **options)

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        if action.default is not None:
            return text
        # what null stands for, the words say
        return re.sub(r" \(default: %\(default\)s\)|, default: %\(default\)s", "", text)

    def _get_type_str(self, action: Action) -> str | None:
        kind = getattr(action, "_typehint", action.type)
        if kind is str or get_origin(kind) is Literal:
            # any text, or values that stand before the words already
            return None
        try:
            return wanted(kind)
        except KeyError:
            return super()._get_type_str(action)


def laid_out(text: str, width: int) -> str:
    """A docstring, its paragraphs and the items of its lists (`* `) wrapped, what is indented by four as it is."""
    lines, blocks = text.strip().splitlines(), []
    for line in lines:
        last = blocks[-1][-1] if blocks else ""
        if not (line and last) or line.startswith(("    ", "* ")) or last.startswith("    "):
            blocks.append([line])
        else:
            blocks[-1].append(line)
    return "\n".join(_wrapped(block, width) for block in blocks)


def _wrapped(block, width):
    if block[0].startswith("    "):
        return block[0]
    indent = "  " if block[0].startswith("* ") else ""
    words = re.sub(r"\s+", " ", " ".join(block))
    return textwrap.fill(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
