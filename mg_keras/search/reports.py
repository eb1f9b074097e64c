"""Duplicates as files: a page to look at, JSON, CSV, or the JSON of imagededup.

The page holds everything that it needs. No name of a photo is read as anything but text.
"""

import base64
import csv
import datetime
import html
import io
import os
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from mg_keras.errors import UserError
from mg_keras.files import atomic_write_json, atomic_write_text, in_home, printable_name
from mg_keras.progress import mapped
from mg_keras.search.duplicates import COPY, EQUAL, SIMILAR, Duplicates, words_of_bytes
from mg_keras.search.thumbnails import thumbnail

SUFFIXES = (".html", ".json", ".csv")
FORMATS = ("mg_keras", "imagededup")

# photos that the page shows: some 12 MB of it
_SHOWN, _SIDE = 1500, 220
_COLUMNS = (
    *("group", "kind", "action", "path", "kept", "relation", "similarity", "verified"),
    *("width", "height", "bytes", "modified", "sha256", "class", "why"),
)


def write(found: Duplicates, path: str | os.PathLike, form: str = "mg_keras") -> None:
    """Writes a report, whole or not at all.

    Args:
        found: what to report.
        path: a name in `.html`, `.json` or `.csv`.
        form: `"imagededup"` makes the JSON what imagededup's `find_duplicates` gives, `{file: [duplicates]}`.

    Raises:
        UserError: another name, or it can't be written.
    """
    check(path, form)
    path = in_home(path)
    try:
        if form == "imagededup":
            atomic_write_json(path, as_imagededup(found))
        elif path.suffix == ".json":
            atomic_write_json(path, as_json(found))
        elif path.suffix == ".csv":
            atomic_write_text(path, as_csv(found))
        else:
            atomic_write_text(path, as_html(found))
    except OSError as error:
        raise UserError(f"{printable_name(path)} can't be written: {error.strerror or error}") from error


def check(path: str | os.PathLike, form: str = "mg_keras") -> None:
    """Refuses what `write` would refuse, before there is anything to write."""
    suffix = Path(path).suffix
    if form not in FORMATS:
        raise UserError(f"the format must be one of {', '.join(FORMATS)}, received {form!r}")
    if suffix not in SUFFIXES:
        raise UserError(f"a report is written to a name in {', '.join(SUFFIXES)}, received {printable_name(path)}")
    if form == "imagededup" and suffix != ".json":
        raise UserError(f"the format imagededup is JSON: choose a name in .json, received {printable_name(path)}")


def as_imagededup(found: Duplicates) -> dict[str, list[str]]:
    """`{file: [duplicates]}` of every photo, as imagededup has it: equal ones and copies, in order of name."""

    def called(photo):
        return printable_name(photo.name if len(found.folders) == 1 else photo.path)

    duplicates: dict[str, list[str]] = {called(photo): [] for photo in found.photos}
    for group in found.groups:
        if group.kind == SIMILAR:
            continue
        names = [called(group.keep), *(called(each.photo) for each in group.members if each.relation != SIMILAR)]
        for name in names:
            duplicates[name] = sorted(other for other in names if other != name)
    return duplicates


def as_json(found: Duplicates) -> dict[str, Any]:
    """What JSON holds: folders, thresholds, groups with the photo to keep and why, what may go, what can't be used."""
    return {
        "folders": [printable_name(folder) for folder in found.folders],
        "photos": len(found.photos),
        "thresholds": {"copy": found.copy, "similar": found.similar, "estimated": found.estimated},
        "verified": found.verified,
        "spare": {"photos": len(found.spare), "bytes": found.spare_bytes},
        "groups": [
            {
                "kind": group.kind,
                "keep": _facts(group.keep),
                "why": group.why,
                "others": [
                    {
                        **_facts(member.photo),
                        "relation": member.relation,
                        "similarity": round(member.similarity, 4),
                        "verified": member.verified and round(member.verified, 4),
                        "spare": member.spare,
                    }
                    for member in group.members
                ],
            }
            for group in found.groups
        ],
        "unusable": [{"path": printable_name(photo.path), "problem": photo.problem or ""} for photo in found.unusable],
    }


def as_csv(found: Duplicates) -> str:
    """A line a photo; `action` is keep, spare (it may go) or look (at it first)."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_COLUMNS)
    for number, group in enumerate(found.groups, 1):
        kept = printable_name(group.keep.path)
        table.writerow(_row(number, group.kind, "keep", group.keep, kept, "", "", "", group.why))
        for member in group.members:
            action = "spare" if member.spare else "look"
            scores = (f"{member.similarity:.4f}", "" if member.verified is None else f"{member.verified:.4f}")
            table.writerow(_row(number, group.kind, action, member.photo, kept, member.relation, *scores, ""))
    return buffer.getvalue()


def as_html(found: Duplicates) -> str:
    """A page by itself, with small pictures in it."""
    groups, shown = [], 0
    for group in found.groups:
        if shown + len(group.photos) > _SHOWN and groups:
            break
        groups.append(group)
        shown += len(group.photos)
    photos = {photo.path: photo for group in groups for photo in group.photos}
    pictures = dict(zip(photos, mapped(_data_url, photos, "pictures", "photos", together=8), strict=True))
    counts = {kind: sum(group.kind == kind for group in found.groups) for kind in (EQUAL, COPY, SIMILAR)}
    left = len(found.groups) - len(groups)
    return Template(_PAGE).substitute(
        title=_text(" and ".join(printable_name(folder) for folder in found.folders)),
        count=f"{len(found.photos):,}",
        equal=_count(counts[EQUAL], "group", "same byte for byte"),
        copy=_count(counts[COPY], "group", "copies"),
        similar=_count(counts[SIMILAR], "group", "similar"),
        spare=f"{len(found.spare):,}",
        freed=words_of_bytes(found.spare_bytes),
        thresholds=("copies by their pixels" if found.verified else f"copies from a cosine of {found.copy:.3f}")
        + f", similar from a cosine of {found.similar:.3f}"
        + (" (estimated: look at them before they go)" if found.estimated else ""),
        groups="\n".join(_group(number, group, pictures) for number, group in enumerate(groups, 1))
        or '<p class="none">No photo is there twice.</p>',
        more=f"<p>{left:,} more groups are not shown; a report in .json or .csv has all.</p>" if left else "",
        unusable=_unusable(found.unusable),
    )


def _facts(photo):
    return {
        "path": printable_name(photo.path),
        "name": printable_name(photo.name),
        "width": photo.width,
        "height": photo.height,
        "bytes": photo.file_size,
        "modified": _time(photo),
        "sha256": photo.sha256,
        "class": photo.class_name,
    }


def _row(number, kind, action, photo, kept, relation, similarity, verified, why):
    facts: Mapping[str, Any] = _facts(photo)
    values = (facts[name] for name in ("width", "height", "bytes", "modified", "sha256", "class"))
    return [number, kind, action, facts["path"], kept, relation, similarity, verified, *map(_filled, values), why]


def _filled(value):
    return "" if value is None else value


def _time(photo):
    if photo.modified is None:
        return None
    return datetime.datetime.fromtimestamp(photo.modified / 1e9).isoformat(" ", "seconds")


def _text(text):
    return html.escape(str(text), quote=True)


def _count(count, what, rest):
    return f"<b>{count:,}</b> {what}{'' if count == 1 else 's'}<br>{rest}"


def _data_url(path):
    picture = thumbnail(path, _SIDE)
    return picture and f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def _group(number, group, pictures):
    titles = {EQUAL: "The same byte for byte", COPY: "Copies", SIMILAR: "Similar"}
    cards = [_card(group.keep, pictures, "keep", f"keep: {group.why}")]
    for member in group.members:
        relation = "the same" if member.relation == EQUAL else f"{member.relation}, {member.similarity:.3f}"
        if member.verified is not None:
            relation = f"copy, {100 * member.verified:.0f} % the same pixels"
        cards.append(_card(member.photo, pictures, "spare" if member.spare else "look", relation))
    return (
        f'<section class="{group.kind}"><h2><span>{number}</span> {titles[group.kind]}'
        f"<small>{len(group.photos)} photos</small></h2><div>{''.join(cards)}</div></section>"
    )


def _card(photo, pictures, action, note):
    source = pictures[photo.path]
    name = _text(printable_name(photo.name))
    picture = f'<img src="{source}" alt="{name}" loading="lazy">' if source else '<i class="missing">no picture</i>'
    size = f"{photo.width} × {photo.height} · " if photo.width else ""
    weight = "" if photo.file_size is None else words_of_bytes(photo.file_size)
    words = {"keep": "keep", "spare": "may go", "look": "look first"}[action]
    return (
        f'<figure class="{action}">{picture}<figcaption><em>{words}</em><strong title="{name}">{name}</strong>'
        f"<span>{size}{weight}</span><span>{_text(_time(photo) or '')}</span><span>{_text(note)}</span>"
        "</figcaption></figure>"
    )


def _unusable(photos):
    if not photos:
        return ""
    lines = "".join(
        f"<li>{_text(printable_name(photo.name))}: {_text(printable_name(photo.problem or ''))}</li>"
        for photo in photos[:_SHOWN]
    )
    return f"<details><summary>{len(photos):,} photos could not be used</summary><ul>{lines}</ul></details>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Duplicates in $title</title>
<style>
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1c1a; --faint: #6b6b66; --line: #dededa;
  --keep: #1a7f4b; --spare: #b3411e; --look: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --card: #222220; --text: #ededea; --faint: #9d9d96;
  --line: #383835; --keep: #54c98a; --spare: #f08a64; --look: #dcbc4a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 78rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
header p { margin: .3rem 0 1.2rem; color: var(--faint); }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin-bottom: 2rem; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem;
  min-width: 9rem; color: var(--faint); }
.figures b { font-size: 1.35rem; color: var(--text); }
section { margin: 0 0 1.75rem; }
h2 { display: flex; align-items: baseline; gap: .6rem; margin: 0 0 .6rem; font-size: 1rem; }
h2 span { color: var(--faint); font-variant-numeric: tabular-nums; }
h2 small { color: var(--faint); font-weight: normal; }
section > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .75rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure.keep { border-color: var(--keep); box-shadow: inset 0 0 0 1px var(--keep); }
figure img, figure .missing { display: block; width: 100%; height: 9.5rem; object-fit: contain;
  background: var(--page); }
figure .missing { display: grid; place-items: center; color: var(--faint); }
figcaption { display: flex; flex-direction: column; padding: .5rem .65rem .65rem; font-size: .82rem; }
figcaption strong { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figcaption span { color: var(--faint); overflow-wrap: anywhere; }
em { font-style: normal; font-weight: 600; font-size: .75rem; letter-spacing: .02em; }
.keep em { color: var(--keep); } .spare em { color: var(--spare); } .look em { color: var(--look); }
details { margin-top: 2rem; color: var(--faint); overflow-wrap: anywhere; }
.none { padding: 3rem; text-align: center; color: var(--faint); }
@media print { section { break-inside: avoid; } }
</style>
</head>
<body>
<header>
<h1>Duplicates in $title</h1>
<p>$count photos were compared; $thresholds.</p>
<div class="figures">
<div>$equal</div>
<div>$copy</div>
<div>$similar</div>
<div><b>$spare</b> photos<br>may go, $freed</div>
</div>
</header>
<main>
$groups
$more
</main>
$unusable
</body>
</html>
"""
