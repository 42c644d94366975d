"""How a model learned, drawn from the lines its stage wrote: loss, held-out text, speed, and what it said meanwhile.

The curves are functions of a `Run`, so pretraining and what comes after it are drawn by the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from behemoth.base.units import human_count
from behemoth.report import pictures
from behemoth.report.markup import figure, missing, words
from behemoth.report.pictures import Curve
from behemoth.report.run import Run, is_number
from behemoth.report.svg import spaced


def learning(run: Run) -> str:
    if not run.metrics:
        return missing("Training")
    return loss_figure(run) + held_out_figure(run) + speed_figure(run)


def loss_figure(run: Run) -> str:
    found = member_curves(run, "loss")
    if not found:
        return ""
    return figure(
        lambda width: pictures.curves(found, width, "Training loss", "nats per token"),
        "Training loss: every step faint, the mean of a stretch of steps in full. The first steps may lie "
        "above the frame.",
    ) + skipped_steps(run)


def member_curves(run: Run, key: str) -> list[Curve]:
    """A number that the loop wrote at every step, a curve for each member that has it."""
    return [Curve(name, points) for name in run.member_names() if (points := run.series(name, key))]


def held_out_figure(run: Run) -> str:
    found = held_out_curves(run)
    if not found:
        return ""
    return figure(
        lambda width: pictures.curves(found, width, "Held-out text during training", "bits per byte"),
        "Held-out text during training: the beginnings of a fixed few documents.",
    )


def held_out_curves(run: Run) -> list[Curve]:
    places = run.places()
    found = []
    for name in run.member_names():
        lines = [
            line
            for line in run.held_out
            if line["member"] == name and line["step"] in places and is_number(line["bits_per_byte"])
        ]
        marks = [held_out_mark(line, places[line["step"]]) for line in lines]
        if marks:
            found.append(Curve(name, [mark[:2] for mark in marks], marks))
    return found


def held_out_mark(line: dict[str, Any], place: float) -> tuple[float, float, float, float]:
    bits = line["bits_per_byte"]
    return place, bits, line.get("low", bits), line.get("high", bits)


def speed_figure(run: Run) -> str:
    tokens = run.tokens_at()
    points = [
        (tokens[line["step"]], float(line["tokens_per_second"]))
        for line in run.metrics
        if is_number(line.get("tokens_per_second"))
    ]
    if not points:
        return ""
    shares = [line["peak_share"] for line in run.metrics if is_number(line.get("peak_share"))]
    peak = f"; {median(shares):.0%} of the machine's measured matmul peak" if shares else ""
    return figure(
        lambda width: pictures.curves(
            [Curve("all models", points)],
            width,
            "Throughput",
            "tokens per second",
            from_zero=True,
            decimals=0,
        ),
        f"Throughput; the median is {human_count(median(y for _, y in points))} tokens per second{peak}.",
    )


def skipped_steps(run: Run) -> str:
    skipped = Counter(
        name
        for line in run.metrics
        for name, facts in line.get("members", {}).items()
        if facts.get("skipped")
    )
    said = ", ".join(f"{words(name)} {count}" for name, count in skipped.items())
    return f'<p class="note">Steps left out because a number was not finite: {said}.</p>' if said else ""


# ------------------------------------------------------------------------------------------------- what it says


def samples(run: Run) -> str:
    if not run.samples:
        return missing("Sampling during training")
    note = '<p class="note">The prompt is set in bold; what follows is the model\'s.</p>'
    return note + "".join(
        f"<h3>{words(name)}</h3>{prompts(run, lines)}" for name, lines in grouped(run.samples, "member")
    )


def prompts(run: Run, lines: Iterable[dict[str, Any]]) -> str:
    """What was said last after each prompt, with what was said before folded away."""
    tokens = run.tokens_at()
    parts = []
    for prompt, over_time in grouped(lines, "prompt"):
        *earlier, last = (over_time[i] for i in spaced(len(over_time), 5))
        parts.append(sample(last, prompt, tokens.get(last["step"])))
        before = "".join(sample(line, prompt, tokens.get(line["step"])) for line in earlier)
        parts.append(f"<details><summary>Earlier</summary>{before}</details>" if before else "")
    return "".join(parts)


def sample(line: dict[str, Any], prompt: str, tokens: float | None) -> str:
    after = f", {human_count(tokens)} tokens" if tokens else ""
    said = f"<b>{words(prompt)}</b>{words(line['text'].removeprefix(prompt))}"
    return f'<p class="note">Step {line["step"]}{after}</p><pre>{said}</pre>'


def grouped(lines: Iterable[dict[str, Any]], key: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Lines by the value of `key`, values in the order of their first line, lines in theirs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line[key], []).append(line)
    return list(found.items())
