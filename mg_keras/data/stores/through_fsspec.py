"""What a driver of fsspec reads: `s3://`, `https://`, ..."""

import glob
from collections.abc import Iterator
from typing import Any, BinaryIO


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

    def listing(self, folder: str) -> Iterator[tuple[str, str, str]]:
        """(path, path within the folder, what changes when the file does) of all files below it, in a fixed order.

        They come from listings of folders, one after the other: no request for each file.
        """
        start = len(self.files._strip_protocol(folder).rstrip("/")) + 1
        for _, folders, names in self.files.walk(folder, detail=True):
            # told in order, and walked in it: `walk` goes on with what this dict holds
            for name in sorted(folders):
                folders[name] = folders.pop(name)
            for name in sorted(names):
                path, stamp = names[name]["name"], "-".join(map(str, self._known(names[name])))
                yield self.files.unstrip_protocol(path), path[start:], stamp

    def stat(self, path: str) -> tuple[int, str]:
        """As `LocalStore.stat`."""
        return self._known(self.files.info(path))

    def _known(self, about):
        return int(about["size"] or 0), next((str(about[name]) for name in self._STAMPS if about.get(name)), "")

    def open(self, path: str) -> BinaryIO:
        """As `LocalStore.open`."""
        # read from end to end: one request for many photos
        return self.files.open(path, "rb", block_size=8 << 20, cache_type="readahead")

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """As `LocalStore.read`."""
        return self.files.cat_file(path, start=start, end=end)
