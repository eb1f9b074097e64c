"""Whitening of embeddings, folded into the classifier and undone (MultiGrain, section 3.4).

By PCA, as in the paper, or learned from edited versions of photos.
"""

import os
from collections.abc import Callable
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from mg_keras.errors import UserError
from mg_keras.files import BROKEN_ARRAYS, atomic_path
from mg_keras.whitening_formulas import kept_dimensions, unit_embeddings, unit_rows, unwhitened, whitened

# Embeddings are float32: a direction in which they spread this much less than in the widest holds only rounding.
_SMALLEST_RELATIVE_SPREAD = 1e-7

_PHOTOS_A_PART = 1000

# projections and their inverses are kept in half precision or in 8 bits, too
_LARGEST_INVERSE_ERROR = 0.1


class Whitening:
    """A whitening: Φ(e) = S (ê - μ) with ê the L2-normalised embedding.

    With the bias channel (the reference's choice), the constant 1 is appended to the embedding before it is normalised,
    ê = [e; 1] / ||[e; 1]||. Its last entry then tells the norm, so that a **unit-norm** whitened descriptor still gives
    the exact class logits, without the image or any extra number: `[W b] ê / ê_last`, with ê from `undo`.

    A whitening may keep only the k < D directions of largest variance. Descriptors are shorter then, and the ê and the
    logits that come back from them are approximate; `class_agreement` measures the loss.

    Usually made by `fit`, `fit_on_versions` or `load`; the constructor takes known values.

    Args:
        mean: μ, [D], where D is the embedding size d, plus 1 with the bias channel. Its norm is below 1.
        projection: Sᵀ, [D, k] with 1 ≤ k ≤ D, of rank k: Φ(e) = (ê - mean) @ projection.
        bias_channel: Whether 1 is appended to the embedding.
        discarded_variance: r, the mean squared distance between ê and what its k components give back, in
            [0, 1 - ||mean||²); 0 for k = D.
        inverse: R, [k, D], the way back: ê ≈ Φ(e) @ R + mean. A left inverse of the projection, R Sᵀ = I; None: the
            pseudo-inverse, which is the best where what was left out does not vary with what was kept, as by PCA.

    Attributes:
        mean_, projection_: as above, float64.
        inverse_: R as above: ê = Φ(e) @ inverse_ + mean_, exactly for k = D.
        has_own_inverse: whether R was given, and is not the pseudo-inverse.
        discarded_variance_: as above.
        variance_kept_: share of the variance of ê that the k directions hold, in (0, 1].
        bias_channel: as above.

    Raises:
        ValueError: for shapes that don't fit, values that aren't finite, a mean of norm 1 or more, a discarded variance
            out of range.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> whitening = Whitening.fit(rng.uniform(size=(100, 8)))
    >>> descriptors = whitening.transform(rng.uniform(size=(5, 8)))
    >>> descriptors.shape, float(np.linalg.norm(descriptors[0]).round(6))
    ((5, 9), 1.0)
    """

    def __init__(
        self,
        mean: ArrayLike,
        projection: ArrayLike,
        bias_channel: bool = True,
        discarded_variance: float = 0.0,
        inverse: ArrayLike | None = None,
    ):
        self.mean_ = np.asarray(mean, np.float64)
        self.projection_ = np.asarray(projection, np.float64)
        self.bias_channel = bool(bias_channel)
        self.discarded_variance_ = float(discarded_variance)
        shape = self.projection_.shape
        if self.mean_.ndim != 1 or len(shape) != 2 or shape[0] != len(self.mean_) or not 1 <= shape[1] <= shape[0]:
            raise ValueError(
                f"mean must be [D] and projection [D, k], 1 <= k <= D, received shapes {self.mean_.shape} and {shape}"
            )
        if not (np.isfinite(self.mean_).all() and np.isfinite(self.projection_).all()):
            raise ValueError("mean and projection must be finite, received NaN or infinite values")
        if np.linalg.norm(self.mean_) >= 1:
            raise ValueError(f"the mean of unit-norm rows has a norm below 1, received {np.linalg.norm(self.mean_)}")
        if not 0 <= self.discarded_variance_ < 1 - self.mean_ @ self.mean_:
            raise ValueError(
                f"discarded_variance must be at least 0 and below 1 - ||mean||² = {1 - self.mean_ @ self.mean_}, "
                f"received {discarded_variance}"
            )
        # of what is square there is one
        if inverse is not None and shape[0] != shape[1]:
            inverse = np.asarray(inverse, np.float64)
            if inverse.shape != shape[::-1] or not np.isfinite(inverse).all():
                raise ValueError(f"inverse must be finite {list(shape[::-1])}, received shape {inverse.shape}")
            identity = inverse @ self.projection_
            if (error := np.abs(identity - np.eye(shape[1])).max()) > _LARGEST_INVERSE_ERROR:
                raise ValueError(f"inverse @ projection must be the identity, received one that is {error:.2g} from it")
            self.inverse_ = np.linalg.solve(identity, inverse)
        self.has_own_inverse = inverse is not None and shape[0] != shape[1]

    @classmethod
    def fit(
        cls,
        embeddings: ArrayLike,
        bias_channel: bool = True,
        shrinkage: float | None = None,
        dimensions: int | None = None,
    ) -> Self:
        """Fits the whitening to embeddings of photos, in float64 (PCA by a full SVD).

        Args:
            embeddings: [N, d], as the network gives them, not normalised. Needs N ≥ k + 1, unless `shrinkage` is given:
                only the kept directions must be told apart.
            bias_channel: Whether to append the constant 1 first.
            shrinkage: None, or s in (0, 1]: every variance v along a principal direction becomes (1 - s) v + s v̄, with
                v̄ the mean of all D variances. This makes whitening invertible with fewer photos than dimensions, at the
                price of not quite whitening: s = 1 only centres and scales.
            dimensions: None for all D, or k in 1 … D: keep the k directions of largest variance.

        Returns:
            A `Whitening`.

        Raises:
            ValueError: for embeddings of the wrong shape or not finite, and where `check_fit` does; embeddings without
                any spread in some kept direction, where `shrinkage` is None.
        """
        from sklearn.decomposition import PCA

        rows = unit_embeddings(np, _checked(embeddings, "embeddings"), bias_channel)
        count, size = rows.shape
        check_fit(count, size, shrinkage, dimensions)
        kept = kept_dimensions(dimensions, size)
        pca = PCA(svd_solver="full").fit(rows)
        basis, found = pca.components_.T, len(pca.components_)
        if found < kept:
            # Fewer photos than dimensions span only part of the space: the rest of the basis is any orthonormal one.
            basis = np.concatenate([basis, np.linalg.qr(basis, "complete")[0][:, found:]], axis=1)
        variances = np.zeros(size)
        variances[:found] = pca.explained_variance_
        # The mean over these very photos, not the estimate for others: with it, 1 = ||μ||² + kept + discarded.
        discarded = variances[kept:].sum() * (count - 1) / count
        if shrinkage is not None:
            variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
        variances = variances[:kept]
        flat = int(np.sum(variances <= _SMALLEST_RELATIVE_SPREAD**2 * variances[0]))
        if flat:
            raise ValueError(
                f"the embeddings don't spread in {flat} of {kept} directions, so whitening has no inverse: "
                "give more varied photos, fewer dimensions, or a shrinkage such as 0.1"
            )
        return cls(pca.mean_, basis[:, :kept] / np.sqrt(variances), bias_channel, discarded)

    @classmethod
    def fit_on_versions(
        cls,
        embeddings: ArrayLike,
        versions: ArrayLike,
        bias_channel: bool = True,
        shrinkage: float = 0.5,
        dimensions: int | None = None,
        power: float = 1.0,
    ) -> Self:
        """Learns the whitening from photos and edited versions of them, in float64.

        Keeps the k directions in which photos differ most for what edits change there: S = Λ^(-α/2) V' L^-1, with L L'
        the covariance C of versions about the mean of their photo, shrunk, and V' the principal directions of the
        photos' L^-1 ê, Λ their variances. With α = 0, what an edit changes counts for little ("learned whitening" in
        retrieval, Mikolajczyk and Matas 2007); with α = 1, the k directions count for as much, as after a PCA.

        Args:
            embeddings: [N, d] of the photos as they are, not normalised.
            versions: [N, V, d] of V ≥ 1 versions of each. With the photo itself that makes N V deviations; those of
                fewer directions than D are no harm, because of the shrinkage.
            bias_channel: as in `fit`.
            shrinkage: s in (0, 1]: C becomes (1 - s) C + s c̄ I, with c̄ the mean of its D variances.
            dimensions: as in `fit`. N ≥ k + 1 photos are needed.
            power: α, 0 to 1.

        Returns:
            A `Whitening`, scaled so that its k values have the variance 1 on average over the photos.

        Raises:
            ValueError: for shapes that don't fit, values that aren't finite, versions that all are like their photos,
                and where `check_fit` does.
        """
        from scipy.linalg import cholesky, eigh, solve_triangular

        photos = _checked(embeddings, "embeddings")
        versions = np.asarray(versions)
        if versions.ndim != 3 or versions.shape[::2] != photos.shape or not versions.shape[1]:
            raise ValueError(
                f"versions must be [{len(photos)}, V, {photos.shape[1]}] with V >= 1, received shape {versions.shape}"
            )
        rows = unit_embeddings(np, photos, bias_channel)
        count, size = rows.shape
        check_fit(count, size, None, dimensions)
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must be in (0, 1], received {shrinkage}")
        if not 0 <= power <= 1:
            raise ValueError(f"power must be from 0 to 1, received {power}")
        kept = kept_dimensions(dimensions, size)
        # in parts: all in float64 at once would take several times the memory of what is given
        within, of_each = np.zeros((size, size)), versions.shape[1]
        for start in range(0, count, _PHOTOS_A_PART):
            of_part = _checked(versions[start : start + _PHOTOS_A_PART].reshape(-1, photos.shape[1]), "versions")
            of_part = unit_embeddings(np, of_part, bias_channel).reshape(-1, of_each, size)
            together = np.concatenate([rows[start : start + _PHOTOS_A_PART, None], of_part], axis=1)
            deviations = (together - together.mean(axis=1, keepdims=True)).reshape(-1, size)
            within += deviations.T @ deviations / (count * of_each)
        spread = np.trace(within) / size
        if spread <= _SMALLEST_RELATIVE_SPREAD**2:
            raise ValueError("all versions are like their photos, so nothing can be learned from them")
        lower = cholesky((1 - shrinkage) * within + shrinkage * spread * np.eye(size), lower=True)

        # any root of C gives these directions, and this one takes a tenth of the time that C^(-1/2) does
        mean = rows.mean(axis=0)
        whitened_rows = solve_triangular(lower, (rows - mean).T, lower=True).T
        # of the smaller of the two products, which have the same variances
        by_photos = count < size
        product = whitened_rows @ whitened_rows.T if by_photos else whitened_rows.T @ whitened_rows
        among, vectors = eigh(product / (count - 1), subset_by_index=[len(product) - kept, len(product) - 1])
        among, vectors = among[::-1], vectors[:, ::-1]
        flat = int(np.sum(among <= _SMALLEST_RELATIVE_SPREAD**2 * among[0]))
        if flat:
            raise ValueError(
                f"the embeddings don't spread in {flat} of {kept} directions: take other photos or fewer dimensions"
            )
        directions = whitened_rows.T @ vectors / np.sqrt(among * (count - 1)) if by_photos else vectors
        projection = solve_triangular(lower, directions, trans=1, lower=True) * among ** (-power / 2)
        return cls.of_projection(photos, projection, bias_channel)

    @classmethod
    def of_projection(cls, embeddings: ArrayLike, projection: ArrayLike, bias_channel: bool = True) -> Self:
        """A whitening by a known projection; mean, scale and the way back are those of photos.

        Args:
            embeddings: [N, d] of the photos, not normalised.
            projection: Sᵀ, [D, k], of any scale.
            bias_channel: as in `fit`.

        Returns:
            A `Whitening`, scaled so that its k values have the variance 1 on average over the photos.

        Raises:
            ValueError: for embeddings that aren't finite, a projection that doesn't fit them or whose values don't vary
                independently over them, and where the constructor does.
        """
        rows = unit_embeddings(np, _checked(embeddings, "embeddings"), bias_channel)
        projection = np.asarray(projection, np.float64)
        if projection.ndim != 2 or len(projection) != rows.shape[1]:
            raise ValueError(f"projection must be [{rows.shape[1]}, k], received shape {projection.shape}")
        mean = rows.mean(axis=0)
        phi = (rows - mean) @ projection
        covariance = np.cov(phi.T).reshape(phi.shape[1], -1)
        # of values that follow from others, the inverse would be rounding
        smallest, largest = np.linalg.eigvalsh(covariance)[[0, -1]]
        if smallest <= 1e-12 * largest:
            raise ValueError(f"the {len(covariance)} values don't vary independently over these {len(rows)} photos")
        scale = np.sqrt(np.mean(np.diag(covariance)))
        phi, projection = phi / scale, projection / scale
        if projection.shape[0] == projection.shape[1]:
            return cls(mean, projection, bias_channel)
        # the least squares of ê from Φ: unlike a PCA's, the directions left out vary with those kept
        inverse = np.linalg.solve(phi.T @ phi, phi.T @ (rows - mean))
        discarded = np.mean(np.sum((rows - mean - phi @ inverse) ** 2, axis=1))
        return cls(mean, projection, bias_channel, discarded, inverse)

    @cached_property
    def inverse_(self) -> np.ndarray:
        """R, [k, D]: the inverse; with fewer dimensions the one given, or the pseudo-inverse."""
        size, kept = self.projection_.shape
        return np.linalg.inv(self.projection_) if kept == size else np.linalg.pinv(self.projection_)

    @property
    def variance_kept_(self) -> float:
        """Share of the variance of ê that the kept directions hold, in (0, 1]; 1 for k = D."""
        # ê has norm 1, so its variance over the fitting photos is 1 - ||μ||²
        return 1 - self.discarded_variance_ / (1 - self.mean_ @ self.mean_)

    def transform(self, embeddings: ArrayLike, normalize: bool = True) -> np.ndarray:
        """Whitens embeddings.

        Args:
            embeddings: [N, d], not normalised.
            normalize: True gives L2-normalised descriptors, to compare by cosine; False gives Φ(e).

        Returns:
            [N, k], float64.

        Raises:
            ValueError: for embeddings of another size, or not finite.
        """
        unit = unit_embeddings(np, self._checked(embeddings, "embeddings"), self.bias_channel)
        descriptors = whitened(np, unit, self.mean_, self.projection_)
        return unit_rows(np, descriptors) if normalize else descriptors

    def fold(self, kernel: ArrayLike, bias: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The classifier that reads whitened embeddings: w' = S⁻ᵀ w and b' = <w, μ>.

        With w a column of `kernel`, or of [kernel; bias] with the bias channel (where e stands for [e; 1]),
        `<w, e> = ||e|| (<w', Φ(e)> + b')` exactly; with k < D dimensions, for the part of ê that they keep.

        Args:
            kernel: [d, classes].
            bias: [classes] with the bias channel. None without: there it stays to be added to <w, e>.

        Returns:
            (kernel' [k, classes], bias' [classes]), float64.

        Raises:
            ValueError: for shapes that don't fit, or a bias missing or too many.
        """
        weights = self._weights(kernel, bias)
        return self.inverse_ @ weights, self.mean_ @ weights

    def fold_completely(
        self, kernel: ArrayLike, bias: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`fold` for the whole embedding, also where the whitening keeps k < D dimensions: nothing of a class is lost.

        Φ is completed by r = min(D - k, classes) further values, the coordinates of ê - μ along an orthonormal basis,
        not scaled, of what the classifier reads beside what comes back from Φ; none for k = D. In directions that are
        in neither, its weights are 0. So `<w, e> = ||e|| (<w', Φ(e)> + b')` is exact again.

        Args:
            kernel, bias: as `fold` takes them.

        Returns:
            (projection [D, k + r], kernel' [k + r, classes], bias' [classes]), float64. The first k columns of the
            projection are `projection_`, and the first k rows of kernel' and bias' are what `fold` gives.

        Raises:
            ValueError: as `fold`.
        """
        folded, offset = self.fold(kernel, bias)
        # w - Sᵀ R w, which Φ does not give back, is orthogonal to the rows of R
        complement = np.linalg.qr(self.inverse_.T, "complete")[0][:, self.projection_.shape[1] :]
        lost = self._weights(kernel, bias) - self.projection_ @ folded
        # a basis of the complement may be turned at will: so that the classifier reads the first r of it alone
        turn, rest = np.linalg.qr(complement.T @ lost)
        projection = np.concatenate([self.projection_, complement @ turn], axis=1)
        return projection, np.concatenate([folded, rest], axis=0), offset

    def undo(self, descriptors: ArrayLike) -> np.ndarray:
        """ê from unit-norm whitened descriptors: exactly, or with k < D dimensions approximately (see `unwhitened`).

        With the bias channel, the embedding is `ê[:, :-1] / ê[:, -1:]` and the logits `ê @ [kernel; bias] / ê[:, -1:]`.

        Args:
            descriptors: [N, k], as `transform` gives them; their norms don't matter.

        Returns:
            [N, D], float64, of squared norm 1 - discarded_variance_.

        Raises:
            ValueError: for descriptors of another size, or not finite.
        """
        descriptors = _checked(descriptors, "descriptors", self.projection_.shape[1])
        return unwhitened(np, descriptors, self.mean_, self.inverse_, self.discarded_variance_)[1]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the whitening to `path` (.npz), whole or not at all. Missing parent folders are made.

        Raises:
            UserError: when it can't be written there.
        """
        try:
            # Through an open file, since NumPy adds .npz to names without it.
            with atomic_path(path) as partial, open(partial, "wb") as file:
                np.savez(
                    file,
                    mean=self.mean_,
                    projection=self.projection_,
                    bias_channel=self.bias_channel,
                    discarded_variance=self.discarded_variance_,
                    **({"inverse": self.inverse_} if self.has_own_inverse else {}),
                )
        except OSError as error:
            raise UserError(f"the whitening can't be written to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: when `path` can't be read, or isn't a whitening.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                # files from before dimensions could be discarded don't say how much was
                discarded = float(arrays["discarded_variance"]) if "discarded_variance" in arrays else 0.0
                inverse = arrays.get("inverse")
                return cls(arrays["mean"], arrays["projection"], bool(arrays["bias_channel"]), discarded, inverse)
        except (*BROKEN_ARRAYS, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} can't be read as a whitening, a .npz file made by Whitening.save: {error}"
            ) from error

    def _weights(self, kernel, bias):
        """The classifier's weights for ê [D, classes]: `kernel`, with the bias channel over `bias`."""
        if self.bias_channel == (bias is None):
            raise ValueError(
                "a bias folds in with the bias channel and only with it, "
                f"received bias={'None' if bias is None else 'given'} and bias_channel={self.bias_channel}"
            )
        kernel = np.asarray(kernel, np.float64)
        if bias is not None:
            kernel = np.concatenate([kernel, np.asarray(bias, np.float64)[None]], axis=0)
        if kernel.ndim != 2 or len(kernel) != len(self.mean_):
            raise ValueError(
                f"kernel with its bias must be [{len(self.mean_)}, classes], received shape {kernel.shape}"
            )
        return kernel

    def _checked(self, embeddings, name):
        return _checked(embeddings, name, len(self.mean_) - self.bias_channel)


def check_fit(count: int, size: int, shrinkage: float | None = None, dimensions: int | None = None) -> None:
    """Refuses what `Whitening.fit` can't do, before embeddings are computed for it.

    Args:
        count: N, number of embeddings.
        size: D, values of ê: the embedding size, plus 1 with the bias channel.
        shrinkage, dimensions: as `Whitening.fit` takes them.

    Raises:
        ValueError: a `shrinkage` outside (0, 1], `dimensions` that is no whole number in 1 … D, or too few embeddings:
            without `shrinkage`, one more than the dimensions kept are needed.
    """
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage must be None or in (0, 1], received {shrinkage}")
    kept = kept_dimensions(dimensions, size)
    if count < 2:
        raise ValueError(f"whitening needs at least 2 embeddings, received {count}")
    if shrinkage is None and count < kept + 1:
        raise ValueError(
            f"whitening {kept} dimensions needs at least {kept + 1} embeddings, received {count}: "
            "give more photos, keep fewer dimensions, or take a shrinkage such as 0.1"
        )


def class_agreement(
    whitening: Whitening, embeddings: np.ndarray, labels: ArrayLike, classify: Callable
) -> dict[str, float]:
    """What is lost when the class is read from the unit-norm whitened descriptor in place of the embedding.

    The descriptor is undone (`Whitening.undo`) and classified. With all dimensions kept that is exact, and only ties
    can fall otherwise.

    Args:
        whitening: a `Whitening` with the bias channel.
        embeddings: [N, d], not normalised.
        labels: integers [N]; -1: no label.
        classify: embeddings [N, d] -> logits [N, C].

    Returns:
        dict: `class_agreement`, the share of embeddings whose class is the same from both; `top1_embedding` and
        `top1_descriptor`, the shares of those with a label that are classified as it says, where there are any.

    Raises:
        ValueError: a whitening without the bias channel, whose descriptors don't hold the embedding's norm; no
            embeddings.
    """
    if not whitening.bias_channel:
        raise ValueError("classes come back from a whitening with the bias channel, received one without")
    if not len(embeddings):
        raise ValueError("class agreement needs at least 1 embedding, received 0")
    unit = whitening.undo(whitening.transform(embeddings))
    full, reduced = (np.argmax(classify(rows), axis=1) for rows in (embeddings, unit[:, :-1] / unit[:, -1:]))
    labels = np.asarray(labels)
    known = labels >= 0
    shares = {"class_agreement": full == reduced}
    if known.any():
        shares["top1_embedding"] = full[known] == labels[known]
        shares["top1_descriptor"] = reduced[known] == labels[known]
    return {name: float(np.mean(hits)) for name, hits in shares.items()}


def _checked(rows, name, size=None):
    """`rows` as a finite float64 matrix of `size` columns (None: any number)."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or (size is not None and rows.shape[1] != size):
        raise ValueError(f"{name} must be [N, {'d' if size is None else size}], received shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{name} must be finite, received NaN or infinite values in {(~np.isfinite(rows)).any(1).sum()} rows"
        )
    return rows
