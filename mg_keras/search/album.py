"""`Album`: a folder's index that is brought up to date in the background, while it is searched."""

import contextlib
import dataclasses
import logging
import os
import secrets
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_keras.data import finding
from mg_keras.data.bounds import MAX_PIXELS, MIN_SIDE
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.search.decisions import Decision, Decisions, key_of
from mg_keras.search.describing import Model
from mg_keras.search.duplicates import Duplicates, Group, find_duplicates
from mg_keras.search.index import Answer, Index
from mg_keras.search.store import Photo, is_index
from mg_keras.search.thumbnails import Thumbnails, small
from mg_keras.search.verification import SIDE, Picture, compare, grey_of, picture_of

# photos between two of which a query may come first
_AT_ONCE = 32
# uploads that are kept for crops, and the pixels of their larger side
_QUERIES, _QUERY_SIDE = 64, 1600
# photos whose keypoints are kept
_PICTURES = 200

_LOGGER = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) of a region, as shares of an upright photo's width and height, 0 to 1."""


class NotYet(UserError):
    """What is asked for is not there yet: come again."""


class NotThere(UserError):
    """There is no such photo."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """A photo that is a query and no photo of the album.

    Attributes:
        id: what it is called by.
        image: PIL, RGB, upright, neither side above 1600 pixels.
        descriptor: float32 [D] of the whole photo, by all its pixels.
    """

    id: str
    image: Image.Image
    descriptor: np.ndarray


@dataclasses.dataclass
class Work:
    """What goes on in the background.

    Attributes:
        running: whether it does.
        done, total: photos; total is 0 while the folder is being looked at.
        error: why the last one ended early, one line, or None.
    """

    running: bool = False
    done: int = 0
    total: int = 0
    error: str | None = None


class Album:
    """A folder's photos, found from several threads while the index grows.

    Args:
        folder: of the photos.
        model: what describes them; its work is done in turns, in which queries come between photos of the folder.
        path: the index's folder.
        recursive, resolution: as `Index.build` takes them.

    Attributes:
        passed_over: how many files and folders the last look at the folder found that are no photos; and
        why_passed_over: why, one line, or None.

    Raises:
        UserError: what is at `path` is the index of another model, or damaged.
    """

    is_collection = False
    """Whether it is one of a vector database, which the page can't change."""

    def __init__(
        self,
        folder: str | os.PathLike,
        model: Model,
        path: str | os.PathLike,
        recursive: bool = True,
        resolution: int | None = None,
    ):
        self.folder, self.path = Path(os.path.abspath(in_home(folder))), Path(path)
        self.real = os.path.realpath(self.folder)
        self.indexing, self.comparing = Work(), Work()
        self.passed_over, self.why_passed_over = 0, None
        self.thumbnails = Thumbnails(self.path / "thumbnails")
        self._model = _InTurns(model)
        self._options = {"recursive": recursive, "resolution": resolution}
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._duplicates: Duplicates | None = None
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._pictures: OrderedDict[str | int, Picture] = OrderedDict()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._look()

    # in the background

    def update(self) -> bool:
        """Looks at the folder in the background; returns False where that goes on already."""
        return self._start(self.indexing, self._update)

    def compare(self, precision: float = 0.99) -> bool:
        """Looks for duplicates in the background; returns False where that goes on already.

        Raises:
            UserError: there is no index yet, or no threshold is known for so high a precision.
        """
        self.index.threshold("copy", precision)
        return self._start(self.comparing, self._compare, precision)

    def stop(self) -> None:
        """Ends what goes on in the background, between two chunks of photos."""
        self._stopping = True
        for thread in self._threads:
            thread.join(timeout=30)

    def wait(self) -> None:
        """Waits until what goes on in the background is done."""
        for thread in list(self._threads):
            thread.join()

    def _start(self, work, run, *arguments):
        with self._lock:
            if work.running:
                return False
            work.running, work.done, work.total, work.error = True, 0, 0, None
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._run, args=(work, run, *arguments), daemon=True)
            self._threads.append(thread)
            thread.start()
        return True

    def _run(self, work, run, *arguments):
        try:
            run(*arguments)
        except _Stopped:
            pass
        except UserError as error:
            work.error = str(error)
        except OSError as error:
            work.error = f"{printable_name(error.filename or self.path)}: {error.strerror or error}"
        except Exception:
            _LOGGER.exception("what went on in the background failed")
            work.error = "it failed; the server's standard error says how"
        finally:
            work.running = False

    def _update(self):
        try:
            with Index.build(self.folder, self._model, self.path, **self._options, report=self._report) as index:
                passed_over = index.changes.passed_over
                self.passed_over = len(passed_over)
                self.why_passed_over = finding.reasons(passed_over, self.folder) if passed_over else None
                index.check_usable()
        finally:
            with contextlib.suppress(UserError):
                self._look()

    def _report(self, done, total):
        self.indexing.total, self.indexing.done = total, done
        self._look()
        if self._stopping:
            raise _Stopped

    def _look(self):
        """Sees the newest state of the index."""
        if self._index is not None:
            self._index.refresh()
        elif is_index(self.path):
            self._index = Index.open(self.path, self._model)

    def _compare(self, precision):
        # one state for all of it
        with Index.open(self.path) as index:
            self._duplicates = find_duplicates(index, precision=precision, report=self._report_compared)

    def _report_compared(self, done, total):
        self.comparing.total, self.comparing.done = total, done
        if self._stopping:
            raise _Stopped

    # what is asked of it

    @property
    def title(self) -> str:
        """What to call it."""
        return str(self.folder)

    @property
    def index(self) -> Index:
        """The index as it is by now.

        Raises:
            NotYet: there is none.
        """
        if self._index is None:
            raise NotYet(self.indexing.error or "no photo has been described yet: come again in a moment")
        return self._index

    def __len__(self) -> int:
        """How many photos can be found by now."""
        return len(self._index) if self._index else 0

    @property
    def duplicates(self) -> Duplicates | None:
        """What `compare` found last."""
        return self._duplicates

    def decisions(self, groups: Sequence[Group]) -> list[tuple[str, Decision]]:
        """(key, what was decided or else is proposed, see `Decisions.about`) of groups."""
        if not groups:
            return []
        with Decisions(self.path) as decisions:
            return list(zip(map(key_of, groups), decisions.about(groups), strict=True))

    @staticmethod
    def has_changed(group: Group) -> bool:
        """Whether a photo of a group has changed or is gone since, whether the index knows of it or not."""
        return not all(photo.is_as_it_was() for photo in group.photos)

    def decide(self, key: str, skip: bool, go: Sequence[int]) -> None:
        """Notes what happens to a group: whether it is skipped, and the numbers of the photos that go.

        Raises:
            NotThere: there is no such group any more, or it has changed.
            UserError: none of it would stay, or it can't be noted.
        """
        for group in self._duplicates.groups if self._duplicates else ():
            if key_of(group) == key:
                if self.has_changed(group):
                    raise NotThere("a photo of this group has changed or is gone: look for duplicates again")
                names = {photo.id: photo.name for photo in group.photos}
                if not set(go) <= set(names):
                    raise UserError("only photos of a group can go from it")
                with Decisions(self.path) as decisions:
                    decisions.put(group, Decision(skip, tuple(names[number] for number in go)))
                return
        raise NotThere("there is no such group any more: look for duplicates again")

    def photo(self, number: int) -> Photo:
        """A photo by its number.

        Raises:
            NotThere: there is none.
        """
        found = self.index.photo(number)
        if found is None or found.row is None:
            raise NotThere(f"there is no photo {number}")
        return found

    def file_of(self, photo: Photo) -> Path:
        """Where a photo's file is, behind all links.

        Raises:
            NotThere: it is gone, or lies outside the folder.
        """
        real = os.path.realpath(photo.path)
        if not Path(real).is_relative_to(self.real):
            raise NotThere(f"photo {photo.id} lies outside the folder, perhaps behind a link: its picture is not shown")
        if not os.path.isfile(real):
            raise NotThere(f"photo {photo.id} is not there any more")
        return Path(real)

    def upload(self, data: bytes | bytearray) -> Upload:
        """Takes a photo as a query; the oldest is forgotten.

        Raises:
            UserError: it is none that can be used; the message says why.
        """
        index = self.index
        with tempfile.TemporaryDirectory(prefix="mg-keras-query-") as folder:
            path = Path(folder) / "photo"
            path.write_bytes(data)
            _check_pixels(path)
            try:
                descriptor = index.describe(path)
            except UserError as error:
                raise UserError(str(error).replace(str(path), "the photo")) from None
            image = small(path, _QUERY_SIDE)
        if image is None:
            raise UserError("the photo can't be opened")
        made = Upload(secrets.token_urlsafe(12), image, descriptor)
        with self._lock:
            self._uploads[made.id] = made
            while len(self._uploads) > _QUERIES:
                self._uploads.popitem(last=False)
        return made

    def uploaded(self, name: str) -> Upload:
        """A photo that was uploaded.

        Raises:
            NotThere: there is none of the name any more.
        """
        with self._lock:
            if name not in self._uploads:
                raise NotThere("this query is not kept any more: send the photo again")
            self._uploads.move_to_end(name)
            return self._uploads[name]

    def find(
        self, query: Photo | Upload, box: Box | None = None, k: int = 20, precision: float = 0.9, expand: int = 0
    ) -> Answer:
        """As `Index.find`, by a photo or a region of it.

        Raises:
            UserError: the query can't be used, or the region is too small.
        """
        whole = query.descriptor if isinstance(query, Upload) else query
        return self.index.find(whole if box is None else self._seen(query, box), k, precision, expand)

    def same_pixels(self, query: Photo | Upload, photos: Sequence[Photo], box: Box | None = None) -> dict[int, float]:
        """Of photos that are copies of a query by their pixels: number -> the share that is the same, 0 to 1.

        Photos whose files are gone or can't be opened are left out.

        Raises:
            UserError: the query can't be opened, or the region is too small.
        """
        image = self._seen(query, box).copy()
        image.thumbnail((SIDE, SIDE))
        own, found = picture_of(np.asarray(image.convert("L"))), {}
        for photo in photos:
            try:
                picture = self._picture(photo)
            except NotThere:
                continue
            verdict = picture and compare(own, picture)
            if verdict and verdict.same:
                found[photo.id] = verdict.score
        return found

    def _seen(self, query, box):
        """The image of a query, or of a region of it."""
        image = query.image if isinstance(query, Upload) else small(self.file_of(query), _QUERY_SIDE)
        if image is None:
            raise UserError(f"photo {query.id} can't be opened")
        return image if box is None else _region(image, box)

    def _picture(self, photo):
        key = photo.sha256 or photo.id
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        grey = grey_of(self.file_of(photo))
        if grey is None:
            # it may be there again later
            return None
        picture = picture_of(grey)
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > _PICTURES:
                self._pictures.popitem(last=False)
        return picture


class _Stopped(Exception):
    """The work was asked to end."""


class _InTurns:
    """A model for several threads: one at a time, in the order in which they came, a few photos a turn."""

    def __init__(self, model):
        self._model = model
        self._condition = threading.Condition()
        self._next = self._now = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, photos: Sequence, resolution: int | None = None, *, on_error: str = "raise") -> np.ndarray:
        """As the model's."""
        parts = []
        for start in range(0, len(photos), _AT_ONCE):
            with self._turn():
                parts.append(self._model.embed(photos[start : start + _AT_ONCE], resolution, on_error=on_error))
        return np.concatenate(parts)

    def classify(self, descriptors: np.ndarray, resolution: int | None = None) -> Any:
        """As the model's, at once: of stored descriptors it is a product of two matrices."""
        return self._model.classify(descriptors, resolution)

    @contextlib.contextmanager
    def _turn(self):
        with self._condition:
            number = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._now == number)
        try:
            yield
        finally:
            with self._condition:
                self._now += 1
                self._condition.notify_all()


def _check_pixels(path):
    try:
        with warnings.catch_warnings():
            # the limit on pixels is ours, and told as an answer
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise UserError(f"the photo has more than the {MAX_PIXELS:,} pixels allowed") from None
    except Exception:  # what it is, and what is wrong with it, is said by those who know all kinds
        return
    if width * height > MAX_PIXELS:
        raise UserError(f"the photo has {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed")


def _region(image, box):
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"a box is left,top,right,bottom as shares from 0 to 1, received {','.join(f'{each:g}' for each in box)}"
        )
    width, height = image.size
    cut = image.crop((int(left * width), int(top * height), round(right * width), round(bottom * height)))
    if min(cut.size) < MIN_SIDE:
        raise UserError(f"the box is {cut.width} x {cut.height} pixels: it must have at least {MIN_SIDE} a side")
    return cut
