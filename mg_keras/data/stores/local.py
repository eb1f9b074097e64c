"""Files of this machine."""

import glob
import os
from pathlib import Path
from typing import BinaryIO


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
