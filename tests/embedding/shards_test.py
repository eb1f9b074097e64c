import io
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mg_keras.embedding import shards
from mg_keras.errors import UserError

MADE_FROM = {"network": "abc", "resolution": 224, "pooling": 3.0, "whitening": None}
COUNT, BROKEN = 40, (3, 17, 39)


def embeddings():
    return np.random.default_rng(0).normal(size=(COUNT, 5)).astype(np.float32)


def row(columns, number):
    if number in BROKEN:
        return shards.unusable_rows(columns, np.array([number]), [f"{number}.jpg"], ["no photo"])
    return shards.usable_rows(
        columns,
        np.array([number]),
        [f"{number}.jpg"],
        embeddings()[number : number + 1],
        np.array([[30, 40 + number]]),
        [f"class {number % 3}"],
        np.array([0.5]),
        [f"{number:064x}"],
    )


def rows_of(table):
    """A dict a row, with 0 for NaN, which is unlike itself."""
    rows = table.to_pylist()
    for row in rows:
        assert np.isnan(row["embedding"]).all() == (row["error"] is not None)
        row["embedding"] = np.nan_to_num(row["embedding"]).tolist()
    return rows


def expected(dtype):
    values = embeddings().astype(dtype).astype(np.float32).tolist()
    return [
        {
            "id": number,
            "uri": f"{number}.jpg",
            "width": None if number in BROKEN else 40 + number,
            "height": None if number in BROKEN else 30,
            "sha256": None if number in BROKEN else f"{number:064x}",
            "embedding": [0.0] * 5 if number in BROKEN else values[number],
            "class": None if number in BROKEN else f"class {number % 3}",
            "probability": None if number in BROKEN else 0.5,
            "error": "no photo" if number in BROKEN else None,
        }
        for number in range(COUNT)
    ]


@pytest.fixture(params=shards.DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def folder(tmp_path, dtype):
    """Shards of photos that were done out of order, some of them twice."""
    columns = shards.schema(5, dtype, MADE_FROM)
    order = np.argsort(np.arange(COUNT) + np.random.default_rng(1).uniform(0, 20, COUNT))
    order = [*order, 5, 30, 17]
    for start in range(0, len(order), 7):
        rows = [row(columns, int(number)) for number in order[start : start + 7]]
        shards.write(tmp_path / "x.shards", pa.concat_tables(rows))
    return tmp_path / "x.shards"


def test_rows_come_back_once_and_in_order(folder, dtype):
    sizes = [parquet.read_metadata(path).num_rows for path in sorted(folder.iterdir())]
    assert sorted(sizes) == [1, *[7] * 6], "six full shards, and what was left"
    assert [row for rows in shards.read(folder) for row in rows_of(rows)] == expected(dtype)
    assert shards.done(folder, COUNT + 1).tolist() == [*[True] * COUNT, False]
    found = [rows.column_names for rows in shards.read(folder, ["error", "id"])]
    assert found[0] == ["id", "error"]


def test_shards_are_joined_into_one_file(folder, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PHOTOS_A_SHARD", 16)
    for kind in ("parquet", "npy"):
        shards.join(folder, tmp_path / f"x.{kind}")
    found = parquet.read_table(tmp_path / "x.parquet")
    assert rows_of(found) == expected(dtype)
    assert found.schema.field("embedding").type == pa.list_(getattr(pa, dtype)(), 5)
    assert json.loads(found.schema.metadata[b"mg_keras"]) == MADE_FROM
    assert parquet.read_metadata(tmp_path / "x.parquet").num_row_groups < 4
    assert shards.counts(tmp_path / "x.parquet") == (COUNT - 3, 3)
    good = np.delete(embeddings(), BROKEN, axis=0).astype(dtype)
    values = np.load(tmp_path / "x.npy")
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, good)
    # what others put into the folder stays
    (folder / "mine.txt").write_text("mine")
    shards.remove(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zeros", [False, True], ids=["cut", "zeros"])
def test_a_broken_shard_is_found(tmp_path, share, zeros):
    columns = shards.schema(5, "float32", MADE_FROM)
    paths = [shards.write(tmp_path, row(columns, number)) for number in (4, 8)]
    content = paths[1].read_bytes()
    end = int(share * len(content))
    paths[1].write_bytes(content[:end] + (bytes(len(content) - end) if zeros else b""))
    (tmp_path / f".{paths[0].stem}.{'0' * 32}.parquet").write_bytes(b"of a writer that was killed")
    shards.check(tmp_path, MADE_FROM)
    with pytest.raises(UserError, match=r"shard-000000000008.*can't be read .*: remove it"):
        shards.done(tmp_path, 9)
    assert shards.remove_broken(tmp_path) == [paths[1]]
    assert list(tmp_path.iterdir()) == [paths[0]]
    assert np.flatnonzero(shards.done(tmp_path, 9)).tolist() == [4]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), pa.ArrowMemoryError("malloc failed")])
def test_a_shard_that_may_not_be_read_is_kept(tmp_path, monkeypatch, error):
    path = shards.write(tmp_path, row(shards.schema(5, "float32", MADE_FROM), 4))

    def refuse(path):
        raise error

    monkeypatch.setattr(shards, "_open", refuse)
    with pytest.raises(type(error)):
        shards.remove_broken(tmp_path)
    assert path.exists()


def test_a_changed_byte_of_a_value_is_found(tmp_path):
    columns = shards.schema(5, "float32", MADE_FROM)
    path = shards.write(tmp_path, row(columns, 4))
    content, value = path.read_bytes(), embeddings()[4].tobytes()
    path.write_bytes(content.replace(value, bytes([value[0] ^ 1]) + value[1:]))
    assert path.read_bytes() != content
    assert shards.remove_broken(tmp_path) == [path]


def test_rows_of_photos_that_could_not_be_read_make_room_for_others(tmp_path):
    columns = shards.schema(5, "float32", MADE_FROM)

    def unread(numbers, error="could not be read: No such file", hashes=None):
        names = [f"{number}.jpg" for number in numbers]
        return shards.unusable_rows(columns, np.array(numbers), names, [error] * len(numbers), hashes)

    alone = shards.write(tmp_path, unread([0, 1]))
    mixed = shards.write(tmp_path, pa.concat_tables([unread([2, 4]), row(columns, 3), row(columns, 5)]))
    # what was read and is no photo stays none
    other = shards.write(
        tmp_path, pa.concat_tables([unread([6], "could not be read", ["0" * 64]), unread([7], "cut off")])
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found = shards.Unread(tmp_path, 9)
    assert np.flatnonzero(found.photos).tolist() == [0, 1, 2, 4]
    assert found.make_room(unread([0, 1, 2])).num_rows == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    left = found.make_room(pa.concat_tables([row(columns, 0), unread([1]), row(columns, 2), unread([8])]))
    assert left["id"].to_pylist() == [0, 2, 8]
    assert [shards.ids(path).tolist() for path in (alone, mixed)] == [[1], [3, 4, 5]]
    assert rows_of(parquet.read_table(mixed)) == [
        row for row in rows_of(parquet.read_table(io.BytesIO(before[mixed]))) if row["id"] != 2
    ]
    assert other.read_bytes() == before[other]
    shards.check(tmp_path, MADE_FROM)
    found.make_room(row(columns, 1))
    assert sorted(tmp_path.iterdir()) == sorted([mixed, other])


def test_shards_of_something_else_are_refused(tmp_path):
    folder = tmp_path / "x"
    shards.check(folder, MADE_FROM)
    shards.write(folder, row(shards.schema(5, "float32", MADE_FROM), 4))
    shards.check(folder, MADE_FROM)
    other = {**MADE_FROM, "network": "def", "pooling": 4.0}
    with pytest.raises(UserError, match="x was made from other network, pooling: remove it or choose another name"):
        shards.check(folder, other)
    path = folder / "shard-1.parquet"
    parquet.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(UserError, match=r"shard-1\.parquet is no shard of descriptors: choose another folder"):
        shards.check(folder, MADE_FROM)
    path.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"x holds notes\.txt, which is no shard"):
        shards.check(folder, MADE_FROM)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="float16 or float32, received 'int8'"):
        shards.schema(5, "int8", MADE_FROM)
    with pytest.raises(UserError, match="up to 70000, beyond float16"):
        shards.usable_rows(shards.schema(2, "float16", {}), np.array([0]), ["a"], np.array([[1, 7e4]]))


def test_a_name_that_is_no_text_is_written_as_escapes(tmp_path):
    columns = shards.schema(5, "float32", MADE_FROM)
    shards.write(tmp_path, shards.unusable_rows(columns, np.array([0]), ["b\udce9\n.jpg"], ["no photo"]))
    (rows,) = shards.read(tmp_path)
    assert rows["uri"].to_pylist() == ["b\\xe9\n.jpg"]


def test_what_older_files_do_not_note_is_no_difference():
    assert shards.differences({**MADE_FROM, "precision": "mixed"}, MADE_FROM) == ""
    other = {**MADE_FROM, "precision": "float32", "pooling": 4.0}
    assert shards.differences({**MADE_FROM, "precision": "mixed"}, other) == "pooling, precision"
