"""What the objectives share that compare a linear projection of the embedding, beside an online classifier."""

import dataclasses

import keras
import tensorflow as tf

from mg_keras.models import Network
from mg_keras.objectives.batches import Batch
from mg_keras.objectives.classification import CLASSIFICATION_LOSS, classification_values
from mg_keras.objectives.objective import Objective

ONLINE_CLASSIFIER = dataclasses.replace(CLASSIFICATION_LOSS, curve="online classifier")


class Projected(Objective):
    """An objective with a projector g, linear, whose L2-normalised answers are compared.

    Where no term of it is the classifier's, the classifier is trained online, on embeddings that get no gradient from
    it: accuracies, the choice of the best checkpoint and an exported model have their classes, and the descriptor is
    what it would be without.

    Args:
        network: `Network`, whose embedding is projected.
        dimensions: of the projection.
    """

    needs_instances = True

    def __init__(self, network: Network, dimensions: int, **kwargs):
        super().__init__(**kwargs)
        self.projector = projector_of(network, dimensions)

    @staticmethod
    def check_versions(network: Network, versions: int) -> None:
        """Refuses another number of versions than a network is trained with, where it says one.

        Raises:
            ValueError: they differ.
        """
        if (expected := getattr(network, "versions", versions)) != versions:
            raise ValueError(f"versions must be the network's, {expected}, received {versions}")

    @property
    def projection(self) -> tuple[keras.Variable, keras.Variable]:
        """See `Objective.projection`."""
        return self.projector.kernel, self.projector.bias

    def online_classifier(self, network: Network, batch: Batch, embedding: tf.Tensor) -> dict[str, tf.Tensor]:
        """`classification_loss`, `top1` and `top5` of a classifier whose gradient ends at the embedding."""
        logits = network.classifier(tf.stop_gradient(embedding))
        return classification_values(batch.labels, logits, batch.weights)


def projector_of(network: Network, dimensions: int, name: str = "projector") -> keras.layers.Dense:
    """A new linear layer from the embedding of a network, in float32."""
    projector = keras.layers.Dense(dimensions, dtype="float32", name=name)
    projector.build((None, network.embedding_dimension))
    return projector
