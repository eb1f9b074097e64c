import json

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.pretrained.safetensors_file import SafetensorsFile, open_tensors
from mg_keras.pretrained.torch_file import TorchFile
from tests.pretrained import torch_writer as by_hand

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def write(path, arrays, header=None, data=None, length=None):
    """A safetensors file by the letter of the format; the other arguments put something else in the place of a part."""
    entries, position = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    header = json.dumps(entries).encode() if header is None else header
    data = b"".join(array.tobytes() for array in arrays.values()) if data is None else data
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def test_arrays_come_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: (rng.standard_normal((2, 3)) * 9).astype(name) for name in NAMES} | {
        "scalar": np.array(2.5, "float32"),
        "none": np.zeros((0, 4), "float32"),
    }
    file = SafetensorsFile(write(tmp_path / "a.safetensors", arrays))
    assert set(file.contents) == set(arrays)
    for name, array in arrays.items():
        tensor = file.contents[name]
        assert (tensor.shape, tensor.dtype) == (array.shape, str(array.dtype))
        found = file.array(tensor)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_bfloat16_comes_as_float32(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    # the upper halves of float32's 1, -2.5 and 3e38
    data = np.array([0x3F80, 0xC020, 0x7F62], "<u2").tobytes()
    file = SafetensorsFile(write(tmp_path / "a.safetensors", {}, header, data))
    np.testing.assert_allclose(file.array(file.contents["a"]), [1.0, -2.5, 3e38], rtol=5e-3)


def one(**changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return json.dumps({"a": entry}).encode()


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"", b"", 1 << 62, "no safetensors file, or cut short"),
        (b"{}", b"", 3, "no safetensors file, or cut short"),
        (b"{", b"", None, "no safetensors file"),
        (b"\xff\xff", b"", None, "no safetensors file"),
        (b"[" * 200_000, b"", None, "no safetensors file"),
        (b"[]", b"", None, "no safetensors file"),
        (one(), b"1234567", None, "cut short or damaged"),
        (one(shape=[3]), b"12345678", None, "cut short or damaged"),
        (one(shape=[1 << 40]), b"12345678", None, "cut short or damaged"),
        (one(shape=[-2]), b"12345678", None, "no safetensors file"),
        (one(shape=[2.0]), b"12345678", None, "no safetensors file"),
        (one(shape=None), b"12345678", None, "no safetensors file"),
        (one(dtype="F4"), b"12345678", None, "no safetensors file"),
        (one(dtype=["F32"]), b"12345678", None, "no safetensors file"),
        (one(dtype="U32"), b"12345678", None, "a is of the type U32; F64, F32"),
        (one(data_offsets=[0]), b"12345678", None, "no safetensors file"),
        (b'{"a": 5}', b"", None, "no safetensors file"),
    ],
)
def test_broken_files(tmp_path, header, data, length, message):
    path = write(tmp_path / "a.safetensors", {}, header, data, length)
    with pytest.raises(UserError, match=message):
        SafetensorsFile(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: .*No such file"):
        SafetensorsFile(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors file"):
        SafetensorsFile(tmp_path / "b.safetensors")


def test_files_by_their_names(tmp_path):
    values = {"a": np.ones(2, np.float32)}
    assert isinstance(open_tensors(write(tmp_path / "a.safetensors", values)), SafetensorsFile)
    assert isinstance(open_tensors(by_hand.write_state(tmp_path / "a.pth", values)), TorchFile)
