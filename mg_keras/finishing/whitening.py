"""The whitening of a network's descriptors at one resolution (section 3.4), and what it costs in classes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mg_keras.data import augmentations
from mg_keras.data.sources import Split
from mg_keras.embedding.embedder import Embedder
from mg_keras.embedding.photos import embed_versions
from mg_keras.embedding.whitening import Whitening, check_fit, class_agreement
from mg_keras.errors import UserError
from mg_keras.finishing.contrast import contrasted
from mg_keras.poolings import RMAC
from mg_keras.whitening_formulas import unit_embeddings


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a whitening is fitted.

    Attributes:
        shrinkage: as `Whitening.fit` or, with versions, `Whitening.fit_on_versions` takes it; None: its default.
        dimensions: k, values of a descriptor; None: all of them.
        versions: 0: by PCA; more: learned from so many versions of each photo by each recipe.
        augmentations: the recipes, names of `mg_keras.data.augmentations`.
        seed: of the versions.
        power: α of `Whitening.fit_on_versions`.
        steps: of `contrast.contrasted`, by which one that is learned from versions is trained further.

    Raises:
        UserError: it is to be learned from versions that are like their photos.
    """

    shrinkage: float | None = None
    dimensions: int | None = None
    versions: int = 0
    augmentations: Sequence[str] = ("full",)
    seed: int = 0
    power: float = 1.0
    steps: int = 0

    def __post_init__(self):
        if self.versions and set(self.augmentations) == {"none"}:
            raise UserError(
                f"whitening_versions {self.versions} learns from what edits change, and the augmentation none changes "
                "nothing: take whitening_augmentations such as [copies], or 0 versions"
            )

    def check(self, count: int, embedding_dimension: int, kind: str) -> None:
        """Refuses, before photos are embedded, what can't be fitted on so many.

        Raises:
            UserError: there are too few photos for the dimensions, or a setting is out of range.
        """
        with _refused(count, kind):
            check_fit(count, embedding_dimension + 1, None if self.versions else self.shrinkage, self.dimensions)

    def fit(
        self, embeddings: np.ndarray, versions: np.ndarray | None, logits: np.ndarray | None, label: str
    ) -> Whitening:
        """A `Whitening` of embeddings [N, d]; `versions` [N, V, d], where there are any.

        `logits` [N, C] are for its training, where it is trained: None where there are none. `label` names that.
        """
        if versions is None:
            return Whitening.fit(embeddings, shrinkage=self.shrinkage, dimensions=self.dimensions)
        given = {"power": self.power} if self.shrinkage is None else {"power": self.power, "shrinkage": self.shrinkage}
        whitening = Whitening.fit_on_versions(embeddings, versions, dimensions=self.dimensions, **given)
        if self.steps:
            whitening = contrasted(whitening, embeddings, versions, self.steps, self.seed, logits, label=label)
        return whitening


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Whitenings at one resolution.

    Attributes:
        whitenings: pooling -> `Whitening`, that of p* first.
        entry: how that one was fitted, on how many photos, and what it costs, as whitening.json holds it.
    """

    whitenings: dict[float | str, Whitening]
    entry: dict[str, Any]


def fit_whitening(
    embedder: Embedder,
    photos: Split,
    size: int,
    poolings: Sequence[float | str],
    how: Fit,
    kind: str,
    val: Split | None = None,
    measure_classes: bool = False,
) -> Fitted:
    """Fits the whitening, with the bias channel, on photos embedded at one resolution.

    Args:
        embedder: of the network.
        photos: to fit it on.
        size: s*, pixels.
        poolings: p*, and other exponents and `"rmac"` to fit a whitening for, too, from the same run of the trunk.
        how: `Fit`.
        kind: what the photos are, for messages and the entry.
        val: photos to measure on how far the class read from the descriptor is the one read from the embedding.
        measure_classes: whether to measure that where nothing is left out, too; then it is so by construction.

    Returns:
        `Fitted`.

    Raises:
        UserError: too few photos can be used for the dimensions.
    """
    wanted = list(dict.fromkeys(poolings))
    found = embedder.embed(photos, size, wanted, f"whitening at {size} px")
    versions = [None] * len(wanted)
    if how.versions:
        versions = _versions(embedder, photos.subset(found.rows), size, wanted, how)
    with _refused(len(found.rows), kind):
        fitted = {
            pooling: how.fit(
                values,
                edited,
                # the classifier reads GeM alone
                None if pooling == RMAC or not how.steps else embedder.network.classify(values),
                f"training the whitening at {size} px, pooling {pooling}",
            )
            for pooling, values, edited in zip(wanted, found.values, versions, strict=True)
        }
    whitening = fitted[wanted[0]]
    entry = _entry(whitening, wanted[0], how.shrinkage, len(found.rows), kind)
    if how.versions:
        entry |= {
            "versions": how.versions,
            "augmentations": list(how.augmentations),
            "power": how.power,
            "steps": how.steps,
        }
    if val is not None and (measure_classes or entry["dimensions"] < entry["embedding_dimensions"]):
        entry |= _classes_kept(whitening, _usable(embedder, val, size, wanted[0]), val, embedder.network)
    return Fitted(fitted, entry)


def _versions(embedder, photos, size, poolings, how):
    """[N, V, d] for each pooling: versions by all recipes."""
    found = [
        embed_versions(
            embedder.network,
            photos,
            augmentations.get(name),
            size,
            how.versions,
            poolings,
            how.seed,
            f"versions by {name!r} for the whitening at {size} px",
        ).values
        for name in how.augmentations
    ]
    of_each = [values.reshape(len(poolings), len(photos), how.versions, -1) for values in found]
    return np.concatenate(of_each, axis=2) if len(of_each) > 1 else of_each[0]


def projected(
    embedder: Embedder, val: Split, size: int, exponent: float, projection: Whitening, objective: str
) -> Fitted:
    """The projection that an objective trained, as the descriptor in place of a whitening that is fitted.

    Args:
        embedder: of the network.
        val: photos that tell what a descriptor keeps of the embedding and its class.
        size: s*, pixels.
        exponent: p*.
        projection: of `mg_keras.runs.projection.projection_of`.
        objective: its name.

    Returns:
        `Fitted`. The class of a photo stays what it is; of a stored descriptor it is approximate.

    Raises:
        UserError: no photo can be used.
    """
    found = _usable(embedder, val, size, exponent)
    whitening = _with_loss(projection, found.values[0])
    entry = _entry(whitening, exponent, None, 0, projection_kind(objective))
    entry |= _classes_kept(whitening, found, val, embedder.network)
    return Fitted({exponent: whitening}, entry)


def projection_kind(objective: str) -> str:
    """What the entry of a projection that `objective` trained says it was fitted on."""
    return f"projection of the objective {objective}"


def _entry(whitening, exponent, shrinkage, photos, kind):
    return {
        "p_star": exponent,
        "dimensions": whitening.projection_.shape[1],
        "embedding_dimensions": whitening.projection_.shape[0],
        "variance_kept": whitening.variance_kept_,
        "shrinkage": shrinkage,
        "photos": photos,
        "fitted_on": kind,
    }


def _usable(embedder, val, size, exponent):
    """The embeddings of validation photos, of which there are some."""
    found = embedder.embed(val, size, [exponent], f"class agreement at {size} px")
    if not len(found.rows):
        raise UserError("none of the validation photos can be used: class agreement can't be measured")
    return found


def _classes_kept(whitening, found, val, network):
    """How far descriptors keep the classes of embeddings, as the entry has it."""
    kept = class_agreement(whitening, found.values[0], val.labels[found.rows], network.classify)
    return {**kept, "validation_photos": len(found.rows)}


def _with_loss(projection, embeddings):
    """The projection, knowing how much of ê it leaves out of embeddings [N, d], on average."""
    unit = unit_embeddings(np, np.asarray(embeddings, np.float64), True)
    back = unit @ projection.projection_ @ projection.inverse_
    left_out = min(float(np.mean(np.sum((unit - back) ** 2, axis=1))), 1 - 1e-9)
    return Whitening(projection.mean_, projection.projection_, True, left_out)


@contextlib.contextmanager
def _refused(count: int, kind: str) -> Iterator[None]:
    """What the whitening refuses is for the user to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"whitening on {count} {kind}: {error}") from error
