"""Milvus: a server over gRPC, or milvus-lite, in a folder whose name ends in `.db`.

A photo is a row whose primary key is its key. The description is kept as the collection's own description, which
milvus-lite forgets, and as its property `mg_keras`.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, MilvusClient, MilvusException

from mg_keras.databases.collection import PAYLOAD, Address, Away, Collection, Found, Photos
from mg_keras.errors import UserError, first_line
from mg_keras.files import in_home

_SECONDS, _SECONDS_TO_CONNECT = 60, 10
_KEY = "mg_keras"
# bytes of a text; the most that there may be
_LONGEST = 65_535
_TOKEN_REFUSED = ("unauthenticated", "permission_denied", "auth check failure", "privilege", "invalid credential")
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Milvus(Collection):
    """See `Collection`."""

    secret = "MILVUS_TOKEN"

    def __init__(self, address: Address, create: bool):
        super().__init__(address, create)
        self._loaded = False
        # it logs what it raises
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        if address.is_server:
            place, token = address.place, os.environ.get(self.secret, "")
        else:
            place, token = str(in_home(address.place).absolute()), ""
            _check_folder(Path(place), create)
        with self._told(), _first_record_of("milvus_lite") as record:
            try:
                self._client = MilvusClient(place, token=token, timeout=_SECONDS_TO_CONNECT)
            except MilvusException as error:
                raise record.error or error from error
        self._lite = None if address.is_server else place

    def description(self) -> dict[str, Any] | None:
        """See `Collection`."""
        with self._told():
            if not self._client.has_collection(self.address.collection, timeout=_SECONDS):
                return None
            about = self._client.describe_collection(self.address.collection, timeout=_SECONDS)
        try:
            return dict(json.loads(about["properties"].get(_KEY) or about["description"]))
        except (ValueError, TypeError, KeyError):
            return {}

    def create(self, description: Mapping[str, Any]) -> None:
        """See `Collection`."""
        text = json.dumps(dict(description))
        columns = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
        columns.add_field("id", DataType.VARCHAR, is_primary=True, max_length=36)
        columns.add_field("embedding", DataType.FLOAT_VECTOR, dim=description["dimensions"])
        columns.add_field("uri", DataType.VARCHAR, max_length=_LONGEST)
        columns.add_field("width", DataType.INT32, nullable=True)
        columns.add_field("height", DataType.INT32, nullable=True)
        columns.add_field("class", DataType.VARCHAR, max_length=_LONGEST, nullable=True)
        columns.add_field("probability", DataType.FLOAT, nullable=True)
        columns.add_field("digest", DataType.VARCHAR, max_length=16)
        try:
            with self._told():
                self._client.create_collection(
                    self.address.collection, schema=columns, properties={_KEY: text}, timeout=_SECONDS
                )
        except Away:
            raise
        except UserError:
            if self.description() is None:
                raise

    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Collection`."""
        with self._told():
            self._load()
            # what is not seen yet is sent again, and changes nothing: that is quicker than waiting to see all
            rows = self._client.get(
                self.address.collection,
                ids=list(keys),
                output_fields=["id", "digest"],
                consistency_level="Eventually",
                timeout=_SECONDS,
            )
        return {row["id"]: row["digest"] for row in rows}

    def put(self, photos: Photos) -> None:
        """See `Collection`."""
        rows = [
            {"id": key, "embedding": descriptor, **payload}
            for key, descriptor, payload in zip(photos.keys, photos.descriptors, photos.payloads, strict=True)
        ]
        with self._told():
            self._client.upsert(self.address.collection, rows, timeout=_SECONDS)

    def count(self) -> int:
        """See `Collection`."""
        with self._told():
            self._load()
            rows = self._client.query(
                self.address.collection,
                filter="",
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=_SECONDS,
            )
        return int(rows[0]["count(*)"])

    def nearest(self, queries: np.ndarray, k: int, class_name: str | None = None) -> list[list[Found]]:
        """See `Collection`."""
        with self._told():
            self._load()
            answers = self._client.search(
                self.address.collection,
                data=list(np.ascontiguousarray(queries, np.float32)),
                anns_field="embedding",
                limit=k,
                filter="" if class_name is None else f"class == {json.dumps(class_name, ensure_ascii=False)}",
                output_fields=list(PAYLOAD),
                search_params={"metric_type": "COSINE"},
                consistency_level="Strong",
                timeout=_SECONDS,
            )
        return [
            [
                Found(hit["id"], float(hit["distance"]), {name: hit["entity"].get(name) for name in PAYLOAD})
                for hit in answer
            ]
            for answer in answers
        ]

    def descriptors(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `Collection`."""
        with self._told():
            self._load()
            rows = self._client.get(
                self.address.collection, ids=list(keys), output_fields=["id", "embedding"], timeout=_SECONDS
            )
        return {row["id"]: np.asarray(row["embedding"], np.float32) for row in rows}

    def some(self, count: int) -> list[dict[str, Any]]:
        """See `Collection`."""
        with self._told():
            self._load()
            rows = self._client.query(
                self.address.collection, filter="", limit=count, output_fields=list(PAYLOAD), timeout=_SECONDS
            )
        return [{name: row.get(name) for name in PAYLOAD} for row in rows]

    def _load(self):
        # into the memory of those who answer; it stays there until it is released
        if not self._loaded:
            if not self._client.list_indexes(self.address.collection, field_name="embedding"):
                index = MilvusClient.prepare_index_params()
                # in files on this machine there are few rows, and all are compared
                kind = "FLAT" if self._lite else "AUTOINDEX"
                index.add_index("embedding", index_type=kind, metric_type="COSINE")
                self._client.create_index(self.address.collection, index, timeout=_SECONDS)
            self._client.load_collection(self.address.collection, timeout=_SECONDS)
            self._loaded = True

    def close(self) -> None:
        """See `Collection`."""
        self._client.close()
        if self._lite:
            server_manager_instance.release_server(self._lite)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        where, done = self.address, False
        try:
            yield
            done = True
        except grpc.RpcError as error:
            code, told = getattr(error, "code", lambda: None)(), getattr(error, "details", lambda: None)()
            kind = Away if code in _PASSING else UserError
            raise self._refused(kind, told or str(error)) from error
        except MilvusException as error:
            # 2: it can't connect, or has waited in vain
            kind = Away if error.code == 2 or "UNAVAILABLE" in error.message.upper() else UserError
            raise self._refused(kind, error.message) from error
        except UserError:
            raise
        except Exception as error:  # of the engine in files: another process has it, or a file is damaged
            if isinstance(error, AssertionError | TypeError | NameError | AttributeError):
                raise
            raise UserError(f"{where}: {first_line(error)}") from error
        finally:
            # a server that was started anew, or one who released it, may be why
            self._loaded = self._loaded and done

    def _refused(self, kind, message):
        message = first_line(message)
        if any(each in message.lower() for each in _TOKEN_REFUSED):
            return UserError(f"{self.address} refuses the token: {self.secret} must hold one that may write")
        return kind(f"{self.address} can't be reached: {message}" if kind is Away else f"{self.address}: {message}")


def _check_folder(folder, create):
    if folder.suffix != ".db":
        raise UserError(f"milvus-lite keeps its collections in a name in .db, received {folder.name}")
    if (folder / "LOCK").is_file():
        return
    if not create:
        raise UserError(f"there is no milvus-lite folder at {folder}: mg-keras push makes one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no folder of milvus-lite 3: choose another name")


class _FirstRecord(logging.Handler):
    error = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the error that is logged first."""
        self.error = self.error or (record.exc_info and record.exc_info[1])


@contextlib.contextmanager
def _first_record_of(name):
    """The error that a logger is told rather than its caller."""
    logger, handler = logging.getLogger(name), _FirstRecord()
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
