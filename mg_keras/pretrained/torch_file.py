"""PyTorch's files of tensors, read without PyTorch and without running anything of them; and written.

Two formats are in use, and both are a pickle beside the raw numbers that it refers to:

* zip (since PyTorch 1.6): `NAME/data.pkl` and `NAME/data/KEY`, stored uncompressed;
* legacy: five pickles (magic number, version, the writer's machine, the content, the keys of its storages) and the
  storages behind them, each with its length in front.

The pickle is read by `mg_keras.safe_pickle`, whose table has here what rebuilds tensors. What it declares is compared
with what the file has before any memory is spent on it; numbers are read when they are asked for.
"""

import io
import math
import mmap
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mg_keras import safe_pickle
from mg_keras.errors import UserError
from mg_keras.files import atomic_path

# what the pickle of the content and the directory of the archive may take: those of a ResNet-152 with Adam's state have
# 0.5 and 0.2 MB, and what is made of them is many times larger
_MAX_PICKLE = 1 << 20
_MAX_DIRECTORY = 1 << 19
_MAX_DIMENSIONS = 8

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# PyTorch leaves the place empty when it is told to save the time (set_crc32_options)
_NO_CHECKSUM = 0

# what a defaultdict fills its gaps with
_FACTORIES = ("dict", "float", "int", "list")

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_WRITTEN = {np.dtype(kind): name for name, kind in _STORAGES.items() if kind != "bfloat16"}


# Both are tuples because a pickle can set attributes of any object that it makes; a tuple has none to set.
class Storage(NamedTuple):
    """Numbers that lie one after the other in a file.

    Attributes:
        key: what the file calls it.
        dtype: their type, a name of NumPy or `"bfloat16"`.
        count: how many there are.
    """

    key: str
    dtype: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage, as PyTorch has it: `offset` and `strides` count elements. `TorchFile.array` reads it."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    @property
    def dtype(self) -> str:
        """The type of its numbers: a name of NumPy, or `"bfloat16"`."""
        return self.storage.dtype


class _DirectoryFile(io.FileIO):
    """A file as `zipfile` reads the directory of: all of it at once, however long it says that it is."""

    def read(self, size=-1):
        if size > _MAX_DIRECTORY:
            raise ValueError(f"a directory of {size:,} bytes, where at most {_MAX_DIRECTORY:,} are read")
        return super().read(size)


class TorchFile:
    """A file that `torch.save` wrote, zip or legacy.

    Tensors may have any strides and share their storages. Files with numbers of either byte order can be read.

    Args:
        path: the file.

    Attributes:
        path: Path of the file.
        format: `"zip"` or `"legacy"`.
        contents: what was saved, with a `Tensor` in the place of each tensor. Its dicts can be of a kind whose methods
            the file has overridden: take `dict.items(contents)`.

    Raises:
        UserError: the file cannot be read, is no PyTorch checkpoint, is cut short or damaged, declares more numbers
            than it has, or its pickle names what could run code, such as the class of a whole model.

    Example:
        >>> file = TorchFile("resnet18.pth")  # doctest: +SKIP
        >>> file.array(file.contents["conv1.weight"]).shape  # doctest: +SKIP
        (64, 3, 7, 7)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._storages, self._places, self._checksums = {}, {}, {}
        self._order = "<"
        self._allowed = {
            **safe_pickle.ALLOWED,
            **{f"torch.{name}": kind for name, kind in _STORAGES.items()},
            "torch.Size": tuple,
            # what the state of a schedule or a history of losses is kept in, beside a network
            "collections.Counter": dict,
            "collections.defaultdict": _empty_dict,
            **{f"{module}.{kind}": kind for module in ("builtins", "__builtin__") for kind in _FACTORIES},
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        }
        try:
            with self.path.open("rb") as stream:
                self._size = os.fstat(stream.fileno()).st_size
                if not self._size:
                    raise UserError(f"{self.path} is empty, and no PyTorch checkpoint")
                # pages of a mapped file are read when they are touched, and take no memory of the process
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                self.format = "zip" if self._bytes[:2] == b"PK" else "legacy"
                self.contents = self._read_zip(stream) if self.format == "zip" else self._read_legacy(stream)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def array(self, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor of this file.

        Args:
            tensor: a `Tensor` of `contents`.

        Returns:
            A NumPy array of its own memory, in the machine's byte order; bfloat16 comes as float32, which has the same
            values and more.

        Raises:
            UserError: the file is damaged: the numbers are not those whose checksum was written.
        """
        storage = tensor.storage
        kind = np.dtype("uint16" if storage.dtype == "bfloat16" else storage.dtype)
        if storage.key in self._checksums:
            self._check(self._places[storage.key], storage.count * kind.itemsize, self._checksums[storage.key])
            # the views that share it need no second look
            del self._checksums[storage.key]
        if 0 in tensor.shape:
            values = np.zeros(tensor.shape, kind)
        else:
            flat = np.frombuffer(self._bytes, kind.newbyteorder(self._order), storage.count, self._places[storage.key])
            strides = [stride * kind.itemsize for stride in tensor.strides]
            values = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        if storage.dtype == "bfloat16":
            return np.asarray(values.astype(np.uint32) << 16).view(np.float32)
        return np.array(values, kind)

    # the two formats

    def _read_zip(self, stream):
        try:
            directory = _DirectoryFile(stream.fileno(), closefd=False)
            with zipfile.ZipFile(directory) as archive:
                entries = archive.infolist()
        # what a broken directory can raise is any of half a dozen types
        except Exception as error:
            raise UserError(
                f"{self.path} begins as a zip archive and has no readable directory at its end, so it is cut short or "
                f"damaged: {error}"
            ) from error
        heads = [entry.filename for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(heads) != 1:
            raise UserError(
                f"{self.path} is a zip archive and no PyTorch checkpoint, which has one data.pkl in its one folder: it "
                f"has {len(heads)}"
            )
        folder = heads[0].removesuffix("data.pkl")
        entries = {entry.filename.removeprefix(folder): entry for entry in entries}
        if "byteorder" in entries and self._entry(entries["byteorder"], 16) == b"big":
            self._order = ">"
        content = io.BytesIO(self._entry(entries["data.pkl"], _MAX_PICKLE))

        def place(storage, size):
            entry = entries.get(f"data/{storage.key}")
            if entry is None:
                raise UserError(f"{self.path} refers to storage {shown(storage.key)}, which it does not have")
            if entry.file_size != size:
                raise UserError(
                    f"{self.path} declares {storage.count:,} values of {storage.dtype} for storage "
                    f"{shown(storage.key)}, for which it has {entry.file_size:,} bytes"
                )
            self._places[storage.key] = self._place(entry)
            self._checksums[storage.key] = entry.CRC

        return self._load(content, lambda pid: self._storage(pid, place))

    def _place(self, entry):
        """Where the bytes of an archive's entry begin, all of which are within the file."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UserError(f"{self.path} holds {shown(entry.filename)} compressed or encrypted, unlike PyTorch's")
        header = self._bytes[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise UserError(f"{self.path} has no {shown(entry.filename)} where its directory says: it is damaged")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + _LOCAL_HEADER.size + name + extra
        self._within(begin, entry.file_size, shown(entry.filename))
        return begin

    def _entry(self, entry, most):
        """The bytes of a small entry."""
        if entry.file_size > most:
            raise UserError(
                f"{self.path} has {entry.file_size:,} bytes in {shown(entry.filename)}: at most {most:,} are read"
            )
        begin = self._place(entry)
        self._check(begin, entry.file_size, entry.CRC)
        return self._bytes[begin : begin + entry.file_size]

    def _read_legacy(self, stream):
        try:
            magic = safe_pickle.load(stream, str(self.path), allowed={}, max_bytes=_MAX_PICKLE)
        except UserError as error:
            raise UserError(f"{self.path} is no PyTorch checkpoint, neither zip nor legacy: {error}") from error
        if magic != _LEGACY_MAGIC:
            raise UserError(
                f"{self.path} is no PyTorch checkpoint: a pickle that begins with a {type(magic).__name__}, not with "
                "PyTorch's magic number"
            )
        if self._load(stream) != _LEGACY_VERSION:
            raise UserError(f"{self.path} is of another version of PyTorch's legacy format than {_LEGACY_VERSION}")
        machine = self._load(stream)
        if not isinstance(machine, dict):
            raise UserError(f"{self.path} does not say on what machine it was written")
        self._order = "<" if dict.get(machine, "little_endian", True) else ">"

        def bounded(storage, size):
            self._within(0, size, f"storage {shown(storage.key)} of {storage.count:,} values")

        contents = self._load(stream, lambda pid: self._storage(pid, bounded))
        keys, position = self._load(stream), stream.tell()
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not texts or sorted(keys) != sorted(self._storages):
            raise UserError(f"{self.path} lists other storages than those that its tensors refer to")
        for key in keys:
            storage = self._storages[key]
            self._within(position, 8, f"the length of storage {shown(key)}")
            count = int(np.frombuffer(self._bytes, f"{self._order}i8", 1, position)[0])
            if count != storage.count:
                raise UserError(
                    f"{self.path} declares {storage.count:,} values for storage {shown(key)}, which says that it has "
                    f"{count:,}"
                )
            size = count * _item_size(storage.dtype)
            self._within(position + 8, size, f"storage {shown(key)}")
            self._places[key] = position + 8
            position += 8 + size
        return contents

    def _load(self, stream, persistent_load=None):
        return safe_pickle.load(
            stream, str(self.path), allowed=self._allowed, persistent_load=persistent_load, max_bytes=_MAX_PICKLE
        )

    def _within(self, begin, size, what):
        if begin < 0 or begin + size > self._size:
            raise UserError(
                f"{self.path} is cut short or damaged: {what} would end at byte {begin + size:,} of {self._size:,}"
            )

    def _check(self, begin, size, checksum):
        with memoryview(self._bytes) as whole:
            if checksum != _NO_CHECKSUM and zlib.crc32(whole[begin : begin + size]) != checksum:
                raise UserError(f"{self.path} is damaged: the checksum of bytes {begin:,} to {begin + size:,} differs")

    # what a pickle's names stand for; the arguments are the file's, and can be anything

    def _storage(self, pid, place):
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            raise UserError(
                f"{self.path} holds a whole model, whose code would have to run: save model.state_dict() in its place"
            )
        # what may follow the five is None, or a view as no PyTorch of the last ten years wrote it
        if (
            not isinstance(pid, tuple)
            or len(pid) < 5
            or pid[0] != "storage"
            or any(more is not None for more in pid[5:])
        ):
            raise UserError(f"{self.path} refers to {shown(repr(pid))}, which is no storage of numbers")
        _, kind, key, _, count = pid[:5]
        if not (isinstance(kind, str) and kind in _STORAGES.values() and isinstance(key, str) and _is_count(count)):
            raise UserError(f"{self.path} refers to a storage as {shown(repr(pid))}: no type, key and number of values")
        storage = Storage(key, kind, count)
        if self._storages.setdefault(key, storage) != storage:
            raise UserError(f"{self.path} declares storage {shown(key)} twice, as {self._storages[key]} and {storage}")
        place(storage, count * _item_size(kind))
        return storage

    def _tensor(self, storage, offset, shape, strides, *more):
        del more
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if (
            not isinstance(storage, Storage)
            or not all(map(_is_count, numbers))
            or len(shape) != len(strides)
            or len(shape) > _MAX_DIMENSIONS
        ):
            raise UserError(f"{self.path} has a tensor without storage, offset, shape and strides that can be read")
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        # no more values than there are: a view that repeats them could be of any size
        if 0 not in shape and (last >= storage.count or math.prod(shape) > storage.count):
            raise UserError(
                f"{self.path} has a tensor of the shape {shape} with the strides {strides} from value {offset:,} of "
                f"storage {shown(storage.key)}, which has {storage.count:,} values"
            )
        return Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor, *more):
        del more
        if not isinstance(tensor, Tensor):
            raise UserError(f"{self.path} has a parameter that is no tensor")
        return tensor


def write(path: str | os.PathLike, contents: Mapping[str, Any]) -> None:
    """Writes NumPy arrays as `torch.save` would, for `torch.load(path, weights_only=True)` and `TorchFile`.

    Args:
        path: the file, whole or not at all; one that is there is replaced. The zip format is written.
        contents: dict of str to array or to another such dict; they come back as OrderedDicts of tensors. Arrays are
            of float64, float32, float16, int64, int32, int16, int8, uint8 or bool.

    Raises:
        ValueError: something in it is no dict and no array of these types, or a name is no str.
        OSError: it cannot be written there.
    """
    arrays = []
    content = b"\x80\x02" + _pickled(contents, arrays) + b"."
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:

        def add(name, data):
            # PyTorch reads any folder's name; a fixed one and a fixed date give the same file each time
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        add("data.pkl", content)
        add("byteorder", b"little")
        for key, array in enumerate(arrays):
            add(f"data/{key}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        add("version", b"3\n")


def _pickled(value, arrays):
    """The steps of a pickle (protocol 2) that put `value` on the stack; its arrays are added to the list."""
    empty = b"ccollections\nOrderedDict\n)R"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a checkpoint names its arrays by str, received {key!r}")
        return empty + b"(" + b"".join(_text(key) + _pickled(item, arrays) for key, item in value.items()) + b"u"
    if not isinstance(value, np.ndarray) or value.dtype not in _WRITTEN:
        received = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"a checkpoint holds dicts of arrays of {', '.join(map(str, _WRITTEN))}, received {received}")
    arrays.append(value)
    kind = f"ctorch\n{_WRITTEN[value.dtype]}\n".encode()
    storage = b"(" + _text("storage") + kind + _text(str(len(arrays) - 1)) + _text("cpu") + _whole(value.size) + b"tQ"
    shape = b"(" + b"".join(map(_whole, value.shape)) + b"t"
    strides = [math.prod(value.shape[place + 1 :]) for place in range(value.ndim)]
    steps = storage + _whole(0) + shape + b"(" + b"".join(map(_whole, strides)) + b"t" + b"\x89" + empty
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + steps + b"tR"


def _text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _whole(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def _empty_dict(*factory):
    del factory
    return {}


def _item_size(kind):
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _is_count(value):
    return type(value) is int and 0 <= value <= sys.maxsize


def shown(text: str, most: int = 80) -> str:
    """A text of a file's, fit for a line of a message or a terminal, of at most so many characters."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
