"""Times and weighs the embedding of photos of mixed sizes, and what several pooling exponents add to it.

    python -m benchmarks.embedding
    python -m benchmarks.embedding --data folder:PATH --photos 500

* `speed`: `mg_keras.embedding` from files (decode, resize, same-shape batches, network) against the bare network on the
  same batches from memory: ResNet-50 at s* = 500. Without `--data` the photos are JPEGs of about 500x375 pixels,
  each of its own size, made for the occasion.
* `memory`: resident memory while `embed` goes through 900 such photos, in a process of its own.
* `exponents`: ten pooling exponents from one pass of the trunk against one.

`--part` runs one alone. Contestants take turns; the tables give medians.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.photos import write_photos
from benchmarks.timing import interleaved_times, machine, milliseconds, per_second, print_table, ratio, timed
from mg_keras.errors import UserError
from mg_keras.programs.common import list_of, run_program
from mg_keras.quiet import import_tensorflow

NUM_CLASSES = 1000
EXPONENTS = tuple(range(1, 11))
# where memory is looked at, as shares of the photos: after 100, 300, 500, 700 and 900 of 900
MARKS = (1 / 9, 3 / 9, 5 / 9, 7 / 9, 1)


def build(trunk):
    """A model whose weights are random: they don't matter here."""
    import keras

    from mg_keras import MultiGrain

    keras.utils.set_random_seed(0)
    return MultiGrain(trunk, NUM_CLASSES)


def photos_of(folder, count):
    """`count` photos below a folder, over and over where it has fewer."""
    from mg_keras.data import sources

    split = sources.photos(folder)
    return split.subset(np.arange(count) % len(split))


def speed_part(folder, options):
    """Prints the table of images a second."""
    from mg_keras.embedding.photos import embed, forward_function, preparation_of, prepared_batches

    model, split = build(options.trunk), photos_of(folder, options.photos)
    # the training resolution: below s*, so that photos keep their shapes
    train_resolution = options.resolution - 1
    prepared = prepared_batches(split, options.resolution, train_resolution, preparation=preparation_of(model))
    batches = [batch.images for batch in prepared]
    forward = forward_function(model)

    def bare():
        for images in batches:
            one_pass(forward, images)

    names = "from files, embed()", "bare network, same batches"
    runs = {names[0]: lambda: embed(model, split, options.resolution, train_resolution), names[1]: bare}
    times = interleaved_times({name: timed(run) for name, run in runs.items()}, options.repeats, warm_up=1)
    print_table(
        f"{options.photos} photos in {len(batches)} batches of {len({batch.shape[1:3] for batch in batches})} shapes, "
        f"{options.trunk} at s* = {options.resolution}\nmedian (fastest) of {options.repeats}",
        ("embedding", "images a second", "rate / bare"),
        [[name, per_second(options.photos, times[name]), f"{ratio(times, names[1], name):.3f}"] for name in times],
    )
    # a pass takes a minute, and a machine that others use may be slower for one: the fastest passes tell more
    fastest = min(times[names[1]]) / min(times[names[0]])
    print(
        f"embed() / bare network: {ratio(times, names[1], names[0]):.3f} of the images a second, {fastest:.3f} by the "
        "fastest passes (to be at least 0.9)\n"
    )


class Weighed:
    """A network that notes how many photos it has described, and the resident memory then."""

    def __init__(self, model):
        self.model, self.count, self.notes = model, 0, []

    def embed_batch(self, images, poolings):
        """As the model does."""
        import tensorflow as tf

        def note(number):
            self.count += int(number)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.notes.append((self.count, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            return self.count

        with tf.control_dependencies([tf.numpy_function(note, [tf.shape(images)[0]], tf.int64)]):
            return self.model.embed_batch(tf.identity(images), poolings)


def memory_part(folder, options):
    """Prints the table of resident memory."""
    from mg_keras.embedding.photos import embed

    network = Weighed(build(options.trunk))
    embed(network, photos_of(folder, options.memory_photos), options.resolution, options.resolution - 1)
    counts, megabytes = np.array(network.notes).T
    rows, peaks, before = [], [], 0
    for mark in MARKS:
        until = np.searchsorted(counts, round(mark * options.memory_photos)) + 1
        peaks.append(megabytes[before:until].max())
        rows.append([f"{counts[:until][-1]:.0f}", f"{megabytes[:until][-1]:.0f}", f"{peaks[-1]:.0f}"])
        before = min(until, len(counts) - 1)
    print_table(
        f"Resident memory of embed(), {options.trunk} at s* = {options.resolution}\nMB",
        ("photos", "memory", "highest since the row above"),
        rows,
    )
    print(f"highest at the end / at first: {peaks[-1] / peaks[0]:.3f} (to be level)\n")


def one_pass(forward, images):
    """Runs the network and waits for its answer."""
    return forward(images).numpy()


def exponents_part(options):
    """Prints the table of one pass with one exponent and with ten."""
    import tensorflow as tf

    from mg_keras.embedding.photos import forward_function

    rows, ratios = [], []
    for place in options.exponents_at:
        trunk, _, pixels = place.partition(":")
        model, side = build(trunk), int(pixels)
        images = tf.constant(np.random.default_rng(0).uniform(0, 255, (options.batch_size, side, side, 3)), tf.float32)
        passes = {
            count: timed(functools.partial(one_pass, forward_function(model, EXPONENTS[-count:]), images))
            for count in (1, len(EXPONENTS))
        }
        times = interleaved_times(passes, 5 * options.repeats)
        ratios.append(f"{ratio(times, 10, 1):.3f} for {trunk} at {side} px")
        rows.append([f"{trunk} at {side} px", *(milliseconds(times[count]) for count in passes), ratios[-1].split()[0]])
    print_table(
        f"A pass over {options.batch_size} images\nms, median (fastest) of {5 * options.repeats}",
        ("network", "one exponent", "ten exponents", "ratio of medians"),
        rows,
    )
    print(f"ten exponents / one: {', '.join(ratios)} (to be at most 1.3)\n")


def main():
    """Parses the arguments and runs the parts asked for."""
    parser = benchmark_parser("embedding", __doc__)
    parser.add_argument("--part", choices=["speed", "memory", "exponents", "all"], default="all")
    parser.add_argument("--data", help="folder:PATH, photos in any subfolders; default: generated JPEGs")
    parser.add_argument("--photos", type=int, default=500, help="photos of --part speed (500)")
    parser.add_argument("--memory-photos", type=int, default=900, help="photos of --part memory (900)")
    parser.add_argument("--trunk", default="resnet50", help="name of a trunk (resnet50)")
    parser.add_argument("--resolution", type=int, default=500, help="s*, pixels (500)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (3); five times as many for exponents")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a pass of --part exponents (8)")
    parser.add_argument(
        "--exponents-at", type=list_of(str), default=["resnet50:224", "resnet18:96"], help="TRUNK:PIXELS,..."
    )
    options = parser.parse_args()
    for name, least in (("photos", 1), ("memory_photos", 9), ("resolution", 2), ("repeats", 1), ("batch_size", 1)):
        value = getattr(options, name)
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, received {value}")
    for place in options.exponents_at:
        if not place.partition(":")[2].isdecimal():
            raise UserError(f"--exponents-at must be TRUNK:PIXELS, such as resnet50:224, received {place!r}")
    kind, _, path = (options.data or "folder:generated").partition(":")
    if kind != "folder" or not path:
        raise UserError(f"--data must be folder:PATH, received {options.data!r}")
    import_tensorflow()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as generated:
        if options.part in ("all", "exponents"):
            exponents_part(options)
        if not options.data and options.part != "exponents":
            path = generated
            write_photos(path, options.photos)
        if options.part in ("all", "speed"):
            speed_part(path, options)
        if options.part == "memory":
            memory_part(path, options)
        elif options.part == "all":
            # what the other parts left in memory would hide what this one adds
            sys.stdout.flush()
            alone = ["--part=memory", f"--data=folder:{path}", f"--trunk={options.trunk}"]
            alone += [f"--memory-photos={options.memory_photos}", f"--resolution={options.resolution}"]
            subprocess.run([sys.executable, "-m", "benchmarks.embedding", *alone], check=True)


if __name__ == "__main__":
    run_program(main)
