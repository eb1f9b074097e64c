"""The photos of a run's settings."""

import numpy as np

from mg_keras.data import sources
from mg_keras.data.sources import Source
from mg_keras.runs.config import TrainConfig


def open_source(settings: TrainConfig) -> Source:
    """Opens the photos that a run's settings name.

    Raises:
        UserError: they are not there, or can't be divided as the settings ask for.
    """
    options = sources.SplitOptions(
        settings.train_per_class, settings.val_per_class, settings.val_fraction, settings.seed
    )
    # the demo set is drawn at the largest size that it will be seen at
    resolution = int(np.clip(max(settings.resolutions), 32, 512))
    return sources.open_source(settings.data, options, resolution=resolution, data_dir=settings.data_dir)
