"""Vector databases: descriptors of more photos than one machine searches, in collections that others serve."""

import importlib

from mg_keras.databases.collection import Address, Collection
from mg_keras.errors import UserError

DATABASES = {"milvus": "Milvus", "qdrant": "Qdrant"}
"""Name -> the subclass of `Collection` in the module of this room with that name, which needs the extra of the name."""


def is_collection(where: str) -> bool:
    """Whether it is meant as `open_collection` takes it, rather than a folder."""
    return where.partition(":")[0] in DATABASES and ":" in where


def open_collection(where: str, create: bool = True) -> Collection:
    """Opens a collection of a vector database.

    Args:
        where: one of

            * `milvus:http://HOST:19530/COLLECTION`, `qdrant:http://HOST:6333/COLLECTION`: of a server;
            * `milvus:FILE.db/COLLECTION`, `qdrant:FOLDER/COLLECTION`: of an engine in files on this machine, which one
              process at a time can open.
        create: whether such files are made where there are none.

    Raises:
        UserError: it is nothing of the kind, the database's client is not installed, or it can't be reached.
    """
    address = Address.parse(where)
    if address.database not in DATABASES:
        raise UserError(f"unknown database {address.database!r}; known: {', '.join(DATABASES)}")
    try:
        module = importlib.import_module(f"mg_keras.databases.{address.database}")
    except ModuleNotFoundError as error:
        extra = f"mg-keras[{address.database}]"
        raise UserError(f'{error}: pip install "{extra}" (in a checkout: -e ".[{address.database}]")') from error
    return getattr(module, DATABASES[address.database])(address, create)
