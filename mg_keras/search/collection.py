"""`CollectionIndex`: photos of a vector database, found as those of an `Index` are (docs/clusters.md)."""

import functools
import os
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from mg_keras.databases.collection import Collection, Found
from mg_keras.errors import UserError
from mg_keras.search import thresholds
from mg_keras.search.given import Descriptors
from mg_keras.search.index import Answer, Hit, Model, check_made_by, classes_of, embedded_query
from mg_keras.search.store import Photo

# photos from which thresholds are estimated, and among which some are looked for that are files here
_SOME = 1000
# of what a database answers at once
_MOST = 10_000


def check_pushed(collection: Collection) -> dict[str, Any]:
    """The description of a collection.

    Raises:
        UserError: there is none, or it was made by others.
    """
    description = collection.description()
    if description is None:
        raise UserError(f"there is no collection {collection.address}: mg-keras push makes one")
    if not description:
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
        self._numbers: dict[str, int] = {}
        description = check_pushed(collection)
        self._dimensions = description["dimensions"]
        if resolution not in (None, description["resolution"]):
            raise UserError(
                f"{self.path} is of photos at the resolution {description['resolution']}, received {resolution}"
            )
        self._resolution = description["resolution"] or model.resolution
        self._check_model(description)

    def __len__(self) -> int:
        """How many photos can be found."""
        return self._collection.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the database."""
        self._collection.close()

    @functools.cached_property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """As `Index.thresholds`."""
        own = getattr(self.model, "thresholds", None)
        if own:
            return own
        _, descriptors = self._some
        return thresholds.estimated(descriptors, np.ones(len(descriptors), bool), photos=len(self))

    def threshold(self, kind: str, precision: float = 0.99) -> float:
        """As `Index.threshold`."""
        return thresholds.pick(self.thresholds, kind, precision)

    def find(self, query: Any, k: int = 20, precision: float = 0.9) -> Answer:
        """As `Index.find`: copies, instances and photos of the same kind, `k` of each at most.

        Args:
            query: a photo (path, bytes, array, PIL image), or a descriptor [D].
            k, precision: as `Index.find` takes them.

        Raises:
            UserError: the query can't be used, or the database can't be asked.
        """
        copy, instance = (self.threshold(kind, precision) for kind in ("copy", "instance"))
        descriptor = self._describe(query)
        wanted = 2 * k + 1
        while True:
            near = self._nearest(descriptor, wanted)
            if len(near) < wanted or near[-1].similarity < instance or wanted == _MOST:
                break
            wanted = min(4 * wanted, _MOST)
        near = [hit for hit in near if hit.similarity >= instance]
        copied = sum(hit.similarity >= copy for hit in near)
        names, classes = self.model.class_names, []
        if names:
            classes = classes_of(self.model, names, descriptor, self._resolution)
        others = self._nearest(descriptor, min(len(near) + k, _MOST), classes[0][0] if classes else None)
        kind = [hit for hit in others if hit.similarity < instance]
        return Answer(*(self._hits(found[:k]) for found in (near[:copied], near[copied:], kind)), classes)

    @functools.cached_property
    def _some(self):
        return self._collection.some(_SOME)

    def _nearest(self, descriptor, k, class_name=None):
        return self._collection.nearest(descriptor[None], k, class_name)[0]

    def _describe(self, query):
        if not isinstance(query, str | os.PathLike | bytes) and np.ndim(query) == 1 and not hasattr(query, "mode"):
            descriptor = np.asarray(query, np.float32)
        else:
            descriptor = embedded_query(self.model, query, self._resolution)
        if len(descriptor) != self._dimensions:
            raise UserError(
                f"{self.path} holds descriptors of {self._dimensions} values, received one of {len(descriptor)}: give "
                "the model that described its photos"
            )
        return descriptor / np.linalg.norm(descriptor)

    def _hits(self, found: list[Found]):
        return [Hit(self._photo(each.key, each.payload), each.similarity) for each in found]

    def _photo(self, key, payload):
        with self._lock:
            number = self._numbers.setdefault(key, len(self._numbers) + 1)
        return Photo(
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

    def _check_model(self, description):
        """That the model made the descriptors: it says so itself, or makes the same of photos that are here."""
        made_from = getattr(self.model, "made_from", lambda _: {})(self._resolution)
        if made_from and all(description.get(name) == value for name, value in made_from.items()):
            return
        payloads, descriptors = self._some
        here = [row for row, payload in enumerate(payloads) if os.path.isfile(payload["uri"])]
        if payloads and not here:
            raise UserError(
                f"{self.path} was made by another model than {getattr(self.model, 'path', 'this one')}, as far as can "
                "be told: give --model the one that described its photos"
            )
        names = [payloads[row]["uri"] for row in here]
        check_made_by(Descriptors(descriptors[here], names, self.path), self.model, self._resolution)
