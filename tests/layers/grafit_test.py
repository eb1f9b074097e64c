"""The layers of Grafit against loops over photos, and against the reference values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.layers import InstanceLoss, MemoryBank, NearestNeighborLoss, SupervisedContrast
from tests.shared import shared_path


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slow_nearest_neighbor_loss(rows, labels, ids, memory, memory_labels, memory_ids, temperature):
    losses = []
    for row, label, photo in zip(unit(np.float64(rows)), labels, ids, strict=True):
        entries = [j for j in range(len(memory)) if memory_ids[j] != photo and memory_labels[j] >= 0]
        weights = {j: np.exp(row @ np.float64(memory[j]) / temperature) for j in entries}
        alike = sum(weights[j] for j in entries if memory_labels[j] == label)
        losses.append(-np.log(alike / sum(weights.values())) if alike else 0.0)
    return np.array(losses)


def slow_instance_loss(predictions, targets, ids, known=None):
    """`known`: the rows that there are targets of; None: all."""
    predictions, targets, losses = unit(np.float64(predictions)), unit(np.float64(targets)), []
    for photo in set(ids.tolist()):
        rows = np.flatnonzero(ids == photo)
        pairs = [predictions[i] @ targets[j] for i in rows for j in rows if i != j and (known is None or j in known)]
        if pairs:
            losses.append(-np.mean(pairs))
    return np.mean(losses)


def slow_supervised_contrast(rows, labels, temperature):
    rows, losses = np.float64(rows), []
    for i in range(len(rows)):
        total = sum(np.exp(rows[i] @ rows[a] / temperature) for a in range(len(rows)) if a != i)
        alike = [p for p in range(len(rows)) if p != i and labels[p] == labels[i]]
        if alike:
            losses.append(np.mean([-np.log(np.exp(rows[i] @ rows[p] / temperature) / total) for p in alike]))
    return np.mean(losses)


def slow_memory(memory, labels, ids, new_labels, rows, momentum=0.5):
    memory, labels, seen = memory.copy(), labels.copy(), set()
    for photo, label, row in zip(ids, new_labels, unit(rows), strict=True):
        if photo not in seen:
            memory[photo] = unit(momentum * memory[photo] + (1 - momentum) * row) if labels[photo] >= 0 else row
            labels[photo] = label
            seen.add(photo)
    return memory, labels


def memory_of(rng, size=37, dimensions=6):
    memory, labels = unit(rng.normal(size=(size, dimensions))), rng.integers(-1, 4, size)
    return np.float32(memory), np.int32(labels)


def as_tensors(*values):
    return [tf.constant(value, tf.int32 if value.dtype.kind == "i" else tf.float32) for value in values]


@pytest.mark.parametrize("part_size", [100, 37, 36, 10])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_the_nearest_neighbor_loss_is_that_of_a_loop_over_the_memory(part_size, temperature):
    rng = np.random.default_rng(0)
    memory, memory_labels = memory_of(rng)
    ids = rng.permutation(37)[:9]
    labels = np.where(memory_labels[ids] < 0, 2, memory_labels[ids])
    rows = 3 * memory[ids] + rng.normal(size=(9, 6))
    layer = NearestNeighborLoss(temperature, part_size)
    expected = slow_nearest_neighbor_loss(rows, labels, ids, memory, memory_labels, range(37), temperature)
    found = layer(*as_tensors(rows, labels, ids, memory, memory_labels))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    # a queue knows its photos by their ids, which may be there twice
    memory_ids = rng.choice(ids, 37)
    expected = slow_nearest_neighbor_loss(rows, labels, ids, memory, memory_labels, memory_ids, temperature)
    given = as_tensors(rows, labels, ids, memory, memory_labels, memory_ids)
    np.testing.assert_allclose(layer(*given), expected, rtol=1e-3, atol=1e-5)
    if part_size == 10:
        compiled = tf.function(layer, jit_compile=True)
        np.testing.assert_allclose(compiled(*given), expected, rtol=1e-3, atol=1e-5)
    # of no other entry of its class nothing is learnt
    alone = layer(*as_tensors(rows, np.full(9, 9), ids, memory, memory_labels))
    np.testing.assert_array_equal(alone, np.zeros(9))


def test_its_gradient_is_that_of_its_equation():
    rng = np.random.default_rng(1)
    memory, memory_labels = memory_of(rng)
    ids, rows = rng.permutation(37)[:5], rng.normal(size=(5, 6))
    labels = rng.integers(0, 4, 5)
    given = as_tensors(rows, labels, ids, memory, memory_labels)
    with tf.GradientTape() as tape:
        tape.watch(given[0])
        weighted = tf.reduce_sum(NearestNeighborLoss(0.2, 10)(*given) * tf.range(1.0, 6.0))
    found = tape.gradient(weighted, given[0]).numpy()
    step = 1e-5 * np.eye(6)
    for i in range(5):
        for change, slope in zip(step, found[i], strict=True):
            pair = [
                slow_nearest_neighbor_loss(
                    [rows[i] + sign * change], labels[[i]], ids[[i]], memory, memory_labels, range(37), 0.2
                )
                for sign in (1, -1)
            ]
            assert slope == pytest.approx((i + 1) * float((pair[0] - pair[1])[0]) / 2e-5, abs=1e-4)


def test_a_memory_holds_the_mean_of_what_it_had_and_what_it_sees():
    rng = np.random.default_rng(2)
    size = 7
    for dtype, tolerance in (("float32", 1e-6), ("float16", 2e-3)):
        bank = MemoryBank(size, 4, dtype=dtype)
        memory, labels = np.zeros((size, 4)), np.full(size, -1)
        for _ in range(4):
            ids, rows = rng.integers(0, size, 5), rng.normal(size=(5, 4))
            new_labels = rng.integers(0, 3, 5)
            bank.update(ids, new_labels, rows)
            memory, labels = slow_memory(memory, labels, ids, new_labels, rows)
        np.testing.assert_allclose(bank.embeddings.numpy(), memory, atol=tolerance)
        np.testing.assert_array_equal(bank.labels, labels)
        assert bank.embeddings.dtype == dtype
    assert bank.trainable_variables == []


def test_a_number_of_64_bits_is_not_another_photos():
    rows, labels, far = np.float32([[0, 1]]), np.array([7]), np.array([2**32 + 1])
    bank = MemoryBank(4, 2)
    with pytest.raises(tf.errors.InvalidArgumentError):
        bank.update(far, labels, rows)
    assert (bank.labels.numpy() == -1).all()
    # where there is no place for it, no entry is its own
    memory, memory_labels = unit(np.float32([[1, 0], [0, 1], [1, 1]])), np.array([7, 7, 8])
    loss = NearestNeighborLoss()
    found = loss(rows, labels, far, memory, memory_labels)
    np.testing.assert_array_equal(found, loss(rows, labels, np.array([9]), memory, memory_labels))
    assert found != loss(rows, labels, np.array([1]), memory, memory_labels)
    # a queue tells photos apart by what is left of it
    queue = MemoryBank(4, 2, queue=True)
    queue.update(far, labels, rows)
    assert queue.labels.numpy()[0] == 7


def test_targets_of_rows_by_integers_of_numpy():
    rows, ids = unit(np.random.default_rng(0).normal(size=(6, 4))), np.array([0, 0, 1, 1, 2, 2])
    loss, of = InstanceLoss(), np.array([0, 2, 4])
    found = loss(rows, rows[of], ids, target_rows=of)
    np.testing.assert_allclose(found, loss(rows, rows[of], ids, target_rows=tf.constant(of, tf.int32)))
    with pytest.raises(ValueError, match="one value for each of 6 rows, received 1"):
        loss(rows, rows, ids[:1])


def test_a_queue_holds_the_last_ones():
    bank, rng = MemoryBank(7, 4, queue=True), np.random.default_rng(3)
    seen = []
    for step in range(4):
        rows, ids = rng.normal(size=(3, 4)), np.arange(3) + 100 * step
        bank.update(ids, ids % 2, rows)
        seen += zip(ids, ids % 2, unit(rows), strict=True)
    last = {place % 7: entry for place, entry in enumerate(seen)}
    np.testing.assert_array_equal(bank.ids, [last[place][0] for place in range(7)])
    np.testing.assert_array_equal(bank.labels, [last[place][1] for place in range(7)])
    np.testing.assert_allclose(bank.embeddings, [last[place][2] for place in range(7)], atol=1e-6)
    with pytest.raises(ValueError, match="a queue must hold a step's 8 photos at least, received 7"):
        bank.update(np.arange(8), np.arange(8), rng.normal(size=(8, 4)))
    # of a batch whose size no graph knows the last ones stay
    before = bank.next.numpy()
    signature = [*[tf.TensorSpec([None], tf.int32)] * 2, tf.TensorSpec([None, 4])]
    update = tf.function(bank.update, input_signature=signature)
    update(np.arange(9, dtype="int32"), np.arange(9, dtype="int32"), rng.normal(size=(9, 4)).astype("float32"))
    np.testing.assert_array_equal(np.roll(bank.ids, -before), np.arange(2, 9))


@pytest.mark.parametrize("versions", [[2, 3, 1], [4, 4, 4], [1, 1, 1]])
def test_the_instance_loss_is_the_mean_over_photos(versions):
    rng = np.random.default_rng(4)
    ids = rng.permutation(np.repeat([5, 8, 2], versions))
    predictions, targets = rng.normal(size=(2, len(ids), 6))
    found = float(InstanceLoss()(*as_tensors(predictions, targets, ids)))
    expected = slow_instance_loss(predictions, targets, ids) if max(versions) > 1 else 0
    assert found == pytest.approx(expected, abs=1e-6)
    # targets of some alone
    known = rng.permutation(len(ids))[:5]
    expected = slow_instance_loss(predictions, targets, ids, known) if max(versions) > 1 else 0
    found = InstanceLoss()(*as_tensors(predictions, targets[known], ids, known))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_supervised_contrast_is_the_mean_over_images():
    rng = np.random.default_rng(5)
    rows, labels = unit(rng.normal(size=(9, 6))), np.array([0, 1, 1, 0, 2, 3, 3, 3, 0])
    found = float(SupervisedContrast(0.2)(*as_tensors(rows, labels)))
    assert found == pytest.approx(slow_supervised_contrast(rows, labels, 0.2), rel=1e-4)
    assert float(SupervisedContrast()(*as_tensors(rows, np.arange(9)))) == 0


def test_reference_values():
    golden = np.load(shared_path("goldens", "grafit.npz"))
    bank = MemoryBank(60, 16)
    bank.embeddings.assign(golden["memory"])
    bank.labels.assign(golden["memory_label"])
    ids = tf.constant(golden["row"])
    labels = tf.gather(bank.labels.value, ids)
    embeddings = tf.constant(golden["embedding"])
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        each = NearestNeighborLoss(float(golden["temperature"]))(
            embeddings, labels, ids, bank.embeddings.value, bank.labels.value
        )
        loss = tf.reduce_mean(each)
    np.testing.assert_allclose(each, golden["loss_each"], atol=1e-4)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-4)
    np.testing.assert_allclose(tape.gradient(loss, embeddings), golden["gradient"], atol=1e-4)
    bank.update(ids, labels, embeddings)
    np.testing.assert_allclose(bank.embeddings, golden["memory_after"], atol=1e-4)

    photos, versions, size = golden["prediction"].shape
    predictions = tf.constant(golden["prediction"].reshape(-1, size))
    ids = tf.repeat(tf.range(photos), versions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        loss = InstanceLoss()(predictions, tf.constant(golden["target"].reshape(-1, size)), ids)
    np.testing.assert_allclose(loss, golden["instance_loss"], atol=1e-4)
    gradient = tape.gradient(loss, predictions).numpy().reshape(golden["instance_gradient"].shape)
    np.testing.assert_allclose(gradient, golden["instance_gradient"], atol=1e-4)


def test_a_memorys_configuration_comes_back():
    layer = MemoryBank(3, 2, True, 0.25, dtype="float16")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestNeighborLoss(0), "temperature must be > 0, received 0"),
        (lambda: NearestNeighborLoss(part_size=0), "part_size must be at least 1, received 0"),
        (lambda: SupervisedContrast(-1), "temperature must be > 0, received -1"),
        (lambda: MemoryBank(0, 4), "size must be at least 1, received 0"),
        (lambda: MemoryBank(4, 0), "dimensions must be at least 1, received 0"),
        (lambda: MemoryBank(4, 4, momentum=1), r"momentum must lie in \[0, 1\), received 1"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
