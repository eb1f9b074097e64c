"""What descriptors find, beside those of others, on the same photos and the same edits of them.

    python -m benchmarks.describers --photos FOLDER --holidays FOLDER --objects FOLDER --model package --onnx FILE

* `--photos`: photos that no describer was trained on. `--edits` of them get a strong edit each, the kinds in turn: R@1
  is the share of edits whose nearest photo is the one that they were made of; micro-AP, the measure of the Image
  Similarity Challenge, the average precision of all pairs of an edit and a photo in one list: whether one cosine tells
  copies from others everywhere.
* `--holidays`: INRIA Holidays or a part of it, names as distributed: mAP, the query left out.
* `--objects`: a subfolder of photos for each object, the first of them by name the reference: R@1 of the others among
  all references and `--photos`.
* Of `--photos` in folders called by a WordNet number (`n02102040`): the share whose class among all those of a model is
  that one, and mAP of each as a query for the others of its class among all `--photos`, by descriptors alone.
* `--model`: what mg_keras.load opens, or a pattern such as `runs/mine-seed*` for several, of which the mean and the
  standard deviation are told; `--onnx`: a network from pixels [1, s, s, 3] (uint8) or [1, 3, s, s] (float, ImageNet's
  normalisation) to a descriptor, given photos squashed to s = `--size`. Both may be given again.

A perceptual hash (imagehash's pHash) stands beside them where imagehash is installed, ONNX with onnxruntime.
"""

import glob
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.errors import UserError
from mg_keras.evaluation.copies import STRONG_EDITS
from mg_keras.evaluation.metrics import mean_average_precision, micro_average_precision
from mg_keras.pretrained import PACKAGED
from mg_keras.programs.common import run_program
from mg_keras.progress import Progress
from mg_keras.quiet import import_tensorflow

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_BATCH = 16


def main():
    """Arguments, the describers, and the table."""
    parser = benchmark_parser("describers", __doc__)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--holidays")
    parser.add_argument("--objects")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--onnx", action="append", default=[])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--resolution", type=int, help="of the models; default: their own")
    parser.add_argument("--edits", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    files = photo_files(options.photos)
    if not 0 < options.edits <= len(files):
        raise UserError(f"--edits must be from 1 to {len(files)}, the photos there are; received {options.edits}")
    import_tensorflow()
    sets = {"photos": files, "edits": list(edits_of(files, options.edits, options.seed))}
    if options.holidays:
        sets["holidays"] = holidays_files(options.holidays)
    if options.objects:
        sets["objects"] = photo_files(options.objects)
    known = [file for file in files if wordnet_number(file)]
    columns = {}
    for name, describe, classify in describers(options):
        found = {kind: describe(photos, f"{name}, {kind}") for kind, photos in sets.items()}
        right = 100 * classes_found(classify(known), known) if classify and known else None
        columns.setdefault(name, []).append([*scores(found, sets, options), right])
    measures = [
        "copies R@1 %",
        "copies micro-AP %",
        *(f"of {kind}" for kind in STRONG_EDITS),
        "Holidays mAP %",
        "objects R@1 %",
        "same class mAP %",
    ]
    measures.append(f"class of {len(known)} photos, % right")
    cells = [[shown(values) for values in zip(*runs, strict=True)] for runs in columns.values()]
    rows = [[measure, *values] for measure, *values in zip(measures, *cells, strict=True)]
    title = f"{options.edits} edits among {len(files)} photos, seed {options.seed}"
    print_table(title, ["", *columns], rows)


def photo_files(folder):
    """The photos in a folder, at any depth, by name."""
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _PHOTOS)
    if not files:
        raise UserError(f"{folder} has no photos: give a folder of {', '.join(_PHOTOS)} files")
    return files


def holidays_files(folder):
    """The photos of INRIA Holidays or a part of it, by name: refused, before they are described, where others are."""
    files = photo_files(folder)
    if others := [file.name for file in files if not file.stem.isdecimal()]:
        raise UserError(f"{folder} must hold photos named as Holidays' are, such as 100000.jpg; received {others[0]}")
    return files


def edits_of(files, count, seed):
    """`count` strong edits of photos, PIL images: the kinds in turn, of the first photos of a shuffled list."""
    kinds = list(STRONG_EDITS)
    for place, row in enumerate(edited_rows(len(files), count, seed)):
        rng = np.random.default_rng((seed, place))
        yield STRONG_EDITS[kinds[place % len(kinds)]](opened(files[row]), rng)


def edited_rows(photos, count, seed):
    """Numbers of the photos that are edited."""
    return np.random.default_rng(seed).permutation(photos)[:count]


def edits_found(edits, photos, seed):
    """Whether the photo nearest to each of the `edits_of` photos is the one that it was made of: bool [edits]."""
    return np.argmax(edits @ photos.T, axis=1) == edited_rows(len(photos), len(edits), seed)


def edits_micro_ap(edits, photos, seed):
    """Micro-AP of all pairs of an edit and a photo, 0 to 1."""
    right = np.zeros((len(edits), len(photos)), bool)
    right[np.arange(len(edits)), edited_rows(len(photos), len(edits), seed)] = True
    return micro_average_precision((edits @ photos.T).ravel(), right.ravel(), len(edits))


def opened(photo):
    """A file or a PIL image as an upright RGB image."""
    image = photo if isinstance(photo, Image.Image) else Image.open(photo)
    return ImageOps.exif_transpose(image).convert("RGB")


def describers(options):
    """Yields (name, photos and a label -> float [N, D] of unit norm, files -> class names, or None)."""
    import mg_keras

    for what, path in [(name, path) for name in options.model or [PACKAGED] for path in models_of(name)]:
        model = mg_keras.load(path)

        def embed(photos, label, model=model):
            return batched(lambda part: model.embed(part, options.resolution), photos, label, 256)

        def classify(files, model=model):
            return model.classify(files, options.resolution).names

        name = f"{what} at {options.resolution or model.resolution} px"
        yield name, embed, classify if model.class_names else None
    for path in options.onnx:
        yield f"{Path(path).stem} at {options.size} px", of_onnx(path, options.size), None
    try:
        import imagehash
    except ImportError:
        return

    def hashed(photos, label):
        def bits(part):
            return [imagehash.phash(opened(photo)).hash.ravel() * 2.0 - 1.0 for photo in part]

        return batched(bits, photos, label) / 8.0

    yield "pHash, 64 bits", hashed, None


def models_of(what):
    """The models that a name or a pattern of `--model` stands for."""
    return sorted(glob.glob(what)) or [what]


def batched(describe, photos, label, size=_BATCH):
    """`describe` on parts of the photos, with progress."""
    found = []
    with Progress(label, len(photos), "photos") as progress:
        for start in range(0, len(photos), size):
            part = photos[start : start + size]
            found.append(np.asarray(describe(part)))
            progress.advance(len(part))
    return np.concatenate(found)


def of_onnx(path, size):
    """A describer of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    wanted = session.get_inputs()[0]
    channels_last = wanted.shape[-1] == 3

    def describe(part):
        found = []
        for photo in part:
            pixels = np.asarray(opened(photo).resize((size, size), Image.Resampling.BILINEAR))
            if "uint8" not in wanted.type:
                pixels = ((pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32)
            pixels = pixels if channels_last else pixels.transpose(2, 0, 1)
            values = np.asarray(session.run(None, {wanted.name: pixels[None]})[0], np.float32).ravel()
            found.append(values / np.linalg.norm(values))
        return found

    return lambda photos, label: batched(describe, photos, label)


def scores(found, sets, options):
    """The column of a describer: its scores in %, a dash where a set is not given."""
    right = edits_found(found["edits"], found["photos"], options.seed)
    kinds = [100 * right[place :: len(STRONG_EDITS)].mean() for place in range(len(STRONG_EDITS))]
    micro_ap = edits_micro_ap(found["edits"], found["photos"], options.seed)
    values = [100 * right.mean(), 100 * micro_ap, *kinds]
    values.append(100 * holidays_map(found["holidays"], sets["holidays"]) if "holidays" in found else None)
    values.append(
        100 * objects_found(found["objects"], sets["objects"], found["photos"]) if "objects" in found else None
    )
    share = same_class_map(found["photos"], sets["photos"])
    values.append(None if share is None else 100 * share)
    return values


def shown(values):
    """A score in %, of several runs their mean and standard deviation; a dash for what was not measured."""
    if None in values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def wordnet_number(file):
    """That of the folder a photo lies in, such as `n02102040`; None: it is called otherwise."""
    return file.parent.name if re.fullmatch(r"n\d{8}", file.parent.name) else None


def classes_found(names, files):
    """The share of photos in folders called by WordNet numbers whose class, by its name or number, is that one.

    ImageNet's 1000 classes are known by name; others, which a model may have, by their number alone.
    """
    from mg_keras.pretrained.packed import PACKAGE, Packed

    about = Packed(PACKAGE).about
    words = dict(zip(about["class_ids"], about["class_names"], strict=True))
    wanted = [wordnet_number(file) for file in files]
    return np.mean([found in (number, words.get(number, number)) for found, number in zip(names, wanted, strict=True)])


def holidays_map(descriptors, files):
    """mAP over the queries, the first photo of each hundred, which is left out of its own ranking."""
    return np.mean(holidays_precisions(descriptors, files))


def holidays_precisions(descriptors, files):
    """Average precision of each query of `holidays_map`."""
    numbers = np.array([int(path.stem) for path in files])
    groups, first = numbers // 100, numbers % 100 == 0
    # of a part of Holidays a query may be alone
    queries = [row for row in np.flatnonzero(first) if np.sum(groups == groups[row]) > 1]
    positives = [np.setdiff1d(np.flatnonzero(groups == groups[query]), [query]) for query in queries]
    rankings = np.argsort(-descriptors[queries] @ descriptors.T, axis=1, kind="stable")
    triples = zip(rankings, positives, queries, strict=True)
    return np.array([mean_average_precision([ranking], [right], [[query]]) for ranking, right, query in triples])


def same_class_map(descriptors, files):
    """mAP of photos of one class: each of a known class is a query for its others; None: no class is known."""
    names = np.array([wordnet_number(file) or "" for file in files])
    queries = [row for row in np.flatnonzero(names) if np.sum(names == names[row]) > 1]
    if not queries:
        return None
    rankings = np.argsort(-descriptors[queries] @ descriptors.T, axis=1, kind="stable")
    positives = [np.setdiff1d(np.flatnonzero(names == names[query]), [query]) for query in queries]
    return mean_average_precision(rankings, positives, [[query] for query in queries])


def objects_found(descriptors, files, distractors):
    """R@1 of an object's other photos among the references, the first photo of each object, and the distractors."""
    names = np.array([path.parent.as_posix() for path in files])
    references = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    queries = np.setdiff1d(np.arange(len(files)), references)
    nearest = np.argmax(descriptors[queries] @ np.concatenate([descriptors[references], distractors]).T, axis=1)
    # no distractor is the object
    objects = np.append(names[references], [""] * len(distractors))
    return np.mean(objects[nearest] == names[queries])


if __name__ == "__main__":
    run_program(main)
