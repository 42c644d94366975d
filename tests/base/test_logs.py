import io

import pytest
from rich.console import Console

from behemoth.base import logs


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


def test_say_goes_to_stderr_as_it_is(capsys):
    logs.say("tokens [bold]per[/bold] second")
    captured = capsys.readouterr()
    assert captured.err == "tokens [bold]per[/bold] second\n"
    assert captured.out == ""


def test_a_long_note_is_one_line_in_a_file(capsys):
    logs.say("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_progress_in_a_file_is_a_line_every_ten_seconds(capsys, clock):
    with logs.progress("reading", total=4_000_000, unit="B") as advance:
        for second in range(1, 26):
            clock[0] = 100.0 + second
            advance(100_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading:  25% of 4.0 MB, 100 kB/s, 30 s left",
        "reading:  50% of 4.0 MB, 100 kB/s, 20 s left",
    ]


def test_progress_without_a_total_counts(capsys, clock):
    with logs.progress("reading", unit="documents") as advance:
        clock[0] += 10
        advance(20_000)
    assert capsys.readouterr().err == "reading: 20.0K documents, 2,000 documents/s\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(logs, "console", lambda: screen)
    with logs.progress("reading", total=10, unit="rows") as advance:
        advance(5)
        advance(5)
    assert "100% of 10 rows" in screen.file.getvalue()


def test_table_sets_numbers_right_and_cuts_nothing(capsys):
    logs.table(
        "Results", ["model", "bits"], [["teacher [big]", "2.33"], ["student", "12.5"], ["long " * 40, "1"]]
    )
    out = capsys.readouterr().out
    assert "teacher [big]" in out
    assert "long " * 39 in out
    ends = {len(line.rstrip()) for line in out.splitlines() if line.rstrip().endswith(("2.33", "12.5"))}
    assert len(ends) == 1
