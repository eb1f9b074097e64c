import time

import pytest

from benchmarks import timing


def test_contestants_take_turns_forwards_and_backwards(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE", 0)
    calls = []

    def contestant(name):
        return lambda: calls.append(name) or len(calls)

    times = timing.interleaved_times({name: contestant(name) for name in "abc"}, repeats=2, warm_up=1)
    assert "".join(calls) == "cba" + "abc" + "cba"
    assert times == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}, "the seconds reported, without the warm-up's"


def test_work_of_milliseconds_is_timed_once_it_runs(monkeypatch):
    clock = [0.0]
    # the first calls after a pause take longer
    durations = iter([10.0, 5.0, *[2.0] * 20])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    contestant = timing.timed_at_work(lambda: clock.__setitem__(0, clock[0] + next(durations)), seconds=12)
    monkeypatch.setattr(timing, "_PAUSE", 0)
    # 3 s unless a call takes longer, then 12 s
    assert contestant() == pytest.approx((5 + 2 + 2 + 2 + 2) / 5)
    assert contestant() == 2
    assert next(durations) == 2, "it stopped"
    long = timing.timed_at_work(lambda: clock.__setitem__(0, clock[0] + 100), seconds=12)
    assert long() == 100


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="received 0"):
        timing.interleaved_times({}, repeats=0)


def test_cells_give_median_and_fastest():
    assert timing.milliseconds([0.004, 0.001, 0.002]) == "2.0 (1.0)"
    assert timing.per_second(6, [4, 1, 2]) == "3.00 (6.00)"
    assert timing.per_second(600, [4, 1, 2]) == "300 (600)"


def test_ratio_is_of_medians():
    assert timing.ratio({"a": [3, 100, 3], "b": [2, 2, 0]}, "a", "b") == 1.5


def test_a_table_is_printed_whole_in_a_narrow_log(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    # wider than the 120 columns that any table gets
    cells = [["first row", "a cell of many letters " * 4], ["second row", "another cell of letters " * 8]]
    timing.print_table("What it shows", ("the name", "a heading of many letters"), cells)
    printed = capsys.readouterr().out
    for text in ("What it shows", "a heading of many letters", *cells[0], *cells[1]):
        assert text.strip() in printed


def test_work_is_timed_by_the_clock_that_is_asked_for(monkeypatch):
    clock = iter([3.0, 10.0])
    assert timing.timed(lambda: None, lambda: next(clock))() == 7
    devices = []
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: devices)
    assert timing.work_clock()[0] is time.process_time
    # of whose work the processor knows nothing
    devices.append("GPU:0")
    assert timing.work_clock()[0] is time.perf_counter
