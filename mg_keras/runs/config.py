"""What a training run is: every value that can be set, its default and its meaning.

Settings stand in the room that they are for: of photos in `mg_keras.data.settings`, of objectives in
`mg_keras.objectives.settings`, of checkpoints in `mg_keras.checkpoints`, all others here.
"""

import dataclasses
import difflib
import functools
import os
import typing
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader

from mg_keras import objectives
from mg_keras.checkpoints import Retention
from mg_keras.data.augmentations import AugmentationName
from mg_keras.data.settings import PhotoSettings
from mg_keras.errors import UserError
from mg_keras.limits import Count, CountOrNull, Limits, NotNegative, Positive, check
from mg_keras.objectives.settings import ObjectiveSettings
from mg_keras.poolings import Level

PLACES = ("data", "data_dir")
"""Settings that say where the photos lie, and nothing of what is learnt from them."""


@dataclasses.dataclass
class NetworkSettings:
    """The network of a run, and what it starts from.

    Args:
        trunk: a name of `mg_keras.models.trunks.TRUNKS`.
        init: what the weights start from: `package` (that of mg_keras), `imagenet`, the folder of a run, or a file
            (.pth, .safetensors, .weights.h5, .keras); null: random ones. The classifier is taken over where the classes
            are the same.
        frozen_stages: stages of the trunk, from the image on, that are not trained, and run in training as in a test;
            stage k ends where the feature map has 1 / 2^k of the image's side.
        frozen_statistics: keep batch normalisation of the trunk as it starts: statistics, scales and offsets.
        trunk_rate: times the learning rate, for the trunk; below 1 for one that was trained before.
        pooling_exponent: p of GeM in training.
        levels: further depths of the trunk whose pooled maps join the embedding, each `LAYER:EXPONENT:SCALE`, such as
            `block4c_:3:0.5` (`mg_keras.poolings.Level`); p* is the exponent of the trunk's last map alone.
        preparation: how photos are brought to the resolution that they are embedded at: `aspect` (the paper's: a square
            crop up to the resolution of training, the largest side beyond) or `squash` (to a square, without a crop).
    """

    trunk: str = "resnet50"
    init: str | None = None
    frozen_stages: Annotated[int, Limits(at_least=0)] = 0
    frozen_statistics: bool = False
    trunk_rate: Positive = 1.0
    pooling_exponent: Positive = 3.0
    levels: list[str] = dataclasses.field(default_factory=list)
    preparation: Literal["aspect", "squash"] = "aspect"


@dataclasses.dataclass
class TrainingSettings:
    """How a run is trained.

    Args:
        batch_size: items in a step, over all replicas.
        accumulation_steps: parts that a replica's batch is passed in, one after the other.
        epochs: epochs in all.
        iterations: steps in an epoch.
        learning_rate: of the weights, before the schedule.
        beta_learning_rate: of beta; the schedule scales it too.
        momentum: of SGD, for the weights and every parameter group.
        weight_decay: times the weight is added to the gradient.
        schedule: `step` (times `decay` after each milestone) or `cosine` (to zero).
        milestones: epochs after which the step schedule decays.
        decay: factor of the step schedule.
        warmup_epochs: epochs of linear rise of the cosine schedule.
        dtype: `float32` or `mixed_bfloat16`.
        jit_compile: compile the forward and backward pass with XLA.
        deterministic: the same bits on every run with a seed, at some cost in speed.
        seed: of everything random.
        val_every: epochs between validations.
        checkpoint_every: steps between checkpoints (one at the end of each epoch besides).
    """

    batch_size: Count = 512
    accumulation_steps: Count = 1
    epochs: Count = 120
    iterations: Count = 5005
    learning_rate: Positive = 0.1
    beta_learning_rate: NotNegative = 0.1
    momentum: Annotated[float, Limits(at_least=0, below=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    milestones: Annotated[list[int], Limits(at_least=0, rising=True)] = dataclasses.field(
        default_factory=lambda: [30, 60, 90]
    )
    decay: Annotated[float, Limits(above=0, at_most=1)] = 0.1
    warmup_epochs: NotNegative = 0.0
    dtype: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool = False
    deterministic: bool = False
    seed: Annotated[int, Limits(at_least=0, at_most=2**32 - 1)] = 0
    val_every: Count = 1
    checkpoint_every: Count = 500


@dataclasses.dataclass
class MeasuringSettings:
    """What is chosen, fitted and measured after training.

    Args:
        evaluation_resolutions: pixels at which to choose p* and measure beside the training size; null: 1.5 and 2 times
            it.
        in_aug_per_class: training images a class for IN-aug; of unlabelled ones, as many as of 100 classes.
        max_whitening_photos: photos to fit the whitening on at most.
        whitening_versions: 0 fits the whitening by PCA, as the paper does; more learn it from so many versions of each
            photo by each recipe (`Whitening.fit_on_versions`).
        whitening_augmentations: recipes of those versions; empty: that of the training.
        whitening_power: alpha in 0-1 of a learned one: from 0, where what versions change counts for little, to 1,
            where photos are white.
        whitening_steps: by which a learned one is trained further, versions of a photo against others and classes
            (`finishing.contrast`).
        whitening_shrinkage: s in 0-1 of the fit, for fewer photos than dimensions; null: none, or the default of a
            learned one.
        whitening_dimensions: values of a whitened descriptor, those of largest variance; null: all of them.
    """

    evaluation_resolutions: Annotated[list[int] | None, Limits(at_least=1)] = None
    in_aug_per_class: Count = 2
    max_whitening_photos: Count = 20_000
    whitening_versions: Annotated[int, Limits(at_least=0)] = 0
    whitening_augmentations: list[AugmentationName] = dataclasses.field(default_factory=list)
    whitening_power: Annotated[float, Limits(at_least=0, at_most=1)] = 1.0
    whitening_steps: Annotated[int, Limits(at_least=0)] = 0
    whitening_shrinkage: Annotated[float | None, Limits(above=0, at_most=1)] = None
    whitening_dimensions: CountOrNull = None


@dataclasses.dataclass
class TrainConfig(
    # dataclasses put the fields of the last base first: what is read first stands last
    MeasuringSettings,
    Retention,
    TrainingSettings,
    ObjectiveSettings,
    NetworkSettings,
    PhotoSettings,
):
    """Everything that decides what a run learns. The defaults are the paper's (section 4.1)."""

    def __post_init__(self):
        for name, value in vars(self).items():
            _check(name, value)
        for level in self.levels:
            Level.of(level)
        if self.samples_pairs and self.versions < 2:
            weighs = "" if objectives.needs_pairs(self.objective, 1) else ", or classification_weight 1"
            raise UserError(f"versions {self.versions} gives no positive pairs: take at least 2{weighs}")
        if self.mixing != "none" and not objectives.get(self.objective).takes_mixed_labels:
            takers = [name for name in objectives.NAMES if objectives.get(name).takes_mixed_labels]
            raise UserError(
                f"mixing {self.mixing} mixes labels, which the objective {self.objective} does not take: take "
                f"--objective {' or '.join(takers)}, or mixing none"
            )
        if not objectives.needs_labels(self.objective):
            if self.init is None:
                raise UserError(f"objective {self.objective} learns from the network it starts from: name it by init")
            if self.class_balance != "none":
                raise UserError(f"class_balance needs labels, which objective {self.objective} does not take: none")
        if not self.whitening_versions and (self.whitening_steps or self.whitening_augmentations):
            raise UserError(
                f"whitening_versions 0 fits by PCA, without whitening_steps ({self.whitening_steps}) and "
                f"whitening_augmentations ({self.whitening_augmentations}): take 1 or more, or 0 steps and []"
            )
        if not self.recipes:
            raise UserError("augmentation must be a recipe or a list of some; received []")
        recipes = self.whitening_augmentations
        if "none" in recipes or len(set(recipes)) < len(recipes):
            raise UserError(f"whitening_augmentations must change photos, and be named once; received {recipes}")
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs: take fewer of them"
            )

    @property
    def samples_pairs(self) -> bool:
        """Whether the objective needs pairs of versions of one photo."""
        return objectives.needs_pairs(self.objective, self.classification_weight)

    @property
    def resolutions(self) -> list[int]:
        """The resolutions to measure at, each once, the training resolution first."""
        wanted = self.evaluation_resolutions
        if wanted is None:
            wanted = [self.resolution * 3 // 2, self.resolution * 2]
        return list(dict.fromkeys([self.resolution, *wanted]))

    def part_size(self, replicas: int) -> int:
        """Items in one part of one replica's batch.

        Raises:
            UserError: the batch can't be divided so, a part can't hold two photos in `versions` versions, or a memory
                of `memory_size` the photos of a step.
        """
        parts = replicas * self.accumulation_steps
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} can't be divided over {replicas} replicas x {self.accumulation_steps} "
                f"accumulation steps: take a multiple of {parts}"
            )
        size = self.batch_size // parts
        if self.samples_pairs and size <= self.versions:
            raise UserError(
                f"a batch of {size} for each replica and accumulation step is too small for {self.versions} versions "
                f"of an image: take at least {self.versions + 1}, so that every image has another to differ from"
            )
        photos = -(-size // self.versions) * parts
        if self.memory_size is not None and self.memory_size < photos:
            raise UserError(f"memory_size must be at least {photos}, the photos of a step, received {self.memory_size}")
        return size

    def save(self, path: str | os.PathLike) -> None:
        """Writes the values as YAML."""
        Path(path).write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote, perhaps edited by hand since.

        Raises:
            UserError: it can't be read, or a setting is unknown or not what it may be.
        """
        values = read_settings(path)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def differences(self, other: Self, without: Collection[str] = ()) -> list[str]:
        """Lines `name: this value -> other's value`, for all that is not the same and not named in `without`."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        changed = [name for name in mine if mine[name] != theirs[name] and name not in without]
        return [f"{name}: {mine[name]} -> {theirs[name]}" for name in changed]


@functools.cache
def _kinds():
    """Setting -> what it may be, as `limits.check` takes it."""
    return typing.get_type_hints(TrainConfig, include_extras=True)


def _check(name, value):
    check(name, value, _kinds()[name])


def read_settings(path: str | os.PathLike, beside: Collection[str] = ()) -> dict[str, Any]:
    """The settings in a YAML file, each of them checked by itself.

    Args:
        path: the file, a line `name: value` for each of them.
        beside: names of what else may be in it, which is passed over.

    Returns:
        dict name -> value.

    Raises:
        UserError: it can't be read, or a setting is unknown or not what it may be; the message names the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        # for it, unlike for YAML 1.1, 1e-3 is a number
        values = get_loader("yaml")(text)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{path} is no YAML{where}: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: a line for each is wanted, such as `epochs: 10`")
    line_of = {}
    for key, _ in yaml.compose(text).value:
        line = key.start_mark.line + 1
        if key.value in line_of:
            # YAML would take the last of them
            raise UserError(f"{path}: {key.value} is set twice (lines {line_of[key.value]} and {line}): leave one")
        line_of[key.value] = line
    values = {name: value for name, value in values.items() if name not in beside}
    for name, value in values.items():
        if name not in _kinds():
            near = difflib.get_close_matches(str(name), _kinds(), 1)
            raise UserError(f"{path}: unknown setting {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        try:
            _check(name, value)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return values


class _SettingsFile(ActionConfigFile):
    """A file of settings on the command line; what is wrong in it is said with its name."""

    def __call__(self, parser, cfg, values, option_string=None):
        read_settings(values, beside=set(vars(parser.get_defaults())) - set(_kinds()))
        super().__call__(parser, cfg, values, option_string)


def add_settings(parser: ArgumentParser, help: str) -> None:
    """Adds `--config FILE`, with its help, and a flag for every setting to a `mg_keras.programs.common.Parser`."""
    parser.add_argument("--config", action=_SettingsFile, help=help)
    parser.add_class_arguments(TrainConfig)
    parser.kinds.update(_kinds())


def settings_of(options: Namespace) -> TrainConfig:
    """The `TrainConfig` of what a parser with `add_settings` has parsed.

    Raises:
        UserError: a setting is not what it may be, or some don't go together.
    """
    return TrainConfig(**{name: getattr(options, name) for name in _kinds()})
