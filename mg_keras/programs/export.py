"""Exports a run as a SavedModel: mg-keras export --run runs/demo --out models/multigrain.

Without a run it is the model in the package.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.errors import UserError
from mg_keras.programs.common import Parser, number
from mg_keras.progress import announce
from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    import numpy as np

    from mg_keras.runs.run import Run

CHECK_PHOTOS = 16
# of a packed network's description, what the SavedModel's says too
_TOLD = ("class_names", "p_star", "thresholds", "default_resolution")


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the export, and how to use what it wrote."""
    parser = Parser("mg-keras export", __doc__)
    parser.add_argument(
        "--run", type=str, help="the run's folder, such as runs/demo; default: the model in the package"
    )
    parser.add_argument("--data", type=str, help="where the run's photos lie now; default: where they were")
    parser.add_argument("--out", type=str, required=True, help="the model's folder; versions are numbered inside")
    parser.add_argument(
        "--version", type=number(int, at_least=1), help="the number to write; default: the next free one"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "mixed", "bfloat16"],
        default="float32",
        help="what the trunk computes in; mixed (bfloat16 after the first layers) and bfloat16 need a processor with "
        "avx512_bf16 or AMX to be fast",
    )
    parser.add_argument(
        "--check_photos",
        type=number(int, at_least=1),
        help=f"with --run: validation photos to compare with the Keras model; default: {CHECK_PHOTOS}",
    )
    options = parser.parse_args(arguments)
    if options.run is None and options.data is not None:
        raise UserError("--data says where the photos of a run lie: name the run with --run")
    if options.run is None and options.check_photos is not None:
        raise UserError("--check_photos are of a run: name it with --run")
    import_tensorflow()
    from mg_keras.export.saved_model import usage
    from mg_keras.runs.run import load_run

    if options.run is None:
        print(usage(export_packed(None, options.out, options.version, options.precision)))
        return
    run = load_run(options.run, data=options.data)
    print(usage(export_run(run, options.out, options.version, options.precision, options.check_photos or CHECK_PHOTOS)))


def export_run(
    run: "Run",
    folder: str | os.PathLike,
    version: int | None = None,
    precision: str = "float32",
    photos: int = CHECK_PHOTOS,
) -> Path:
    """Exports a trained run with its whitening, classes, p* table and settings.

    Standard error says where the whitening was fitted at another p*, or training has gone on since.

    Args:
        run: `mg_keras.runs.run.Run`.
        folder, version, precision: as `mg_keras.export.saved_model.export_saved_model` takes them.
        photos: of the run's validation photos to check on, at least 1. Where those are not to be had it is checked on
            generated ones; standard error says so if they are others, or fewer, than was asked for.

    Returns:
        The path of the version.

    Raises:
        UserError: as `export_saved_model`; or `photos` is below 1.
    """
    from mg_keras.export import saved_model
    from mg_keras.runs.descriptor import notes

    if photos < 1:
        raise UserError(f"at least one photo is needed to check the model on, received {photos}")
    for note in notes(run, run.results.p_star, [run.settings.resolution]):
        announce(note)
    metadata = {
        "trunk": run.settings.trunk,
        "class_names": run.class_names,
        "p_star": run.results.p_star,
        "training": dataclasses.asdict(run.settings),
        "made_of": _made_of(run),
    }
    chosen, trouble = _validation_photos(run, photos)
    if trouble:
        generated = f"{saved_model.CHECK_PHOTOS} generated photos"
        used = f"{len(chosen)} of {photos} validation photos" if chosen else generated
        print(f"the export is checked on {used}: {trouble}", file=sys.stderr)
    answers = run.model, run.results.whitening
    return saved_model.export_saved_model(*answers, folder, version, metadata, precision, chosen or None)


def exported_version(run: "Run", folder: str | os.PathLike) -> Path | None:
    """The newest version in a folder that `export_run` wrote, in float32, of the run as it is now; None of none.

    What earlier releases exported says nothing of what it was made of, and is none.
    """
    made_of = _made_of(run)
    versions = [path for path in Path(folder).glob("*/saved_model.pb") if path.parent.name.isdecimal()]
    for path in sorted(versions, key=lambda path: int(path.parent.name), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((path.parent / "assets" / "multigrain.json").read_text(encoding="utf-8"))
            if about.get("made_of") == made_of and about.get("precision") == "float32":
                return path.parent
    return None


def _made_of(run):
    """A hash of what an export of the run depends on: its network, whitening, p* table and classes."""
    whitening = run.results.whitening
    about = run.fingerprint, run.settings.pooling_exponent, sorted(run.results.p_star.items()), run.class_names
    digest = hashlib.sha256(repr(about).encode())
    for array in (whitening.mean_, whitening.projection_) if whitening else ():
        digest.update(array.tobytes())
    return digest.hexdigest()


def export_packed(
    packed: str | os.PathLike | None,
    folder: str | os.PathLike,
    version: int | None = None,
    precision: str = "float32",
) -> Path:
    """Exports a packed network, checked on generated photos.

    Args:
        packed: its folder; None: the one in the package.
        folder, version, precision: as `mg_keras.export.saved_model.export_saved_model` takes them.

    Returns:
        The path of the version.

    Raises:
        UserError: as `export_saved_model`, or there is no packed network.
    """
    from mg_keras.export import saved_model
    from mg_keras.pretrained.packed import PACKAGE, Packed

    found = Packed(packed or PACKAGE)
    about = {name: found.about[name] for name in _TOLD if name in found.about}
    training = {"resolution": found.about["resolution"], **found.about.get("training", {})}
    metadata = {**about, "trunk": found.about["trunk"], "training": training}
    return saved_model.export_saved_model(found.network(), found.whitening, folder, version, metadata, precision)


def _validation_photos(run: "Run", count: int) -> "tuple[list[np.ndarray], str]":
    """(up to `count` usable validation photos of a run, the same ones each time; why there are no more, or "").

    They are shrunk to twice the training resolution, so that any number of them fits into memory.
    """
    import numpy as np
    import tensorflow as tf

    from mg_keras.data.images import try_decode
    from mg_keras.data.resolutions import largest_side
    from mg_keras.runs.photos import open_source

    try:
        split = open_source(run.settings).val
    except UserError as error:
        return [], str(error)
    found, side = [], 2 * run.settings.resolution
    for row in np.random.default_rng(0).permutation(len(split)):
        ok, photo = try_decode(split.read, tf.constant(row, tf.int64))
        if ok and max(photo.shape) > side:
            photo = tf.cast(tf.clip_by_value(tf.round(largest_side(photo, side)), 0, 255), tf.uint8)
        if ok:
            found.append(photo.numpy())
        if len(found) == count:
            return found, ""
    return found, "there are no more that can be used"
