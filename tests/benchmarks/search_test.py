import sys

import pytest

from benchmarks import search


def test_search_of_a_large_index(monkeypatch, capsys):
    arguments = ["--count", "1500", "--dimensions", "16", "--centres", "30", "--queries", "20", "--kinds", "ivf"]
    monkeypatch.setattr(sys, "argv", ["search", *arguments])
    search.main()
    shown = capsys.readouterr().out
    assert "1,500 descriptors of 16 values, 20 queries" in shown
    assert "cores, load average" in shown
    (row,) = [line for line in shown.splitlines() if "ivf, effort" in line]
    assert float(row.split("│")[-2]) >= 0.9


def test_a_peer_needs_a_python(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--kinds", "auto,hnswlib"])
    with pytest.raises(SystemExit):
        search.main()
    assert "hnswlib: --peers must name a Python that has it" in capsys.readouterr().err
