"""Ablations: presets that are each trained with several seeds, one run after another, and the table of their scores.

An ablation is a folder of ordinary runs, named `<preset>-seed<seed>`; whatever makes them, the table is read from their
`metrics.json`. A preset that is trained for several lengths, or with several values of a setting, has a row of the
table for each, `<preset>-<epochs>epochs` or `<preset>-<setting>=<value>`.
"""

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mg_keras.errors import UserError
from mg_keras.evaluation.records import ABLATION_SCORES
from mg_keras.files import atomic_write_json, atomic_write_text, check_writable, try_lock, wait_for_lock
from mg_keras.quiet import import_tensorflow
from mg_keras.runs.config import PLACES, TrainConfig
from mg_keras.runs.run import Run
from mg_keras.signals import on_stop

_NAME = re.compile(r"(?P<preset>.+)-seed\d+")
_LENGTH = re.compile(r"(?P<preset>.+)-(?P<epochs>\d+)epochs")
_VARIED = re.compile(r"(?P<preset>.+)-(?P<setting>\w+)=(?P<value>[^=]+)")


def row_name(preset: str, setting: str | None = None, value: str | None = None, epochs: int | None = None) -> str:
    """The name of a preset's row in the table, of its runs with a value of a setting and of so many epochs.

    Example:
        >>> row_name("demo", "classification_weight", "0.3", epochs=20)
        'demo-classification_weight=0.3-20epochs'
    """
    name = preset if setting is None else f"{preset}-{setting}={value}"
    return name if epochs is None else f"{name}-{epochs}epochs"


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of an ablation.

    Attributes:
        preset: its row of the table, a `row_name`.
        config: `TrainConfig`, with its seed.
        out: the ablation's folder.
    """

    preset: str
    config: TrainConfig
    out: Path

    @property
    def name(self) -> str:
        """`<preset>-seed<seed>`."""
        return f"{self.preset}-seed{self.config.seed}"

    @property
    def run(self) -> Run:
        """The `Run` in its folder, which need not exist yet."""
        return Run(Path(self.out) / self.name, self.config)


def is_finished(run: Run) -> bool:
    """Whether a run is trained to its end and measured there. Its checkpoints may have been removed since.

    Files of earlier releases don't say at which step it was measured, and count.
    """
    metrics = run.results.metrics
    if not metrics.get("resolutions"):
        return False
    if not run.checkpoints.paths():
        return True
    return run.trained_share >= 1 and metrics.get("step") in (None, run.trained_steps)


def runs_in(out: str | os.PathLike) -> dict[str, list[Run]]:
    """The runs in an ablation's folder, begun or finished, as dict preset -> list of `Run` by rising seed."""
    found = {}
    for path in sorted(Path(out).glob("*-seed*")):
        name = _NAME.fullmatch(path.name)
        if name and (path / "config.yaml").is_file():
            found.setdefault(name["preset"], []).append(Run.open(path))
    return {preset: sorted(runs, key=lambda run: run.settings.seed) for preset, runs in found.items()}


def check_members(members: Sequence[Member]) -> None:
    """Refuses what would end in a table that compares unlike runs, before hours go into it.

    Raises:
        UserError: two presets of one name, a seed twice, or a run of one of the presets in the folder that has other
            settings, with the differences.
    """
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"each preset and each seed must be given once; twice: {', '.join(repeated)}")
    there = runs_in(members[0].out) if members else {}
    for member in members:
        for run in there.get(member.preset, []):
            _check_alike(run, member.config)


def check_trainable(members: Sequence[Member]) -> None:
    """Refuses what a member can't be trained with, or not be compared by, before hours go into the others.

    Args:
        members: list of `Member`; those that are finished are passed over.

    Raises:
        UserError: a batch can't be divided as a member's settings ask for, its trunk is unknown, or it would begin with
            other photos, by their numbers, than a run of its preset in the folder was begun with.
    """
    members = [member for member in members if not is_finished(member.run)]
    for member in members:
        with _told_of(member):
            member.config.part_size(1)
    if members:
        # apart: this process waits for days, and would keep what TensorFlow takes, most of a GB
        apart = multiprocessing.get_context("spawn")
        # Ctrl-C is this process's matter
        with ProcessPoolExecutor(1, apart, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            pool.submit(_check_with_tensorflow, members).result()


def _check_with_tensorflow(members):
    import_tensorflow()
    from mg_keras.models import trunks

    for member in members:
        with _told_of(member):
            trunks.check_known(member.config.trunk)
    _check_begun_alike(members)


def _check_begun_alike(members):
    """`_check_same_photos` of what is not begun yet, by the numbers of photos: these are known before training."""
    from mg_keras.runs.photos import open_source

    there, counts = runs_in(members[0].out), {}
    for member in members:
        begun = [run for run in there.get(member.preset, []) if run.data_record]
        if not begun or member.run.data_record:
            continue
        config = member.config
        division = config.train_per_class, config.val_per_class, config.val_fraction
        key = config.data, config.data_dir, *division, *config.resolutions
        if key not in counts:
            with _told_of(member):
                # the same seed divides the same photos alike
                source = open_source(dataclasses.replace(config, seed=begun[0].settings.seed))
            counts[key] = len(source.train), len(source.val)
        for run in begun:
            before = run.data_record["training_photos"], run.data_record["validation_photos"]
            if before != counts[key]:
                raise UserError(
                    f"{config.data} has {counts[key][0]:,} training and {counts[key][1]:,} validation photos, where "
                    f"{run.path} was begun with {before[0]:,} and {before[1]:,}: give the same photos, or another "
                    "--out folder"
                )


@contextlib.contextmanager
def _told_of(member):
    try:
        yield
    except UserError as error:
        raise UserError(f"{member.name}: {error}") from error


def _check_alike(run, config):
    """A preset's runs differ in their seed alone; their photos may have moved meanwhile."""
    changed = run.settings.differences(dataclasses.replace(config, seed=run.settings.seed), without=PLACES)
    if changed:
        raise UserError(
            f"{run.path} holds a run with other settings ({'; '.join(changed)}): the runs of a preset must differ in "
            "their seed alone; give the same settings, or another --out folder"
        )


def _check_same_photos(run, other):
    """Moved photos are the same; a table of runs on others would compare what can't be compared."""
    records = run.data_record, other.data_record
    if all(records) and records[0] != records[1]:
        raise UserError(
            f"{run.path} was trained on other photos ({run.settings.data}) than {other.path} "
            f"({other.settings.data}): give another --out folder"
        )


def train_members(
    members: Sequence[Member],
    train: Callable[[TrainConfig, Path], Any],
    report: Callable[[], Any] | None = None,
    check: Callable[[Sequence[Member]], None] | None = None,
) -> tuple[dict[str, str], int | None]:
    """Trains what is not finished yet, one member after the other, each in a process of its own.

    A member that fails or is killed doesn't keep the others from their turn. SIGINT and SIGTERM are passed on to the
    member at work, which saves, and nothing else is started. If this process is killed itself, the member saves and
    ends too. The same call goes on from there.

    Args:
        members: list of `Member`, in the order of their turns.
        train: (config, folder) -> None, which pickle must know (`functools.partial` of a module's function); called in
            a new Python, where an exit status other than 0 or an exception is a failure.
        report: () -> None, called after each member that was finished; a `UserError` of it is told in a line.
        check: members -> None, called before the first one's turn; what it raises ends the call.

    Returns:
        (failures, stopped): dict name -> reason, and the number of the signal that asked to stop, or None.

    Raises:
        UserError: of `check_members`.
    """
    check_members(members)
    if check:
        check(members)
    for member in members[:1]:
        check_writable(member.out)
    failures, seconds = {}, {}
    with _pass_signals_on() as relay:
        for number, member in enumerate(members, start=1):
            if relay.received:
                break
            if is_finished(member.run):
                print(f"run {number} of {len(members)}: {member.name} is finished", flush=True)
                continue
            left = _time_left(members[number - 1 :], seconds)
            print(f"run {number} of {len(members)}: {member.name}" + (f", {left}" if left else ""), flush=True)
            fresh, began = not member.run.trained_share, time.monotonic()
            reason = _train_apart(member, train, relay)
            if reason is None:
                if fresh:
                    seconds.setdefault(member.preset, []).append(time.monotonic() - began)
                if report:
                    try:
                        report()
                    except UserError as error:
                        print(f"no table: {error}", file=sys.stderr, flush=True)
            elif not relay.received:
                failures[member.name] = reason
                print(f"{member.name} failed: {reason}", file=sys.stderr, flush=True)
    return failures, relay.received


def _time_left(members, seconds):
    """`about 1:02:30 left`, judged by whole runs of this sitting, by those of the same preset where there are any."""
    if not seconds:
        return ""
    every = [value for values in seconds.values() for value in values]
    left = sum(
        (1 - member.run.trained_share) * np.mean(seconds.get(member.preset, every))
        for member in members
        if not is_finished(member.run)
    )
    return f"about {datetime.timedelta(seconds=round(left))} left"


class _Relay:
    """Hands signals to the process at work; `received` is the last one's number."""

    def __init__(self):
        self.received = self.process = None

    def handle(self, number):
        self.received = number
        self.send()

    def send(self):
        if self.process is not None:
            # it may be ending just now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, self.received)


@contextlib.contextmanager
def _pass_signals_on():
    relay = _Relay()
    with on_stop(relay.handle):
        yield relay


def _train_apart(member, train, relay):
    """Trains a member in a new process; returns why it failed, or None."""
    # spawned, not forked: TensorFlow must start afresh, with its own threads, devices and random state
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(train, member.config, member.run.path, sender))
    process.start()
    sender.close()
    relay.process = process
    if relay.received:
        # it came while the process was being made
        relay.send()
    while process.is_alive():
        # in turns: a signal that another thread of NumPy's took is looked at only when this wait ends
        process.join(0.5)
    relay.process = None
    with receiver:
        try:
            said = receiver.recv()
        except EOFError:
            said = None
    if process.exitcode == 0:
        return None
    if process.exitcode < 0:
        return f"killed by signal {signal.Signals(-process.exitcode).name}"
    return said or f"ended with exit status {process.exitcode}"


def _child(train, config, folder, sender):
    """What the new process does."""
    # Ctrl-C in a terminal reaches its whole group: out of it, this process gets only what is passed on, and once
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder.mkdir(parents=True, exist_ok=True)
    # held until this process ends
    descriptor = os.open(folder, os.O_RDONLY)
    if not try_lock(descriptor):
        print(f"{folder}: waiting for another process that still works there", flush=True)
        wait_for_lock(descriptor)

    try:
        train(config, folder)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        sender.send(str(error))
        sys.exit(2)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
        raise


def _end_with_parent():
    """Asks this process to stop, as Ctrl-C does, once the one that started it is gone, even by `kill -9`."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def collect(out: str | os.PathLike, presets: Sequence[str] | None = None) -> dict[str, Any]:
    """The scores of an ablation's finished runs.

    Args:
        out: the ablation's folder.
        presets: names, in the order of the table; None takes all there are.

    Returns:
        dict, as `ablation.json` holds it: {"presets": {name: {"seeds": [0, 1], "resolutions": {"64": {"p_star": [3.0,
        4.0], "top1": {"mean", "deviation", "values"}, ...}}}}}, with `ABLATION_SCORES` by resolution; one value
        a seed, in the order of the seeds. `deviation` is the standard deviation of a sample (n - 1), None of a single
        value. A `row_name` with epochs has `"length": {"preset", "epochs"}`, too, and one with a setting
        `"varied": {"preset", "setting", "value"}`. Presets without a finished run and scores that no run has are left
        out.

    Raises:
        UserError: runs of a preset differ in more than their seed.
    """
    found = {}
    there = runs_in(out)
    for preset in presets or there:
        runs = [run for run in there.get(preset, []) if is_finished(run)]
        if not runs:
            continue
        for run in runs:
            _check_alike(run, runs[0].settings)
            _check_same_photos(run, runs[0])
        tables = [run.results.metrics["resolutions"] for run in runs]
        length = _LENGTH.fullmatch(preset)
        varied = _VARIED.fullmatch(length["preset"] if length else preset)
        found[preset] = {
            "seeds": [run.settings.seed for run in runs],
            **({"length": {"preset": length["preset"], "epochs": int(length["epochs"])}} if length else {}),
            **({"varied": varied.groupdict()} if varied else {}),
            "resolutions": {
                size: _over_seeds([table[size] for table in tables if size in table])
                for size in sorted({size for table in tables for size in table}, key=int)
            },
        }
    return {"presets": found}


def _over_seeds(rows):
    """The scores of one preset at one resolution, from a row of metrics.json a seed."""
    entry = {"p_star": [row["p_star"] for row in rows]}
    for score in ABLATION_SCORES:
        values = [row[score] for row in rows if row.get(score) is not None]
        if values:
            entry[score] = {
                "mean": float(np.mean(values)),
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
            }
    return entry


def more_pictures(summary: Mapping[str, Any]) -> dict[str, Callable]:
    """The pictures beside `ablation.png` of what `collect` found: file name -> what draws it, (path, summary)."""
    from mg_keras.evaluation import pictures

    rows = summary["presets"].values()
    found = {}
    if len({row["length"]["epochs"] for row in rows if "length" in row}) > 1:
        found["lengths.png"] = pictures.lengths_picture
    varied = [
        ({**row["varied"], "value": None}, row.get("length", {}).get("epochs")) for row in rows if "varied" in row
    ]
    if any(varied.count(each) > 1 for each in varied):
        found["trade.png"] = pictures.trade_picture
    return found


def write_report(out: str | os.PathLike, presets: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes `ablation.json`, `ablation.md`, `ablation.png` and those of `more_pictures` into its folder.

    Args:
        out: as `collect` takes it.
        presets: as `collect` takes it.

    Returns:
        What `collect` returns.

    Raises:
        UserError: no run is finished, or what `collect` raises.
    """
    from mg_keras.evaluation import pictures, tables

    summary = collect(out, presets)
    if not summary["presets"]:
        wanted = f" of {', '.join(presets)}" if presets else ""
        raise UserError(f"no finished run{wanted} in {out}: nothing to put into a table")
    out = Path(out)
    atomic_write_json(out / "ablation.json", summary)
    atomic_write_text(out / "ablation.md", tables.ablation_markdown(summary))
    pictures.ablation_picture(out / "ablation.png", summary)
    for name, draw in more_pictures(summary).items():
        draw(out / name, summary)
    return summary
