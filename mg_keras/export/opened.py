"""An exported SavedModel as a network: TensorFlow and no Keras."""

import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import tensorflow as tf

from mg_keras.errors import UserError
from mg_keras.export.files import ExportedFiles
from mg_keras.poolings import RMAC


class Exported(ExportedFiles):
    """A SavedModel that mg-keras export wrote; a network of `mg_keras.embedding.photos`.

    Its descriptors are those that it serves: of unit norm and, where it was exported with a whitening, whitened.
    The graph takes one exponent an image, so unlike `MultiGrain` it runs the trunk anew for each pooling.
    What is known of it is what `ExportedFiles` says.

    Attributes:
        served: (images float32 [B, H, W, 3], p_star float32 [B]) -> dict of tensors: the signature `serving_default`.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        try:
            # the signatures work only as long as the object they came with
            self._loaded = tf.saved_model.load(str(self.path))
            self.served = self._loaded.signatures["serving_default"]
            self._classify = self._loaded.signatures["classify_embedding"]
        # what a damaged file makes TensorFlow raise is one of many types
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, tf.errors.OpError) as error:
            raise self._not_exported(error) from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Opens a SavedModel.

        Args:
            path: the folder of a version, `models/multigrain/1`, or of the model, `models/multigrain`, whose newest
                version is taken.

        Returns:
            `Exported`.

        Raises:
            UserError: there is no SavedModel, or one that mg-keras export did not write.

        Example:
            >>> network = Exported.load("models/multigrain")  # doctest: +SKIP
            >>> found = embed(network, photos("holiday"), 500, network.train_resolution, [4.0])  # doctest: +SKIP
        """
        return cls(path)

    def embed_batch(self, images: tf.Tensor, poolings: Sequence[float | str | None]) -> tf.Tensor:
        """Descriptors of images at several exponents.

        Args:
            images: RGB in 0-255, float32 [B, H, W, 3], any H and W.
            poolings: tuple of exponents p* > 0, numbers or scalar tensors, or None for the training exponent.

        Returns:
            float32 [P, B, D], unit norm.

        Raises:
            UserError: a pooling is `RMAC`.
        """
        if any(isinstance(pooling, str) and pooling == RMAC for pooling in poolings):
            raise UserError(f"{self.path} pools by GeM alone: R-MAC needs the run that it was exported from")
        exponents = [self.pooling_exponent if pooling is None else pooling for pooling in poolings]
        count = tf.shape(images)[:1]
        return tf.stack(
            [
                self.served(images=images, p_star=tf.fill(count, tf.cast(value, tf.float32)))["embedding"]
                for value in exponents
            ]
        )

    def embed_and_classify(self, images: tf.Tensor, pooling: float | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Descriptors [B, D] and class logits [B, C] of images, the logits of what the whitening left out as well.

        Args:
            images: as `embed_batch` takes them.
            pooling: an exponent p* > 0, or None for the training exponent.
        """
        exponent = self.pooling_exponent if pooling is None else float(pooling)
        found = self.served(images=images, p_star=tf.fill(tf.shape(images)[:1], exponent))
        return found["embedding"], found["logits"]

    def classify(self, embeddings: np.ndarray) -> np.ndarray:
        """Class logits, NumPy float32 [N, C], of descriptors [N, D] as `embed_batch` gives them.

        A row with a NaN, as clients leave for a photo that could not be used, is no descriptor and gets logits NaN.

        Raises:
            tf.errors.InvalidArgumentError: a descriptor is infinite or all 0.
        """
        embeddings = np.asarray(embeddings, np.float32)
        logits = np.full((len(embeddings), self.about["num_classes"]), np.nan, np.float32)
        known = ~np.isnan(embeddings).any(axis=1)
        if known.any():
            logits[known] = self._classify(embedding=tf.constant(embeddings[known]))["logits"]
        return logits
