import builtins
import collections
import io
import os
import pickle
import struct
import sys

import numpy as np
import pytest

from mg_keras import safe_pickle
from mg_keras.errors import UserError
from mg_keras.safe_pickle import ALLOWED, load, load_file

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
CONTENT = {
    "nothing": None,
    "numbers": [True, -1, 1 << 70, 1.5, 2 - 1j],
    "text": "Jégou",
    "bytes": [b"", b"\x00\xff"],
    "containers": ((), (1, [2, {"three": {3}}]), frozenset({4}), collections.OrderedDict(b=1, a=2)),
}
ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">f4"),
    np.array(["easy", "junk"]),
    np.array([b"jpg"]),
    np.array([[True], [False]]),
    np.zeros((0, 5), np.uint8),
    np.array(3.5),
]


def read(data, **options):
    return load(io.BytesIO(data), "the file", **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back_as_it_was(protocol):
    found = read(pickle.dumps(CONTENT, protocol))
    assert found == CONTENT
    assert list(found["containers"][3]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nested_tuples_and_things_that_are_there_twice(protocol):
    nested = ()
    for _ in range(200):
        nested = (nested, 1)
    one = ["a"]
    cycle = [one, one, {nested: one}]
    cycle.append(cycle)
    found = read(pickle.dumps(cycle, protocol))
    assert found[0] is found[1]
    assert found[2] == {nested: one}
    assert found[3] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_scalars_come_back_as_they_were(protocol):
    scalars = [np.float32(0.1), np.int64(-5), np.bool_(True), np.str_("abc"), np.str_("")]
    data = pickle.dumps((ARRAYS, scalars), protocol)
    arrays, found_scalars = read(data)
    for found, array, unsafely in zip(arrays, ARRAYS, pickle.loads(data)[0], strict=True):
        assert isinstance(found, np.ndarray)
        # NumPy turns the byte order into the machine's in some protocols
        assert found.dtype == unsafely.dtype
        np.testing.assert_array_equal(found, array)
    for found, scalar in zip(found_scalars, scalars, strict=True):
        assert type(found) is type(scalar)
        assert found == scalar


def test_what_older_numpy_and_python_2_wrote():
    # the names of NumPy 1, and Python 2's strings, which hold an array's bytes too
    old = pickle.dumps(np.arange(3), 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core." in old
    np.testing.assert_array_equal(read(old), np.arange(3))
    raw = np.array([200, 300], "<i4").tobytes()
    python_2 = (
        b"\x80\x02}U\x04easycnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    np.testing.assert_array_equal(read(python_2)["easy"], [200, 300])


def test_pickles_one_after_the_other_in_a_stream():
    stream = io.BytesIO(b"head" + pickle.dumps([1], 2) + pickle.dumps(ARRAYS[0]) + b"tail")
    stream.seek(4)
    assert load(stream, "the file") == [1]
    np.testing.assert_array_equal(load(stream, "the file"), ARRAYS[0])
    assert stream.read() == b"tail"


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ran = []


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails the test if a pickle imports a module or reaches a function of this one."""
    ran.clear()
    before = set(sys.modules)
    yield
    assert not ran
    assert not [name for name in set(sys.modules) - before if name.startswith("antigravity")]


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), r"\w+\.system"),
        (eval, ("__import__('tests.safe_pickle_test').ran.append(1)",), r"\w+\.eval"),
        (exec, ("raise SystemExit",), r"\w+\.exec"),
        (getattr, (ran, "append"), r"\w+\.getattr"),
        (ran.append, (1,), r"\w+\.getattr"),
        (bytearray, (10**12,), r"\w+\.bytearray"),
        (np.fromfile, ("secret",), r"numpy.*fromfile"),
        (np.load, ("x.npy", None, True), r"numpy.*load"),
        (pickle.loads, (b".",), r"\w+\.loads"),
    ],
)
def test_calls_of_other_functions_are_refused_by_name(function, arguments, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Calls(function, *arguments), {"easy": [1, (Calls(function, *arguments),)]}):
        with pytest.raises(UserError, match=f"the file names {name}, which could run code: only data is read"):
            read(pickle.dumps(content, protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_runs")
def test_nothing_is_imported(tmp_path):
    for data in (b"cantigravity\ngeohash\n.", b"\x80\x04\x8c\x0bantigravity\x8c\x07geohash\x93."):
        with pytest.raises(UserError, match=r"names antigravity\.geohash"):
            read(data)
    # a dotted name reaches through a module of the table's
    with pytest.raises(UserError, match=r"names numpy\.os\.system"):
        read(b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93.")


def test_functions_of_the_table_can_not_be_changed():
    # BUILD with (None, {name: value}) sets attributes of the object below it
    build = b"(N}U\x08__call__K\x01stb."
    for name, value in ALLOWED.items():
        if callable(value):
            module, _, function = name.rpartition(".")
            with pytest.raises(UserError, match=f"sets __call__ of {name}"):
                read(f"\x80\x02c{module}\n{function}\n".encode("latin1") + build)
            with pytest.raises(UserError, match="no pickle that can be read"):
                read(f"\x80\x02c{module}\n{function}\n".encode("latin1") + b"}U\x08__call__K\x01sb.")
    assert collections.OrderedDict(a=1)["a"] == 1


HEAD = b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def array_state(shape=b"K\x02\x85", kind=b"U\x02i4", state=b"", content=b"U\x08aaaabbbb"):
    return HEAD + b"(K\x01" + shape + b"cnumpy\ndtype\n" + kind + b"\x85R" + state + b"\x89" + content + b"tb."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array_state(shape=b"K\x03\x85"), r"array of the shape \(3,\) and type int32 in 8 bytes"),
        (array_state(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"), r"shape \(-1, -2\)"),
        (array_state(shape=b"\x8a\x09" + b"\x00" * 8 + b"\x01\x85"), r"shape \(18446744073709551616,\)"),
        (array_state(kind=b"U\x01O"), "NumPy array of 'O', where numbers and strings are read"),
        (array_state(kind=b"U\x05i4,i4"), "NumPy array of 'i4,i4'"),
        (array_state(kind=b"K\x05"), "NumPy array of '5'"),
        (array_state(content=b"K\x05"), "gives a int for the bytes of an array"),
        (array_state(content=b"]"), "gives a list for the bytes of an array"),
        (HEAD + b"K\x05b.", "no pickle that can be read: TypeError"),
        (b"\x80\x02cnumpy._core.multiarray\nscalar\nU\x02f8U\x01a\x86R.", "gives 'f8' for the type of an array"),
        (b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.", "encodes text as 'hex'"),
    ],
)
def test_arrays_that_lie_about_their_memory_are_refused(data, message):
    with pytest.raises(UserError, match=message):
        read(data)


def test_a_dtype_takes_nothing_but_the_byte_order():
    # with fields, size and flags of its own choice a dtype would read bytes as pointers to objects
    state = b"(K\x03U\x01|NU\x01a\x85}U\x01aK\x01sK\x08K\x01K\x00tb"
    np.testing.assert_array_equal(read(array_state(state=state)), np.frombuffer(b"aaaabbbb", "<i4"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no pickle"),
        (b"a photo", "is no pickle"),
        (pickle.dumps(list(range(1000)))[:-1], "is no pickle"),
        (b"]" + b"r" + struct.pack("<I", 0x7FFFFFFF) + b".", "room for 2,147,483,647 objects, in 7 bytes"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "is no pickle"),
        (b"\x8d" + struct.pack("<Q", 1 << 62) + b".", "is no pickle"),
        (b"\x82\x01.", "uses EXT1"),
        (b"\x80\x02K\x05Q.", "refers to data outside of it"),
    ],
)
def test_what_is_no_pickle_and_what_asks_for_too_much(data, message):
    with pytest.raises(UserError, match=f"the file .*{message}"):
        read(data)


def test_nested_tuples_do_not_overflow_the_c_stack():
    # as a key of a dict they are hashed, each within the other; the second time each goes through the memo
    for steps in (b"\x80\x02})" + b"\x85" * 3_000_000, b"\x80\x04})\x94" + b"0h\x00\x85q\x00" * 500_000):
        with pytest.raises(UserError, match="nests more than 1,000 tuples"):
            read(steps + b"K\x01s.")


@pytest.mark.parametrize("step", [b"\x8f0", b"]0", b"}0"])
def test_many_empty_containers_do_not_fill_the_memory(step):
    with pytest.raises(UserError, match="makes containers of more than"):
        # each leaves the stack again, but what it took is counted: the stack is not what is being tested
        read(b"\x80\x04" + step * 200_000 + b"N.")


def test_many_containers_with_something_in_them_are_read():
    boxes = [[number % 200, 7] for number in range(100_000)]
    assert read(pickle.dumps(boxes)) == boxes


def test_the_length_is_bounded():
    data = pickle.dumps("x" * 1000)
    assert read(data, max_bytes=len(data)) == "x" * 1000
    with pytest.raises(UserError, match=f"no pickle of at most {len(data) - 1:,} bytes"):
        read(data, max_bytes=len(data) - 1)


def test_a_caller_adds_names_and_storages():
    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", Storage, "0", len(value)) if isinstance(value, np.ndarray) else None

    file = io.BytesIO()
    Writer(file, 2).dump({"weight": Calls(rebuild, np.arange(4.0), (2, 2))})
    data, storages = file.getvalue(), {"0": np.arange(4.0)}

    def persistent_load(pid):
        kind, dtype, key, length = pid
        assert (kind, dtype, length) == ("storage", "float64", 4)
        return storages[key]

    table = {**ALLOWED, f"{__name__}.rebuild": np.reshape, f"{__name__}.Storage": "float64"}
    found = read(data, allowed=table, persistent_load=persistent_load)
    np.testing.assert_array_equal(found["weight"], [[0, 1], [2, 3]])
    with pytest.raises(UserError, match="refers to data outside of it"):
        read(data, allowed=table)
    with pytest.raises(UserError, match=rf"names {__name__}\.(rebuild|Storage)"):
        read(data, persistent_load=persistent_load)

    def refuses(pid):
        raise UserError(f"no storage {pid[2]}")

    with pytest.raises(UserError, match=r"^no storage 0$"):
        read(data, allowed=table, persistent_load=refuses)


class Storage:
    pass


def rebuild(values, shape):
    raise AssertionError("the function itself must not be called")


def test_a_file_is_named_in_messages(tmp_path):
    path = tmp_path / "gnd.pkl"
    with pytest.raises(UserError, match=r"gnd\.pkl cannot be read: .*No such file"):
        load_file(path)
    path.write_bytes(pickle.dumps({"imlist": ["a"]}))
    assert load_file(path) == {"imlist": ["a"]}
    # not print: Ray puts another in its place
    path.write_bytes(pickle.dumps(builtins.len))
    with pytest.raises(UserError, match=r"gnd\.pkl names \w+\.len"):
        load_file(path)
    assert safe_pickle.MAX_BYTES == 64 << 20
