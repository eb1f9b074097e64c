"""`Index`: the photos of a folder, found again by copy, instance or class (docs/search.md)."""

import dataclasses
import difflib
import functools
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mg_keras.data import finding
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.search import neighbors, sharded, thresholds
from mg_keras.search.describing import (
    LOOKED_AT,
    Model,
    check_made_by,
    check_model,
    classes_of,
    embedded_query,
    expanded,
    unit,
)
from mg_keras.search.given import Descriptors, descriptors_of, nameless
from mg_keras.search.neighbors import Neighbors
from mg_keras.search.store import Photo, State, Writer, is_index, state_number
from mg_keras.search.writing import Changes, Work, check_same, folder_of, name_of, named

_GIGABYTE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Hit:
    """A photo that was found.

    Attributes:
        photo: `Photo`.
        similarity: cosine with the query, in [-1, 1].
    """

    photo: Photo
    similarity: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one descriptor finds, at three granularities; most similar first, and no photo twice.

    Attributes:
        copies: edited, cropped or compressed: at the threshold of copies or above.
        instances: the same object or place: below that, at the threshold of instances or above.
        kind: photos of the query's likeliest class, below both; without a classifier whatever comes next.
        classes: (name, probability) of the query's likeliest classes, likeliest first.
    """

    copies: list[Hit]
    instances: list[Hit]
    kind: list[Hit]
    classes: list[tuple[str, float]]


class Index:
    """Photos by their descriptors, on disk: `build` makes one, `open` opens one.

    Reading sees one state, whatever others write meanwhile, until `refresh`; what this object itself writes is seen at
    once. One process writes at a time; any number read. `kill -9` at any moment leaves the state before or after a
    chunk of photos. Safe to use from several threads.

    Attributes:
        path: Path of the index's folder.
        model: what describes queries and new photos, or None.
        changes: what `build` found; None of an index that was opened.
    """

    changes: Changes | None = None

    def __init__(self, path: Path, model: Model | None = None, _keep: Any = None):
        self.path, self.model = Path(path), model
        # a temporary folder lives as long as the object that it came with
        self._keep = _keep
        self._lock = threading.RLock()
        self._view = None
        self.refresh()

    def __repr__(self) -> str:
        return f"<{self.path}: {len(self):,} photos>"

    def __len__(self) -> int:
        """How many photos can be found."""
        return self._view.state.usable_count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @classmethod
    def build(
        cls,
        what: Any,
        model: Model | None = None,
        path: str | os.PathLike | None = None,
        names: Sequence[str] | None = None,
        recursive: bool = True,
        resolution: int | None = None,
        kind: str = "auto",
        memory: int = 2 * _GIGABYTE,
        label: str | None = None,
        report: Callable[[int, int], None] | None = None,
        shards: int | None = None,
        workers: int | None = None,
    ) -> "Index":
        """Makes an index, or goes on with one that was begun at `path`, to which what has changed is added.

        Args:
            what: one of

                * a folder of photos, or photos as `model.embed` takes them (paths, bytes, arrays, PIL images);
                * descriptors: an array [N, D], a file in `.npy` (beside which `mg-keras embed` lists its photos), a
                  file in `.parquet` or a folder of such, with the columns `embedding` and `uri`, `path` or `name`.
            model: as `mg_keras.load` opens it; for descriptors it may be left out, and then no photo can be a query.
            path: the index's folder, made where it is not there; None: a temporary one, which `save` keeps.
            names: of photos or descriptors, a str each, where they don't bring them.
            recursive: whether folders in the folder count.
            resolution: pixels to embed at; None: the model's.
            kind: `"exact"`, `"ivf"`, `"pq"`, `"hnsw"`, or `"auto"`, which chooses by size and memory.
            memory: bytes that searching may hold, which `"auto"` keeps to.
            label: what to call it while it runs; None shows nothing.
            report: is called with how many photos have been looked at, and of how many, after each chunk.
            shards: for millions of descriptors in Parquet: what finds neighbours is made in so many shards, and the
                descriptors stay where they are (`mg_keras.search.sharded.build` has more of it); `path` must be given.
            workers: processes that make shards; None: one a core.

        Returns:
            `Index`.

        Raises:
            UserError: `what` is nothing of the kind, can't be read, or was described by another model; or there is
                something else at `path`, or another process is writing it.

        Example:
            >>> index = Index.build("photos", mg_keras.load("models/multigrain"), "album")  # doctest: +SKIP
            >>> [hit.photo.name for hit in index.search("query.jpg", k=5)]  # doctest: +SKIP
        """
        if shards is not None:
            if path is None:
                raise UserError("an index of shards needs a path")
            sharded.build([what], in_home(path), shards, workers, show=bool(label))
            return cls.open(path, model)
        if kind not in neighbors.KINDS:
            raise UserError(f"kind must be one of {', '.join(neighbors.KINDS)}, received {kind!r}")
        given = descriptors_of(what, names)
        root = None
        if given is None:
            if model is None:
                raise UserError("photos need a model to describe them: mg_keras.load opens one")
            root = folder_of(what)
            if root and names is not None:
                raise UserError("names are of photos that are given one by one: those of a folder have their paths")
            photos = [] if root else list(named(what, names, None))
        elif model is not None:
            check_made_by(given, model, resolution)
        about = {
            "dimensions": given.values.shape[1] if given else None,
            "fingerprint": model.fingerprint if model else None,
            "model": printable_name(getattr(model, "path", "")) if model else None,
            "resolution": (resolution or model.resolution) if model else resolution,
            "class_names": model.class_names if model else None,
            "thresholds": getattr(model, "thresholds", None) or None,
            "root": root and str(root),
            "recursive": recursive,
            "kind": kind,
            "memory": int(memory),
        }
        keep = None
        if path is None:
            keep = tempfile.TemporaryDirectory(prefix="mg-keras-index-")
            path = keep.name
        path = in_home(path)
        with Writer(path, about) as writer:
            check_same(writer, about)
            work = Work(writer, model, label, report)
            if given is not None:
                work.add_descriptors(given)
            elif root:
                work.update()
            else:
                work.add_photos(photos)
        made = cls(path, model, keep)
        made.changes = work.changes
        return made

    @classmethod
    def open(cls, path: str | os.PathLike, model: Model | None = None) -> "Index":
        """Opens an index.

        Args:
            path: its folder.
            model: the one that made it; None: queries are descriptors and photos of the index, and none is added.

        Raises:
            UserError: there is no index, it is damaged, or another model made it.
        """
        path = in_home(path)
        if not sharded.is_sharded(path) and not is_index(path):
            raise UserError(f"there is no index at {printable_name(path)}: mg-keras search or Index.build makes one")
        index = cls(path, model)
        if model is not None and sharded.is_sharded(path):
            state = index._view.state

            def some():
                few = min(LOOKED_AT, len(state.used))
                names = [state.descriptors.facts(row)["name"] for row in range(few)]
                return Descriptors(state.descriptors[:few], names, printable_name(path))

            check_model(model, state.about["made_from"], state.about["resolution"], some, printable_name(path))
        return index

    load = open

    def save(self, path: str | os.PathLike) -> None:
        """Writes a copy to another folder, whole or not at all.

        Raises:
            UserError: there is something at `path`, or another process is writing to this index.
        """
        path = in_home(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{printable_name(path)} is there already: choose another name")
        self._check_changeable()
        with Writer(self.path) as writer:
            writer.copy(path)

    def close(self) -> None:
        """Lets go of its files; of a temporary index, removes them."""
        self._view.state.close()
        if self._keep:
            self._keep.cleanup()

    def refresh(self) -> bool:
        """Looks for what others have written since; returns whether there was anything.

        Raises:
            UserError: it is damaged or gone, or another model made what is there now; what was seen before stays.
        """
        with self._lock:
            before = self._view
            if before and before.state.number == _state_number(self.path):
                return False
            view = _view(self.path, before, getattr(self.model, "thresholds", None))
            about = view.state.about
            if self.model is not None and about["fingerprint"] not in (None, self.model.fingerprint):
                view.state.close()
                raise UserError(
                    f"{self.path} was made by another model ({about['model']}): open it with that one, or build a new "
                    "index with this one"
                )
            self._view = view
            return True

    # what changes it

    def update(self, label: str | None = None, report: Callable[[int, int], None] | None = None) -> Changes:
        """Looks at the folder again: only photos that are new or have changed are described.

        A file of the size and time that it had is taken to be as it was; of others the content decides, so that what
        was moved or renamed keeps its descriptor. What was added that is no file of the folder stays.

        Args:
            label, report: as `build` takes them.

        Raises:
            UserError: it is no index of a folder; the folder is gone, or empty all of a sudden; or another process is
                writing.
        """
        return self._write(lambda work: work.update(), label, report)

    def add(
        self,
        what: Any,
        names: Sequence[str] | None = None,
        label: str | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> Changes:
        """Adds photos or descriptors, as `build` takes them; one of the same name takes the other's place.

        Raises:
            UserError: descriptors, or photos that are no files, without names, where others without are there already.
        """
        given = descriptors_of(what, names)
        if given is not None and given.names[:1] == [nameless(0)] and self.photo(nameless(0)) is not None:
            raise UserError(
                f"descriptors without names are called {nameless(0)} and so on, and {self.path} has such already, "
                "whose place they would take: give names"
            )
        if given is None:
            items = list(named(what, names, self._view.state.about["root"]))
            if names is None:
                self._check_nameless(items)
            return self._write(lambda work: work.add_photos(items), label, report)
        if self.model is not None:
            check_made_by(given, self.model, self._view.state.about["resolution"])
        return self._write(lambda work: work.add_descriptors(given), label, report)

    def remove(self, names: str | os.PathLike | Iterable[str | os.PathLike]) -> int:
        """Takes photos out of the index, by name or path; the files stay. Returns how many there were."""
        names = [names] if isinstance(names, str | os.PathLike) else list(names)
        root = self._view.state.about["root"]
        return self._write(
            lambda work: work.remove([(os.fsencode(name), name_of(name, root)) for name in names])
        ).removed

    def _check_nameless(self, items):
        for name, photo, _ in items:
            is_file = isinstance(photo, str | os.PathLike)
            if not is_file and self._view.state.count("name = ?", [name]):
                raise UserError(
                    f"photos without names are called photo 1 and so on, and {self.path} has {os.fsdecode(name)} "
                    "already, whose place another would take: give names"
                )

    def _check_changeable(self):
        if sharded.is_sharded(self.path):
            raise UserError(f"{self.path} is an index of shards, which is built anew from its Parquet files")

    def _write(self, do, label=None, report=None):
        self._check_changeable()
        with self._lock:
            with Writer(self.path) as writer:
                changes = do(Work(writer, self.model, label, report))
            self.refresh()
        return changes

    # what is asked of it

    @property
    def about(self) -> dict[str, Any]:
        """What is known of the whole: `root`, `model`, `resolution`, `dimensions`, `class_names`, `kind` and others."""
        view = self._view
        return {**view.state.about, "searched_by": view.neighbors.base.kind}

    @property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """`{"copy": {"0.9": ..., "0.99": ...}, "instance": {...}}`: the model's, or else estimated from the photos."""
        return self._view.thresholds

    @property
    def calibrated(self) -> bool:
        """Whether the model has brought its thresholds of copies."""
        return bool((self._view.brought or {}).get(thresholds.COPY))

    def threshold(self, kind: str, precision: float = 0.99) -> float:
        """The similarity from which on two photos are copies (`"copy"`) or show one thing (`"instance"`)."""
        return thresholds.pick(self.thresholds, kind, precision)

    def describe(self, query: Any) -> np.ndarray:
        """float32 [D] of unit norm: of a photo (path, bytes, array, PIL image or `Photo` of the index) or descriptor.

        Raises:
            UserError: it can't be used; the message names it and says why.
        """
        return self._describe(self._view, query)

    def search(
        self, query: Any, k: int = 10, class_name: str | None = None, expand: int = 0, precision: float = 0.9
    ) -> list[Hit]:
        """The photos most similar to one.

        Args:
            query: a photo (path, bytes, array, PIL image), a descriptor [D], or a `Photo` of the index, which is not
                among the answers itself.
            k: how many at most.
            class_name: photos of this likeliest class alone.
            expand: query expansion: the query becomes the mean of itself and as many of its neighbours, weighted by
                similarity to the third power; those below the threshold of instances don't count.
            precision: of that threshold.

        Raises:
            UserError: the query can't be used, or there is no such class.
        """
        check_counts(k, expand)
        view = self._view
        descriptor, among = self._describe(view, query), self._among(view, class_name)
        if expand:
            descriptor = _expanded(view, descriptor, expand, thresholds.pick(view.thresholds, "instance", precision))
        # one more, as the query itself may be among them
        values, rows = view.nearest(descriptor, k + isinstance(query, Photo), among)
        return _hits(view.state, rows[0], values[0], query)[:k]

    def range(self, query: Any, threshold: float, class_name: str | None = None) -> list[Hit]:
        """All photos at least as similar to one as `threshold`, most similar first; see `search`."""
        view = self._view
        descriptor, among = self._describe(view, query), self._among(view, class_name)
        rows, values = _within(view.neighbors, descriptor, threshold, among)
        return _hits(view.state, rows, values, query)

    def find(self, query: Any, k: int = 20, precision: float = 0.9, expand: int = 0) -> Answer:
        """Copies, instances and photos of the same kind, `k` of each at most, from one descriptor.

        Args:
            query, expand: as `search` takes them.
            k: how many of each, at most.
            precision: of the thresholds: the share of copies and of instances that shall be right.
        """
        check_counts(k, expand)
        view = self._view
        copy, instance = thresholds.pair(view.thresholds, precision)
        descriptor = self._describe(view, query)
        if expand:
            descriptor = _expanded(view, descriptor, expand, instance)
        rows, values = _within(view.neighbors, descriptor, instance, None)
        copied = int(np.count_nonzero(values >= copy))
        found = [
            # one more, as the query itself may be among them
            _hits(view.state, rows[part][: k + 1], values[part][: k + 1], query)[:k]
            for part in (slice(copied), slice(copied, None))
        ]
        classes = self._classes(view, descriptor, query)
        among = _rows_of(view, [classes[0][0]]) if classes else view.state.used.copy()
        among[rows] = False
        values, rows = view.nearest(descriptor, k, among)
        names = view.state.about["class_names"]
        classes = [(names[number], probability) for number, probability in classes]
        return Answer(*found, _hits(view.state, rows[0], values[0], query)[:k], classes)

    def find_class(self, text: str, k: int = 20, offset: int = 0) -> list[tuple[Photo, float]]:
        """Photos by the name of a class, such as `"schooner"`, with its probability, most probable first.

        Args:
            text: a class's name, or words of names; the probabilities of several classes are added.
            k: how many at most.
            offset: how many to pass over before.

        Raises:
            UserError: no class is called so; or there is no classifier.
        """
        view = self._view
        return view.state.by_class(classes_called(text, view.state.about["class_names"], self.path), k, offset)

    def photos(self, offset: int = 0, limit: int | None = None, class_name: str | None = None) -> list[Photo]:
        """Photos in order of name, those that can't be used left out; perhaps of one likeliest class alone."""
        view = self._view
        where, values = "photos.row IS NOT NULL", []
        if class_name is not None:
            values = _class_numbers(class_name, view.state.about["class_names"], self.path)
            where = f"likeliest.class IN ({','.join('?' * len(values))})"
        return view.state.select(
            f"WHERE {where} ORDER BY photos.name LIMIT ? OFFSET ?", [*values, -1 if limit is None else limit, offset]
        )

    def photo(self, which: int | str | os.PathLike) -> Photo | None:
        """A photo by its number (`Photo.id`), name or path; None if it is not there."""
        state = self._view.state
        if isinstance(which, int):
            return state.photos_of_ids([which]).get(which)
        found = state.select("WHERE photos.name = ?", [os.fsencode(which)])
        found = found or state.select("WHERE photos.name = ?", [name_of(which, state.about["root"])])
        return found[0] if found else None

    def unusable(self) -> list[Photo]:
        """Photos that can't be used, in order of name; `problem` says why."""
        return self._view.state.select("WHERE photos.row IS NULL ORDER BY photos.name")

    def unusable_count(self) -> int:
        """How many photos can't be used."""
        return self._view.state.count("row IS NULL")

    def check_usable(self) -> None:
        """Refuses an index of a folder that was built, if none of the folder's photos can be used.

        Raises:
            UserError: which says why.
        """
        if not len(self):
            root = self._view.state.about["root"]
            passed_over = dict(self.changes.passed_over) | {str(each.path): each.problem for each in self.unusable()}
            raise UserError(f"no photo of {printable_name(root)} can be used: {finding.why_none(passed_over, root)}")

    def listed(self, class_name: str | None = None) -> int:
        """How many photos `photos` has in all, perhaps of one likeliest class alone."""
        return len(self) if class_name is None else self.class_counts().get(class_name, 0)

    def class_counts(self) -> dict[str, int]:
        """Class -> of how many photos it is the likeliest, most frequent first; those of one name count together."""
        state = self._view.state
        counts: dict[str, int] = {}
        for number, count in sorted(state.class_counts().items()):
            name = state.about["class_names"][number]
            counts[name] = counts.get(name, 0) + count
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def descriptors(self, photos: Sequence[Photo]) -> np.ndarray:
        """float32 [N, D] of photos of the index that can be used.

        Raises:
            UserError: one is not in the index any more, or can't be used.
        """
        return _descriptors(self._view.state, photos)

    def snapshot(self) -> "tuple[State, Neighbors]":
        """One state and what finds neighbours in it, for what works on all photos."""
        view = self._view
        return view.state, view.neighbors

    def _describe(self, view, query):
        if isinstance(query, Photo):
            return _descriptors(view.state, [query])[0]
        if isinstance(query, bytearray):
            query = bytes(query)
        if (values := _as_descriptor(query)) is not None:
            # before the first photo there is no size
            return unit(values[None], view.state.about["dimensions"] or len(values), "the query")[0]
        if self.model is None:
            raise UserError(
                f"a photo as query needs the model that made {self.path}: Index.open({str(self.path)!r}, model)"
            )
        descriptor = embedded_query(self.model, query, view.state.about["resolution"])
        size = view.state.about["dimensions"]
        if size is not None and len(descriptor) != size:
            raise UserError(
                f"the model's descriptors have {len(descriptor)} values, where those of {self.path} have {size}"
            )
        return descriptor

    def _classes(self, view, descriptor, query):
        names = view.state.about["class_names"]
        if not names:
            return []
        if self.model is None:
            number = view.state.class_of(query.id) if isinstance(query, Photo) else None
            return [] if number is None else [(number, query.probability)]
        return classes_of(self.model, descriptor, view.state.about["resolution"])

    def _among(self, view, class_name):
        if class_name is None:
            return None
        return _rows_of(view, _class_numbers(class_name, view.state.about["class_names"], self.path))


@dataclasses.dataclass
class _View:
    """What a reader has of one state."""

    state: State
    neighbors: Neighbors
    brought: thresholds.Thresholds | None

    @functools.cached_property
    def thresholds(self):
        return thresholds.completed(self.brought, lambda: thresholds.estimated(self.state.descriptors, self.state.used))

    def nearest(self, descriptor, k, among=None):
        """(similarities [1, k], rows [1, k]) of a descriptor, of no more than there are rows: `k` may be anything."""
        return self.neighbors.nearest(descriptor[None], min(k, max(1, len(self.state.used))), among)


def check_counts(k: int, expand: int) -> None:
    """Refuses numbers of photos and of neighbours that there can't be.

    Raises:
        UserError: which names it.
    """
    for name, value, least in (("k", k, 1), ("expand", expand, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, received {value}")


def _state_number(path):
    return sharded.state_number(path) if sharded.is_sharded(path) else state_number(path)


def _view(path, before, brought):
    """The newest state; what was in memory of the one before is taken over where it still holds."""
    if sharded.is_sharded(path):
        number = sharded.state_number(path)
        try:
            state = sharded.State(path)
            return _View(state, Neighbors(state.descriptors, state.used, state.base()), brought)
        except UserError:
            # another process may have put a new one in its place between the two looks
            if sharded.state_number(path) == number:
                raise
            return _view(path, before, brought)
    for attempt in range(5):
        state = State(path)
        try:
            found = Neighbors(state.descriptors, state.used, _base(path, state, before))
            return _View(state, found, state.about["thresholds"] or brought)
        except FileNotFoundError as error:
            # another process put a new file in its place between the two looks
            state.close()
            if attempt == 4:
                raise UserError(f"{path} is damaged: it lacks {Path(error.filename).name}; build it anew") from None
    raise AssertionError


def _base(path, state, before):
    named = state.about["neighbors"]
    same = before and all(before.state.about.get(key) == state.about.get(key) for key in ("made", "generation"))
    if named:
        if same and before.state.about["neighbors"] == named:
            return before.neighbors.base
        return neighbors.read(path / named["file"], named["kind"], named["rows"], named["effort"])
    if same and not before.state.about["neighbors"]:
        base = before.neighbors.base
        if len(state.descriptors) - base.rows <= neighbors.TAIL_ROWS and base.index.d == state.descriptors.shape[1]:
            return base
    return neighbors.exact(state.descriptors)


def _descriptors(state, photos):
    """float32 [N, D] of photos, whose rows may be others in this state than in the one that they are of."""
    found, rows = state.photos_of_ids(photo.id for photo in photos), []
    for photo in photos:
        there = found.get(photo.id)
        # older indexes gave the number of the last one, once it was gone, to the next
        same = there and (there.name, there.sha256) == (photo.name, photo.sha256)
        if not same or there.row is None:
            raise UserError(f"{printable_name(photo.name)} is not in the index any more, or can't be used")
        rows.append(there.row)
    return np.asarray(state.descriptors[np.array(rows, np.int64)], np.float32)


def _as_descriptor(query):
    """float32 [D], or None where it is a photo."""
    if isinstance(query, str | os.PathLike | bytes) or hasattr(query, "mode"):
        return None
    try:
        return np.asarray(query, np.float32) if np.ndim(query) == 1 else None
    except (TypeError, ValueError):
        raise UserError(
            "a query is one photo (a path, bytes, an array [H, W, 3] or a PIL image), a descriptor [D] or a Photo, "
            f"received a {type(query).__name__} of {len(query)}"
        ) from None


def _rows_of(view, numbers):
    """bool [rows], those whose likeliest class is one of these."""
    among = np.zeros(len(view.state.used), bool)
    among[view.state.rows_of_classes(numbers)] = True
    return among


def _expanded(view, descriptor, count, least):
    values, rows = view.nearest(descriptor, count)
    kept = (rows[0] >= 0) & (values[0] >= least)
    return expanded(descriptor, values[0][kept], view.state.descriptors[rows[0][kept]])


def _within(found: Neighbors, descriptor, threshold, among):
    k, most = 64, max(1, np.count_nonzero(found.used))
    while True:
        values, rows = found.nearest(descriptor[None], min(k, most), among)
        near = (rows[0] >= 0) & (values[0] >= threshold)
        if not near.all() or k >= most:
            return rows[0][near], values[0][near]
        k *= 4


def _hits(state, rows, values, query):
    there = rows >= 0
    photos = state.photos_of_rows(rows[there])
    own = query.id if isinstance(query, Photo) else None
    return [
        Hit(photo, float(value))
        for row, value in zip(rows[there], values[there], strict=True)
        for photo in photos.get(int(row), ())
        if photo.id != own
    ]


def classes_called(text: str, names: Sequence[str] | None, path: str | os.PathLike) -> list[int]:
    """Numbers of the classes that a text names: the whole name, else one of its parts, else words in it.

    Raises:
        UserError: no class is called so, or there are none; `path` is what an error calls what has none.
    """
    if not names:
        raise UserError(f"{path} knows no classes: the model that made it has no classifier")
    wanted = text.strip().casefold()
    lowered = [name.casefold().replace("_", " ") for name in names]
    wanted = wanted.replace("_", " ")
    tests = (
        lambda name: name == wanted,
        lambda name: wanted in (part.strip() for part in name.split(",")),
        lambda name: re.search(rf"\b{re.escape(wanted)}\b", name),
        lambda name: wanted in name,
    )
    for test in tests:
        if wanted and (numbers := [number for number, name in enumerate(lowered) if test(name)]):
            return numbers
    near = difflib.get_close_matches(wanted, lowered, 3)
    hint = f"; near: {', '.join(names[lowered.index(name)] for name in near)}" if near else ""
    raise UserError(f"no class is called {text!r}{hint}")


def _class_numbers(name, names, path):
    """All that have a name: of ImageNet's, two are cranes."""
    if name not in (names or ()):
        name = names[classes_called(name, names, path)[0]]
    return [number for number, each in enumerate(names) if each == name]
