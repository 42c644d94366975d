"""The pictures of a comparison: what differs, task by task, and what both models scored.

The first model is blue and a disc, the second orange and a diamond, in every picture; what cannot be told is hollow
and grey. So a figure is read without its colours too. Each is drawn twice, for a page and for a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behemoth.report.run import is_number
from behemoth.report.svg import Scale, decimals_of, element, line, picture, text

Row = Mapping[str, Any]

NARROW = 500  # figures below this width leave room for less
LETTER, BOLD = 6.6, 6.9  # how wide a letter is, about
TOP = 34.0  # where the rows begin, below the names


def forest(tasks: Sequence[Row], names: tuple[str, str], width: float) -> str:
    """A line per task: its difference and interval about the line of no difference, which is always in view."""
    narrow, unit = width < NARROW, tasks[0]["unit"]
    left, step, value_width = (8.0, 46.0, 8.0) if narrow else (name_room(tasks) + 8, 30.0, 172.0)
    ends = [task[key] for task in tasks for key in ("low", "difference", "high") if is_number(task[key])]
    reach = max(map(abs, ends), default=0.0) or 0.01
    margin = 0.12 * reach
    least = (0.5 if narrow else 0.3) * reach  # on each side, for the name above it
    low, high = min([-least, *ends]) - margin, max([least, *ends]) + margin
    x = Scale(low, high, left, width - value_width)
    bottom = TOP + step * len(tasks) + 4
    parts = [axis(x, bottom, unit, f"difference in {unit}", narrow, signs=True), sides(x(0), names, width)]
    for i, task in enumerate(tasks):
        if i and not narrow:
            parts.append(line(0, TOP + step * i, width, TOP + step * i, "row"))
        parts.append(forest_row(task, x, TOP + step * (i + (0.7 if narrow else 0.5)), width))
    title = f"Difference between {names[0]} and {names[1]} in {unit}, task by task"
    said = "; ".join(f"{task['task']} {difference(task)}, {task['verdict']}" for task in tasks)
    return picture(width, bottom + 44, title, f"{said}.", *parts)


def sides(zero: float, names: tuple[str, str], width: float) -> str:
    """Who is better on which side of the line."""
    worse, better = fit(names[1], zero - 72, BOLD), fit(names[0], width - zero - 72, BOLD)
    return text(f"← {worse} better", zero - 10, 16, "side side-b", "end") + text(
        f"{better} better →", zero + 10, 16, "side side-a"
    )


def forest_row(task: Row, x: Scale, y: float, width: float) -> str:
    class_ = {"better": "side-a", "worse": "side-b"}.get(task["verdict"], "open")
    value = difference(task)
    if width < NARROW:  # the words stand above the line
        room, words_at = width - LETTER * len(value) - 12, y - 16
    else:
        room, words_at = x.start - 16, y + 4
    parts = [text(fit(task["task"], room, LETTER), 0, words_at, "label halo")]
    if is_number(task["low"]) and is_number(task["high"]):
        parts += [line(x(task["low"]), y, x(task["high"]), y, f"bar {class_}")]
        parts += [line(x(end), y - 4, x(end), y + 4, f"cap {class_}") for end in (task["low"], task["high"])]
    if is_number(task["difference"]):
        parts.append(dot(x(task["difference"]), y, class_))
    parts.append(text(value, width, words_at, "value halo", "end"))
    return "".join(parts)


def both_scores(tasks: Sequence[Row], names: tuple[str, str], width: float) -> str:
    """Two lines per task, the first model's above the second's; where guessing has a score, that too."""
    narrow, unit = width < NARROW, tasks[0]["unit"]
    left, step, above = (8.0, 64.0, 21.0) if narrow else (name_room(tasks) + 8, 46.0, 0.0)
    sides = [task[side] for task in tasks for side in "ab"]
    ends = [side[key] for side in sides for key in ("low", "score", "high") if is_number(side[key])]
    ends += [task["chance"] for task in tasks if has_chance(task)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.05 * (high - low or abs(high) or 1)
    x = Scale(max(low - margin, 0.0), high + margin, left, width - 56)
    bottom = TOP + step * len(tasks) + 4
    title = "score in points" if unit == "points" else unit
    parts = [axis(x, bottom, unit, title, narrow), key(names, 6.0 if narrow else left, width)]
    for i, task in enumerate(tasks):
        y = TOP + step * i + above
        if i and not narrow:
            parts.append(line(0, y, width, y, "row"))
        label = fit(task["task"], width if narrow else left - 16, LETTER)
        parts.append(text(label, 0, y - 4 if narrow else y + step / 2 + 4, "label halo"))
        if has_chance(task):
            parts.append(line(x(task["chance"]), y + 5, x(task["chance"]), y + 41, "chance"))
        for side, at in (("a", y + 14), ("b", y + 32)):
            parts.append(score_row(task[side], x, at, f"side-{side}", width, unit))
    said = "; ".join(
        f"{task['task']} {plain(task['a']['score'], unit)} and {plain(task['b']['score'], unit)}"
        for task in tasks
    )
    return picture(width, bottom + 44, f"Scores of {names[0]} and {names[1]} in {unit}", f"{said}.", *parts)


def score_row(of: Row, x: Scale, y: float, class_: str, width: float, unit: str) -> str:
    parts = [text(plain(of["score"], unit), width, y + 4, f"value {class_}", "end")]
    if is_number(of["low"]) and is_number(of["high"]):
        parts.append(line(x(of["low"]), y, x(of["high"]), y, f"bar {class_}"))
    if is_number(of["score"]):
        parts.append(dot(x(of["score"]), y, class_))
    return "".join(parts)


def has_chance(task: Row) -> bool:
    return task["unit"] == "points" and is_number(task["chance"])


def key(names: tuple[str, str], start: float, width: float) -> str:
    """Which mark is whose."""
    half = (width - start) / 2
    parts = []
    for at, name, class_ in zip((start, start + half), names, ("side-a", "side-b"), strict=True):
        parts += [dot(at, 12, class_), text(fit(name, half - 24, BOLD), at + 12, 16, f"side {class_}")]
    return "".join(parts)


def axis(x: Scale, bottom: float, unit: str, title: str, narrow: bool, signs: bool = False) -> str:
    """Faint lines at round numbers, as many decimals as these need to differ; nought is a line in full."""
    ticks = [value if abs(value) > 1e-12 else 0.0 for value in x.ticks(4 if narrow else 6)]
    decimals = decimals_of([value * scale(unit) for value in ticks])
    parts = []
    for value in ticks:
        said = f"{value * scale(unit):{'+' if signs and value else ''}.{decimals}f}".replace("-", "−")
        parts.append(line(x(value), TOP - 6, x(value), bottom, "zero" if signs and not value else "grid"))
        parts.append(text(said, x(value), bottom + 18, "tick", "middle"))
    return "".join([*parts, text(title, x.end, bottom + 36, "axis", "end")])


def dot(x: float, y: float, class_: str) -> str:
    """A diamond for the second model, a disc for all else."""
    if class_ != "side-b":
        return element("circle", cx=x, cy=y, r=4.8, class_=f"point {class_}")
    return element("path", d=f"M{x:.1f},{y - 6:.1f}l6,6l-6,6l-6,-6z", class_=f"point {class_}")


def name_room(tasks: Sequence[Row]) -> float:
    """How wide the column of names is: as wide as the longest needs, within reason."""
    return min(max(LETTER * max(len(task["task"]) for task in tasks) + 8, 90.0), 250.0)


def fit(name: str, room: float, letter: float) -> str:
    """A name that fits into the room it has, at so much a letter, or its beginning and its end."""
    most = max(int(room / letter), 3)
    end = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


# ---------------------------------------------------------------------------------------------------- numbers


def scale(unit: str) -> int:
    """Points are hundredths."""
    return 100 if unit == "points" else 1


def plain(value: float | None, unit: str) -> str:
    if value is None or not is_number(value):
        return "–"
    return f"{value * scale(unit):.{1 if unit == 'points' else 3}f}"


def signed(value: float | None, unit: str) -> str:
    """With its sign, the minus as long as the plus; nought has none."""
    said = plain(value, unit)
    if not is_number(value) or not float(said):
        return said.lstrip("-")
    return f"+{said}" if float(said) > 0 else said.replace("-", "−")


def between(row: Row, unit: str, say: Any = signed) -> str:
    return f"{say(row['low'], unit)} to {say(row['high'], unit)}" if is_number(row["low"]) else "–"


def difference(row: Row) -> str:
    if not is_number(row["difference"]):
        return "not scored"
    return f"{signed(row['difference'], row['unit'])} ({between(row, row['unit'])})"
