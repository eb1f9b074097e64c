"""From which similarity on two photos are copies, or show the same thing.

A model may bring what was measured of it, `{"copy": {"0.9": 0.6, "0.99": 0.75}, "instance": {...}}`: for each kind, the
share of pairs above a similarity that are right -> the similarity. For one that brings none they are estimated from
how similar photos of the album are that have nothing to do with each other: with m the mean similarity of random pairs,

    t = max(m + f (1 - m), m + z s)

where f is 0.55 (copies) or 0.40 (instances) at 0.9, 0.70 or 0.55 at 0.99, s is their standard deviation and z s what,
were they normal, a photo's most similar stranger in the album exceeds once in 50 photos. t is at most m + 0.95 (1 - m).
That is a rule of thumb: what is found by it is to be looked at.
"""

import statistics
from collections.abc import Callable, Mapping

import numpy as np

from mg_keras.errors import UserError

COPY, INSTANCE = "copy", "instance"

_SHARES = {COPY: {"0.9": 0.55, "0.99": 0.70}, INSTANCE: {"0.9": 0.40, "0.99": 0.55}}
_PAIRS = 20_000
_STRANGERS = 0.02

Thresholds = Mapping[str, Mapping[str, float]]


def estimated(descriptors: np.ndarray, used: np.ndarray, photos: int | None = None) -> dict[str, dict[str, float]]:
    """Thresholds of a model that brings none.

    Args:
        descriptors: [N, D] of unit norm.
        used: bool [N], the rows that are a photo's.
        photos: how many there are in all, where these are some of them.
    """
    rows = np.flatnonzero(used)
    rng = np.random.default_rng(0)
    mean, spread, deviations = 0.0, 0.0, 0.0
    if len(rows) > 1:
        # few rows, read in order, in many pairs
        chosen = np.sort(rng.choice(rows, min(len(rows), 1000), replace=False))
        values = np.asarray(descriptors[chosen], np.float32)
        one, other = rng.integers(len(chosen), size=(2, _PAIRS))
        similarities = np.sum(values[one] * values[other], axis=1)[one != other]
        # an album of copies alone says nothing of strangers
        mean, spread = min(max(float(similarities.mean()), 0.0), 0.9), float(similarities.std())
        deviations = statistics.NormalDist().inv_cdf(1 - _STRANGERS / (photos or len(rows)))
    return {
        kind: {
            share: round(min(max(mean + part * (1 - mean), mean + deviations * spread), mean + 0.95 * (1 - mean)), 4)
            for share, part in parts.items()
        }
        for kind, parts in _SHARES.items()
    }


def completed(brought: Thresholds | None, estimate: Callable[[], Thresholds]) -> Thresholds:
    """What a model brings, and what is estimated of a kind of which it brings nothing.

    Args:
        brought: by the model; None: nothing.
        estimate: gives what is estimated.
    """
    known = {kind: values for kind, values in (brought or {}).items() if values}
    return known if {COPY, INSTANCE} <= known.keys() else {**estimate(), **known}


def pick(thresholds: Thresholds, kind: str, precision: float = 0.99) -> float:
    """The similarity from which on `precision` of the pairs are right; of the next higher share that is known.

    Instances are looked at and never moved: where none is known for so high a share, that of the highest is taken.

    Raises:
        UserError: none is known for so high a share of copies, or none at all.
    """
    known = {float(share): value for share, value in thresholds.get(kind, {}).items()}
    enough = [share for share in known if share >= precision - 1e-9]
    if not enough and kind == INSTANCE and known:
        enough = [max(known)]
    if not enough:
        shares = ", ".join(f"{share:g}" for share in sorted(known)) or "none"
        raise UserError(f"no threshold of {kind} is known for a precision of {precision:g}; known: {shares}")
    return float(known[min(enough)])


def check(brought: Thresholds | None, precision: float) -> None:
    """Refuses a precision of which no threshold of copies will be known, before there are photos.

    Args:
        brought: as `completed` takes it.
        precision: as `pick` takes it.

    Raises:
        UserError: as `pick`.
    """
    # the shares are the same, whatever the photos
    pick(completed(brought, lambda: estimated(np.empty((0, 1)), np.zeros(0, bool))), COPY, precision)


def pair(thresholds: Thresholds, precision: float) -> tuple[float, float]:
    """(of copies, of instances), as `pick` gives them, that of instances no higher: copies are instances, too."""
    copy, instance = (pick(thresholds, kind, precision) for kind in (COPY, INSTANCE))
    return copy, min(copy, instance)
