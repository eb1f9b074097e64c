"""Fits the whitening of a run's descriptors: mg-keras whiten --run runs/demo --unlabelled FOLDER.

With --dimensions 128 a descriptor keeps the 128 directions of largest variance. Writes whitening.npz (the one that
mg-keras export folds into the classifier), whitening-SIZE.npz of the other resolutions, and whitening.json: what they
were fitted on, and how often the class read from a descriptor is the one read from the whole embedding. With
--descriptor projected the projection that an objective such as grafit trained takes their place.
"""

from collections.abc import Sequence

from mg_keras.errors import UserError
from mg_keras.programs.common import list_of, number, stage_arguments
from mg_keras.quiet import import_tensorflow


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the fit, what it was fitted on and what it costs."""
    options = stage_arguments("mg-keras whiten", __doc__, arguments, _arguments)
    of_a_fit = ("unlabelled", "max_photos", "shrinkage", "dimensions", "versions", "augmentations", "steps", "power")
    of_a_fit = [name for name in of_a_fit if getattr(options, name) is not None]
    if options.descriptor == "projected" and of_a_fit:
        raise UserError(f"--{of_a_fit[0]} is of a whitening that is fitted: a projection is taken as it was trained")
    if options.versions == 0:
        # by PCA: what a run says of one that is learned from versions is not asked for
        options.steps, options.augmentations = options.steps or 0, options.augmentations or []
    import_tensorflow()
    from mg_keras.programs import stages

    run, source = stages.open_run(
        options.run,
        options.resolutions,
        options.checkpoint,
        options.data,
        unlabelled=options.unlabelled,
        max_whitening_photos=options.max_photos,
        whitening_shrinkage=options.shrinkage,
        whitening_dimensions=options.dimensions,
        whitening_versions=options.versions,
        whitening_augmentations=options.augmentations,
        whitening_power=options.power,
        whitening_steps=options.steps,
    )
    if options.power is not None and not run.settings.whitening_versions:
        raise UserError("--power is of a whitening learned from versions of photos: give --versions, too")
    poolings = stages.COMPARISON if options.comparison else ()
    if options.descriptor == "projected":
        print(f"descriptor: {stages.take_projection(run, source)}")
    else:
        print(f"whitening fitted on {stages.fit_whitening(run, source, poolings, measure_classes=True)}")
    _show(run)


def _arguments(parser):
    parser.add_argument(
        "--unlabelled", type=str, help="folder of photos, or training: the training photos; default: the run's own"
    )
    parser.add_argument(
        "--max_photos", type=number(int, at_least=1), help="to fit it on so many at most; default: the run's"
    )
    parser.add_argument(
        "--shrinkage",
        type=number(float, above=0, at_most=1),
        help="for fewer photos than dimensions; default: the run's",
    )
    parser.add_argument(
        "--dimensions",
        type=number(int, at_least=1),
        help="values of a descriptor; default: the run's, or else all",
    )
    parser.add_argument(
        "--versions",
        type=number(int, at_least=0),
        help="learn it from so many edited versions of each photo by each recipe; 0: by PCA; default: the run's",
    )
    parser.add_argument(
        "--augmentations",
        type=list_of(str),
        help="recipes of those versions, so many by each; default: the run's",
    )
    parser.add_argument(
        "--steps",
        type=number(int, at_least=0),
        help="train one learned from versions further by so many steps of contrast; default: the run's",
    )
    parser.add_argument(
        "--power",
        type=number(float, at_least=0, at_most=1),
        help="of one learned from versions: from 0, edits count for little, to 1, photos are white; default: the run's",
    )
    parser.add_argument(
        "--comparison",
        type=bool,
        default=True,
        help="whiten average pooling and R-MAC on the same trunk, too, for the tables of mg-keras evaluate",
    )
    parser.add_argument(
        "--descriptor",
        default="whitened",
        choices=["whitened", "projected"],
        help="projected: the projection that the objective trained, where it did, in place of a whitening",
    )


def _show(run):
    """What the descriptors keep of the embedding at each resolution, and where they are."""
    from mg_keras.evaluation.scores import METRICS

    for size in run.settings.resolutions:
        entry = run.results.whitening_report[size]
        variance, agreement = (f"{METRICS[name].text(entry[name])}%" for name in ("variance_kept", "class_agreement"))
        accuracies = ""
        if "top1_descriptor" in entry:  # missing for photos without labels
            top1, full = (f"{METRICS['top1'].text(entry[f'top1_{name}'])}%" for name in ("descriptor", "embedding"))
            accuracies = f" (top-1 {top1}, from the embedding {full})"
        print(
            f"{size} px, p* {entry['p_star']:g}: {entry['dimensions']} of {entry['embedding_dimensions']} dimensions, "
            f"{variance} of the variance; descriptor and embedding give the same class for {agreement} of "
            f"{entry['validation_photos']} validation photos{accuracies}"
        )
    paths = [
        *(run.results.whitening_path(size) for size in run.settings.resolutions),
        run.results.folder / "whitening.json",
    ]
    print(f"written: {', '.join(map(str, paths))}")
