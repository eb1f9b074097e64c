"""What the benchmarks share: contestants that take turns, medians, and one kind of table."""

import os
import statistics
import time

# The threads of one library go on spinning for a while after its work, on cores that the next one needs.
_PAUSE = 0.25


def interleaved_times(contestants, repeats, warm_up=3):
    """Seconds that each contestant reports, in turns, so that whatever else the machine does falls on all alike.

    Every other round goes through them backwards: none always comes after the same one.

    Args:
        contestants: {name: function without arguments -> the seconds its work took}; see `timed`.
        repeats: int >= 1, timed calls of each.
        warm_up: int, calls of each beforehand, for tracing, allocation and the disk's cache.

    Returns:
        {name: [seconds] * repeats}.

    Raises:
        ValueError: `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, received {repeats}")
    times = {name: [] for name in contestants}
    for repeat in range(-warm_up, repeats):
        for name in list(contestants)[:: -1 if repeat % 2 else 1]:
            time.sleep(_PAUSE)
            seconds = contestants[name]()
            if repeat >= 0:
                times[name].append(seconds)
    return times


def timed(run, clock=time.perf_counter):
    """A contestant that is all of `run()`, which returns when its work is done.

    Args:
        run: function without arguments.
        clock: function without arguments -> seconds.
    """

    def contestant():
        start = clock()
        run()
        return clock() - start

    return contestant


def work_clock():
    """(clock, its name), for work of TensorFlow that may take a second and more.

    The processor time of all threads, which counts nothing of what other processes do meanwhile; with a GPU, of which
    that knows nothing, the time of day.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return time.perf_counter, "time by the clock"
    return time.process_time, "processor time"


def timed_at_work(run, seconds=0.5):
    """A contestant that is one of many calls of `run()`, for work of milliseconds: the mean of `seconds` of them.

    What comes after a pause, with cold caches and threads that sleep, is not counted.
    """

    def contestant():
        until = time.perf_counter() + seconds / 4
        while time.perf_counter() < until:
            run()
        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() < start + seconds:
            run()
            calls += 1
        return (time.perf_counter() - start) / calls

    return contestant


def ratio(times, of, to):
    """The median time of contestant `of` divided by that of contestant `to`."""
    return statistics.median(times[of]) / statistics.median(times[to])


def milliseconds(seconds):
    """`"median (fastest)"` in milliseconds, as a table's cell."""
    return f"{statistics.median(seconds) * 1e3:.1f} ({min(seconds) * 1e3:.1f})"


def print_ratios(title, what, times, base, repeats):
    """Prints the table of contestants: median and fastest, and the ratio of the median to that of `base`."""
    rows = [[name, milliseconds(seconds), f"{ratio(times, name, base):.3f}"] for name, seconds in times.items()]
    print_table(f"{title}\nms, median (fastest) of {repeats}", (what, "ms", f"ratio of medians, to {base}"), rows)


def per_second(count, seconds):
    """`"median (fastest)"` rate of something that gives `count` items a call, as a table's cell."""
    median, fastest = (count / value for value in (statistics.median(seconds), min(seconds)))
    digits = 0 if median >= 100 else 2
    return f"{median:.{digits}f} ({fastest:.{digits}f})"


def machine():
    """What figures depend on: cores, what else was running, and the libraries' versions."""
    import keras
    import tensorflow as tf

    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load average {load:.1f}, TensorFlow {tf.__version__}, Keras {keras.__version__}"


def print_table(title, headings, rows):
    """Prints a table, wide enough for its cells whatever it is printed to.

    Args:
        title: str.
        headings: a str a column; the first is the rows' name and stands left, the others right.
        rows: lists of str.
    """
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table()
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # a log file counts as 80 columns wide
    unbound = console.options.update(max_width=10_000)
    console.width = max(console.width, 120, console.measure(table, options=unbound).maximum)
    # not as the table's title, which would be broken at the table's width
    console.print(title, highlight=False)
    console.print(table)
