"""PCA whitening of embeddings, folded into the classifier and undone (MultiGrain, section 3.4).

The formulas stand here once, as functions over `numpy` (float64: fitting, folding) or `keras.ops` (float32: the layer
in the exported graph), whichever is given as `xp`; both name these operations alike.
"""

import zipfile
from functools import cached_property

import numpy as np

from mg_keras.errors import UserError
from mg_keras.files import atomic_path

# Embeddings are float32: a direction in which they spread this much less than in the widest holds only rounding.
_SMALLEST_RELATIVE_SPREAD = 1e-7


def unit_rows(xp, rows):
    """`rows` [..., D] divided by their L2 norms; zero rows stay zero."""
    return rows / xp.maximum(xp.sqrt(xp.sum(rows * rows, axis=-1, keepdims=True)), 1e-12)


def unit_embeddings(xp, embeddings, bias_channel):
    """ê: e / ||e||, or [e; 1] / ||[e; 1]|| with the bias channel. [..., d] → [..., d or d + 1]."""
    if bias_channel:
        embeddings = xp.concatenate([embeddings, xp.ones_like(embeddings[..., :1])], axis=-1)
    return unit_rows(xp, embeddings)


def whitened(xp, embeddings, mean, projection, bias_channel):
    """Φ(e) = S (ê - μ), with `projection` = Sᵀ. [N, d] → [N, D]."""
    return xp.matmul(unit_embeddings(xp, embeddings, bias_channel) - mean, projection)


def unwhitened(xp, descriptors, mean, inverse):
    """The ê that a unit-norm whitened descriptor u [N, D] came from, whatever the norm of Φ was before.

    ê = t S⁻¹ u + μ with t the positive root of ||t S⁻¹ u + μ|| = 1. There is exactly one, since ||μ|| < 1.
    """
    direction = xp.matmul(descriptors, inverse)
    a = xp.sum(direction * direction, axis=-1, keepdims=True)
    b = xp.sum(direction * mean, axis=-1, keepdims=True)
    c = 1.0 - xp.sum(mean * mean)
    root = xp.sqrt(b * b + a * c)
    # The same root of a t² + 2 b t - c = 0 twice; which form subtracts nothing depends on the sign of b.
    t = xp.where(b > 0, c / (root + xp.abs(b)), (root + xp.abs(b)) / xp.maximum(a, 1e-30))
    return t * direction + mean


class Whitening:
    """A PCA whitening: Φ(e) = S (ê - μ) with ê the L2-normalised embedding.

    With the bias channel (the reference's choice), the constant 1 is appended to the embedding before it is normalised,
    ê = [e; 1] / ||[e; 1]||. Its last entry then tells the norm, so that a **unit-norm** whitened descriptor still gives
    the exact class logits, without the image or any extra number: `[W b] ê / ê_last`, with ê from `undo`.

    Usually made by `fit` or `load`; the constructor takes known values.

    Args:
        mean: μ, [D], where D is the embedding size d, plus 1 with the bias channel. Its norm is below 1.
        projection: Sᵀ, [D, D], invertible: Φ(e) = (ê - mean) @ projection.
        bias_channel: Whether 1 is appended to the embedding.

    Attributes:
        mean_, projection_: as above, float64.
        inverse_: (Sᵀ)⁻¹, [D, D]: ê = Φ(e) @ inverse_ + mean_.
        bias_channel: as above.

    Raises:
        ValueError: for shapes that don't fit, values that aren't finite, a mean of norm 1 or more.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> whitening = Whitening.fit(rng.uniform(size=(100, 8)))
    >>> descriptors = whitening.transform(rng.uniform(size=(5, 8)))
    >>> descriptors.shape, float(np.linalg.norm(descriptors[0]).round(6))
    ((5, 9), 1.0)
    """

    def __init__(self, mean, projection, bias_channel=True):
        self.mean_ = np.asarray(mean, np.float64)
        self.projection_ = np.asarray(projection, np.float64)
        self.bias_channel = bool(bias_channel)
        if self.mean_.ndim != 1 or self.projection_.shape != self.mean_.shape * 2:
            raise ValueError(
                f"mean must be [D] and projection [D, D], got shapes {self.mean_.shape} and {self.projection_.shape}"
            )
        if not (np.isfinite(self.mean_).all() and np.isfinite(self.projection_).all()):
            raise ValueError("mean and projection must be finite, got NaN or infinite values")
        if np.linalg.norm(self.mean_) >= 1:
            raise ValueError(f"the mean of unit-norm rows has a norm below 1, got {np.linalg.norm(self.mean_)}")

    @classmethod
    def fit(cls, embeddings, bias_channel=True, shrinkage=None):
        """Fits the whitening to embeddings of photos, in float64 (PCA by a full SVD).

        Args:
            embeddings: [N, d], as the network gives them, not normalised. Needs N ≥ D + 1, unless `shrinkage` is given.
            bias_channel: Whether to append the constant 1 first.
            shrinkage: None, or s in (0, 1]: every variance v along a principal direction becomes (1 - s) v + s v̄, with
                v̄ the mean of all D variances. This makes whitening invertible with fewer photos than dimensions, at the
                price of not quite whitening: s = 1 only centres and scales.

        Returns:
            A `Whitening`.

        Raises:
            ValueError: for embeddings of the wrong shape or not finite, too few of them, or embeddings without any
                spread in some direction, where `shrinkage` is None; a `shrinkage` out of range.
        """
        from sklearn.decomposition import PCA

        if shrinkage is not None and not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must be None or in (0, 1], got {shrinkage}")
        rows = unit_embeddings(np, _checked(embeddings, "embeddings"), bias_channel)
        count, dimensions = rows.shape
        if count < 2:
            raise ValueError(f"whitening needs at least 2 embeddings, got {count}")
        if shrinkage is None and count < dimensions + 1:
            raise ValueError(
                f"whitening {dimensions} dimensions needs at least {dimensions + 1} embeddings, got {count}: "
                "give more photos, or a shrinkage such as 0.1"
            )
        pca = PCA(svd_solver="full").fit(rows)
        variances = np.zeros(dimensions)
        variances[: len(pca.explained_variance_)] = pca.explained_variance_
        # Fewer photos than dimensions span only part of the space: the rest of the basis is any orthonormal one.
        found = len(pca.components_)
        basis = np.concatenate([pca.components_.T, np.linalg.qr(pca.components_.T, "complete")[0][:, found:]], axis=1)
        if shrinkage is not None:
            variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
        flat = int(np.sum(variances <= _SMALLEST_RELATIVE_SPREAD**2 * variances[0]))
        if flat:
            raise ValueError(
                f"the embeddings don't spread in {flat} of {dimensions} directions, so whitening has no inverse: "
                "give more varied photos, or a shrinkage such as 0.1"
            )
        return cls(pca.mean_, basis / np.sqrt(variances), bias_channel)

    @cached_property
    def inverse_(self):
        """(Sᵀ)⁻¹, [D, D]."""
        return np.linalg.inv(self.projection_)

    def transform(self, embeddings, normalize=True):
        """Whitens embeddings.

        Args:
            embeddings: [N, d], not normalised.
            normalize: True gives L2-normalised descriptors, to compare by cosine; False gives Φ(e).

        Returns:
            [N, D], float64.

        Raises:
            ValueError: for embeddings of another size, or not finite.
        """
        descriptors = whitened(
            np, self._checked(embeddings, "embeddings"), self.mean_, self.projection_, self.bias_channel
        )
        return unit_rows(np, descriptors) if normalize else descriptors

    def fold(self, kernel, bias=None):
        """The classifier that reads whitened embeddings: w' = S⁻ᵀ w and b' = <w, μ>.

        With w a column of `kernel`, or of [kernel; bias] with the bias channel (where e stands for [e; 1]),
        `<w, e> = ||e|| (<w', Φ(e)> + b')` exactly.

        Args:
            kernel: [d, classes].
            bias: [classes] with the bias channel. None without: there it stays to be added to <w, e>.

        Returns:
            (kernel' [D, classes], bias' [classes]), float64.

        Raises:
            ValueError: for shapes that don't fit, or a bias missing or too many.
        """
        if self.bias_channel == (bias is None):
            raise ValueError(
                "a bias folds in with the bias channel and only with it, "
                f"got bias={'None' if bias is None else 'given'} and bias_channel={self.bias_channel}"
            )
        kernel = np.asarray(kernel, np.float64)
        if bias is not None:
            kernel = np.concatenate([kernel, np.asarray(bias, np.float64)[None]], axis=0)
        if kernel.ndim != 2 or len(kernel) != len(self.mean_):
            raise ValueError(f"kernel (with its bias) must be [{len(self.mean_)}, classes], got shape {kernel.shape}")
        return self.inverse_ @ kernel, self.mean_ @ kernel

    def undo(self, descriptors):
        """ê from unit-norm whitened descriptors, exactly.

        With the bias channel, the embedding is `ê[:, :-1] / ê[:, -1:]` and the logits `ê @ [kernel; bias] / ê[:, -1:]`.

        Args:
            descriptors: [N, D], as `transform` gives them; their norms don't matter.

        Returns:
            [N, D], float64, unit norm.

        Raises:
            ValueError: for descriptors of another size, or not finite.
        """
        descriptors = _checked(descriptors, "descriptors", len(self.mean_))
        return unwhitened(np, descriptors, self.mean_, self.inverse_)

    def save(self, path):
        """Writes the whitening to `path` (.npz), whole or not at all. Missing parent folders are made.

        Raises:
            UserError: when it can't be written there.
        """
        try:
            # Through an open file, since NumPy adds .npz to names without it.
            with atomic_path(path) as partial, open(partial, "wb") as file:
                np.savez(file, mean=self.mean_, projection=self.projection_, bias_channel=self.bias_channel)
        except OSError as error:
            raise UserError(f"the whitening can't be written to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            UserError: when `path` can't be read, or isn't a whitening.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["mean"], arrays["projection"], bool(arrays["bias_channel"]))
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} can't be read as a whitening, a .npz file made by Whitening.save: {error}"
            ) from error

    def _checked(self, embeddings, name):
        return _checked(embeddings, name, len(self.mean_) - self.bias_channel)


def _checked(rows, name, size=None):
    """`rows` as a finite float64 matrix of `size` columns (None: any number)."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or (size is not None and rows.shape[1] != size):
        raise ValueError(f"{name} must be [N, {'d' if size is None else size}], got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinite values in {(~np.isfinite(rows)).any(1).sum()} rows"
        )
    return rows
