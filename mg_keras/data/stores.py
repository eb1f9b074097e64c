"""Files anywhere: of this machine, what fsspec reads (`s3://`, `https://`, ...) and what TensorFlow does (`gs://`).

A store finds files and reads them, whole or a range of bytes; its functions may be called from any thread. `store_of`
is the store of a path or URL, `read` reads from it patiently, and `in_graph` brings what is read into a pipeline.
"""

import glob
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import tensorflow as tf

from mg_keras.errors import UserError

# seconds before a store that did not answer is asked again
_RETRIES = (0.5, 2.0, 8.0)
_SCHEME = re.compile(r"[A-Za-z0-9+.:-]+://")


class LocalStore:
    """Files of this machine."""

    def glob(self, pattern: str) -> list[str]:
        """The files and folders that match."""
        return glob.glob(os.path.expanduser(pattern), recursive=True)

    def is_folder(self, path: str) -> bool:
        """Whether files lie below the path."""
        return os.path.isdir(path)

    def below(self, folder: str) -> list[str]:
        """The files at any depth below a folder, each spelt as the folder is, a slash and what follows."""
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        return [os.path.join(folder, path.relative_to(folder)) for path in paths]

    def stat(self, path: str) -> tuple[int, str]:
        """(bytes, what changes when the file does)."""
        status = os.stat(path)
        return status.st_size, str(status.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        """The file, to be read from its beginning on."""
        return open(path, "rb")

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` to before `end`, or to the file's end; fewer where the file ends."""
        with self.open(path) as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)


class TensorFlowStore(LocalStore):
    """What `tf.io.gfile` reads."""

    def glob(self, pattern: str) -> list[str]:
        """As `LocalStore.glob`."""
        return tf.io.gfile.glob(pattern)

    def is_folder(self, path: str) -> bool:
        """As `LocalStore.is_folder`."""
        return tf.io.gfile.isdir(path)

    def below(self, folder: str) -> list[str]:
        """As `LocalStore.below`."""
        return [os.path.join(inner, name) for inner, _, names in tf.io.gfile.walk(folder) for name in names]

    def stat(self, path: str) -> tuple[int, str]:
        """As `LocalStore.stat`."""
        status = tf.io.gfile.stat(path)
        return status.length, str(status.mtime_nsec)

    def open(self, path: str) -> BinaryIO:
        """As `LocalStore.open`."""
        return tf.io.gfile.GFile(path, "rb")


class FsspecStore:
    """What a driver of fsspec reads."""

    # sent by stores that know when an object was changed, the surest first
    _STAMPS = ("ETag", "etag", "mtime", "LastModified", "updated", "created")

    def __init__(self, files: Any):
        self.files = files

    def glob(self, pattern: str) -> list[str]:
        """As `LocalStore.glob`."""
        # a plain web server cannot list what it has, and need not for what is named
        if not glob.has_magic(pattern):
            return [pattern]
        return [self.files.unstrip_protocol(path) for path in self.files.glob(pattern)]

    def is_folder(self, path: str) -> bool:
        """As `LocalStore.is_folder`."""
        return self.files.isdir(path)

    def below(self, folder: str) -> list[str]:
        """As `LocalStore.below`."""
        # as drivers spell it: memory:///x for memory://x
        root = self.files._strip_protocol(folder).rstrip("/")
        return [f"{folder.rstrip('/')}{path.removeprefix(root)}" for path in self.files.find(folder)]

    def stat(self, path: str) -> tuple[int, str]:
        """As `LocalStore.stat`."""
        known = self.files.info(path)
        return int(known["size"]), next((str(known[name]) for name in self._STAMPS if known.get(name)), "")

    def open(self, path: str) -> BinaryIO:
        """As `LocalStore.open`."""
        # read from end to end: one request for many photos
        return self.files.open(path, "rb", block_size=8 << 20, cache_type="readahead")

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """As `LocalStore.read`."""
        return self.files.cat_file(path, start=start, end=end)


def store_of(path: str) -> LocalStore | FsspecStore:
    """The store that a path or URL lies in.

    Raises:
        UserError: nothing that is installed reads such URLs.
    """
    scheme = _SCHEME.match(path)
    if not scheme:
        return LocalStore()
    try:
        import fsspec

        return FsspecStore(fsspec.core.url_to_fs(path)[0])
    except (ImportError, ValueError) as error:
        if scheme[0].removesuffix("://") in tf.io.gfile.get_registered_schemes():
            return TensorFlowStore()
        raise UserError(
            f"{path} can't be read: {error}; install mg-keras[fsspec] and fsspec's driver for {scheme[0]} (s3fs for s3://)"
        ) from None


def read(path: str, start: int = 0, end: int | None = None) -> bytes:
    """What the store of a path or URL holds from `start` to before `end`, or to the file's end.

    A store that does not answer is asked again; a file that is not there will not be there later.

    Raises:
        OSError: the store does not give it; the message has the error's name.
    """
    for seconds in (*_RETRIES, None):
        try:
            return store_of(path).read(path, start, end)
        except Exception as error:  # stores raise types of their own
            if seconds is None or isinstance(error, FileNotFoundError | PermissionError | tf.errors.NotFoundError):
                raise OSError(f"{type(error).__name__}: {error}") from error
        time.sleep(seconds)


def in_graph(read: Callable[[int], bytes]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of Python, number -> bytes, as graph code: int64 scalar tensor -> string scalar tensor."""

    def contents(number):
        found = tf.numpy_function(lambda row: read(int(row)), [number], tf.string, stateful=False)
        return tf.ensure_shape(found, [])

    return contents
