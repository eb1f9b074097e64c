import dataclasses

import numpy as np
import pytest

from mg_keras.search import neighbors
from mg_keras.search.neighbors import Base, Neighbors, exact_nearest, recall


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, size, seed=0, centres=40):
    rng = np.random.default_rng(seed)
    return unit(
        unit(rng.normal(size=(centres, size)))[rng.integers(centres, size=count)] + 0.1 * rng.normal(size=(count, size))
    )


def slow(queries, descriptors, allowed, k):
    """One query, one row at a time."""
    answers = []
    for query in queries:
        ranked = sorted((-float(query @ descriptors[row]), row) for row in np.flatnonzero(allowed))[:k]
        answers.append([row for _, row in ranked] + [-1] * (k - len(ranked)))
    return np.array(answers)


@pytest.fixture(scope="module", params=["exact", "tail", "ivf", "pq", "hnsw"])
def base_and_rows(request):
    stored = clustered(3000, 17).astype(np.float16)
    used = np.ones(3000, bool)
    if request.param in ("exact", "tail"):
        first = neighbors.exact(stored[:1000] if request.param == "tail" else stored)
    else:
        first, reached = neighbors.build(stored[:2500], used[:2500], request.param)
        assert reached >= 0.95
    return first, stored


@pytest.mark.parametrize("allowed", [1.0, 0.5, 0.002, 0.0])
def test_neighbours_are_those_of_a_slow_look(base_and_rows, allowed, monkeypatch):
    monkeypatch.setattr(neighbors, "_FEW", 50)
    base, stored = base_and_rows
    values = np.asarray(stored, np.float32)
    rng = np.random.default_rng(1)
    used = rng.uniform(size=len(values)) < allowed
    queries = values[:6]
    found = Neighbors(stored, used, base)
    similarities, rows = found.nearest(queries, 10)
    true = slow(queries, values, used, 10)
    assert similarities.shape == rows.shape == (6, 10)
    assert (np.diff(similarities[:, : np.count_nonzero(used)], axis=1) <= 0).all()
    assert used[rows[rows >= 0]].all()
    if base.kind == "exact" or allowed < 0.01:
        np.testing.assert_array_equal(rows, true)
    else:
        assert recall(rows, true) >= 0.95
    # what is found is scored by the descriptors themselves
    cosines = np.take_along_axis(queries @ values.T, np.maximum(rows, 0), 1)
    np.testing.assert_allclose(similarities[rows >= 0], np.minimum(cosines, 1)[rows >= 0], atol=1e-5)
    assert (similarities[rows < 0] == -np.inf).all()
    _, among = found.nearest(queries, 3, among=np.arange(len(values)) % 7 == 0)
    assert (among[among >= 0] % 7 == 0).all()


def test_the_fewer_rows_count_the_more_cells_are_looked_at(monkeypatch):
    monkeypatch.setattr(neighbors, "_FEW", 50)
    rng = np.random.default_rng(0)
    stored, used = unit(rng.normal(size=(3000, 12))).astype(np.float16), np.ones(3000, bool)
    base, _ = neighbors.build(stored, used, "ivf")
    # so few that without a filter not all are found
    found = Neighbors(stored, used, dataclasses.replace(base, effort=4))
    queries, values = np.asarray(stored[:40], np.float32), np.asarray(stored, np.float32)

    def reached(among):
        return recall(found.nearest(queries, 10, among)[1], slow(queries, values, among, 10))

    assert reached(used) < 0.8
    # an eighth of the rows in eight times as many cells; it was 0.52 in as many
    assert reached(rng.uniform(size=3000) < 1 / 8) > 0.9


def test_a_pass_over_all_in_blocks(monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 64)
    stored = clustered(300, 8).astype(np.float16)
    used = np.arange(300) % 3 > 0
    queries = np.asarray(stored[:5], np.float32)
    _, rows = exact_nearest(stored, used, queries, 7)
    np.testing.assert_array_equal(rows, slow(queries, np.asarray(stored, np.float32), used, 7))


def test_equal_descriptors_come_in_order_of_row():
    stored = np.tile(unit(np.ones((1, 5))), (200, 1)).astype(np.float16)
    _, rows = Neighbors(stored, np.ones(200, bool), Base(neighbors.exact(stored[:0]).index, "exact", 0)).nearest(
        np.asarray(stored[:1], np.float32), 9
    )
    np.testing.assert_array_equal(rows[0], np.arange(9))


@pytest.mark.parametrize("kind", ["ivf", "pq", "hnsw"])
def test_what_is_written_finds_the_same_and_can_be_added_to(tmp_path, kind):
    stored, used = clustered(1500, 12).astype(np.float16), np.ones(1500, bool)
    base, _ = neighbors.build(stored[:1200], used[:1200], kind)
    neighbors.write(base, tmp_path / "base")
    for mapped in (True, False):
        again = neighbors.read(tmp_path / "base", kind, base.rows, base.effort, mapped)
        queries = np.asarray(stored[:20], np.float32)
        for one, other in zip(
            Neighbors(stored, used, base).nearest(queries, 5),
            Neighbors(stored, used, again).nearest(queries, 5),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    more = neighbors.extended(again, stored)
    assert more.rows == more.index.ntotal == 1500


@pytest.mark.parametrize(
    ("rows", "memory", "kind"),
    [
        (1_000, 2 << 30, "exact"),
        (130_000, 2 << 30, "exact"),
        (140_000, 2 << 30, "ivf"),
        (1_000_000, 2 << 30, "ivf"),
        (10_000_000, 2 << 30, "pq"),
        (10_000_000, 16 << 30, "ivf"),
        (100_000, 100 << 20, "pq"),
    ],
)
def test_the_kind_follows_size_and_memory(rows, memory, kind):
    assert neighbors.choose(rows, 512, "auto", memory) == kind
    assert neighbors.choose(rows, 512, "hnsw", memory) == "hnsw"
