"""Packs a run into a small folder that mg_keras.load opens: mg-keras pack --run runs/demo --out packed.

model.safetensors holds the weights in half precision and the whitening, model.json the rest. The model that comes with
mg_keras is one of these.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_keras.errors import UserError
from mg_keras.programs.common import Parser, number
from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    from mg_keras.loading import Loaded

# strong edits of each photo that thresholds are measured on
_EDITS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the folder, and what thresholds were measured."""
    parser = Parser("mg-keras pack", __doc__)
    parser.add_argument("--run", type=str, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument("--out", type=str, required=True, help="the folder to write")
    parser.add_argument(
        "--default_resolution",
        type=number(int, at_least=1),
        help="pixels that photos are embedded at where no other is given; default: that of training",
    )
    parser.add_argument(
        "--copies",
        type=str,
        help="photos that were not trained on: strong edits of them tell from which cosine on a pair is a copy",
    )
    parser.add_argument(
        "--instances",
        type=str,
        help="a subfolder of photos for each object: they tell from which cosine on a pair is of one object",
    )
    parser.add_argument("--class_names", type=str, help="file of names to show for the classes, a line each")
    options = parser.parse_args(arguments)
    for folder in (options.copies, options.instances):
        if folder and not Path(folder).is_dir():
            raise UserError(f"there is no folder {folder}")
    import_tensorflow()
    from mg_keras.files import atomic_write_json
    from mg_keras.loading import load
    from mg_keras.pretrained.packed import Packed, pack
    from mg_keras.programs.import_weights import read_names
    from mg_keras.runs.run import load_run

    run = load_run(options.run)
    names = read_names(Path(options.class_names)) if options.class_names else run.class_names
    if len(names) != len(run.class_names):
        raise UserError(f"{options.class_names} must name {len(run.class_names)} classes, received {len(names)} lines")
    about: dict[str, Any] = {
        "resolution": run.settings.resolution,
        "default_resolution": options.default_resolution or run.settings.resolution,
        "class_names": names,
        "p_star": {str(size): exponent for size, exponent in run.p_star.items()},
        "training": {**run.config, "data": None, "unlabelled": None, "data_dir": None},
    }
    if names != run.class_names:
        about["class_ids"] = run.class_names
    # the one of the resolution that descriptors are made at
    whitening = run.whitening_at(about["default_resolution"]) or run.whitening
    folder = pack(options.out, run.model, run.settings.trunk, whitening, about)
    model, thresholds = load(folder), {}
    if options.copies:
        thresholds["copy"] = copy_thresholds(model, options.copies)
    if options.instances:
        thresholds["instance"] = instance_thresholds(model, options.instances)
    if thresholds:
        atomic_write_json(folder / "model.json", {**Packed(folder).about, "thresholds": thresholds})
    size = (folder / "model.safetensors").stat().st_size / 1e6
    print(f"written: {folder}, {size:.1f} MB; mg_keras.load({str(folder)!r}) opens it")
    for kind, values in thresholds.items():
        shown = ", ".join(f"{cosine:.3f} at a precision of {float(value):.0%}" for value, cosine in values.items())
        print(f"a pair is {'a copy' if kind == 'copy' else 'of one instance'} from a cosine of {shown or 'no value'}")


def copy_thresholds(model: "Loaded", folder: str) -> dict[str, float]:
    """Precision -> cosine, over all pairs of a strong edit of a photo and a photo of the folder."""
    import numpy as np

    from mg_keras.data.sources import photos
    from mg_keras.evaluation.copies import strong_edit
    from mg_keras.evaluation.thresholds import thresholds

    split = photos(folder)
    originals = model.embed(folder, on_error="skip")
    rows = np.flatnonzero(~np.isnan(originals).any(axis=1))
    # a photo's edits at a time: photos of an album do not fit into memory
    found = [
        model.embed([strong_edit(split.image(row)[1].numpy(), (place, row))[1] for place in range(_EDITS)])
        for row in rows.tolist()
    ]
    similarities = np.concatenate(found) @ originals[rows].T
    return thresholds(similarities.ravel(), (np.repeat(rows, _EDITS)[:, None] == rows).ravel())


def instance_thresholds(model: "Loaded", folder: str) -> dict[str, float]:
    """Precision -> cosine, over all pairs of photos; those in one subfolder show one object."""
    import numpy as np

    from mg_keras.data.sources import photos
    from mg_keras.evaluation.thresholds import thresholds

    split = photos(folder)
    descriptors = model.embed(folder, on_error="skip")
    usable = np.flatnonzero(~np.isnan(descriptors).any(axis=1))
    objects = np.array([Path(split.names[row]).parent.as_posix() for row in usable])
    pairs = np.triu_indices(len(usable), 1)
    similarities = descriptors[usable] @ descriptors[usable].T
    return thresholds(similarities[pairs], objects[pairs[0]] == objects[pairs[1]])
