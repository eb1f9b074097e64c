"""What every engine gives: rows for pieces of work, in any order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

import pyarrow as pa

from mg_keras.embedding.work import Piece


class Engine(ABC):
    """A place where photos are described; use as a context manager.

    Attributes:
        made_from: what decides its descriptors, as `mg_keras.embedding.settings.Settings.made_from` says it.
        dimensions: values of a descriptor.
    """

    made_from: dict[str, Any]
    dimensions: int

    def start(self) -> None:  # noqa: B027 (most have nothing to do)
        """Makes ready for work, as soon as it is known that there is some."""

    @abstractmethod
    def rows(self, pieces: Iterator[Piece], columns: pa.Schema, counted: Callable[[int], None]) -> Iterator[pa.Table]:
        """Describes pieces, several at a time.

        A photo that can't be used is a row with its `error`. The number of pieces that are taken from the iterator and
        not yet given is bounded, so that memory is, however slow the caller.

        Args:
            pieces: of `mg_keras.embedding.work.Work`.
            columns: of the rows, as `mg_keras.embedding.shards.schema` makes it.
            counted: told how many photos were described since it was last told.

        Yields:
            The rows of each piece together, the pieces in any order.

        Raises:
            UserError: photos can't be described here now; what was given is whole, and the rest can be asked for again.
        """

    def close(self) -> None:  # noqa: B027
        """Lets go of what `start` took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
