"""What is asked of a vector database: one collection of photos, whichever engine holds it."""

import abc
import dataclasses
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg_keras.errors import UserError

_SERVER = re.compile(r"https?://[^/]+")


class Away(UserError):
    """The database can't be reached: it may be there again later."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a collection is.

    Attributes:
        database: its name, such as `"qdrant"`.
        place: of the engine: the address of a server, or a path on this machine.
        collection: its name there.
    """

    database: str
    place: str
    collection: str

    def __str__(self) -> str:
        return f"{self.database}:{self.place}/{self.collection}"

    @property
    def is_server(self) -> bool:
        """Whether a server is asked, rather than files on this machine."""
        return _SERVER.match(self.place) is not None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`DATABASE:PLACE/COLLECTION`, where the place is `http://HOST:PORT` or a path.

        Raises:
            UserError: it is not of that form, or has a user's name or password in it.
        """
        database, colon, rest = text.partition(":")
        place, slash, collection = rest.rpartition("/")
        if _SERVER.match(rest) and "@" in rest.split("/")[2]:
            raise UserError(
                f"the address of {database} has a name or a password in it: secrets go into the environment"
            )
        if not (colon and slash and place and collection) or place in ("http:/", "https:/"):
            raise UserError(
                f"a collection is DATABASE:PLACE/COLLECTION, such as qdrant:http://localhost:6333/photos, "
                f"received {text!r}"
            )
        return cls(database, place, collection)


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos as a collection takes them; row i of each is photo i.

    Attributes:
        keys: list of N str, `key_of` their uris.
        descriptors: float32 [N, D] of unit norm.
        payloads: list of N dicts: `uri`, `width`, `height`, `class`, `probability` (None where not known), and
            `digest`, equal for rows that are the same.
    """

    keys: list[str]
    descriptors: np.ndarray
    payloads: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: Sequence[int]) -> "Photos":
        """Some of them."""
        return Photos([self.keys[row] for row in rows], self.descriptors[rows], [self.payloads[row] for row in rows])


@dataclasses.dataclass(frozen=True)
class Found:
    """A photo of a collection that was found.

    Attributes:
        key: `key_of` its uri.
        similarity: cosine with the query, in [-1, 1].
        payload: `uri`, `width`, `height`, `class`, `probability`.
    """

    key: str
    similarity: float
    payload: dict[str, Any]


PAYLOAD = ("uri", "width", "height", "class", "probability")
"""What is kept of a photo beside its descriptor, for all to read; `digest` is for pushing alone."""


def key_of(uri: str) -> str:
    """A photo's key in every database: the UUID (version 5, name space URL) of its uri."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, uri))


def digest_of(descriptor: np.ndarray, payload: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal for the same float32 [D] and payload."""
    digest = hashlib.blake2b(descriptor.tobytes(), digest_size=8)
    digest.update(repr([payload[name] for name in PAYLOAD]).encode())
    return digest.hexdigest()


class Collection(abc.ABC):
    """A collection of photos in a vector database, which need not be there yet.

    A further database is one subclass in a file of its own, and a line in `mg_keras.databases.DATABASES`. Whatever its
    engine raises becomes one line, a `UserError`; what may pass by itself, `Away`.

    Args:
        address: `Address`.
        create: whether an engine in files on this machine is made where there is none.
    """

    secret: str
    """The variable of the environment that holds the key or token of a server."""

    def __init__(self, address: Address, create: bool):
        self.address = address

    @abc.abstractmethod
    def description(self) -> dict[str, Any] | None:
        """What `create` was given; {} for a collection made by others; None where there is none of the name."""

    @abc.abstractmethod
    def create(self, description: Mapping[str, Any]) -> None:
        """Makes the collection, for cosines of `description["dimensions"]` values, and keeps the description with it.

        One that another process has just made is left as it is.
        """

    @abc.abstractmethod
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """Key -> digest of those that are there; some that were put just now may be missing."""

    @abc.abstractmethod
    def put(self, photos: Photos) -> None:
        """Adds photos; one of the same key takes the other's place."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many photos there are, exactly."""

    @abc.abstractmethod
    def nearest(self, queries: np.ndarray, k: int, class_name: str | None = None) -> list[list[Found]]:
        """The photos most similar to each of the queries [Q, D], k at most, largest cosine first.

        Args:
            queries: float32 [Q, D].
            k: at least 1.
            class_name: photos of this class alone.
        """

    @abc.abstractmethod
    def descriptors(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Key -> descriptor, float32 [D] of unit norm, of those that are there."""

    @abc.abstractmethod
    def some(self, count: int) -> list[dict[str, Any]]:
        """The payloads of some photos, `count` at most, always the same while nothing is put."""

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of the engine."""

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
