"""A network in inference by its optimised graph, without a SavedModel in between."""

from typing import Any

import numpy as np
import tensorflow as tf

from mg_keras.export.optimize import normalized, optimized_trunk
from mg_keras.export.quantize import INT8, Observed, quantized_trunk
from mg_keras.models import Network
from mg_keras.models.levels import as_list


class Optimized:
    """Embeds as a `Network` does, to rounding, and about twice as fast; a network of `mg_keras.embedding.photos`.

    Args:
        network: its weights are copied: what is learnt later is not seen.
        precision: as `optimized_trunk` takes it; or `"int8"`, where `observed` is given.
        observed: what its convolutions read and give (`mg_keras.export.quantize.observe`).

    Attributes:
        preparation, precision: as a network of `mg_keras.embedding.photos` has them.

    Raises:
        ValueError: the precision is none of those, or `"int8"` without `observed`.
    """

    def __init__(self, network: Network, precision: str = "float32", observed: Observed | None = None):
        self.network = network
        self.preparation = network.preparation
        if precision == INT8:
            if observed is None:
                raise ValueError("int8 needs observed, what its convolutions read and give, received None")
            self._trunk = quantized_trunk(network.mapper, observed)
        else:
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
        """As `Network.fingerprint`; those in bfloat16 alone and in 8 bits are too far off to be taken for the same."""
        return self.network.fingerprint() + (f"-{self.precision}" if self.precision in ("bfloat16", INT8) else "")
