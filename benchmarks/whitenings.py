"""What a whitening does for copies, Holidays and IN-aug, by how many photos and which it is fitted on.

    python -m benchmarks.whitenings --run RUN --fit MANY_KINDS --fit ONE_KIND --photos HELD_OUT --holidays FOLDER

One network at one `--resolution` with one `--exponent`. For each folder of `--fit`, the first 967, 3 000 and so on of
its photos in a shuffled order (`--counts`; the folder's own number where it has fewer), a PCA to all dimensions and to
`--dimensions`, each without shrinkage, where there are photos enough for that, and with one of 0.1.

* copies: strong edits of `--edits` of the `--photos`, R@1 among them, as of benchmarks.describers;
* Holidays: mAP on `--holidays`;
* IN-aug: of 200 of the `--photos`, five versions by the recipe `full`, 1 to 5.

The first row is without whitening. With `--keep FOLDER` embeddings are kept there, and a second call takes them.
"""

from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.describers import edits_found, edits_of, holidays_files, holidays_map, photo_files
from benchmarks.kept import embed_all, embed_some_versions, kept
from benchmarks.timing import print_table
from mg_keras.programs.common import list_of, run_program
from mg_keras.quiet import import_tensorflow
from mg_keras.whitening_formulas import unit_rows

_IN_AUG = 200
_SHRINKAGE = 0.1


def main():
    """Arguments, embeddings, and the table."""
    parser = benchmark_parser("whitenings", __doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--fit", action="append", required=True, help="a folder; may be given again")
    parser.add_argument("--photos", required=True, help="others, for copies and IN-aug")
    parser.add_argument("--holidays", required=True)
    parser.add_argument("--counts", type=list_of(int), default=[967, 3000, 9000])
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--resolution", type=int, default=160, help="pixels (160)")
    parser.add_argument("--exponent", type=float, default=3.0, help="p* (3)")
    parser.add_argument("--edits", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    holidays = holidays_files(options.holidays)
    import_tensorflow()
    from mg_keras.embedding.whitening import Whitening

    describe = embedder(options)
    held_out = photo_files(options.photos)
    sets = {
        "holidays": describe("holidays", holidays)[0],
        "photos": describe("photos", held_out)[0],
        "edits": describe("edits", list(edits_of(held_out, options.edits, options.seed)))[0],
        "versions": describe("versions", held_out),
    }
    table = [["none", "", "", "", *scores(sets, lambda values: values, options)]]
    for folder in options.fit:
        files = photo_files(folder)
        order = np.random.default_rng(options.seed).permutation(len(files))[: max(options.counts)]
        values = describe(f"fit-{Path(folder).name}", [files[row] for row in order])[0]
        size = values.shape[1] + 1
        for count in sorted({min(count, len(values)) for count in options.counts}):
            for dimensions in (size, options.dimensions):
                for shrinkage in (None, _SHRINKAGE):
                    if shrinkage is None and count <= dimensions:
                        continue
                    whitening = Whitening.fit(values[:count], shrinkage=shrinkage, dimensions=dimensions)
                    about = [Path(folder).name, f"{count:,}", f"{dimensions:,}", f"{shrinkage or '–'}"]
                    table.append([*about, *scores(sets, whitening.transform, options)])
    heads = ["fitted on", "photos", "dimensions", "shrinkage", "copies R@1 %", "Holidays mAP %", "IN-aug /5"]
    print_table(f"{Path(options.run).name} at {options.resolution} px, p* = {options.exponent:g}", heads, table)


def embedder(options):
    """A function of a name and files or PIL images -> (float32 [N, D], int64 [N], of which photo each is).

    The name "versions" stands for versions of some of the photos.
    """
    from mg_keras.runs.run import load_run

    run, size, poolings = load_run(options.run), options.resolution, [options.exponent]
    network, held_out = run.model.fingerprint(), [path.resolve() for path in photo_files(options.photos)]

    def describe(name, photos):
        label = f"{name} at {size} px"

        def embed():
            if name == "versions":
                return embed_some_versions(run, options.photos, _IN_AUG, "full", size, poolings, options.seed, label)
            return embed_all(run, photos, size, poolings, label)

        # edits are pictures in memory, made of the photos by number
        files = options.edits if name == "edits" else [path.resolve() for path in photos]
        made_from = (network, held_out, options.seed, poolings, files)
        values, numbers = kept(options.keep, f"{Path(options.run).name}-{size}-{name}", made_from, embed)
        return values[0], numbers

    return describe


def scores(sets, transform, options):
    """Three cells."""
    from mg_keras.evaluation.metrics import group_score
    from mg_keras.finishing.pooling_exponent import VERSIONS

    found = {}
    for name in ("holidays", "photos", "edits"):
        found[name] = unit_rows(np, transform(sets[name]))
    copies = np.mean(edits_found(found["edits"], found["photos"], options.seed))
    holidays = holidays_map(found["holidays"], photo_files(options.holidays))
    versions, of = sets["versions"]
    return [
        f"{100 * copies:.1f}",
        f"{100 * holidays:.1f}",
        f"{group_score(transform(versions), of, VERSIONS):.3f}",
    ]


if __name__ == "__main__":
    run_program(main)
