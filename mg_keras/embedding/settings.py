"""What decides descriptors beside the network, and how files of them say it; without TensorFlow."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from mg_keras.embedding.whitening import Whitening
from mg_keras.poolings import RMAC, checked

DECIDES = ("network", "resolution", "train_resolution", "pooling", "whitening")
"""Of what descriptors were made from: what decides them, whatever the photos are and however values are rounded."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How photos are described.

    Attributes:
        resolution: s*, pixels.
        train_resolution: pixels of the training crops.
        pooling: p* or `RMAC`; None: the training exponent.
        whitening: `mg_keras.Whitening`, which makes whitened descriptors of unit norm; None: as the network gives them.
        class_names: of the network's classifier, in the order of the logits: rows then have the likeliest class, except
            of `RMAC`, which the classifier can't read. None: no classes.

    Raises:
        ValueError: the pooling is neither a number > 0 nor `RMAC`.
    """

    resolution: int
    train_resolution: int
    pooling: float | str | None = None
    whitening: Whitening | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self):
        if self.pooling is not None:
            object.__setattr__(self, "pooling", checked(self.pooling))

    @property
    def named_classes(self) -> Sequence[str] | None:
        """The names of classes that rows have; None: they have none."""
        return None if self.pooling == RMAC else self.class_names

    def made_from(self, fingerprint: str, precision: str | None) -> dict[str, Any]:
        """What files of descriptors say of how they were made, for JSON.

        Args:
            fingerprint: the network's.
            precision: of `mg_keras.export.optimize.PRECISIONS`, what it computes in; None: it doesn't say.
        """
        names, whitening = self.class_names, self.whitening
        return {
            "network": fingerprint,
            "precision": precision,
            "resolution": self.resolution,
            "train_resolution": self.train_resolution,
            "pooling": "training" if self.pooling is None else self.pooling,
            "whitening": whitening and _hash(whitening.mean_.tobytes() + whitening.projection_.tobytes()),
            "class_names": None if names is None else _hash("\n".join(names).encode()),
        }


def _hash(content):
    return hashlib.sha256(content).hexdigest()
