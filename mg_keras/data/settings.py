"""What a run may be told of its photos."""

import dataclasses
from typing import Annotated, Literal

from mg_keras.data.augmentations import AugmentationName
from mg_keras.data.mixing import MixingName
from mg_keras.limits import Count, CountOrNull, Limits, Positive


@dataclasses.dataclass
class PhotoSettings:
    """Which photos a run learns from, and how they come into its batches.

    Args:
        data: `demo`, `folder:PATH`, `photos:PATH` (unlabelled), `csv:FILE`, `tfds:NAME`, `tfrecord:PATTERN` or
            `webdataset:PATTERN`. Of labels of several levels the first is trained on, and all are measured:
            `csv:FILE?label=coarse,fine`, `folder:PATH?label=coarse,fine`, `tfds:cifar100?label=coarse_label,label`.
        data_dir: where generated and downloaded data and indexes of shards are kept; null: the caches in the home
            folder.
        unlabelled: folder of photos to fit the whitening on, or `training` for the training photos; null: the source's
            own, or else its training photos.
        train_per_class: training photos a class, for a source without its own split; null: all that are left.
        val_per_class: validation photos a class at most; null: by `val_fraction`.
        val_fraction: share of each class held out for validation.
        resolution: pixels of the square training crops.
        augmentation: the recipe by which versions of a photo are made (`mg_keras.data.augmentations`); `copies` does
            what edits do to photos. Of a list, such as `[standard, copies, copies]`, recipes make versions in turn.
        mixing: how the images of a batch are mixed, and their labels with them (`mg_keras.data.mixing`), which the
            objective `classification` takes; or `none`.
        mixing_alpha: of the Beta distribution that their shares are drawn from.
        versions: m, versions of an image in a batch (repeated augmentations); 1 is ordinary sampling.
        on_bad_image: `skip` unusable photos and list them in bad_images.txt, or `fail` at the first.
    """

    data: str = "demo"
    data_dir: str | None = None
    unlabelled: str | None = None
    train_per_class: CountOrNull = None
    val_per_class: CountOrNull = None
    val_fraction: Annotated[float, Limits(above=0, below=1)] = 0.2
    resolution: Count = 224
    augmentation: AugmentationName | list[AugmentationName] = "full"
    mixing: MixingName = "none"
    mixing_alpha: Positive = 0.2
    versions: Count = 3
    on_bad_image: Literal["skip", "fail"] = "skip"

    @property
    def recipes(self) -> list[str]:
        """Those of `augmentation`, each once."""
        return [self.augmentation] if isinstance(self.augmentation, str) else list(dict.fromkeys(self.augmentation))
