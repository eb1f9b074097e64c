"""What the pooling exponent does at a test resolution: Holidays' mAP beside the IN-aug scores that p* is chosen by.

    python -m benchmarks.exponents --holidays FOLDER --photos FOLDER --run RUN --run package

For each run and resolution a table of the exponents 1 to 10: mAP on `--holidays` (INRIA Holidays or a part of it, names
as distributed), and the IN-aug score of versions by the recipes `full` (the paper's) and `copies` of `--in_aug` of the
`--photos`, with the standard error of how far it is below the best (`pooling_exponent.paired_errors`); each with
descriptors whitened at that exponent, by PCA of all `--photos` to `--dimensions`, and as pooled, and with `--versions`
by a whitening learned from so many versions of each; and how alike those as pooled are to those of the largest
exponent. Then what each rule chooses at every place, and how many points of mAP that is below the best exponent, with
the standard error over the queries, and the mean over all places; what samples of fewer photos choose; and what can be
known at all: how far the best exponent of one half of the queries is below the best of the other half.

The p* of a run has no part in this, and nothing is written into the run. With `--keep FOLDER` embeddings are kept
there, in half precision, and a second call takes them from it.
"""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.describers import holidays_files, holidays_precisions, photo_files
from benchmarks.kept import embed_all, embed_some_versions, kept
from benchmarks.timing import print_table
from mg_keras.finishing.settings import EXPONENTS
from mg_keras.pretrained import PACKAGED
from mg_keras.programs.common import list_of, run_program
from mg_keras.quiet import import_tensorflow
from mg_keras.whitening_formulas import unit_rows

RECIPES = ("full", "copies")
VERSIONS_OF_ALL = "versions"
SAMPLES = (10, 25, 50, 100, 200)
_DRAWS = 200
_CONSTANT = 5
# points of mAP that p* may be below the best
_AIM = 0.3


def main():
    """Arguments, embeddings, and the tables."""
    parser = benchmark_parser("exponents", __doc__)
    parser.add_argument("--holidays", required=True)
    parser.add_argument("--photos", required=True, help="others, for IN-aug and whitening")
    parser.add_argument("--run", action="append", required=True, help="or package; may be given again")
    parser.add_argument("--resolutions", type=list_of(int), default=[160, 224, 320], help="pixels (160,224,320)")
    parser.add_argument("--in_aug", type=int, default=400, help="photos that IN-aug is made of (400)")
    parser.add_argument("--versions", type=int, default=0, help="of each photo, that a whitening is learned from (0)")
    parser.add_argument("--dimensions", type=int, default=512, help="of whitened descriptors (512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    holidays_files(options.holidays)
    import_tensorflow()
    choices, means, stable, knowable = [], {}, [], []
    for run in options.run:
        for size in options.resolutions:
            place = f"{Path(run).name}, {size} px"
            precisions, counts, cosines = measured(run, size, options)
            table = [[*cells, f"{cosine:.3f}"] for cells, cosine in zip(rows(precisions, counts), cosines, strict=True)]
            print_table(place, ["p", *columns(precisions, counts), f"cosine with p = {EXPONENTS[-1]}"], table)
            training = opened(run).settings.pooling_exponent
            for recipe, words, p in tried(counts, training):
                losses = [lost(found, p) for found in precisions.values()]
                choices.append([place, recipe, words, f"{p:g}", *map(with_error, losses)])
                means.setdefault((recipe, words), []).append([100 * loss.mean() for loss in losses])
            stable.append([place, *stability(counts["copies", "as pooled"], training, options.seed)])
            knowable.append([place, *(halves(found, options.seed) for found in precisions.values())])
    columns_of_rules = ["", "IN-aug", "rule", "p*", *(f"{name}: mAP below the best" for name in precisions)]
    print_table("what is chosen", columns_of_rules, choices)
    columns_of_rules.remove("p*")
    of_all = [
        ["mean of all", *key, *(f"{mean:.1f}" for mean in np.mean(found, axis=0))] for key, found in means.items()
    ]
    print_table(f"over {len(stable)} places", columns_of_rules, of_all)
    title = "copies, one standard error: spread (10 % to 90 %) of p* chosen from samples of so many photos"
    print_table(title, ["", *map(str, SAMPLES)], stable)
    title = "chosen by one half of Holidays' queries: mAP below the best of the other half; how often by 0.3 at most"
    print_table(title, ["", *precisions], knowable)


def measured(run, size, options):
    """Average precisions and IN-aug counts.

    Returns:
        precisions: descriptors -> exponent -> float64 [queries].
        counts: (recipe, descriptors) -> exponent -> float64 [photos], as `pooling_exponent.in_aug_counts` gives them.
        cosines: for each exponent the mean cosine of Holidays' descriptors with those at the largest, as pooled.
    """
    from mg_keras.embedding.whitening import Whitening
    from mg_keras.evaluation.metrics import group_counts
    from mg_keras.finishing.pooling_exponent import VERSIONS

    unit = functools.partial(unit_rows, np)
    kinds = {kind: embedded(run, size, kind, options) for kind in ("holidays", "photos", *RECIPES)}
    versions = embedded(run, size, VERSIONS_OF_ALL, options)[0] if options.versions else None
    files = photo_files(options.holidays)
    names = ("whitened", "as pooled", *(["learned"] if options.versions else []))
    precisions = {name: {} for name in names}
    counts = {(recipe, name): {} for recipe in RECIPES for name in names}
    for number, exponent in enumerate(EXPONENTS):
        photos = kinds["photos"][0][number]
        describers = {"whitened": Whitening.fit(photos, dimensions=options.dimensions).transform, "as pooled": unit}
        if options.versions:
            of_each = versions[number].reshape(len(photos), options.versions, -1)
            describers["learned"] = Whitening.fit_on_versions(photos, of_each, dimensions=options.dimensions).transform
        for name, describe in describers.items():
            precisions[name][exponent] = holidays_precisions(describe(kinds["holidays"][0][number]), files)
            for recipe in RECIPES:
                values, of = kinds[recipe]
                _, photo = np.unique(of, return_inverse=True)
                found = group_counts(describe(values[number]), of, VERSIONS)
                counts[recipe, name][exponent] = np.bincount(photo, found) / np.bincount(photo)
    pooled = [unit(values) for values in kinds["holidays"][0]]
    return precisions, counts, [np.sum(values * pooled[-1], axis=1).mean() for values in pooled]


def columns(precisions, counts):
    """The heads of a table of exponents."""
    return [*(f"mAP, {name}" for name in precisions), *(f"IN-aug {recipe}, {name}" for recipe, name in counts)]


def rows(precisions, counts):
    """A row for each exponent."""
    from mg_keras.finishing.pooling_exponent import paired_errors

    errors = {key: paired_errors(found) for key, found in counts.items()}
    return [
        [
            f"{exponent}",
            *(f"{100 * found[exponent].mean():.1f}" for found in precisions.values()),
            *(f"{found[exponent].mean():.3f} ± {errors[key][exponent]:.3f}" for key, found in counts.items()),
        ]
        for exponent in EXPONENTS
    ]


def rule(counts, training, tolerance):
    """The exponent that is chosen within so many standard errors; `training` None: the best."""
    from mg_keras.finishing.pooling_exponent import best_exponent, paired_errors

    means = {exponent: found.mean() for exponent, found in counts.items()}
    return best_exponent(means, paired_errors(counts), training, tolerance)


def tried(counts, training):
    """(recipe, rule, exponent) for each recipe and rule, for the training exponent as it is, and for 5."""
    found = [("–", "training exponent", training), ("–", f"always {_CONSTANT}", _CONSTANT)]
    for (recipe, name), by_exponent in counts.items():
        for words, of, tolerance in (("best", None, 0), ("one standard error", training, 1)):
            found.append((f"{recipe}, {name}", words, rule(by_exponent, of, tolerance)))
    return found


def lost(precisions, exponent):
    """For each query, what an exponent lacks of the precision of the one with the best mAP."""
    return max(precisions.values(), key=np.mean) - precisions[exponent]


def halves(precisions, seed):
    """What the exponent that is best on half of the queries lacks on the others, over random halves, in words."""
    rng, found = np.random.default_rng(seed), np.stack(list(precisions.values()))
    losses = []
    for _ in range(_DRAWS):
        order = rng.permutation(found.shape[1])
        here, there = (found[:, half].mean(axis=1) for half in np.array_split(order, 2))
        losses.append(100 * (there.max() - there[here.argmax()]))
    return f"{np.mean(losses):.1f}, {np.mean(np.array(losses) <= _AIM):.0%}"


def with_error(loss):
    """The mean of a loss in points, and its standard error."""
    return f"{100 * loss.mean():.1f} ± {100 * loss.std(ddof=1) / np.sqrt(len(loss)):.1f}"


def stability(counts, training, seed):
    """For each of `SAMPLES`: the 10 % and 90 % quantiles of what samples of the photos choose.

    Versions still are compared with those of all photos.
    """
    rng, photos = np.random.default_rng(seed), len(counts[EXPONENTS[0]])
    cells = []
    for size in SAMPLES:
        if size > photos:
            cells.append("–")
            continue
        draws = (rng.choice(photos, size, replace=False) for _ in range(_DRAWS))
        found = [rule({p: found[some] for p, found in counts.items()}, training, 1) for some in draws]
        low, high = np.quantile(found, [0.1, 0.9], method="nearest")
        cells.append(f"{low:g} to {high:g}")
    return cells


def embedded(path, size, kind, options):
    """Embeddings by each exponent, float32 [P, N, D], and the numbers of the photos that they are of.

    `kind` is "holidays", "photos", or a recipe: five versions of each of `--in_aug` of the photos; or
    `VERSIONS_OF_ALL`: `--versions` of each photo by the recipe `copies`.
    """
    from mg_keras.finishing.pooling_exponent import VERSIONS

    folder = options.holidays if kind == "holidays" else options.photos
    name, label = f"{Path(path).name}-{size}-{kind}", f"{Path(path).name} at {size} px, {kind}"
    recipe, count, versions = kind, options.in_aug, VERSIONS
    run, files = opened(path), photo_files(folder)
    if kind == VERSIONS_OF_ALL:
        recipe, count, versions = "copies", len(files), options.versions

    def embed():
        if kind in ("holidays", "photos"):
            return embed_all(run, files, size, EXPONENTS, label)
        return embed_some_versions(run, folder, count, recipe, size, EXPONENTS, options.seed, label, versions)

    photos = [file.resolve() for file in files]
    made_from = (run.model.fingerprint(), photos, count, versions, options.seed, EXPONENTS)
    return kept(options.keep, name, made_from, embed, np.float16)


@functools.lru_cache(maxsize=1)
def opened(path):
    """The optimised graph of a run, or of the model in the package, and its settings."""
    from mg_keras.export.optimized import Optimized

    if path != PACKAGED:
        from mg_keras.runs.run import load_run

        run = load_run(path)
        return SimpleNamespace(model=Optimized(run.model), settings=run.settings)
    from mg_keras.pretrained.packed import PACKAGE, Packed

    packed = Packed(PACKAGE)
    settings = SimpleNamespace(resolution=packed.about["resolution"], pooling_exponent=packed.about["pooling_exponent"])
    return SimpleNamespace(model=Optimized(packed.network()), settings=settings)


if __name__ == "__main__":
    run_program(main)
