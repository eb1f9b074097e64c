"""The versions of a model in a folder, loaded and dropped while requests go on."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.serving.codes import ServingError
from mg_keras.serving.servable import Servable

# of what a request can ask for
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class VersionStatus:
    """What TF Serving tells of a version: state is LOADING, AVAILABLE or END; code and message say why it ended."""

    version: int
    state: str
    code: str = "OK"
    message: str = ""


class Versions:
    """The newest versions `<folder>/<number>/` of a model, followed by looking into the folder now and then.

    A newer version is loaded before an older one is dropped, and an older one is dropped when its last request is
    answered, so that no request is lost. A version that cannot be loaded is left out, with the reason in its status,
    until its files change; the older ones go on.

    Args:
        folder: the model's folder.
        name: str, what the model is called in requests.
        count: int >= 0, how many of the newest versions are served; 0 serves all.
        labels: {label: version}, other names of versions.
        poll_seconds: float > 0, time between two looks.

    Raises:
        UserError: the folder does not exist, or holds no version that can be loaded.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str,
        count: int = 1,
        labels: Mapping[str, int] | None = None,
        poll_seconds: float = 1.0,
    ):
        self.name = name
        self._folder = Path(folder)
        self._count = count
        self._labels = dict(labels or {})
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._loaded: dict[int, Servable] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failed: dict[int, list] = {}
        self._stopping = threading.Event()
        self._dropped = False
        self._trouble = None
        if not self._folder.is_dir():
            raise UserError(f"no such folder: {folder} (mg-keras export --out {folder} makes it)")
        try:
            left_out = self._look()
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error}") from error
        if not self._loaded:
            reasons = "; ".join(status.message for status in self.statuses()) or "none is there"
            raise UserError(f"{folder} holds no version that can be served, numbered folders such as 1: {reasons}")
        _say(*left_out)
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def use(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """The asked-for version (default: the newest), which stays loaded while the block runs.

        Raises:
            ServingError: NOT_FOUND for another name or a version that is not there, INVALID_ARGUMENT for a label.
        """
        servable = self._acquired(name, version, label)
        try:
            yield servable
        finally:
            servable.release()

    def statuses(
        self, name: str | None = None, version: int | None = None, label: str | None = None
    ) -> list[VersionStatus]:
        """What is to be told, newest first, of all versions or of the one asked for.

        Raises:
            ServingError: as `use`.
        """
        if name not in (None, self.name):
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
        version = self._labelled(label, version)
        with self._lock:
            found = [self._statuses[number] for number in sorted(self._statuses, reverse=True)]
        found = [status for status in found if version in (None, status.version)]
        if version is not None and not found:
            raise ServingError("NOT_FOUND", f"Could not find version {version} of model {self.name}")
        return found

    def refresh(self) -> None:
        """Look into the folder once: load what is new, then drop what is no longer wanted.

        What goes wrong is said on standard error, once for as long as it stays the same.
        """
        try:
            _say(*self._look())
            trouble = None
        except OSError as error:
            # a network drive that is gone for a moment is no reason to drop what works
            trouble = f"{self._folder} cannot be read: {error}"
        # whatever it is, the versions that work are served, and the next look may find others
        except Exception:
            trouble = f"looking for versions in {self._folder} failed:\n{traceback.format_exc()}"
        if trouble and trouble != self._trouble:
            _say(trouble)
        self._trouble = trouble

    def stop(self) -> None:
        """Stop looking, and drop every version."""
        self._stopping.set()
        self._thread.join()
        for version in list(self._loaded):
            self._drop(version)

    def _look(self) -> list[str]:
        """Load and drop; what to say of versions that are left out."""
        # a poll later, those who still used it have ended
        if self._dropped:
            self._dropped = False
            _give_back_memory()
        named = {int(path.name): path for path in self._folder.iterdir() if path.name.isdecimal() and path.is_dir()}
        present = {version: path for version, path in named.items() if version <= _LARGEST}
        wanted = sorted(present, reverse=True)[: self._count or None]
        left_out = []
        for version in reversed(wanted):
            if version not in self._loaded:
                left_out += self._load(version, present[version])
        # the last version that works stays until another one takes over, or its own folder is taken away
        if not wanted or any(version in self._loaded for version in wanted):
            for version in [version for version in self._loaded if version not in wanted]:
                self._drop(version)
        return left_out

    def _acquired(self, name: str, version: int | None, label: str | None) -> Servable:
        version = self._labelled(label, version)
        with self._lock:
            number = max(self._loaded, default=None) if version is None else version
            servable = self._loaded.get(number) if name == self.name else None
            if servable is None:
                asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise ServingError("NOT_FOUND", f"Servable not found for request: {asked}")
            servable.acquire()
        return servable

    def _labelled(self, label: str | None, version: int | None) -> int | None:
        if label is None:
            return version
        if label not in self._labels:
            raise ServingError("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
        return self._labels[label]

    def _load(self, version: int, path: Path) -> list[str]:
        files = _fingerprint(path)
        if self._failed.get(version) == files:
            return []
        self._note(VersionStatus(version, "LOADING"))
        try:
            servable = Servable(path)
        except ServingError as error:
            self._failed[version] = files
            self._note(VersionStatus(version, "END", error.code, error.args[0]))
            return [f"version {version} is left out: {error.args[0]}"]
        with self._lock:
            self._loaded[version] = servable
        self._note(VersionStatus(version, "AVAILABLE"))
        return []

    def _drop(self, version: int) -> None:
        with self._lock:
            servable = self._loaded.pop(version)
            # inside the lock: whoever found it in there has counted itself
            servable.retire()
        self._note(VersionStatus(version, "END"))
        self._dropped = True

    def _note(self, status: VersionStatus) -> None:
        with self._lock:
            self._statuses[status.version] = status

    def _watch(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            self.refresh()


def _give_back_memory() -> None:
    """Gives what a dropped version held back to the system: its graph is garbage in circles, its weights scattered."""
    gc.collect()
    # of glibc, which else keeps what was freed between what was not
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _fingerprint(path: Path) -> list:
    """Tells whether the files below `path` are still the same."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            # one that is gone by now, as rsync's temporary files go
            with contextlib.suppress(OSError):
                stat = os.stat(file)
                found.append((file, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def _say(*lines: str) -> None:
    # perhaps nobody reads standard error any more
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            print(line, file=sys.stderr, flush=True)
