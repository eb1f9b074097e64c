"""Qdrant: a server over HTTP, or the local mode of its client, in a folder.

A photo is a point whose id is its key. The description is kept in the collection's metadata, which servers have from
version 1.16 on.
"""

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from mg_keras.databases.collection import PAYLOAD, Address, Away, Collection, Found, Photos
from mg_keras.errors import UserError, first_line
from mg_keras.files import in_home

_SECONDS = 60
_KEY = "mg_keras"
_PASSING = (408, 429, 500, 502, 503, 504)


class Qdrant(Collection):
    """See `Collection`."""

    secret = "QDRANT_API_KEY"

    def __init__(self, address: Address, create: bool):
        super().__init__(address, create)
        with self._told():
            if address.is_server:
                key = os.environ.get(self.secret)
                # what it has to say of a version or of an unencrypted key is no answer to what was asked
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._client = QdrantClient(
                        url=address.place, api_key=key, timeout=_SECONDS, check_compatibility=False
                    )
            else:
                folder = in_home(address.place)
                _check_folder(folder, create)
                with warnings.catch_warnings():
                    # that a folder is for few points, docs/clusters.md says
                    warnings.simplefilter("ignore")
                    self._client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)

    def description(self) -> dict[str, Any] | None:
        """See `Collection`."""
        with self._told():
            if not self._client.collection_exists(self.address.collection):
                return None
            metadata = self._client.get_collection(self.address.collection).config.metadata
        return (metadata or {}).get(_KEY) or {}

    def create(self, description: Mapping[str, Any]) -> None:
        """See `Collection`."""
        try:
            with self._told():
                self._client.create_collection(
                    self.address.collection,
                    vectors_config=models.VectorParams(size=description["dimensions"], distance=models.Distance.COSINE),
                    metadata={_KEY: dict(description)},
                )
        except Away:
            raise
        except UserError:
            # another push has made it meanwhile
            if self.description() is None:
                raise
        if self.description() == {}:
            raise UserError(f"{self.address} keeps no metadata of a collection: Qdrant 1.16 or newer is needed")
        if self.address.is_server:
            # photos of one class are asked for
            with self._told():
                self._client.create_payload_index(self.address.collection, "class", models.PayloadSchemaType.KEYWORD)

    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Collection`."""
        with self._told():
            points = self._client.retrieve(self.address.collection, list(keys), with_payload=["digest"])
        return {str(point.id): (point.payload or {}).get("digest", "") for point in points}

    def put(self, photos: Photos) -> None:
        """See `Collection`."""
        points = models.Batch(ids=photos.keys, vectors=photos.descriptors.tolist(), payloads=photos.payloads)
        with self._told():
            self._client.upsert(self.address.collection, points, wait=True)

    def count(self) -> int:
        """See `Collection`."""
        with self._told():
            return self._client.count(self.address.collection, exact=True).count

    def nearest(self, queries: np.ndarray, k: int, class_name: str | None = None) -> list[list[Found]]:
        """See `Collection`."""
        only = class_name is not None and models.Filter(
            must=[models.FieldCondition(key="class", match=models.MatchValue(value=class_name))]
        )
        requests = [
            models.QueryRequest(query=query.tolist(), limit=k, filter=only or None, with_payload=list(PAYLOAD))
            for query in np.asarray(queries, np.float32)
        ]
        with self._told():
            answers = self._client.query_batch_points(self.address.collection, requests)
        return [
            [Found(str(point.id), float(point.score), _payload(point)) for point in answer.points] for answer in answers
        ]

    def descriptors(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `Collection`."""
        with self._told():
            points = self._client.retrieve(self.address.collection, list(keys), with_payload=False, with_vectors=True)
        return {str(point.id): np.asarray(point.vector, np.float32) for point in points}

    def some(self, count: int) -> list[dict[str, Any]]:
        """See `Collection`."""
        with self._told():
            points, _ = self._client.scroll(self.address.collection, limit=count, with_payload=list(PAYLOAD))
        return list(map(_payload, points))

    def close(self) -> None:
        """See `Collection`."""
        self._client.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        where = self.address
        try:
            yield
        except ResponseHandlingException as error:
            raise Away(f"{where} can't be reached: {first_line(error)}") from error
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise UserError(f"{where} refuses the key: {self.secret} must hold one that may write") from error
            kind = Away if error.status_code in _PASSING else UserError
            raise kind(f"{where} answered {error.status_code}: {_told_by(error)}") from error
        except (RuntimeError, ValueError, sqlite3.Error, KeyError) as error:
            # of the local mode: another process has the folder, or a file in it is damaged
            raise UserError(f"{where}: {first_line(error)}") from error


def _payload(point):
    return {name: (point.payload or {}).get(name) for name in PAYLOAD}


def _check_folder(folder, create):
    if (folder / "meta.json").is_file():
        return
    if not create:
        raise UserError(f"there is no Qdrant folder at {folder}: mg-keras push makes one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no Qdrant folder: choose another name")


def _told_by(error):
    try:
        return str(error.structured()["status"]["error"]).splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return error.reason_phrase or "no reason"
