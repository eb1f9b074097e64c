"""Packs a run into a small folder that mg_keras.load opens: mg-keras pack --run runs/demo --out packed.

model.safetensors holds the weights in half precision and the whitening, model.json the rest. The model that comes with
mg_keras is one of these.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_keras.errors import UserError
from mg_keras.programs.common import Parser, number
from mg_keras.progress import announce
from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    import numpy as np

    from mg_keras.loading import Loaded

# what is told of how the whitening was fitted
_OF_A_WHITENING = ("dimensions", "photos", "versions", "augmentations", "power", "steps", "shrinkage", "variance_kept")
# strong edits of each photo that thresholds are measured on
_EDITS = 2
# of edits at once: 64, or as many as have these pixels, at 3 bytes each: 200 MB
_AT_ONCE, _PIXELS_AT_ONCE = 64, 1 << 26
# photos that are compared with all others at once
_COMPARED_AT_ONCE = 64
# photos that tell the ranges of 8-bit numbers
_OBSERVED = 256
_OBSERVED_AT_ONCE = 16


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
        help="photos that were not trained on: strong edits of them tell from which cosine on a pair is a copy; "
        'some of them tell what mg_keras.load(precision="int8") needs to know',
    )
    parser.add_argument(
        "--instances",
        type=str,
        help="a subfolder of photos for each object: they tell from which cosine on a pair is of one object",
    )
    parser.add_argument("--class_names", type=str, help="file of names to show for the classes, a line each")
    options = parser.parse_args(arguments)
    for given in (options.copies, options.instances):
        if given and not Path(given).is_dir():
            raise UserError(f"there is no folder {given}")
    folder = Path(options.out)
    if folder.exists():
        raise UserError(f"{folder} is there already: give a new folder")
    import_tensorflow()
    from mg_keras.files import atomic_path, atomic_write_json
    from mg_keras.loading import load
    from mg_keras.pretrained.packed import Packed, pack
    from mg_keras.programs.import_weights import read_names
    from mg_keras.runs.descriptor import notes
    from mg_keras.runs.run import load_run

    run = load_run(options.run)
    names = read_names(Path(options.class_names)) if options.class_names else run.class_names
    if len(names) != len(run.class_names):
        raise UserError(f"{options.class_names} must name {len(run.class_names)} classes, received {len(names)} lines")
    about: dict[str, Any] = {
        "resolution": run.settings.resolution,
        "default_resolution": options.default_resolution or run.settings.resolution,
        "class_names": names,
        "p_star": {str(size): exponent for size, exponent in run.results.p_star.items()},
        "training": {**dataclasses.asdict(run.settings), "data": None, "unlabelled": None, "data_dir": None},
    }
    if names != run.class_names:
        about["class_ids"] = run.class_names
    # of the resolution that descriptors are made at, or else the one that is exported
    size = about["default_resolution"]
    if size not in run.results.whitened_resolutions:
        size = run.settings.resolution
    for note in notes(run, run.results.p_star, [size]):
        announce(note)
    whitening, entry = run.results.whitening_at(size), run.results.whitening_report.get(size, {})
    # nobody's folders
    about["whitening"] = {name: entry[name] for name in _OF_A_WHITENING if entry.get(name) is not None}
    with atomic_path(folder) as partial:
        pack(partial, run.model, run.settings.trunk, whitening, about)
        if options.copies:
            observe_photos(partial, options.copies)
        thresholds = measured_thresholds(load(partial), options.copies, options.instances)
        if thresholds:
            atomic_write_json(partial / "model.json", {**Packed(partial).about, "thresholds": thresholds})
    size = (folder / "model.safetensors").stat().st_size / 1e6
    print(f"written: {folder}, {size:.1f} MB; mg_keras.load({str(folder)!r}) opens it")
    for kind, values in thresholds.items():
        shown = ", ".join(f"{cosine:.3f} at a precision of {float(value):.0%}" for value, cosine in values.items())
        print(f"a pair is {'a copy' if kind == 'copy' else 'of one instance'} from a cosine of {shown or 'no value'}")


def observe_photos(packed_folder: str | os.PathLike, photos_folder: str) -> None:
    """Adds to a packed network what it needs to run in 8 bits.

    Args:
        packed_folder: of `mg_keras.pretrained.packed.pack`.
        photos_folder: photos; some hundred of them are looked at, at the network's resolution.

    Raises:
        UserError: none of them can be used.
    """
    import numpy as np

    from mg_keras.data.sources import photos
    from mg_keras.embedding.photos import preparation_of, prepared_batches
    from mg_keras.export.optimize import normalized
    from mg_keras.export.quantize import observe
    from mg_keras.pretrained.packed import Packed, pack_observed

    packed = Packed(packed_folder)
    network, about = packed.network(), packed.about
    split = photos(photos_folder)
    # from all of its subfolders
    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), _OBSERVED)).astype(np.int64))
    resolution = about.get("default_resolution") or about["resolution"]
    batches = prepared_batches(split, resolution, about["resolution"], rows, preparation_of(network))
    parts = (
        batch.images[start : start + _OBSERVED_AT_ONCE]
        for batch in batches
        for start in range(0, len(batch.rows), _OBSERVED_AT_ONCE)
    )
    try:
        observed = observe(network.mapper, (normalized(part, *network.pixel_scaling) for part in parts))
    except ValueError:
        raise UserError(f"none of the photos in {photos_folder} can be used: there is nothing to observe") from None
    pack_observed(packed_folder, *observed)


def measured_thresholds(
    model: "Loaded", copies: str | None = None, instances: str | None = None
) -> dict[str, dict[str, float]]:
    """From which cosine on a pair is a copy, or of one instance.

    Args:
        model: whose descriptors are compared.
        copies: folder of photos; all pairs of a strong edit of one and one of them are looked at. Where `instances` are
            given, two photos of one object are pairs that are no copies.
        instances: folder with a subfolder of photos for each object; all pairs of them are looked at.

    Returns:
        `"copy"` and `"instance"`, what was asked for of them -> precision -> cosine. Where no cosine gives a precision
        of instances, it is that of copies, which show one instance, too.
    """
    import numpy as np

    from mg_keras.evaluation.thresholds import TopPairs

    found, of_one_object = {}, []
    if instances:
        matching, blocks = instance_pairs(model, instances)
        of_instances = TopPairs(matching)
        for similarities, matches in blocks:
            of_instances.add(similarities, matches)
            if copies:
                of_one_object.append(similarities[matches])
    if copies:
        matching, blocks = copy_pairs(model, copies)
        of_copies = TopPairs(matching)
        for similarities, matches in blocks:
            of_copies.add(similarities, matches)
        for similarities in of_one_object:
            of_copies.add(similarities, np.zeros(len(similarities), bool))
        found["copy"] = of_copies.thresholds()
    if instances:
        found["instance"] = {**found.get("copy", {}), **of_instances.thresholds()}
    return found


def copy_pairs(model: "Loaded", folder: str) -> "tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]":
    """All pairs of a strong edit and a photo.

    Returns:
        (how many pairs are a photo and its edit, blocks of all pairs: cosines [N], whether the pair is such a one [N]).

    Raises:
        UserError: none of the photos can be used.
    """
    import numpy as np

    from mg_keras.data.sources import photos
    from mg_keras.evaluation.copies import strong_edit

    split = photos(folder)
    originals = model.embed(folder, on_error="skip")
    rows = np.flatnonzero(~np.isnan(originals).any(axis=1))
    if not len(rows):
        raise UserError(f"none of the photos in {folder} can be used: there is nothing to tell copies by")
    edited = np.repeat(rows, _EDITS)

    def blocks():
        compared, images, pixels, start = originals[rows].T, [], 0, 0
        for place, row in enumerate(edited.tolist()):
            if place % _EDITS == 0:
                photo = split.image(row)[1].numpy()
            images.append(strong_edit(photo, (place % _EDITS, row))[1])
            pixels += images[-1].shape[0] * images[-1].shape[1]
            # some at a time: the photos of an album do not fit into memory
            if len(images) == _AT_ONCE or pixels >= _PIXELS_AT_ONCE or place + 1 == len(edited):
                similarities = model.embed(images) @ compared
                yield similarities.ravel(), (edited[start : place + 1, None] == rows).ravel()
                images, pixels, start = [], 0, place + 1

    return len(edited), blocks()


def instance_pairs(model: "Loaded", folder: str) -> "tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]":
    """All pairs of photos; those in one subfolder show one object.

    Returns:
        (how many pairs show one object, blocks of all pairs: cosines [N], whether both show one object [N]).
    """
    import numpy as np

    from mg_keras.data.sources import photos

    split = photos(folder)
    descriptors = model.embed(folder, on_error="skip")
    usable = np.flatnonzero(~np.isnan(descriptors).any(axis=1))
    descriptors = descriptors[usable]
    names = [Path(split.names[row]).parent.as_posix() for row in usable]
    _, objects, counts = np.unique(names, return_inverse=True, return_counts=True)

    def blocks():
        for start in range(0, len(usable), _COMPARED_AT_ONCE):
            part = slice(start, start + _COMPARED_AT_ONCE)
            # each pair once, and no photo with itself
            pairs = np.arange(len(usable)) > np.arange(len(usable))[part, None]
            similarities = descriptors[part] @ descriptors.T
            yield similarities[pairs], (objects[part, None] == objects)[pairs]

    return int(np.sum(counts * (counts - 1) // 2)), blocks()
