import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mg_keras.embedding.shards import found
from mg_keras.errors import UserError
from mg_keras.search.parquet_rows import ParquetRows, look_at
from tests.search.shards_of_parquet import write_folder


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def opened(folder):
    return ParquetRows([look_at(path) for path in found([folder])])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_those_of_the_files(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(1000, 33)).astype(dtype)
    rows = opened(write_folder(tmp_path / "features", values, 300, [5, 299], dtype))
    assert rows.shape == (1000, 33)
    assert len(rows.files) == 4
    true = unit(values.astype(np.float32))
    true[[5, 299]] = np.nan
    np.testing.assert_allclose(rows[:], true, atol=1e-6)
    np.testing.assert_allclose(rows[290:910], true[290:910], atol=1e-6)
    np.testing.assert_allclose(rows[[999, 0, 300, 0]], true[[999, 0, 300, 0]], atol=1e-6)
    np.testing.assert_allclose(rows[7], true[7], atol=1e-6)
    assert rows[1000:].shape == (0, 33)
    assert rows[np.empty(0, np.int64)].shape == (0, 33)
    assert rows.facts(300)["name"] == "a/00300.jpg"
    assert rows.facts(5) == {"name": "a/00005.jpg", "uri": "a/00005.jpg", "error": "broken"} | dict.fromkeys(
        ("class", "probability", "width", "height")
    )


def test_names_are_read_by_one_thread_at_a_time(tmp_path):
    # of two in one file, pyarrow crashes
    values = np.ones((200, 4), np.float16)
    table = pa.table({"uri": [f"{row}" for row in range(200)], "embedding": list(values)})
    (tmp_path / "features").mkdir()
    path = tmp_path / "features" / "a.parquet"
    parquet.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
    rows = opened(tmp_path / "features")
    file, reading, together = rows._opened(0).parquet, [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(file, name)

        def read_row_group(self, *arguments, **options):
            reading.append(1)
            together.append(len(reading))
            time.sleep(1e-4)
            reading.pop()
            return file.read_row_group(*arguments, **options)

    rows._opened(0).parquet = Watched()
    with ThreadPoolExecutor(4) as threads:
        names = list(threads.map(lambda row: rows.facts(row)["name"], range(200)))
    assert names == [f"{row}" for row in range(200)]
    assert set(together) == {1}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_pages_may_end_within_a_row(tmp_path, version, kind):
    values = np.random.default_rng(0).normal(size=(500, 21)).astype(np.float32)
    flat = pa.array(values.reshape(-1))
    column = (
        pa.FixedSizeListArray.from_arrays(flat, 21)
        if kind == "fixed"
        else pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, 21, dtype=np.int32)), flat)
    )
    table = pa.table({"name": [f"{row}" for row in range(500)], "descriptor": column})
    parquet.write_table(
        table,
        tmp_path / "of_others.parquet",
        compression="none",
        use_dictionary=False,
        data_page_size=1000,
        write_batch_size=50,
        row_group_size=170,
        data_page_version=version,
    )
    rows = opened(tmp_path)
    assert len(rows.files[0].pages) > 10
    np.testing.assert_allclose(rows[:], unit(values), atol=1e-6)
    np.testing.assert_allclose(rows[np.arange(499, 0, -7)], unit(values)[np.arange(499, 0, -7)], atol=1e-6)
    assert rows.facts(171) == {"name": "171"}


def test_mistakes(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with pytest.raises(UserError, match="no Parquet file is in"):
        found([tmp_path])
    with pytest.raises(UserError, match=r"--from must be folders or files of Parquet, received .*nowhere"):
        found([tmp_path / "nowhere"])
    one = next(write_folder(tmp_path / "features", values).iterdir())
    with pytest.raises(UserError, match="given twice"):
        found([one, tmp_path])

    def written(**options):
        table = pa.table({"name": ["a", "b"], "embedding": pa.array([[1.0, 2], [3, 4]], pa.list_(pa.float32()))})
        parquet.write_table(table, tmp_path / "other.parquet", **options)
        return tmp_path / "other.parquet"

    with pytest.raises(UserError, match=r"must lie plain in the file, received compressed \(snappy\)"):
        look_at(written(use_dictionary=False))
    with pytest.raises(UserError, match="received coded by a dictionary"):
        look_at(written(compression="none"))
    (tmp_path / "broken.parquet").write_bytes(one.read_bytes()[:300])
    with pytest.raises(UserError, match="can't be read as Parquet"):
        look_at(tmp_path / "broken.parquet")
    rows = opened(tmp_path / "features")
    rows[3]
    one.rename(tmp_path / "away.parquet")
    with pytest.raises(UserError, match="is gone, whose 50 descriptors the index needs"):
        rows.check()
    (tmp_path / "away.parquet").rename(one)
    rows.check()
    one.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match="was changed since"):
        rows.check()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[1.0, 2.0, 3.0], [4.0]], {}, "must have as many values in every row"),
        ([[1.0, 2.0], [3.0, None]], {"write_statistics": False}, "a descriptor must be whole or NaN, received a null"),
        (
            [[1.0, 2.0], [3.0, 4.0]],
            {"column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}},
            "the encoding 9",
        ),
        ([1.0, 2.0], {}, "must hold lists of float16 or float32"),
    ],
)
def test_what_is_not_plain_is_refused(tmp_path, rows, options, message):
    kind = pa.list_(pa.float32()) if isinstance(rows[0], list) else pa.float32()
    table = pa.table({"embedding": pa.array(rows, kind), "uri": ["a", "b"]})
    path = tmp_path / "others.parquet"
    parquet.write_table(table, path, compression="none", use_dictionary=False, **options)
    with pytest.raises(UserError, match=message):
        look_at(path)
