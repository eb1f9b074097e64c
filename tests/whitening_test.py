import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.whitening import Whitening
from tests.shared import shared_path


@pytest.fixture
def embeddings():
    """Positive and unequally spread, as GeM gives them."""
    rng = np.random.default_rng(0)
    return np.abs(rng.standard_normal((120, 3)) @ rng.standard_normal((3, 12)) + 0.3 * rng.standard_normal((120, 12)))


def hat(e, bias_channel):
    e = np.append(e, 1.0) if bias_channel else e
    return e / np.linalg.norm(e)


@pytest.mark.parametrize("bias_channel", [True, False])
def test_whitens_what_it_was_fitted_on(embeddings, bias_channel):
    whitening = Whitening.fit(embeddings, bias_channel=bias_channel)
    phi = whitening.transform(embeddings, normalize=False)
    np.testing.assert_allclose(phi.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(phi.T), np.eye(12 + bias_channel), atol=1e-7)
    for e, row in zip(embeddings[:5], phi, strict=False):
        expected = np.linalg.inv(whitening.inverse_).T @ (hat(e, bias_channel) - whitening.mean_)
        np.testing.assert_allclose(row, expected, rtol=1e-7, atol=1e-9)
    unit = whitening.transform(embeddings)
    np.testing.assert_allclose(unit, phi / np.linalg.norm(phi, axis=1, keepdims=True), rtol=1e-12)


def test_is_a_pca(embeddings):
    whitening = Whitening.fit(embeddings)
    rows = np.array([hat(e, True) for e in embeddings])
    variances, directions = np.linalg.eigh(np.cov(rows.T))
    for variance, direction, column in zip(variances[::-1], directions.T[::-1], whitening.projection_.T, strict=True):
        np.testing.assert_allclose(np.abs(column @ direction), 1 / np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize("bias_channel", [True, False])
def test_undo_gives_the_embedding_back_from_the_unit_descriptor(embeddings, bias_channel):
    whitening = Whitening.fit(embeddings, bias_channel=bias_channel)
    expected = [hat(e, bias_channel) for e in embeddings]
    np.testing.assert_allclose(whitening.undo(whitening.transform(embeddings)), expected, atol=1e-9)
    # Directions against the mean and along it take the two forms of the root.
    sides = np.sign((whitening.transform(embeddings) @ whitening.inverse_) @ whitening.mean_)
    assert {-1.0, 1.0} <= set(sides)


def test_logits_from_the_unit_descriptor_alone(embeddings):
    rng = np.random.default_rng(1)
    kernel, bias = rng.standard_normal((12, 5)), rng.standard_normal(5)
    whitening = Whitening.fit(embeddings)
    unit = whitening.undo(whitening.transform(embeddings * 7))
    np.testing.assert_allclose(
        unit @ np.vstack([kernel, bias]) / unit[:, -1:], embeddings * 7 @ kernel + bias, rtol=1e-6
    )


@pytest.mark.parametrize("bias_channel", [True, False])
def test_folded_classifier_reads_whitened_embeddings(embeddings, bias_channel):
    rng = np.random.default_rng(2)
    kernel, bias = rng.standard_normal((12, 5)), rng.standard_normal(5)
    whitening = Whitening.fit(embeddings, bias_channel=bias_channel)
    folded_kernel, folded_bias = whitening.fold(kernel, bias if bias_channel else None)
    phi = whitening.transform(embeddings, normalize=False)
    for e, row in zip(embeddings, phi, strict=True):
        norm = np.sqrt(e @ e + bias_channel)
        expected = e @ kernel + bias if bias_channel else e @ kernel
        np.testing.assert_allclose(norm * (row @ folded_kernel + folded_bias), expected, rtol=1e-8, atol=1e-10)


def test_refuses_too_few_photos_unless_shrunk(embeddings):
    with pytest.raises(ValueError, match="needs at least 14 embeddings, got 13"):
        Whitening.fit(embeddings[:13])
    Whitening.fit(embeddings[:14])
    for count in (3, 13):
        whitening = Whitening.fit(embeddings[:count], shrinkage=0.1)
        unit = whitening.undo(whitening.transform(embeddings))
        np.testing.assert_allclose(unit, [hat(e, True) for e in embeddings], atol=1e-9)


@pytest.mark.parametrize("count", [5, 120])
def test_shrinkage_moves_variances_toward_their_mean(embeddings, count):
    embeddings = embeddings[:count]
    rows = np.array([hat(e, True) for e in embeddings])
    covariance = np.cov(rows.T)
    target = 0.3 * covariance + 0.7 * np.trace(covariance) / 13 * np.eye(13)
    whitening = Whitening.fit(embeddings, shrinkage=0.7)
    np.testing.assert_allclose(whitening.inverse_.T @ whitening.inverse_, target, atol=1e-10)


def test_refuses_directions_without_spread(embeddings):
    dead = np.concatenate([embeddings, embeddings[:, :1]], axis=1)
    with pytest.raises(ValueError, match="1 of 14 directions"):
        Whitening.fit(dead)
    Whitening.fit(dead, shrinkage=0.01)


def test_saves_and_loads(embeddings, tmp_path):
    for bias_channel in (True, False):
        whitening = Whitening.fit(embeddings, bias_channel=bias_channel)
        whitening.save(tmp_path / "whitening.npz")
        loaded = Whitening.load(tmp_path / "whitening.npz")
        assert loaded.bias_channel is bias_channel
        np.testing.assert_array_equal(loaded.transform(embeddings), whitening.transform(embeddings))
    assert [path.name for path in tmp_path.iterdir()] == ["whitening.npz"]


def test_a_save_that_fails_leaves_what_was_there(embeddings, tmp_path, monkeypatch):
    path = tmp_path / "whitening.npz"
    Whitening.fit(embeddings).save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"whitening\.npz: No space left on device"):
        Whitening.fit(embeddings, bias_channel=False).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_broken_files_are_named(embeddings, tmp_path):
    whitening = Whitening.fit(embeddings)
    good = tmp_path / "good.npz"
    whitening.save(good)
    (tmp_path / "truncated.npz").write_bytes(good.read_bytes()[:500])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", x=1)
    np.savez(tmp_path / "shapes.npz", mean=np.zeros(3), projection=np.eye(4), bias_channel=True)
    np.savez(tmp_path / "objects.npz", mean=np.array([{}]), projection=np.eye(1), bias_channel=True)
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    names = (
        "truncated.npz",
        "text.npz",
        "empty.npz",
        "other.npz",
        "shapes.npz",
        "objects.npz",
        "array.npz.npy",
        "gone",
    )
    for name in names:
        with pytest.raises(UserError, match=name):
            Whitening.load(tmp_path / name)


def test_refuses_what_makes_no_sense(embeddings):
    whitening = Whitening.fit(embeddings)
    with pytest.raises(ValueError, match=r"\[N, 12\], got shape \(120, 11\)"):
        whitening.transform(embeddings[:, 1:])
    with pytest.raises(ValueError, match=r"\[N, 13\], got shape \(120, 12\)"):
        whitening.undo(embeddings)
    with pytest.raises(ValueError, match="finite"):
        Whitening.fit(np.where(embeddings > 1, np.nan, embeddings))
    for shrinkage in (0, 1.5):
        with pytest.raises(ValueError, match=f"got {shrinkage}"):
            Whitening.fit(embeddings, shrinkage=shrinkage)
    with pytest.raises(ValueError, match="bias=None and bias_channel=True"):
        whitening.fold(np.ones((12, 2)))
    with pytest.raises(ValueError, match="bias=given and bias_channel=False"):
        Whitening.fit(embeddings, bias_channel=False).fold(np.ones((12, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"got shape \(12, 2\)"):
        whitening.fold(np.ones((11, 2)), np.ones(2))
    with pytest.raises(ValueError, match="norm below 1"):
        Whitening(np.ones(2), np.eye(2))


def test_golden():
    golden = np.load(shared_path("goldens", "whitening.npz"))
    whitening = Whitening(golden["mean"], golden["projection"], bias_channel=False)
    phi = whitening.transform(golden["query"], normalize=False)
    np.testing.assert_allclose(phi, golden["whitened_query"], atol=1e-4)
    kernel, bias = whitening.fold(golden["classifier_weight"].T)
    norms = np.linalg.norm(golden["query"], axis=1, keepdims=True)
    np.testing.assert_allclose(norms * (phi @ kernel + bias) + golden["classifier_bias"], golden["logits"], rtol=1e-4)

    fitted = Whitening.fit(golden["features"], bias_channel=False)
    np.testing.assert_allclose(fitted.mean_, golden["mean"], atol=1e-6)
    # The sign of a principal direction is arbitrary.
    signs = np.sign(np.sum(fitted.projection_ * golden["projection"], axis=0))
    np.testing.assert_allclose(fitted.projection_ * signs, golden["projection"], atol=2e-3, rtol=1e-3)
