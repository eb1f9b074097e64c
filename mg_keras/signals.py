"""Signals that ask a program to stop: Ctrl-C and the end of its service."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def on_stop(handle: Callable[[int], Any]) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM are given to `handle` by their number, and do nothing else."""
    before = {
        number: signal.signal(number, lambda number, frame: handle(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
