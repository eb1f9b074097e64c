"""What is done with a trained run before it is measured: `finishing` finds it, here it is kept in the run.

`whole_run` calls them one after the other, the other programs one at a time.
"""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mg_keras.data import sources
from mg_keras.data.sources import Source
from mg_keras.embedding.embedder import Embedder
from mg_keras.errors import UserError
from mg_keras.evaluation import pictures
from mg_keras.evaluation.records import without_whitened
from mg_keras.export.optimized import Optimized
from mg_keras.files import atomic_path, check_writable
from mg_keras.finishing import p_star, whitening
from mg_keras.finishing.pooling_exponent import VERSIONS, best_exponent, in_aug_photos
from mg_keras.finishing.settings import Choosing
from mg_keras.poolings import RMAC
from mg_keras.progress import announce
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.descriptor import has_p_star, is_projected, is_whitened
from mg_keras.runs.photos import matched, open_source
from mg_keras.runs.projection import projection_of
from mg_keras.runs.results import ChosenExponent
from mg_keras.runs.run import Run, load_run

COMPARISON = (1.0, RMAC)
"""Poolings that GeM at p* is compared with, on the same trunk: average pooling and R-MAC."""

# settings by which a whitening is fitted
_OF_A_FIT = (
    "unlabelled",
    "max_whitening_photos",
    "whitening_shrinkage",
    "whitening_dimensions",
    "whitening_versions",
    "whitening_augmentations",
    "whitening_power",
    "whitening_steps",
)


def embedder_of(run: Run, also: Sequence[float | str] = ()) -> Embedder:
    """What the stages after training share, so that each photo is embedded once a resolution, by the optimised graph.

    Args:
        run: `Run`.
        also: as `Embedder` takes it.
    """
    return Embedder(Optimized(run.model), run.settings.resolution, also)


def open_run(
    path: str | os.PathLike,
    resolutions: Sequence[int] | None = None,
    checkpoint: str = "last",
    data: str | None = None,
    **settings,
) -> tuple[Run, Source]:
    """A run that is to get new results, and its photos, as programs take them that come after training.

    Args:
        path, resolutions, checkpoint, data, settings: as `load_run` takes them.

    Returns:
        (`Run`, `Source`), the classes numbered as the run has them.

    Raises:
        UserError: there is no run, its folder can't be written to, or its photos are not to be had or of other classes.
    """
    run = load_run(path, resolutions, checkpoint, data, **settings)
    check_writable(run.results.folder)
    return run, matched(run, open_source(run.settings))


def check_later_stages(run: Run, source: Source, embedding_dimension: int, projection_dimension: int = 0) -> None:
    """Refuses, before hours of training, what the stages after it could not do.

    Too few photos for a whitening are no reason: such a run is exported without one.

    Args:
        run: `Run`.
        source: its photos.
        embedding_dimension: d, values of the network's embedding.
        projection_dimension: values of the objective's projection; 0 where it has none.

    Raises:
        UserError: the folder of unlabelled photos is not there, descriptors are to have more values than there are, or
            a whitening is to be learned from versions that are like their photos.
    """
    most = embedding_dimension + 1
    sizes = {"whitening_dimensions": run.settings.whitening_dimensions, "projection_dimensions": projection_dimension}
    for name, size in sizes.items():
        if size and size > most:
            raise UserError(f"{name} must be at most {most} for {run.settings.trunk}, received {size}")
    _fit(run.settings)
    _whitening_photos(run.settings, source)


def choose_p_star(
    run: Run,
    source: Source,
    how: Choosing | None = None,
    resolutions: Sequence[int] | None = None,
    embedder: Embedder | None = None,
) -> dict[int, float]:
    """Chooses p* for each of the run's resolutions (`finishing.p_star.choose`).

    Writes p_star.json and p_star.png, and with `sweep` sweep.json and sweep.png, each after every resolution. What was
    chosen before at other resolutions stays, and so do scores and fine-tuned exponents of the method not asked for,
    if they are of the same network.

    Args:
        run: `Run`.
        source: its photos.
        how: `mg_keras.finishing.settings.Choosing`; None: its defaults.
        resolutions: pixels; None: the run's.
        embedder: `embedder_of` the run, shared with other stages; None: one of its own.

    Returns:
        dict resolution -> exponent in use, of all resolutions that have one.

    Raises:
        UserError: as `Choosing.check` and `choose` raise it.
    """
    config, results = run.settings, run.results
    how = how or Choosing()
    how.check(source)
    photos = in_aug_photos(source.train, config.in_aug_per_class, config.seed)
    choices, swept = results.choices, results.exponent_sweep
    training, network = config.pooling_exponent, run.fingerprint
    rule = {"augmentation": how.augmentation, "tolerance": how.tolerance}
    rule |= {"training_exponent": training, "photos": len(photos)}
    sizes = resolutions or config.resolutions
    words = {
        "cross-validation": f"on {VERSIONS} versions of {len(photos):,} photos",
        "fine-tuning": f"by fine-tuning on {how.per_class} photos of each class at most",
    }
    said = " and ".join(words.values() if how.method == "both" else [words[how.method]])
    measured = f", and measuring {len(source.val):,} validation photos at each exponent" if how.sweep else ""
    announce(f"choosing p* at {_pixels(sizes)} {said}{measured}")
    describing = (embedder or embedder_of(run)).network
    for size in sizes:
        before = choices.get(size)
        if before and before.network not in (None, network):
            # what the method that is not asked for found goes, too: training has gone on
            before = None
            swept.pop(size, None)
        learnt_before = before.fine_tuned["p_star"] if before and before.fine_tuned else None
        found = p_star.choose(
            run.model, source, photos, size, config.resolution, how, learnt_before, training, config.seed, describing
        )
        new = {"p_star": found.p_star, "network": network}
        if found.scores is not None:
            new |= {"scores": found.scores, "errors": found.errors, "rule": rule}
        if found.fine_tuned is not None:
            new["fine_tuned"] = found.fine_tuned
        if found.sweep is not None:
            swept[size] = found.sweep
        choices[size] = dataclasses.replace(before, **new) if before else ChosenExponent(**new)
        results.save_choices(choices, photos=len(photos), versions=VERSIONS)
        best, tuned = cross_validated(choices), fine_tuned(choices)
        if best:
            recipes = sorted({(choices[key].rule or {}).get("augmentation", "full") for key in best})
            score = f"IN-aug score (of 5), versions by {' and '.join(recipes)}"
            scores = {key: choices[key].scores for key in best}
            errors = {key: choices[key].errors for key in best if choices[key].errors}
            pictures.exponent_picture(results.folder / "p_star.png", scores, best, tuned, errors, score=score)
        if how.sweep:
            results.save_exponent_sweep(swept)
            pictures.sweep_picture(results.folder / "sweep.png", swept, best, tuned)
    return {size: choice.p_star for size, choice in choices.items()}


def cross_validated(choices: Mapping[int, ChosenExponent]) -> dict[int, float]:
    """What cross-validation chooses at each resolution, by the rule of its time.

    Args:
        choices: of `Results.choices`.

    Returns:
        dict resolution -> exponent, of those that have scores.
    """
    return {size: _cross_validated(choice) for size, choice in choices.items() if choice.scores is not None}


def _cross_validated(choice):
    rule = choice.rule
    if rule is None:
        return best_exponent(choice.scores)
    return best_exponent(choice.scores, choice.errors, rule["training_exponent"], rule["tolerance"])


def fine_tuned(choices: Mapping[int, ChosenExponent]) -> dict[int, float]:
    """The exponents learnt at each resolution.

    Args:
        choices: of `Results.choices`.

    Returns:
        dict resolution -> exponent, of those where one was learnt.
    """
    return {size: choice.fine_tuned["p_star"] for size, choice in choices.items() if choice.fine_tuned is not None}


def fit_whitening(
    run: Run,
    source: Source,
    poolings: Sequence[float | str] = (),
    measure_classes: bool = False,
    resolutions: Sequence[int] | None = None,
    embedder: Embedder | None = None,
    settings: TrainConfig | None = None,
) -> str:
    """Fits the whitening at each of the run's resolutions with its p* (`finishing.whitening.fit_whitening`).

    Writes whitening.npz (training resolution: the exported one), whitening-SIZE.npz and whitening.json. Whitenings of
    other poolings that an earlier fit left at these resolutions are removed, as they may have been fitted otherwise;
    so are scores in metrics.json of descriptors that were whitened by it.

    Args:
        run: `Run`.
        source: its photos.
        poolings: other exponents and `"rmac"` to fit a whitening for, too (whitening-SIZE-p1.npz,
            whitening-SIZE-rmac.npz), from the same run of the trunk.
        measure_classes: whether to measure, on the validation photos, how far the class read from the descriptor is the
            one read from the embedding. Always done where dimensions are left out; without, it is the same by
            construction.
        resolutions: s*, pixels, to fit at; None: all of the run's.
        embedder: `embedder_of` the run, shared with other stages; None: one of its own.
        settings: on what and how, in place of the run's own.

    Returns:
        str, what it was fitted on.

    Raises:
        UserError: there are too few photos for the dimensions, or a setting of the whitening is out of range.
    """
    config, results = settings or run.settings, run.results
    photos, kind = _whitening_photos(config, source)
    how = _fit(config)
    how.check(len(photos), run.model.embedding_dimension, kind)
    sizes = resolutions or config.resolutions
    edits = f" and {how.versions * len(how.augmentations)} versions of each" if how.versions else ""
    edits += f", and training it for {how.steps:,} steps" if how.steps else ""
    announce(f"fitting a whitening at {_pixels(sizes)} on {len(photos):,} {kind}{edits}")
    embedder = embedder or embedder_of(run)
    for size in sizes:
        wanted = [results.exponent_at(size), *poolings]
        fitted = whitening.fit_whitening(embedder, photos, size, wanted, how, kind, source.val, measure_classes)
        fitted.entry["settings"] = {name: getattr(config, name) for name in _OF_A_FIT}
        _keep_whitening(run, size, fitted, poolings)
    return f"{fitted.entry['photos']} {kind}"


def take_projection(
    run: Run, source: Source, resolutions: Sequence[int] | None = None, embedder: Embedder | None = None
) -> str:
    """Makes the L2-normalised projection that the objective trained the descriptor of a run, at each resolution.

    Writes what `fit_whitening` writes, so that measures, exports and searches take it.

    Args:
        run: `Run`.
        source: its photos; those for validation tell what a descriptor keeps of the embedding and its class.
        resolutions, embedder: as `fit_whitening` takes them.

    Returns:
        str, what it was taken from.

    Raises:
        UserError: the run's objective trained none, or no validation photo can be used.
    """
    objective, projection = run.settings.objective, projection_of(run)
    if projection is None:
        raise UserError(f"{run.path} was trained with the objective {objective}, which projects nothing")
    embedder = embedder or embedder_of(run)
    announce(f"measuring the projection on {len(source.val):,} validation photos")
    for size in resolutions or run.settings.resolutions:
        exponent = run.results.exponent_at(size)
        _keep_whitening(run, size, whitening.projected(embedder, source.val, size, exponent, projection, objective), [])
    return f"the projection that {objective} trained"


def _keep_whitening(run, size, fitted, poolings):
    results = run.results
    files = {results.whitening_path(size): next(iter(fitted.whitenings.values()))}
    files |= {results.whitening_path(size, pooling): fitted.whitenings[pooling] for pooling in poolings}
    with contextlib.ExitStack() as aside:
        # beside the old ones, which stay should the disk be full; the last to be entered is the first to get its name
        for path, found in files.items():
            found.save(aside.enter_context(atomic_path(path)))
        if metrics := results.metrics:
            results.save_metrics(without_whitened(metrics, size))
        # by this one others see that it was done: it goes first and comes last, so that a kill leaves all to be fitted,
        # and no whitening with the report of another
        results.whitening_path(size).unlink(missing_ok=True)
        for stale in results.folder.glob(f"whitening-{size}-*.npz"):
            stale.unlink()
        entry = {**fitted.entry, "network": run.fingerprint}
        results.save_whitening_report({**results.whitening_report, size: entry})


def complete(run: Run, source: Source, embedder: Embedder | None = None) -> Iterator[str]:
    """Chooses p* and fits the whitening at those of the run's resolutions where that is still to be done.

    It is to be done again where training has gone on since. Where the projection is the run's descriptor, it is taken
    there, too.

    Args:
        run: `Run`.
        source: its photos.
        embedder: `embedder_of` the run, shared with what measures it; None: one of its own.

    Yields:
        str, what was done.
    """
    sizes = run.settings.resolutions
    missing = [size for size in sizes if not has_p_star(run, size)]
    if missing:
        before = {size: _of_before(run, size) for size in missing}
        chosen = choose_p_star(run, source, resolutions=missing, embedder=embedder)
        yield "p* " + ", ".join(f"{size} px: {chosen[size]:g}{before[size]}" for size in missing)
    missing = [size for size in sizes if not is_whitened(run, size)]
    if missing:
        places = ", ".join(f"{size} px" for size in missing)
        if is_projected(run):
            # which of the two is the descriptor was said by `mg-keras whiten`
            yield f"descriptor at {places}: {take_projection(run, source, missing, embedder)}"
            return
        for size in missing:
            how = {"embedder": embedder, "settings": _as_before(run, size)}
            try:
                fitted_on = fit_whitening(run, source, COMPARISON, resolutions=[size], **how)
                yield f"whitening at {size} px fitted on {fitted_on}"
            except UserError as error:
                yield f"not whitened at {size} px: {error} ({other_photos_command(run)})"


def other_photos_command(run: Run) -> str:
    """What to do where a run's whitening can't be fitted on its photos, in words."""
    command = shlex.join(["mg-keras", "whiten", "--run", os.fspath(run.path), "--unlabelled"])
    return f"{command} FOLDER takes other photos"


def _of_before(run, size):
    """What p* was at a resolution before training went on, which the user may have asked for, in words."""
    choice = run.results.choices.get(size)
    if choice is None:
        return ""
    how = ", fine-tuned" if choice.fine_tuned and choice.fine_tuned["p_star"] == choice.p_star else ""
    return f" (before training went on {choice.p_star:g}{how})"


def _as_before(run, size):
    """The run's settings with those of its fit at a resolution, or else at that of training, or else at the largest.

    `mg-keras whiten` may have been given others than the run has.
    """
    report = run.results.whitening_report
    fits = (report.get(known, {}) for known in (size, run.settings.resolution, *sorted(report, reverse=True)))
    return dataclasses.replace(run.settings, **next((fit["settings"] for fit in fits if "settings" in fit), {}))


def _pixels(sizes):
    return f"{', '.join(map(str, sizes))} px"


def _fit(config):
    """How the settings of a run fit its whitening."""
    return whitening.Fit(
        config.whitening_shrinkage,
        config.whitening_dimensions,
        config.whitening_versions,
        config.whitening_augmentations or config.recipes,
        config.seed,
        config.whitening_power,
        config.whitening_steps,
    )


def _whitening_photos(config, source):
    """(photos to fit the whitening on, what they are)."""
    photos, kind = source.train, "training photos"
    if not config.unlabelled and source.unlabelled:
        photos, kind = source.unlabelled, f"unlabelled photos of {source.description}"
    elif not config.unlabelled:
        kind += ", as there are no unlabelled ones (name a folder with --unlabelled)"
    elif config.unlabelled != "training":
        photos, kind = sources.photos(config.unlabelled, config.data_dir), f"unlabelled photos of {config.unlabelled}"
    if len(photos) > config.max_whitening_photos:
        chosen = np.random.default_rng(config.seed).permutation(len(photos))[: config.max_whitening_photos]
        photos = photos.subset(np.sort(chosen))
    return photos, kind
