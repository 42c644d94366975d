"""A problem that can be graded, defined once: it serves as exam now, and as training text or reward later.

A task is a list of items, one way to ask them (`ask`) and one way to grade them. Choices and continuations are
graded by likelihood, texts by bits per byte, and what a model writes freely by the task's `grade` function. A
grade of None means that the grader could not decide; it is an outcome of its own, never counted as wrong or as
right. A task checks itself when it is made, so whoever holds one may rely on it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from behemoth.base.errors import InputError

Ask = Literal["choice", "continuation", "generate", "text"]
GRADING = 1  # raise it when an answer is graded differently than before: then no score of before is believed
SHOWN = 5  # of many problems, so many are told; the rest are counted


class Undecidable(Exception):
    """A grader has no ground to decide on; its message says why. The grade is then None."""


@dataclass(frozen=True)
class Grade:
    score: float | None  # 0 to 1; None: could not be scored. A model that gives no answer is wrong: 0
    why: str = ""  # why it could not be scored, or what was wrong
    answer: str = ""  # what was read out of the output
    parts: Mapping[str, float | None] = field(default_factory=dict)  # for example one per instruction


@dataclass(frozen=True)
class Item:
    id: str  # unique within the task
    prompt: str = ""  # all that the model reads first, examples included; "" = nothing but the first token
    choices: tuple[str, ...] = ()  # choice: what may follow, its leading space included
    prompts: tuple[str, ...] = ()  # choice: one prompt per choice where they differ (Winograd)
    gold: int | None = None  # choice: which one is right
    answer: str = ""  # continuation: the text that follows; generate: the reference; text: the text itself
    answers: tuple[str, ...] = ()  # other accepted answers
    cluster: str = ""  # items that share a passage share this; "" = on its own
    solution: str = ""  # a full worked answer, for use as training text
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the grader needs beside


@dataclass(frozen=True)
class Task:
    name: str
    ask: Ask
    items: tuple[Item, ...]
    metric: str  # the headline, a key of each record's metrics: "accuracy", "exact_match", "bits_per_byte"
    grade: Callable[[Item, str], Grade] | None = None  # generate only
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    chance: float | None = None  # the score of guessing
    source: str = ""
    licence: str = "unknown"

    def __post_init__(self) -> None:
        problems = problems_of(self)
        if problems:
            raise InputError(f"task {self.name}: {several(problems)}")

    @property
    def sha256(self) -> str:
        """Of all that is asked and of how it is graded (the grader by its name, and GRADING)."""
        grader = f"{self.grade.__module__}.{self.grade.__qualname__}" if self.grade else None
        items = [[i.id, *asked(i), i.gold, i.answers, i.facts, i.cluster] for i in self.items]
        all_of_it = [GRADING, self.ask, self.metric, grader, self.stop, self.max_tokens, items]
        return hashlib.sha256(json.dumps(all_of_it, sort_keys=True, default=str).encode()).hexdigest()


def verdict(task: Task, item: Item, text: str) -> Grade:
    """What the task's grader says. One that fails, or gives no number from 0 to 1, could not score the answer."""
    assert task.grade is not None
    try:
        found = task.grade(item, text)
    except Exception as error:  # whatever a grader does with this answer, there are others
        return Grade(None, f"the grader failed: {type(error).__name__}: {error}")
    if found.score is not None and not 0 <= found.score <= 1:
        return Grade(None, f"the grader gave {found.score}, which is not from 0 to 1")
    return found


def wording(text: str) -> str:
    """A question, whatever its case and white space: two that share it are one."""
    return " ".join(text.casefold().split())


def before_stop(text: str, stop: Sequence[str]) -> str:
    """That part of an answer which lies before the stop strings, each in turn."""
    for string in stop:
        text = text.split(string)[0]
    return text


def problems_of(task: Task) -> list[str]:
    """What is wrong with a task, one line for each item at fault."""
    problems = [] if task.items else ["it has no items; a task needs at least one"]
    if (task.ask == "generate") != (task.grade is not None):
        problems.append(f"ask = {task.ask!r}: a grader belongs to a task that generates, and only there")
    first: dict[str, int] = {}
    for number, item in enumerate(task.items, 1):
        before = first.setdefault(item.id, number)
        if before != number:
            problems.append(f"items {before} and {number} share the id {item.id!r}; an id names one item")
        problems += [f"item {item.id!r}: {problem}" for problem in problems_of_item(item, task.ask)]
    return problems


def problems_of_item(item: Item, ask: Ask) -> list[str]:
    """Why an item cannot be asked this way."""
    problems = []
    if ask == "choice":
        if len(item.choices) < 2:
            problems.append(f"{len(item.choices)} choices; to choose, a model needs two or more")
        elif item.gold is None or not 0 <= item.gold < len(item.choices):
            last = len(item.choices) - 1
            problems.append(f"gold = {item.gold}, but the choices are numbered 0 to {last}")
        if not all(item.choices):
            problems.append("an empty choice, which has no likelihood; give it some text")
        if item.prompts and len(item.prompts) != len(item.choices):
            problems.append(f"{len(item.prompts)} prompts for {len(item.choices)} choices; one each, or none")
    elif ask in ("continuation", "text") and not item.answer:
        problems.append(f"no text to score; ask = {ask!r} needs one in every item")
    return problems


def duplicates(items: Sequence[Item]) -> list[tuple[int, int]]:
    """Numbers (from 0) of items that ask the very same thing: a later one, and the first one like it."""
    first: dict[tuple[object, ...], int] = {}
    seen = [first.setdefault(asked(item), number) for number, item in enumerate(items)]
    return [(number, earlier) for number, earlier in enumerate(seen) if number != earlier]


def asked(item: Item) -> tuple[object, ...]:
    """What the model reads and may answer; the same for items that differ in name or gold only."""
    return item.prompt, item.prompts, item.choices, item.answer


def check_splits(**splits: Sequence[Item]) -> None:
    """Raise InputError where two splits (`train=..., test=...`) ask the same; an exam is never trained on."""
    seen: dict[tuple[object, ...], tuple[str, str]] = {}
    problems = []
    for split, items in splits.items():
        for item in items:
            other, twin = seen.setdefault(asked(item), (split, item.id))
            if other != split:
                problems.append(f"{twin!r} of {other} asks the same as {item.id!r} of {split}")
    if problems:
        raise InputError(f"splits overlap: {several(problems)}; take them out of one of the two")


def spread(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """`limit` items, one drawn from each of so many equal stretches, in order; the same for the same seed."""
    if limit is None or limit >= len(items):
        return list(items)
    draw = random.Random(f"spread {seed}")
    borders = [len(items) * n // limit for n in range(limit + 1)]
    return [items[draw.randrange(low, high)] for low, high in itertools.pairwise(borders)]


def limited(task: Task, limit: int | None, seed: int = 0) -> Task:
    """A task of at most `limit` of these items."""
    if limit is None or limit >= len(task.items):
        return task
    items = tuple(spread(task.items, limit, seed))
    return replace(task, items=items, chance=chance(items) if task.ask == "choice" else task.chance)


def chance(items: Sequence[Item]) -> float:
    """What guessing scores where one of several choices is right."""
    return sum(1 / len(item.choices) for item in items) / len(items)


def several(problems: Sequence[str]) -> str:
    """One problem in its line, or the first few of many under their number."""
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems):,} problems", *(f"  {problem}" for problem in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN:,} more")
    return "\n".join(lines)
