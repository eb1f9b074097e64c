"""Writes the descriptors of photos: mg-keras embed --run runs/demo --photos FOLDER --out features.parquet.

The network is a run's (--run) or a SavedModel (--model). A run's descriptors are of unit norm where they are whitened,
and as pooled otherwise; a SavedModel's are those that it serves. --out is one of

* features.parquet: a row a photo, with its id, uri, width, height, embedding, class, probability, error;
* features/: the same as a folder of Parquet shards, however many photos there are;
* features.npy: float32 [N, D] of the photos that could be used; features.txt beside it lists them,
  features.unusable.txt the others.

The same command after Ctrl-C, a crash or `kill -9` embeds what is left.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_keras.errors import UserError
from mg_keras.programs.common import Parser, number
from mg_keras.quiet import import_tensorflow

if TYPE_CHECKING:
    from mg_keras.embedding.photos import EmbeddingNetwork


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the descriptors, and where they are."""
    parser = Parser("mg-keras embed", __doc__)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", type=str, help="the run's folder, such as runs/demo")
    network.add_argument("--model", type=str, help="a SavedModel of mg-keras export, such as models/multigrain")
    parser.add_argument("--photos", type=str, required=True, help="folder of photos, at any depth")
    parser.add_argument("--out", type=str, required=True, help="features.parquet, features/ or features.npy")
    parser.add_argument(
        "--dtype", choices=["float16", "float32"], help="of the descriptors; default: float32 for .npy, else float16"
    )
    parser.add_argument("--photos_a_shard", type=number(int, at_least=1), help="at most; default: 4096")
    parser.add_argument("--resolution", type=number(int, at_least=1), help="s*, pixels; default: that of training")
    parser.add_argument(
        "--p_star", type=number(float, above=0), help="exponent; default: the one chosen for the resolution"
    )
    parser.add_argument(
        "--whiten", type=bool, help="true or false; default: where one was fitted for the resolution and p*"
    )
    options = parser.parse_args(arguments)
    import_tensorflow()
    from mg_keras.data.sources import photos
    from mg_keras.embedding.photos import embed_to_files
    from mg_keras.embedding.shards import PHOTOS_A_SHARD

    split = photos(options.photos)
    network, settings = (of_run if options.run else of_model)(options)
    described, unusable = embed_to_files(
        network,
        split,
        options.out,
        **settings,
        label="photos",
        dtype=options.dtype,
        photos_a_shard=options.photos_a_shard or PHOTOS_A_SHARD,
    )
    whitened = "whitened" if settings["whitening"] or getattr(network, "whitened", False) else "not whitened"
    print(
        f"written: {options.out}, {described:,} photos at {settings['resolution']} px, "
        f"p* = {settings['pooling']:g}, {whitened}"
    )
    if options.out.endswith(".npy") and (unusable or split.passed_over):
        listed = Path(options.out).with_suffix(".unusable.txt")
        print(f"{unusable + len(split.passed_over):,} photos could not be used or were passed over: see {listed}")
    elif unusable:
        print(f"{unusable:,} photos could not be used: the column error says why")


def of_run(options: Namespace) -> "tuple[EmbeddingNetwork, dict[str, Any]]":
    """(network, what `embed_to_files` needs), as the run has chosen where the options don't say."""
    from mg_keras.runs.run import load_run

    run = load_run(options.run)
    resolution = options.resolution or run.settings.resolution
    chosen = run.results.exponent_at(resolution)
    # the whitening is of descriptors as the chosen p* makes them: with another p* it has to be asked for
    wanted = options.p_star in (None, chosen) if options.whiten is None else options.whiten
    whitening = run.results.whitening_at(resolution) if wanted else None
    if options.whiten and whitening is None:
        raise UserError(
            f"{run.path} has no whitening for {resolution} px: run mg-keras whiten --run {run.path} "
            f"--resolutions {resolution}, or give --whiten false"
        )
    return run.model, {
        "resolution": resolution,
        "train_resolution": run.settings.resolution,
        "pooling": options.p_star or chosen,
        "whitening": whitening,
        "class_names": run.class_names or None,
    }


def of_model(options: Namespace) -> "tuple[EmbeddingNetwork, dict[str, Any]]":
    """(network, what `embed_to_files` needs), as the SavedModel says where the options don't."""
    from mg_keras.export.opened import Exported

    network = Exported.load(options.model)
    if options.whiten not in (None, network.whitened):
        there = "are whitened" if network.whitened else "are not whitened"
        raise UserError(f"--whiten must be left out with --model: the descriptors of {network.path} {there}")
    if network.train_resolution is None:
        raise UserError(
            f"{network.path} does not say at which resolution it was trained: export it with mg-keras export"
        )
    resolution = options.resolution or network.train_resolution
    return network, {
        "resolution": resolution,
        "train_resolution": network.train_resolution,
        "pooling": options.p_star or network.p_star.get(resolution, network.pooling_exponent),
        "whitening": None,
        "class_names": network.class_names or None,
    }
