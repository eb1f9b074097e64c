"""MultiGrain's own layers: pooling, triplet sampling, losses and whitening."""

from mg_keras.layers.distance_weighted_sampling import DistanceWeightedSampling
from mg_keras.layers.gem import GeM
from mg_keras.layers.info_nce import InfoNCE
from mg_keras.layers.koleo import KoLeo
from mg_keras.layers.margin_loss import MarginLoss
from mg_keras.layers.rmac import RMAC
from mg_keras.layers.whitening import Whitening

__all__ = ["RMAC", "DistanceWeightedSampling", "GeM", "InfoNCE", "KoLeo", "MarginLoss", "Whitening"]
