"""The network of a run's settings, and its objective."""

import dataclasses
from typing import Any

import keras
import numpy as np

from mg_keras import objectives, pretrained
from mg_keras.data.sources import Source
from mg_keras.errors import UserError
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


def known_classes(run: Any, source: Source) -> tuple[list[str], Source]:
    """The classes that a run's network tells apart, and its photos with their labels numbered so.

    Where the objective needs no labels, the classes are those of the network that training starts from, and photos
    that were labelled with others count as unlabelled.

    Args:
        run: `Run`.
        source: `Source`, of `Run.matched`.

    Returns:
        (list of str, `Source`).

    Raises:
        UserError: the objective needs labels, and the photos have none; or the network has no classes.
    """
    config = run.settings
    if objectives.needs_labels(config.objective):
        if not source.class_names:
            raise UserError(
                f"{config.data} has no labels, which the objective {config.objective} needs: take --objective "
                "distilled_multigrain with --init"
            )
        return source.class_names, source
    begun = (run.path / "classes.txt").is_file()
    names = run.class_names if begun else pretrained.class_names(config.init, config.trunk, config.levels)
    if set(source.class_names) <= set(names):
        return names, source.with_classes(names) if source.class_names else source
    return names, _without_labels(source)


def _without_labels(source):
    def unlabelled(split):
        return dataclasses.replace(split, load_labels=lambda: np.full(len(split), -1, np.int32))

    train, val = map(unlabelled, (source.train, source.val))
    return dataclasses.replace(source, class_names=[], train=train, val=val)


def build_objective(config: TrainConfig, model: MultiGrain, photos: int) -> Objective:
    """What the training of a configuration on so many photos minimises."""
    return objectives.get(config.objective).from_settings(model, config, photos)
