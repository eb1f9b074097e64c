import pytest

from mg_keras.errors import UserError
from mg_keras.search import planning, sharded
from mg_keras.search.neighbors import least_effort
from tests.search.neighbors_test import clustered
from tests.search.shards_of_parquet import write_folder


def test_what_was_measured_is_whole():
    found = planning.MEASURED
    assert tuple(found["cells"]) == planning.EFFORTS
    assert tuple(found["codes"]) == planning.VALUES_A_BYTE
    assert all(tuple(found["codes"][rate]) == planning.DEPTHS for rate in planning.VALUES_A_BYTE)


@pytest.mark.parametrize("rows", [50_000, 1_000_000, 50_000_000, 1_000_000_000])
def test_plans_are_in_order(rows):
    large, middle, small = planning.choices(rows, 512, 2)
    assert [each.bytes for each in (large, middle, small)] == [1024, 64, 32]
    assert large.memory > middle.memory > small.memory
    assert large.disk > middle.disk > small.disk
    assert middle.recall >= small.recall - 0.03
    for each in (large, middle, small):
        assert 0 < each.recall <= 1
        assert each.core_seconds >= each.seconds > 0
        # codes and numbers of rows at least
        assert each.memory > rows * (each.bytes + 8)
    more = planning.choices(10 * rows, 512, 2)
    assert more[1].memory > 5 * middle.disk
    assert planning.choices(rows, 512, 8, 8)[1].seconds < middle.seconds


def test_what_was_measured_is_planned():
    at = planning.MEASURED["cells"][16][1]
    assert planning._lost(planning.MEASURED["cells"], 16, planning.MEASURED_SIZES[1]) == pytest.approx(at)
    lost = [planning._lost(planning.MEASURED["codes"][16], depth, 10_000_000) for depth in planning.DEPTHS]
    assert lost == sorted(lost, reverse=True)
    assert planning._lost(planning.MEASURED["cells"], 1024, 10**8) < planning._lost(
        planning.MEASURED["cells"], 256, 10**8
    )


def test_disk_is_as_planned(tmp_path):
    values = clustered(3000, 32)
    folder = write_folder(tmp_path / "features", values)
    index, _ = sharded.trained(values, 4, sharded.neighbors.cells_for(3000), 0)
    index.add(values)
    sharded.faiss.write_index(index, str(tmp_path / "index"))
    (planned,) = (each.disk for each in planning.choices(3000, 32, 1, 1) if each.bytes == 4)
    assert (tmp_path / "index").stat().st_size == pytest.approx(planned, rel=0.2)
    assert folder.exists()


def test_the_least_that_is_enough():
    def recall_at(effort, reranked):
        return 1 - 0.4 / effort - 1.6 / reranked

    assert least_effort(recall_at, 4, 1024, 256)[:2] == (32, 128)  # 0.9750, where half of either has 0.9625 or 0.9625
    # what can't be reached is not paid for
    effort, reranked, reached = least_effort(lambda effort, reranked: 0.9 - 0.4 / effort, 4, 1 << 20, 16)
    assert effort <= 512
    assert reranked == 16
    assert reached == pytest.approx(0.9, abs=0.002)


def test_too_few():
    with pytest.raises(UserError, match="--plan must be 1,024 descriptors at least, received 1,000"):
        planning.choices(1000, 512)
