import collections
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.pretrained.torch_file import Tensor, TorchFile, write
from tests.pretrained import torch_writer as by_hand

FORMATS = ("zip", "legacy")
STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "exact": np.array([1 / 3, -1e300]),
    "half": np.array([[0.5, -65504]], np.float16),
    "count": np.array(7),
    "mask": np.array([True, False]),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
FEW_MEGABYTES = 4 << 20


def arrays(path):
    file = TorchFile(path)
    return {name: file.array(value) for name, value in dict.items(file.contents)}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("file_format", FORMATS)
def test_arrays_come_back_as_they_were(tmp_path, file_format):
    path = by_hand.write_state(tmp_path / "a.pth", STATE, file_format, wrapper=None)
    assert TorchFile(path).format == file_format
    assert_same(arrays(path), STATE)


@pytest.mark.parametrize("file_format", FORMATS)
def test_views_share_storages(tmp_path, file_format):
    numbers = np.arange(24, dtype=np.float32)
    legacy = file_format == "legacy"
    stored = by_hand.storage("0", 24, legacy=legacy)
    steps = by_hand.mapping(
        {
            "all": by_hand.tensor(stored, (24,)),
            "transposed": by_hand.tensor(stored, (4, 6), (1, 4)),
            "every second": by_hand.tensor(stored, (3, 2), (4, 2), offset=13),
            "last": by_hand.tensor(stored, (), (), offset=23),
            "windows": by_hand.tensor(stored, (5, 4), (2, 1)),
        }
    )
    path = tmp_path / "a.pth"
    if legacy:
        by_hand.write_legacy(path, steps, {"0": (24, numbers.tobytes())})
    else:
        by_hand.write_zip(path, steps, {"0": numbers.tobytes()})
    found = arrays(path)
    np.testing.assert_array_equal(found["all"], numbers)
    np.testing.assert_array_equal(found["transposed"], numbers.reshape(6, 4).T)
    np.testing.assert_array_equal(found["every second"], [[13, 15], [17, 19], [21, 23]])
    np.testing.assert_array_equal(found["last"], 23)
    np.testing.assert_array_equal(found["windows"], [range(start, start + 4) for start in range(0, 10, 2)])
    # each has its own memory
    found["all"][:] = 0
    assert found["last"] == 23


def test_bfloat16_comes_as_float32(tmp_path):
    exact = np.array([1.0, -2.5, 3.3895314e38, np.inf], np.float32)
    halves = (exact.view(np.uint32) >> 16).astype("<u2")
    steps = by_hand.mapping({"a": by_hand.tensor(by_hand.storage("0", 4, "bfloat16"), (2, 2))})
    found = arrays(by_hand.write_zip(tmp_path / "a.pth", steps, {"0": halves.tobytes()}))["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.ravel().view(np.uint32) >> 16, halves)


def test_numbers_of_the_other_byte_order(tmp_path):
    numbers = np.array([1.5, -2.0], ">f4")
    steps = by_hand.mapping({"a": by_hand.tensor(by_hand.storage("0", 2), (2,))})
    path = by_hand.write_zip(tmp_path / "a.pth", steps, {"0": numbers.tobytes()}, more={"byteorder": b"big"})
    np.testing.assert_array_equal(arrays(path)["a"], [1.5, -2.0])
    steps = by_hand.mapping({"a": by_hand.tensor(by_hand.storage("0", 2, legacy=True), (2,))})
    path = by_hand.write_legacy(tmp_path / "b.pth", steps, {"0": (2, numbers.tobytes())}, little_endian=False)
    np.testing.assert_array_equal(arrays(path)["a"], [1.5, -2.0])


def test_parameters_and_what_is_no_tensor(tmp_path):
    parameter = by_hand.tensor(by_hand.storage("0", 1), (1,))
    steps = by_hand.mapping(
        {
            "weight": b"ctorch._utils\n_rebuild_parameter\n"
            + by_hand.group(parameter, b"\x88", by_hand.ORDERED_DICT)
            + b"R",
            "size": b"ctorch\nSize\n" + by_hand.group(by_hand.group(b"K\x02", b"K\x03")) + b"R",
            "epoch": b"K\x05",
        }
    )
    file = TorchFile(by_hand.write_zip(tmp_path / "a.pth", steps, {"0": np.float32([2]).tobytes()}))
    assert isinstance(file.contents["weight"], Tensor)
    np.testing.assert_array_equal(file.array(file.contents["weight"]), np.float32([2]))
    assert file.contents["size"] == (2, 3)
    assert file.contents["epoch"] == 5


def test_counters_and_defaults_are_dicts(tmp_path):
    value = {"milestones": collections.Counter([30, 60, 60]), "losses": collections.defaultdict(list, {"train": [1.5]})}
    value["seen"] = {3, 4}
    file = TorchFile(by_hand.write_zip(tmp_path / "a.pth", steps_of(value), {}))
    assert file.contents == value
    assert {type(found) for found in file.contents.values()} == {dict, set}


def test_without_checksums_it_is_read(tmp_path):
    path = by_hand.write_state(tmp_path / "a.pth", STATE, wrapper=None)
    data = bytearray(path.read_bytes())
    # in front of each entry and in the directory at the end
    for mark, place in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        begin = data.find(mark)
        while begin >= 0:
            data[begin + place : begin + place + 4] = bytes(4)
            begin = data.find(mark, begin + 4)
    path.write_bytes(data)
    assert_same(arrays(path), STATE)


def test_written_it_is_read(tmp_path):
    content = {"model_state": STATE, "more": {"a": np.arange(5)[::2]}}
    write(tmp_path / "a.pth", content)
    file = TorchFile(tmp_path / "a.pth")
    for part, state in content.items():
        found = {name: file.array(value) for name, value in dict.items(file.contents[part])}
        assert_same(found, state)
    first = (tmp_path / "a.pth").read_bytes()
    write(tmp_path / "a.pth", content)
    assert (tmp_path / "a.pth").read_bytes() == first


@pytest.mark.parametrize(
    ("value", "message"),
    [([1.0], "received list"), (np.array(["a"]), "received <U1"), (np.zeros(1, complex), "complex")],
)
def test_what_can_not_be_written(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.pth", {"weight": value})
    with pytest.raises(ValueError, match="names its arrays by str, received 3"):
        write(tmp_path / "a.pth", {3: np.zeros(1)})
    assert not list(tmp_path.iterdir())


# with PyTorch itself


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: the files written by hand stand in for its own"
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_pytorch_wrote_it(torch, tmp_path, file_format):
    base = torch.arange(40, dtype=torch.float32)
    content = {
        "model_state": {
            "plain": torch.randn(3, 4, 5),
            "view": base[3:33].reshape(5, 6).t()[1:, ::2],
            "other view": base[10:],
            "parameter": torch.nn.Parameter(torch.randn(2)),
            "brain": torch.randn(3, 3).to(torch.bfloat16),
            "half": torch.randn(3).half(),
            "double": torch.randn(2, 2).double(),
            "count": torch.tensor(5),
            "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        },
        "module": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict(),
        "schedule": {
            "milestones": collections.Counter([30, 60]),
            "losses": collections.defaultdict(list, {"a": [1.5]}),
        },
        "epoch": 3,
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=file_format == "zip")
    file = TorchFile(tmp_path / "a.pth")
    assert file.format == file_format
    for part in ("model_state", "module"):
        for name, saved in content[part].items():
            found = file.array(file.contents[part][name])
            expected = (saved.float() if saved.dtype == torch.bfloat16 else saved).detach().numpy()
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert file.contents["schedule"] == content["schedule"]
    assert file.contents["epoch"] == 3


def test_pytorch_wrote_no_checksums(torch, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5.0)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(arrays(tmp_path / "a.pth"), {"a": np.arange(5, dtype=np.float32)})


def test_pytorch_reads_it(torch, tmp_path):
    write(tmp_path / "a.pth", {"model_state": STATE})
    found = torch.load(tmp_path / "a.pth", weights_only=True)["model_state"]
    assert_same({name: value.numpy() for name, value in found.items()}, STATE)


def test_a_whole_model_is_refused(torch, tmp_path):
    for zipped in (True, False):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"a\.pth (names torch\.nn\.modules\.linear\.Linear|holds a whole model)"):
            TorchFile(tmp_path / "a.pth")


# hostile and broken files

ran = []


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def steps_of(value):
    """The steps of a pickle of a value, to be put within another."""
    return pickle.dumps(value, 2)[2:-1]


def good(legacy=False):
    return by_hand.tensor(by_hand.storage("0", 4, legacy=legacy), (2, 2))


def tensor_of(*arguments, **options):
    return by_hand.mapping({"a": by_hand.tensor(*arguments, **options)})


FOUR = np.zeros(4, np.float32).tobytes()
HUGE = 10**12
HOSTILE = {
    "os.system": (steps_of(Calls(os.system, "touch ran")), r"names \w+\.system, which could run code"),
    "eval": (steps_of({"a": Calls(eval, "__import__('os').system('touch ran')")}), r"names \w+\.eval"),
    "exec in a tensor": (tensor_of(steps_of(Calls(exec, "open('ran', 'w')")), (2, 2)), r"names \w+\.exec"),
    "nested reduces": (steps_of([[Calls(getattr, Calls(__import__, "os"), "system")]]), r"names \w+\.getattr"),
    "a reduce of a rebuilt tensor": (good() + b")R", r"no pickle that can be read: TypeError"),
    "import by name": (b"cantigravity\ngeohash\n", r"names antigravity\.geohash"),
    "a torch function": (b"ctorch\nload\n" + by_hand.group(by_hand.text("a.pth")) + b"R", r"names torch\.load"),
    "a module": (by_hand.group(by_hand.text("module"), b"N", b"N", b"N") + b"Q", "holds a whole model"),
    "a storage without a type": (
        by_hand.group(by_hand.text("storage"), *[b"K\x01"] * 4) + b"Q",
        "refers to a storage as",
    ),
    "a storage that is a number": (b"K\x01Q", "refers to 1, which is no storage"),
    "a tensor of no storage": (tensor_of(b"N", (2, 2)), "tensor without storage, offset, shape and strides"),
    "a huge storage": (tensor_of(by_hand.storage("0", HUGE), (HUGE,)), f"declares {HUGE:,} values.*has 16 bytes"),
    "a storage of absurd size": (tensor_of(by_hand.storage("0", 1 << 200), (2,)), "refers to a storage as"),
    "a huge shape": (tensor_of(by_hand.storage("0", 4), (10**6, 10**6)), r"shape \(1000000, 1000000\).*has 4 values"),
    "a huge shape without strides": (tensor_of(by_hand.storage("0", 4), (HUGE,), (0,)), "which has 4 values"),
    "a view beyond the end": (tensor_of(by_hand.storage("0", 4), (2, 2), offset=1), "from value 1 of storage 0"),
    "strides beyond the end": (tensor_of(by_hand.storage("0", 4), (2, 2), (2, 2)), "which has 4 values"),
    "a negative stride": (tensor_of(by_hand.storage("0", 4), (2,), (-1,), offset=2), "tensor without storage"),
    "a negative offset": (tensor_of(by_hand.storage("0", 4), (2,), offset=-1), "tensor without storage"),
    "a hundred axes": (tensor_of(by_hand.storage("0", 4), (1,) * 100), "tensor without storage"),
    "a storage of two types": (
        by_hand.mapping({"a": good(), "b": by_hand.tensor(by_hand.storage("0", 2, "float64"), (2,))}),
        "declares storage 0 twice",
    ),
    "no such storage": (tensor_of(by_hand.storage("1", 4), (4,)), "storage 1, which it does not have"),
    "a set state on a tensor": (good() + b"}U\x05shapeK\x09sb", "no pickle that can be read"),
    "attributes of a tensor": (good() + b"(N}U\x05shapeK\x09stb", "no pickle that can be read"),
    "a text that is not there": (b"X\xff\xff\xff\x7fabc", "no pickle that can be read"),
    "room for two thousand million objects": (b"]r\xff\xff\xff\x7f", "asks for room for"),
    "tuples in tuples": (b"})" + b"\x85" * 100_000 + b"K\x01s", "nests more than"),
}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Opens a file that must be refused: it runs nothing, and takes little memory."""
    monkeypatch.chdir(tmp_path)

    def check(path, message):
        before = set(os.listdir())
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=message) as caught:
                TorchFile(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < FEW_MEGABYTES
        assert set(os.listdir()) == before
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()

    return check


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zip_files(tmp_path, refused, name):
    steps, message = HOSTILE[name]
    refused(by_hand.write_zip(tmp_path / "a.pth", steps, {"0": FOUR}), message)


@pytest.mark.parametrize(
    "name", ["os.system", "eval", "nested reduces", "import by name", "a module", "a tensor of no storage"]
)
def test_hostile_legacy_files(tmp_path, refused, name):
    steps, message = HOSTILE[name]
    refused(by_hand.write_legacy(tmp_path / "a.pth", steps, {}), message)
    # a program in the place of the magic number
    (tmp_path / "b.pth").write_bytes(by_hand.program(HOSTILE["os.system"][0]))
    refused(tmp_path / "b.pth", r"no PyTorch checkpoint, neither zip nor legacy: .*names \w+\.system")


def test_legacy_files_that_lie(tmp_path, refused):
    def legacy(*arguments, **options):
        return by_hand.write_legacy(tmp_path / "a.pth", *arguments, **options)

    stored = by_hand.storage("0", HUGE, legacy=True)
    refused(legacy(tensor_of(stored, (HUGE,)), {"0": (HUGE, FOUR)}), f"storage 0 of {HUGE:,} values would end at byte")
    steps = by_hand.mapping({"a": good(legacy=True)})
    refused(legacy(steps, {"0": (HUGE, FOUR)}), f"declares 4 values for storage 0.* {HUGE:,}")
    refused(legacy(steps, {"0": (-4, FOUR)}), "declares 4 values for storage 0.* -4")
    refused(legacy(steps, {"0": (4, FOUR[:-1])}), "cut short or damaged: storage 0 would end at byte")
    refused(legacy(steps, {"0": (4, FOUR)}, keys=["1"]), "lists other storages")
    refused(legacy(steps, {"0": (4, FOUR)}, keys=[[]]), "lists other storages")
    refused(legacy(steps, {"0": (4, FOUR)}, version=1000), "another version")
    view = by_hand.storage("0", 4, legacy=True).replace(
        b"NtQ", by_hand.group(by_hand.text("1"), b"K\x00", b"K\x02") + b"tQ"
    )
    refused(legacy(tensor_of(view, (2,)), {"0": (4, FOUR)}), "which is no storage of numbers")


def test_what_is_no_checkpoint(tmp_path, refused):
    path = tmp_path / "a.pth"
    for content, message in (
        (b"", "is empty"),
        (b"P", "no PyTorch checkpoint, neither zip nor legacy"),
        (b"\xff\xd8\xff\xe0 a photo" * 100, "no PyTorch checkpoint, neither zip nor legacy"),
        (np.random.default_rng(0).bytes(5000), "no PyTorch checkpoint"),
        (pickle.dumps(STATE["count"].item(), 2), "a pickle that begins with a int"),
        (pickle.dumps(by_hand.MAGIC + 1, 2), "a pickle that begins with a int"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "a pickle that begins with a list"),
    ):
        path.write_bytes(content)
        refused(path, message)
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    refused(tmp_path / "b.npz", r"a zip archive and no PyTorch checkpoint, which has one data\.pkl")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        TorchFile(tmp_path / "none.pth")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        TorchFile(tmp_path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_cut_at_any_place(tmp_path, refused, file_format):
    path = by_hand.write_state(tmp_path / "whole.pth", STATE, file_format)
    whole = path.read_bytes()
    for part in range(20):
        (tmp_path / "cut.pth").write_bytes(whole[: len(whole) * part // 20])
        refused(tmp_path / "cut.pth", "empty|cut short|no PyTorch checkpoint|no pickle that can be read")
    (tmp_path / "cut.pth").write_bytes(whole[:-1])
    refused(tmp_path / "cut.pth", "cut short")


def test_zip_files_that_lie(tmp_path, refused):
    steps = by_hand.mapping({"a": good()})
    path = tmp_path / "a.pth"
    by_hand.write_zip(path, steps, {"0": FOUR}, compression=zipfile.ZIP_DEFLATED)
    refused(path, r"holds archive/data\.pkl compressed or encrypted")
    by_hand.write_zip(path, steps, {"0": FOUR[:-1]})
    refused(path, "declares 4 values of float32 for storage 0, for which it has 15 bytes")
    by_hand.write_zip(path, b"X" + struct.pack("<I", 3 << 20) + bytes(3 << 20), {})
    refused(path, r"3,145,\d+ bytes in archive/data\.pkl: at most 1,048,576 are read")
    by_hand.write_zip(path, steps, {"0": FOUR}, more={"a\x1b[31m": b"", "more/data.pkl": b""})
    assert TorchFile(path).contents
    # a directory that is long, and one that says so
    by_hand.write_zip(path, steps, {"0": FOUR}, more={f"{number:0200}": b"" for number in range(2500)})
    refused(path, r"a directory of 6\d\d,\d+ bytes, where at most 524,288 are read")
    by_hand.write_zip(path, steps, {"0": FOUR})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x05\x06")
    data[place + 12 : place + 16] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    refused(path, "no readable directory")
    # the directory says that a storage has more bytes than the file
    by_hand.write_zip(path, tensor_of(by_hand.storage("0", 1 << 28), (1 << 28,)), {"0": FOUR})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"archive/data/0") - 46
    data[place + 20 : place + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(data)
    refused(path, "cut short or damaged: archive/data/0 would end at byte 1,073,")
    # and that it lies elsewhere
    by_hand.write_zip(path, steps, {"0": FOUR})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"archive/data/0") - 46
    data[place + 42 : place + 46] = struct.pack("<I", 3)
    path.write_bytes(data)
    refused(path, "no archive/data/0 where its directory says")


def test_a_changed_bit_is_noticed(tmp_path):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    path = by_hand.write_zip(tmp_path / "a.pth", by_hand.mapping({"a": good()}), {"0": numbers})
    data = bytearray(path.read_bytes())
    data[data.index(numbers) + 5] ^= 1
    path.write_bytes(data)
    file = TorchFile(path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.pth is damaged: the checksum"):
            file.array(file.contents["a"])


def test_attributes_of_a_dict_do_no_harm(tmp_path):
    # BUILD gives an OrderedDict attributes in the place of its methods
    steps = by_hand.mapping({"a": good()}) + b"}(U\x05itemsK\x01U\x04keysK\x01ub"
    file = TorchFile(by_hand.write_zip(tmp_path / "a.pth", steps, {"0": FOUR}))
    assert file.contents.items == 1
    assert [name for name, _ in dict.items(file.contents)] == ["a"]
