"""TensorFlow without the notes that it writes for its own developers, and sooner."""

import contextlib
import gc
import importlib.abc
import logging
import os
import sys
from collections.abc import Iterator

# for wrappers and galleries of Keras that no program uses: a quarter of the time that the import takes
_UNUSED = ("matplotlib", "sklearn")


def import_tensorflow() -> None:
    """Imports TensorFlow, and Keras with it, for a program: sooner than `import tensorflow`, and silently.

    The start-up notes that it writes to standard error before it can be told not to are dropped. Keras is not to find
    scikit-learn and matplotlib, which it would import for its wrappers; a program still imports them as it likes.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        with not_found(*_UNUSED), without_collection():
            import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Garbage is not looked for while the block runs.

    Of what an import or a network leaves, hardly anything is garbage, and the looking takes a sixth of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _NotFound(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def not_found(*names: str) -> Iterator[None]:
    """Packages are as if not installed while the block runs, unless they were imported before."""
    finder = _NotFound(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def tensorflow_says(level: int) -> Iterator[None]:
    """TensorFlow's Python log keeps to notes of `level` (of `logging`) and above while the block runs."""
    logger = logging.getLogger("tensorflow")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
