"""The sections of a report that say what the models can do, and what the doctor saw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from behemoth.base.units import counted
from behemoth.report import pictures
from behemoth.report.markup import figure, missing, table, words
from behemoth.report.pictures import Curve
from behemoth.report.run import Run, is_number

VERDICTS = {"fault": "✗ fault", "warning": "! warning", "ok": "✓ ok", "not checked": "– not checked"}


def tasks(run: Run) -> str:
    """Every task's score of every member with its interval, the curves during training, the pages that compare."""
    names = list(dict.fromkeys(name for entries in run.tasks.values() for name in entries))
    if not names:
        return missing("Tasks")
    rows: list[list[str]] = []
    for name in names:
        asked = {member: entries[name] for member, entries in run.tasks.items() if name in entries}
        first = next(iter(asked.values()))
        rows.append([f"{words(name)}<small>{words(about(first))}</small>"])
        rows += [[words(member), *numbers(entry)] for member, entry in asked.items()]
    head = ["model", "score", "95% interval", "items"]
    said = "Percent right; of texts bits per byte, where less is better. Every item is kept in evals/tasks/."
    pages = "".join(
        f'<li><a href="{words(page)}">{words(page.removesuffix(".html"))}</a></li>' for page in run.compared
    )
    links = f'<p class="note">Item by item:</p><ul class="plain">{pages}</ul>' if pages else ""
    found = table(head, rows, numbers={1, 2, 3}, caption=said)
    return f'<div class="scroll">{found}</div>{known_items(run, names)}{links}{over_training(run, names)}'


def known_items(run: Run, names: Sequence[str]) -> str:
    """The same scores by what of the items stood in the training data, where any did."""
    rows: list[list[str]] = []
    kinds: dict[str, None] = {}
    asked = {
        name: {
            member: groups
            for member, entries in run.tasks.items()
            if (groups := groups_of(entries.get(name)))
        }
        for name in names
    }
    for groups in (groups for members in asked.values() for groups in members.values()):
        kinds |= dict.fromkeys(groups)
    if not kinds:
        return ""
    for name, members in asked.items():
        if members:
            rows.append([words(name)])
        for member, groups in members.items():
            entry = run.tasks[member][name]
            rows.append([words(member), *(group_score(kind, groups.get(kind), entry) for kind in kinds)])
    said = (
        "The same scores by what of an item stood in the training text: nothing (clean), a part, or all of it (dirty). "
        "Below each its number of items, and its 95% interval where they are enough to say anything."
    )
    found = table(
        ["items that are", *map(words, kinds)], rows, numbers=range(1, len(kinds) + 1), caption=said
    )
    return f'<div class="scroll">{found}</div>'


def groups_of(entry: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The scores by verdict of a task that was looked up; none where all of its items are alike."""
    groups = ((entry or {}).get("contamination") or {}).get("groups", {})
    return groups if len(groups) > 2 else {}


def group_score(kind: str, part: dict[str, Any] | None, entry: dict[str, Any]) -> str:
    if not part or not is_number(part["score"]):
        return "–"
    if kind == "all":  # the table above says the rest
        return show(part["score"], entry)
    said = f"{show(part['score'], entry)}<small>{counted(part['items'], 'item')}</small>"
    if is_number(part["low"]):
        said += f"<small>{show(part['low'], entry)} to {show(part['high'], entry)}</small>"
    return said


def about(entry: dict[str, Any]) -> str:
    """What a reader of a score must know of its task."""
    chance = f"guessing gives {100 * entry['chance']:.0f}" if is_number(entry.get("chance")) else ""
    return ", ".join(part for part in (str(entry["metric"]).replace("_", " "), chance) if part)


def numbers(entry: dict[str, Any]) -> list[str]:
    """Score, interval, and how many items were scored of how many."""
    scored = f"{entry['scored']:,}" + ("" if entry["scored"] == entry["items"] else f" of {entry['items']:,}")
    if not is_number(entry.get("score")):
        return ["–", "–", scored]
    ends = f"{show(entry['low'], entry)} to {show(entry['high'], entry)}" if is_number(entry["low"]) else "–"
    return [show(entry["score"], entry), ends, scored]


def show(value: float, entry: dict[str, Any]) -> str:
    return f"{value:.3f}" if entry["ask"] == "text" else f"{100 * value:.1f}"


def over_training(run: Run, names: Sequence[str]) -> str:
    """A picture for each task that was done at chosen steps of training."""
    drawn = []
    for name in dict.fromkeys(line["task"] for line in run.task_scores):
        found, unit = curves_of(run, name)
        decimals = 2 if unit == "bits per byte" else 0
        if found:
            title = f"{name} during training"
            drawn.append(
                figure(
                    partial(pictures.curves, found, title=title, y_title=unit, decimals=decimals),
                    f"{words(title)}, on a few of its items, with 95% intervals.",
                )
            )
    return "".join(drawn)


def curves_of(run: Run, task: str) -> tuple[list[Curve], str]:
    """Every member's scores on a task at chosen steps of training, and their unit."""
    places = run.places()
    lines = [line for line in run.task_scores if line["task"] == task and line["step"] in places]
    texts = any(line.get("ask") == "text" for line in lines)
    scale, unit = (1, "bits per byte") if texts else (100, "percent right")
    found = []
    for member in run.member_names():
        marks = [
            (places[line["step"]], *(scale * line[key] for key in ("score", "low", "high")))
            for line in lines
            if line["member"] == member and all(is_number(line[key]) for key in ("score", "low", "high"))
        ]
        if marks:
            found.append(Curve(member, [mark[:2] for mark in marks], marks))
    return found, unit


def doctor(run: Run) -> str:
    """What the doctor looked at, and what it found."""
    if not run.doctor:
        return missing("The doctor")
    parts = []
    for examined in run.doctor["examined"]:
        rows = [finding_row(finding) for finding in examined["findings"]]
        count = sum(finding["verdict"] == "fault" for finding in examined["findings"])
        told = counted(count, "fault") if count else "no fault"
        title = f"{words(examined['name'])}: {len(rows)} checks, {told}, {examined['seconds']:.0f} s"
        found = table(["check", "number", "verdict", "what it means"], rows, numbers={1})
        state = " open" if count else ""
        parts.append(f'<details{state}><summary>{title}</summary><div class="scroll">{found}</div></details>')
    note = "Silent faults of sparse models, each looked for in these very weights before they were exported."
    return f'<p class="note">{note}</p>{"".join(parts)}'


def finding_row(finding: dict[str, Any]) -> list[str]:
    number = f"{finding['number']:.3g}" if is_number(finding.get("number")) else "–"
    name = f"{words(finding['check'])}<small>{words(finding['looked_at'])}</small>"
    todo = f"<small>{words(finding['todo'])}</small>" if finding["verdict"] in ("fault", "warning") else ""
    return [name, number, VERDICTS[finding["verdict"]], words(finding["meaning"]) + todo]
