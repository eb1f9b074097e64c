"""Makes a run of EfficientNet-Lite0 as it was trained on ImageNet: mg-keras imagenet --run runs/lite0 --data PHOTOS.

The weights come with the package of the extra `offline`. Where the data's classes are named by WordNet id, such as
n02110341, the classifier tells these apart; otherwise all 1000. The run's folder is one that mg-keras evaluate,
mg-keras choose-p-star, mg-keras whiten and mg-keras export take.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.programs.common import Parser
from mg_keras.programs.import_weights import save_run
from mg_keras.quiet import import_tensorflow
from mg_keras.runs.config import TrainConfig

if TYPE_CHECKING:
    from mg_keras.runs.run import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the network and the run."""
    parser = Parser("mg-keras imagenet", __doc__)
    parser.add_argument("--run", type=str, required=True, help="the folder of a new run")
    parser.add_argument("--data", type=str, required=True, help="photos to measure on: what mg-keras train takes")
    options = parser.parse_args(arguments)
    import_tensorflow()
    run, note = save_imagenet_run(options.run, options.data)
    if note:
        print(f"note: {note}")
    print(f"written: {run.path}, for mg-keras evaluate --run {run.path} and what else takes a run")


def save_imagenet_run(folder: str | Path, data: str) -> "tuple[Run, str | None]":
    """Makes a run's folder of `mg_keras.pretrained.lite0.imagenet_network`, as `save_run` does of any network.

    Args:
        folder: of the new run.
        data: photos to choose p*, to whiten and to measure with, as `TrainConfig.data`. If the names of their classes
            are WordNet ids of ImageNet's classes, the network tells these apart, otherwise all 1000.

    Returns:
        (run, note): as `save_run`.

    Raises:
        UserError: as `save_run`, or the package is not installed.
    """
    from mg_keras.pretrained.lite0 import class_ids, imagenet_network
    from mg_keras.runs.photos import open_source

    ids = set(class_ids())
    names = open_source(TrainConfig(data=data)).class_names
    return save_run(imagenet_network(names if names and ids.issuperset(names) else None), folder, data)
