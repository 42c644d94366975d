"""The pictures of what experts do: what is lost without each, and what kinds of tokens each reads.

How the load of each moves during training is drawn elsewhere (`pictures.expert_load`). Here every number has a bar of
its own, in columns that share a scale, because lengths from a common line are what the eye compares best
(Cleveland & McGill 1984); the number stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from behemoth.base.units import counted
from behemoth.report.forest import LETTER, fit, signed
from behemoth.report.markup import both, figure, words
from behemoth.report.run import is_number
from behemoth.report.svg import Scale, element, line, picture, rect, spaced, text

NARROW = 500  # figures below this width leave room for less
LAYERS_SHOWN = 8
STRENGTHS = 5

Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """A number, its interval where it has one, and what to hold it against."""

    value: float
    said: str
    class_: str = "stage"
    low: float | None = None
    high: float | None = None
    usual: float | None = None


def losses(name: str, layers: Sequence[Layer]) -> str:
    """What removing each expert of the model `name` adds to the held-out bits per byte; "" where none was removed.

    layers: {"layer", "experts": [{"expert", "without": {source: {"added", "low", "high", "level", "verdict",
    "documents", "tokens"}}}]}, as `losses_without` measures them; the source "all" stands for every document. First
    all experts at a glance, then layer by layer and source by source.
    """
    rows = {layer["layer"]: [e for e in layer["experts"] if e.get("without")] for layer in layers}
    rows = {layer: experts for layer, experts in rows.items() if experts}
    if not rows:
        return ""
    everything = [expert["without"]["all"] for experts in rows.values() for expert in experts]
    most = max(abs(of["added"]) for of in everything)
    overview = figure(
        lambda width: glance(rows, width, name),
        f"What each expert of {words(name)} is worth: bits per byte that removing it adds to held-out text, layers "
        f"down, experts across. Orange at full strength is {most:.3f}; blue, the text is easier without it. A dot: "
        f"enough to say so, with all experts judged together (Holm).{scored(everything[0])}",
    )
    shown = [list(rows)[i] for i in spaced(len(rows), LAYERS_SHOWN)]
    return overview + "".join(
        f"<details><summary>{words(name)}, layer {layer}, source by source, with intervals</summary>"
        f"{bars_of(loss_rows(rows[layer]), f'Worth of the experts of {name}, layer {layer}')}</details>"
        for layer in shown
    )


def scored(of: Mapping[str, Any]) -> str:
    """What text was scored, where the evaluation says so (an older one does not)."""
    if not (is_number(of.get("documents")) and is_number(of.get("tokens"))):
        return ""
    return f" Scored: {counted(of['tokens'], 'token')} from inside {counted(of['documents'], 'document')}."


def loss_rows(experts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Bar]]:
    return {
        str(expert["expert"]): {
            source: Bar(
                of["added"],
                signed(of["added"], "bits per byte"),
                "more shade-4" if of["added"] > 0 else "less shade-4",
                of["low"],
                of["high"],
            )
            for source, of in expert["without"].items()
        }
        for expert in experts
    }


def kinds(name: str, layers: Sequence[Layer]) -> str:
    """How what each expert reads divides among the kinds of tokens, beside how all text does.

    layers: {"layer", "kinds": {kind: share}, "experts": [{"expert", "kinds": {kind: share}}]}, shares of 1; a layer
    without kinds (an older evaluation) is passed over.
    """
    drawn = [layer for layer in layers if layer.get("kinds")]
    parts = []
    for i, number in enumerate(spaced(len(drawn), LAYERS_SHOWN)):
        layer = drawn[number]
        state = " open" if i == 0 else ""
        title = f"{words(name)}, layer {layer['layer']}"
        shown = bars_of(kind_rows(layer), f"Kinds of tokens, {name}, layer {layer['layer']}")
        parts.append(f"<details{state}><summary>{title}</summary>{shown}</details>")
    note = "What each expert reads, by kind of token, in percent; the line across a bar is the share in all text."
    return f'<p class="note">{note}</p>{"".join(parts)}' if parts else ""


def kind_rows(layer: Layer) -> dict[str, dict[str, Bar]]:
    usual = {kind: share for kind, share in layer["kinds"].items() if share >= 0.0005}
    return {
        str(expert["expert"]): {
            kind: Bar(
                expert["kinds"].get(kind, 0.0), f"{100 * expert['kinds'].get(kind, 0.0):.0f}", usual=share
            )
            for kind, share in usual.items()
        }
        for expert in layer["experts"]
    }


# ------------------------------------------------------------------------------------------------------- drawing


def glance(layers: Mapping[int, Sequence[Mapping[str, Any]]], width: float, name: str) -> str:
    """A cell per expert, a row per layer; shaded by what is lost without it."""
    left, columns = 64.0, max(map(len, layers.values()))
    cell = min((width - left) / columns, 34.0)
    high = min(max(cell, 13.0), 22.0)
    everything = [entry["without"]["all"] for entries in layers.values() for entry in entries]
    most = max(abs(of["added"]) for of in everything) or 1.0
    parts = []
    for i, (layer, entries) in enumerate(layers.items()):
        y = i * high
        parts.append(text(f"layer {layer}", left - 8, y + high / 2 + 4, "tick", "end"))
        for j, entry in enumerate(entries):
            of, x = entry["without"]["all"], left + j * cell
            parts.append(rect(x, y, cell - 1, high - 1, "cell"))
            if strength := round(min(abs(of["added"]) / most, 1) * STRENGTHS):
                class_ = f"{'more' if of['added'] > 0 else 'less'} shade-{strength}"
                parts.append(rect(x, y, cell - 1, high - 1, class_))
            if of.get("verdict", "cannot tell") != "cannot tell" and cell >= 6:
                parts.append(
                    element("circle", cx=x + (cell - 1) / 2, cy=y + (high - 1) / 2, r=1.8, class_="sure")
                )
    bottom = len(layers) * high + 15
    every = -(-columns // int(max(columns * cell / 26, 1)))
    parts += [
        text(str(j), left + (j + 0.5) * cell, bottom, "tick", "middle") for j in range(0, columns, every)
    ]
    parts.append(text("expert", left - 8, bottom, "axis", "end"))
    best = max(((e["without"]["all"]["added"], n, e["expert"]) for n, es in layers.items() for e in es))
    said = f"The one most missed is expert {best[2]} of layer {best[1]}: {best[0]:.3f} bits per byte more without it."
    return picture(width, bottom + 8, f"What each expert of {name} is worth", said, *parts)


def bars_of(rows: Mapping[str, Mapping[str, Bar]], title: str) -> str:
    return both(lambda width: columns(rows, width, title))


def columns(rows: Mapping[str, Mapping[str, Bar]], width: float, title: str) -> str:
    """A row per expert and a column per name, a bar with its number in each; all on one scale.

    What does not fit side by side stands below, three columns to a row on a phone and six on a page.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    across = 3 if width < NARROW else 6
    blocks = [names[i : i + across] for i in range(0, len(names), across)]
    ends = [
        end
        for row in rows.values()
        for bar in row.values()
        for end in (bar.value, bar.low, bar.high, bar.usual)
    ]
    reach = [end for end in ends if is_number(end) and end is not None]
    low, high = min([0.0, *reach]), max([0.0, *reach]) or 1.0
    left, step, top = 26.0, 17.0, 36.0
    room = (width - left) / min(len(names), across)
    length = min(room - 50, 260.0)
    parts, y = [], 0.0
    for block in blocks:
        for j, name in enumerate(block):
            start = left + j * room
            x = Scale(low, high, start, start + length)
            for k, part in enumerate(two_lines(name, int((room - 8) / LETTER))):
                parts.append(text(part, start, y + 12 + 14 * k, "tick"))
            parts.append(line(x(0), y + top - 4, x(0), y + top + step * len(rows), "rule"))
            for i, row in enumerate(rows.values()):
                if name in row:
                    parts.append(draw_bar(row[name], x, y + top + step * i))
        parts += [
            text(label, left - 8, y + top + step * i + 12, "tick", "end") for i, label in enumerate(rows)
        ]
        y += top + step * len(rows) + 14
    said = "; ".join(
        f"expert {label}: " + ", ".join(f"{n} {b.said}" for n, b in row.items())
        for label, row in rows.items()
    )
    return picture(width, y, title, f"{said}.", *parts)


def draw_bar(bar: Bar, x: Scale, y: float) -> str:
    """The bar, its interval as a thin line over it, the usual value as a line across it, and behind all the number."""
    start, end = sorted((x(0), x(bar.value)))
    parts = [rect(start, y + 3, end - start, 10, bar.class_)]
    if bar.low is not None and bar.high is not None:
        parts.append(line(x(bar.low), y + 8, x(bar.high), y + 8, "reach"))
    if bar.usual is not None:
        parts.append(line(x(bar.usual), y + 1, x(bar.usual), y + 15, "usual"))
    ends = [x(end) for end in (0.0, bar.value, bar.high, bar.usual) if end is not None]
    return "".join([*parts, text(bar.said, max(ends) + 6, y + 12, "tick")])


def two_lines(name: str, most: int) -> list[str]:
    """A heading on one line, or broken at a space; the first of two stays empty where one is enough."""
    if len(name) <= most:
        return ["", name]
    spaces = [i for i, letter in enumerate(name) if letter == " "]
    at = min(spaces, key=lambda i: abs(i - len(name) / 2), default=None)
    return ["", fit(name, most, 1)] if at is None else [fit(name[:at], most, 1), fit(name[at + 1 :], most, 1)]
