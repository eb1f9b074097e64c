"""Trains on several workers: mg-keras workers --count 2 -- --preset demo --run runs/demo.

What follows `--` goes to `mg-keras train`. With `--count` the workers are processes of this machine. With `--addresses`
and `--index` this is one worker on its own machine: start one on each, with the run's folder where all can reach it.
When a worker is lost, all are started again, and the run goes on from its last checkpoint.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from mg_keras.errors import UserError, WorkerLost
from mg_keras.programs.common import Parser, given, list_of, number
from mg_keras.signals import on_stop

PATIENCE = 60.0
"""Seconds that the others have to notice that one is lost, before they are ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, and the workers until all are done."""
    arguments = given(arguments)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    training = arguments[place + 1 :]
    parser = Parser("mg-keras workers", __doc__)
    parser.add_argument("--count", type=number(int, at_least=1), help="workers on this machine")
    parser.add_argument("--addresses", type=list_of(str), help="HOST:PORT of each worker; the first one writes the run")
    parser.add_argument("--index", type=number(int, at_least=0), help="whose of the addresses this worker is, from 0")
    parser.add_argument(
        "--restarts", type=number(int, at_least=0), default=3, help="how often all are started again at most"
    )
    options = parser.parse_args(arguments[:place])
    if any(argument.partition("=")[0] == "--strategy" for argument in training):
        raise UserError("workers have --strategy multiworker: leave it out")
    if (options.count is None) == (options.addresses is None):
        raise UserError("give either --count (workers on this machine) or --addresses and --index (one of several)")
    if options.count and options.index is not None:
        raise UserError("--index is one of --addresses: with --count all are of this machine")
    if options.addresses and (options.index is None or options.index >= len(options.addresses)):
        raise UserError(f"--index must be 0 to {len(options.addresses) - 1}; received {options.index}")
    command = [sys.executable, "-m", "mg_keras", "train", *training, "--strategy", "multiworker"]

    def begin():
        # of this machine other ports each time: a worker that is killed may still hold its own
        addresses = options.addresses or _free_addresses(options.count)
        indices = range(options.count) if options.count else [options.index]
        return {index: _start(command, addresses, index, options.count) for index in indices}

    sys.exit(supervise(begin, options.restarts))


def supervise(begin: Callable[[], dict[int, subprocess.Popen]], restarts: int, patience: float = PATIENCE) -> int:
    """Starts workers, all again where one is lost, and waits for their end.

    A signal (Ctrl-C) goes on to the workers.

    Args:
        begin: starts them: index -> process.
        restarts: how often they are started again at most.
        patience: seconds that the others have to end by themselves.

    Returns:
        int, an exit status: 0 where all are done; else that of a worker that failed otherwise than by the loss of
        another, as it would each time, or 75 where they were lost too often.
    """
    for again in range(restarts + 1):
        statuses, signals = _attempt(begin, patience)
        lost = {index: status for index, status in statuses.items() if status < 0 or status == WorkerLost.status}
        failed = [status for status in statuses.values() if status and status not in lost.values()]
        if failed or not lost:
            return failed[0] if failed else 0
        if signals:
            return 128 + signals[0]
        killed = [f"worker {index} was ended by signal {-status}" for index, status in lost.items() if status < 0]
        print(", ".join(killed) or "workers lost each other", file=sys.stderr, flush=True)
        if again < restarts:
            print(f"starting again, {again + 1} of {restarts}", file=sys.stderr, flush=True)
    print(f"lost {restarts + 1} times; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    return WorkerLost.status


def _attempt(begin, patience):
    """(index -> exit status of workers, numbers of the signals that came meanwhile)."""
    workers, signals = {}, []

    def hand_on(number):
        signals.append(number)
        _stop(workers)

    with on_stop(hand_on):
        workers.update(begin())
        if signals:
            # it came while they were started
            _stop(workers)
        return _ends(workers, patience), signals


def _ends(workers, patience):
    """Index -> exit status, when all have ended; those that outlast one that failed are ended."""
    deadline = None
    while any(worker.poll() is None for worker in workers.values()):
        if deadline is None and any(worker.poll() for worker in workers.values()):
            deadline = time.monotonic() + patience
        if deadline and time.monotonic() > deadline:
            hanging = [worker for worker in workers.values() if worker.poll() is None]
            for worker in hanging:
                worker.kill()
            for worker in hanging:
                worker.wait()
            # they were waiting for the one that is lost
            statuses = {index: worker.returncode for index, worker in workers.items()}
            return {i: WorkerLost.status if workers[i] in hanging else status for i, status in statuses.items()}
        time.sleep(0.2)
    return {index: worker.returncode for index, worker in workers.items()}


def _stop(workers):
    for worker in workers.values():
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)


def _start(command, addresses, index, of_this_machine):
    """A worker; all but the first say which they are with each line."""
    environment = {
        **os.environ,
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
    }
    if of_this_machine:
        # threads for more cores than there are starve the heartbeats by which workers know each other
        threads = str(max(1, (os.cpu_count() or 1) // of_this_machine))
        environment.setdefault("TF_NUM_INTRAOP_THREADS", threads)
        environment.setdefault("TF_NUM_INTEROP_THREADS", threads)
    # in a group of its own: Ctrl-C comes to it once, from here
    more = {"env": environment, "start_new_session": True}
    if index == 0 or not of_this_machine:
        return subprocess.Popen(command, **more)
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="backslashreplace", **more
    )
    threading.Thread(target=_relay, args=(worker.stdout, f"worker {index}: "), daemon=True).start()
    return worker


def _relay(lines, prefix):
    for line in lines:
        print(prefix + line, end="", file=sys.stderr, flush=True)


def _free_addresses(count):
    with contextlib.ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
