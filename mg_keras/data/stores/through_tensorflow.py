"""What TensorFlow reads and no driver of fsspec that is here."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import tensorflow as tf

from mg_keras.data.stores.local import LocalStore


class TensorFlowStore(LocalStore):
    """What `tf.io.gfile` reads."""

    @staticmethod
    def reads(scheme: str) -> bool:
        """Whether TensorFlow knows such URLs."""
        return scheme in tf.io.gfile.get_registered_schemes()

    def glob(self, pattern: str) -> list[str]:
        """As `LocalStore.glob`."""
        return tf.io.gfile.glob(pattern)

    def is_folder(self, path: str) -> bool:
        """As `LocalStore.is_folder`."""
        return tf.io.gfile.isdir(path)

    def below(self, folder: str) -> list[str]:
        """As `LocalStore.below`."""
        return [os.path.join(inner, name) for inner, _, names in tf.io.gfile.walk(folder) for name in names]

    def listing(self, folder: str) -> Iterator[tuple[str, str, str]]:
        """As `FsspecStore.listing`."""
        for path in sorted(self.below(folder)):
            yield path, os.path.relpath(path, folder), "-".join(map(str, self.stat(path)))

    def stat(self, path: str) -> tuple[int, str]:
        """As `LocalStore.stat`."""
        status = tf.io.gfile.stat(path)
        return status.length, str(status.mtime_nsec)

    def open(self, path: str) -> BinaryIO:
        """As `LocalStore.open`."""
        return tf.io.gfile.GFile(path, "rb")
