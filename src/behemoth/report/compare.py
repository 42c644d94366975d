"""One page on which two models are compared: the verdict, what it rests on, and the items behind it.

Everything is drawn from the plain data of one comparison into a single file: no script, no font, no request
to anywhere; which items are seen is chosen by radio buttons that the style sheet obeys. Prompts and answers are
hostile text: every string goes through `words`, and characters that would hide or reorder what is read are
replaced by their numbers.

The page stays below 3 MB, whatever the models wrote: what does not fit is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from behemoth.base.files import write_atomic
from behemoth.base.units import counted, percent
from behemoth.report.forest import Row, between, both_scores, forest, has_chance, plain, signed
from behemoth.report.markup import figure, page, table, words
from behemoth.report.run import is_number

ROOM = 2_000_000  # bytes of markup for the items that differ
LISTED = 40  # items of one task and direction, at most
TOLD = 8  # verdicts told in the open; more are folded
SHOWN, LINES = 700, 12  # characters and lines of one text in the open
FOLDED = 6_000  # characters behind the fold
HIDDEN = (
    re.compile(  # control characters, soft hyphens, marks of direction, of no width, half surrogate pairs
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
        "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    )
)


def write_compare(path: Path, results: Row) -> Path:
    """Write the page of what `compare_evaluations` returned as the file `path`, and return that."""
    write_atomic(path, compare_page(results))
    return path


def compare_page(results: Row) -> str:
    """The whole page as HTML."""
    results = {**results, "tasks": [legible_task(task) for task in results["tasks"]]}
    results = {name: part if name == "tasks" else legible(part) for name, part in results.items()}
    sections = {
        "Verdicts": verdicts(results),
        "Scores": scores(results),
        "Contamination": contamination(results),
        "Items": items(results),
        "Method": method(results),
    }
    a, b = map(words, names_of(results))
    return page(
        f"{a} and {b}: a comparison",
        f'<bdi class="side-a">{a}</bdi> and <bdi class="side-b">{b}</bdi>',
        f"Compared on {counted(len(results['tasks']), 'task')} of the suite {words(results['suite'])}",
        lead(results),
        sections,
        "Intervals speak of other items of the same kind, not of other training runs.",
        kind="compare",
    )


def lead(results: Row) -> str:
    """The strongest sentence, large; then what else must be known at once."""
    told = "".join(f"<p>{words(sentence)}</p>" for sentence in results["remarks"])
    return f'<p class="lead"><b>{words(results["sentence"])}</b></p>{told}'


# --------------------------------------------------------------------------------------------------- the verdicts


def verdicts(results: Row) -> str:
    """Every task's difference with its interval: drawn, told and tabled."""
    names, tasks = names_of(results), results["tasks"]

    def caption(unit: str) -> str:
        return (
            f"Differences in {unit} with {levels(results)} intervals; to the right of the line {words(names[0])} is "
            "better. Filled is a verdict, hollow is “cannot tell”."
        )

    told = "".join(f"<li>{mark(task)}&ensp;{sentence(task, len(tasks) > 1)}</li>" for task in tasks)
    told = f'<ul class="plain">{told}</ul>'
    head = ["task", "items", "difference", "interval", "level", "p", f"{words(names[0])} is"]
    numbers = wide_table(
        head, map(verdict_row, tasks), "A difference is positive where the first model is better."
    )
    return (
        figures(forest, tasks, names, caption)
        + (folded("Every verdict as a sentence", told) if len(tasks) > TOLD else told)
        + folded("The numbers as a table", numbers)
    )


def figures(
    draw: Callable[[Sequence[Row], tuple[str, str], float], str],
    tasks: Sequence[Row],
    names: tuple[str, str],
    caption: Callable[[str], str],
) -> str:
    """A figure for each unit, for points and bits per byte have no axis in common; the caption is told the unit."""

    def at_any_width(rows: Sequence[Row]) -> Callable[[float], str]:
        return lambda width: draw(rows, names, width)

    units = dict.fromkeys(task["unit"] for task in tasks)
    by_unit = {unit: [task for task in tasks if task["unit"] == unit] for unit in units}
    return "".join(figure(at_any_width(rows), caption(words(unit))) for unit, rows in by_unit.items())


def mark(task: Row) -> str:
    shapes = {"better": ("side-a", "●"), "worse": ("side-b", "◆")}
    class_, shape = shapes.get(task["verdict"], ("open", "○"))
    return f'<span class="{class_}">{shape}</span>'


def sentence(task: Row, named: bool) -> str:
    said = task["sentence"]
    if named:
        said = f"{task['task']}: {said}"
    elif task["verdict"] == "cannot tell":  # such a sentence does not begin with a model's name
        said = said[:1].upper() + said[1:]
    return f"{words(said)}."


def verdict_row(task: Row) -> list[str]:
    unit = task["unit"]
    named = words(task["task"]) + ("" if unit == "points" else f"<small>{words(unit)}</small>")
    change = signed(task["difference"], unit)
    level = percent(task["level"]) if is_number(task["level"]) else "–"
    numbers = [f"{task['items']:,}", change, between(task, unit), level, p_value(task)]
    return [named, *numbers, words(task["verdict"])]


def levels(results: Row) -> str:
    """The intervals' level; under Holm the tasks of one comparison have several."""
    found = sorted({task["level"] for task in results["tasks"] if is_number(task["level"])})
    return " to ".join(map(percent, [*found[:1], *found[1:][-1:]])) or percent(results["level"])


def p_value(task: Row) -> str:
    value = task["p_value"]
    if not is_number(value):
        return "–"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


# ----------------------------------------------------------------------------------------------------- both scores


def scores(results: Row) -> str:
    names, tasks = names_of(results), results["tasks"]
    guessing = " The dashed line is what guessing scores." if any(map(has_chance, tasks)) else ""

    def caption(unit: str) -> str:
        marks = f"disc {words(names[0])}, diamond {words(names[1])}"
        more = guessing if unit == "points" else " Fewer are better."
        return f"Scores in {unit} with {percent(results['level'])} intervals: {marks}.{more}"

    note = (
        '<p class="note">Intervals that overlap may still be told apart above, because there both are held against '
        "each other item by item.</p>"
    )
    head = ["task", "chance", words(names[0]), "interval", words(names[1]), "interval"]
    tabled = wide_table(head, map(score_row, tasks))
    head = ["task", "asked", *(f"{words(name)}: {what}" for name in names for what in ("unscored", "errors"))]
    asked = wide_table(
        head, map(asked_row, tasks), "What could not be scored for one of the two is left out for both."
    )
    return (
        note
        + figures(both_scores, tasks, names, caption)
        + folded("The scores as a table", tabled)
        + folded("What was asked and what could be scored", asked)
    )


def score_row(task: Row) -> list[str]:
    unit = task["unit"]
    chance = plain(task["chance"], unit) if has_chance(task) else "–"
    numbers = [(plain(task[side]["score"], unit), between(task[side], unit, plain)) for side in "ab"]
    return [f"{words(task['task'])}<small>{words(task['metric'])}</small>", chance, *numbers[0], *numbers[1]]


def asked_row(task: Row) -> list[str]:
    counts = [task["a"]["items"], *(task[side][what] for side in "ab" for what in ("unscored", "errors"))]
    return [words(task["task"]), *(f"{count:,}" for count in counts)]


# -------------------------------------------------------------------------------------------------- contamination


def contamination(results: Row) -> str:
    """Each task whose items were held against the training data: all items, the clean ones, the others."""
    marked = [task for task in results["tasks"] if task.get("contamination")]
    if not marked:
        return ""
    names = names_of(results)
    known = [words(name) for name in results["looked_into"]]
    whose = "either model" if len(known) > 1 else f"{' and '.join(known)}, the only one that is known here"
    note = (
        f'<p class="note">An item is clean where none of its text was found in the training data of {whose}, and dirty '
        "where all or part of it was; one that is too short to be looked up is neither. What holds only on the dirty "
        "ones may be memory.</p>"
    )
    rows = [row for task in marked for row in parts_of(task)]
    head = ["items", "number", *map(words, names), "difference", "interval", f"{words(names[0])} is"]
    tabled = wide_table(head, [part_row(row) for row in rows])
    drawn = [row for row in rows if is_number(row["difference"])]
    caption = "Differences in {} on all items, on the clean ones and on the dirty ones."
    shown = figures(forest, drawn, names, caption.format)
    return note + shown + folded("The numbers as a table", tabled)


def parts_of(task: Row) -> Iterator[dict[str, Any]]:
    """The task itself and its parts, each as a row of a forest; one of too few items has no numbers."""
    nothing = {"score": None, "low": None, "high": None}
    empty = {
        "difference": None,
        "low": None,
        "high": None,
        "verdict": "too few items",
        "a": nothing,
        "b": nothing,
    }
    for kind, part in {"all": task, **task["contamination"]}.items():
        yield {**empty, **part, "task": f"{task['task']}, {kind}", "unit": task["unit"]}


def part_row(row: Row) -> list[str]:
    unit = row["unit"]
    both = [plain(row[side]["score"], unit) for side in "ab"]
    change = signed(row["difference"], unit)
    return [words(row["task"]), f"{row['items']:,}", *both, change, between(row, unit), words(row["verdict"])]


# ---------------------------------------------------------------------------------------------- items that differ


def items(results: Row) -> str:
    """Task by task the items on which the two part; tasks share the room, and what one leaves the next may use."""
    names, tasks, room = names_of(results), results["tasks"], ROOM
    parts = []
    for i, task in enumerate(tasks):
        markup, used = task_items(task, names, i, room // (len(tasks) - i))
        room -= used
        parts.append(markup)
    note = (
        '<p class="note">Prompts and answers as the models read and wrote them. Characters that cannot be seen, or '
        "that turn the direction of reading, are shown by their numbers.</p>"
    )
    return note + "".join(parts)


def task_items(task: Row, names: tuple[str, str], number: int, room: int) -> tuple[str, int]:
    """One task's items, from both directions in turn, and how many bytes they take."""
    counts = task["differing"]
    title = f"<h3>{words(task['task'])}</h3>"
    if not counts["a"] and not counts["b"]:
        what = (
            f"on any of {task['items']:,} items" if task["items"] else "for nothing could be scored for both"
        )
        return f'<div class="task">{title}<p>The two do not differ {what}.</p></div>', 0
    sides = [[item for item in task["examples"] if item["better"] == side] for side in "ab"]
    shown, used = {"a": 0, "b": 0}, 0
    drawn: list[str] = []
    for item in (item for pair in zip_longest(*sides) for item in pair if item):
        markup = draw_item(item, task, names)
        size = len(markup.encode())
        if used + size > room:
            if drawn:
                break
            continue
        used += size
        drawn.append(markup)
        shown[item["better"]] += 1
    here, total = sum(shown.values()), counts["a"] + counts["b"]
    left_out = (
        f'<p class="note">{here:,} of the {total:,} items that differ are shown.</p>' if here < total else ""
    )
    shown_items = choices(shown, task, names, number) + left_out + "".join(drawn)
    filtered = f'<div class="filter" role="group" aria-label="Items that differ">{shown_items}</div>'
    said = f"<small>{words(count_differing(task, names))}</small>"
    state = " open" if number == 0 else ""
    inside = f"<summary>{title}{said}</summary>{agreement(task, names)}{filtered}"
    return f'<details class="task"{state}>{inside}</details>', used


def direction(task: Row, name: str) -> str:
    return f"only {name} right" if task.get("agreement") else f"{name} better"


def count_differing(task: Row, names: tuple[str, str]) -> str:
    counts = task["differing"]
    return ", ".join(
        f"{counts[side]:,} {direction(task, name)}" for side, name in zip("ab", names, strict=True)
    )


def agreement(task: Row, names: tuple[str, str]) -> str:
    """Right and wrong of both, as a table of four."""
    if not (found := task.get("agreement")):
        return ""
    a, b = map(words, names)
    rows = [
        [f"{a} right", f"{found['both']:,}", f"{found['a']:,}"],
        [f"{a} wrong", f"{found['b']:,}", f"{found['neither']:,}"],
    ]
    return f'<div class="four">{table(["items", f"{b} right", f"{b} wrong"], rows, numbers=(1, 2))}</div>'


def choices(shown: Row, task: Row, names: tuple[str, str], number: int) -> str:
    """Radio buttons which the style sheet obeys: both directions, or one."""
    if not (shown["a"] and shown["b"]):
        return ""
    labels = {"all": "all", "a": direction(task, names[0]), "b": direction(task, names[1])}
    group = f"show-{number}"
    return "".join(
        f'<input type="radio" name="{group}" id="{group}-{kind}" class="show-{kind}"{" checked" * (kind == "all")}>'
        f'<label for="{group}-{kind}">{words(label)}</label>'
        for kind, label in labels.items()
    )


def draw_item(item: Row, task: Row, names: tuple[str, str]) -> str:
    """What was asked, what would be right, and side by side what the two said."""
    reference = "Text" if task["ask"] == "text" else "Right answer"
    said = [f'<p class="facts"><code>{words(item["item"])}</code>, {words(gap(item, task, names))}</p>']
    if item["prompt"]:
        said.append(f"<h4>Prompt</h4>{long_text(item['prompt'], from_end=True)}")
    if item["reference"]:
        said.append(f"<h4>{reference}</h4>{long_text(trimmed(item['reference'], task))}")
    both = "".join(one_side(item, side, name, task) for side, name in zip("ab", names, strict=True))
    return f'<article class="item better-{item["better"]}">{"".join(said)}<div class="pair">{both}</div></article>'


def gap(item: Row, task: Row, names: tuple[str, str]) -> str:
    better = names["ab".index(item["better"])]
    if task["unit"] != "points":
        return f"{better} needs {abs(item['gap']):,.0f} bits fewer"
    return (
        f"only {better} is right"
        if task.get("agreement")
        else f"{better} is better by {abs(item['gap']) * 100:.1f}"
    )


def one_side(item: Row, side: str, name: str, task: Row) -> str:
    """One model's output and what was made of it."""
    of, unit = item[side], task["unit"]
    score = plain(of["score"], unit) + ("" if unit == "points" else f" {unit}")
    if task.get("agreement"):
        score = "✓ right" if of["score"] else "✗ wrong"
    said = [
        f'<h4><bdi class="side-{side}">{words(name)}</bdi> <span class="score">{words(score)}</span></h4>'
    ]
    if of["error"]:
        said.append(note(f"Error: {of['error']}"))
    elif of["output"]:
        said.append(long_text(trimmed(of["output"], task)))
    elif is_number(of["logprob"]):
        said.append(note(f"Not the likeliest text: {-of['logprob']:.1f} nats"))
    elif unit == "points":
        said.append(note("No output"))
    if of["read"] and of["read"].strip() != of["output"].strip():
        said.append(note(f"Read as: {of['read']}"))
    if of["why"]:
        said.append(note(of["why"]))
    if of["truncated"]:
        said.append(note("Longer than the context: cut on the left"))
    return f"<div>{''.join(said)}</div>"


def trimmed(said: str, task: Row) -> str:
    """Without the space between a question and what may follow it; what a model wrote keeps its indentation."""
    return said.strip() if task["ask"] in ("choice", "continuation") else said


def note(said: str) -> str:
    return f'<p class="note">{words(said[:SHOWN])}</p>'


def long_text(said: str, from_end: bool = False) -> str:
    """A text in the open where it is short, else its beginning (or its end) with the rest folded away."""
    if len(said) <= SHOWN and said.count("\n") < LINES:
        return block(said)
    if from_end:
        shown = beginning(said[::-1])[::-1]
        rest = said[: len(said) - len(shown)]
        cut = f"[{len(rest) - FOLDED:,} characters left out]\n" if len(rest) > FOLDED else ""
        return folded(f"{len(rest):,} characters before", block(cut + rest[-FOLDED:])) + block(f"…{shown}")
    shown = beginning(said)
    rest = said[len(shown) :]
    cut = f"\n[{len(rest) - FOLDED:,} characters left out]" if len(rest) > FOLDED else ""
    return block(f"{shown}…") + folded(f"{len(rest):,} more characters", block(rest[:FOLDED] + cut))


def beginning(said: str) -> str:
    """Its first lines, up to the end of a line or a word where one is near."""
    shown = "\n".join(said[: SHOWN + 1].split("\n")[:LINES])
    if len(shown) <= SHOWN:
        return shown
    at = next((at for border in "\n " if (at := shown.rfind(border)) > SHOWN // 2), SHOWN)
    return shown[:at]


def block(said: str) -> str:
    return f'<pre dir="auto">{words(said)}</pre>'


# ---------------------------------------------------------------------------------------------------------- method


def method(results: Row) -> str:
    level = results["level"]
    notes = [
        "Both models answered the same items, and the difference is taken item by item: what makes an item hard for "
        "every model cancels.",
        *methods(results["tasks"]),
        "All tasks are one family (Holm): whatever their number, the chance that one verdict or more is wrong is about "
        f"{percent(1 - level)}. So the intervals of several tasks are wider than one task’s would be: each has the "
        "level at which its task was tested. Clean items are a family of their own, and so are dirty ones.",
        "“Cannot tell” means that either may be better, or that there are too few items to say. It does not mean "
        "equal: the interval says how large a difference may hide.",
        "Points are hundredths: 2.5 points more is 2.5 items more of 100. An item that could not be scored for one of "
        "the two is left out for both; an error or a time-out counts as wrong, but of a text, which is left out.",
        "Which model is better here is said of these two sets of weights. Another seed gives another model.",
    ]
    listed = "".join(f"<li>•&ensp;{said}</li>" for said in notes)
    both = (results["a"], results["b"])
    models = [
        [words(of["name"]), code(of["spec"]), words(of["how"]), code(of["sha256"] or "not known")]
        for of in both
    ]
    asked = [[words(task["task"]), words(task["metric"]), code(task["sha256"])] for task in results["tasks"]]
    hashes = wide_table(["model", "given as", "asked", "SHA-256 of the weights"], models)
    hashes += wide_table(["task", "metric", "SHA-256 of all that is asked"], asked)
    return f'<ul class="plain">{listed}</ul><div class="hashes">{folded("Models and tasks", hashes)}</div>'


def methods(tasks: Sequence[Row]) -> Iterator[str]:
    """Each test that was used, and for which tasks."""
    by_method: dict[str, list[str]] = {}
    for task in tasks:
        if task["method"] not in ("", "none"):
            kind, _, _ = task["method"].partition(",")  # what follows are its degrees of freedom
            by_method.setdefault(kind, []).append(task["task"])
    for kind, used in by_method.items():
        where = f" ({', '.join(used)})" if len(by_method) > 1 else ""
        yield words(f"Interval and test: {kind}{where}.")


# ------------------------------------------------------------------------------------------------ strings and markup


def legible_task(task: Row) -> dict[str, Any]:
    """A task without what could not be shown; of its examples only those that will be."""
    sides = [[item for item in task["examples"] if item["better"] == side][:LISTED] for side in "ab"]
    return legible({**task, "examples": [item for found in sides for item in found]})


def legible(value: Any) -> Any:
    """The same data, every string free of what cannot be seen, cannot be written or turns the reading."""
    if isinstance(value, str):
        return HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value)
    if isinstance(value, Mapping):
        return {name: legible(part) for name, part in value.items()}
    return [legible(part) for part in value] if isinstance(value, list | tuple) else value


def names_of(results: Row) -> tuple[str, str]:
    return results["a"]["name"], results["b"]["name"]


def code(value: str) -> str:
    return f"<code>{words(value)}</code>"


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def wide_table(head: Sequence[str], rows: Any, caption: str = "") -> str:
    """A table that scrolls where it is too wide; columns of numbers are set flush right."""
    found = list(rows)
    numbers = [i for i in range(1, len(head)) if all(re.match(r"[+−\d–]|&lt; \d", row[i]) for row in found)]
    return f'<div class="scroll">{table(head, found, numbers=numbers, caption=caption)}</div>'
