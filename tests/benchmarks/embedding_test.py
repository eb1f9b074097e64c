import re

import pytest

from benchmarks import embedding
from tests.benchmarks.programs_test import rows, run_here
from tests.train.tiny import make_trunk_small

SMALL = (
    *("--photos", 9, "--memory-photos", 18, "--trunk", "resnet18", "--resolution", 64, "--repeats", 1),
    *("--batch-size", 2, "--exponents-at", "resnet18:32"),
)


@pytest.mark.slow
def test_all_parts_print_their_tables(monkeypatch):
    make_trunk_small(monkeypatch)
    started = []

    def start(command, check):
        """A process of its own measures memory alone, which is printed all the same in this one."""
        started.append(run_here("embedding", *command[3:]))

    monkeypatch.setattr(embedding.subprocess, "run", start)
    done = run_here("embedding", *SMALL)
    (memory,) = started
    table = rows(done) | rows(memory)
    assert table["bare network, same batches"][-1] == "1.000"
    rate = table["from files, embed()"][-1]
    assert f"embed() / bare network: {rate} of the images a second" in done.stdout
    assert f"ten exponents / one: {table['resnet18 at 32 px'][-1]} for resnet18" in done.stdout
    megabytes = [cells for name, cells in table.items() if name.isdecimal()]
    assert megabytes
    assert all(100 < float(now) <= float(highest) + 1 for now, highest in megabytes)
    growth = float(re.search(r"highest at the end / at first: (\S+) \(to be level\)", memory.stdout)[1])
    assert growth == pytest.approx(float(megabytes[-1][1]) / float(megabytes[0][1]), abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "demo"), "--data must be folder:PATH, received 'demo'"),
        (("--photos", "0"), "--photos must be at least 1, received 0"),
        (("--exponents-at", "resnet50"), "received 'resnet50'"),
    ],
)
def test_mistakes_get_one_line(arguments, message):
    done = run_here("embedding", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
