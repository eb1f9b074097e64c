"""A network in inference by its optimised graph, without a SavedModel in between."""

from typing import Any

import numpy as np
import tensorflow as tf

from mg_keras.export.optimize import normalized, optimized_trunk
from mg_keras.models import Network
from mg_keras.models.levels import as_list


class Optimized:
    """Embeds as a `Network` does, to rounding, and about twice as fast; a network of `mg_keras.embedding.photos`.

    Args:
        network: its weights are copied: what is learnt later is not seen.
        precision: as `optimized_trunk` takes it.

    Attributes:
        preparation, precision: as a network of `mg_keras.embedding.photos` has them.
    """

    def __init__(self, network: Network, precision: str = "float32"):
        self.network = network
        self.preparation = network.preparation
        self._trunk = optimized_trunk(network.mapper, precision)
        self.precision = precision

    def embed_batch(self, images: tf.Tensor, poolings: tuple[Any, ...]) -> tf.Tensor:
        """As `Network.embed_batch`."""
        maps = as_list(self._trunk(normalized(images, *self.network.pixel_scaling)))
        return tf.stack([self.network.pooled(maps, pooling) for pooling in poolings])

    def classify(self, embeddings: np.ndarray) -> np.ndarray:
        """As `Network.classify`."""
        return self.network.classify(embeddings)

    def fingerprint(self) -> str:
        """As `Network.fingerprint`; descriptors in bfloat16 alone are too far from the others to be taken for them."""
        return self.network.fingerprint() + ("-bfloat16" if self.precision == "bfloat16" else "")
