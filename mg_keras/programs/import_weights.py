"""Looks into a PyTorch checkpoint, and makes a run of it: mg-keras import-weights CHECKPOINT --run runs/NAME.

Without --run it only says what the file is. Nothing of the file is run, and PyTorch is not needed. The run's folder is
one that mg-keras evaluate, mg-keras choose-p-star, mg-keras whiten and mg-keras export take. In place of a checkpoint,
`package` is the model in the package, and a folder is one of mg-keras pack: to fit its whitening to other photos.
"""

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.checkpoints import snapshot
from mg_keras.errors import UserError
from mg_keras.pretrained import PACKAGED, open_torch_checkpoint
from mg_keras.pretrained.layouts import MULTIGRAIN
from mg_keras.programs.common import Parser
from mg_keras.quiet import import_tensorflow
from mg_keras.runs.config import TrainConfig

if TYPE_CHECKING:
    from mg_keras.pretrained import Pretrained
    from mg_keras.pretrained.packed import Packed
    from mg_keras.runs.run import Run

# nothing was learnt here: no step, and no epoch to show
_META = {"step": 0, "seconds": 0.0, "history": [], "best": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, what the file is, and the run."""
    parser = Parser("mg-keras import-weights", __doc__)
    parser.add_argument(
        "checkpoint",
        type=str,
        help="a .pth file: MultiGrain's, or a ResNet of torchvision; or package, or a folder of mg-keras pack",
    )
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
    packed = _packed(options)
    print(packed.describe() if packed else open_torch_checkpoint(options.checkpoint).describe())
    if options.run:
        make_run(options, packed)


def _packed(options):
    """The packed network that is meant, or None."""
    if options.checkpoint != PACKAGED and not Path(options.checkpoint).is_dir():
        return None
    if options.class_names:
        raise UserError(f"{options.checkpoint} knows its classes: leave --class_names out")
    import_tensorflow()
    from mg_keras.pretrained.packed import PACKAGE, Packed

    return Packed(PACKAGE if options.checkpoint == PACKAGED else options.checkpoint)


def make_run(options: Namespace, packed: "Packed | None" = None) -> None:
    """The network and its folder."""
    names = options.class_names and read_names(Path(options.class_names))
    import_tensorflow()
    if packed:
        run, note = save_packed_run(packed, options.run, options.data)
    else:
        from mg_keras.pretrained import from_torch_checkpoint

        pretrained = from_torch_checkpoint(options.checkpoint, names, options.strict)
        run, note = save_run(pretrained, options.run, options.data)
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
    checkpoint = pretrained.checkpoint
    baseline = {"classification_weight": 1.0, "versions": 1, "augmentation": "standard"}
    config = TrainConfig(
        data=data,
        trunk=checkpoint.trunk,
        pooling_exponent=checkpoint.pooling_exponent,
        evaluation_resolutions=[500, 800],
        **(baseline if checkpoint.layout is not MULTIGRAIN else {}),
    )
    # the whitening is of no other exponent's embeddings, so none is to be chosen here unless it is asked for
    p_star = {config.resolution: config.pooling_exponent} if pretrained.whitening else {}
    return _save(folder, config, pretrained.model, pretrained.class_names, pretrained.whitening, p_star)


def save_packed_run(packed: "Packed", folder: str | Path, data: str) -> "tuple[Run, str | None]":
    """Makes a run's folder of a packed network, such as the model in the package.

    It has the settings of the training, p* and the whitening, as that of every resolution that it has a p* for.

    Args:
        packed: `Packed`.
        folder, data: as `save_run` takes them.

    Returns:
        (run, note): as `save_run`.

    Raises:
        UserError: as `save_run`.
    """
    about = packed.about
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {name: value for name, value in about.get("training", {}).items() if name in known}
    settings |= {name: about[name] for name in ("trunk", "pooling_exponent", "levels", "resolution")}
    # what it was whitened by may be another fit than the training's
    fit = about.get("whitening", {})
    settings |= {f"whitening_{name}": value for name, value in fit.items() if f"whitening_{name}" in known}
    sizes = {int(size): float(exponent) for size, exponent in about.get("p_star", {}).items()}
    sizes.setdefault(about.get("default_resolution") or about["resolution"], about["pooling_exponent"])
    config = TrainConfig(
        **{
            **settings,
            "preparation": packed.preparation,
            "data": data,
            "data_dir": None,
            "unlabelled": None,
            "evaluation_resolutions": sorted(sizes.keys() - {about["resolution"]}),
        }
    )
    names = about.get("class_ids") or about.get("class_names")
    return _save(folder, config, packed.network(), names, packed.whitening, sizes, fit)


def _save(folder, config, model, class_names, whitening, p_star, fit=None):
    """A run of a network, its p*, and its whitening at these resolutions; and a note on classes, or None.

    `fit`: what is known of how the whitening was fitted, entries of whitening.json.
    """
    from mg_keras.runs.networks import build_model
    from mg_keras.runs.photos import open_source
    from mg_keras.runs.results import ChosenExponent
    from mg_keras.runs.run import Run

    source = open_source(config)
    names, note = _class_names(class_names, source.class_names, model.num_classes, config.data)
    run = Run.at(folder, config)
    # before anything is written: a run of the same settings but for its places is another's all the same
    if run.checkpoints.paths():
        raise UserError(f"{folder} holds the checkpoints of a run: give another folder")
    run.save_settings()
    run.save_class_names(names)
    run.save_data(source)
    if whitening:
        _save_whitening(run, whitening, p_star, fit or {})
    if p_star:
        run.results.save_choices({size: ChosenExponent(exponent) for size, exponent in p_star.items()})
    # what a run trains has beta and random states beside the network
    trained = build_model(config, model.num_classes)
    trained.take_weights(model)
    # last: a run with a checkpoint is whole
    run.checkpoints.save(0, snapshot({"model": trained.state_variables}), _META)
    return run, note


def _save_whitening(run, whitening, p_star, fit):
    entry = {
        **fit,
        "dimensions": whitening.projection_.shape[1],
        "embedding_dimensions": whitening.projection_.shape[0],
        "variance_kept": whitening.variance_kept_,
        "fitted_on": "photos of whoever made the checkpoint",
    }
    for size in p_star:
        whitening.save(run.results.whitening_path(size))
    run.results.save_whitening_report({size: {"p_star": exponent, **entry} for size, exponent in p_star.items()})


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
