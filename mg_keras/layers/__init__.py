"""This project's own layers: pooling, triplet sampling, losses, a memory and whitening."""

from mg_keras.layers.distance_weighted_sampling import DistanceWeightedSampling
from mg_keras.layers.gem import GeM
from mg_keras.layers.info_nce import InfoNCE
from mg_keras.layers.instance_loss import InstanceLoss
from mg_keras.layers.koleo import KoLeo
from mg_keras.layers.margin_loss import MarginLoss
from mg_keras.layers.memory_bank import MemoryBank
from mg_keras.layers.moving_whitening import MovingWhitening
from mg_keras.layers.nearest_neighbor_loss import NearestNeighborLoss
from mg_keras.layers.rmac import RMAC
from mg_keras.layers.supervised_contrast import SupervisedContrast
from mg_keras.layers.whitening import Whitening

__all__ = [
    "RMAC",
    "DistanceWeightedSampling",
    "GeM",
    "InfoNCE",
    "InstanceLoss",
    "KoLeo",
    "MarginLoss",
    "MemoryBank",
    "MovingWhitening",
    "NearestNeighborLoss",
    "SupervisedContrast",
    "Whitening",
]
