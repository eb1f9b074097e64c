"""Safetensors files as files of PyTorch tensors. There is nothing to run in them."""

import math
import os
from pathlib import Path

# NumPy knows bfloat16 by name once it is imported
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open

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


def open_tensors(path: str | os.PathLike) -> "SafetensorsFile | TorchFile":
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
        UserError: the file cannot be read, is no safetensors file, declares other numbers than it has, or numbers of a
            type that no network here has.
    """

    format = "safetensors"

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="numpy")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file, or cut short or damaged: {error}") from error
        self.contents = {name: self._tensor(name) for name in self._file.keys()}  # noqa: SIM118

    def _tensor(self, name):
        declared = self._file.get_slice(name)
        shape, kind = tuple(declared.get_shape()), declared.get_dtype()
        if kind not in _TYPES:
            raise UserError(f"{self.path}: {shown(name)} is of the type {kind}; {', '.join(_TYPES)} are read")
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        return Tensor(Storage(name, _TYPES[kind], math.prod(shape)), 0, shape, strides)

    def array(self, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor of `contents` as a NumPy array; bfloat16 comes as float32."""
        values = self._file.get_tensor(tensor.storage.key)
        return values.astype(np.float32) if tensor.dtype == "bfloat16" else values
