"""Finds the copies of an album, or between two, by the pixels of the photos that may be some.

A photo is compared with those nearest to it by descriptor, and, in the same frame, with those that look most like it
from afar. What was found is kept by the photos' contents, so that only what is new is compared.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from mg_keras.search import neighbors
from mg_keras.search.store import Compared
from mg_keras.search.verification import (
    METHOD,
    SKETCH,
    Picture,
    Verdict,
    compare,
    grey_of,
    picture_of,
    sketch_of,
    unit_sketches,
)

NEAREST = 8
"""Photos, nearest by descriptor, that each is compared with."""

# those that look most like it from afar, and how much they must
_FROM_AFAR, _ALIKE = 4, 0.6
# pictures, some 0.15 MB each, that are in memory at a time, and pairs that are compared before it is noted
_PICTURES, _PAIRS = 2500, 256
_GIGABYTE = 1 << 30
# how a pair is kept of which only the same frame was tried, in vain
_FRAME_ONLY = "not in the frame"


class Verifier:
    """Compares photos by pixels, each pair once; use as a context manager.

    Args:
        paths: of the photos; those that can't be opened are compared with nothing.
        contents: their hashes, 32 bytes each or None, which are not kept.
        folder: of the index that keeps what is found.
        is_same: is asked of a photo's number, once it was opened, whether it has the content of its hash still.

    Attributes:
        shut: numbers of the photos that could not be opened.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        contents: Sequence[bytes | None],
        folder: Path,
        is_same: Callable[[int], bool] = lambda number: True,
    ):
        self._paths, self._contents, self._is_same = paths, list(contents), is_same
        self._compared = Compared(folder, METHOD)
        self._found: dict[tuple[int, int], Verdict | None] = {}
        # pairs of these of which only the same frame was tried, in vain
        self._frame_only: set[tuple[int, int]] = set()
        self._pictures: OrderedDict[int, Picture | None] = OrderedDict()
        # of photos that were opened for their sketches, and whose pictures are not made yet
        self._greys: OrderedDict[int, np.ndarray] = OrderedDict()
        # what was found and is not kept yet
        self._fresh: dict[tuple[bytes, bytes], tuple[bool, float, str, bool]] = {}
        self.shut: set[int] = set()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._keep()
        self._compared.__exit__()

    def alike_from_afar(
        self, first: Sequence[int], second: Sequence[int], step: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Pairs (one of the first, one of the second) that may be copies in the same frame, int64 [E, 2].

        Args:
            first, second: numbers of photos, int, the same or two albums.
            step: is called with how many photos more have been looked at.
        """
        if not len(first) or not len(second):
            return np.empty((0, 2), np.int64)
        numbers = sorted({*first, *second})
        sketches = dict(zip(numbers, self._sketches(numbers, step), strict=True))
        values = unit_sketches(np.stack([sketches[number] for number in second]))
        used = values.any(axis=1)
        kind = neighbors.choose(*values.shape, "auto", 2 * _GIGABYTE)
        stored = values.astype(np.float16)
        base = neighbors.exact(stored) if kind == "exact" else neighbors.build(stored, used, kind)[0]
        found, second, pairs = neighbors.Neighbors(stored, used, base), np.asarray(second), []
        for mirrored in (False, True):
            for start in range(0, len(first), 1024):
                part = np.asarray(first[start : start + 1024])
                asked = np.stack([sketches[number] for number in part])
                queries = unit_sketches(asked[:, :, ::-1] if mirrored else asked)
                # one more, as a photo is its own nearest
                similarities, rows = found.nearest(queries, _FROM_AFAR + 1)
                one, place = np.nonzero((rows >= 0) & (similarities >= _ALIKE) & queries.any(axis=1)[:, None])
                pairs.append(np.stack([part[one], second[rows[one, place]]], axis=1))
        return _each_once(np.concatenate(pairs))

    def verify(
        self, pairs: np.ndarray, frame_only: np.ndarray, step: Callable[[int], None] = lambda count: None
    ) -> list[Verdict | None]:
        """Verdicts of pairs of photos, int [E, 2]; None where one of the two can't be opened.

        Args:
            pairs: numbers of photos.
            frame_only: bool [E], those of which only the same frame is tried.
            step: is called with how many pairs more are done.
        """
        order = near_order(pairs)
        for start in range(0, len(order), _PAIRS):
            part = order[start : start + _PAIRS]
            self._compare([(*map(int, pairs[edge]), bool(frame_only[edge])) for edge in part])
            step(len(part))
        return [self._found[min(pair), max(pair)] for pair in map(tuple, pairs.tolist())]

    def verdicts(self, one: int, others: Sequence[int]) -> list[Verdict | None]:
        """Of one photo and each of several."""
        for start in range(0, len(others), _PAIRS):
            self._compare([(one, other, False) for other in others[start : start + _PAIRS]])
        return [self._found[min(one, other), max(one, other)] for other in others]

    def _sketches(self, numbers, step):
        """uint8 [12, 12] of photos; 0 of those that can't be opened."""
        known = self._compared.sketches({self._contents[number] for number in numbers} - {None})
        found = []
        for start in range(0, len(numbers), _PAIRS):
            part = numbers[start : start + _PAIRS]
            kept = [known.get(self._contents[number]) for number in part]
            missing = [number for number, sketch in zip(part, kept, strict=True) if sketch is None]
            made = dict(zip(missing, self._threads.map(self._sketch, missing), strict=True))
            fresh = {
                self._contents[number]: each.tobytes()
                for number, each in made.items()
                if self._contents[number] and number not in self.shut
            }
            if fresh:
                self._compared.put_sketches(fresh)
            for number, sketch in zip(part, kept, strict=True):
                found.append(
                    made[number] if sketch is None else np.frombuffer(sketch, np.uint8).reshape(SKETCH, SKETCH)
                )
            step(len(part))
        return found

    def _sketch(self, number):
        grey = self._grey(number)
        if grey is None:
            return np.zeros((SKETCH, SKETCH), np.uint8)
        with self._lock:
            if len(self._greys) < _PICTURES:
                self._greys[number] = grey
        return sketch_of(grey)

    def _grey(self, number):
        grey = grey_of(self._paths[number])
        if grey is None:
            self.shut.add(number)
        elif self._contents[number] and not self._is_same(number):
            # what is found of it now says nothing of what it was
            self._contents[number] = None
        return grey

    def _compare(self, items):
        """Notes verdicts of (one, other, frame_only) that are not known yet."""
        todo = {}
        for one, other, frame_only in items:
            pair = min(one, other), max(one, other)
            if pair in self._found and (frame_only or pair not in self._frame_only):
                continue
            kept = self._kept(pair)
            if kept and (frame_only or kept[2] != _FRAME_ONLY):
                same, score, how, throughout = kept
                self._note(pair, Verdict(same, score, how if same else "", throughout), how == _FRAME_ONLY)
            else:
                todo[pair] = frame_only and todo.get(pair, True)
        if not todo:
            return
        numbers = sorted({number for pair in todo for number in pair})
        pictures = dict(zip(numbers, self._threads.map(self._picture, numbers), strict=True))
        with self._lock:
            self._pictures |= pictures
            while len(self._pictures) + len(self._greys) > _PICTURES:
                (self._greys or self._pictures).popitem(last=False)

        def verdict(pair):
            one, other = (pictures[number] for number in pair)
            return None if one is None or other is None else compare(one, other, todo[pair])

        made = dict(zip(todo, self._threads.map(verdict, todo), strict=True))
        for pair, found in made.items():
            self._note(pair, found, bool(todo[pair] and found and not found.same))
        self._fresh |= {
            tuple(self._contents[number] for number in pair): (
                found.same, found.score, found.how or (_FRAME_ONLY if todo[pair] else ""), found.throughout
            )
            for pair, found in made.items()
            if found and all(self._contents[number] for number in pair)
        }  # fmt: skip
        if len(self._fresh) >= _PAIRS:
            self._keep()

    def _keep(self):
        if self._fresh:
            self._compared.put_pairs(self._fresh)
            self._fresh = {}

    def _note(self, pair, verdict, frame_only):
        self._found[pair] = verdict
        (self._frame_only.add if frame_only else self._frame_only.discard)(pair)

    def _kept(self, pair):
        contents = [self._contents[number] for number in pair]
        return self._compared.pair(*contents) if all(contents) else None

    def _picture(self, number):
        with self._lock:
            if number in self._pictures:
                self._pictures.move_to_end(number)
                return self._pictures[number]
            grey = self._greys.pop(number, None)
        grey = self._grey(number) if grey is None else grey
        return None if grey is None else picture_of(grey)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """In this block each call of OpenCV takes one thread: several pairs are compared at a time."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def near_order(pairs: np.ndarray) -> np.ndarray:
    """An order of pairs, int [E, 2], in which those with the same photos come soon after each other.

    Photos are walked from neighbour to neighbour, so that few need be in memory at a time.
    """
    count = int(pairs.max(initial=-1)) + 1
    ends = np.concatenate([pairs[:, 0], pairs[:, 1]])
    order = np.argsort(ends, kind="stable")
    starts = np.searchsorted(ends[order], np.arange(count + 1)).tolist()
    edges = (order % max(1, len(pairs))).tolist()
    listed = pairs.tolist()
    seen, taken, result = bytearray(count), bytearray(len(pairs)), []
    for first in range(count):
        waiting = [first]
        for node in waiting:
            if seen[node]:
                continue
            seen[node] = 1
            for edge in edges[starts[node] : starts[node + 1]]:
                if not taken[edge]:
                    taken[edge] = 1
                    result.append(edge)
                    one, other = listed[edge]
                    waiting.append(other if one == node else one)
    return np.array(result, np.int64)


def _each_once(pairs):
    """Pairs of two different photos, each once in either direction, the lower number first."""
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)
