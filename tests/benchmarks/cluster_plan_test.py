"""What a plan for very many photos says of its parts."""

import pytest

from benchmarks import cluster_plan
from tests.benchmarks.programs_test import run_here


def test_the_table_holds_the_plan():
    output = run_here("cluster_plan", "--photos", "1e7,1e9", "--machines", 10, "--cores", 8, "--photo_kb", 50).stdout
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    done = {name: cells for name, *cells in table}
    small, large = (cluster_plan.plan(count, 10, 8, 50) for count in (1e7, 1e9))
    for name, cells in done.items():
        if name in small:
            assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(
                [small[name], large[name]], rel=5e-3
            )
    assert set(small) - set(done) == {"photos"}
    assert large["photos, TB"] == pytest.approx(50)
    assert large["describing, core hours"] == pytest.approx(1e9 * cluster_plan.MEASURED["describe"] / 3600)
    assert large["indexes"] * cluster_plan.LARGEST_INDEX == pytest.approx(1e9)


@pytest.mark.parametrize("what", ["describing, hours", "of one writer's time, %"])
def test_twice_the_machines(what):
    once, twice = (cluster_plan.plan(1e8, machines, 16, 110)[what] for machines in (10, 20))
    assert twice == pytest.approx(once / 2 if "hours" in what else once * 2)
