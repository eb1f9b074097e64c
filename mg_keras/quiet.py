"""TensorFlow without the notes that it writes for its own developers."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports TensorFlow without the start-up notes that it writes to standard error before it can be told not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
