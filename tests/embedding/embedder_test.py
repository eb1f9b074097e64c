import numpy as np
import pytest

from mg_keras.data.sources import Split
from mg_keras.embedding import embedder
from mg_keras.embedding.embedder import Embedder
from mg_keras.embedding.photos import Embeddings, embed
from mg_keras.evaluation.evaluators.contract import joined
from mg_keras.poolings import RMAC
from tests.colours import Colours, colour_split

PHOTOS = [f"photo {number}" for number in range(12)]
# float32 values that an embedder keeps of the twelve photos by one pooling
ONE_POOLING = 12 * 3 * 4


def split_of(names):
    return Split(list(names), read=None, load_labels=None)


def expected(split, resolution, poolings):
    """Three values for each photo that can be used, by its name and what was asked."""
    rows = [row for row, name in enumerate(split.names) if name != "broken"]
    seeds = {pooling: int(1000 * (-1 if pooling == RMAC else pooling)) for pooling in poolings}
    values = [
        [[hash((split.names[row], resolution, seeds[pooling], i)) % 9973 for i in range(3)] for row in rows]
        for pooling in poolings
    ]
    return Embeddings(np.array(rows), np.array(values, np.float32), np.setdiff1d(np.arange(len(split)), rows))


@pytest.fixture
def network(monkeypatch):
    """A stand-in that counts the photos that it is asked to embed."""
    counting = Colours()

    def pretend(network, split, resolution, train_resolution, poolings, label=None):
        assert (network, train_resolution) == (counting, 32)
        counting.photos, counting.runs = counting.photos + len(split), counting.runs + 1
        return expected(split, resolution, poolings)

    monkeypatch.setattr(embedder, "embed", pretend)
    return counting


def assert_same(found, right):
    for name in ("rows", "values", "unusable"):
        np.testing.assert_array_equal(getattr(found, name), getattr(right, name))


def test_what_was_embedded_before_is_not_embedded_again(network):
    split = split_of(PHOTOS)
    embedder = Embedder(network, 32)
    for poolings, photos in [
        ([2.0, 1.0], 12),
        ([2.0], 12),
        ([1.0, 2.0], 12),
        # the missing pooling alone, of all photos
        ([1.0, RMAC], 24),
        ([RMAC, 2.0, 1.0], 24),
    ]:
        assert_same(embedder.embed(split, 16, poolings), expected(split, 16, poolings))
        assert network.photos == photos
    # another resolution and another split of the same photos are others
    embedder.embed(split, 20, [1.0])
    embedder.embed(split_of(PHOTOS), 16, [1.0])
    assert network.photos == 48


@pytest.mark.slow
def test_embeddings_are_those_of_a_network_that_is_asked_by_itself():
    """Not a stand-in for `embed` this time: the same bits, and each photo seen once."""
    network, split = Colours(), colour_split(np.random.default_rng(0).integers(0, 256, (12, 3)))
    embedder = Embedder(network, 32, also=[RMAC])
    assert_same(embedder.embed(split, 16, [2.0]), embed(Colours(), split, 16, 32, [2.0]))
    assert_same(embedder.embed(split, 16, [RMAC, 2.0]), embed(Colours(), split, 16, 32, [RMAC, 2.0]))
    assert network.photos == 12


def test_poolings_that_are_asked_for_later_come_from_the_same_run(network):
    split = split_of(PHOTOS)
    embedder = Embedder(network, 32, also=[1.0, RMAC])
    assert_same(embedder.embed(split, 16, [3.0]), expected(split, 16, [3.0]))
    assert_same(embedder.embed(split, 16, [3.0, 1.0, RMAC]), expected(split, 16, [3.0, 1.0, RMAC]))
    assert (network.photos, network.runs) == (12, 1)


def test_photos_that_two_sets_share_are_embedded_once(network):
    first, second = split_of(PHOTOS[:5]), split_of(PHOTOS[5:])
    both = joined(first, second)
    embedder = Embedder(network, 32)
    embedder.embed(second, 16, [1.0])
    assert_same(embedder.embed(both, 16, [1.0]), expected(split_of(PHOTOS), 16, [1.0]))
    embedder.embed(first, 16, [1.0])
    assert network.photos == 12


def test_unusable_photos_keep_their_numbers(network):
    names = [*PHOTOS[:3], "broken", *PHOTOS[3:]]
    both, embedder = joined(split_of(names[:3]), split_of(names[3:])), Embedder(network, 32)
    for _ in range(2):
        found = embedder.embed(both, 16, [1.0])
        assert_same(found, expected(split_of(names), 16, [1.0]))
        assert found.unusable.tolist() == [3]


def test_what_was_found_elsewhere_is_taken_over(network):
    split = split_of(PHOTOS)
    embedder = Embedder(network, 32)
    embedder.put(split, 16, [2.0], expected(split, 16, [2.0]))
    assert_same(embedder.embed(split, 16, [2.0]), expected(split, 16, [2.0]))
    assert network.photos == 0
    assert_same(embedder.embed(split, 16, [1.0, 2.0]), expected(split, 16, [1.0, 2.0]))
    assert network.photos == 12


@pytest.mark.parametrize(
    ("limit", "photos"),
    # room for two splits; for one: they push each other out; for none
    [(2 * ONE_POOLING, 24), (ONE_POOLING, 48), (ONE_POOLING - 1, 48)],
)
def test_no_more_is_kept_than_there_is_room_for(network, limit, photos):
    first, second = split_of(PHOTOS), split_of(PHOTOS[::-1])
    embedder = Embedder(network, 32, limit=limit)
    for split in (first, second, first, second):
        assert_same(embedder.embed(split, 16, [1.0]), expected(split, 16, [1.0]))
    assert network.photos == photos


def test_what_was_asked_for_longest_ago_is_forgotten_first(network):
    splits = [split_of(PHOTOS) for _ in range(3)]
    embedder = Embedder(network, 32, limit=2 * ONE_POOLING)
    for number in (0, 1, 0, 2, 0):
        embedder.embed(splits[number], 16, [1.0])
    assert network.photos == 36
    embedder.embed(splits[1], 16, [1.0])
    assert network.photos == 48
