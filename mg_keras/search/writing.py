"""Changes of an index: a folder as it is now, photos or descriptors that come, and photos that go."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_keras.data import finding
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.progress import Progress, mapped
from mg_keras.search import neighbors
from mg_keras.search.describing import MOST_CLASSES, Model, unit, why_unusable
from mg_keras.search.given import Descriptors, check_once
from mg_keras.search.photos import Facts, look_at, look_at_file, pixels, size_of, stamp
from mg_keras.search.store import State, Writer

# photos of the first chunk and of the largest: results come soon, and what a chunk costs besides is little
_FIRST_CHUNK, _LARGEST_CHUNK = 32, 512
_ROWS_AT_ONCE = 65_536
# further classes are kept of a photo if they have a share worth the name
_LEAST_PROBABILITY = 0.01
_SMALLEST_APPROXIMATE = 1024
# parts of reasons why a photo can't be used that may pass without a change of its file
_PASSING = ("could not be read", "can't be opened")


@dataclasses.dataclass
class Changes:
    """What an update found.

    Attributes:
        added, changed, removed: how many photos.
        moved: how many lie under another name than before, and kept their descriptor.
        embedded: how many had to be described.
        unusable: how many of those that were looked at can't be used.
        passed_over: (name, reason) of files and folders that are no photos, in order of name.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    moved: int = 0
    embedded: int = 0
    unusable: int = 0
    passed_over: tuple[tuple[str, str], ...] = ()


class Work:
    """What a writer does with photos and descriptors.

    Args:
        writer: of the index.
        model: what describes photos; None where none are added.
        label: what to call the work where it shows its progress; None: it shows none.
        report: called with (done, all) after each part, or None.
    """

    def __init__(
        self, writer: Writer, model: Model | None, label: str | None, report: Callable[[int, int], None] | None
    ):
        self.writer, self.model, self.label, self.report = writer, model, label, report
        self.changes = Changes()

    def update(self) -> Changes:
        """The folder as it is now.

        Raises:
            UserError: the index is of no folder, the folder is gone, or the model is another.
        """
        about = self.writer.about
        if about["root"] is None:
            raise UserError(f"{self.writer.folder} is no index of a folder: add and remove say what changes in it")
        self._needs_model()
        root = Path(about["root"])
        _check_there(root, self.writer.folder)
        found = _without(finding.find_photos(root, recursive=about["recursive"]), root, self.writer.folder)
        self.changes.passed_over = tuple(
            (printable_name(path), printable_name(reason)) for path, reason in sorted(found.passed_over.items())
        )
        known = self._known()
        # what was added from elsewhere, or is no file, is not the folder's to take away
        inside = {
            name
            for name, photo in known.items()
            if photo.path is None
            and not os.path.isabs(os.fsdecode(name))
            and (photo.stamp[1] is not None or photo.row is None)
        }
        if self.label and (found.files or inside):
            finding.told(found.passed_over, root)
        if inside and not found.files:
            raise UserError(
                f"no photo is left below {printable_name(root)}, where {self.writer.folder} has {len(inside):,}: is "
                f"the disk there? If they were removed on purpose, delete {self.writer.folder}"
            )
        names = [name_of(path, root) for path in found.files]
        stamps = mapped(stamp, found.files, f"looking at {printable_name(root)}")
        todo = [
            (name, path, found.kinds.get(path))
            for name, path, now in zip(names, found.files, stamps, strict=True)
            if now is not None and (name not in known or known[name].stamp != now or _may_be_read(known[name]))
        ]
        unread = [name_of(path, root) + os.fsencode(os.sep) for path in found.passed_over if _is_shut(path)]
        there = {name for name, now in zip(names, stamps, strict=True) if now is not None}
        gone = {name for name in inside - there if not name.startswith(tuple(unread))}
        self._take(todo, known, gone, root)
        looked_at = {name for name, *_ in todo}
        self._measure(
            (name, path)
            for name, path in zip(names, found.files, strict=True)
            if name in known and known[name].row is not None and not known[name].measured and name not in looked_at
        )
        _check_there(root, self.writer.folder)
        self._delete(gone)
        self._settle()
        return self.changes

    def add_photos(self, items: Iterable[tuple[bytes, Any, str | None]]) -> Changes:
        """Photos as (name, photo, kind), as `named` gives them."""
        self._needs_model()
        known = self._known()
        self._take(list(items), known, set(), None)
        self._settle()
        return self.changes

    def add_descriptors(self, given: Descriptors) -> Changes:
        """Rows of descriptors with names, and perhaps classes."""
        writer = self.writer
        size = writer.about["dimensions"] or given.values.shape[1]
        count = len(given.names)
        with Progress(self.label or "", count if self.label else 0, "descriptors") as progress:
            for start in range(0, count, _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                values = np.asarray(given.values[part], np.float32)
                usable = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1, initial=0) > 0)
                units = unit(values[usable], size, given.what)
                rows, before = np.full(len(values), -1), writer.count()
                with writer.transaction():
                    rows[usable] = writer.append(units)
                    self._classify(rows[usable], units)
                    for name, row in zip(given.names[part], rows, strict=True):
                        problem = None if row >= 0 else "no descriptor"
                        writer.put(os.fsencode(name), Facts(), row if row >= 0 else None, problem)
                added = writer.count() - before
                self.changes.added += added
                self.changes.changed += len(values) - added
                self.changes.unusable += int((~usable).sum())
                if self.label:
                    progress.advance(len(values))
                if self.report:
                    self.report(min(start + _ROWS_AT_ONCE, count), count)
        self._settle()
        return self.changes

    def remove(self, names: Iterable[tuple[bytes, bytes]]) -> Changes:
        """Photos, each by its name or, where there is none of that name, by what its path is called."""
        known = self._known()
        self._delete([name if name in known else path for name, path in names])
        self._settle()
        return self.changes

    def _known(self):
        state = State(self.writer.folder)
        try:
            return state.known()
        finally:
            state.close()

    def _needs_model(self):
        writer = self.writer
        if self.model is None:
            raise UserError(f"photos are added to {writer.folder} with the model that made it: Index.open(..., model)")
        if writer.about["fingerprint"] not in (None, self.model.fingerprint):
            raise UserError(f"{writer.folder} was made by another model ({writer.about['model']})")

    def _take(self, todo, known, gone, root):
        """Looks at photos, (name, photo, kind), chunk by chunk; each is in the index when its chunk is."""
        gone_contents = Counter(known[name].sha256 for name in gone)
        done, total = 0, len(todo)
        with Progress(self.label or "", total if self.label else 0, "photos") as progress:
            for chunk in _chunks(todo):
                facts = mapped(_facts, [photo for _, photo, _ in chunk], "looking at photos")
                if root:
                    # what vanished on the way is seen by the next look; but not when it is all of them
                    _check_there(root, self.writer.folder)
                    pairs = [pair for pair in zip(chunk, facts, strict=True) if pair[1].problem != "no such file"]
                else:
                    pairs = list(zip(chunk, facts, strict=True))
                self._put(pairs, known, gone_contents)
                done += len(chunk)
                if self.label:
                    progress.advance(len(chunk))
                if self.report:
                    self.report(done, total)
                if done < total:
                    self._settle(growing=True)

    def _measure(self, unmeasured):
        """Notes sizes, in pixels, of photos that are known but for these: an earlier version could not read them."""
        names, paths = zip(*unmeasured, strict=True) if (unmeasured := list(unmeasured)) else ((), ())
        sizes = mapped(size_of, paths, "looking at photos")
        found = [(name, *size) for name, size in zip(names, sizes, strict=True) if None not in size]
        if found:
            with self.writer.transaction():
                self.writer.measure(found)

    def _put(self, pairs, known, gone_contents):
        writer, rows, new = self.writer, {}, {}
        for (name, photo, kind), facts in pairs:
            before = known.get(name)
            if facts.problem:
                continue
            if before and before.row is not None and facts.sha256 and before.sha256 == facts.sha256:
                rows[name] = before.row
            elif facts.sha256 and (row := writer.row_of_content(facts.sha256)) is not None:
                rows[name] = row
            else:
                # of equal ones, the first is described
                new.setdefault(facts.sha256 or name, []).append((name, photo, kind))
        firsts = [items[0] for items in new.values()]
        descriptors, problems = self._embed(firsts)
        usable = [not problem for problem in problems]
        with writer.transaction():
            numbers = iter(writer.append(descriptors) if len(descriptors) else ())
            appended = []
            for items, problem in zip(new.values(), problems, strict=True):
                row = None if problem else next(numbers)
                if row is not None:
                    appended.append(row)
                for name, _, _ in items:
                    rows[name] = row
            reasons = {name: why for items, why in zip(new.values(), problems, strict=True) for name, _, _ in items}
            self._classify(np.array(appended, np.int64), descriptors)
            for (name, photo, _), facts in pairs:
                row, why, before = rows.get(name), facts.problem or reasons.get(name), known.get(name)
                self.changes.unusable += row is None
                if before and row is None and (before.row, before.stamp, before.problem) == (None, _stamp(facts), why):
                    # tried again, as it might have passed
                    continue
                writer.put(name, facts, row, why, self._path(name, photo))
                if name in known:
                    self.changes.changed += 1
                elif facts.sha256 and gone_contents[facts.sha256] > 0:
                    gone_contents[facts.sha256] -= 1
                    self.changes.moved += 1
                else:
                    self.changes.added += 1
        self.changes.embedded += sum(usable)

    def _path(self, name, photo):
        """Where a file is, if its name does not tell it."""
        if not isinstance(photo, str):
            return None
        told = os.path.join(self.writer.about["root"] or "", os.fsdecode(name))
        return None if os.path.abspath(told) == os.path.abspath(photo) else os.fsencode(os.path.abspath(photo))

    def _embed(self, items):
        """(descriptors of those that can be used, why or None for each) of (name, photo, kind)."""
        resolution = self.writer.about["resolution"]
        problems: list[str | None] = [None] * len(items)
        photos, places = [], []
        for place, (_, photo, kind) in enumerate(items):
            given = photo
            if kind:
                given, problems[place] = pixels(photo, kind, resolution or self.model.resolution)
            if problems[place] is None:
                photos.append(given)
                places.append(place)
        if not photos:
            return np.empty((0, self.writer.about["dimensions"] or 0), np.float32), problems
        values = self.model.embed(photos, resolution, on_error="skip")
        usable = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1) > 0)
        for place, photo, good in zip(places, photos, usable, strict=True):
            if not good:
                problems[place] = why_unusable(self.model, photo)
        return unit(values[usable], self.writer.about["dimensions"] or values.shape[1], "the model"), problems

    def _classify(self, rows, descriptors):
        if self.model is None or not self.model.class_names or not len(rows):
            return
        # as they are stored
        stored = np.asarray(np.asarray(descriptors, np.float16), np.float32)
        probabilities = self.model.classify(stored, self.writer.about["resolution"]).probabilities
        classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :MOST_CLASSES]
        shares = np.take_along_axis(np.asarray(probabilities, np.float64), classes, 1)
        shares[:, 1:][shares[:, 1:] < _LEAST_PROBABILITY] = np.nan
        self.writer.classify(rows, classes, shares)

    def _delete(self, names):
        if names:
            with self.writer.transaction():
                deleted = self.writer.delete(names)
            self.changes.removed += deleted - min(deleted, self.changes.moved)

    def _settle(self, growing=False):
        """What finds neighbours follows the descriptors."""
        writer = self.writer
        about = writer.about
        rows = about["rows"]
        if not growing and rows > _SMALLEST_APPROXIMATE and rows > 2 * writer.used_rows():
            writer.compact()
            rows = about["rows"]
        kind = neighbors.choose(rows, about["dimensions"] or 1, about["kind"], about["memory"])
        current = about["neighbors"]
        if kind == "exact" or rows < _SMALLEST_APPROXIMATE:
            writer.drop_neighbors()
            return
        if current and current["kind"] == kind and rows <= 2 * current["trained"]:
            if rows - current["rows"] <= max(neighbors.TAIL_ROWS, rows // 50):
                return
            state = State(writer.folder)
            base = neighbors.read(
                writer.folder / current["file"], kind, current["rows"], current["effort"], mapped=False
            )
            base = neighbors.extended(base, state.descriptors, bool(self.label))
            reached, trained = current["recall"], current["trained"]
        else:
            state = State(writer.folder)
            base, reached = neighbors.build(state.descriptors, state.used, kind, show=bool(self.label))
            trained = rows
        state.close()
        found = {"kind": kind, "rows": rows, "effort": base.effort, "trained": trained, "recall": round(reached, 4)}
        writer.set_neighbors(lambda path: neighbors.write(base, path), found)


def _may_be_read(photo):
    """Whether a photo that could not be used may be usable now, though its file is as it was: a disk had failed."""
    return photo.row is None and any(reason in (photo.problem or "") for reason in _PASSING)


def _chunks(items: list) -> Iterator[list]:
    start, size = 0, _FIRST_CHUNK
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(2 * size, _LARGEST_CHUNK)


def _stamp(facts):
    return facts.file_size, facts.modified


def _facts(photo):
    return look_at_file(photo) if isinstance(photo, str | os.PathLike) else look_at(photo)


def _without(found, root, folder):
    """What was found below a folder without what is in the index's own, whose thumbnails are no photos."""
    below = os.path.relpath(os.path.realpath(folder), os.path.realpath(root))
    if below.split(os.sep)[0] in (os.curdir, os.pardir):
        return found
    own = os.path.join(root, below, "")

    def kept(paths):
        return [path for path in paths if not path.startswith(own)]

    passed_over = {path: found.passed_over[path] for path in kept(found.passed_over)}
    return dataclasses.replace(found, files=kept(found.files), passed_over=passed_over)


def _is_shut(path):
    """Whether it is a folder that can't be listed, or a link to one whose disk may be away."""
    if not os.path.isdir(path) and not os.path.islink(path):
        return False
    try:
        os.scandir(path).close()
    except OSError:
        return True
    # what it holds is read elsewhere
    return False


def _check_there(root, folder):
    if not root.is_dir():
        raise UserError(f"no such folder any more: {printable_name(root)}; {folder} keeps what it has of its photos")


def check_same(writer: Writer, about: dict[str, Any]) -> None:
    """Takes over settings that may change.

    Raises:
        UserError: the index is of something else than `about` says.
    """
    there = writer.about
    if None not in (there["fingerprint"], about["fingerprint"]) and there["fingerprint"] != about["fingerprint"]:
        raise UserError(
            f"{writer.folder} was made by another model ({there['model']}): choose another folder for this one's index"
        )
    # one folder may have several names, by links
    roots = [each["root"] and os.path.realpath(each["root"]) for each in (there, about)]
    if roots[0] != roots[1]:
        raise UserError(f"{writer.folder} is an index of the folder {there['root']}, received {about['root']}")
    if there["resolution"] != about["resolution"]:
        raise UserError(
            f"{writer.folder} is an index of photos at the resolution {there['resolution']}, received "
            f"{about['resolution']}"
        )
    changed = {key: about[key] for key in ("recursive", "kind", "memory", "thresholds") if there[key] != about[key]}
    # the one that is no link stays when links go
    if roots[0] == about["root"] != there["root"]:
        changed["root"] = about["root"]
    if changed:
        with writer.transaction():
            writer.about |= changed


def folder_of(what: Any) -> Path | None:
    """The folder that is given, absolute, or None where it is something else.

    Raises:
        UserError: there is nothing of that name.
    """
    if not isinstance(what, str | os.PathLike):
        return None
    folder = in_home(what)
    if folder.is_dir():
        return Path(os.path.abspath(folder))
    if not folder.exists():
        raise UserError(f"no such folder or file: {printable_name(folder)}")
    return None


def named(what: Any, names: Sequence[str] | None, root: str | None) -> Iterator[tuple[bytes, Any, str | None]]:
    """(name, photo, kind) of photos that are given one by one, or as a folder; kind is None but for files of odd kinds.

    Raises:
        UserError: `names` are not as many as photos, or one is there twice.
    """
    if isinstance(what, str | os.PathLike):
        folder = folder_of(what)
        what = finding.find_photos(folder).files if folder else [what]
    elif isinstance(what, bytes | bytearray) or hasattr(what, "mode") or getattr(what, "ndim", None) == 3:
        what = [what]
    what = list(what)
    if names is not None:
        if len(names) != len(what):
            raise UserError(f"names must be as many as photos, {len(what)}, received {len(names)}")
        check_once([os.fsdecode(name) for name in names], "the list of names")
    paths = [os.path.expanduser(os.fspath(item)) for item in what if isinstance(item, str | os.PathLike)]
    kinds = finding.look_at(paths, "looking at photos")[0].kinds if paths else {}
    for place, item in enumerate(what):
        if isinstance(item, str | os.PathLike):
            path = os.path.expanduser(os.fspath(item))
            name = name_of(path, root) if names is None else os.fsencode(names[place])
            yield name, os.path.abspath(path), kinds.get(path)
        else:
            yield os.fsencode(f"photo {place + 1}" if names is None else names[place]), item, None


def name_of(path: str | os.PathLike, root: str | os.PathLike | None) -> bytes:
    """What a photo is called in the index: its path below the folder, else the absolute one; a name stays one."""
    path = os.path.expanduser(os.fspath(path))
    # however it is written, a file has one name
    whole = os.path.abspath(path)
    prefix = os.path.join(os.fspath(root), "") if root is not None else None
    if prefix and whole.startswith(prefix):
        return os.fsencode(whole[len(prefix) :])
    return os.fsencode(whole if os.path.isabs(path) or os.path.exists(path) else path)
