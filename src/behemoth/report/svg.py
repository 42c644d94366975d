"""Just enough SVG to draw a careful figure: elements, scales, ticks and a frame.

Colours are CSS classes of the page and `currentColor`, so that a figure follows the reader's light or dark
setting. Text stays text. Every attribute and every string is escaped here, in one place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from behemoth.base.units import human_count

Point = tuple[float, float]


def element(tag: str, *children: str, **attributes: str | float | None) -> str:
    """One element; `class_` becomes class, `clip_path` clip-path. Children are markup; for words: `text`."""
    words = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(number(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{words}>{''.join(children)}</{tag}>" if children else f"<{tag}{words}/>"


def number(value: str | float) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(words: str, x: float, y: float, class_: str = "label", anchor: str = "start") -> str:
    return element("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, **more: str | float | None) -> str:
    return element("rect", x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_, **more)


def path(points: Iterable[Point], class_: str, **more: str | float | None) -> str:
    steps = " ".join(
        f"{'L' if i else 'M'}{number(float(x))},{number(float(y))}" for i, (x, y) in enumerate(points)
    )
    return element("path", d=steps, class_=class_, **more)


def picture(width: float, height: float, title: str, description: str, *children: str) -> str:
    """A whole figure; screen readers hear `title` and `description`."""
    heard = element("title", escape(title)) + element("desc", escape(description))
    box = f"0 0 {number(float(width))} {number(float(height))}"
    return element("svg", heard, *children, viewBox=box, role="img", xmlns="http://www.w3.org/2000/svg")


@dataclass(frozen=True)
class Scale:
    """A straight line from values to places on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low or 1) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round numbers (1, 2 or 5 times a power of ten) within the scale, about `count` of them."""
        span = (self.high - self.low) or 1
        power = 10 ** math.floor(math.log10(span / count))
        step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Frame:
    """A plotting area with both scales; `y` runs upwards."""

    x: Scale
    y: Scale

    def place(self, points: Iterable[Point]) -> list[Point]:
        return [(self.x(a), self.y(b)) for a, b in points]

    def axes(self, x_title: str, y_title: str, y_format: Callable[[float], str], narrow: bool) -> str:
        """Faint lines across at each tick, their values, and what is measured along each side."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = [text(y_title, 0, top - 14, "axis")]
        for value in self.y.ticks(5):
            parts += [line(left, self.y(value), right, self.y(value), "grid")]
            parts += [text(y_format(value), left - 8, self.y(value) + 4, "tick", "end")]
        for value in self.x.ticks(5 if narrow else 7):
            parts += [line(self.x(value), bottom, self.x(value), bottom + 5, "rule")]
            parts += [text(whole(human_count(value)), self.x(value), bottom + 20, "tick", "middle")]
        parts += [line(left, bottom, right, bottom, "rule"), text(x_title, right, bottom + 38, "axis", "end")]
        return "".join(parts)


def decimals_of(values: Sequence[float]) -> int:
    """How many decimals round numbers at even distances need to differ."""
    step = min((b - a for a, b in pairwise(values)), default=0.1)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def whole(count: str) -> str:
    """10.0K is 10K where only round numbers stand."""
    return re.sub(r"\.0(?=[A-Z])", "", count)


def spread_labels(wanted: Sequence[float], gap: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart, in the same order of height."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + gap)
    return places


def spaced(count: int, most: int) -> list[int]:
    """Up to `most` indices of `count`, evenly, the first and the last among them."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]
