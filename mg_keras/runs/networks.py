"""The network of a run's settings."""

import keras

from mg_keras.models import MultiGrain


def build_model(config, num_classes):
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
        )
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
