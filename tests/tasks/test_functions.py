"""Functions from a seed: references pass, constants do not, exam and training never meet."""

import pytest

from behemoth.base.errors import InputError
from behemoth.tasks import sandbox
from behemoth.tasks.functions import functions
from behemoth.tasks.suite import load
from behemoth.tasks.task import check_splits

isolated = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"no sandbox here: {sandbox.refusal()}")


def test_the_same_seed_makes_the_same_problems():
    assert functions(20).items == functions(20).items
    assert functions(20).items != functions(20, seed=1).items


def test_training_and_exam_never_meet():
    exam = [item for seed in range(5) for item in functions(100, seed=seed).items]
    training = [item for seed in range(5) for item in functions(100, split="train", seed=seed).items]
    assert not {item.id for item in exam} & {item.id for item in training}
    check_splits(train=functions(100, split="train").items, test=functions(100).items)


def test_a_problem_says_what_its_reference_does():
    item = functions(1, seed=2).items[0]
    assert item.prompt.startswith("Write a Python function solve(x). From a list of whole numbers x, ")
    assert item.solution.startswith("def solve(x):\n    x = ") and item.solution.count("\n") == 4


@isolated
def test_references_pass_and_others_fail():
    task = functions(6, seed=1)
    for item, other in zip(task.items, (*task.items[1:], task.items[0]), strict=True):
        assert task.grade(item, item.solution).score == 1
        assert task.grade(item, f"Like this:\n```python\n{item.solution}```\n").score == 1
        assert task.grade(item, f"\n{item.solution}\n\nWrite another function (").score == 1
        assert task.grade(item, other.solution).score == 0
        assert task.grade(item, "def solve(x): return 0").score == 0


@pytest.mark.slow
@isolated
def test_no_constant_passes():
    task = functions(100)
    for item in task.items:
        assert task.grade(item, "def solve(x): return 0").score == 0, item
        assert task.grade(item, item.solution).score == 1, item


def test_a_suite_asks_for_them(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text('[[tasks]]\nkind = "functions"\nitems = 7\nsteps = 3\nseed = 4\nname = "mine"\n')
    task = load(path).tasks[0]
    assert (task.name, task.items) == ("mine", functions(7, 3, seed=4).items)


def test_too_much_is_refused():
    with pytest.raises(InputError, match="1 to 4 steps"):
        functions(10, steps=5)
    with pytest.raises(InputError, match=r"only .* problems of 1 steps"):
        functions(10_000, steps=1)
