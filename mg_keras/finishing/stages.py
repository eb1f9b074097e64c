"""What is done with a trained run before it is measured, a function each; every one leaves its result in its folder.

`whole_run` calls them one after the other, the programs in `train/` one at a time.
"""

import contextlib
import os
from collections.abc import Sequence

import numpy as np

from mg_keras.data import augmentations, sources
from mg_keras.data.sources import Source
from mg_keras.embedding.embedder import Embedder
from mg_keras.embedding.photos import embed_versions
from mg_keras.embedding.whitening import Whitening, check_fit, class_agreement
from mg_keras.errors import UserError
from mg_keras.evaluation import pictures
from mg_keras.files import check_writable
from mg_keras.finishing.pooling_exponent import (
    EXPONENTS,
    VERSIONS,
    best_exponent,
    exponent_sweep,
    fine_tune_exponent,
    in_aug_photos,
    in_aug_scores,
)
from mg_keras.poolings import RMAC
from mg_keras.progress import announce
from mg_keras.runs.photos import open_source
from mg_keras.runs.run import Run, load_run

P_STAR_METHODS = ("cross-validation", "fine-tuning", "both")

COMPARISON = (1.0, RMAC)
"""Poolings that GeM at p* is compared with, on the same trunk: average pooling and R-MAC."""


def embedder_of(run: Run, also: Sequence[float | str] = ()) -> Embedder:
    """What the stages after training share, so that each photo is embedded once a resolution.

    Args:
        run: `Run`.
        also: as `Embedder` takes it.
    """
    return Embedder(run.model, run.settings.resolution, also)


def open_run(
    path: str | os.PathLike, resolutions: Sequence[int] | None = None, checkpoint: str = "last", data: str | None = None
) -> tuple[Run, Source]:
    """A run that is to get new results, and its photos, as programs take them that come after training.

    Args:
        path, resolutions, checkpoint, data: as `load_run` takes them.

    Returns:
        (`Run`, `Source`), the classes numbered as the run has them.

    Raises:
        UserError: there is no run, its folder can't be written to, or its photos are not to be had or of other classes.
    """
    run = load_run(path, resolutions, checkpoint, data)
    check_writable(run.results)
    return run, run.matched(open_source(run.settings))


def check_later_stages(run: Run, source: Source, embedding_dimension: int) -> None:
    """Refuses, before hours of training, what the stages after it could not do.

    Too few photos for a whitening are no reason: such a run is exported without one.

    Args:
        run: `Run`.
        source: its photos.
        embedding_dimension: d, values of the network's embedding.

    Raises:
        UserError: the folder of unlabelled photos is not there, or more dimensions are to be kept than there are.
    """
    dimensions, most = run.settings.whitening_dimensions, embedding_dimension + 1
    if dimensions is not None and dimensions > most:
        raise UserError(f"whitening_dimensions must be at most {most} for {run.settings.trunk}, received {dimensions}")
    _whitening_photos(run.settings, source)


def exponent_at(run: Run, resolution: int) -> float:
    """The chosen p* of a resolution, or the training exponent where none was chosen."""
    return float(run.p_star.get(resolution, run.settings.pooling_exponent))


def choose_p_star(
    run: Run,
    source: Source,
    exponents: Sequence[float] = EXPONENTS,
    method: str = "cross-validation",
    per_class: int = 50,
    epochs: int = 1,
    sweep: bool = False,
    resolutions: Sequence[int] | None = None,
) -> dict[int, float]:
    """Chooses p* for each of the run's resolutions, by cross-validation on IN-aug or by fine-tuning (section 3.5).

    Writes p_star.json and p_star.png, and with `sweep` sweep.json and sweep.png, each after every resolution. What was
    chosen before at other resolutions stays, and so do scores and fine-tuned exponents of the method not asked for.

    Args:
        run: `Run`.
        source: its photos.
        exponents: those that cross-validation tries, each > 0.
        method: `"cross-validation"`, `"fine-tuning"`, or `"both"`: then the choice in use is cross-validation's.
        per_class: photos of each class to fine-tune on, at most.
        epochs: of fine-tuning.
        sweep: whether to measure class accuracy at each of the exponents and at the fine-tuned one, too.
        resolutions: pixels; None: the run's.

    Returns:
        dict resolution -> exponent in use, of all resolutions that have one.

    Raises:
        UserError: an exponent, `per_class` or `epochs` is out of range, or no photo can be used.
        ValueError: there is no such method.
    """
    if method not in P_STAR_METHODS:
        raise ValueError(f"method must be one of {', '.join(P_STAR_METHODS)}, received {method!r}")
    if not exponents or not all(0 < exponent < np.inf for exponent in exponents):
        raise UserError(f"exponents must be one or more numbers > 0, received {list(exponents)}")
    for name, value in (("per_class", per_class), ("epochs", epochs)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, received {value}")
    if method != "cross-validation" and not source.train.labelled:
        raise UserError("p is fine-tuned on the classes of photos, and these have none: choose it by cross-validation")
    config = run.settings
    photos = in_aug_photos(source.train, config.in_aug_per_class, config.seed)
    p_star, scores, fine_tuned, swept = run.p_star, run.p_star_scores, run.p_star_fine_tuned, run.exponent_sweep
    sizes = resolutions or config.resolutions
    how = {
        "cross-validation": f"on {VERSIONS} versions of {len(photos):,} photos",
        "fine-tuning": f"by fine-tuning on {per_class} photos of each class at most",
    }
    chosen = how.values() if method == "both" else [how[method]]
    measured = f", and measuring {len(source.val):,} validation photos at each exponent" if sweep else ""
    announce(f"choosing p* at {_pixels(sizes)} {' and '.join(chosen)}{measured}")
    for size in sizes:
        if method != "cross-validation":
            learnt = fine_tune_exponent(
                run.model,
                source.train,
                size,
                config.resolution,
                per_class=per_class,
                epochs=epochs,
                seed=config.seed,
                label=f"fine-tuning p at {size} px",
            )
            p_star[size] = learnt.p_star
            fine_tuned[size] = {"p_star": learnt.p_star, "initial": learnt.initial, "photos": learnt.photos}
        if sweep:
            also = {size: [fine_tuned[size]["p_star"]]} if size in fine_tuned else None
            swept |= exponent_sweep(
                run.model, source.val, photos, [size], config.resolution, exponents, also, config.seed, "p sweep"
            )
            scores[size] = {exponent: swept[size][exponent]["instance"] for exponent in exponents}
        elif method != "fine-tuning":
            scores[size] = in_aug_scores(run.model, photos, size, exponents, config.seed, f"p* at {size} px")
        if method != "fine-tuning":
            p_star[size] = best_exponent(scores[size])
        run.save_p_star(p_star, scores, fine_tuned, photos=len(photos), versions=VERSIONS)
        best = {key: best_exponent(found) for key, found in scores.items()}
        tuned = {key: found["p_star"] for key, found in fine_tuned.items()}
        if scores:
            pictures.exponent_picture(run.results / "p_star.png", scores, best, tuned)
        if sweep:
            run.save_exponent_sweep(swept)
            pictures.sweep_picture(run.results / "sweep.png", swept, best, tuned)
    return p_star


def fit_whitening(
    run: Run,
    source: Source,
    poolings: Sequence[float | str] = (),
    measure_classes: bool = False,
    resolutions: Sequence[int] | None = None,
    embedder: Embedder | None = None,
) -> str:
    """Fits the whitening (section 3.4), with the bias channel, at each of the run's resolutions with its p*.

    Writes whitening.npz (training resolution: the exported one), whitening-SIZE.npz and whitening.json. Whitenings of
    other poolings that an earlier fit left at these resolutions are removed: they may have been fitted otherwise.

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

    Returns:
        str, what it was fitted on.

    Raises:
        UserError: there are too few photos for the dimensions, or a setting of the whitening is out of range.
    """
    config = run.settings
    photos, kind = _whitening_photos(config, source)
    versions = config.whitening_versions
    settings = {"shrinkage": config.whitening_shrinkage, "dimensions": config.whitening_dimensions}
    with _whitening_refused(len(photos), kind):
        needed = {"dimensions": config.whitening_dimensions} if versions else settings
        check_fit(len(photos), run.model.embedding_dimension + 1, **needed)
    sizes = resolutions or config.resolutions
    edits = f" and {versions} versions of each" if versions else ""
    announce(f"fitting a whitening at {_pixels(sizes)} on {len(photos):,} {kind}{edits}")
    embedder = embedder or embedder_of(run)
    for size in sizes:
        exponent = exponent_at(run, size)
        wanted = list(dict.fromkeys([exponent, *poolings]))
        found = embedder.embed(photos, size, wanted, f"whitening at {size} px")
        edited = None
        if versions:
            edited = embed_versions(
                run.model,
                photos.subset(found.rows),
                augmentations.get(config.augmentation),
                size,
                versions,
                wanted,
                config.seed,
                f"versions for the whitening at {size} px",
            ).values
        with _whitening_refused(len(found.rows), kind):
            fitted = {
                pooling: _fitted(found.values[place], None if edited is None else edited[place], **settings)
                for place, pooling in enumerate(wanted)
            }
        whitening = fitted[exponent]
        entry = {
            "p_star": exponent,
            "dimensions": whitening.projection_.shape[1],
            "embedding_dimensions": whitening.projection_.shape[0],
            "variance_kept": whitening.variance_kept_,
            "shrinkage": config.whitening_shrinkage,
            "photos": len(found.rows),
            "fitted_on": kind,
            **({"versions": versions} if versions else {}),
        }
        if measure_classes or entry["dimensions"] < entry["embedding_dimensions"]:
            val = embedder.embed(source.val, size, [exponent], f"class agreement at {size} px")
            if not len(val.rows):
                raise UserError("none of the validation photos can be used: class agreement can't be measured")
            labels = source.val.labels[val.rows]
            entry |= class_agreement(whitening, val.values[0], labels, run.model.classify)
            entry["validation_photos"] = len(val.rows)
        for stale in run.results.glob(f"whitening-{size}-*.npz"):
            stale.unlink()
        whitening.save(run.whitening_path(size))
        for pooling in poolings:
            fitted[pooling].save(run.whitening_path(size, pooling))
        run.save_whitening_report({**run.whitening_report, size: entry})
    return f"{len(found.rows)} {kind}"


def _fitted(embeddings, edited, shrinkage, dimensions):
    """A `Whitening` by PCA, or learned from the versions `edited` [N V, d] of the photos, those of one together."""
    if edited is None:
        return Whitening.fit(embeddings, shrinkage=shrinkage, dimensions=dimensions)
    given = {} if shrinkage is None else {"shrinkage": shrinkage}
    versions = edited.reshape(len(embeddings), -1, embeddings.shape[1])
    return Whitening.fit_on_versions(embeddings, versions, dimensions=dimensions, **given)


def _pixels(sizes):
    return f"{', '.join(map(str, sizes))} px"


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


@contextlib.contextmanager
def _whitening_refused(count, kind):
    """What the whitening refuses is for the user to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"whitening on {count} {kind}: {error}") from error
