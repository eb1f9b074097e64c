import numpy as np
import pytest

from mg_keras.embedding import whitening as whitenings
from mg_keras.embedding.whitening import Whitening, class_agreement
from mg_keras.errors import UserError
from mg_keras.whitening_formulas import folded_logits, unit_embeddings, unwhitened, whitened
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


@pytest.fixture
def versions(embeddings):
    """Three of each photo, which differ along two directions in space and by noise."""
    rng = np.random.default_rng(4)
    along = rng.standard_normal((120, 3, 2)) @ rng.standard_normal((2, 12))
    return embeddings[:, None] + 0.4 * along + 0.05 * rng.standard_normal((120, 3, 12))


@pytest.mark.parametrize(("bias_channel", "count", "power"), [(True, 120, 0), (False, 120, 0.5), (True, 9, 1)])
def test_learned_whitening_is_that_of_its_definition(embeddings, versions, bias_channel, count, power):
    # of few photos, fewer than dimensions, another product is decomposed
    embeddings, versions = embeddings[:count], versions[:count]
    learned = Whitening.fit_on_versions(embeddings, versions, bias_channel, shrinkage=0.2, dimensions=5, power=power)
    within = np.zeros((12 + bias_channel,) * 2)
    for photo, edited in zip(embeddings, versions, strict=True):
        group = np.array([hat(e, bias_channel) for e in (photo, *edited)])
        for row in group:
            within += np.outer(row - group.mean(0), row - group.mean(0)) / (count * 3)
    shrunk = 0.8 * within + 0.2 * np.trace(within) / len(within) * np.eye(len(within))
    rows = np.array([hat(e, bias_channel) for e in embeddings])
    # distances after it with power 0: those by the inverse of the shrunk covariance, in the five directions of most
    # signal; with power 1 photos are white in these
    values, vectors = np.linalg.eig(np.linalg.solve(shrunk, np.cov(rows.T)))
    first = vectors.real[:, np.argsort(-values.real)[:5]]
    first /= np.sqrt(np.einsum("ij,ik,kj->j", first, shrunk, first))
    first /= np.sqrt(np.sort(values.real)[:-6:-1]) ** power
    expected = (rows - rows.mean(0)) @ first
    expected /= np.sqrt(np.var(expected, axis=0, ddof=1).mean())
    phi = learned.transform(embeddings, normalize=False)
    np.testing.assert_allclose(np.abs(phi), np.abs(expected), rtol=1e-6, atol=1e-9)
    if power == 1:
        np.testing.assert_allclose(np.cov(phi.T), np.eye(5), atol=1e-9)


def test_learned_whitening_is_the_same_in_parts(embeddings, versions, monkeypatch):
    whole = Whitening.fit_on_versions(embeddings, versions, dimensions=5)
    monkeypatch.setattr(whitenings, "_PHOTOS_A_PART", 7)
    parts = Whitening.fit_on_versions(embeddings, versions, dimensions=5)
    np.testing.assert_allclose(np.abs(parts.projection_), np.abs(whole.projection_), rtol=1e-8)


def test_a_known_projection_gets_its_scale_and_way_back_from_photos(embeddings):
    projection = np.random.default_rng(6).standard_normal((13, 4))
    made = Whitening.of_projection(embeddings, projection)
    rows = np.array([hat(e, True) for e in embeddings])
    np.testing.assert_allclose(made.mean_, rows.mean(0))
    phi = (rows - rows.mean(0)) @ projection
    scale = np.sqrt(phi.var(0, ddof=1).mean())
    np.testing.assert_allclose(made.transform(embeddings, normalize=False), phi / scale)
    np.testing.assert_allclose(made.inverse_, np.linalg.lstsq(phi / scale, rows - rows.mean(0), rcond=None)[0])
    for wrong, message in (
        (projection[:, [0, 1, 0]], "the 3 values don't vary independently over these 120 photos"),
        (0 * projection, "the 4 values don't vary"),
        (projection[:12], r"projection must be \[13, k\], received shape \(12, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Whitening.of_projection(embeddings, wrong)


def test_learned_whitening_finds_versions_that_pca_mistakes(embeddings, versions):
    photos, edits = embeddings[60:], versions[60:, 0]
    fitted = {
        "pca": Whitening.fit(embeddings[:60], dimensions=8),
        "learned": Whitening.fit_on_versions(embeddings[:60], versions[:60], dimensions=8),
    }
    found = {
        name: np.mean(np.argmax(one.transform(edits) @ one.transform(photos).T, 1) == np.arange(60))
        for name, one in fitted.items()
    }
    assert found["learned"] > found["pca"] + 0.2


def test_learned_whitening_folds_and_gives_the_embedding_back(embeddings, versions):
    rng = np.random.default_rng(5)
    kernel, bias = rng.standard_normal((12, 5)), rng.standard_normal(5)
    whole = Whitening.fit_on_versions(embeddings, versions)
    unit = whole.undo(whole.transform(embeddings))
    np.testing.assert_allclose(unit, [hat(e, True) for e in embeddings], atol=1e-9)
    np.testing.assert_allclose(unit @ np.vstack([kernel, bias]) / unit[:, -1:], embeddings @ kernel + bias, rtol=1e-6)
    part = Whitening.fit_on_versions(embeddings, versions, dimensions=6)
    rows = np.array([hat(e, True) for e in embeddings]) - part.mean_
    phi = part.transform(embeddings, normalize=False)
    np.testing.assert_allclose(part.inverse_, np.linalg.lstsq(phi, rows, rcond=None)[0], atol=1e-9)
    assert part.discarded_variance_ == pytest.approx(np.mean(np.sum((rows - phi @ part.inverse_) ** 2, axis=1)))
    projection, folded, offset = part.fold_completely(kernel, bias)
    expected = embeddings @ kernel + bias
    norms = np.sqrt(np.sum(embeddings**2, axis=1, keepdims=True) + 1)
    np.testing.assert_allclose(norms * (rows @ projection @ folded + offset), expected, rtol=1e-8, atol=1e-9)


def test_learned_whitening_is_saved_with_its_way_back(embeddings, versions, tmp_path):
    learned = Whitening.fit_on_versions(embeddings, versions, dimensions=6)
    learned.save(tmp_path / "whitening.npz")
    loaded = Whitening.load(tmp_path / "whitening.npz")
    np.testing.assert_allclose(loaded.inverse_, learned.inverse_, atol=1e-12)
    with pytest.raises(ValueError, match="the identity, received one that is"):
        Whitening(learned.mean_, learned.projection_, inverse=2 * learned.inverse_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"versions": np.ones((7, 2, 12))},
            r"versions must be \[120, V, 12\] with V >= 1, received shape \(7, 2, 12\)",
        ),
        ({"versions": np.full((120, 1, 12), np.nan)}, "versions must be finite"),
        ({"shrinkage": 0.0}, r"shrinkage must be in \(0, 1\], received 0"),
        ({"power": 1.5}, "power must be from 0 to 1, received 1.5"),
        ({"versions": None}, "all versions are like their photos"),
        ({"dimensions": 40}, "dimensions must be a whole number from 1 to 13"),
    ],
)
def test_learned_whitening_refuses(embeddings, versions, change, message):
    given = {"versions": versions, **change}
    if given["versions"] is None:
        given["versions"] = np.repeat(embeddings[:, None], 2, axis=1)
    with pytest.raises(ValueError, match=message):
        Whitening.fit_on_versions(embeddings, **given)


def test_refuses_too_few_photos_unless_shrunk(embeddings):
    with pytest.raises(ValueError, match="needs at least 14 embeddings, received 13"):
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
    # the direction that is left out need not have any
    Whitening.fit(dead, dimensions=13)


def principal_directions(rows):
    """Mean, variances with 1 / N and directions (columns), widest first."""
    mean = sum(rows) / len(rows)
    covariance = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
    variances, directions = np.linalg.eigh(covariance)
    return mean, variances[::-1], directions[:, ::-1]


@pytest.mark.parametrize("bias_channel", [True, False])
@pytest.mark.parametrize("shrinkage", [None, 0.3])
@pytest.mark.parametrize(("count", "dimensions"), [(120, 5), (120, 12), (9, 5)])
def test_reduced_dimensions(embeddings, bias_channel, shrinkage, count, dimensions):
    embeddings = embeddings[:count]
    rows = np.array([hat(e, bias_channel) for e in embeddings])
    mean, variances, directions = principal_directions(rows)
    whitening = Whitening.fit(embeddings, bias_channel, shrinkage, dimensions)

    kept = directions[:, :dimensions]
    parts = np.array([mean + kept @ (kept.T @ (row - mean)) for row in rows])
    discarded = np.mean([np.sum((row - part) ** 2) for row, part in zip(rows, parts, strict=True)])
    spread = np.mean([np.sum((row - mean) ** 2) for row in rows])
    np.testing.assert_allclose(whitening.discarded_variance_, discarded, rtol=1e-7, atol=1e-15)
    np.testing.assert_allclose(whitening.variance_kept_, 1 - discarded / spread, rtol=1e-9)

    scales = variances * count / (count - 1)
    scales = scales if shrinkage is None else (1 - shrinkage) * scales + shrinkage * np.mean(scales)
    phi = whitening.transform(embeddings, normalize=False)
    assert phi.shape == (count, dimensions)
    for number in range(dimensions):
        expected = (rows - mean) @ directions[:, number] / np.sqrt(scales[number])
        # the sign of a principal direction is arbitrary
        sign = np.sign(expected @ phi[:, number])
        np.testing.assert_allclose(sign * phi[:, number], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(phi @ whitening.inverse_ + whitening.mean_, parts, atol=1e-9)

    for u, found in zip(whitening.transform(embeddings)[:20], whitening.undo(phi)[:20], strict=True):
        direction = u @ whitening.inverse_
        roots = np.roots([direction @ direction, 2 * direction @ mean, mean @ mean - (1 - discarded)])
        (t,) = roots[roots > 0]
        np.testing.assert_allclose(found, t * direction + mean, atol=1e-9)
        np.testing.assert_allclose(found @ found, 1 - discarded, rtol=1e-9)


def test_all_dimensions_are_the_exact_whitening(embeddings):
    exact, whitening = Whitening.fit(embeddings), Whitening.fit(embeddings, dimensions=13)
    np.testing.assert_array_equal(whitening.projection_, exact.projection_)
    assert whitening.discarded_variance_ == exact.discarded_variance_ == 0
    assert whitening.variance_kept_ == 1
    np.testing.assert_allclose(
        whitening.undo(whitening.transform(embeddings)), [hat(e, True) for e in embeddings], atol=1e-9
    )


def test_the_kept_part_has_the_norm_that_the_discarded_variance_tells(embeddings):
    """E ||kept part||² = 1 - r; told so, `undo` comes closer to it than with norm 1, on photos not fitted on too."""
    whitening = Whitening.fit(embeddings[:60], dimensions=3)
    naive = Whitening(whitening.mean_, whitening.projection_, discarded_variance=0)
    for photos, errors_allowed in ((embeddings[:60], 1e-9), (embeddings[60:], 3)):
        parts = whitening.transform(photos, normalize=False) @ whitening.inverse_ + whitening.mean_
        norms = np.sum(parts**2, axis=1)
        # the difference of two means over 60 photos each
        standard_error = np.std(norms) * np.sqrt(2 / 60)
        assert 3 * standard_error < whitening.discarded_variance_
        assert abs(np.mean(norms) - (1 - whitening.discarded_variance_)) < errors_allowed * standard_error
        unit = whitening.transform(photos)
        errors = [np.mean(np.sum((w.undo(unit) - parts) ** 2, axis=1)) for w in (whitening, naive)]
        assert errors[0] < 0.9 * errors[1]


def test_fewer_dimensions_need_fewer_photos(embeddings):
    with pytest.raises(ValueError, match="whitening 4 dimensions needs at least 5 embeddings, received 4"):
        Whitening.fit(embeddings[:4], dimensions=4)
    whitening = Whitening.fit(embeddings[:5], dimensions=4)
    np.testing.assert_allclose(np.cov(whitening.transform(embeddings[:5], normalize=False).T), np.eye(4), atol=1e-7)
    # two photos spread along one line: shrinkage makes up the other three directions
    whitening = Whitening.fit(embeddings[:2], dimensions=4, shrinkage=0.1)
    np.testing.assert_allclose(whitening.projection_.T @ whitening.inverse_.T, np.eye(4), atol=1e-9)
    assert whitening.discarded_variance_ == pytest.approx(0, abs=1e-15)


def test_folded_classifier_reads_the_kept_part(embeddings):
    rng = np.random.default_rng(2)
    kernel, bias = rng.standard_normal((12, 5)), rng.standard_normal(5)
    whitening = Whitening.fit(embeddings, dimensions=6)
    folded_kernel, folded_bias = whitening.fold(kernel, bias)
    assert folded_kernel.shape == (6, 5)
    phi = whitening.transform(embeddings, normalize=False)
    parts = phi @ whitening.inverse_ + whitening.mean_
    np.testing.assert_allclose(phi @ folded_kernel + folded_bias, parts @ np.vstack([kernel, bias]), atol=1e-9)


@pytest.mark.parametrize("bias_channel", [True, False])
@pytest.mark.parametrize(("dimensions", "classes"), [(None, 5), (4, 3), (4, 30), (1, 5)])
def test_completely_folded_the_classifier_reads_the_whole_embedding(embeddings, bias_channel, dimensions, classes):
    rng = np.random.default_rng(2)
    kernel, bias = rng.standard_normal((12, classes)), rng.standard_normal(classes)
    whitening = Whitening.fit(embeddings, bias_channel, dimensions=dimensions)
    given = (kernel, bias) if bias_channel else (kernel,)
    projection, folded_kernel, folded_bias = whitening.fold_completely(*given)
    for e in embeddings[:20]:
        phi = [sum((hat(e, bias_channel) - whitening.mean_) * column) for column in projection.T]
        norm = np.sqrt(e @ e + bias_channel)
        expected = e @ kernel + bias if bias_channel else e @ kernel
        np.testing.assert_allclose(norm * (phi @ folded_kernel + folded_bias), expected, rtol=1e-8, atol=1e-10)
    # the part that the descriptor shows is the whitening itself and what `fold` makes of it
    size = 12 + bias_channel
    kept = dimensions or size
    expected_kernel, expected_bias = whitening.fold(*given)
    np.testing.assert_array_equal(projection[:, :kept], whitening.projection_)
    np.testing.assert_array_equal(folded_kernel[:kept], expected_kernel)
    np.testing.assert_array_equal(folded_bias, expected_bias)
    # and the rest an orthonormal basis, no larger than it must be
    rest = projection[:, kept:]
    assert rest.shape[1] == min(size - kept, classes)
    np.testing.assert_allclose(rest.T @ rest, np.eye(rest.shape[1]), atol=1e-12)
    np.testing.assert_allclose(whitening.projection_.T @ rest, 0, atol=1e-9 * np.abs(whitening.projection_).max())
    for found, again in zip((projection, folded_kernel), whitening.fold_completely(*given)[:2], strict=True):
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("dimensions", [None, 8])
def test_folding_a_badly_conditioned_whitening_costs_float32_nothing(dimensions):
    """Standard deviations from 1 to 1e-6, of 300 embeddings of 40 values, undone in float32 as in an exported graph."""
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    embeddings = 5 + rng.standard_normal((300, 40)) * np.logspace(0, -6, 40) @ basis.T
    kernel, bias = rng.standard_normal((40, 10)), rng.standard_normal(10)
    # every class is some photo's
    bias -= np.mean(embeddings @ kernel, axis=0)
    fitted = Whitening.fit(embeddings, dimensions=dimensions)
    assert dimensions or np.ptp(np.log10(np.linalg.norm(fitted.projection_, axis=0))) > 5
    projection, *folded = (np.float32(array) for array in fitted.fold_completely(kernel, bias))
    unit = unit_embeddings(np, np.float32(embeddings), bias_channel=True)
    phi = whitened(np, unit, np.float32(fitted.mean_), projection)
    found = folded_logits(np, phi, unit, *folded)
    assert found.dtype == np.float32
    expected = embeddings @ kernel + bias
    norms = np.linalg.norm(expected, axis=1)
    assert np.max(np.linalg.norm(found - expected, axis=1) / norms) < 1e-4
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert len(set(expected.argmax(axis=1))) > 5
    if dimensions is None:
        descriptors = fitted.transform(embeddings).astype(np.float32)
        phi, unit = unwhitened(np, descriptors, np.float32(fitted.mean_), np.float32(fitted.inverse_))
        stored = folded_logits(np, phi, unit, *folded)
        assert np.max(np.linalg.norm(stored - expected, axis=1) / norms) < 1e-4


@pytest.fixture
def classes():
    """Embeddings around ten centres, fewer and fewer of whose differences lie in the later directions."""
    rng = np.random.default_rng(3)
    scales = 0.8 ** np.arange(24)
    centres = rng.standard_normal((10, 24)) * scales
    labels = np.arange(600) % 10
    rows = np.abs(3 + (centres[labels] + 0.6 * rng.standard_normal((600, 24)) * scales) @ rng.standard_normal((24, 24)))
    kernel = np.linalg.lstsq(np.c_[rows, np.ones(600)], np.eye(10)[labels], rcond=None)[0]
    return rows, labels, lambda embeddings: embeddings @ kernel[:-1] + kernel[-1]


def test_class_agreement_rises_with_the_dimensions(classes):
    embeddings, labels, classify = classes
    fitting, measured = slice(0, 300), slice(300, 600)
    rows = []
    for dimensions in (1, 3, 6, 10, 25):
        whitening = Whitening.fit(embeddings[fitting], dimensions=dimensions)
        found = class_agreement(whitening, embeddings[measured], labels[measured], classify)
        same = full = reduced = 0
        for e, label in zip(embeddings[measured], labels[measured], strict=True):
            unit = whitening.undo(whitening.transform(e[None]))[0]
            expected, answer = (int(np.argmax(classify(row))) for row in (e, unit[:-1] / unit[-1]))
            same, full, reduced = same + (expected == answer), full + (expected == label), reduced + (answer == label)
        assert found == {"class_agreement": same / 300, "top1_embedding": full / 300, "top1_descriptor": reduced / 300}
        rows.append(found)
    agreements = [row["class_agreement"] for row in rows]
    assert agreements == sorted(agreements)
    assert agreements[0] < 0.5
    assert agreements[-2] > 0.9
    assert agreements[-1] == 1
    assert rows[0]["top1_embedding"] == rows[-1]["top1_embedding"] == rows[-1]["top1_descriptor"]
    assert rows[0]["class_agreement"] != rows[0]["top1_descriptor"] != rows[0]["top1_embedding"] < 1


def test_class_agreement_of_photos_some_of_which_have_labels(classes):
    embeddings, labels, classify = classes
    whitening = Whitening.fit(embeddings[:300], dimensions=6)
    measured, labels = embeddings[300:], labels[300:].copy()
    everything = class_agreement(whitening, measured, labels, classify)
    first = class_agreement(whitening, measured[:100], labels[:100], classify)
    labels[100:] = -1
    some = class_agreement(whitening, measured, labels, classify)
    assert some == {**first, "class_agreement": everything["class_agreement"]}
    none = class_agreement(whitening, measured, np.full(len(measured), -1), classify)
    assert none == {"class_agreement": everything["class_agreement"]}


def test_saves_and_loads(embeddings, tmp_path):
    for bias_channel, dimensions in ((True, None), (False, None), (True, 5)):
        whitening = Whitening.fit(embeddings, bias_channel=bias_channel, dimensions=dimensions)
        whitening.save(tmp_path / "whitening.npz")
        loaded = Whitening.load(tmp_path / "whitening.npz")
        assert loaded.bias_channel is bias_channel
        descriptors = whitening.transform(embeddings)
        np.testing.assert_array_equal(loaded.transform(embeddings), descriptors)
        np.testing.assert_array_equal(loaded.undo(descriptors), whitening.undo(descriptors))
        assert loaded.discarded_variance_ == whitening.discarded_variance_
    assert [path.name for path in tmp_path.iterdir()] == ["whitening.npz"]


def test_files_without_a_discarded_variance_are_read(embeddings, tmp_path):
    whitening = Whitening.fit(embeddings)
    np.savez(tmp_path / "old.npz", mean=whitening.mean_, projection=whitening.projection_, bias_channel=True)
    old = Whitening.load(tmp_path / "old.npz")
    assert old.discarded_variance_ == 0
    descriptors = whitening.transform(embeddings)
    np.testing.assert_array_equal(old.undo(descriptors), whitening.undo(descriptors))


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
    with pytest.raises(ValueError, match=r"\[N, 12\], received shape \(120, 11\)"):
        whitening.transform(embeddings[:, 1:])
    with pytest.raises(ValueError, match=r"\[N, 13\], received shape \(120, 12\)"):
        whitening.undo(embeddings)
    with pytest.raises(ValueError, match="finite"):
        Whitening.fit(np.where(embeddings > 1, np.nan, embeddings))
    for shrinkage in (0, 1.5):
        with pytest.raises(ValueError, match=f"received {shrinkage}"):
            Whitening.fit(embeddings, shrinkage=shrinkage)
    with pytest.raises(ValueError, match="bias=None and bias_channel=True"):
        whitening.fold(np.ones((12, 2)))
    with pytest.raises(ValueError, match="bias=given and bias_channel=False"):
        Whitening.fit(embeddings, bias_channel=False).fold(np.ones((12, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"received shape \(12, 2\)"):
        whitening.fold(np.ones((11, 2)), np.ones(2))
    with pytest.raises(ValueError, match="norm below 1"):
        Whitening(np.ones(2), np.eye(2))
    for dimensions in (0, 14, 2.5):
        with pytest.raises(ValueError, match=f"from 1 to 13, received {dimensions}"):
            Whitening.fit(embeddings, dimensions=dimensions)
    for shape in ((2, 3), (3, 2), (2, 0)):
        with pytest.raises(ValueError, match="1 <= k <= D, received shapes"):
            Whitening(np.zeros(2), np.ones(shape))
    for discarded in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"received {discarded}"):
            Whitening(np.zeros(2), np.ones((2, 1)), discarded_variance=discarded)
    with pytest.raises(ValueError, match="bias channel, received one without"):
        class_agreement(Whitening.fit(embeddings, bias_channel=False), embeddings, np.zeros(120), lambda rows: rows)
    with pytest.raises(ValueError, match="at least 1 embedding, received 0"):
        class_agreement(whitening, embeddings[:0], np.zeros(0), lambda rows: rows)


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
