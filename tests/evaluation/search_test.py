import numpy as np
import pytest

from mg_keras.evaluation.search import nearest


def slow_nearest(queries, database, k):
    answers = []
    for query in queries:
        cosines = [query @ row / (np.linalg.norm(query) * np.linalg.norm(row)) for row in database]
        order = sorted(range(len(database)), key=lambda row: (-cosines[row], row))[:k]
        answers.append([(cosines[row], row) for row in order])
    answers = np.array(answers)
    return answers[..., 0], answers[..., 1].astype(int)


# 30 queries go another way through FAISS (a matrix product) than 3 (one by one).
@pytest.mark.parametrize("num_queries", [3, 30])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_is_cosine_similarity_in_order(num_queries, k):
    rng = np.random.default_rng(0)
    queries, database = rng.normal(0, 9, (num_queries, 7)), rng.normal(0, 2, (40, 7))
    similarities, indices = nearest(queries, database, k)
    expected_similarities, expected_indices = slow_nearest(queries, database, k)
    assert similarities.dtype == np.float32
    assert indices.dtype == np.int64
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("num_queries", [3, 30])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 150, 200])
def test_equal_similarities_come_by_row_number_at_the_cut_off_too(num_queries, k):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(num_queries, 8))
    database = np.concatenate([rows, rng.normal(size=(200 - 5 * num_queries, 8)), rows, rows, rows, rows])
    _, indices = nearest(rows, database, k)
    start = len(database) - 4 * num_queries
    copies = np.arange(num_queries)[:, None] + [0, *(start + num_queries * np.arange(4))]
    np.testing.assert_array_equal(indices[:, :5], copies[:, :k])


@pytest.mark.parametrize("num_queries", [3, 30])
@pytest.mark.parametrize("k", [2, 5, 150])
def test_a_better_row_late_in_the_database_pushes_the_last_of_the_ties_out(num_queries, k):
    database = np.array([[1.0, 1.0]] * 300 + [[1.0, 0.0]])
    _, indices = nearest([[1.0, 0.0]] * num_queries, database, k)
    np.testing.assert_array_equal(indices, [[300, *range(k - 1)]] * num_queries)


def test_a_collapsed_network_ranks_by_row_number():
    _, indices = nearest(np.ones((4, 3)), np.ones((50, 3)), 6)
    np.testing.assert_array_equal(indices, np.tile(np.arange(6), (4, 1)))


def test_blocks_of_queries_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(2)
    queries, database = rng.normal(size=(25, 4)), rng.normal(size=(60, 4))
    whole = nearest(queries, database, 9)
    monkeypatch.setattr("mg_keras.evaluation.search._QUERIES_AT_ONCE", 10)
    blocks = nearest(queries, database, 9)
    np.testing.assert_allclose(blocks[0], whole[0], atol=1e-6)
    np.testing.assert_array_equal(blocks[1], whole[1])


def test_similarities_stay_cosines():
    rows = np.random.default_rng(3).normal(size=(300, 5))
    similarities, _ = nearest(rows, rows, 1)
    assert similarities.max() == 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish(scale):
    rng = np.random.default_rng(4)
    queries, database = rng.normal(size=(5, 6)), rng.normal(size=(20, 6))
    similarities, indices = nearest(queries * scale, database / scale, 20)
    expected_similarities, expected_indices = slow_nearest(queries, database, 20)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize(
    ("queries", "database", "k", "message"),
    [
        (np.ones(3), np.ones((2, 3)), 1, r"queries must be .* received the shape \(3,\)"),
        (np.ones((2, 0)), np.ones((2, 0)), 1, r"received the shape \(2, 0\)"),
        (np.ones((2, 3)), np.ones((2, 4)), 1, "received 3 and 4"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "received 0"),
        (np.ones((2, 3)), np.ones((2, 3)), 3, "2 rows of the database, received 3"),
        ([[1.0, 0.0], [np.nan, 1.0]], np.ones((2, 2)), 1, "queries must be finite, but row 1"),
        (np.ones((2, 2)), [[1.0, np.inf], [1.0, 1.0]], 1, "database must be finite, but row 0"),
        (np.ones((2, 2)), [[1.0, 1.0], [0.0, 0.0]], 1, "row 1 is all zero"),
    ],
)
def test_bad_arguments_are_named(queries, database, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, database, k)
