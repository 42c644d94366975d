"""A task checks itself; its hash changes with what is asked and with nothing else."""

import subprocess
import sys
from dataclasses import replace

import pytest

from behemoth.base.errors import InputError
from behemoth.tasks import task as task_module
from behemoth.tasks.task import Grade, Item, Task, check_splits, duplicates, limited, spread

ITEMS = tuple(Item(f"i{n}", f"{n} and 1?", (" yes", " no"), gold=n % 2) for n in range(10))
TASK = Task("t", "choice", ITEMS, "accuracy", chance=0.5)


def grade(item: Item, output: str) -> Grade:
    return Grade(float(item.answer == output))


def changed(**fields) -> Task:
    return replace(TASK, items=(replace(ITEMS[0], **fields), *ITEMS[1:]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(TASK, items=()), "no items"),
        (lambda: changed(id="i3"), "items 1 and 4 share the id 'i3'"),
        (lambda: changed(gold=2), "'i0': gold = 2, but the choices are numbered 0 to 1"),
        (lambda: changed(gold=None), "gold = None"),
        (lambda: changed(choices=(" a",)), "1 choices"),
        (lambda: changed(choices=(" a", "")), "an empty choice"),
        (lambda: changed(prompts=("a",)), "1 prompts for 2 choices"),
        (lambda: replace(TASK, grade=grade), "a grader belongs to a task that generates"),
        (lambda: replace(TASK, ask="generate"), "a grader belongs"),
        (lambda: replace(TASK, ask="text"), "10 problems\n(.*\n){5}  and 5 more"),
        (lambda: replace(TASK, ask="continuation", items=(Item("a", "b"),)), "'a': no text to score"),
    ],
)
def test_what_cannot_be_asked_is_no_task(make, message):
    with pytest.raises(InputError, match=f"task t: (?s:.*){message}"):
        make()


@pytest.mark.parametrize(
    "other",
    [
        changed(prompt="x"),
        changed(gold=1),
        changed(choices=(" yes", " never")),
        changed(id="x"),
        changed(facts={"a": 1}),
        changed(cluster="p"),
        replace(TASK, metric="accuracy_norm"),
        replace(TASK, stop=("x",)),
        replace(TASK, items=ITEMS[:9]),
        replace(TASK, items=ITEMS[::-1]),
    ],
)
def test_the_hash_is_of_all_that_is_asked(other):
    assert other.sha256 != TASK.sha256


def test_the_hash_is_of_nothing_else():
    assert replace(TASK, name="u", source="elsewhere", licence="MIT").sha256 == TASK.sha256
    assert changed(solution="because").sha256 == TASK.sha256


def test_the_hash_is_another_when_graders_decide_differently(monkeypatch):
    before = TASK.sha256
    monkeypatch.setattr(task_module, "GRADING", task_module.GRADING + 1)
    assert TASK.sha256 != before


def test_the_grader_is_hashed_by_its_name():
    items = (Item("a", "b", answer="c"),)
    tasks = [
        Task("t", "generate", items, "exact_match", grade=g) for g in (grade, grade, lambda i, o: Grade(None))
    ]
    assert tasks[0].sha256 == tasks[1].sha256 != tasks[2].sha256


def test_duplicates_are_pairs_of_the_later_and_the_first():
    again = replace(ITEMS[2], id="x", gold=1)
    assert duplicates([*ITEMS, again, replace(again, id="y")]) == [(10, 2), (11, 2)]
    assert duplicates(ITEMS) == []


def test_splits_that_share_a_question_are_named():
    check_splits(train=ITEMS[:5], test=ITEMS[5:])
    with pytest.raises(InputError, match="'i4' of train asks the same as 'z' of test"):
        check_splits(train=ITEMS[:5], test=[*ITEMS[5:], replace(ITEMS[4], id="z")])


def test_a_limit_draws_one_from_each_stretch():
    drawn = spread(range(1000), 10, seed=0)
    assert [n // 100 for n in drawn] == list(range(10))
    assert drawn != spread(range(1000), 10, seed=1)
    mixed = replace(
        TASK, items=(*ITEMS[:5], *(replace(i, choices=(" a", " b", " c", " d")) for i in ITEMS[5:]))
    )
    assert limited(mixed, 4).chance == pytest.approx((2 / 2 + 2 / 4) / 4)
    assert limited(TASK, None).items == ITEMS


def test_tasks_are_free_of_torch():
    heavy = "{'torch', 'transformers', 'scipy', 'datasets', 'pyarrow', 'sympy'}"
    code = f"import sys, behemoth.tasks.suite; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
