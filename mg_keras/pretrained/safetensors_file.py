"""Safetensors files, read without the package of that name: a JSON header, and the numbers behind it.

The header's length stands in front of it, as 8 bytes, little-endian. It says of each tensor by name its type, its
shape and where its numbers begin and end behind the header. There is nothing to run in it.
"""

import json
import math
from pathlib import Path

import numpy as np

from mg_keras.errors import UserError
from mg_keras.pretrained.torch_file import Storage, Tensor, TorchFile, shown

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# that of a network of a thousand tensors has 0.1 MB
_MAX_HEADER = 8 << 20


def open_tensors(path):
    """A file of PyTorch tensors, by its name: `SafetensorsFile` for `.safetensors`, otherwise `TorchFile`."""
    return SafetensorsFile(path) if Path(path).suffix == ".safetensors" else TorchFile(path)


class SafetensorsFile:
    """A safetensors file, with what `TorchFile` has.

    Args:
        path: the file.

    Attributes:
        path: Path of the file.
        format: `"safetensors"`.
        contents: dict of name -> `Tensor`.

    Raises:
        UserError: the file cannot be read, is no safetensors file, or declares other numbers than it has.
    """

    format = "safetensors"

    def __init__(self, path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = self.path.stat().st_size
                if length > min(size - 8, _MAX_HEADER):
                    raise UserError(
                        f"{path} is no safetensors file, or cut short: its header would be {length:,} bytes"
                    )
                header = json.loads(file.read(length))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        # that includes text that is no UTF-8; nested too deep, it ends in a RecursionError
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no safetensors file: its header is no JSON ({error})") from error
        if not isinstance(header, dict):
            raise UserError(f"{path} is no safetensors file: its header is no object")
        header.pop("__metadata__", None)
        self._begin, self._end = 8 + length, size
        self._places = {}
        self.contents = {name: self._tensor(name, entry) for name, entry in header.items()}

    def _tensor(self, name, entry):
        try:
            kind, shape, (begin, end) = _TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"{self.path}: {shown(name)} is declared without a known dtype, shape and data_offsets")
        count = math.prod(shape)
        if end - begin != count * _item_type(kind).itemsize or self._begin + end > self._end:
            raise UserError(
                f"{self.path} is cut short or damaged: {shown(name)} is declared as {count:,} values of {kind} in "
                f"bytes {begin:,} to {end:,} of {self._end - self._begin:,}"
            )
        self._places[name] = self._begin + begin
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        return Tensor(Storage(name, kind, count), 0, shape, strides)

    def array(self, tensor):
        """The numbers of a tensor of `contents` as a NumPy array; bfloat16 comes as float32."""
        kind, count = tensor.dtype, tensor.storage.count
        values = np.fromfile(self.path, _item_type(kind), count, offset=self._places[tensor.storage.key])
        if kind == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(tensor.shape)


def _item_type(kind):
    return np.dtype("uint16" if kind == "bfloat16" else kind).newbyteorder("<")
