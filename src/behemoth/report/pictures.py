"""The figures of a report, each a function of numbers and of the width it is drawn for.

A figure that is only scaled down cannot be read on a phone, so each is drawn twice, at 720 and at 360
units, and the page shows the one that fits. Lines differ by dashes as well as by colour, and carry their
names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from behemoth.base.units import human_count, human_duration
from behemoth.report.svg import (
    Frame,
    Point,
    Scale,
    decimals_of,
    element,
    line,
    path,
    picture,
    rect,
    spread_labels,
    text,
)

NARROW = 500  # figures below this width leave room for less


@dataclass(frozen=True)
class Curve:
    """A named line; `marks` are single measurements (x, estimate, low, high)."""

    name: str
    points: Sequence[Point]
    marks: Sequence[tuple[float, float, float, float]] = ()


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each the mean of a stretch: the running average that the eye would draw."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * i // most for i in range(most + 1)]
    stretches = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]


def curves(
    found: Sequence[Curve],
    width: float,
    title: str,
    y_title: str,
    *,
    from_zero: bool = False,
    decimals: int | None = 1,
    x_title: str = "tokens read",
) -> str:
    """Lines over tokens read. Values far above the rest (a loss's first steps) are cut off by the frame.

    decimals: of the values at the left, 0 for counts, None for as many as they need to differ.
    """
    height, narrow = (260.0, True) if width < NARROW else (320.0, False)
    values = [y for curve in found for _, y in curve.points]
    values += [y for curve in found for mark in curve.marks for y in mark[1:]]
    last = max([x for curve in found for x, _ in curve.points] + [m[0] for c in found for m in c.marks])
    low, high = min(values + [0.0] * from_zero), top_of(values)
    margin = 0.06 * (high - low or abs(high) or 1)
    room = 16 + 7 * min(max(len(curve.name) for curve in found), 16)  # for the names at the right
    x = Scale(0, last, 42, width - room)
    y = Scale(low if from_zero else low - margin, high + margin, height - 48, 28)
    if decimals is None:
        decimals = decimals_of(y.ticks(5))
    frame = Frame(x, y)
    inside = f"clip-{re.sub(r'[^a-z0-9]+', '-', title.lower())}-{width:.0f}"
    clip = element(
        "clipPath", rect(x.start - 4, y.end, x.end - x.start + 8, y.start - y.end + 4, "none"), id=inside
    )
    drawn = [draw_curve(frame, curve, i) for i, curve in enumerate(found)]
    return picture(
        width, height, title, describe_curves(found, y_title, x_title, decimals),
        element("defs", clip),
        frame.axes(x_title, y_title, lambda v: format_value(v, decimals), narrow),
        element("g", *drawn, clip_path=f"url(#{inside})"),
        end_labels(frame, found),
    )  # fmt: skip


def format_value(value: float, decimals: int) -> str:
    if decimals > 3 and abs(value) < 1:
        return f"{value:.3g}"  # as wide as there is room for
    return f"{value:,.{decimals}f}" if decimals else human_count(value)


def top_of(values: Sequence[float]) -> float:
    """The largest value, or, where a few tower over the rest, the one that 97 of 100 do not pass."""
    ordered = sorted(values)
    usual = ordered[round(0.97 * (len(ordered) - 1))]
    return usual if ordered[-1] - ordered[0] > 1.6 * (usual - ordered[0]) > 0 else ordered[-1]


def draw_curve(frame: Frame, curve: Curve, i: int) -> str:
    colour = f"series-{i % 4}"
    parts = []
    if len(curve.points) > 1:
        if len(curve.points) > 200:
            parts.append(path(frame.place(thin(curve.points, 600)), f"line faint {colour}"))
        parts.append(path(frame.place(thin(curve.points, 80)), f"line dash-{i % 4} {colour}"))
    for x, estimate, low, high in curve.marks:
        parts.append(line(frame.x(x), frame.y(low), frame.x(x), frame.y(high), f"whisker {colour}"))
        parts.append(element("circle", cx=frame.x(x), cy=frame.y(estimate), r=2.5, class_=f"dot {colour}"))
    return "".join(parts)


def end_labels(frame: Frame, found: Sequence[Curve]) -> str:
    ends = [ending(curve) for curve in found]
    heights = spread_labels([min(max(frame.y(y), frame.y.end), frame.y.start) for _, y in ends], 15)
    return "".join(
        text(curve.name, frame.x.end + 8, height + 4, f"name series-{i % 4}")
        for i, (curve, height) in enumerate(zip(found, heights, strict=True))
    )


def ending(curve: Curve) -> Point:
    return curve.marks[-1][:2] if curve.marks else thin(curve.points, 80)[-1]


def describe_curves(found: Sequence[Curve], y_title: str, x_title: str, decimals: int) -> str:
    ends = [
        f"{curve.name} ends at {ending(curve)[1]:,.{decimals + 1 if decimals else 0}f}" for curve in found
    ]
    return f"{y_title} over {x_title}: " + "; ".join(ends) + "."


def intervals(rows: Sequence[dict[str, Any]], width: float, unit: str) -> str:
    """One line per model: a dot with its interval; references are hollow. Less is better: left is better."""
    narrow = width < NARROW
    name_width, step, value_width = (0.0, 44.0, 46.0) if narrow else (230.0, 28.0, 54.0)
    keys = ("bits_per_byte", "low", "high")
    ends: list[float] = [row[key] for row in rows for key in keys if row.get(key) is not None]
    margin = 0.06 * (max(ends) - min(ends) or 1)
    height = step * len(rows) + 62
    x = Scale(min(ends) - margin, max(ends) + margin, name_width + 6, width - value_width)
    bottom = height - 44
    parts = []
    for value in x.ticks(4 if narrow else 6):
        parts += [line(x(value), 8, x(value), bottom, "grid")]
        parts += [text(f"{value:.1f}", x(value), bottom + 18, "tick", "middle")]
    for i, row in enumerate(rows):
        y = 8 + step * (i + (0.72 if narrow else 0.5))
        parts.append(draw_interval(row, x, y, narrow, width))
    parts.append(text(f"{unit}; further left is better", x.end, bottom + 36, "axis", "end"))
    said = "; ".join(f"{row['name']} {row['bits_per_byte']:.3f}" for row in rows)
    return picture(width, height, f"Held-out {unit} of every model", f"{said}.", *parts)


def draw_interval(row: dict[str, Any], x: Scale, y: float, narrow: bool, width: float) -> str:
    kind = row.get("kind", "model")
    name_at = (0.0, y - 14) if narrow else (0.0, y + 4)
    parts = [text(row["name"], *name_at, f"label {kind}")]
    if row.get("low") is not None:
        parts.append(line(x(row["low"]), y, x(row["high"]), y, f"bar {kind}"))
    parts.append(element("circle", cx=x(row["bits_per_byte"]), cy=y, r=4.5, class_=f"point {kind}"))
    parts.append(text(f"{row['bits_per_byte']:.3f}", width, y + 4, f"value {kind}", "end"))
    return "".join(parts)


def expert_load(
    grid: Sequence[Sequence[float]], time: tuple[float, float], width: float, layer: int, member: str
) -> str:
    """One layer: a row of cells per expert, tokens read (from and to `time`) to the right; grid[e] is
    expert e's share over time.

    An even share is the colour of the page itself; one colour means less than that and another more, full
    strength at nothing and at twice the share.
    """
    experts, cells = len(grid), len(grid[0])
    size = 16.0 if experts <= 16 else 6.0
    left, right, bottom = 26.0, width - 2, size * experts
    cell = (right - left) / cells
    shades: dict[str, list[str]] = {}
    for e, shares in enumerate(grid):
        for start, end, class_ in runs([shade(share * experts) for share in shares]):
            corner = f"M{left + start * cell:.1f},{e * size:.0f}"
            shades.setdefault(class_, []).append(
                f"{corner}h{(end - start) * cell:.1f}v{size - 1:.0f}H{left + start * cell:.1f}z"
            )
    parts = [
        element("path", d="".join(steps), class_=class_) for class_, steps in sorted(shades.items()) if class_
    ]
    named = range(0, experts, 1 if experts <= 16 else 8)
    parts += [text(str(e), left - 8, e * size + (13 if experts <= 16 else 7), "tick", "end") for e in named]
    parts += [
        rect(left, 0, right - left, bottom - 1, "outline"),
        text(human_count(time[0]), left, bottom + 15, "tick"),
    ]
    parts.append(text(f"{human_count(time[1])} tokens", right, bottom + 15, "tick", "end"))
    latest = [shares[-1] * experts for shares in grid]
    said = (
        f"At the end the busiest expert has {max(latest):.2f} of an even share, the idlest {min(latest):.2f}."
    )
    return picture(width, bottom + 22, f"Load of each expert, {member}, layer {layer}", said, *parts)


def shade(times: float) -> str:
    """The class of a cell whose expert has `times` its even share, in steps of a fifth; none if near."""
    strength = round(min(abs(times - 1), 1) * 5)
    return f"{'more' if times > 1 else 'less'} shade-{strength}" if strength else ""


def runs(values: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, end, value) of each stretch of equal values."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [(a, b, values[a]) for a, b in pairwise(edges)]


def stage_times(stages: dict[str, float], width: float, title: str = "Time of each stage") -> str:
    """How long each stage, or each part of one, took, one bar each."""
    narrow = width < NARROW
    name_width, value_width, step = (84.0, 74.0, 26.0) if narrow else (120.0, 90.0, 26.0)
    x = Scale(0, max(stages.values()) or 1, name_width, width - value_width)
    parts = []
    for i, (name, seconds) in enumerate(stages.items()):
        y = i * step
        parts += [text(name, name_width - 10, y + 16, "label", "end")]
        parts += [rect(name_width, y + 4, max(x(seconds) - name_width, 1.5), step - 9, "stage")]
        parts += [text(human_duration(seconds), max(x(seconds), name_width + 2) + 8, y + 16, "tick")]
    said = "; ".join(f"{name} {human_duration(seconds)}" for name, seconds in stages.items())
    return picture(width, step * len(stages) + 4, title, f"{said}.", *parts)


def load_grid(points: Sequence[Sequence[float]], cells: int) -> list[list[float]]:
    """Shares (times, experts) as (experts, cells): each cell is the median of its stretch of time."""
    cells = min(cells, len(points))
    edges = [len(points) * i // cells for i in range(cells + 1)]
    return [
        [median(shares[e] for shares in points[a:b]) for a, b in pairwise(edges)]
        for e in range(len(points[0]))
    ]
