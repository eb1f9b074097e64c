"""Several workers: started, watched, and started again where one is lost."""

import contextlib
import os
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
from mg_keras.programs import workers
from tests.train.tiny import ROOT, arguments, draw_folder


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


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_and_changes_nothing(tmp_path):
    draw_folder(tmp_path / "photos")
    settings = {"batch_size": 12, "evaluation_resolutions": "[32]", "deterministic": "true", "val_every": 2}
    for name in ("whole", "broken"):
        command = arguments(tmp_path / "photos", tmp_path / name, **settings)
        process = subprocess.Popen(
            [sys.executable, "-m", "mg_keras", "workers", "--count", "2", "--", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/train/small_trunk"), str(ROOT)])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        errors = []
        reader = threading.Thread(target=lambda to=errors, of=process: to.append(of.stderr.read()))
        reader.start()
        if name == "broken":
            while not list((tmp_path / name).glob("checkpoints/step-*.npz")):
                assert process.poll() is None, errors
                time.sleep(0.05)
            # the one that writes the run
            os.kill(min(children(process.pid)), signal.SIGKILL)
        assert process.wait() == 0, errors
        reader.join()
        assert ("worker 0 was ended by signal 9" in errors[0]) == (name == "broken")
    last = [np.load(sorted((tmp_path / name / "checkpoints").glob("step-*.npz"))[-1]) for name in ("whole", "broken")]
    assert set(last[0].files) == set(last[1].files)
    for name in last[0].files:
        if last[0][name].dtype.kind == "f":
            np.testing.assert_allclose(last[1][name], last[0][name], rtol=0, atol=1e-6, err_msg=name)


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
