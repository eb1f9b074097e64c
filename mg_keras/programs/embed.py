"""Writes the descriptors of photos: mg-keras embed --run runs/demo --photos FOLDER --out features.parquet.

--photos takes folders, photos, globs, lists (.csv, .tsv, .txt, .parquet) and WebDataset tars, here or where fsspec
reads (s3://bucket/photos/). The network is a run's (--run), a SavedModel or the one in the package (--model). A run's
descriptors are of unit norm where they are whitened, and as pooled otherwise; a SavedModel's are those that it serves,
the package's those of mg_keras.load(). --out is one of

* features.parquet: a row a photo, with its id, uri, width, height, sha256, embedding, class, probability, error;
* features/: the same as a folder of Parquet shards, however many photos there are;
* features.npy: float32 [N, D] of the photos that could be used; features.txt beside it lists them,
  features.unusable.txt the others.

--engine says where photos are described: local, in this process; ray, on a Ray cluster or on this machine's cores;
serving, by TF Serving. All write the same. The same command after Ctrl-C, a crash or `kill -9` embeds what is left.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg_keras.errors import UserError
from mg_keras.poolings import MOST_EXPONENT
from mg_keras.pretrained import PACKAGED
from mg_keras.programs.common import Parser, number
from mg_keras.progress import announce
from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    from mg_keras.embedding.settings import Settings
    from mg_keras.engines.contract import Engine
    from mg_keras.export.files import ExportedFiles


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the descriptors, and where they are."""
    parser = Parser("mg-keras embed", __doc__)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", type=str, help="the run's folder, such as runs/demo")
    network.add_argument("--model", type=str, help="a SavedModel, such as models/mine, or package: that of mg_keras")
    add = parser.add_argument
    add("--photos", type=str, nargs="+", required=True, help="folders, globs, lists or tars, as above")
    add("--out", type=str, required=True, help="features.parquet, features/ or features.npy")
    add("--dtype", choices=["float16", "float32"], help="of the descriptors; default: float32 for .npy, else float16")
    add("--photos_a_shard", type=number(int, at_least=1), help="at most; default: 256 to 4096, by the number of photos")
    add("--resolution", type=number(int, at_least=1), help="s*, pixels; default: the model's, else that of training")
    add(
        "--p_star",
        type=number(float, above=0, at_most=MOST_EXPONENT),
        help="exponent; default: the one chosen for the resolution",
    )
    add("--whiten", type=bool, help="true or false; default: where one was fitted for the resolution and p*")
    add("--engine", choices=list(ENGINES), default="local", help="where photos are described")
    of_ray = parser.add_argument_group("--engine ray, with a SavedModel")
    of_ray.add_argument("--address", type=str, help="of the cluster, such as auto; default: RAY_ADDRESS, or none")
    of_ray.add_argument("--workers", type=number(int, at_least=1), help="default: as many as there is room for")
    of_ray.add_argument("--cpus_a_worker", type=number(int, at_least=1), help="cores it uses; default: 2")
    of_ray.add_argument("--gpus_a_worker", type=number(float, above=0), help="such as 1 or 0.5; default: none")
    of_serving = parser.add_argument_group("--engine serving, with the SavedModel that is served")
    of_serving.add_argument("--servers", type=str, nargs="+", help="HOST:PORT of gRPC or http://HOST:PORT of REST")
    of_serving.add_argument("--name", type=str, help="the model's name there; default: multigrain")
    of_serving.add_argument("--in_flight", type=number(int, at_least=1), help="requests to a server; default: 4")
    of_serving.add_argument("--batch", type=number(int, at_least=1), help="photos of a request; default: 8")
    options = parser.parse_args(arguments)
    _check_flags(options)

    engine, settings, whitened = ENGINES[options.engine](options)
    # pyarrow and more, which a mistake in the arguments need not wait for
    from mg_keras.data.photo_lists import PhotoList
    from mg_keras.engines.running import embed_to_files

    photos = PhotoList(options.photos)
    with engine:
        written = embed_to_files(
            engine, photos, options.out, "photos", dtype=options.dtype, photos_a_shard=options.photos_a_shard
        )
    print(
        f"written: {options.out}, {written.described:,} photos at {settings.resolution} px, "
        f"p* = {settings.pooling:g}, {'whitened' if whitened else 'not whitened'}"
    )
    if options.out.endswith(".npy") and (written.unusable or photos.passed_over):
        listed = Path(options.out).with_suffix(".unusable.txt")
        count = written.unusable + len(photos.passed_over)
        print(f"{count:,} photos could not be used or were passed over: see {listed}")
    elif written.unusable:
        print(f"{written.unusable:,} photos could not be used: the column error says why")


_FLAGS = {
    "ray": ("address", "workers", "cpus_a_worker", "gpus_a_worker"),
    "serving": ("servers", "name", "in_flight", "batch"),
}


def _check_flags(options):
    for engine, flags in _FLAGS.items():
        for flag in flags:
            if options.engine != engine and options[flag] is not None:
                raise UserError(f"--{flag} is for --engine {engine}; received --engine {options.engine}")
    if options.engine != "local" and (options.run or options.model == PACKAGED):
        export = f"--run {options.run} --out models/NAME" if options.run else "--out models/package"
        raise UserError(f"--engine {options.engine} takes a SavedModel: mg-keras export {export} makes one for --model")
    if options.engine == "serving" and not options.servers:
        raise UserError("--engine serving needs --servers, such as 10.0.0.1:8500 or http://10.0.0.1:8501")


def _local(options: Namespace) -> "tuple[Engine, Settings, bool]":
    """(engine, its settings, whether descriptors are whitened) of this process."""
    import_tensorflow()
    if options.run:
        return _of_run(options)
    if options.model == PACKAGED:
        return _of_package(options)
    from mg_keras.engines.local import Local
    from mg_keras.export.opened import Exported

    network = Exported.load(options.model)
    settings = _of_model(options, network)
    return Local(network, settings), settings, network.whitened


def _of_run(options):
    """As the run has chosen where the options don't say."""
    from mg_keras.embedding.settings import Settings
    from mg_keras.engines.local import Local
    from mg_keras.export.optimized import Optimized
    from mg_keras.runs.descriptor import notes, whiten_command
    from mg_keras.runs.run import load_run

    run = load_run(options.run)
    resolution = options.resolution or run.settings.resolution
    chosen = run.results.exponent_at(resolution)
    # the whitening is of descriptors as the chosen p* makes them: with another p* it has to be asked for
    wanted = options.p_star in (None, chosen) if options.whiten is None else options.whiten
    whitening = run.results.whitening_at(resolution) if wanted else None
    if options.whiten and whitening is None:
        raise UserError(
            f"{run.path} has no whitening for {resolution} px: run {whiten_command(run, [resolution])}, "
            "or give --whiten false"
        )
    for note in notes(run, [] if options.p_star else [resolution], [resolution] if whitening else []):
        announce(note)
    pooling, names = options.p_star or chosen, run.class_names or None
    settings = Settings(resolution, run.settings.resolution, pooling, whitening, names)
    return Local(Optimized(run.model), settings), settings, whitening is not None


def _of_package(options):
    """As search and duplicates describe photos where no model is named."""
    from mg_keras.engines.local import Local
    from mg_keras.loading import load

    model = load()
    _check_whiten(options, "the model in the package", model.whitened)
    settings = model.settings(options.resolution, options.p_star)
    return Local(model.network, settings), settings, model.whitened


def _check_whiten(options, what, whitened):
    if options.whiten not in (None, whitened):
        there = "are whitened" if whitened else "are not whitened"
        raise UserError(f"--whiten must be left out with --model: the descriptors of {what} {there}")


def _of_model(options: Namespace, files: "ExportedFiles") -> "Settings":
    """As the SavedModel says where the options don't."""
    from mg_keras.embedding.settings import Settings

    _check_whiten(options, files.path, files.whitened)
    if files.train_resolution is None:
        raise UserError(f"{files.path} does not say at which resolution it was trained: export it with mg-keras export")
    resolution = options.resolution or files.default_resolution
    pooling = options.p_star or files.p_star.get(resolution, files.pooling_exponent)
    return Settings(resolution, files.train_resolution, pooling, None, files.class_names)


def _ray(options: Namespace) -> "tuple[Engine, Settings, bool]":
    """As `_local`, of a Ray cluster; this process needs no TensorFlow."""
    from mg_keras.engines.ray import Ray
    from mg_keras.export.files import ExportedFiles

    files = ExportedFiles(options.model)
    settings = _of_model(options, files)
    engine = Ray(files, settings, options.address, options.workers, options.cpus_a_worker, options.gpus_a_worker or 0.0)
    return engine, settings, files.whitened


def _serving(options: Namespace) -> "tuple[Engine, Settings, bool]":
    """As `_local`, of servers of the model."""
    if not all(server.startswith(("http://", "https://")) for server in options.servers):
        # whose messages gRPC takes
        import_tensorflow()
    from mg_keras.engines.serving import Serving
    from mg_keras.export.files import ExportedFiles

    files = ExportedFiles(options.model)
    settings = _of_model(options, files)
    more = {"name": options.name, "in_flight": options.in_flight, "batch": options.batch}
    more = {name: value for name, value in more.items() if value is not None}
    return Serving(files, settings, options.servers, **more), settings, files.whitened


ENGINES: "dict[str, Callable[[Namespace], tuple[Engine, Settings, bool]]]" = {
    "local": _local,
    "ray": _ray,
    "serving": _serving,
}
"""Engine -> what opens it: (engine, its settings, whether its descriptors are whitened)."""
