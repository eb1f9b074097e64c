"""What a training run is: every value that can be set, its default and its meaning."""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal

import yaml

from mg_keras.errors import UserError


@dataclasses.dataclass
class TrainConfig:
    """Everything that decides what a run learns. The defaults are the paper's (section 4.1).

    Args:
        data: `demo`, `folder:PATH` or `tfds:NAME`.
        data_dir: where generated and downloaded data are kept; null: the caches in the home folder.
        unlabelled: folder of photos to fit the whitening on, or `training` for the training photos; null: the source's
            own, or else its training photos.
        train_per_class: training photos a class, for a source without its own split; null: all that are left.
        val_per_class: validation photos a class at most; null: by `val_fraction`.
        val_fraction: share of each class held out for validation.
        resolution: pixels of the square training crops.
        augmentation: `full`, `standard`, `autoaugment` or `none`.
        versions: m, versions of an image in a batch (repeated augmentations); 1 is ordinary sampling.
        trunk: a name of `mg_keras.models.trunks.TRUNKS`.
        init: what the weights start from: `imagenet`, the folder of a run, or a file (.pth, .safetensors, .weights.h5,
            .keras); null: fresh ones. The classifier is taken over where the classes are the same.
        frozen_stages: stages of the trunk, from the image on, that are not trained; stage k ends where the feature map
            has 1 / 2^k of the image's side.
        trunk_rate: times the learning rate, for the trunk; below 1 for one that was trained before.
        pooling_exponent: p of GeM in training.
        classification_weight: lambda; 1 is cross-entropy alone.
        class_balance: `weights` weighs the cross-entropy of an image by its class, inversely to the class's number of
            training photos (`mg_keras.training.class_balance`); `none` counts images alike.
        margin: alpha of the margin loss.
        initial_beta: where the learnt threshold of the margin loss starts.
        margin_normalization: `pairs` (the paper's) or `active` (the reference's).
        batch_size: items in a step, over all replicas.
        accumulation_steps: parts that a replica's batch is passed in, one after the other.
        epochs: epochs in all.
        iterations: steps in an epoch.
        learning_rate: of the weights, before the schedule.
        beta_learning_rate: of beta; the schedule scales it too.
        momentum: of SGD, for both.
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
        keep_checkpoints: how many of the last checkpoints stay (the best one besides).
        on_bad_image: `skip` unusable photos and list them in bad_images.txt, or `fail` at the first.
        evaluation_resolutions: pixels at which to choose p* and measure; null: the training size, 1.5 and 2 times it.
        in_aug_per_class: training images a class for IN-aug.
        max_whitening_photos: photos to fit the whitening on at most.
        whitening_shrinkage: s in 0-1 of `Whitening.fit`, for fewer photos than dimensions; null: none.
        whitening_dimensions: values of a whitened descriptor, those of largest variance; null: all of them.
    """

    data: str = "demo"
    data_dir: str | None = None
    unlabelled: str | None = None
    train_per_class: int | None = None
    val_per_class: int | None = None
    val_fraction: float = 0.2
    resolution: int = 224
    augmentation: str = "full"
    versions: int = 3
    trunk: str = "resnet50"
    init: str | None = None
    frozen_stages: int = 0
    trunk_rate: float = 1.0
    pooling_exponent: float = 3.0
    classification_weight: float = 0.5
    class_balance: Literal["none", "weights"] = "none"
    margin: float = 0.2
    initial_beta: float = 1.2
    margin_normalization: Literal["pairs", "active"] = "pairs"
    batch_size: int = 512
    accumulation_steps: int = 1
    epochs: int = 120
    iterations: int = 5005
    learning_rate: float = 0.1
    beta_learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[int] = dataclasses.field(default_factory=lambda: [30, 60, 90])
    decay: float = 0.1
    warmup_epochs: float = 0.0
    dtype: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool = False
    deterministic: bool = False
    seed: int = 0
    val_every: int = 1
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    on_bad_image: Literal["skip", "fail"] = "skip"
    evaluation_resolutions: list[int] | None = None
    in_aug_per_class: int = 2
    max_whitening_photos: int = 20_000
    whitening_shrinkage: float | None = None
    whitening_dimensions: int | None = None

    def __post_init__(self):
        for name in ("resolution", "versions", "batch_size", "accumulation_steps", "epochs", "iterations", "val_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, received {getattr(self, name)}")
        for name in ("learning_rate", "pooling_exponent", "trunk_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be greater than 0, received {getattr(self, name)}")
        if not 0 <= self.classification_weight <= 1:
            raise UserError(f"classification_weight must lie in 0-1, received {self.classification_weight}")
        if self.classification_weight < 1 and self.versions < 2:
            raise UserError(
                f"versions {self.versions} gives no positive pairs: take at least 2, or classification_weight 1"
            )

    @property
    def resolutions(self):
        """The resolutions to measure at, the training resolution first."""
        wanted = self.evaluation_resolutions or [self.resolution * 3 // 2, self.resolution * 2]
        return [self.resolution, *(value for value in wanted if value != self.resolution)]

    def part_size(self, replicas):
        """Items in one part of one replica's batch.

        Raises:
            UserError: the batch can't be divided so, or a part can't hold two photos in `versions` versions.
        """
        parts = replicas * self.accumulation_steps
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} can't be divided over {replicas} replicas x {self.accumulation_steps} "
                f"accumulation steps: take a multiple of {parts}"
            )
        size = self.batch_size // parts
        if self.classification_weight < 1 and size <= self.versions:
            raise UserError(
                f"a batch of {size} for each replica and accumulation step is too small for {self.versions} versions "
                f"of an image: take at least {self.versions + 1}, so that every image has another to differ from"
            )
        return size

    def save(self, path):
        """Writes the values as YAML."""
        Path(path).write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            UserError: a value has no meaning here.
        """
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise UserError(f"{path}: unknown setting {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        return cls(**values)

    def differences(self, other):
        """Lines `name: this value -> other's value`, for all that is not the same."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{name}: {mine[name]} -> {theirs[name]}" for name in mine if mine[name] != theirs[name]]
