"""Runs of an ablation without a network; a module of its own, quick to load in every new process."""

import functools
import os
import signal
import sys
import time

import numpy as np

from mg_keras.errors import UserError
from mg_keras.evaluation.records import ABLATION_SCORES
from mg_keras.programs.ablations import Member, train_members
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run


def note(log, text):
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def lines(log):
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def save(run, share=1.0, scored=True):
    """What training and measuring leave behind, in numbers that differ by seed, exponent and weight."""
    step = round(share * run.settings.epochs * run.settings.iterations)
    run.checkpoints.save(step, {}, {})
    if scored:
        score(run)


def score(run):
    """What measuring alone leaves behind."""
    settings = run.settings
    kind = [settings.seed, int(settings.pooling_exponent), round(100 * settings.classification_weight)]
    rng = np.random.default_rng(kind)
    scores = {str(size): {"p_star": 3.0, **dict.fromkeys(("top5",), 1.0)} for size in settings.resolutions}
    for row in scores.values():
        row.update({name: rng.uniform() * (5 if name == "instance" else 1) for name in ABLATION_SCORES})
    run.results.save_metrics({"resolutions": scores})


def pretend(config, folder, log):
    """Stands in for training; `config.data` says what befalls it."""
    note(log, f"begin {folder.name}")
    run = Run.start(folder, config)
    if config.data == "mistake":
        raise UserError("that can't be")
    if config.data == "bug":
        raise ZeroDivisionError("by nought")
    if config.data == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.data == "slow" and not run.trained_share:
        wait_for_a_signal(run, log)
    save(run)
    note(log, f"end {folder.name}")


def wait_for_a_signal(run, log):
    """As `Trainer` does: the first signal saves, and there is none that comes by itself."""
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    note(log, "waiting")
    deadline = time.monotonic() + 30
    while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    # a second one, of a terminal that signals all its processes, would be here by now
    time.sleep(1)
    # as long as a test wants saving to take
    while log.with_name("hold").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    save(run, share=0.5, scored=False)
    note(log, f"saved after {received}")
    sys.exit(128 + received[0])


def members_of(out, presets, seeds=(0, 1), **settings):
    """Members seed by seed; presets are name -> exponent, or name -> what befalls them."""
    found = []
    for seed in seeds:
        for name, what in presets.items():
            values = {"data": what} if isinstance(what, str) else {"pooling_exponent": what}
            found.append(Member(name, TrainConfig(**{"data": "fine", "seed": seed, **values, **settings}), out))
    return found


def train_with(log):
    return functools.partial(pretend, log=log)


def train_slowly(folder):
    """What the process of `start_slow_ablation` does."""
    members = members_of(folder / "out", {"slow": "slow", "good": "fine"}, seeds=[0])
    print(train_members(members, train_with(folder / "log")))
