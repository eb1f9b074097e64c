import re

import pytest

from tests.benchmarks.programs_test import rows, run

SMALL = (
    *("--photos", 9, "--memory-photos", 18, "--trunk", "mobilenet_v3_small", "--resolution", 64, "--repeats", 1),
    *("--batch-size", 2, "--exponents-at", "mobilenet_v3_small:32"),
)


def test_all_parts_print_their_tables():
    done = run("embedding", *SMALL)
    table = rows(done)
    assert table["bare network, same batches"][-1] == "1.000"
    rate = table["from files, embed()"][-1]
    assert f"embed() / bare network: {rate} of the images a second" in done.stdout
    assert f"ten exponents / one: {table['mobilenet_v3_small at 32 px'][-1]} for mobilenet_v3_small" in done.stdout
    memory = [cells for name, cells in table.items() if name.isdecimal()]
    assert memory
    assert all(100 < float(now) <= float(highest) + 1 for now, highest in memory)
    growth = float(re.search(r"highest at the end / at first: (\S+) \(to be level\)", done.stdout)[1])
    assert growth == pytest.approx(float(memory[-1][1]) / float(memory[0][1]), abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "demo"), "--data must be folder:PATH, received 'demo'"),
        (("--photos", "0"), "--photos must be at least 1, received 0"),
        (("--exponents-at", "resnet50"), "received 'resnet50'"),
    ],
)
def test_mistakes_get_one_line(arguments, message):
    done = run("embedding", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
