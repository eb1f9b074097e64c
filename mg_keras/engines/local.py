"""Photos described in this process."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pyarrow as pa

from mg_keras.embedding.describer import Describer
from mg_keras.embedding.photos import EmbeddingNetwork
from mg_keras.embedding.settings import Settings
from mg_keras.embedding.work import Piece
from mg_keras.engines.contract import Engine

# while one runs through the network, photos of the next are decoded
_AT_ONCE = 2


class Local(Engine):
    """An engine that needs nothing but this process.

    Args:
        network: `MultiGrain`, or another network of `mg_keras.embedding.photos`.
        settings: how photos are described.
    """

    def __init__(self, network: EmbeddingNetwork, settings: Settings):
        self._describer = Describer(network, settings)
        self.made_from, self.dimensions = self._describer.made_from, self._describer.dimensions

    def rows(self, pieces: Iterator[Piece], columns: pa.Schema, counted: Callable[[int], None]) -> Iterator[pa.Table]:
        """As `Engine.rows`."""
        stopped, lock = threading.Event(), threading.Lock()

        def count(photos):
            if stopped.is_set():
                raise InterruptedError
            with lock:
                counted(photos)

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            try:
                under_way = set()
                for piece in pieces:
                    under_way.add(threads.submit(self._describer.rows, piece, columns, count))
                    if len(under_way) == _AT_ONCE:
                        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                        yield from (each.result() for each in done)
                while under_way:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            finally:
                # whoever stops shall not wait for a whole piece
                stopped.set()
