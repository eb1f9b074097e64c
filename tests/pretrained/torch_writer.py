"""PyTorch's file formats, written by hand and without PyTorch: for tests, which write broken and hostile ones too."""

import json
import math
import pickle
import struct
import zipfile
import zlib

import numpy as np

from tests.shared import shared_path

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*steps):
    return b"(" + b"".join(steps) + b"t"


def storage(key, count, kind="float32", legacy=False):
    """The steps of a pickle that refer to a storage."""
    parts = [text("storage"), f"ctorch\n{KINDS[kind]}\n".encode(), text(key), text("cpu"), whole(count)]
    return group(*parts, *([b"N"] if legacy else [])) + b"Q"


def tensor(stored, shape, strides=None, offset=0):
    """The steps that rebuild a tensor from the steps `stored`."""
    if strides is None:
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    sides = [group(*map(whole, sides)) for sides in (shape, strides)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + group(stored, whole(offset), *sides, b"\x89", ORDERED_DICT) + b"R"


def mapping(items, ordered=True):
    """The steps of a dict: name -> steps."""
    content = b"(" + b"".join(text(name) + steps for name, steps in items.items()) + b"u"
    return (ORDERED_DICT if ordered else b"}") + content


def program(steps):
    return b"\x80\x02" + steps + b"."


def write_zip(path, steps, storages, folder="archive", compression=zipfile.ZIP_STORED, more=()):
    """A file in the zip format; `storages` is key -> bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", program(steps))
        for key, data in storages.items():
            archive.writestr(f"{folder}/data/{key}", data)
        for name, data in dict(more).items():
            archive.writestr(f"{folder}/{name}", data)
        archive.writestr(f"{folder}/version", b"3\n")
    return path


def write_legacy(path, steps, storages, little_endian=True, version=1001, keys=None):
    """A file in the legacy format; `storages` is key -> (count, bytes)."""
    order = "<" if little_endian else ">"
    heads = [MAGIC, version, {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}]
    with open(path, "wb") as file:
        file.writelines(pickle.dumps(head, 2) for head in heads)
        file.write(program(steps))
        file.write(pickle.dumps(list(storages) if keys is None else keys, 2))
        for count, data in storages.values():
            file.write(struct.pack(f"{order}q", count) + data)
    return path


def write_state(path, state, file_format="zip", wrapper="model_state", prefix=""):
    """Writes arrays as a network's state, a storage each."""
    arrays = [np.asarray(value) for value in state.values()]
    legacy = file_format == "legacy"
    steps = mapping(
        {
            prefix + name: tensor(storage(str(key), array.size, str(array.dtype), legacy), array.shape)
            for key, (name, array) in enumerate(zip(state, arrays, strict=True))
        }
    )
    if wrapper:
        steps = mapping({wrapper: steps, "epoch": whole(119)}, ordered=False)
    data = {str(key): array.tobytes() for key, array in enumerate(arrays)}
    if legacy:
        return write_legacy(path, steps, {key: (arrays[int(key)].size, value) for key, value in data.items()})
    return write_zip(path, steps, data)


def golden_state(trunk):
    """The weights of the reference values in ../shared/goldens: published names -> arrays."""
    layout = json.loads(shared_path("goldens", "checkpoint_layout.json").read_text())[trunk]
    state = {}
    for key, shape in layout.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            state[key] = np.zeros((), np.int64)
            continue
        if key == "pool.p":
            value = np.full((), 3.0)
        elif len(shape) == 4:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            value = rng.standard_normal(shape) * 0.05
        elif key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("weight"):
            value = rng.uniform(0.3, 0.9, shape)
        else:
            value = rng.standard_normal(shape) * 0.1
        state[key] = np.asarray(value, np.float32)
    return state
