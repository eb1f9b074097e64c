"""Times the augmentation recipes: versions of a decoded photo that one core makes in a second.

    python -m benchmarks.augmentations
    python -m benchmarks.augmentations --recipes full,copies --sizes 224

The photo is of about 500x375 pixels, made for the occasion. Each recipe makes versions in a `tf.data` map, as in
training, but one at a time on one thread. The processor's time counts, so that other work on the machine matters
little. Contestants take turns; the table gives medians.
"""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import benchmark_parser
from benchmarks.photos import write_photos
from benchmarks.timing import interleaved_times, machine, per_second, print_table
from mg_keras.errors import UserError
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow


def contestant(photo, recipe, size, versions):
    """A contestant: `versions` versions of the photo, each with a seed of its own."""
    import tensorflow as tf

    from mg_keras.data import augmentations

    augment = augmentations.get(recipe)
    seeds = tf.data.Dataset.range(tf.int64.max).map(lambda number: tf.stack([number, 0]))
    iterator = iter(seeds.map(lambda seed: augment(photo, size, seed)))

    def run():
        start = time.process_time()
        for _ in range(versions):
            next(iterator)
        return time.process_time() - start

    return run


def main():
    """Parses the arguments and prints the table."""
    parser = benchmark_parser("augmentations", __doc__)
    parser.add_argument("--recipes", default="standard,full,autoaugment,copies", help="%(default)s")
    parser.add_argument("--sizes", default="160,224", help="pixels of the versions (%(default)s)")
    parser.add_argument("--versions", type=int, default=400, help="versions in a round (400)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (5)")
    options = parser.parse_args()
    for name in ("versions", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, received {getattr(options, name)}")
    recipes, sizes = options.recipes.split(","), options.sizes.split(",")
    for size in sizes:
        if not size.isdecimal() or int(size) < 3:
            raise UserError(f"--sizes must be whole numbers of at least 3 pixels, such as 160,224; received {size!r}")
    # before TensorFlow is imported, which reads it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import_tensorflow()
    import tensorflow as tf

    from mg_keras.data import images

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder, 2)
        photo = images.load(Path(folder, "0001.jpg"))
    runs = {
        (recipe, size): contestant(photo, recipe, int(size), options.versions) for recipe in recipes for size in sizes
    }
    times = interleaved_times(runs, options.repeats, warm_up=1)
    print_table(
        f"versions a second of one core, median (fastest) of {options.repeats} rounds of {options.versions}",
        ("augmentation", *(f"{size} px" for size in sizes)),
        [[name, *(per_second(options.versions, times[name, size]) for size in sizes)] for name in recipes],
    )


if __name__ == "__main__":
    run_program(main)
