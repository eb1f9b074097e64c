import io
import re
import sys

import pytest

from mg_keras.progress import Progress, mapped


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(progress, steps, note=None):
    with progress:
        for _ in range(steps):
            progress.advance(2, note)


def test_a_log_gets_lines_now_and_then(capsys):
    asked = []
    work(Progress("embedding", 2000, "photos", start=1000, log_seconds=3600), 500, lambda: asked.append(1))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"embedding  2,000/2,000 photos  [0-9,.]+/s  took 0:00", line)
    assert not asked, "a note is made for a line that nobody sees"
    work(Progress("embedding", 10, "photos", log_seconds=0), 2, lambda: "loss 1.2")
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line[:21] for line in lines] == ["embedding  2/10 photo", "embedding  4/10 photo"]
    assert all(re.search(r"/s  0:00 left  loss 1\.2$", line) for line in lines)
    assert "4/10 photos" in last


def test_what_is_stopped_says_so_and_what_did_nothing_says_nothing(capsys):
    def stop():
        raise KeyboardInterrupt

    progress = Progress("embedding", 5, "photos")
    progress.advance(1)
    with pytest.raises(KeyboardInterrupt), progress:
        stop()
    assert re.search(r"embedding  1/5 photos .* took 0:00  stopped\n", capsys.readouterr().err)
    work(Progress("", 0, "photos"), 0)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_what_is_printed_meanwhile(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": "150", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    progress = Progress("embedding [all]", 10, "photos")
    progress.interval = 0
    with progress:
        for _ in range(5):
            progress.advance(2, lambda: f"{progress.done} so far [x]")
        print("to a file")
        print("a warning", file=sys.stderr)
    assert sys.stderr is terminal
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "a warning" in shown
    assert re.search(r"embedding \[all\] \S+ 10/10 photos  [0-9,.]+/s  took 0:00", shown)
    assert capsys.readouterr().out == "to a file\n"


def test_items_are_mapped_in_order_with_progress_where_it_is_long(capsys):
    assert mapped(lambda item: item + 1, range(300), "reading") == list(range(1, 301))
    assert capsys.readouterr().err == ""
    assert mapped(str, range(3), "reading", together=1) == ["0", "1", "2"]
    assert "reading  3/3 files" in capsys.readouterr().err
