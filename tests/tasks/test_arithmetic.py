"""Generated arithmetic: true, worked truly, and never in training and exam at once."""

import itertools
import random
import re

import pytest

from behemoth.base.errors import InputError
from behemoth.tasks import grading
from behemoth.tasks.arithmetic import SIGNS, Problem, arithmetic, lessons, problems, worked
from behemoth.tasks.task import check_splits

ALL = tuple(SIGNS)


def calculated(text: str) -> int:
    """The value of "a + b - c" or of one "a * b" or "a / b", read left to right."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    total = numbers[0]
    for sign, number in zip(re.findall(r"[-+*/]", text), numbers[1:], strict=True):
        total = {"+": total + number, "-": total - number, "*": total * number, "/": total // (number or 1)}[
            sign
        ]
    return total


def test_the_same_seed_gives_the_same_task_and_another_seed_another():
    assert arithmetic(seed=1).sha256 == arithmetic(seed=1).sha256 != arithmetic(seed=2).sha256


def test_answers_are_true_and_of_the_digits_asked_for():
    for problem in problems(400, (1, 3), ALL, "test", random.Random(0)):
        assert calculated(problem.symbols) == problem.answer >= 0
        if problem.operation != "divide":
            assert max(len(str(problem.a)), len(str(problem.b))) in (1, 3)
        else:
            assert problem.answer * problem.b == problem.a


def test_words_and_symbols():
    problem = Problem(47, 5, "add")
    symbols = arithmetic(50, form="symbols").items
    words = arithmetic(50, form="words").items
    both = {item.prompt[:8] == "Question" for item in arithmetic(50, form="both").items}
    assert all(re.fullmatch(r"\d+ [-+] \d+ =", item.prompt) for item in symbols)
    assert all(re.fullmatch(r"Question: What is \d+ (plus|minus) \d+\?\nAnswer:", i.prompt) for i in words)
    assert both == {True, False}
    assert worked(problem) == "\n7 + 5 = 12\n4 + 0 + 1 = 5\n#### 52"


@pytest.mark.parametrize("operation", ALL)
def test_every_step_is_true_and_the_digits_written_spell_the_answer(operation):
    for problem in problems(300, (1, 2, 3, 5), [operation], "train", random.Random(1)):
        *steps, last = worked(problem).strip().split("\n")
        for left, right in re.findall(r"([\d +*/-]+) = (\d+)", "\n".join(steps)):
            assert calculated(left) == int(right), problem
        assert last == f"#### {problem.answer}"
        if operation in ("add", "subtract"):
            *ends, front = (line.split(" = ")[1] for line in steps)
            assert int(front + "".join(end[-1] for end in reversed(ends))) == problem.answer
    carried = [
        worked(p).count("+ 1 =") + worked(p).count(" - 1 - ")
        for p in problems(300, (3,), ["add", "subtract"], "train", random.Random(1))
    ]
    assert set(carried) >= {0, 1, 2}


@pytest.mark.parametrize("steps", [True, False])
def test_the_solution_is_what_the_grader_takes(steps):
    task = arithmetic(50, steps=steps)
    assert all(task.grade(item, item.solution.strip()).score == 1 for item in task.items)
    assert all(("####" in item.solution) == steps for item in task.items)


def test_a_question_as_a_person_would_put_it():
    assert all(
        re.fullmatch(r"What is \d+ [-+] \d+\?", i.prompt) for i in arithmetic(50, form="question").items
    )


def test_a_problem_is_on_one_side_whatever_its_seed_wording_or_order():
    sides = {}
    for seed, form, split in itertools.product(range(3), ("symbols", "words"), ("train", "test")):
        for item in arithmetic(200, (2,), ALL, form=form, split=split, seed=seed).items:
            a, sign, b = item.id.split()
            key = (*sorted((int(a), int(b))), sign) if sign in "+*" else (int(a), int(b), sign)
            assert sides.setdefault(key, split) == split
    assert Problem(5, 47, "add").split == Problem(47, 5, "add").split
    check_splits(train=arithmetic(400, split="train").items, test=arithmetic(400, split="test").items)


def test_lessons_and_examples_are_of_the_training_side():
    exam = {item.id for item in arithmetic(800, (1, 2)).items}
    lines = lessons(800, (1, 2))
    assert len(set(lines)) == 800
    assert not exam & {line.partition(" =")[0] for line in lines}
    assert lessons(2, steps=True)[0].split("\n")[-1].startswith("#### ")
    item = arithmetic(10, shots=3).items[0]
    *shown, asked = item.prompt.split("\n\n")
    assert len(shown) == 3
    assert asked == f"{item.id} ="
    assert all(line.partition(" =")[0] not in exam for line in shown)


def test_a_worked_answer_and_a_plain_one_are_graded():
    plain, steps = arithmetic(50), arithmetic(50, steps=True)
    for item in plain.items:
        assert plain.grade(item, f" {item.answer}").score == 1
        assert plain.grade(item, f" {item.answer}1").score == 0
        assert steps.grade(item, item.solution).score == 1
    assert plain.grade is grading.exact


def test_choices_are_near_different_and_the_right_one_is_anywhere():
    task = arithmetic(400, (1, 2), ALL, ask="choice")
    for item in task.items:
        numbers = [int(choice) for choice in item.choices]
        assert len(set(numbers)) == 4
        assert calculated(item.prompt) == numbers[item.gold]
        assert max(abs(n - numbers[item.gold]) for n in numbers) <= 11
    golds = [item.gold for item in task.items]
    assert all(70 <= golds.count(place) <= 130 for place in range(4))
    # neither the smallest nor the largest gives the answer away
    ranks = [sorted(map(int, i.choices)).index(int(i.choices[i.gold])) for i in task.items]
    assert all(ranks.count(place) < 200 for place in range(4))


def test_more_than_there_is():
    with pytest.raises(
        InputError, match=r"1,000 test problems wanted, but add with 1 digits gives about [12]\d; ask"
    ):
        arithmetic(1000, (1,), ["add"])
    with pytest.raises(InputError, match="operations = \\['adds'\\]"):
        arithmetic(10, operations=["adds"])
    with pytest.raises(InputError, match="digits"):
        arithmetic(10, digits=())
