"""Small functions from a seed: a sentence says what to write, hidden tests from a reference decide.

A problem is a chain of two or three steps on a list of whole numbers ("keep the even ones, then add 3 to each, then
return the sum"). The sentence and the reference are made from the same steps, so they cannot disagree. Whether a
problem may be trained on is decided by a hash of its steps, not of the seed, so exam and training text never meet.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

from behemoth.base.errors import InputError
from behemoth.tasks import code
from behemoth.tasks.task import Grade, Item, Task

Split = Literal["train", "test"]
Step = tuple[str, str]  # in words, and as an expression in x

NUMBERS = (2, 3, 4, 5, 7)
MIDDLE: tuple[Step, ...] = (
    ("keep the even numbers", "[n for n in x if n % 2 == 0]"),
    ("keep the odd numbers", "[n for n in x if n % 2 == 1]"),
    ("keep the positive numbers", "[n for n in x if n > 0]"),
    ("square each number", "[n * n for n in x]"),
    ("negate each number", "[-n for n in x]"),
    ("take the absolute value of each number", "[abs(n) for n in x]"),
    ("sort them in ascending order", "sorted(x)"),
    ("sort them in descending order", "sorted(x, reverse=True)"),
    ("reverse the list", "x[::-1]"),
    ("remove the first number", "x[1:]"),
    ("remove repeated numbers, keeping the first of each", "list(dict.fromkeys(x))"),
    ("keep every second number, beginning with the first", "x[::2]"),
    *((f"add {k} to each number", f"[n + {k} for n in x]") for k in NUMBERS),
    *((f"multiply each number by {k}", f"[n * {k} for n in x]") for k in NUMBERS),
    *((f"keep the numbers greater than {k}", f"[n for n in x if n > {k}]") for k in NUMBERS),
    *((f"keep the first {k} numbers", f"x[:{k}]") for k in NUMBERS),
)
LAST: tuple[Step, ...] = (
    ("return the list", "x"),
    ("return the sum", "sum(x)"),
    ("return how many there are", "len(x)"),
    ("return the largest, or 0 if there is none", "max(x, default=0)"),
    ("return the smallest, or 0 if there is none", "min(x, default=0)"),
    ("return the last number, or 0 if there is none", "x[-1] if x else 0"),
    (
        "return the difference of the largest and the smallest, or 0 if there is none",
        "max(x) - min(x) if x else 0",
    ),
)
TEST_PART = 5  # one problem in so many belongs to the test
BARREN = 2000  # draws without a new problem, after which there are taken to be no more
LISTS = 30  # hidden tests of a problem


def functions(
    items: int = 200, steps: int = 2, split: Split = "test", seed: int = 0, name: str = "functions"
) -> Task:
    """Problems of so many steps before the last, each unlike the others."""
    if not 1 <= steps <= 4 or items < 1:
        raise InputError(
            f"functions: steps = {steps}, items = {items}; 1 to 4 steps and at least one item are needed"
        )
    draw = random.Random(f"functions {seed} {split} {steps}")
    found: dict[str, Item] = {}
    barren = 0
    while len(found) < items:
        chain = [*draw.sample(MIDDLE, steps), draw.choice(LAST)]
        item = problem(chain)
        if side(chain) != split or item.id in found:
            barren += 1
            if barren > BARREN:
                raise InputError(
                    f"functions: only {len(found):,} problems of {steps} steps; ask for fewer or more steps"
                )
            continue
        barren, found[item.id] = 0, item
    made = tuple(found.values())
    return Task(name, "generate", made, "pass@1", grade, source="behemoth", licence="CC0-1.0")


def side(chain: list[Step]) -> Split:
    digest = hashlib.sha256("\n".join(words for words, _ in chain).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) % TEST_PART == 0 else "train"


def problem(chain: list[Step]) -> Item:
    """The steps as a sentence, and as the function that they describe."""
    words = ", then ".join(words for words, _ in chain)
    body = "".join(f"    x = {expression}\n" for _, expression in chain[:-1])
    solution = f"def solve(x):\n{body}    return {chain[-1][1]}\n"
    prompt = f"Write a Python function solve(x). From a list of whole numbers x, {words}.\n"
    return Item(hashlib.sha256(words.encode()).hexdigest()[:16], prompt, answer=solution, solution=solution)


def grade(item: Item, output: str) -> Grade:
    """The function gives what the reference gives. It is a fenced block, or all up to the first empty line."""
    draw = random.Random(item.id)
    lists = [[], [0], *([draw.randint(-12, 12) for _ in range(draw.randint(1, 9))] for _ in range(LISTS - 2))]
    reference = item.answer.replace("def solve", "def expected", 1)
    test = f"{reference}\nfor x in {lists!r}:\n    assert solve(list(x)) == expected(x), x\n"
    program = code.written(output) if "```" in output else code.cut(output.lstrip("\n"), ("\n\n",))
    return code.graded(program, test, {"solve": "solve"})
