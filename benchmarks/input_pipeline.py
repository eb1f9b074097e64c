"""Times repeated augmentation: one decode for the m versions of a photo, and ways to read photos.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --part decoding --data folder:PATH
    python -m benchmarks.input_pipeline --part reading --latency 40

All give batches of 96 versions at 224 px through `repeated_batches`, as training does. `--part decoding`: m = 3
versions of 32 photos against one version of 96. `--part reading`: m = 3, photos of files and of TFRecords by number
against interleaved shards, on the local disk and in a store that takes `--latency` milliseconds to answer any request,
as object stores do. Without `--data` the photos are JPEGs of about 500x375 pixels, made for the occasion, with as many
bytes as such photos have in ImageNet (about 110 KB). The clock starts after the first batches. All rounds read the
same files, so they come from the disk's cache. Contestants take turns; the table gives medians.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.photos import write_photos
from benchmarks.timing import interleaved_times, machine, per_second, print_table, ratio
from mg_keras.errors import UserError
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow

VERSIONS = 3
RECIPES = ("full", "standard")
# taken before the clock starts: setting up takes a second, and the first few come from buffers filled meanwhile
WARM_UP_BATCHES = 4


def contestant(photos, recipe, versions, options):
    """A contestant: `options.steps` batches from a pipeline under way."""
    from mg_keras.data import augmentations
    from mg_keras.data.images import BadImages
    from mg_keras.data.repeated import repeated_batches

    batches = repeated_batches(
        photos,
        augmentations.get(recipe),
        size=options.size,
        batch_size=options.batch_size,
        versions=versions,
        bad_images=BadImages(),
    )

    def run():
        # a new iterator each time, gone at the end: one left waiting would go on working in its rivals' turns
        iterator = iter(batches)
        for _ in range(WARM_UP_BATCHES):
            next(iterator)
        start = time.perf_counter()
        for _ in range(options.steps):
            next(iterator)
        return time.perf_counter() - start

    return run


def decoding_part(folder, options):
    """Prints the table of one decode for all versions and one for each, for the photos below a folder."""
    from mg_keras.data import sources

    photos = sources.photos(folder)
    kilobytes = np.mean([Path(name).stat().st_size for name in photos.names]) / 1000
    runs = {
        (recipe, versions): contestant(photos, recipe, versions, options)
        for recipe in RECIPES
        for versions in (VERSIONS, 1)
    }
    times = interleaved_times(runs, options.repeats, warm_up=1)
    count = options.steps * options.batch_size
    gains = {recipe: ratio(times, (recipe, 1), (recipe, VERSIONS)) for recipe in RECIPES}
    print_table(
        f"Batches of {options.batch_size} at {options.size} px from {len(photos)} photos of {kilobytes:.0f} KB\n"
        f"versions a second, median (fastest) of {options.repeats} rounds of {options.steps} batches",
        ("augmentation", f"one decode for {VERSIONS} versions", "one decode a version", "ratio of medians"),
        [
            [recipe, *(per_second(count, times[recipe, versions]) for versions in (VERSIONS, 1)), f"{gain:.2f}"]
            for recipe, gain in gains.items()
        ],
    )
    told = ", ".join(f"{gain:.2f} with {recipe}" for recipe, gain in gains.items())
    print(f"one decode for {VERSIONS} versions / one a version: {told} (to be at least 1.5 with standard)\n")


def slow_store(milliseconds):
    """Makes fsspec read `slow://PATH`, a local file that any request waits for."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class SlowFiles(LocalFileSystem):
        protocol = "slow"

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).removeprefix("slow://"))

        def cat_file(self, path, start=None, end=None, **options):
            time.sleep(milliseconds / 1000)
            return super().cat_file(path, start, end, **options)

    fsspec.register_implementation("slow", SlowFiles, clobber=True)


def write_shards(photos, folder, photos_a_shard=16):
    """Writes a split's photos as TFRecords."""
    import tensorflow as tf

    for first in range(0, len(photos), photos_a_shard):
        with tf.io.TFRecordWriter(str(Path(folder, f"train-{first:05}.tfrecord"))) as writer:
            for number in range(first, min(first + photos_a_shard, len(photos))):
                record = tf.train.Example()
                record.features.feature["image"].bytes_list.value.append(photos.read(tf.constant(number)).numpy())
                record.features.feature["label"].int64_list.value.append(0)
                writer.write(record.SerializeToString())


def readers(photos, shards, cache):
    """Way to read -> `Split` of the same photos: on the disk, and through `slow_store`."""
    from mg_keras.data.shards import Index, open_index
    from mg_keras.data.sources.shards import shard_split

    paths = sorted(map(str, Path(shards).glob("*.tfrecord")))
    count = len(photos)
    sizes = np.array([Path(name).stat().st_size for name in photos.names])
    nothing = np.zeros(count, np.int64)
    # files of their own, in the same store
    files = Index(photos.names, np.arange(count, dtype=np.int32), nothing, sizes, nothing, nothing, photos.names)
    records = open_index(paths, "tfrecord", Path(cache))
    found = {}
    for place, prefix in (("local disk", ""), ("object store", "slow://")):
        one, other = (
            dataclasses.replace(index, paths=[prefix + path for path in index.paths]) for index in (files, records)
        )
        by_number = photos if not prefix else dataclasses.replace(shard_split(one, nothing), stream=None)
        interleaved = shard_split(other, nothing)
        found[place, "files by number"] = by_number
        found[place, "records by number"] = dataclasses.replace(interleaved, stream=None)
        found[place, "interleaved shards"] = interleaved
    return found


def reading_part(folder, options):
    """Prints the table of the ways to read the photos below a folder."""
    from mg_keras.data import sources

    photos = sources.photos(folder)
    slow_store(options.latency)
    with tempfile.TemporaryDirectory() as shards:
        write_shards(photos, shards)
        runs = {
            name: contestant(split, RECIPES[1], VERSIONS, options)
            for name, split in readers(photos, shards, Path(shards, "index")).items()
        }
        times = interleaved_times(runs, options.repeats, warm_up=1)
    count = options.steps * options.batch_size
    places, ways = (list(dict.fromkeys(part)) for part in zip(*runs, strict=True))
    gains = {place: [ratio(times, (place, way), (place, ways[-1])) for way in ways[:-1]] for place in places}
    print_table(
        f"Batches of {options.batch_size} at {options.size} px from {len(photos)} photos, {VERSIONS} versions each, "
        f"{RECIPES[1]}; the object store answers after {options.latency} ms\n"
        f"versions a second, median (fastest) of {options.repeats} rounds of {options.steps} batches",
        ("reading", *places),
        [[way, *(per_second(count, times[place, way]) for place in places)] for way in ways],
    )
    told = (f"{files:.2f} and {records:.2f} times on {place}" for place, (files, records) in gains.items())
    print(f"interleaved shards / files and records by number: {', '.join(told)}")


PARTS = {"decoding": decoding_part, "reading": reading_part}


def main():
    """Parses the arguments and prints the tables asked for."""
    parser = benchmark_parser("input_pipeline", __doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--latency", type=int, default=30, help="milliseconds of --part reading's object store (30)")
    parser.add_argument("--data", help="folder:PATH, photos in any subfolders; default: generated JPEGs")
    parser.add_argument("--size", type=int, default=224, help="pixels of the versions (224)")
    parser.add_argument("--batch-size", type=int, default=96, help="versions in a batch (96)")
    parser.add_argument("--steps", type=int, default=8, help="batches in a round (8)")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (9)")
    options = parser.parse_args()
    for name in ("latency", "size", "batch_size", "steps", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, received {getattr(options, name)}")
    kind, _, path = (options.data or "folder:generated").partition(":")
    if kind != "folder" or not path:
        raise UserError(f"--data must be folder:PATH, received {options.data!r}")
    import_tensorflow()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if not options.data:
            path = folder
            write_photos(folder, 2 * options.batch_size)
        for part in PARTS if options.part == "all" else [options.part]:
            PARTS[part](path, options)


if __name__ == "__main__":
    run_program(main)
