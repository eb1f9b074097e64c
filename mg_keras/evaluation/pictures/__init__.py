"""Pictures that a person looks at after a run, as PNG, one subject a file."""

from mg_keras.evaluation.pictures.ablation import ablation_picture, lengths_picture, trade_picture
from mg_keras.evaluation.pictures.activations import activation_picture
from mg_keras.evaluation.pictures.curves import training_curves
from mg_keras.evaluation.pictures.exponents import exponent_picture, sweep_picture
from mg_keras.evaluation.pictures.retrieval import Photo, retrieval_picture
from mg_keras.evaluation.pictures.scores import scores_picture

__all__ = [
    "Photo",
    "ablation_picture",
    "activation_picture",
    "exponent_picture",
    "lengths_picture",
    "retrieval_picture",
    "scores_picture",
    "sweep_picture",
    "trade_picture",
    "training_curves",
]
