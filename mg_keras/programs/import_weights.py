"""Looks into a PyTorch checkpoint, and makes a run of it: mg-keras import-weights CHECKPOINT --run runs/NAME.

Without --run it only says what the file is. Nothing of the file is run, and PyTorch is not needed. The run's folder is
one that mg-keras evaluate, mg-keras choose-p-star, mg-keras whiten and mg-keras export take.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.checkpoints import snapshot
from mg_keras.errors import UserError
from mg_keras.pretrained import open_torch_checkpoint
from mg_keras.pretrained.layouts import MULTIGRAIN
from mg_keras.programs.common import Parser
from mg_keras.quiet import import_tensorflow
from mg_keras.runs.config import TrainConfig

if TYPE_CHECKING:
    from mg_keras.pretrained import Pretrained
    from mg_keras.runs.run import Run

# nothing was learnt here: no step, and no epoch to show
_META = {"step": 0, "seconds": 0.0, "history": [], "best": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, what the file is, and the run."""
    parser = Parser("mg-keras import-weights", __doc__)
    parser.add_argument("checkpoint", type=str, help="a .pth file: MultiGrain's, or a ResNet of torchvision")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--describe", action="store_true", help="only say what the file is, as without --run")
    what.add_argument("--run", type=str, help="the folder of a new run")
    parser.add_argument("--data", type=str, help="with --run: photos to measure on: what mg-keras train takes")
    parser.add_argument(
        "--class_names", type=str, help="with --run: a file, a class a line, in the order of the logits"
    )
    parser.add_argument("--strict", type=bool, default=True, help="refuse a file with tensors of unknown names (true)")
    options = parser.parse_args(arguments)
    if options.run and not options.data:
        raise UserError("--run needs --data, the photos that the run is measured on: what mg-keras train takes")
    if not options.run and (options.data or options.class_names):
        raise UserError("--data and --class_names are a run's: give --run, the folder of a new one")
    print(open_torch_checkpoint(options.checkpoint).describe())
    if options.run:
        make_run(options)


def make_run(options: Namespace) -> None:
    """The network and its folder."""
    names = options.class_names and read_names(Path(options.class_names))
    import_tensorflow()
    from mg_keras.pretrained import from_torch_checkpoint

    run, note = save_run(from_torch_checkpoint(options.checkpoint, names, options.strict), options.run, options.data)
    if note:
        print(f"note: {note}")
    print(f"written: {run.path}, for mg-keras evaluate --run {run.path} and what else takes a run")


def read_names(path: Path) -> list[str]:
    """The lines of a file."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of classes: {error}") from error


def save_run(pretrained: "Pretrained", folder: str | Path, data: str) -> "tuple[Run, str | None]":
    """Makes a run's folder of a network, which every program after training takes.

    The settings are the paper's (section 4.1): the training resolution 224, measured at 224, 500 and 800. What the
    checkpoint does not tell, such as lambda, has the paper's value; another layout's network, which no margin loss
    trained, has lambda 1. A whitening is kept as that of the training resolution and the training exponent, which is
    p* there until another is chosen.

    Args:
        pretrained: `Pretrained`.
        folder: of the new run.
        data: photos to choose p*, to whiten and to measure with, as `TrainConfig.data`. Their classes are the network's
            by name, or, if it knows no names and has as many, in the same order; where they are not, only what needs no
            classes can be measured.

    Returns:
        (run, note): `Run`, and a str on classes that are not the data's, or None.

    Raises:
        UserError: the folder holds something, the data cannot be opened, or they have classes that the network has not.
    """
    from mg_keras.runs.networks import build_model
    from mg_keras.runs.photos import open_source
    from mg_keras.runs.run import Run

    checkpoint, model = pretrained.checkpoint, pretrained.model
    baseline = {"classification_weight": 1.0, "versions": 1, "augmentation": "standard"}
    config = TrainConfig(
        data=data,
        trunk=checkpoint.trunk,
        pooling_exponent=checkpoint.pooling_exponent,
        evaluation_resolutions=[500, 800],
        **(baseline if checkpoint.layout is not MULTIGRAIN else {}),
    )
    source = open_source(config)
    names, note = _class_names(pretrained.class_names, source.class_names, model.num_classes, data)
    run = Run.start(folder, config)
    if run.checkpoints.paths():
        raise UserError(f"{folder} holds the checkpoints of a run: give another folder")
    run.save_class_names(names)
    run.save_data(source)
    if pretrained.whitening:
        _save_whitening(run, pretrained.whitening)
    # what a run trains has beta and random states beside the network
    trained = build_model(config, model.num_classes)
    trained.take_weights(model)
    # last: a run with a checkpoint is whole
    run.checkpoints.save(0, snapshot({"model": trained.state_variables}), _META)
    return run, note


def _save_whitening(run, whitening):
    size, exponent = run.settings.resolution, run.settings.pooling_exponent
    kept, embedding_size = whitening.projection_.shape[::-1]
    entry = {
        "p_star": exponent,
        "dimensions": kept,
        "embedding_dimensions": embedding_size,
        "variance_kept": whitening.variance_kept_,
        "fitted_on": "photos of whoever made the checkpoint",
    }
    whitening.save(run.results.whitening_path(size))
    run.results.save_whitening_report({size: entry})
    # it is of no other exponent's embeddings, so none is to be chosen here unless it is asked for
    run.results.save_p_star({size: exponent}, {}, {})


def _class_names(given, found, count, data):
    """(the names of the run's classes, a note or None)."""
    if len(found) > count:
        raise UserError(f"{data} has {len(found)} classes, of which the network, with {count}, can't tell all")
    if given is None and len(found) == count:
        return found, None
    given = given or [f"class {number}" for number in range(count)]
    if set(found) <= set(given):
        return given, None
    return given, (
        f"the {len(found)} classes of {data} are not the network's {count}, so class accuracy on them means nothing: "
        "measure with --benchmarks in_aug,copies"
    )
