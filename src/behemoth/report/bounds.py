"""The pictures of a verdict: where each claim's interval may lie, and where it lies.

Tinted is the part beyond the bar; a claim holds when its whole interval is inside, and fails when the whole of it is
outside. Blue disc, orange diamond and hollow grey point say which, so that it is read without colours too. Differences
and scores, points and bits per byte, stand in different pictures, each drawn for a page and for a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from behemoth.base.units import percent
from behemoth.report.forest import LETTER, NARROW, TOP, axis, dot, fit, name_room, plain, signed
from behemoth.report.markup import figure, words
from behemoth.report.run import is_number
from behemoth.report.svg import Scale, line, picture, rect, text

MARKS = {"holds": "✓", "fails": "✗", "unknown": "?"}
CLASSES = {"holds": "side-a", "fails": "side-b", "unknown": "open"}
KEY = (
    "Tinted is where the interval has to lie, the upright line is the bar. Disc: the whole interval is inside; "
    "diamond: all of it is outside; hollow: it cannot be told."
)

Row = Mapping[str, Any]


def pictures(checks: Sequence[Row]) -> str:
    """One picture for each scale that the checks with an interval stand on."""
    drawn: dict[tuple[bool, str], list[Row]] = {}
    for check in checks:
        if all(is_number(check[key]) for key in ("low", "high", "bar")):
            drawn.setdefault((check["than"] is not None, check["unit"]), []).append(check)
    return "".join(
        figure(
            partial(intervals, rows, relative=relative), caption(rows, relative) + ("" if i else f" {KEY}")
        )
        for i, ((relative, _), rows) in enumerate(drawn.items())
    )


def caption(rows: Sequence[Row], relative: bool) -> str:
    """What is measured and how sure; how the picture is read stands under the first one."""
    unit = words(rows[0]["unit"])
    what = f"Differences in {unit}; right of nought is better" if relative else f"Scores in {unit}"
    levels = sorted({f"{100 * row['level']:g}%" for row in rows})
    shown = f"{levels[0]} intervals" if len(levels) == 1 else f"intervals at {levels[0]} to {levels[-1]}"
    return f"{what}, with {shown}."


def on_levels(checks: Sequence[Row], level: float) -> str:
    """Why one interval is surer than another; "" where there is one claim, and so one level. level: the policy's."""
    if not any(check["holm"] for check in checks):
        return ""
    return (
        "Claims are judged together, so each is shown at the level at which it was judged: to hold, more than the "
        f"policy's {percent(level)} is asked of it (Holm's method); to fail, {percent(level)} is enough."
    )


def intervals(rows: Sequence[Row], width: float, relative: bool) -> str:
    """A row per check. On a wide page names stand to the left and values to the right, on a phone above and below."""
    narrow, unit = width < NARROW, rows[0]["unit"]
    names = [{"task": row["name"]} for row in rows]
    left, step, right = (8.0, 68.0, 8.0) if narrow else (name_room(names) + 8, 46.0, 172.0)
    x = reach(rows, relative, left, width - right)
    bottom = TOP + step * len(rows) - (0 if narrow else 4)
    tints = [tinted(row, x, TOP + step * i, step, narrow) for i, row in enumerate(rows)]
    title = f"{'difference' if relative else 'score'} in {unit}"
    drawn = [axis(x, bottom, unit, title, narrow, signs=relative)]
    for i, row in enumerate(rows):
        if i and not narrow:
            drawn.append(line(0, TOP + step * i - 2, width, TOP + step * i - 2, "row"))
        drawn.append(interval(row, x, TOP + step * i, step, width, relative))
    said = "; ".join(
        f"{row['name']}: {value_of(row, relative)}, {row['wanted']}, {row['status']}" for row in rows
    )
    return picture(width, bottom + 44, f"Checks by their {title}", f"{said}.", *tints, *drawn)


def reach(rows: Sequence[Row], relative: bool, start: float, end: float) -> Scale:
    """All ends, bars and, of differences, nought in view, with room on both sides; no score outside 0 to 1."""
    ends = [value for row in rows for value in (row["low"], row["high"], row["bar"])]
    ends += [0.0] if relative else []
    low, high = min(ends), max(ends)
    margin = 0.12 * (high - low or abs(high) or 1)
    low, high = low - margin, high + margin
    if not relative:
        low, high = max(low, 0.0), min(high, 1.0) if rows[0]["unit"] == "points" else high
    return Scale(low, high, start, end)


def tinted(row: Row, x: Scale, y: float, step: float, narrow: bool) -> str:
    """Where the interval may lie."""
    bar, (top, height) = x(row["bar"]), band(y, step, narrow)
    first, last = (x.start, bar) if row["is"] == "at most" else (bar, x.end)
    return rect(first, top, last - first, height, "allowed")


def band(y: float, step: float, narrow: bool) -> tuple[float, float]:
    """Where in its row the drawing lies: its top, and how high it is."""
    return (y + 20, 22.0) if narrow else (y + 4, step - 12)


def interval(row: Row, x: Scale, y: float, step: float, width: float, relative: bool) -> str:
    class_, narrow = CLASSES.get(row["status"], "open"), width < NARROW
    value, status = value_of(row, relative), f"{MARKS.get(row['status'], '?')} {row['status']}"
    at = y + 31 if narrow else y + step / 2 - 2
    bar, (top, height) = x(row["bar"]), band(y, step, narrow)
    drawn = [line(bar, top, bar, top + height, "must")]
    drawn += [line(x(row["low"]), at, x(row["high"]), at, f"bar {class_}")]
    drawn += [line(x(end), at - 4, x(end), at + 4, f"cap {class_}") for end in (row["low"], row["high"])]
    if is_number(row["estimate"]):
        drawn.append(dot(x(row["estimate"]), at, class_))
    room = width - LETTER * len(status) - 16 if narrow else x.start - 16
    upper_line, lower_line = (y + 14, y + 58) if narrow else (at - 4, at + 13)
    drawn += [
        text(fit(row["name"], room, LETTER), 0, upper_line, "label halo"),
        text(f"bar {(signed if relative else plain)(row['bar'], row['unit'])}", 0, lower_line, "needs halo"),
        text(value, width, lower_line if narrow else upper_line, "value halo", "end"),
        text(status, width, upper_line if narrow else lower_line, f"side {class_} halo", "end"),
    ]
    return "".join(drawn)


def value_of(row: Row, relative: bool) -> str:
    say: Callable[[float | None, str], str] = signed if relative else plain
    unit = row["unit"]
    between = f"{say(row['low'], unit)} to {say(row['high'], unit)}"
    return f"{say(row['estimate'], unit)} ({between})" if is_number(row["estimate"]) else between
