"""Measuring a trained run, or an exported SavedModel, on benchmarks; a run's scores stay in its folder."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mg_keras.data import sources
from mg_keras.data.images import decode
from mg_keras.data.sources import Source
from mg_keras.embedding.embedder import Embedder
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators as benchmarks
from mg_keras.evaluation import measure, pictures
from mg_keras.evaluation.records import merged, paper_tables, summary
from mg_keras.evaluation.search import nearest
from mg_keras.finishing.category_pictures import category_picture
from mg_keras.finishing.pooling_exponent import VERSIONS, in_aug_photos
from mg_keras.finishing.stages import COMPARISON, choose_p_star, embedder_of, exponent_at, fit_whitening
from mg_keras.pretrained.packed import Packed
from mg_keras.progress import announce
from mg_keras.runs.projection import projection_of
from mg_keras.runs.run import Run

_QUERIES, _NEIGHBOURS = 6, 7


def open_benchmarks(
    run: Run,
    source: Source,
    specs: Sequence[str] | None = None,
    rotations: str | os.PathLike | None = None,
    distractors: str | os.PathLike | None = None,
    neighbors: int = benchmarks.NEIGHBORS,
    neighbor_temperature: float = benchmarks.TEMPERATURE,
) -> list[benchmarks.Benchmark]:
    """The benchmarks of a run.

    Args:
        run: `Run`.
        source: its photos.
        specs: of `classes`, `in_aug`, `copies`, `views`, `categories`, `probe` (the run's own photos), and `NAME=PATH`
            as `benchmarks.open_benchmark` takes them; None: all of the run's own, without `classes` where the photos
            have no labels, without `categories` where these are of one level, and without `probe`.
        rotations: file that turns the photos of Holidays upright, or None.
        distractors: folder of photos to search the copies among, or None.
        neighbors, neighbor_temperature: of the votes in `categories` and `probe`.

    Returns:
        list of `Benchmark`.

    Raises:
        UserError: there is no such benchmark, or its folder lacks something.
    """
    config = run.settings
    own = {
        "classes": lambda: benchmarks.classes(source.val, run.class_names),
        "in_aug": lambda: benchmarks.in_aug(
            in_aug_photos(source.train, config.in_aug_per_class, config.seed), VERSIONS
        ),
        "copies": lambda: benchmarks.copies(
            source.val, sources.photos(distractors, config.data_dir) if distractors else None, seed=config.seed
        ),
    }
    if source.val.instances is not None:
        own["views"] = lambda: benchmarks.views(source.val)
    votes = {"neighbors": neighbors, "neighbor_temperature": neighbor_temperature}
    own |= {
        "categories": lambda: benchmarks.categories(source, neighbors, neighbor_temperature),
        "probe": lambda: benchmarks.probe(source, neighbors, neighbor_temperature),
    }
    if specs is None:
        left_out = {"classes": not source.val.labelled, "categories": len(source.label_columns) < 2, "probe": True}
        specs = [name for name in own if not left_out.get(name)]
    opened = []
    for spec in specs:
        if "=" in spec:
            opened.append(_open_by_folder(spec, run.class_names, rotations, distractors, config.data_dir, **votes))
        elif spec in own:
            opened.append(own[spec]())
        else:
            raise UserError(
                f"this run has no benchmark {spec!r}: of its own photos there are {', '.join(own)}; others need a "
                "folder, as in holidays=PATH"
            )
    return opened


def _open_by_folder(spec, class_names, rotations, distractors, data_dir, **votes):
    return benchmarks.open_benchmark(
        spec, class_names=class_names, rotations=rotations, distractors=distractors, data_dir=data_dir, **votes
    )


def complete(run: Run, source: Source, embedder: Embedder | None = None) -> Iterator[str]:
    """Chooses p* and fits the whitening at those of the run's resolutions where that is still to be done.

    Args:
        run: `Run`.
        source: its photos.
        embedder: `stages.embedder_of` the run, shared with `evaluate`; None: one of its own.

    Yields:
        str, what was done.
    """
    missing = [size for size in run.settings.resolutions if size not in run.p_star]
    if missing:
        chosen = choose_p_star(run, source, resolutions=missing)
        yield "p* " + ", ".join(f"{size} px: {chosen[size]:g}" for size in missing)
    missing = [size for size in run.settings.resolutions if not _whitened(run, size)]
    if missing:
        places = ", ".join(f"{size} px" for size in missing)
        try:
            fitted_on = fit_whitening(run, source, COMPARISON, resolutions=missing, embedder=embedder)
            yield f"whitening at {places} fitted on {fitted_on}"
        except UserError as error:
            yield f"not whitened at {places}: {error}"


def _whitened(run, size):
    """Whether there is a whitening of a resolution's descriptors as p* has them now."""
    fitted_at = run.whitening_report.get(size, {}).get("p_star", exponent_at(run, size))
    return run.whitening_at(size) is not None and fitted_at == exponent_at(run, size)


def evaluate(
    run: Run,
    source: Source,
    chosen: Sequence[benchmarks.Benchmark] | None = None,
    comparison: bool = False,
    embedder: Embedder | None = None,
) -> dict[str, Any]:
    """Measures a run on benchmarks, at each of its resolutions, with its p*, with and without its whitening.

    Writes metrics.json, in which the scores of other benchmarks and resolutions stay, and for the run's own photos
    scores.png and retrieval.png.

    Args:
        run: `Run`.
        source: its photos.
        chosen: list of `Benchmark`; None: those of the run's own photos.
        comparison: whether to measure average pooling and R-MAC on the same trunk, too.
        embedder: `stages.embedder_of` the run, shared with the stages before; None: one of its own.

    Returns:
        dict, what metrics.json holds: `resolutions`, `chance` and `sizes` in short for the run's own photos;
        `benchmarks` in full, as `measure_all` gives them; `method`, which says what was measured; and the
        figures of the `paper`.

    Raises:
        UserError: none of the photos of a benchmark can be used.
    """
    config = run.settings
    chosen = open_benchmarks(run, source) if chosen is None else chosen
    rows_at, projection = {}, projection_of(run)
    for size in config.resolutions:
        p_star = exponent_at(run, size)
        rows_at[size] = measure.rows(p_star, functools.partial(_whitening_of, run, size, p_star), comparison)
        if projection:
            rows_at[size].append(measure.Row("gem_projected", p_star, projection))

    def known(benchmark, size):
        # p* was chosen by this score: without rows for comparison there is nothing more to find out
        score = run.p_star_scores.get(size, {}).get(exponent_at(run, size))
        return {"gem": {"score": score}} if benchmark.name == "in_aug" and score and not comparison else None

    def keep(benchmark, size, found):
        if benchmark.name == "copies" and size == config.resolution:
            _picture(run, source, benchmark, found)
        if benchmark.name == "categories" and size == config.resolution and len(benchmark.photos.parts) == 2:
            category_picture(run.results / "categories.png", source, found, run.whitening, config.seed)

    left = [benchmark for benchmark in chosen if not all(known(benchmark, size) for size in config.resolutions)]
    announce(_plan(left, config.resolutions))
    measured = measure.measure_all(embedder or embedder_of(run), chosen, rows_at, known, config.seed, keep)
    everything = merged(run.metrics.get("benchmarks", {}), measured)
    metrics = {
        **summary(everything, {size: exponent_at(run, size) for size in config.resolutions}),
        "sizes": {
            "classes": len(run.class_names),
            "train_photos": len(source.train),
            "test_photos": len(source.val),
            "unusable_test_photos": everything.get("classes", {}).get("unusable", []),
        },
        "method": {
            "name": config.trunk,
            "classification_weight": config.classification_weight,
            "augmentation": config.augmentation,
            "pooling_exponent": config.pooling_exponent,
        },
        "benchmarks": everything,
        "paper": paper_tables(),
    }
    run.save_metrics(metrics)
    if metrics["resolutions"]:
        pictures.scores_picture(run.results / "scores.png", metrics)
    return metrics


def _plan(chosen, sizes):
    """What is going to be measured, in a line."""
    counts = ", ".join(f"{benchmark.name} ({len(benchmark.photos):,} photos)" for benchmark in chosen)
    return f"measuring at {', '.join(map(str, sizes))} px: {counts}"


def _whitening_of(run, size, p_star, pooling):
    """The whitening of embeddings pooled so, or None. At p* = 1 average pooling is GeM."""
    return run.whitening_at(size, None if pooling == p_star else pooling)


def evaluate_exported(
    exported: Any,
    specs: Sequence[str],
    sizes: Sequence[int] | None = None,
    rotations: str | os.PathLike | None = None,
    distractors: str | os.PathLike | None = None,
    **votes,
) -> dict[str, Any]:
    """Measures an exported SavedModel on benchmarks that have a folder of their own.

    Args:
        exported: `mg_keras.export.opened.Exported`.
        specs: list of `NAME=PATH`, as `benchmarks.open_benchmark` takes them.
        sizes: s*, pixels; None: those that the SavedModel has a p* for, or else the training resolution.
        rotations, distractors, votes: as `open_benchmarks` takes them.

    Returns:
        dict: `benchmarks`, `method` and `paper`, as in `evaluate`.

    Raises:
        UserError: no benchmark, or one that can't be opened.
    """
    _need_folders(specs)
    if exported.train_resolution is None:
        raise UserError(
            f"{exported.path} does not say at which resolution it was trained: export it with mg-keras export"
        )
    sizes = sizes or sorted(exported.p_star) or [exported.train_resolution]
    chosen = [_open_by_folder(spec, exported.class_names, rotations, distractors, None, **votes) for spec in specs]
    rows_at = {size: [measure.Row("exported", exported.p_star.get(size, exported.pooling_exponent))] for size in sizes}
    announce(_plan(chosen, sizes))
    measured = measure.measure_all(Embedder(exported, exported.train_resolution), chosen, rows_at)
    about = {"name": exported.about["trunk"], "pooling_exponent": exported.pooling_exponent}
    return {"benchmarks": merged({}, measured), "method": about, "paper": paper_tables()}


def evaluate_packed(
    packed: Packed,
    specs: Sequence[str],
    sizes: Sequence[int] | None = None,
    rotations: str | os.PathLike | None = None,
    distractors: str | os.PathLike | None = None,
    **votes,
) -> dict[str, Any]:
    """Measures a packed network, such as the model in the package, on benchmarks that have a folder of their own.

    Args:
        packed: `mg_keras.pretrained.packed.Packed`.
        specs, rotations, distractors, votes: as `evaluate_exported` takes them.
        sizes: s*, pixels; None: the one that it is used at where nobody says otherwise.

    Returns:
        dict, as `evaluate_exported` gives it.

    Raises:
        UserError: no benchmark, or one that can't be opened.
    """
    _need_folders(specs)
    about, whitening = packed.about, packed.whitening
    sizes = sizes or [about.get("default_resolution") or about["resolution"]]
    names = about.get("class_ids") or about.get("class_names") or []
    chosen = [_open_by_folder(spec, names, rotations, distractors, None, **votes) for spec in specs]
    p_star = {int(size): float(value) for size, value in about.get("p_star", {}).items()}
    rows_at = {
        size: measure.rows(p_star.get(size, about["pooling_exponent"]), lambda pooling: whitening) for size in sizes
    }
    announce(_plan(chosen, sizes))
    measured = measure.measure_all(Embedder(packed.network(), about["resolution"]), chosen, rows_at)
    method = {"name": about["trunk"], "pooling_exponent": about["pooling_exponent"]}
    return {"benchmarks": merged({}, measured), "method": method, "paper": paper_tables()}


def _need_folders(specs):
    if not specs or any("=" not in spec for spec in specs):
        raise UserError(f"a SavedModel is measured on --benchmarks NAME=PATH, received {specs}")


def _picture(run, source, benchmark, found):
    """Draws some queries of the copies benchmark with what they find: their edited copies and the other test photos."""
    search, photos, whitening = benchmark.search, benchmark.photos, run.whitening
    values = found.values[0]
    descriptors = whitening.transform(values) if whitening else values
    place_of = {int(row): place for place, row in enumerate(found.rows)}
    usable = [i for i, query in enumerate(search.queries) if int(query) in place_of]
    chosen = np.random.default_rng(run.settings.seed + 1).permutation(usable)[:_QUERIES]
    original_of = {int(copy): int(search.queries[i]) for i, copies in enumerate(search.positives) for copy in copies}

    def photo(row):
        picture = decode(photos.read(tf.constant(row, tf.int64))).numpy()
        original = original_of.get(row, row)
        if original >= len(source.val):
            return pictures.Photo(picture, "distractor", f"distractor {row}")
        instances = source.val.instances
        instance = original if instances is None else instances[original]
        label = source.val.labels[original]
        return pictures.Photo(picture, run.class_names[label] if label >= 0 else None, str(instance))

    # the queries' own copies, and every test photo and distractor, the queries too: as a person would search
    strangers = set(original_of) - {int(copy) for i in chosen for copy in search.positives[i]}
    database = np.array([place for row, place in place_of.items() if row not in strangers])
    queries = [int(search.queries[i]) for i in chosen]
    if not queries:
        return
    similarities, indices = nearest(
        descriptors[[place_of[query] for query in queries]],
        descriptors[database],
        min(_NEIGHBOURS + 1, len(database)),
    )
    neighbours = []
    for query, *pair in zip(queries, indices, similarities, strict=True):
        rows = [(int(found.rows[database[i]]), similarity) for i, similarity in zip(*pair, strict=True)]
        neighbours.append([(photo(row), similarity) for row, similarity in rows if row != query][:_NEIGHBOURS])
    pictures.retrieval_picture(run.results / "retrieval.png", [photo(query) for query in queries], neighbours)
