"""Measuring a trained run, or an exported SavedModel, on benchmarks; a run's scores stay in its folder."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from mg_keras import objectives
from mg_keras.data import sources
from mg_keras.data.sources import Source
from mg_keras.embedding.embedder import Embedder
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators, measure, pictures
from mg_keras.evaluation.folders import Options, open_benchmark
from mg_keras.evaluation.pictures.categories import category_picture
from mg_keras.evaluation.pictures.copies import copies_picture
from mg_keras.evaluation.records import merged, paper_tables, summary
from mg_keras.export.optimized import Optimized
from mg_keras.finishing.pooling_exponent import VERSIONS, in_aug_photos
from mg_keras.pretrained.packed import Packed
from mg_keras.programs.stages import embedder_of
from mg_keras.progress import announce
from mg_keras.runs.descriptor import is_whitened
from mg_keras.runs.projection import projection_of
from mg_keras.runs.run import Run


def open_benchmarks(
    run: Run, source: Source, specs: Sequence[str] | None = None, options: Options | None = None
) -> list[evaluators.Benchmark]:
    """The benchmarks of a run.

    Args:
        run: `Run`.
        source: its photos.
        specs: of `classes`, `in_aug`, `copies`, `views`, `categories`, `probe` (the run's own photos), and `NAME=PATH`
            as `open_benchmark` takes them; None: all of the run's own, without `classes` where the photos
            have no labels, without `categories` where these are of one level, and without `probe`.
        options: what benchmarks need beside their photos; None: nothing.

    Returns:
        list of `Benchmark`.

    Raises:
        UserError: there is no such benchmark, or its folder lacks something.
    """
    config, options = run.settings, options or Options()
    options = dataclasses.replace(options, data_dir=config.data_dir)
    own = {
        "classes": lambda: evaluators.classes(source.val, run.class_names),
        "in_aug": lambda: evaluators.in_aug(
            in_aug_photos(source.train, config.in_aug_per_class, config.seed), VERSIONS
        ),
        "copies": lambda: evaluators.copies(
            source.val,
            sources.photos(options.distractors, config.data_dir) if options.distractors else None,
            seed=config.seed,
            largest_resolution=max(config.resolutions),
        ),
        "categories": lambda: evaluators.categories(source, *options.votes),
        "probe": lambda: evaluators.probe(source, *options.votes),
    }
    if source.val.instances is not None:
        own["views"] = lambda: evaluators.views(source.val)
    if specs is None:
        specs = _measured_by_default(source)
    opened = []
    for spec in specs:
        if "=" in spec:
            opened.append(open_benchmark(spec, run.class_names, options))
        elif spec in own:
            opened.append(own[spec]())
        else:
            raise UserError(
                f"this run has no benchmark {spec!r}: of its own photos there are {', '.join(own)}; others need a "
                "folder, as in holidays=PATH"
            )
    return opened


def _measured_by_default(source):
    """The names of the benchmarks of a run's own photos that need not be named."""
    asked = {
        "classes": source.val.labelled,
        "in_aug": True,
        "copies": True,
        "categories": len(source.label_columns) >= 2,
        "views": source.val.instances is not None,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def evaluate(
    run: Run,
    source: Source,
    chosen: Sequence[evaluators.Benchmark] | None = None,
    comparison: bool = False,
    embedder: Embedder | None = None,
) -> dict[str, Any]:
    """Measures a run on benchmarks, at each of its resolutions, with its p*, with and without its whitening.

    A whitening that was fitted at another p*, or before training went on, is none of these descriptors, and not taken.

    Writes metrics.json, in which scores of the same network by other benchmarks and at other resolutions stay, and for
    the run's own photos scores.png, retrieval.png and, of labels of two levels, categories.png.

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
    config, results = run.settings, run.results
    chosen = open_benchmarks(run, source) if chosen is None else chosen
    rows_at, projection = {}, projection_of(run)
    whitened = [size for size in results.whitened_resolutions if is_whitened(run, size)]
    for size in config.resolutions:
        p_star = results.exponent_at(size)
        whitening_of = functools.partial(_whitening_of, results, size, p_star) if size in whitened else _no_whitening
        rows_at[size] = measure.rows(p_star, whitening_of, comparison)
        if projection:
            rows_at[size].append(measure.Row("gem_projected", p_star, projection))

    def keep(benchmark, size, found):
        if size != config.resolution:
            return
        more = found, results.whitening if size in whitened else None, config.seed
        if benchmark.name == "copies":
            copies_picture(results.folder / "retrieval.png", benchmark, source.val, run.class_names, *more)
        if benchmark.name == "categories":
            category_picture(results.folder / "categories.png", source, *more)

    announce(_plan(chosen, config.resolutions))
    measured = measure.measure_all(embedder or embedder_of(run), chosen, rows_at, config.seed, keep)
    network = run.fingerprint
    # what was measured before training went on does not stay; files of earlier releases don't say which network it was
    before = results.metrics if results.metrics.get("network") in (None, network) else {}
    everything = merged(before.get("benchmarks", {}), measured)
    # those that were measured before, at other resolutions than now, too
    sizes = {int(size) for benchmark in everything.values() for size in benchmark["results"]}
    metrics = {
        **summary(everything, {size: results.exponent_at(size) for size in sizes}, whitened),
        "sizes": {
            "classes": len(run.class_names),
            "train_photos": len(source.train),
            "test_photos": len(source.val),
            "unusable_test_photos": everything.get("classes", {}).get("unusable", []),
        },
        "method": {
            "name": config.trunk,
            "classification_weight": objectives.weight_of(config.objective, config.classification_weight),
            "augmentation": ", ".join(config.recipes),
            "pooling_exponent": config.pooling_exponent,
        },
        "network": network,
        "step": run.model_step,
        "benchmarks": everything,
        "paper": paper_tables(),
    }
    results.save_metrics(metrics)
    if metrics["resolutions"]:
        pictures.scores_picture(results.folder / "scores.png", metrics)
    return metrics


def is_measured(run: Run, source: Source) -> bool:
    """Whether what `evaluate` writes of a run's own photos is there, of its network, p*, whitenings and photos now."""
    results, metrics = run.results, run.results.metrics
    if metrics.get("network") != run.fingerprint or metrics["sizes"]["test_photos"] != len(source.val):
        return False
    if not all((results.folder / picture).exists() for picture in ("scores.png", "retrieval.png")):
        return False
    names = _measured_by_default(source)
    for size in run.settings.resolutions:
        rows = {name: metrics["benchmarks"].get(name, {"results": {}})["results"].get(str(size), {}) for name in names}
        exponent = results.exponent_at(size)
        if any(found.get("gem", {}).get("pooling") != exponent for found in rows.values()):
            return False
        if ("gem_whitened" in rows["copies"]) != is_whitened(run, size):
            return False
    return True


def _plan(chosen, sizes):
    """What is going to be measured, in a line."""
    counts = ", ".join(f"{benchmark.name} ({len(benchmark.photos):,} photos)" for benchmark in chosen)
    return f"measuring at {', '.join(map(str, sizes))} px: {counts}"


def _whitening_of(results, size, p_star, pooling):
    """The whitening of embeddings pooled so, or None. At p* = 1 average pooling is GeM."""
    return results.whitening_at(size, None if pooling == p_star else pooling)


def _no_whitening(pooling):
    return None


def evaluate_exported(
    exported: Any,
    specs: Sequence[str],
    sizes: Sequence[int] | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Measures an exported SavedModel on benchmarks that have a folder of their own.

    Args:
        exported: `mg_keras.export.opened.Exported`.
        specs: list of `NAME=PATH`, as `open_benchmark` takes them.
        sizes: s*, pixels; None: those that the SavedModel has a p* for, or else the one that photos are described at.
        options: as `open_benchmarks` takes them.

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
    sizes = sizes or sorted(exported.p_star) or [exported.default_resolution]
    chosen = [open_benchmark(spec, exported.class_names, options) for spec in specs]
    rows_at = {size: [measure.Row("exported", exported.p_star.get(size, exported.pooling_exponent))] for size in sizes}
    method = {"name": exported.about["trunk"], "pooling_exponent": exported.pooling_exponent}
    return _measured(exported, exported.train_resolution, chosen, rows_at, method)


def evaluate_packed(
    packed: Packed,
    specs: Sequence[str],
    sizes: Sequence[int] | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Measures a packed network, such as the model in the package, on benchmarks that have a folder of their own.

    Args:
        packed: `mg_keras.pretrained.packed.Packed`.
        specs, options: as `evaluate_exported` takes them.
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
    chosen = [open_benchmark(spec, names, options) for spec in specs]
    p_star = {int(size): float(value) for size, value in about.get("p_star", {}).items()}
    rows_at = {
        size: measure.rows(p_star.get(size, about["pooling_exponent"]), lambda pooling: whitening) for size in sizes
    }
    method = {"name": about["trunk"], "pooling_exponent": about["pooling_exponent"]}
    return _measured(Optimized(packed.network()), about["resolution"], chosen, rows_at, method)


def _need_folders(specs):
    if not specs or any("=" not in spec for spec in specs):
        raise UserError(f"a model without a run is measured on --benchmarks NAME=PATH, received {specs}")


def _measured(network, train_resolution, chosen, rows_at, method):
    announce(_plan(chosen, rows_at))
    measured = measure.measure_all(Embedder(network, train_resolution), chosen, rows_at)
    return {"benchmarks": merged({}, measured), "method": method, "paper": paper_tables()}
