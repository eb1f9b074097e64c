import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import DistanceWeightedSampling, MarginLoss
from tests.shared import shared_path


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def margin_loss(anchors, positives, negatives, beta, margin, normalization):
    """(loss, gradient to beta, share of active triplets), one triplet at a time."""
    total, slope, active = 0.0, 0.0, 0
    for a, p, n in zip(anchors.astype(np.float64), positives, negatives, strict=True):
        positive_term = max(0.0, margin + np.linalg.norm(a - p) - beta)
        negative_term = max(0.0, margin + beta - np.linalg.norm(a - n))
        total += positive_term + negative_term
        slope += (negative_term > 0) - float(positive_term > 0)
        active += positive_term > 0 or negative_term > 0
    divisor = max(2 * len(anchors) if normalization == "pairs" else active, 1)
    return total / divisor, slope / divisor, active / max(len(anchors), 1)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    anchors = unit(rng.standard_normal((40, 8)))
    positives = unit(anchors + rng.uniform(0, 1, (40, 1)) * rng.standard_normal((40, 8)))
    negatives = unit(anchors + rng.uniform(0, 2, (40, 1)) * rng.standard_normal((40, 8)))
    return [x.astype("float32") for x in (anchors, positives, negatives)]


@pytest.mark.parametrize("normalization", ["pairs", "active"])
@pytest.mark.parametrize("beta", [0.3, 0.8, 1.2])
@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_is_the_margin_loss(rows, normalization, beta, margin):
    layer = MarginLoss(margin, beta, normalization)
    with tf.GradientTape() as tape:
        loss = layer(*rows)
    expected, slope, _ = margin_loss(*rows, beta, margin, normalization)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, layer.beta.value), slope, rtol=1e-5, atol=1e-6)


def test_active_divides_by_triplets_with_either_term():
    # Only the first triplet's positive and the second's negative cost anything: 0.3 and 0.1 over two triplets.
    def at(distance):
        angle = 2 * np.arcsin(distance / 2)
        return [np.cos(angle), np.sin(angle)]

    anchors = np.array([at(0.0)] * 3, "float32")
    positives = np.array([at(1.3), at(0.5), at(0.5)], "float32")
    negatives = np.array([at(1.9), at(1.3), at(1.9)], "float32")
    loss = MarginLoss(margin=0.2, initial_beta=1.2, normalization="active")
    np.testing.assert_allclose(loss(anchors, positives, negatives), (0.3 + 0.1) / 2, rtol=1e-5)
    pairs = MarginLoss(margin=0.2, initial_beta=1.2, normalization="pairs")
    np.testing.assert_allclose(pairs(anchors, positives, negatives), (0.3 + 0.1) / 6, rtol=1e-5)


def test_masked_triplets_do_not_count(rows):
    mask = np.arange(40) % 3 > 0
    for normalization in ("pairs", "active"):
        expected, _, _ = margin_loss(*(x[mask] for x in rows), 0.8, 0.2, normalization)
        np.testing.assert_allclose(MarginLoss(0.2, 0.8, normalization)(*rows, mask=mask), expected, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["pairs", "active"])
def test_row_numbers_give_the_same_loss_and_gradients(normalization):
    rng = np.random.default_rng(1)
    embeddings = tf.constant(unit(rng.standard_normal((15, 8))).astype("float32"))
    triplets = rng.integers(0, 15, (3, 50)).astype("int32")
    triplets[:, 7] = 4  # a triplet of one and the same row
    triplets[:, ::5] = -1
    valid = triplets[:, triplets[0] >= 0]
    layer = MarginLoss(0.2, 1.1, normalization)

    def gathered(x):
        return layer(*(tf.gather(x, row) for row in valid))

    results = {}
    for name, loss_of in {"gathered": gathered, "rows": lambda x: layer.from_rows(x, list(triplets))[0]}.items():
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = 3 * loss_of(embeddings)
        gradients = tape.gradient(loss, [embeddings, layer.beta.value])
        results[name] = [loss, *map(tf.convert_to_tensor, gradients)]
    assert np.abs(results["gathered"][1]).max() > 0.01
    for expected, got in zip(results["gathered"], results["rows"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    share = layer.from_rows(embeddings, list(triplets))[1]
    rows = [embeddings.numpy()[row] for row in valid]
    np.testing.assert_allclose(share, margin_loss(*rows, 1.1, 0.2, normalization)[2], rtol=1e-6)


def test_equal_embeddings_have_a_finite_gradient():
    x = tf.constant(unit(np.ones((2, 4))).astype("float32"))
    layer = MarginLoss(initial_beta=0.1)
    triplets = ([0, 1], [1, 0], [1, 0])
    for loss_of in (lambda: layer(x, x[::-1], x[::-1]), lambda: layer.from_rows(x, tf.constant(triplets))[0]):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = loss_of()
        # Positives at distance 0 cost 0.2 - 0.1, negatives 0.2 + 0.1.
        np.testing.assert_allclose(loss, 0.2, rtol=1e-4)
        np.testing.assert_array_equal(tape.gradient(loss, x), np.zeros((2, 4)))


@pytest.mark.parametrize("normalization", ["pairs", "active"])
def test_no_triplet_costs_nothing(normalization):
    layer = MarginLoss(normalization=normalization)
    x = tf.constant(unit(np.ones((3, 4))).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss, share = layer.from_rows(x, [tf.fill([6], -1)] * 3)
    assert float(loss) == 0
    assert float(share) == 0
    np.testing.assert_array_equal(tape.gradient(loss, x), np.zeros((3, 4)))
    empty = np.zeros((0, 4), "float32")
    assert float(layer(empty, empty, empty)) == 0


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.slow
def test_sampling_and_loss_in_one_graph(jit_compile):
    rng = np.random.default_rng(2)
    embeddings = tf.constant(unit(rng.standard_normal((30, 16))).astype("float32"))
    instances = tf.repeat(tf.range(10), 3)
    sampling, layer = DistanceWeightedSampling(max_positives=2, seed=0), MarginLoss(initial_beta=1.2)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            triplets = sampling(x, instances)
            loss, share = layer.from_rows(x, triplets)
        return triplets, loss, share, tape.gradient(loss, [x, layer.beta.value])

    triplets, loss, share, gradients = step(embeddings)
    rows = [embeddings.numpy()[row.numpy()] for row in triplets]
    expected, slope, expected_share = margin_loss(*rows, 1.2, 0.2, "pairs")
    np.testing.assert_allclose([loss, share, gradients[1]], [expected, expected_share, slope], rtol=1e-5)
    assert np.abs(gradients[0]).max() > 0


def test_computes_in_float32_under_a_half_precision_policy(rows):
    layer = MarginLoss(initial_beta=1.2, dtype="mixed_bfloat16")
    loss = layer(*rows)
    assert loss.dtype == "float32"
    assert layer.beta.dtype == "float32"
    np.testing.assert_allclose(loss, margin_loss(*rows, 1.2, 0.2, "pairs")[0], rtol=1e-5)
    rounded = [tf.cast(x, "bfloat16") for x in rows]
    expected = margin_loss(*(tf.cast(x, "float32").numpy() for x in rounded), 1.2, 0.2, "pairs")[0]
    np.testing.assert_allclose(layer(*rounded), expected, rtol=1e-5)


def test_serializes():
    layer = MarginLoss(0.1, 1.0, "active", name="retrieval")
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert isinstance(copy, MarginLoss)
    assert copy.get_config() == layer.get_config()
    assert [weight.path for weight in layer.trainable_weights] == ["retrieval/beta"]


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="received 0"):
        MarginLoss(margin=0)
    with pytest.raises(ValueError, match="received 'mean'"):
        MarginLoss(normalization="mean")


@pytest.mark.parametrize("normalization", ["pairs", "active"])
def test_golden(normalization):
    golden = np.load(shared_path("goldens", "margin_loss.npz"))
    layer = MarginLoss(0.2, float(golden["beta"]), normalization)
    rows = [golden[name] for name in ("anchor", "positive", "negative")]
    embeddings, triplets = np.concatenate(rows), tf.reshape(tf.range(3 * len(rows[0])), (3, -1))
    for loss_of in (lambda: layer(*rows), lambda: layer.from_rows(embeddings, tf.unstack(triplets))[0]):
        with tf.GradientTape() as tape:
            loss = loss_of()
        np.testing.assert_allclose(loss, golden[f"loss_{normalization}"], rtol=1e-5)
        if normalization == "active":
            np.testing.assert_allclose(tape.gradient(loss, layer.beta.value), golden["grad_beta_active"], rtol=1e-5)
