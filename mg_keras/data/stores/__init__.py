"""Where shards and photos lie: local files, what fsspec reads (`s3://`, `https://`, ...) and what TensorFlow does.

A store finds files and reads them, whole or a range of bytes; its functions may be called from any thread. `store_of`
is the store of a path or URL, and `read` reads from it patiently.
"""

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mg_keras.data.stores.local import LocalStore
from mg_keras.data.stores.through_fsspec import FsspecStore
from mg_keras.errors import UserError

_SCHEME = re.compile(r"[A-Za-z0-9+.:-]+://")
# seconds before a store that did not answer is asked again
_RETRIES = (0.5, 2.0, 8.0)
# what will be the same then; ValueError: a path with a zero in it
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)
_Answer = TypeVar("_Answer")


def store_of(path: str) -> LocalStore | FsspecStore:
    """The store that a path or URL lies in.

    Raises:
        UserError: nothing that is installed reads such URLs.
    """
    scheme = _SCHEME.match(path)
    if not scheme:
        return LocalStore()
    try:
        import fsspec

        return FsspecStore(fsspec.core.url_to_fs(path)[0])
    except (ImportError, ValueError) as error:
        # asked last: most who read photos need no TensorFlow, which takes seconds to import
        from mg_keras.data.stores.through_tensorflow import TensorFlowStore

        if TensorFlowStore.reads(scheme[0].removesuffix("://")):
            return TensorFlowStore()
        raise UserError(
            f"{path} can't be read: {error}; install mg-keras[fsspec] and fsspec's driver for {scheme[0]} (s3fs for s3://)"
        ) from None


def read(path: str, start: int = 0, end: int | None = None) -> bytes:
    """What the store of a path or URL holds from `start` to before `end`, or to the file's end.

    Raises:
        OSError: the store does not give it; the message has the error's name.
    """
    return _patiently(lambda: store_of(path).read(path, start, end))


def is_url(path: str) -> bool:
    """Whether a path is the URL of a store."""
    return bool(_SCHEME.match(path))


@contextlib.contextmanager
def as_user_error(failure: str) -> Iterator[None]:
    """What a store raises in the block, in types of its own, as a `UserError` of one line.

    Args:
        failure: what could not be done, such as "s3://bucket/photos can't be listed".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failure}: {type(error).__name__}: {error}".splitlines()[0]) from error


def _patiently(request: Callable[[], _Answer]) -> _Answer:
    """What a store answers, asked again where it does not; a file that is not, or can't be, will not be there later.

    Raises:
        OSError: it does not answer.
    """
    for seconds in (*_RETRIES, None):
        try:
            return request()
        except Exception as error:  # stores raise types of their own
            missing = type(error).__name__ == "NotFoundError" or isinstance(error, _LASTING)
            if seconds is None or missing or getattr(error, "errno", None) in _NO_NAMES:
                raise OSError(f"{type(error).__name__}: {error}") from error
        time.sleep(seconds)
    raise AssertionError("unreachable")
