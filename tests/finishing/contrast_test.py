import numpy as np
import pytest

from mg_keras.embedding.whitening import Whitening
from mg_keras.finishing import contrast
from mg_keras.finishing.contrast import contrasted

PHOTOS, VERSIONS, SIZE = 1200, 3, 24


@pytest.fixture(scope="module")
def photos():
    """(embeddings [N, d], versions [N, V, d]).

    Values of the first half are seldom changed, but then beyond recognition; those of the second half are changed a
    little by every edit. Covariances take the first for the worse ones.
    """
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((PHOTOS, SIZE))
    seldom = (rng.random((PHOTOS, VERSIONS, 1)) < 0.1) * 6 * rng.standard_normal((PHOTOS, VERSIONS, SIZE // 2))
    always = 0.5 * rng.standard_normal((PHOTOS, VERSIONS, SIZE // 2))
    return embeddings, embeddings[:, None] + np.concatenate([seldom, always], axis=2)


def found(whitening, embeddings, edits):
    """The share of edits whose photo is the nearest."""
    similarities = whitening.transform(edits) @ whitening.transform(embeddings).T
    return np.mean(np.argmax(similarities, axis=1) == np.arange(len(edits)))


def test_finds_versions_of_photos_that_it_was_not_trained_on(photos):
    (embeddings, versions), half = photos, PHOTOS // 2
    learned = Whitening.fit_on_versions(embeddings[:half], versions[:half], dimensions=8)
    trained = contrasted(learned, embeddings[:half], versions[:half], steps=100)
    before, after = (found(one, embeddings[half:], versions[half:, 0]) for one in (learned, trained))
    assert after > before + 0.02


def test_a_step_is_one_of_adam_down_the_loss(photos):
    """Against NumPy: the gradient by differences of a slow loss."""
    embeddings, versions = (values[:6] for values in photos)
    versions = versions[:, :1]
    learned = Whitening.fit_on_versions(embeddings, versions, dimensions=3)
    pictures = np.concatenate([embeddings[:, None], versions], axis=1)
    logits = 2 * np.random.default_rng(1).standard_normal((6, 4))
    classes = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    scale = np.sqrt(np.mean(learned.projection_**2))

    def loss(projection):
        hats = np.concatenate([pictures, np.ones((6, 2, 1))], axis=2)
        hats /= np.linalg.norm(hats, axis=2, keepdims=True)
        rows = (hats - learned.mean_) @ projection
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        total = 0.0
        for photo in range(6):
            for this in range(2):
                others = [rows[photo, this] @ rows[n, v] for n in range(6) for v in range(2) if n != photo]
                own = rows[photo, this] @ rows[photo, 1 - this] / 0.5
                total += np.log(np.exp(own) + np.sum(np.exp(np.array(others) / 0.5))) - own
                total -= 2.0 * np.log(np.sqrt(2 - 2 * max(others)))
                alike = np.array([classes[photo] @ classes[n] for n in range(6) for v in range(2) if n != photo])
                logs = np.array(others) / 0.1 - np.log(np.sum(np.exp(np.array(others) / 0.1)))
                total -= 0.7 * np.sum(alike / alike.sum() * logs)
        return total / 12

    expected = learned.projection_ / scale
    gradient = np.zeros_like(expected)
    for place in np.ndindex(*expected.shape):
        moved = np.zeros_like(expected)
        moved[place] = 1e-5
        gradient[place] = (loss(expected + moved) - loss(expected - moved)) / 2e-5
    # the first step of Adam is by the sign, whatever was drawn first: all photos and both pictures of each are
    expected = expected - contrast.LEARNING_RATE * np.sign(gradient)
    trained = contrasted(learned, embeddings, versions, 1, 0, logits, 0.5, 2.0, class_weight=0.7)
    expected = Whitening.of_projection(embeddings, expected)
    certain = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
    assert certain.mean() > 0.9
    np.testing.assert_allclose(trained.projection_[certain], expected.projection_[certain], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(trained.mean_, expected.mean_)


def test_classes_keep_photos_together_that_the_others_part(photos):
    """Of two directions alike for all that versions tell, one holds the class."""
    embeddings, versions = photos
    labels = (embeddings[:, -1] > 0).astype(int)
    learned = Whitening.fit_on_versions(embeddings, versions, dimensions=8)

    def apart(whitening):
        similarities = whitening.transform(embeddings) @ whitening.transform(embeddings).T
        same = labels[:, None] == labels
        return similarities[same].mean() - similarities[~same].mean()

    logits = 8.0 * np.eye(2)[labels]
    without, trained = (contrasted(learned, embeddings, versions, 40, logits=one) for one in (None, logits))
    assert apart(trained) > 1.4 * apart(without)


def test_a_seed_gives_the_same_again(photos):
    embeddings, versions = photos
    learned = Whitening.fit_on_versions(embeddings, versions, dimensions=8)
    one, again, other = (contrasted(learned, embeddings, versions, 3, seed).projection_ for seed in (0, 0, 1))
    np.testing.assert_allclose(one, again, rtol=1e-5, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_it_folds_and_gives_the_embedding_back_as_others_do(photos):
    embeddings, versions = photos
    whole = contrasted(Whitening.fit_on_versions(embeddings, versions), embeddings, versions, steps=5)
    unit = np.concatenate([embeddings, np.ones((PHOTOS, 1))], axis=1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(whole.undo(whole.transform(embeddings)), unit, atol=1e-6)
    part = contrasted(Whitening.fit_on_versions(embeddings, versions, dimensions=8), embeddings, versions, steps=5)
    phi = part.transform(embeddings, normalize=False)
    assert np.mean(np.var(phi, axis=0, ddof=1)) == pytest.approx(1)
    assert 0 < part.variance_kept_ < 1
    np.testing.assert_allclose(part.inverse_ @ part.projection_, np.eye(8), atol=1e-6)


def test_too_little_is_refused(photos):
    embeddings, versions = photos
    learned = Whitening.fit_on_versions(embeddings, versions, dimensions=8)
    with pytest.raises(ValueError, match="at least 2 are needed, received 1"):
        contrasted(learned, embeddings[:1], versions[:1], 3)
    with pytest.raises(ValueError, match="1 version and 1 step at least, received 3 and 0"):
        contrasted(learned, embeddings, versions, 0)
