from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import DistanceWeightedSampling
from tests.shared import shared_path


def distribution(embeddings, instances, cutoff=0.5, nonzero_loss_cutoff=1.4):
    """p(j|i), one pair at a time in float64, but for the exp that the reference takes in float32."""
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    batch, size = embeddings.shape
    distances = np.array([[np.linalg.norm(a - b) for b in embeddings] for a in embeddings])
    clamped = np.clip(distances, cutoff, 2 - 1e-7)
    logs = (2 - size) * np.log(clamped) - (size - 3) / 2 * np.log(1 - clamped**2 / 4)
    kept = np.exp((logs - logs.max()).astype("float32")) > 0
    p = np.zeros((batch, batch))
    for i in range(batch):
        different = [j for j in range(batch) if instances[j] != instances[i]]
        near = [j for j in different if distances[i, j] < nonzero_loss_cutoff and kept[i, j]]
        if near:
            p[i, near] = np.exp(logs[i, near] - logs[i, near].max())
        else:
            p[i, different] = 1
        if different:
            p[i] /= p[i].sum()
    return p


def batch_of(groups=4, versions=3, size=16, spread=0.6, seed=0):
    """Embeddings in groups, near enough for weights to differ, and their instances in mixed order."""
    rng = np.random.default_rng(seed)
    instances = rng.permutation(np.repeat(np.arange(groups), versions))
    centre, centres = rng.standard_normal(size), rng.standard_normal((groups, size))
    embeddings = centre + spread * centres[instances] + 0.3 * rng.standard_normal((groups * versions, size))
    return embeddings.astype("float32"), instances


def draws_of(layer, embeddings, instances, count):
    """How often each j was a negative of i, a batch, and the triplets of all batches [count, 3, ...]."""
    draw = tf.function(lambda: tf.stack(layer(embeddings, tf.constant(instances))))
    triplets = np.stack([draw().numpy() for _ in range(count)])
    frequency = np.zeros((len(instances),) * 2)
    np.add.at(frequency, (triplets[:, 0].ravel(), triplets[:, 2].ravel()), 1)
    return frequency / count, triplets


def inclusion_of_two(p):
    """The chance that j is among two draws without replacement from p [n]."""
    return p + np.array(
        [sum(p[i] * p[j] / (1 - p[i]) for i in range(len(p)) if i != j and p[i]) for j in range(len(p))]
    )


@pytest.mark.parametrize("size", [2, 3, 16, 64])
@pytest.mark.parametrize("spread", [0.2, 0.6, 5.0])
def test_weights(size, spread):
    embeddings, instances = batch_of(size=size, spread=spread)
    p = DistanceWeightedSampling().probabilities(embeddings, instances)
    np.testing.assert_allclose(p, distribution(embeddings, instances), atol=2e-4)


def test_weights_follow_the_cutoffs():
    embeddings, instances = batch_of()
    p = DistanceWeightedSampling(0.8, 1.0).probabilities(embeddings, instances)
    expected = distribution(embeddings, instances, 0.8, 1.0)
    np.testing.assert_allclose(p, expected, atol=2e-4)
    assert np.abs(expected - distribution(embeddings, instances)).max() > 0.1


def test_underflow_in_many_dimensions_leaves_a_uniform_draw():
    # At D = 1.2 the log-weight is 700 below the one at the cutoff: nothing is left of it in float32.
    embeddings, instances = batch_of(size=2048, spread=2.0)
    p = DistanceWeightedSampling().probabilities(embeddings, instances)
    different = instances[:, None] != instances[None, :]
    np.testing.assert_allclose(p, different / different.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(p, distribution(embeddings, instances), atol=1e-6)


def test_weights_of_opposite_embeddings_are_finite():
    embeddings, instances = np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0], [-3, 0, 0, 0]]), np.array([0, 1, 1])
    expected = [[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(DistanceWeightedSampling().probabilities(embeddings, instances), expected, atol=1e-6)


def test_every_ordered_positive_pair_once():
    embeddings, instances = batch_of(groups=5, versions=4)
    anchors, positives, negatives = DistanceWeightedSampling(seed=1)(embeddings, instances)
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j and instances[i] == instances[j]]
    assert list(zip(anchors.numpy(), positives.numpy(), strict=True)) == pairs
    assert (instances[anchors] != instances[negatives]).all()
    assert anchors.dtype == positives.dtype == negatives.dtype == "int32"


@pytest.mark.parametrize("max_positives", [None, 2])
def test_negatives_follow_the_distribution_without_replacement(max_positives):
    embeddings, instances = batch_of()
    layer, count = DistanceWeightedSampling(max_positives=max_positives, seed=0), 3000
    frequency, triplets = draws_of(layer, embeddings, instances, count)
    p = distribution(embeddings, instances)
    # What makes the comparison mean something: every anchor has a choice, and not an even one.
    assert ((p > 0).sum(1) >= 2).all()
    assert p.max() > 0.3
    expected = np.array([inclusion_of_two(row) for row in p])
    error = np.sqrt(expected * (1 - expected).clip(0) / count)
    np.testing.assert_array_less(np.abs(frequency - expected), 4 * error + 1 / count)
    for _, _, negatives in triplets[:100]:
        assert (negatives[::2] != negatives[1::2]).all()


def test_draws_repeat_by_seed_and_differ_by_call():
    embeddings, instances = batch_of()
    first, second = (DistanceWeightedSampling(max_positives=2, seed=3) for _ in range(2))
    draws = [np.stack(layer(embeddings, instances)) for layer in (first, second, first)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


@pytest.mark.parametrize("seed", [7, tf.constant([7, 0])])
def test_a_given_seed_decides_alone(seed):
    embeddings, instances = batch_of()
    layer = DistanceWeightedSampling(max_positives=2)
    draw = tf.function(lambda seed: tf.stack(layer(embeddings, instances, seed=seed)))
    first, again = draw(seed).numpy(), draw(seed).numpy()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, np.stack(layer(embeddings, instances, seed=7)))
    others = [draw(tf.constant([7, replica])).numpy() for replica in range(1, 5)]
    assert any((first != other).any() for other in others)


def test_a_seed_may_be_an_integer_of_numpy():
    embeddings, instances = batch_of()
    layer = DistanceWeightedSampling(max_positives=2)
    expected = np.stack(layer(embeddings, instances, seed=7))
    np.testing.assert_array_equal(np.stack(layer(embeddings, instances, seed=np.int64(7))), expected)


def test_few_candidates_are_each_used_before_any_again():
    # Three versions of instance 0 and one of 1: each anchor of 0 needs two negatives and has only row 3.
    embeddings = np.random.default_rng(0).standard_normal((4, 8))
    anchors, positives, negatives = DistanceWeightedSampling()(embeddings, np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(anchors, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(positives, [1, 2, 0, 2, 0, 1])
    np.testing.assert_array_equal(negatives, [3] * 6)
    # Six versions of 0 and two of 1, all near each other: five negatives from two candidates.
    embeddings, instances = np.random.default_rng(1).standard_normal((8, 8)) + 2, np.repeat([0, 1], [6, 2])
    _, _, negatives = DistanceWeightedSampling(max_positives=5)(embeddings, instances)
    for drawn in negatives.numpy().reshape(8, 5)[:6]:
        assert sorted(Counter(drawn.tolist()).values()) == [2, 3]


def test_an_anchor_with_only_far_negatives_draws_them_all_alike():
    # Rows 2 and 3 are farther than 1.4 from rows 0 and 1, at different distances.
    embeddings = np.array([[1, 0, 0], [0.95, 0.1, 0], [-1, 0, 0.1], [-0.2, -1, 0], [-0.2, -1, 0.1]], "float32")
    instances = np.array([0, 0, 1, 2, 2])
    p = DistanceWeightedSampling().probabilities(embeddings, instances)
    np.testing.assert_allclose(p[0], [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    frequency, _ = draws_of(DistanceWeightedSampling(seed=0), embeddings, instances, 2000)
    np.testing.assert_allclose(frequency[0, 2:], 1 / 3, atol=4 * np.sqrt(2 / 9 / 2000))


@pytest.mark.parametrize(("instances", "total"), [([0, 0, 0], 0), ([0, 1, 2], 1)], ids=["one instance", "no positives"])
def test_a_batch_without_triplets(instances, total):
    instances = np.array(instances)
    embeddings = np.random.default_rng(0).standard_normal((3, 8))
    for rows in DistanceWeightedSampling()(embeddings, instances):
        assert rows.shape == (0,)
    for rows in DistanceWeightedSampling(max_positives=2)(embeddings, instances):
        np.testing.assert_array_equal(rows, [-1] * 6)
    p = DistanceWeightedSampling().probabilities(embeddings, instances).numpy()
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(1), total, atol=1e-6)


@pytest.mark.parametrize("max_positives", [1, 2, 3, 20])
def test_fixed_places_hold_the_same_pairs(max_positives):
    embeddings, _ = batch_of()
    instances = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4])
    triplets = np.stack(DistanceWeightedSampling(max_positives=max_positives, seed=0)(embeddings, instances))
    assert triplets.shape == (3, 12 * max_positives)
    np.testing.assert_array_equal((triplets == -1).any(0), (triplets == -1).all(0))
    expected = []
    for i in range(12):
        expected += [(i, j) for j in range(12) if i != j and instances[i] == instances[j]][:max_positives]
    valid = triplets[:, triplets[0] >= 0]
    assert list(zip(*valid[:2], strict=True)) == expected
    assert (instances[valid[0]] != instances[valid[2]]).all()


def test_unknown_batch_size_in_one_graph():
    layer = DistanceWeightedSampling(max_positives=2, seed=0)
    exact = DistanceWeightedSampling(seed=0)

    @tf.function(input_signature=[tf.TensorSpec([None, 16]), tf.TensorSpec([None], "int64")])
    def draw(embeddings, instances):
        return layer(embeddings, instances), exact(embeddings, instances)

    for groups in (2, 4):
        embeddings, instances = batch_of(groups)
        fixed, dynamic = draw(embeddings, instances)
        for rows, exact_rows in zip(fixed, dynamic, strict=True):
            assert rows.shape == exact_rows.shape == (groups * 6,)


def test_compiles_to_a_static_shape():
    embeddings, instances = batch_of()
    layer = DistanceWeightedSampling(max_positives=2, seed=0)
    draw = tf.function(lambda x: layer(x, tf.constant(instances), seed=5), jit_compile=True)
    compiled = np.stack(draw(tf.constant(embeddings)))
    np.testing.assert_array_equal(compiled, np.stack(draw(tf.constant(embeddings))))
    # XLA draws other numbers, from the same pairs and the same candidates.
    np.testing.assert_array_equal(compiled[:2], np.stack(layer(embeddings, instances, seed=5))[:2])
    assert (distribution(embeddings, instances)[compiled[0], compiled[2]] > 0).all()
    concrete = tf.function(lambda x: layer(x, tf.constant(instances))).get_concrete_function(tf.constant(embeddings))
    assert [tuple(shape) for shape in concrete.output_shapes] == [(24,)] * 3


def test_norms_and_half_precision_policies_do_not_matter():
    embeddings, instances = batch_of()
    expected = DistanceWeightedSampling().probabilities(embeddings, instances)
    scaled = embeddings * np.linspace(0.1, 30, len(embeddings), dtype="float32")[:, None]
    layer = DistanceWeightedSampling(dtype="mixed_bfloat16", max_positives=2, seed=0)
    np.testing.assert_allclose(layer.probabilities(scaled, instances), expected, atol=1e-4)
    reference = DistanceWeightedSampling(max_positives=2, seed=0)
    np.testing.assert_array_equal(np.stack(layer(embeddings, instances)), np.stack(reference(embeddings, instances)))


def test_serializes():
    layer = DistanceWeightedSampling(0.4, 1.3, max_positives=2, seed=5, name="sampling")
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert isinstance(copy, DistanceWeightedSampling)
    assert copy.get_config() == layer.get_config()
    embeddings, instances = batch_of()
    np.testing.assert_array_equal(np.stack(copy(embeddings, instances)), np.stack(layer(embeddings, instances)))


def test_refuses_what_makes_no_sense():
    for cutoffs in [(0, 1.4), (1.5, 1.4), (0.5, 2.1)]:
        with pytest.raises(ValueError, match=f"received cutoff={cutoffs[0]}, nonzero_loss_cutoff={cutoffs[1]}"):
            DistanceWeightedSampling(*cutoffs)
    for max_positives in (0, 1.5):
        with pytest.raises(ValueError, match=f"received {max_positives}"):
            DistanceWeightedSampling(max_positives=max_positives)
    with pytest.raises(ValueError, match=r"\[batch, d\]"):
        DistanceWeightedSampling()(np.ones(3), np.arange(3))
    with pytest.raises(ValueError, match=r"\[batch\]"):
        DistanceWeightedSampling()(np.ones((3, 2)), np.ones((3, 1)))
    for rows, ids in ((1, 6), (6, 1)):
        with pytest.raises(ValueError, match=f"one value for each of {rows} rows, received {ids}"):
            DistanceWeightedSampling()(np.ones((rows, 2)), np.arange(ids))


@pytest.mark.slow
def test_golden():
    golden = np.load(shared_path("goldens", "distance_weighted_sampling.npz"))
    embeddings, instances, draws = golden["embedding"], golden["instance"], int(golden["draws"])
    layer = DistanceWeightedSampling(max_positives=int(golden["repetitions"]) - 1, seed=0)
    np.testing.assert_allclose(layer.probabilities(embeddings, instances), golden["weights"], atol=1e-5)
    frequency, _ = draws_of(layer, embeddings, instances, draws)
    # Both sides are estimates from the same number of draws.
    error = np.sqrt((frequency * (1 - frequency) + golden["frequency"] * (1 - golden["frequency"])) / draws)
    assert (np.abs(frequency - golden["frequency"]) <= 4 * error).all()
