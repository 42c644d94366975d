"""Arithmetic from a seed: something true that a tiny model can learn, and be examined in.

A problem is a pair of whole numbers and an operation. Whether it may be trained on is decided by a hash of the
problem itself, not of its wording or of the seed: 47 + 5 and 5 + 47, in symbols and in words, with and without
steps, are all on the same side, so no choice of seeds lets training text and exam meet. Sums and differences
are worked column by column, as on paper; products by the digits of the second number; quotients are exact.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from behemoth.base.errors import InputError
from behemoth.tasks import grading
from behemoth.tasks.task import Item, Task

Operation = Literal["add", "subtract", "multiply", "divide"]
Form = Literal["symbols", "words", "both", "question"]
Split = Literal["train", "test"]

SIGNS: dict[Operation, str] = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
WORDS: dict[Operation, str] = {
    "add": "plus",
    "subtract": "minus",
    "multiply": "times",
    "divide": "divided by",
}
MOST_DIGITS = 9
CHOICES = 4
TOKENS_PER_COLUMN = 32  # of a worked answer, in a tokenizer that parts digits; with room to spare
BARREN = 2000  # draws without a new problem, after which there are taken to be no more
TEST_PART = 5  # one problem in so many belongs to the test


@dataclass(frozen=True)
class Problem:
    a: int
    b: int
    operation: Operation

    @property
    def answer(self) -> int:
        match self.operation:
            case "add":
                return self.a + self.b
            case "subtract":
                return self.a - self.b
            case "multiply":
                return self.a * self.b
            case "divide":
                return self.a // self.b

    @property
    def symbols(self) -> str:
        return f"{self.a} {SIGNS[self.operation]} {self.b}"

    @property
    def split(self) -> Split:
        a, b = (self.a, self.b) if self.operation in ("subtract", "divide") else sorted((self.a, self.b))
        digest = hashlib.sha256(f"{a} {self.operation} {b}".encode()).digest()
        return "test" if int.from_bytes(digest[:8]) % TEST_PART == 0 else "train"


def arithmetic(
    items: int = 500,
    digits: Sequence[int] = (1, 2),
    operations: Sequence[Operation] = ("add", "subtract"),
    form: Form = "symbols",
    ask: Literal["generate", "choice"] = "generate",
    split: Split = "test",
    seed: int = 0,
    shots: int = 0,
    steps: bool = False,
    name: str = "arithmetic",
) -> Task:
    """Different problems of one split; examples (`shots`) always come from the training split."""
    draw = random.Random(f"arithmetic {split} {seed}")
    lead = "".join(text + "\n\n" for text in lessons(shots, digits, operations, form, seed, steps))
    made = []
    for problem in problems(items, digits, operations, split, draw):
        prompt = lead + _question(problem, _form(form, draw))
        facts = {"operation": problem.operation, "digits": max(len(str(problem.a)), len(str(problem.b)))}
        answer = str(problem.answer)
        solution = worked(problem) if steps else answer  # what the grader takes
        item = Item(problem.symbols, prompt, answer=answer, solution=solution, facts=facts)
        made.append(_with_choices(item, problem, draw) if ask == "choice" else item)
    return Task(
        name,
        ask,
        tuple(made),
        "accuracy" if ask == "choice" else "exact_match",
        grade=(grading.numeric if steps else grading.exact) if ask == "generate" else None,
        stop=("\n\n",) if steps else ("\n",),
        max_tokens=TOKENS_PER_COLUMN * (1 + max(digits)) if steps else 16,
        chance=1 / CHOICES if ask == "choice" else None,
        source="generated",
        licence="CC0-1.0",
    )


def lessons(
    count: int,
    digits: Sequence[int] = (1, 2),
    operations: Sequence[Operation] = ("add", "subtract"),
    form: Form = "symbols",
    seed: int = 0,
    steps: bool = False,
) -> list[str]:
    """Training text: so many different problems of the training split with their answers, or worked out."""
    draw = random.Random(f"lessons {seed}")
    chosen = problems(count, digits, operations, "train", draw)
    return [_question(p, _form(form, draw)) + (worked(p) if steps else f" {p.answer}") for p in chosen]


def problems(
    count: int, digits: Sequence[int], operations: Sequence[Operation], split: Split, draw: random.Random
) -> list[Problem]:
    """Different problems of a split, each size and operation as likely as another."""
    if not digits or not all(1 <= size <= MOST_DIGITS for size in digits):
        raise InputError(f"digits = {list(digits)}: give numbers of digits from 1 to {MOST_DIGITS}")
    if not operations or any(operation not in SIGNS for operation in operations):
        raise InputError(f"operations = {list(operations)}: give some of {', '.join(SIGNS)}")
    found: dict[Problem, None] = {}
    barren = 0  # draws in a row that gave nothing new
    while len(found) < count and barren < BARREN:
        problem = _any(draw.choice(digits), draw.choice(operations), draw)
        barren += 1
        if problem.split == split and problem not in found:
            found[problem], barren = None, 0
    if len(found) == count:
        return list(found)
    kinds = f"{' and '.join(operations)} with {' or '.join(map(str, digits))} digits"
    raise InputError(
        f"{count:,} {split} problems wanted, but {kinds} gives about {len(found):,}; "
        "ask for fewer, or allow more digits"
    )


def _any(size: int, operation: Operation, draw: random.Random) -> Problem:
    """One number has `size` digits, the other at most as many; nothing negative, nothing left over."""
    low = 10 ** (size - 1) if size > 1 else 0
    a, b = draw.randrange(low, 10**size), draw.randrange(10 ** draw.randint(1, size))
    if operation == "divide":
        b = b or 1
        return Problem(a * b, b, operation)
    if operation == "subtract":
        a, b = max(a, b), min(a, b)
    elif draw.random() < 0.5:
        a, b = b, a
    return Problem(a, b, operation)


def _question(problem: Problem, form: Form) -> str:
    if form == "question":  # for a chat, where nothing has to say that an answer follows
        return f"What is {problem.symbols}?"
    if form == "words":
        return f"Question: What is {problem.a} {WORDS[problem.operation]} {problem.b}?\nAnswer:"
    return f"{problem.symbols} ="


def _form(form: Form, draw: random.Random) -> Form:
    return draw.choice(("symbols", "words")) if form == "both" else form


def _with_choices(item: Item, problem: Problem, draw: random.Random) -> Item:
    """The answer among three that are easily mistaken for it: a column or a carry off."""
    right = problem.answer
    near = [right + step for step in (1, -1, 2, -2, 10, -10, 11, -11, 9, -9)]
    wrong = draw.sample([n for n in near if n >= 0][:8], CHOICES - 1)
    numbers = [right, *wrong]
    draw.shuffle(numbers)
    choices = tuple(f" {number}" for number in numbers)
    return Item(
        item.id, item.prompt, choices, gold=numbers.index(right), solution=item.solution, facts=item.facts
    )


# --- worked on paper ----------------------------------------------------------------------------------------


def worked(problem: Problem) -> str:
    """The steps, a line each, and the answer after ####, which the numeric grader reads."""
    return "\n".join(["", *_steps(problem), f"#### {problem.answer}"])


def _steps(problem: Problem) -> Iterator[str]:
    match problem.operation:
        case "add":
            yield from _add(problem.a, problem.b)
        case "subtract":
            yield from _subtract(problem.a, problem.b)
        case "multiply":
            yield from _multiply(problem.a, problem.b)
        case "divide":
            yield f"{problem.b} * {problem.answer} = {problem.a}"


def _add(a: int, b: int) -> Iterator[str]:
    carry = 0
    for x, y in _columns(a, b):
        total = x + y + carry
        yield f"{x} + {y}" + (" + 1" if carry else "") + f" = {total}"
        carry = total // 10


def _subtract(a: int, b: int) -> Iterator[str]:
    borrow = 0
    for x, y in _columns(a, b):
        need = x - borrow < y
        digit = x - borrow - y + (10 if need else 0)
        yield f"{10 + x if need else x}" + (" - 1" if borrow else "") + f" - {y} = {digit}"
        borrow = int(need)


def _multiply(a: int, b: int) -> Iterator[str]:
    parts = [a * int(digit) * 10**place for place, digit in enumerate(reversed(str(b)))]
    for place, (digit, part) in enumerate(zip(reversed(str(b)), parts, strict=True)):
        yield f"{a} * {int(digit) * 10**place} = {part}"
    if len(parts) > 1:
        yield f"{' + '.join(map(str, parts))} = {sum(parts)}"


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    width = max(len(str(a)), len(str(b)))
    return [
        (int(x), int(y)) for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True)
    ]
