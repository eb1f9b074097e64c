"""What a whitening learned from versions finds, by how it is fitted.

    python -m benchmarks.learned_whitenings --run package --fit MANY_KINDS --photos HELD_OUT --holidays FOLDER

One network at one `--resolution` with one `--exponent`; the whitening is learned from `--versions` of each photo of
`--fit` by each of the recipes `--augmentations`, once for each of `--shrinkages` and `--powers`
(`Whitening.fit_on_versions`), and trained further for each of `--steps` (`finishing.contrast`). What its descriptors
find is measured as benchmarks.describers does: copies and objects among `--photos`, and Holidays. With
`--keep FOLDER` embeddings are kept there, and a second call takes them.
"""

import itertools
from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.describers import edits_of, holidays_files, photo_files, scores, shown
from benchmarks.exponents import opened
from benchmarks.kept import embed_all, embed_some_versions, kept, some_photos
from benchmarks.timing import print_table
from mg_keras.evaluation.copies import STRONG_EDITS
from mg_keras.programs.common import list_of, number, run_program
from mg_keras.quiet import import_tensorflow
from mg_keras.whitening_formulas import unit_rows


def main():
    """Arguments, embeddings, and the table."""
    parser = benchmark_parser("learned_whitenings", __doc__)
    parser.add_argument("--run", required=True, help="or package")
    parser.add_argument("--fit", required=True)
    parser.add_argument("--count", type=number(int, at_least=1), help="photos of --fit, drawn with the seed (all)")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--holidays")
    parser.add_argument("--objects")
    parser.add_argument("--versions", type=int, default=4)
    parser.add_argument("--shrinkages", type=list_of(float, above=0, at_most=1), default=[0.1, 0.5])
    parser.add_argument("--powers", type=list_of(float, at_least=0, at_most=1), default=[0, 0.5, 1])
    parser.add_argument("--augmentations", type=list_of(str), default=["copies"], help="recipes (copies)")
    parser.add_argument("--steps", type=list_of(int, at_least=0), default=[0], help="of training (0)")
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--resolution", type=int, default=320, help="pixels (320)")
    parser.add_argument("--exponent", type=float, default=3.0, help="p* (3)")
    parser.add_argument("--edits", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    files = photo_files(options.photos)
    sets = {"photos": files, "edits": list(edits_of(files, options.edits, options.seed))}
    if options.holidays:
        sets["holidays"] = holidays_files(options.holidays)
    if options.objects:
        sets["objects"] = photo_files(options.objects)
    import_tensorflow()
    from mg_keras.data import augmentations
    from mg_keras.embedding.whitening import Whitening
    from mg_keras.finishing.contrast import contrasted

    for name in options.augmentations:
        augmentations.get(name)
    # as the source of versions lists them
    to_fit = [Path(file) for file in some_photos(options.fit, options.count, options.seed).files]
    found = {name: embedded(name, photos, options) for name, photos in sets.items()}
    fitted_on = embedded("fit", to_fit, options)
    versions = [
        embedded(name, to_fit, options).reshape(len(fitted_on), options.versions, -1) for name in options.augmentations
    ]
    versions = np.concatenate(versions, axis=1)
    logits = opened(options.run).model.classify(fitted_on) if any(options.steps) else None
    pooled = {name: unit_rows(np, values) for name, values in found.items()}
    table = [["none", "", "", *cells(pooled, sets, options)]]
    for shrinkage, power in itertools.product(options.shrinkages, options.powers):
        learned = Whitening.fit_on_versions(fitted_on, versions, True, shrinkage, options.dimensions, power)
        for steps in options.steps:
            more = fitted_on, versions, steps, options.seed, logits
            whitening = contrasted(learned, *more, label="training the whitening") if steps else learned
            described = {name: whitening.transform(values) for name, values in found.items()}
            table.append([f"{shrinkage:g}", f"{power:g}", f"{steps}", *cells(described, sets, options)])
    heads = ["shrinkage", "power", "steps", "copies R@1 %", "copies micro-AP %", "Holidays mAP %", "objects R@1 %"]
    heads.append("same class mAP %")
    place = f"{Path(options.run).name} at {options.resolution} px, p* = {options.exponent:g}"
    print_table(f"{place}; {options.edits} edits among {len(files):,} photos, seed {options.seed}", heads, table)


def embedded(name, photos, options):
    """Embeddings float32 [N, D] of photos, or with the name of a recipe of versions of the photos of `--fit`."""
    run, size, poolings = opened(options.run), options.resolution, [options.exponent]
    label, versions = f"{name} at {size} px", name in options.augmentations

    def embed():
        if versions:
            about = name, size, poolings, options.seed, label, options.versions
            return embed_some_versions(run, options.fit, len(photos), *about)
        return embed_all(run, photos, size, poolings, label)

    # edits are pictures in memory, made of the photos by number
    files = [path.resolve() for path in (photo_files(options.photos) if name == "edits" else photos)]
    of = (files, options.edits) if name == "edits" else files
    made_from = run.model.fingerprint(), of, options.seed, poolings, options.versions if versions else None
    return kept(options.keep, f"{Path(options.run).name}-{size}-{name}", made_from, embed)[0][0]


def cells(described, sets, options):
    """The scores of a row, as shown."""
    recall, micro_ap, *rest = scores(described, sets, options)
    return [shown([value]) for value in (recall, micro_ap, *rest[len(STRONG_EDITS) :])]


if __name__ == "__main__":
    run_program(main)
