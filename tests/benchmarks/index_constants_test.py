import numpy as np

from benchmarks import index_constants
from mg_keras.search import sharded
from mg_keras.search.parquet_rows import ParquetRows
from tests.search.sharded_test import here


def test_what_is_lost_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(index_constants, "_QUERIES", 40)
    index_constants.write_generated(tmp_path / "features", 5000, 32)
    rows = ParquetRows(sharded.looked_at([tmp_path / "features"]))
    assert rows.shape == (5000, 32)
    # photos of one object are the nearest to each other
    values = rows[:4096]
    nearest = np.sort(values[:200] @ values.T, axis=1)[:, -2]
    assert np.median(nearest) > 0.7

    here(monkeypatch)
    by_cells, by_codes = index_constants.losses(tmp_path / "features", tmp_path / "indexes", 5000, 32)
    assert by_cells[4] >= by_cells[64]
    assert all(by_codes[rate][16] >= by_codes[rate][256] for rate in by_codes)
