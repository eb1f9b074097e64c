"""Pickles from strangers: read as data, with nothing of them run.

A pickle is a program that names functions and calls them. Here every name is looked up in a table, nothing is ever
imported, and what the table holds for a name are functions of ours. Plain containers, numbers, strings and NumPy's
arrays and scalars can be read so; a caller adds names of its own, such as those of a torch checkpoint.
"""

import collections
import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mg_keras.errors import UserError

MAX_BYTES = 64 << 20
_NUMPY_KINDS = "biufcSU"
_DEEPEST, _MARK = 1000, -1
# what an empty container takes in memory, by the step that makes it, and what all may take: a step is a byte or two
_CONTAINERS = {
    "EMPTY_SET": 216,
    "FROZENSET": 216,
    **dict.fromkeys(("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"), 64),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 64),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"), 64),
}
_CONTAINERS_FREE, _CONTAINERS_BY_BYTE = 1 << 20, 24


def load(
    stream: BinaryIO,
    name: str,
    *,
    allowed: Mapping[str, Any] | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Read one pickle from a stream, which is left right behind it; others may follow.

    Args:
        stream: opened for reading bytes, with `seek`.
        name: what to call the stream in messages.
        allowed: `"module.name"` -> what stands for it: a function that is called with what the pickle gives, or a value
            handed on as it is, such as a string. None: `ALLOWED`; a table that adds to it is `{**ALLOWED, ...}`. The
            functions meet hostile arguments: they must check them. Values must be immutable.
        persistent_load: what stands for a persistent id (torch's storages), given the id; None: there must be none.
        max_bytes: how long the pickle may be.

    Returns:
        What it holds. Arrays are of a subclass of `numpy.ndarray`; strings of Python 2 are read as Latin-1.

    Raises:
        UserError: it is no pickle, is longer than `max_bytes`, or names what is not in the table; and whatever
            `persistent_load` and the functions of `allowed` raise as UserError.

    Example:
        >>> load(io.BytesIO(pickle.dumps({"easy": [1, 2]})), "ground truth")
        {'easy': [1, 2]}
    """
    start = stream.tell()
    data = stream.read(max_bytes)
    try:
        data = data[: _check(data)]
        found = _Unpickler(data, ALLOWED if allowed is None else allowed, persistent_load).load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(f"{name} {error}") from None
    # what a broken or hostile pickle can raise is any of a dozen types
    except Exception as error:
        if len(data) == max_bytes:
            raise UserError(f"{name} holds no pickle of at most {max_bytes:,} bytes") from error
        raise UserError(f"{name} is no pickle that can be read: {type(error).__name__}: {error}") from error
    stream.seek(start + len(data))
    return found


def load_file(path: str | os.PathLike) -> Any:
    """Read the pickle at the start of a file: `load`, with the file's path in its messages.

    Raises:
        UserError: as `load`, or the file cannot be opened.
    """
    try:
        with Path(path).open("rb") as file:
            return load(file, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


class _Refused(pickle.UnpicklingError):
    """A pickle asks for more than data."""


def _check(data):
    """The length of the pickle at the start of `data`, none of whose steps can exhaust the process that runs it."""
    # for each object on the unpickler's stack and in its memo, how deep the tuples in it are nested
    stack, memo, end, containers = [], {}, 0, 0
    most = _CONTAINERS_FREE + _CONTAINERS_BY_BYTE * len(data)
    for step, argument, position in pickletools.genops(data):
        end = position + 1
        if step.name in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"):
            raise _Refused(f"uses {step.name}, which no file of data needs")
        containers += _CONTAINERS.get(step.name, 0)
        if containers > most:
            raise _Refused(f"makes containers of more than {most >> 20} MB, of {len(data):,} bytes")
        taken, count = [], len(step.stack_before)
        if pickletools.markobject in step.stack_before:
            count = step.stack_before.index(pickletools.markobject)
            while (top := stack.pop()) != _MARK:
                taken.append(top)
        taken += [stack.pop() for _ in range(count)]
        if step.name == "MARK":
            depth = _MARK
        elif "GET" in step.name:
            depth = memo[argument]
        else:
            depth = max(taken, default=0) + ("TUPLE" in step.name)
        # to hash a tuple, as a key of a dict, Python's C stack must hold all that are nested in it
        if depth > _DEEPEST:
            raise _Refused(f"nests more than {_DEEPEST:,} tuples")
        stack += [depth] * len(step.stack_after)
        if step.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif "PUT" in step.name:
            # Python's unpickler makes room for as many objects as the number says
            if argument > len(data):
                raise _Refused(f"asks for room for {argument:,} objects, in {len(data):,} bytes")
            memo[argument] = stack[-1]
    return end


class _Unpickler(pickle.Unpickler):
    def __init__(self, data, allowed, persistent_load):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._allowed, self._persistent_load = allowed, persistent_load

    def find_class(self, module, name):
        key = f"{module}.{name}"
        if key not in self._allowed:
            raise _Refused(f"names {key}, which could run code: only data is read")
        value = self._allowed[key]
        return _Sealed(key, value) if callable(value) else value

    def persistent_load(self, pid):
        if self._persistent_load is None:
            raise _Refused(f"refers to data outside of it ({str(pid)[:80]!r})")
        return self._persistent_load(pid)


class _Sealed:
    """A function that a pickle can call and not change: its BUILD step sets attributes of any object it can name."""

    __slots__ = ("_function", "_key")

    def __init__(self, key, function):
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setattr__(self, name, value):
        raise _Refused(f"sets {name} of {self._key}")

    def __repr__(self):
        return self._key


class _Type:
    """What stands for a NumPy dtype: NumPy's own takes any state, with which memory that is no array can be read."""

    def __init__(self, description, *flags):
        del flags
        self.dtype = np.dtype(_text(description)) if isinstance(description, bytes | str) else None
        if self.dtype is None or self.dtype.kind not in _NUMPY_KINDS or self.dtype.fields or self.dtype.subdtype:
            raise _Refused(f"holds a NumPy array of {str(description)[:80]!r}, where numbers and strings are read")

    def __setstate__(self, state):
        order = _text(state[1])
        if order in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that takes only a state with as many bytes as its shape needs."""

    def __setstate__(self, state):
        _, shape, kind, by_columns, content = state
        dtype, content = _dtype(kind), _bytes(content)
        shape = tuple(int(side) for side in shape)
        if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(content):
            raise _Refused(f"holds an array of the shape {shape} and type {dtype} in {len(content):,} bytes")
        super().__setstate__((1, shape, dtype, bool(by_columns), content))


def _array(*arguments):
    del arguments
    return np.zeros(0, np.uint8).view(_Array)


def _array_from_buffer(content, kind, shape, order):
    return np.frombuffer(_bytes(content), _dtype(kind)).reshape(shape, order=_text(order)).view(_Array)


def _scalar(kind, content=b""):
    dtype = _dtype(kind)
    # an empty string has no bytes
    return np.frombuffer(_bytes(content), dtype)[0] if dtype.itemsize else dtype.type()


def _encode(text, encoding="latin1"):
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"encodes text as {encoding!r}")
    return text.encode("latin1")


def _empty_bytes():
    return b""


def _dtype(kind):
    if not isinstance(kind, _Type):
        raise _Refused(f"gives {str(kind)[:80]!r} for the type of an array")
    return kind.dtype


def _bytes(content):
    if not isinstance(content, bytes | bytearray | str):
        raise _Refused(f"gives a {type(content).__name__} for the bytes of an array")
    return content.encode("latin1") if isinstance(content, str) else bytes(content)


def _text(content):
    return content.decode("latin1") if isinstance(content, bytes) else content


ALLOWED: Mapping[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode,
    **{f"{module}.bytes": _empty_bytes for module in ("builtins", "__builtin__")},
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex)
    },
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": _Type,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_from_buffer for core in ("core", "_core")},
}
"""What `load` reads besides what every pickle holds: None, booleans, numbers, strings, bytes, lists, tuples, dicts."""
