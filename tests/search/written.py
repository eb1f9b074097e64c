"""What a process that is killed, or watched, does to an index: run by `forkserver`, without TensorFlow."""

import numpy as np

from mg_keras.search import writing
from mg_keras.search.index import Index
from tests.search.fake import SIDE, FakeModel, noise

SIZE = SIDE * SIDE * 3 + 1


def extra(number):
    """The descriptor that is called `extra-NUMBER`."""
    values = np.random.default_rng(number).normal(size=SIZE)
    return values / np.linalg.norm(values)


def write_for_ever(folder, path, first, started):
    """Builds, adds, removes, makes anew and orders, until it is killed."""
    writing._FIRST_CHUNK = writing._LARGEST_CHUNK = 5
    writing._SMALLEST_APPROXIMATE = 16
    started.set()
    index = Index.build(folder, FakeModel(), path, kind="ivf")
    for number in range(first, first + 100_000):
        if number % 3:
            index.add(np.stack([extra(2 * number), extra(2 * number + 1)]), [f"extra-{2 * number + k}" for k in (0, 1)])
        else:
            index.remove([photo.name for photo in index.photos() if photo.name.startswith("extra-")])
            noise(number).save(folder / ".new.png")
            (folder / ".new.png").rename(folder / f"new-{number}.png")
            index.update()


def add_pairs(path, count, started):
    """Adds descriptors by twos, and sometimes takes all out again."""
    writing._SMALLEST_APPROXIMATE = 16
    started.wait()
    with Index.open(path) as index:
        for number in range(count):
            index.add(np.stack([extra(2 * number), extra(2 * number + 1)]), [f"extra-{2 * number + k}" for k in (0, 1)])
            if number % 20 == 19:
                index.remove([f"extra-{each}" for each in range(2 * number)])
