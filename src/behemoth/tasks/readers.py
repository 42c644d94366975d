"""Rows to a task: every row read or named, repeats found, examples put in front, and so many items as wanted.

Whatever is wrong with a file is told at once: each reason, the lines it holds for, and how many there are. An
item that a public file repeats by mistake stays, is named, and shares a cluster with the first one, so that it
does not count as fresh evidence; in a person's own file, and where there are many, repeats are an error.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from behemoth.base.config import nearest
from behemoth.base.errors import InputError
from behemoth.base.logs import say
from behemoth.base.rows import Place, Row, Wrong, file_rows
from behemoth.tasks.formats import FORMATS, Format, Reader, own, own_text
from behemoth.tasks.task import (
    SHOWN,
    Ask,
    Item,
    Task,
    chance,
    check_splits,
    duplicates,
    problems_of_item,
    spread,
)

TOLERATED = 0.01  # share of repeats in a public file; with more the file was put together wrongly
BETWEEN_EXAMPLES = "\n\n"
STEP_BY_STEP = "\nA: Let's think step by step.\n"  # how the worked examples of BIG-Bench Hard begin


@dataclass(frozen=True)
class Wanted:
    """How a task is made of a place; what is None is as usual for its kind."""

    kind: str
    place: Place
    name: str = ""
    examples: Path | None = None
    shots: int = 0
    limit: int | None = None
    seed: int = 0
    paradigms: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)  # fields of Format: metric, grade, stop ...


class Read(NamedTuple):
    """A task, and what it is made of."""

    task: Task
    bare: Sequence[Item]  # its items with nothing put in front
    examples: Sequence[Item] = ()  # those that are put there


def read_task(wanted: Wanted) -> Read:
    """Read a task, or raise one InputError that names the file and everything that is wrong in it."""
    form, items = _items(wanted, wanted.place)
    if form.ask != "generate" and (idle := {"stop", "max_tokens", "grade"} & wanted.changes.keys()):
        raise InputError(f"{', '.join(sorted(idle))}: nothing is written in this task, ask = {form.ask!r}")
    form = replace(form, **wanted.changes)
    if wanted.paradigms:
        items = _of_paradigms(items, wanted.paradigms, wanted.place)
    bare, examples = spread(items, wanted.limit, wanted.seed), _examples(items, wanted)
    if wanted.kind == "bbh":
        items = [_worked(item, wanted.examples) for item in bare] if wanted.examples else bare
    else:
        items = _with_examples(bare, examples, form, wanted)
    task = Task(
        wanted.name or wanted.kind,
        form.ask,
        tuple(items),
        form.metric,
        grade=form.grade,
        stop=form.stop if form.ask == "generate" else (),
        max_tokens=form.max_tokens,
        chance=chance(items) if form.ask == "choice" else None,
        source=form.source or str(wanted.place),
        licence=form.licence,
    )
    return Read(task, bare, [example for several in examples.values() for example in several])


def read_documents(path: Path) -> list[tuple[str, str]]:
    """(id, text) of a file's rows, for `next_passage`."""
    items = read_items(own_text, "text", file_rows(path), f"{path} cannot be read as text")
    return [(item.id, item.answer) for item in items]


# --- rows to items ------------------------------------------------------------------------------------------


def _items(wanted: Wanted, place: Place) -> tuple[Format, list[Item]]:
    kind = wanted.kind
    if kind == "rows":
        rows = place.rows()
        form = own(rows, wanted.changes.get("grade"))
    else:
        form = FORMATS[kind]
        rows = place.rows(form.columns)
        rows = _with_labels(rows, place.path) if kind == "piqa" and place.path else rows
    items = read_items(form.read, form.ask, rows, f"{place} cannot be read as {kind}")
    return form, _repeats(items, rows, place, tolerated=0 if kind == "rows" else TOLERATED)


def read_items(read: Reader, ask: Ask, rows: Sequence[Row], complaint: str) -> list[Item]:
    """Every row as an item, or all that is wrong with them."""
    items, problems = [], defaultdict(list)
    for row in rows:
        try:
            if row.problem:
                raise Wrong(row.problem)
            item = read(row)
            if wrongs := problems_of_item(item, ask):
                raise Wrong("; ".join(wrongs))
            items.append(item)
        except Wrong as wrong:
            problems[str(wrong)].append(row)
    if problems:
        raise InputError(f"{complaint}: {_told(problems, len(rows))}")
    return items


def _told(problems: dict[str, list[Row]], total: int) -> str:
    """The reasons, each with the first few places it holds for."""
    wrong = sum(map(len, problems.values()))
    lines = [f"{wrong:,} of {total:,} rows are not right"]
    for reason, rows in list(problems.items())[:SHOWN]:
        lines.append(f"  {_places(rows)}: {reason}")
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN:,} other reasons")
    return "\n".join(lines)


def _places(rows: Sequence[Row]) -> str:
    """ "line 3", "lines 3, 8, 12", or the first few and a count."""
    word = rows[0].place if len(rows) == 1 else {"entry": "entries"}.get(rows[0].place, rows[0].place + "s")
    rest = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f"{word} {', '.join(row.where for row in rows[:SHOWN])}{rest}"


def _repeats(items: list[Item], rows: Sequence[Row], place: Place, tolerated: float) -> list[Item]:
    """Name the items that ask what an earlier one asks: an error, or one cluster with it."""
    first: dict[str, int] = {}
    for number, item in enumerate(items):
        before = first.setdefault(item.id, number)
        if before != number:
            same = _places([rows[before], rows[number]])
            raise InputError(f"{place}: {same} share the id {item.id!r}; an id names one item")
    again = duplicates(items)
    if not again:
        return items
    word = rows[0].place
    pairs = [f"{word} {rows[late].where} asks what {rows[early].where} asks" for late, early in again]
    told = "; ".join(pairs[:SHOWN]) + (f"; and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else "")
    if len(again) > tolerated * len(items):
        count = f"{len(again):,} of {len(items):,} items repeat an earlier one"
        raise InputError(f"{place}: {count}: {told}; take them out")
    say(f"{place}: {told}; they stay, and count as one cluster")
    items = list(items)
    for late, early in again:
        shared = items[early].cluster or items[early].id
        items[early] = replace(items[early], cluster=shared)
        items[late] = replace(items[late], cluster=shared)
    return items


def _with_labels(rows: list[Row], path: Path) -> list[Row]:
    """PIQA is published with its labels in a file beside (valid.jsonl, valid-labels.lst)."""
    beside = path.with_name(path.name.split(".")[0] + "-labels.lst")
    if not beside.is_file():
        return rows
    labels = beside.read_text(encoding="utf-8").split()
    if len(labels) != len(rows):
        raise InputError(
            f"{beside}: {len(labels):,} labels for {len(rows):,} rows; there must be one for each"
        )
    return [replace(row, data={**row.data, "label": label}) for row, label in zip(rows, labels, strict=True)]


def _of_paradigms(items: Sequence[Item], paradigms: Sequence[str], place: Place) -> list[Item]:
    known = sorted({item.facts.get("paradigm", "") for item in items})
    for paradigm in paradigms:
        if paradigm not in known:
            raise InputError(f"{place}: no paradigm {paradigm!r}{nearest(paradigm, known)}")
    return [item for item in items if item.facts["paradigm"] in paradigms]


# --- examples -----------------------------------------------------------------------------------------------


def _examples(items: Sequence[Item], wanted: Wanted) -> dict[object, list[Item]]:
    """The first `shots` examples of each subject (None where there are no subjects), none of them asked."""
    if not wanted.shots or not wanted.examples or wanted.kind == "bbh":
        return {}
    found = _items(wanted, Place(wanted.examples))[1]
    check_splits(examples=found, items=items)
    if without := [
        example.id for example in found if not _shown(example).removeprefix(example.prompt).strip()
    ]:
        raise InputError(
            f"{wanted.examples}: {len(without):,} examples have no answer to show; give them one"
        )
    by_subject: dict[object, list[Item]] = defaultdict(list)
    for example in found:
        by_subject[example.facts.get("subject")].append(example)
    return {subject: several[: wanted.shots] for subject, several in by_subject.items()}


def _with_examples(
    items: Sequence[Item], examples: dict[object, list[Item]], form: Format, wanted: Wanted
) -> list[Item]:
    """Put the examples (of the item's own subject, where there are subjects) before each item."""
    done = []
    for item in items:
        before = examples.get(item.facts.get("subject"), [])
        if len(before) < wanted.shots:
            whose = f" about {item.facts['subject']}" if "subject" in item.facts else ""
            raise InputError(
                f"{wanted.examples}: {len(before)} examples{whose}; {wanted.shots} shots need as many"
            )
        lead = form.head.format(**item.facts) + "".join(_shown(e) + BETWEEN_EXAMPLES for e in before)
        prompts = tuple(lead + prompt for prompt in item.prompts)
        done.append(replace(item, prompt="" if prompts else lead + item.prompt, prompts=prompts))
    return done


def _shown(item: Item) -> str:
    """An item with its right answer, as an example."""
    if item.gold is not None:
        return (item.prompts[item.gold] if item.prompts else item.prompt) + item.choices[item.gold]
    answer = item.solution or item.answer
    return item.prompt + (answer if answer[:1].isspace() or not item.prompt else " " + answer)


def _worked(item: Item, examples: Path) -> Item:
    """BIG-Bench Hard: the published text of worked examples for this subtask, and the question after it."""
    subtask = str(item.facts["subtask"])
    path = examples / f"{subtask}.txt" if examples.is_dir() else examples
    lead = _worked_examples(path)
    return replace(item, prompt=lead + BETWEEN_EXAMPLES + item.prompt.removesuffix("\nA:") + STEP_BY_STEP)


@functools.cache
def _worked_examples(path: Path) -> str:
    """The text after the line of dashes, which keeps the canary apart."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{path}: no text of worked examples there (BIG-Bench Hard: cot-prompts/*.txt)"
        ) from None
    return text.partition("-----\n")[2].strip() or text.strip()
