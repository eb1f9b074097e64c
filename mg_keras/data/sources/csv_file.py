"""`csv:FILE`: a table that names photos and their labels, one photo a row.

The first row names the columns, in any order and case; `,`, `;` or tab stands between them, and the text is UTF-8.

* `path`: a photo, relative to the folder of the table;
* `label`: the name of its class. `csv:FILE?label=fine,coarse` names other columns, one or several: the first is trained
  on, and all are in `Split.label_columns`;
* `split`, which may be missing: `train`, `val`, `test` or another word that folders of a split may be called by, or
  `unlabelled`. Without rows for validation, those for training are divided class by class.

Other columns are passed over.
"""

import dataclasses
import os
import unicodedata

import numpy as np

from mg_keras.data.finding import look_at, told, why_none
from mg_keras.data.sources.contract import Source, SplitOptions, asked_columns, divide, usable
from mg_keras.data.sources.file_splits import HELD_OUT, TRAINING, UNLABELLED, converted, file_split
from mg_keras.data.tables import records
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.progress import say


@dataclasses.dataclass(frozen=True)
class _Row:
    """A photo of the table.

    Attributes:
        number: of the row, 1 for the header.
        path: of the photo.
        labels: column -> the class's name; none of an unlabelled photo.
        part: the word that says what it is for, in small letters; `TRAINING[0]` where there is no such column.
    """

    number: int
    path: str
    labels: dict
    part: str


def open_csv(argument: str, options: SplitOptions, resolution: int, data_dir: str | None) -> Source:
    """The photos of a table as a `Source`, as this module's docstring says."""
    del resolution
    file, columns = _file_and_columns(argument)
    place = printable_name(file)
    rows = _rows(file, columns)
    found, missing = look_at([row.path for row in rows], f"looking for the photos of {place}")
    if missing:
        row = next(row for row in rows if row.path == missing[0])
        more = f" (and those of {len(missing) - 1:,} more rows)" if len(missing) > 1 else ""
        raise UserError(f"{place}, row {row.number}: no such file: {printable_name(row.path)}{more}")
    # by all rows: where none of these photos can be used, no others take their place
    held_out = next((word for word in HELD_OUT if any(row.part == word for row in rows)), None)
    rows = _usable(rows, columns[0], held_out, found.passed_over, file)
    # what is to be refused is refused before a conversion that may take hours
    used = [row.path for part in _divided(rows, columns[0], held_out, options, place) for row in part]
    copies, problems = converted(used, found.kinds, file, data_dir)
    rows = _usable(rows, columns[0], held_out, problems, file)
    train, val, unlabelled = _divided(rows, columns[0], held_out, options, place)
    names = {column: _class_names(row.labels[column] for row in (*train, *val)) for column in columns}
    numbers = {column: {name: number for number, name in enumerate(known)} for column, known in names.items()}

    def split(part):
        labels = {
            column: np.array([numbers[column][row.labels[column]] if row.labels else -1 for row in part], np.int32)
            for column in columns
        }
        return file_split([row.path for row in part], labels[columns[0]], copies, label_columns=labels)

    source = Source(
        f"table {printable_name(file.name)}",
        names[columns[0]],
        split(train),
        split(val),
        split(unlabelled) if unlabelled else None,
        label_columns=names,
    )
    return dataclasses.replace(usable(source, place), passed_over=told(found.passed_over | problems, file.parent))


def _file_and_columns(argument):
    """(the table, its columns of labels) of `FILE` or `FILE?label=COLUMN,COLUMN`."""
    # a file's name may hold anything
    name, asked = (argument, ()) if in_home(argument).is_file() else asked_columns(argument)
    file = in_home(name)
    if not file.is_file():
        raise UserError(f"no such file: {printable_name(file)}")
    columns = [column.casefold() for column in asked or ("label",)]
    if {"path", "split"} & set(columns):
        raise UserError(f"?label= must name columns of labels, not path or split, received {argument!r}")
    return file, columns


def _rows(file, columns):
    """The photos of the table, in its order, as `_Row`s."""
    place = printable_name(file)
    records = _records(file, place)
    number, header = next(records, (1, []))
    header = [name.strip().casefold() for name in header]
    for wanted in ("path", *columns):
        if header.count(wanted) != 1:
            there = "no" if wanted not in header else "more than one"
            hint = " (csv:FILE?label=COLUMN names another one)" if wanted == "label" else ""
            raise UserError(
                f"{place} has {there} column {wanted!r}{hint}: row {number} has {', '.join(header) or 'none'}"
            )
    rows, row_of = [], {}
    for number, values in records:
        row = _row(number, dict(zip(header, values, strict=False)), columns, file, place)
        first = row_of.setdefault(os.path.normpath(row.path), number)
        if first != number:
            raise UserError(
                f"{place}, row {number}: a photo has one row, received {printable_name(row.path)} as in row {first}"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{place} names no photo: it has no row but the first")
    return rows


def _row(number, values, columns, file, place):
    path = values.get("path", "")
    if not path:
        raise UserError(f"{place}, row {number}: the path is empty")
    part = values.get("split", "").strip().casefold() if "split" in values else TRAINING[0]
    if part not in (*TRAINING, *HELD_OUT, *UNLABELLED):
        raise UserError(
            f"{place}, row {number}: split must be {', '.join((TRAINING[0], *HELD_OUT))} or {UNLABELLED[0]}, received "
            f"{part!r}"
        )
    labels = {}
    if part not in UNLABELLED:
        # as the names of folders: a line of text, in composed Unicode
        written = {column: values.get(column, "").strip() for column in columns}
        labels = {column: printable_name(unicodedata.normalize("NFC", name)) for column, name in written.items()}
        for column, name in labels.items():
            if not name:
                without = f", or take ?label={columns[0]} alone" if column != columns[0] else ""
                raise UserError(f"{place}, row {number}: {column!r} is empty: every photo has a label{without}")
    return _Row(number, os.path.join(file.parent, os.path.expanduser(path)), labels, part)


def _records(file, place):
    """(number, values) of each row that is not blank, the header's first."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            yield from records(lines, place)
    except OSError as error:
        raise UserError(f"{place} can't be read: {error.strerror or error}") from None


def _usable(rows, column, held_out, passed_over, file):
    """The rows without those whose photo is `passed_over`, if every class keeps one to train on, and `held_out` one."""
    kept = [row for row in rows if row.path not in passed_over]
    before, after = ({row.labels[column] for row in some if row.part in TRAINING} for some in (rows, kept))
    if lost := sorted(before - after):
        inside = {row.path for row in rows if row.labels.get(column) == lost[0]}
        why = why_none({path: reason for path, reason in passed_over.items() if path in inside}, file.parent)
        raise UserError(f"no photo for class {', '.join(map(repr, lost))} in {printable_name(file)}: {why}")
    if held_out and not any(row.part == held_out for row in kept):
        inside = {row.path for row in rows if row.part == held_out}
        why = why_none({path: reason for path, reason in passed_over.items() if path in inside}, file.parent)
        raise UserError(f"no photo for validation in {printable_name(file)}, none of {held_out} can be used: {why}")
    return kept


def _divided(rows, column, held_out, options, place):
    """(for training, for validation, without labels), lists of rows; says what is not used.

    `held_out` is the word of the split that is for validation; None: there is none.
    """
    by_part = {}
    for row in rows:
        by_part.setdefault(row.part, []).append(row)
    train = [row for row in rows if row.part in TRAINING]
    if not train:
        raise UserError(f"{place} has no photo to train on: split is {TRAINING[0]} in no row")
    by_class = {}
    for row in train:
        by_class.setdefault(row.labels[column], []).append(row)
    if held_out is None:
        halves = [divide(name, found, options) for name, found in sorted(by_class.items())]
        train, val = ([row for half in halves for row in half[part]] for part in (0, 1))
    else:
        val = by_part[held_out]
        for row in val:
            if row.labels[column] not in by_class:
                raise UserError(
                    f"{place}, row {row.number}: no photo for training has the {column} of this one for validation, "
                    f"received {row.labels[column]!r}"
                )
    if unused := [f"{len(by_part[word]):,} of {word}" for word in HELD_OUT if word in by_part and word != held_out]:
        say(f"not used for training or validation in {place}: photos, {', '.join(unused)}")
    return train, val, [row for row in rows if row.part in UNLABELLED]


def _class_names(labels):
    """All different, in order of name; of whole numbers by their size."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names
