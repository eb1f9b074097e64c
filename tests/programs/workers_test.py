"""Several workers: started, watched, and started again where one is lost."""

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml

from mg_keras.errors import UserError, WorkerLost
from mg_keras.programs import train, whole_run, workers
from tests.train.tiny import ROOT, arguments, draw_folder, make_trunk_small, small_environment


def acting(rounds):
    """`begin` of made-up workers: each round a list of Python lines, one a worker."""
    rounds = iter(rounds)

    def begin():
        return {
            index: subprocess.Popen([sys.executable, "-c", f"import os, sys, time\n{line}"])
            for index, line in enumerate(next(rounds))
        }

    return begin


DONE, LOST, KILLED = "sys.exit(0)", f"sys.exit({WorkerLost.status})", "os.kill(os.getpid(), 9)"
HANGING = "time.sleep(60)"


@pytest.mark.parametrize(
    ("rounds", "status", "said"),
    [
        ([[DONE, DONE]], 0, []),
        ([[LOST, KILLED], [DONE, DONE]], 0, ["worker 1 was ended by signal 9", "starting again, 1 of 1"]),
        ([[LOST], [DONE]], 0, ["workers lost each other", "starting again, 1 of 1"]),
        # one that can't go on, whatever the others say
        ([[LOST, "sys.exit(2)"]], 2, []),
        ([[KILLED, LOST], [KILLED, LOST]], WorkerLost.status, ["lost 2 times"]),
        ([[KILLED, HANGING], [DONE, DONE]], 0, ["worker 0 was ended by signal 9\n", "starting again"]),
    ],
)
def test_what_workers_end_with(rounds, status, said, capfd):
    assert workers.supervise(acting(rounds), restarts=1, patience=0.5) == status
    errors = capfd.readouterr().err
    assert all(words in errors for words in said)
    assert bool(errors) == bool(said)


def test_what_a_worker_says_need_be_no_text(capfd):
    # more than a pipe holds
    line = r"import sys; sys.stdout.buffer.write(b'caf\xe9\n' * 50_000)"
    worker = workers._start([sys.executable, "-c", line], ["127.0.0.1:1"] * 2, 1, 2)
    try:
        assert worker.wait(timeout=20) == 0
    finally:
        worker.kill()
    deadline, said = time.monotonic() + 20, ""
    while said.count("\n") < 50_000 and time.monotonic() < deadline:
        said += capfd.readouterr().err
        time.sleep(0.05)
    assert set(said.splitlines()) == {r"worker 1: caf\xe9"}


def test_a_signal_goes_on_to_the_workers():
    # they end as training does, with the signal's status
    line = "import signal; signal.signal(15, lambda *_: sys.exit(128 + 15)); os.write(1, b'.'); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.programs.workers_test import waits; waits()", line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.read(2) == ".."
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + 15


def waits():
    """The program of the test above."""
    sys.exit(workers.supervise(acting([[sys.argv[1]] * 2]), restarts=3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "give either --count"),
        ("--count 2 --addresses a:1", "give either --count"),
        ("--count 2 --index 0", "--index is one of --addresses"),
        ("--count 0", "--count must be a whole number, at least 1; received '0'"),
        ("--addresses a:1,b:1", "--index must be 0 to 1; received None"),
        ("--addresses a:1,b:1 --index 2", "--index must be 0 to 1; received 2"),
        ("--count 2 -- --strategy single", "leave it out"),
    ],
)
def test_mistakes(line, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        workers.main(shlex.split(line))
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("photos"))


def command(folder, run):
    """A training that is the same each time, by the paper's schedule, of which no milestone is reached."""
    settings = {"batch_size": 12, "epochs": 1, "evaluation_resolutions": "[32]", "deterministic": "true"}
    return arguments(folder, run, schedule="step", **settings)


def start_two(folder, run, training_alone=False, **more):
    """Two workers that train, measure and export."""
    return subprocess.Popen(
        [sys.executable, "-m", "mg_keras", "workers", "--count", "2", "--", *command(folder, run)],
        cwd=ROOT,
        env=small_environment(training_alone),
        stdout=subprocess.DEVNULL,
        **more,
    )


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A run of two workers. One writes into a terminal, the other into a log: they show progress at other times."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    reader, terminal = pty.openpty()
    process = start_two(folder, run, stderr=terminal)
    os.close(terminal)
    shown = []
    # what is written into a terminal, until its last writer has ended: that is an error of the reader's
    with contextlib.suppress(OSError):
        while chunk := os.read(reader, 4096):
            shown.append(chunk)
    os.close(reader)
    said = b"".join(shown).decode(errors="replace")
    assert process.wait() == 0, said
    return run, said


@pytest.mark.slow
def test_two_workers_train_together(undisturbed):
    run, said = undisturbed
    assert "6/6 steps" in said
    assert (run / "saved_model" / "1").is_dir()
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_and_changes_nothing(undisturbed, folder, tmp_path):
    run = tmp_path / "broken"
    process = start_two(folder, run, training_alone=True, stderr=subprocess.PIPE, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    while not list(run.glob("checkpoints/step-*.npz")):
        assert process.poll() is None, errors
        time.sleep(0.05)
    # the one that writes the run
    os.kill(min(children(process.pid)), signal.SIGKILL)
    assert process.wait() == 0, errors
    reader.join()
    assert "worker 0 was ended by signal 9" in errors[0]
    assert "starting again, 1 of 3" in errors[0]
    whole, broken = (np.load(sorted(path.glob("checkpoints/step-*.npz"))[-1]) for path in (undisturbed[0], run))
    assert set(whole.files) == set(broken.files)
    for name in whole.files:
        if whole[name].dtype.kind == "f":
            np.testing.assert_allclose(broken[name], whole[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_what_comes_after_training_needs_no_others(undisturbed, folder, monkeypatch, index):
    make_trunk_small(monkeypatch)
    measured = []
    monkeypatch.setattr(whole_run, "_measure", lambda run, *_: measured.append(run.path))
    monkeypatch.setattr(train, "finish", lambda run: None)
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
    train.main([*command(folder, undisturbed[0]), "--strategy=multiworker"])
    assert measured == [undisturbed[0]][index:]


def children(parent):
    """The processes that another started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(stat.parent.name)


def test_the_job_fits_kubernetes_and_the_command():
    service, job = yaml.safe_load_all((ROOT / "train/kubernetes/workers.yaml").read_text())
    for manifest in (service, job):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    spec = job["spec"]["template"]["spec"]
    options = dict(part[2:].split("=") for part in spec["containers"][0]["command"] if "=" in part)
    name, domain = job["metadata"]["name"], spec["subdomain"]
    assert domain == service["metadata"]["name"]
    port = service["spec"]["ports"][0]["port"]
    assert options["addresses"].split(",") == [f"{name}-{index}.{domain}:{port}" for index in range(2)]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
