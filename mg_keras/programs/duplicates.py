"""Finds the photos of a folder that are there twice: mg-keras duplicates FOLDER.

It lists photos that are equal byte for byte, copies of others (edited, cropped, compressed), and photos that show the
same thing; of each group it proposes one to keep, and says why. Nothing is changed, unless --move-to names a folder for
those that may go, and the question is answered by yes. The photos are described once: the same command is quick again.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.files import check_file, in_home, printable_name
from mg_keras.programs import albums
from mg_keras.programs.common import Parser, number

_SHOWN = 20
_MEMBERS = 6
_WORDS = {"equal": "the same byte for byte", "copy": "copies", "similar": "similar"}
# as they are called in what is printed
_KINDS = {"copies": "copy"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the groups, and what was done with them."""
    parser = Parser("mg-keras duplicates", __doc__)
    parser.add_argument("folder", type=str, nargs="?", help="the album: photos at any depth")
    parser.add_argument(
        "--between",
        type=str,
        nargs=2,
        metavar=("A", "B"),
        help="two folders in place of one: what is in both, such as train and test; B is kept",
    )
    parser.add_argument("--out", type=str, help="a report to write: a name in .html, .json or .csv")
    parser.add_argument("--format", type=str, default="mg_keras", help="imagededup: the JSON {file: [duplicates]}")
    parser.add_argument("--kinds", type=str, default="equal,copy,similar", help="those to look for, by commas")
    parser.add_argument(
        "--precision", type=number(float, above=0, below=1), default=0.99, help="share of pairs that shall be right"
    )
    parser.add_argument(
        "--copy", type=number(float, at_least=-1, at_most=1), help="cosine from which on photos are copies"
    )
    parser.add_argument(
        "--similar", type=number(float, at_least=-1, at_most=1), help="cosine from which on they are similar"
    )
    parser.add_argument("--verify", type=bool, default=True, help="false: copies by cosine, not by their pixels")
    parser.add_argument("--trust", type=bool, default=False, help="true: copies may go, too, if all of them is kept")
    parser.add_argument("--move-to", type=str, help="a folder for what may go; asks first")
    parser.add_argument("--decided", type=bool, default=True, help="false: what was decided on the page does not count")
    parser.add_argument("--yes", type=bool, default=False, help="true: don't ask")
    albums.add_arguments(parser)
    options = parser.parse_args(arguments)

    from mg_keras.search import reports, thresholds
    from mg_keras.search.duplicates import check_kinds, check_similarities, find_duplicates
    from mg_keras.search.moving import check_target

    if (options.folder is None) == (options.between is None):
        raise UserError("one FOLDER is needed, or --between A B")
    folders = [albums.existing(folder) for folder in options.between or [options.folder]]
    if options.between and options.index:
        raise UserError("--index is for one folder; with --between each has an index in the cache")
    if options.format != "mg_keras" or options.out:
        reports.check(options.out or "standard output.json", options.format)
    # before photos are described and compared, which takes long
    kinds = [_KINDS.get(kind.strip(), kind.strip()) for kind in options.kinds.split(",")]
    check_kinds(kinds)
    if None not in (options.copy, options.similar):
        check_similarities(options.copy, options.similar)
    if options.out:
        check_file(in_home(options.out))
    if options.move_to:
        if not options.yes and not sys.stdin.isatty():
            raise UserError("--move-to asks first, and nobody can answer here: --yes true moves without asking")
        check_target(folders, options.move_to)
    model = albums.loaded(options)
    if options.copy is None:
        thresholds.check(model.thresholds, options.precision)
    indexes = [albums.index_of(folder, model, options) for folder in folders]
    found = find_duplicates(
        *indexes,
        kinds=kinds,
        precision=options.precision,
        copy=options.copy,
        similar=options.similar,
        verify=options.verify,
        trust=options.trust,
        label="comparing",
    )
    if options.decided and not options.between:
        found = _as_decided(found, indexes[0])
    if options.out:
        reports.write(found, options.out, options.format)
    elif options.format == "imagededup":
        json.dump(reports.as_imagededup(found), sys.stdout, indent=2, ensure_ascii=False)
        print()
    if options.out or options.format != "imagededup":
        _show(found, options.out, options.trust)
    if options.move_to:
        _move(found, options.move_to, options.yes)


def _as_decided(found, index):
    """What was found, with what was decided on the page."""
    from mg_keras.search.decisions import Decisions

    with Decisions(index.path) as decisions:
        applied = decisions.applied(found, index)
    if applied.count:
        groups = len(found.groups)
        print(f"{applied.count:,} of {groups:,} groups are as they were decided on the page", file=sys.stderr)
    if applied.unmatched:
        print(
            f"{applied.unmatched:,} decisions of the page match no group now; the photos that they keep may not go",
            file=sys.stderr,
        )
    return applied.found


def _show(found, out, trust):
    """The groups, as far as they fit a terminal, and what they come to."""
    from mg_keras.search.duplicates import words_of_bytes

    for number_of, group in enumerate(found.groups[:_SHOWN], 1):
        print(f"{number_of}. {_WORDS[group.kind]}: keep {printable_name(group.keep.name)} ({group.why})")
        for member in group.members[:_MEMBERS]:
            action = "may go" if member.spare else "look"
            print(f"     {action:6}  {_alike(member)}  {printable_name(member.photo.name)}")
        if len(group.members) > _MEMBERS:
            print(f"     and {len(group.members) - _MEMBERS:,} more")
    if len(found.groups) > _SHOWN:
        print(f"and {len(found.groups) - _SHOWN:,} more groups{'' if out else '; --out report.html has all'}")
    counts = ", ".join(
        f"{sum(group.kind == kind for group in found.groups):,} {words}" for kind, words in _WORDS.items()
    )
    equal = sum(member.relation == "equal" for group in found.groups for member in group.members)
    copied = f", {equal:,} of them the same byte for byte as another" if equal else ""
    print(f"{len(found.photos):,} photos{copied}; groups: {counts}")
    print(f"{len(found.spare):,} photos may go, {words_of_bytes(found.spare_bytes)}")
    if found.verified:
        print(
            "copies were found by their pixels, and have the share that is the same beside them: look at them; "
            + (
                "by --trust those may go of which the one that is kept has all"
                if trust
                else "only equal files may go, unless --trust true or the page lets them"
            )
        )
    elif not found.named and any(group.kind != "equal" for group in found.groups):
        how = "estimated" if found.estimated else "the model's, measured on other photos"
        print(
            f"the threshold of copies, {found.copy:.3f}, is {how}: look at them; only equal files may go, "
            "unless --copy names one or the page lets them"
        )
    albums.show_unusable(found.unusable)
    if out:
        print(f"written: {out}")


def _alike(member):
    """How far a photo of a group is like the one that is kept, in twelve letters."""
    if member.relation == "equal":
        return "equal files "
    return f"cosine {member.similarity:.3f}" if member.verified is None else f"pixels {100 * member.verified:3.0f} %"


def _move(found, target, yes):
    """Asks, and moves."""
    from mg_keras.search.duplicates import words_of_bytes
    from mg_keras.search.moving import LIST, move_spare

    if not found.spare:
        print("there is nothing to move")
        return
    if not yes:
        question = f"move {len(found.spare):,} photos ({words_of_bytes(found.spare_bytes)}) to {target}? [y/N] "
        try:
            answer = input(question)
        except EOFError:
            # Ctrl-D
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was moved")
            return
    done = move_spare(found, target)
    print(f"moved: {len(done.moved):,} photos; {Path(target) / LIST} says where each came from")
    for path, why in done.left[:_SHOWN]:
        print(f"left: {printable_name(path)}: {why}")
    if len(done.left) > _SHOWN:
        print(f"and {len(done.left) - _SHOWN:,} more were left")
