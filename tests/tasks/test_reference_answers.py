"""Reference answers are right and changed ones wrong: real data, by the path that an evaluation takes.

A number is changed in each of seven ways and written in each of four; a program is changed in one place. Of the
changed programs many still pass: some compute the same, and some differ where the task's tests do not look. Whether it
is that, and not the grader, is decided by running the same tests plainly, without a sandbox: both must agree on each.
"""

import ast
import copy
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest

from behemoth.tasks import code, sandbox
from behemoth.tasks.readers import Place, Wanted, read_task
from behemoth.tasks.task import Item, Task

isolated = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"no sandbox here: {sandbox.refusal()}")

FILES = {
    "instruct/gsm8k_train.jsonl.gz": ("gsm8k", 7473),
    "eval/gsm8k_test.jsonl": ("gsm8k", 1319),
    "eval/svamp.jsonl": ("svamp", 300),
    "eval/HumanEval.jsonl.gz": ("humaneval", 164),
}
NUMBERS = [name for name, (kind, _) in FILES.items() if kind != "humaneval"]
PROGRAMS = "eval/HumanEval.jsonl.gz"


@pytest.fixture(scope="module")
def task(data_directory) -> Callable[[str], Task]:
    def task(name: str) -> Task:
        kind, count = FILES[name]
        if not (data_directory / name).exists():
            pytest.skip(f"BEHEMOTH_DATA has no {name}")
        read = read_task(Wanted(kind, Place(data_directory / name))).task
        assert len(read.items) == count
        return read

    return task


def score(task: Task, item: Item, output: str) -> float | None:
    assert task.grade is not None
    return task.grade(item, output).score


# --- numbers ------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Item, str], str]] = {
    "worked out": lambda item, number: f"{item.solution.rpartition('####')[0]}#### {number}",
    "in words": lambda item, number: f"So 3 and 4 make 7. The answer is {number}.",
    "in a box": lambda item, number: f"\\[ 3 + 4 = 7 \\] so \\boxed{{{number}}}",
    "alone": lambda item, number: f" {number}",
}


def value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def plain(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else str(float(number))


def changed_number(answer: str, others: Sequence[str], draw: random.Random) -> dict[str, str]:
    """The answer, changed in every way; what is left of the same value (the sign of 0) is left out."""
    at = draw.choice([place for place, char in enumerate(answer) if char.isdigit()])
    digit = draw.choice([d for d in "0123456789" if d != answer[at]])
    new = {
        "a digit changed": answer[:at] + digit + answer[at + 1 :],
        "one more": plain(value(answer) + 1),
        "one less": plain(value(answer) - 1),
        "a digit dropped": answer[:at] + answer[at + 1 :],
        "a digit appended": answer + draw.choice("123456789"),
        "the sign": answer.removeprefix("-") if answer.startswith("-") else f"-{answer}",
        "another's": draw.choice(others),
    }
    return {way: number for way, number in new.items() if not same(number, answer)}


def same(number: str, answer: str) -> bool:
    return any(char.isdigit() for char in number) and value(number) == value(answer)


def passing(task: Task, items: Sequence[Item]) -> tuple[list[tuple], list[tuple], int]:
    """References that are not right, changed ones that are not wrong, and how many were changed."""
    draw, others = random.Random(0), [item.answer for item in task.items]
    refused, taken, count = [], [], 0
    for item in items:
        changed = changed_number(item.answer, others, draw)
        if score(task, item, item.solution) != 1:
            refused.append((item.id, "as published", item.answer))
        for form, write in FORMS.items():
            if score(task, item, write(item, item.answer)) != 1:
                refused.append((item.id, form, item.answer))
            count += len(changed)
            taken += [
                (item.id, form, way, number, item.answer)
                for way, number in changed.items()
                if score(task, item, write(item, number)) != 0
            ]
    return refused, taken, count


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, task):
    read = task(name)
    refused, taken, count = passing(read, random.Random(0).sample(read.items, 100))
    assert not refused and not taken and count > 2500


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number(name, task):
    read = task(name)
    refused, taken, count = passing(read, read.items)
    print(f"{name}: {len(read.items):,} references, {count:,} changed, {len(taken)} of them taken")
    assert not refused and not taken


# --- programs -----------------------------------------------------------------------------------------------

NEGATED = {ast.Eq: ast.NotEq, ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.In: ast.NotIn, ast.Is: ast.IsNot}
NEGATED |= {new: old for old, new in NEGATED.items()}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Pow: ast.Mult}
SWAPPED |= {ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.FloorDiv}
REMOVED = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.If, ast.For, ast.While)


class Mutant(NamedTuple):
    item: Item
    way: str
    what: str
    function: str


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, and the name of the change."""
    match node:
        case ast.Compare(left, [op], right) if type(op) in NEGATED:
            yield "comparison", ast.Compare(left, [NEGATED[type(op)]()], right)
        case ast.BinOp(left, op, right) if type(op) in SWAPPED:
            yield "operator", ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.BoolOp(op, values):
            yield "and, or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "not, minus", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value)):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.Constant(str(value)):
            yield "constant", ast.Constant(value + "x")
        case ast.Return(ast.Tuple([first, second])):
            yield "return", ast.Return(ast.Tuple([second, first], ast.Load()))
        case ast.Return(value) if value is not None:
            yield "return", ast.Return(ast.List([value], ast.Load()))
    if isinstance(node, REMOVED):
        yield "statement removed", ast.Pass()


class Change(ast.NodeTransformer):
    """Makes one change, by its number; without a number it counts them."""

    def __init__(self, number: int | None = None) -> None:
        self.number, self.seen, self.way, self.what = number, 0, "", ""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a text that stands about
            return node
        for way, new in changes(node):
            self.seen += 1
            if self.seen - 1 == self.number:
                self.way, self.what = way, " -> ".join(ast.unparse(n).partition("\n")[0] for n in (node, new))
                return ast.copy_location(new, node)
        return self.generic_visit(node)


def mutants(item: Item) -> Iterator[Mutant]:
    """The reference solution with one change in its function; not in the prompt's helpers."""
    name = item.facts["entry_point"]
    body = ast.parse(item.prompt + item.answer).body
    function = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == name)
    count = Change()
    count.visit(copy.deepcopy(function))
    for number in range(count.seen):
        change = Change(number)
        new = ast.fix_missing_locations(change.visit(copy.deepcopy(function)))
        yield Mutant(item, change.way, change.what, ast.unparse(new))


def passes_plainly(mutant: Mutant, folder: Path) -> bool:
    """The task's test in a process that imports the function, as anybody would run it."""
    item, name = mutant.item, mutant.item.facts["entry_point"]
    program = code.humaneval_program(item.prompt, name, mutant.function)
    test = f"from program import {name} as candidate\n{item.facts['test']}\ncheck(candidate)\n"
    folder.mkdir()
    (folder / "program.py").write_text(program)
    (folder / "test.py").write_text(f"{item.prompt}{item.answer}\n{test}")
    try:
        ran = subprocess.run([sys.executable, folder / "test.py"], capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def scores(read: Task, changed: Sequence[Mutant]) -> list[float | None]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda m: score(read, m.item, f"```python\n{m.function}\n```"), changed))


@pytest.fixture
def impatient(monkeypatch):
    """Programs that do not end are many here: they get two seconds."""
    limits = sandbox.Limits(seconds=4, cpu_seconds=2)
    monkeypatch.setattr(sandbox, "run", partial(sandbox.run, limits=limits))


@isolated
def test_programs(task, tmp_path, impatient):
    read, draw = task(PROGRAMS), random.Random(0)
    items = draw.sample(read.items, 12)
    assert [score(read, item, item.solution) for item in items] == [1.0] * len(items)
    changed = [draw.choice(list(mutants(item))) for item in items]
    plainly = [passes_plainly(m, tmp_path / str(number)) for number, m in enumerate(changed)]
    assert scores(read, changed) == [float(passes) for passes in plainly]
    assert sum(plainly) <= 2


@pytest.mark.slow
@isolated
def test_every_reference_solution_passes(task):
    read = task(PROGRAMS)
    with ThreadPoolExecutor(2) as pool:
        grades = list(pool.map(lambda item: read.grade(item, item.solution), read.items))
    assert not [(item.id, g.why) for item, g in zip(read.items, grades, strict=True) if g.score != 1]


@pytest.mark.slow
@isolated
def test_every_changed_program(task, tmp_path, impatient):
    """In a program each way weighs the same, however many places it has; so do the programs."""
    read = task(PROGRAMS)
    shares: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    changed = [mutant for item in read.items for mutant in mutants(item)]
    graded = list(zip(changed, scores(read, changed), strict=True))
    for mutant, right in graded:
        shares[mutant.item.id][mutant.way].append(right == 0)
    failing = fmean(fmean(fmean(ways) for ways in item.values()) for item in shares.values())
    survivors = [m for m, right in graded if right != 0]
    for way in sorted({m.way for m in changed}):
        print(f"{way}: {sum(m.way == way for m in survivors)} of {sum(m.way == way for m in changed)} pass")
    print(f"{len(survivors)} of {len(changed)} pass; of a program's ways {failing:.1%} fail")
    print(*(f"{m.item.id}: {m.what}" for m in survivors), sep="\n")
    assert len(changed) > 3000 and failing >= 0.95

    drawn = random.Random(0).sample([m for m, right in graded if right == 0], 300)
    with ThreadPoolExecutor(2) as pool:
        places = [tmp_path / str(number) for number in range(len(survivors) + len(drawn))]
        plainly = list(pool.map(passes_plainly, survivors + drawn, places))
    wanted = [True] * len(survivors) + [False] * len(drawn)
    disputed = zip(survivors + drawn, plainly, wanted, strict=True)
    assert not [(m.item.id, m.what, passes) for m, passes, should in disputed if passes != should]
