import numpy as np
import pytest
import tensorflow as tf

from mg_keras.data import mixing
from mg_keras.data.mixing.batches import mixed_batches
from mg_keras.data.mixing.cutmix import mix as cutmix
from mg_keras.data.mixing.mixup import mix as mixup

COUNT, CLASSES = 6, 4


def batch(height=8, width=12):
    """Images that are told apart by any of their pixels, and one-hot labels."""
    rng = np.random.default_rng(0)
    images = np.arange(COUNT)[:, None, None, None] * 1000 + rng.uniform(0, 100, (COUNT, height, width, 3))
    return images.astype("float32"), np.eye(CLASSES, dtype="float32")[np.arange(COUNT) % CLASSES]


def partner_of(row, mixed, images):
    """(the image's partner, the partner's share) that explain a mixed image best, found by trying all of them."""
    if np.allclose(mixed, images[row], rtol=1e-6, atol=0):
        return row, None
    found = []
    for other in set(range(COUNT)) - {row}:
        difference = images[other] - images[row]
        share = np.sum((mixed - images[row]) * difference) / np.sum(difference**2)
        found.append((np.abs(images[row] + share * difference - mixed).max(), other, share))
    residual, other, share = min(found)
    assert residual < 0.01
    return other, share


def test_mixup_is_a_weighted_mean_of_two_images_and_of_their_labels():
    images, labels = batch()
    shares = set()
    for number in range(5):
        mixed, mixed_labels = (value.numpy() for value in mixup(images, labels, 1.0, tf.constant([number, 1])))
        partners = [partner_of(row, mixed[row], images) for row in range(COUNT)]
        assert sorted(other for other, _ in partners) == list(range(COUNT))
        (share,) = {round(float(share), 3) for _, share in partners if share is not None}
        assert 0 <= share <= 0.5
        shares.add(share)
        for row, (other, _) in enumerate(partners):
            np.testing.assert_allclose(mixed_labels[row], (1 - share) * labels[row] + share * labels[other], atol=2e-3)
    assert len(shares) == 5


def test_cutmix_puts_a_box_of_another_image_in():
    images, labels = batch()
    areas, places = set(), set()
    for number in range(8):
        mixed, mixed_labels = (value.numpy() for value in cutmix(images, labels, 1.0, tf.constant([number, 1])))
        others = []
        for row in range(COUNT):
            # whose pixel it is shows in its thousands
            owner = np.floor(mixed[row, ..., 0] / 1000).astype(int)
            np.testing.assert_array_equal(mixed[row], np.take_along_axis(images, owner[None, ..., None], 0)[0])
            box = owner != row
            if box.any():
                (other,) = set(owner[box])
                others.append(other)
                rows, columns = np.nonzero(box)
                assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                places.add((rows.min(), columns.min()))
                areas.add(box.mean())
                # rounding to whole pixels may give it a little more
                assert box.mean() <= 0.6
            else:
                other = row
            expected = (1 - box.mean()) * labels[row] + box.mean() * labels[other]
            np.testing.assert_allclose(mixed_labels[row], expected, atol=1e-6)
        assert len(set(others)) == len(others)
    assert len(areas) > 3
    assert len(places) > 3


@pytest.mark.slow
def test_shares_are_of_the_beta_distribution():
    images, labels = np.zeros((16, 1, 1, 1), "float32"), np.eye(16, dtype="float32")
    for alpha in (0.2, 2.0):
        # of sixteen images one at least is not its own partner: it has the share of the batch
        draw = tf.function(
            lambda seed, alpha=alpha: tf.reduce_min(tf.reduce_max(mixup(images, labels, alpha, seed)[1], 1))
        )
        found = np.array([draw(tf.constant([number, 5])) for number in range(1000)])
        expected = np.random.default_rng(0).beta(alpha, alpha, 200_000)
        expected = np.maximum(expected, 1 - expected)
        assert found.min() >= 0.5
        np.testing.assert_allclose(
            np.quantile(found, [0.25, 0.5, 0.75]), np.quantile(expected, [0.25, 0.5, 0.75]), atol=0.03
        )


def stream(start, steps, replicas=(0, 1), kind="mixup"):
    images, labels = batch()
    rows = labels.argmax(1).astype("int32")
    elements = tf.data.Dataset.from_tensors((images, rows, np.arange(COUNT) // 3)).repeat(steps * len(replicas))
    mixed = mixed_batches(elements, kind, CLASSES, 1.0, seed=3, start_step=start, local_replicas=replicas)
    return [tuple(part.numpy() for part in element) for element in mixed]


@pytest.mark.parametrize("kind", [name for name in mixing.NAMES if name != "none"])
def test_what_is_drawn_depends_on_seed_step_and_replica(kind):
    whole = stream(0, 3, kind=kind)
    for element in whole:
        assert element[1].shape == (COUNT, CLASSES)
        np.testing.assert_allclose(element[1].sum(axis=1), 1, atol=1e-6)
        # the larger share is the image's own, and so its instance id still holds
        assert np.all(element[1][np.arange(COUNT), np.arange(COUNT) % CLASSES] >= 0.4)
        np.testing.assert_array_equal(element[2], np.arange(COUNT) // 3)
    # no two steps and no two replicas draw alike; a resumed run, and a machine that feeds one of them, draw the same
    assert len({element[0].tobytes() for element in whole}) == 6
    for found, expected in zip(stream(1, 2, kind=kind), whole[2:], strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
    for found, expected in zip(stream(0, 3, (1,), kind), whole[1::2], strict=True):
        np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(("kind", "alpha", "message"), [("blend", 1.0, "'blend'"), ("mixup", 0.0, "alpha.*0")])
def test_bad_arguments(kind, alpha, message):
    with pytest.raises(ValueError, match=message):
        mixed_batches(None, kind, CLASSES, alpha)
