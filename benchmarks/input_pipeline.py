"""Times repeated augmentation: one decode for the m versions of a photo against one decode for each version.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --data folder:PATH

Both give batches of 96 versions at 224 px through `repeated_batches`, as training does: m = 3 versions of 32 photos, or
one version of 96. Without `--data` the photos are JPEGs of about 500x375 pixels, made for the occasion, with as many
bytes as such photos have in ImageNet (about 110 KB). The clock starts after the first batches. All rounds read the same
files, so they come from the disk's cache. Contestants take turns; the table gives medians.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

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


def compare(folder, options):
    """Prints the table for the photos below a folder."""
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
    print(
        f"one decode for {VERSIONS} versions / one a version: "
        f"{', '.join(f'{gain:.2f} with {recipe}' for recipe, gain in gains.items())} (to be at least 1.5 with standard)"
    )


def main():
    """Parses the arguments and prints the table for the photos asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder:PATH, photos in any subfolders; default: generated JPEGs")
    parser.add_argument("--size", type=int, default=224, help="pixels of the versions (224)")
    parser.add_argument("--batch-size", type=int, default=96, help="versions in a batch (96)")
    parser.add_argument("--steps", type=int, default=8, help="batches in a round (8)")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (9)")
    options = parser.parse_args()
    for name in ("size", "batch_size", "steps", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, received {getattr(options, name)}")
    kind, _, path = (options.data or "folder:generated").partition(":")
    if kind != "folder" or not path:
        raise UserError(f"--data must be folder:PATH, received {options.data!r}")
    import_tensorflow()
    print(machine())
    if options.data:
        compare(path, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder, 2 * options.batch_size)
        compare(folder, options)


if __name__ == "__main__":
    run_program(main)
