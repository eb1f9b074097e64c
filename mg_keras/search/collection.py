"""`CollectionIndex`: photos of a vector database, found as those of an `Index` are (docs/clusters.md)."""

import functools
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import numpy as np

from mg_keras.databases.collection import Collection, Found, key_of
from mg_keras.errors import UserError
from mg_keras.search import thresholds
from mg_keras.search.album import Album
from mg_keras.search.describing import Model, check_model, classes_of, embedded_query, expanded, unit
from mg_keras.search.given import Descriptors
from mg_keras.search.index import Answer, Hit, check_counts
from mg_keras.search.store import Photo

# photos that are listed; thresholds are estimated from them, and files that are here are looked for among them
_LISTED = 1000
# of what a database answers at once
_MOST = 10_000
# photos that have been shown, which are known by number
_SHOWN = 100_000


def check_pushed(collection: Collection) -> dict[str, Any]:
    """The description of a collection.

    Raises:
        UserError: there is none, or it was made by others.
    """
    description = collection.description()
    if description is None:
        raise UserError(f"there is no collection {collection.address}: mg-keras push makes one")
    if not description.get("dimensions"):
        raise UserError(f"{collection.address} was not made by mg-keras push")
    return description


class CollectionIndex:
    """A collection that `mg-keras push` filled, as an index that is searched and not changed; safe for threads.

    Args:
        collection: of `mg_keras.databases.open_collection`; `close` closes it.
        model: what describes queries.
        resolution: pixels to describe them at; None: that of the collection's photos.

    Attributes:
        path: where the collection is, str.

    Raises:
        UserError: there is no such collection, or another model made it.
    """

    def __init__(self, collection: Collection, model: Model, resolution: int | None = None):
        self.path, self.model, self._collection = str(collection.address), model, collection
        self._lock = threading.Lock()
        self._shown: OrderedDict[int, Photo] = OrderedDict()
        description = check_pushed(collection)
        self._dimensions = description["dimensions"]
        if resolution not in (None, description["resolution"]):
            raise UserError(
                f"{self.path} is of photos at the resolution {description['resolution']}, received {resolution}"
            )
        self._resolution = description["resolution"] or model.resolution
        self._count = collection.count()
        if not self._count:
            raise UserError(f"{self.path} holds no photo yet: mg-keras push fills it")
        self._check_model(description)

    def __len__(self) -> int:
        """How many photos could be found when it was opened."""
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the database."""
        self._collection.close()

    @property
    def about(self) -> dict[str, Any]:
        """As `Index.about`, of what a collection knows: photos can't be counted by class."""
        return {"resolution": self._resolution, "dimensions": self._dimensions, "class_names": None}

    @property
    def calibrated(self) -> bool:
        """As `Index.calibrated`."""
        return bool((getattr(self.model, "thresholds", None) or {}).get(thresholds.COPY))

    @functools.cached_property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """As `Index.thresholds`."""
        return thresholds.completed(getattr(self.model, "thresholds", None), self._estimated)

    def _estimated(self):
        found = self._collection.descriptors([key_of(payload["uri"]) for payload in self._some])
        descriptors = np.array(list(found.values()), np.float32)
        return thresholds.estimated(descriptors, np.ones(len(descriptors), bool), photos=len(self))

    def threshold(self, kind: str, precision: float = 0.99) -> float:
        """As `Index.threshold`."""
        return thresholds.pick(self.thresholds, kind, precision)

    def describe(self, query: Any) -> np.ndarray:
        """As `Index.describe`."""
        if isinstance(query, Photo):
            key = key_of(query.name)
            found = self._collection.descriptors([key])
            if key not in found:
                raise UserError(f"{query.name} is not in {self.path} any more")
            return found[key]
        if not isinstance(query, str | os.PathLike | bytes) and np.ndim(query) == 1 and not hasattr(query, "mode"):
            descriptor = np.asarray(query, np.float32)
        else:
            descriptor = embedded_query(self.model, query, self._resolution)
        if len(descriptor) != self._dimensions:
            raise UserError(
                f"{self.path} holds descriptors of {self._dimensions} values, received one of {len(descriptor)}: give "
                "the model that described its photos"
            )
        return unit(descriptor[None], self._dimensions, "the query")[0]

    def find(self, query: Any, k: int = 20, precision: float = 0.9, expand: int = 0) -> Answer:
        """As `Index.find`.

        Raises:
            UserError: the query can't be used, `k` or `expand` is out of range, or the database can't be asked.
        """
        check_counts(k, expand)
        copy, instance = thresholds.pair(self.thresholds, precision)
        descriptor = self.describe(query)
        if expand:
            near = [hit for hit in self._nearest(descriptor, min(expand, _MOST)) if hit.similarity >= instance]
            known = self._collection.descriptors([hit.key for hit in near])
            near = [hit for hit in near if hit.key in known]
            if near:
                similarities = np.array([hit.similarity for hit in near], np.float32)
                descriptor = expanded(descriptor, similarities, np.array([known[hit.key] for hit in near]))
        wanted = min(2 * k + 1, _MOST)
        while True:
            near = self._nearest(descriptor, wanted)
            if len(near) < wanted or near[-1].similarity < instance or wanted >= _MOST:
                break
            wanted = min(4 * wanted, _MOST)
        near = [hit for hit in near if hit.similarity >= instance]
        copied = sum(hit.similarity >= copy for hit in near)
        names, classes = self.model.class_names, []
        if names:
            likeliest = classes_of(self.model, descriptor, self._resolution)
            classes = [(names[number], probability) for number, probability in likeliest]
        others = self._nearest(descriptor, min(len(near) + k + 1, _MOST), classes[0][0] if classes else None)
        kind = [hit for hit in others if hit.similarity < instance]
        return Answer(*(self._hits(found, query)[:k] for found in (near[:copied], near[copied:], kind)), classes)

    def find_class(self, text: str, k: int = 20, offset: int = 0) -> list[tuple[Photo, float]]:
        """Refuses: a collection has no order of probability.

        Raises:
            UserError: always.
        """
        raise UserError(f"photos are found by {text!r} in folders: {self.path} is a collection")

    def photos(self, offset: int = 0, limit: int | None = None, class_name: str | None = None) -> list[Photo]:
        """Some photos, 1000 at most, always the same; perhaps of one likeliest class alone."""
        found = [payload for payload in self._some if class_name in (None, payload["class"])]
        return [self._photo(payload) for payload in found[offset:][:limit]]

    def listed(self, class_name: str | None = None) -> int:
        """How many photos `photos` has in all, perhaps of one likeliest class alone."""
        return sum(class_name in (None, payload["class"]) for payload in self._some)

    def photo(self, which: int) -> Photo | None:
        """A photo that has been an answer, by its number; None if it has not."""
        with self._lock:
            return self._shown.get(which)

    def unusable(self) -> list[Photo]:
        """None: they were left out."""
        return []

    def unusable_count(self) -> int:
        """None: they were left out."""
        return 0

    @functools.cached_property
    def _some(self):
        return self._collection.some(_LISTED)

    def _nearest(self, descriptor, k, class_name=None):
        return self._collection.nearest(descriptor[None], k, class_name)[0]

    def _hits(self, found: list[Found], query):
        own = query.id if isinstance(query, Photo) else None
        hits = [Hit(self._photo(each.payload), each.similarity) for each in found]
        return [hit for hit in hits if hit.photo.id != own]

    def _photo(self, payload):
        key = key_of(payload["uri"]).replace("-", "")
        # 52 bits that are drawn, which JavaScript's numbers hold; the digit between is the version
        number = int(key[:12] + key[13], 16)
        photo = Photo(
            id=number,
            name=payload["uri"],
            path=Path(payload["uri"]),
            file_size=None,
            modified=None,
            sha256=None,
            width=payload["width"],
            height=payload["height"],
            row=number,
            class_name=payload["class"],
            probability=payload["probability"],
            problem=None,
        )
        with self._lock:
            self._shown[number] = photo
            self._shown.move_to_end(number)
            while len(self._shown) > _SHOWN:
                self._shown.popitem(last=False)
        return photo

    def _check_model(self, description):
        """That the model made the descriptors: it says so itself, or makes the same of photos that are here."""

        def some():
            names = [payload["uri"] for payload in self._some]
            names = [name for name in names if os.path.isfile(name)][:100] or names[:1]
            found = self._collection.descriptors(list(map(key_of, names)))
            names = [name for name in names if key_of(name) in found]
            return Descriptors(np.array([found[key_of(name)] for name in names], np.float32), names, self.path)

        check_model(self.model, description, self._resolution, some, self.path)


class CollectionAlbum(Album):
    """The photos of a collection as an album, for the page and its API: those below a folder are shown.

    Args:
        folder: below which photos are shown whose uris are files.
        model: what describes queries; its work is done in turns.
        collection: as `CollectionIndex` takes it.
        resolution: as `CollectionIndex` takes it.

    Raises:
        UserError: there is no such collection, or another model made it.
    """

    is_collection = True

    def __init__(self, folder: str | os.PathLike, model: Model, collection: Collection, resolution: int | None = None):
        # nothing is written: what is kept is kept by the hash of a file, which a collection doesn't have
        super().__init__(folder, model, folder)
        self._index = CollectionIndex(collection, self._model, resolution)

    @property
    def title(self) -> str:
        """Where the collection is."""
        return self.index.path

    def _look(self):
        # what is pushed meanwhile is found as it comes
        pass

    def update(self) -> bool:
        """Does nothing: mg-keras push adds photos; returns False."""
        return False

    def compare(self, precision: float = 0.99) -> bool:
        """Refuses.

        Raises:
            UserError: always.
        """
        raise UserError("duplicates are looked for in folders, by mg-keras duplicates; this is a collection")

    def stop(self) -> None:
        """Lets go of the database."""
        super().stop()
        self.index.close()
