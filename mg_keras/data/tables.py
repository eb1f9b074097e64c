"""Tables as text: `,`, `;` or tab between columns, in UTF-8."""

import csv
from collections.abc import Iterator
from typing import TextIO

from mg_keras.errors import UserError

_DELIMITERS = (",", ";", "\t")


def records(lines: TextIO, place: str) -> Iterator[tuple[int, list[str]]]:
    """(number, values) of each row that is not blank, the header's first; the first line tells what stands between.

    Args:
        lines: the text, `newline=""`, at its beginning.
        place: what to call it in messages.

    Raises:
        UserError: it is no UTF-8, or no table, or a row has more values than the header.
    """
    number, first, width = 0, [], None

    def again():
        yield from first
        yield from lines

    try:
        first.append(lines.readline())
        delimiter = max(_DELIMITERS, key=first[0].count)
        rows = csv.reader(again(), delimiter=delimiter, skipinitialspace=True, strict=True)
        for number, values in enumerate(rows, start=1):
            if not any(values):
                continue
            width = len(values) if width is None else width
            if any(values[width:]):
                raise UserError(
                    f"{place}, row {number}: at most {width} values, as the first row has, received {len(values)}: "
                    "put quotes around one that holds what stands between columns"
                )
            yield number, values
    except UnicodeDecodeError:
        raise UserError(f"{place} must be text in UTF-8, received other bytes: save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{place}, row {number + 1} can't be read as a table: {error}") from None
