"""What a person sees while work goes on: notes and progress on stderr, results on stdout.

Programs that read stdout never meet a progress bar. On a terminal progress is a bar with rate and time left;
in a log file it is one plain line every ten seconds. `rich` is imported only when something is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

from behemoth.base.units import human_bytes, human_count, human_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


@cache
def console() -> Console:
    """The terminal of notes and progress (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One note for people, on stderr. Nobody reading it, or a full disk under it, is no reason to stop."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Show how far a long job is: `with progress("reading", total=size, unit="B") as advance: advance(n)`."""
    if console().is_terminal:
        with _bar() as bar:
            task = bar.add_task(title, total=total, state="")
            tally = _Tally(total, unit)

            def advance_bar(amount: float) -> None:
                tally.done += amount
                bar.update(task, completed=tally.done, state=tally.describe())

            yield advance_bar
        return
    tally = _Tally(total, unit)
    last = time.monotonic()

    def advance(amount: float) -> None:
        nonlocal last
        tally.done += amount
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{title}: {tally.describe()}")

    yield advance


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a result table on stdout; columns of numbers are set flush right."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=1000)
    drawing = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawing.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawing.add_row(*(Text(str(cell)) for cell in row))
    out.print(drawing)


class _Tally:
    """How much is done, how fast, and how long the rest will take."""

    def __init__(self, total: float | None, unit: str):
        self.total, self.unit, self.done, self.began = total, unit, 0.0, time.monotonic()

    def describe(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = self.done / seconds
        text = f"{self._human(self.done)}, {self._human(rate)}/s"
        if self.total:
            left = max(self.total - self.done, 0.0)
            remaining = human_duration(left / rate) if rate else "unknown time"
            share = f"{100 * self.done / self.total:3.0f}% of {self._human(self.total)}"
            text = f"{share}, {self._human(rate)}/s, {remaining} left"
        return text

    def _human(self, number: float) -> str:
        return human_bytes(number) if self.unit == "B" else f"{human_count(number)} {self.unit}".strip()


def _bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
    )
    return Progress(*columns, console=console(), transient=True)


def _is_number(cell: object) -> bool:
    return str(cell).strip()[:1] in "+-0123456789." and any(char.isdigit() for char in str(cell))
