"""Progress of long work: rate and estimate, as a bar on a terminal (rich) or as lines of a log."""

import concurrent.futures
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich import progress as bars
from rich.console import Console
from rich.table import Column

# files that are looked at in a second or two: no more need be said of them
_QUICK = 5_000


def announce(text: str) -> None:
    """Says, where progress is shown, what is about to take its time."""
    print(text, file=sys.stderr, flush=True)


@functools.cache
def say(line: str) -> None:
    """Tells the user, on standard error, of what is not used, once though several stages open the same photos."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Shows how far work has come, how fast it goes and when it will be done.

    On a terminal that is a bar; elsewhere (a log file) a line is written about every `log_seconds`. Nothing is shown
    before the first unit is done. Use as a context manager.

    Args:
        label: what is being done.
        total: units in all.
        unit: what a unit is (`"photos"`).
        start: units already done before (not counted in the rate).
        log_seconds: seconds between the lines of a log.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, log_seconds: float = 15.0):
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = start
        self.began = self.last = time.monotonic()
        self.bar = _bar() if sys.stderr.isatty() else None
        self.interval = 0.25 if self.bar else log_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.done > self.start:
            self._show("" if error[0] is None else "stopped", final=True)
        if self.bar:
            self.bar.stop()

    @property
    def rate(self) -> float:
        """Units a second since this work began."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, units: int = 1, note: Callable[[], str] | None = None) -> None:
        """Counts `units` more; `note()` gives text to show, and is called only when a line is due."""
        self.done += units
        if time.monotonic() - self.last >= self.interval:
            self._show(note() if note else "")

    def skip(self, units: int = 1) -> None:
        """Counts `units` more that were found done, and are no part of the rate."""
        self.start += units
        self.done += units

    def _show(self, note, final=False):
        self.last = time.monotonic()
        if final:
            timing = f"took {_clock(self.last - self.began)}"
        else:
            # as long as nothing was done, nothing is known
            timing = f"{_clock((self.total - self.done) / self.rate)} left" if self.rate else ""
        count = f"{self.done:,}/{self.total:,} {self.unit}  {self.rate:,.1f}/s  {timing}  {note}".rstrip()
        if not self.bar:
            print(f"{self.label}  {count}", file=sys.stderr, flush=True)
            return
        if not self.bar.tasks:
            self.bar.start()
            self.bar.add_task(self.label, total=self.total, count="")
        self.bar.update(self.bar.task_ids[0], completed=self.done, count=count, refresh=final)


def _bar():
    # what is printed meanwhile goes above the bar; not into the terminal, where standard output is a file
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(20),
        bars.TextColumn("{task.fields[count]}", markup=False, table_column=Column(overflow="fold")),
        console=Console(stderr=True),
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )


def mapped(
    function: Callable[[Any], Any], items: Sequence, label: str, unit: str = "files", together: int = 64
) -> list:
    """`[function(item) for item in items]` by threads, for work that waits for a disk; shows progress where it is long.

    Args:
        function: safe to call from several threads.
        items: what to call it with.
        label, unit: as `Progress` takes them.
        together: items that a thread takes at a time; 1 says that each of them is long work.
    """
    items = list(items)
    starts = range(0, len(items), together)
    long = together == 1 or len(items) > _QUICK
    with (
        Progress(label, len(items) if long else 0, unit) as progress,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        try:
            found = []
            for part in threads.map(lambda start: [function(item) for item in items[start : start + together]], starts):
                found += part
                if long:
                    progress.advance(len(part))
            return found
        except BaseException:
            # Ctrl-C shall not wait for all that was still to come
            threads.shutdown(cancel_futures=True)
            raise


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
