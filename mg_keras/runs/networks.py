"""The network of a run's settings, and its objective."""

import keras

from mg_keras import objectives
from mg_keras.multigrain import MultiGrain
from mg_keras.objectives.objective import Objective
from mg_keras.runs.config import TrainConfig


def build_model(config: TrainConfig, num_classes: int) -> MultiGrain:
    """The untrained model of a configuration, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    keras.mixed_precision.set_dtype_policy(config.dtype)
    try:
        return MultiGrain(
            config.trunk,
            num_classes,
            pooling_exponent=config.pooling_exponent,
            margin=config.margin,
            initial_beta=config.initial_beta,
            margin_normalization=config.margin_normalization,
            versions=config.versions,
            seed=config.seed,
            levels=config.levels,
            preparation=config.preparation,
        )
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def build_objective(config: TrainConfig, model: MultiGrain, photos: int) -> Objective:
    """What the training of a configuration on so many photos minimises."""
    return objectives.get(config.objective).from_settings(model, config, photos)
