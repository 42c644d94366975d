"""What post-training practises, and what it is examined in.

A task is defined once: its worked answers are conversations, its grader is a reward and a judge of pairs, and items
that were never practised are its exam. Practice and exam may not share an item; some of the practice (`dev_items` of
each task) is set aside, to look at between steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from behemoth.base.errors import InputError
from behemoth.base.mixing import mix_keys
from behemoth.dials import STAGES, Arithmetic, Recipe, Tasks
from behemoth.rl.rollouts import Prompt, prompts_of
from behemoth.tasks import suite as suites
from behemoth.tasks.arithmetic import Split, arithmetic
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Item, Task, check_splits, spread, wording
from behemoth.text.tokenizer import Tokenizer


def tasks_of(entries: Iterable[Tasks], split: Split, seed: int) -> tuple[Task, ...]:
    """The tasks of one side. InputError: one that does not ask for written answers."""
    found: list[Task] = []
    for entry in entries:
        match entry:
            case Arithmetic():
                found.append(
                    arithmetic(
                        entry.items,
                        entry.digits,
                        entry.operations,
                        form="question",
                        split=split,
                        seed=seed,
                        steps=entry.steps,
                        name=entry.name,
                    )
                )
            case _:
                found += suites.load(entry.path, split=split).tasks
    for task in found:
        if task.ask != "generate":
            raise InputError(
                f"task {task.name} asks {task.ask!r}; an assistant practises what it writes (generate)"
            )
    names = [task.name for task in found]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{split}: {', '.join(twice)} names two tasks; give each its own name")
    return tuple(found)


def examined(practice: Sequence[Task], exam: Sequence[Task]) -> None:
    """InputError where an exam asks what is practised."""
    check_splits(
        practice=[item for task in practice for item in task.items],
        exam=[item for task in exam for item in task.items],
    )


def asked_in(recipe: Recipe) -> set[str]:
    """The questions of the exam, which nothing else may teach either."""
    return questions_of(tasks_of(recipe.assistant.exam, "test", recipe.seed))


def questions_of(tasks: Iterable[Task]) -> set[str]:
    return {wording(item.prompt) for task in tasks for item in task.items}


def set_aside(practice: Sequence[Task], dev_items: int) -> tuple[tuple[Task, ...], Suite]:
    """The practice without its dev items, and those. InputError: nothing would be left to practise."""
    rest, dev = [], []
    for task in practice:
        chosen = spread(task.items, min(dev_items, len(task.items)), seed=0)
        kept = {same(item) for item in chosen}
        left = tuple(item for item in task.items if same(item) not in kept)
        if not left:
            raise InputError(
                f"task {task.name} has {len(task.items)} items and assistant.dev_items = {dev_items} of them are "
                "set aside, so none is left to practise; lower dev_items"
            )
        rest.append(replace(task, items=left))
        dev.append(replace(task, items=tuple(chosen)))
    return tuple(rest), Suite("dev", tuple(dev))


def practised(recipe: Recipe) -> tuple[tuple[Task, ...], Suite]:
    """The tasks to practise, and those of their items that are set aside."""
    spec = recipe.assistant
    return set_aside(tasks_of(spec.practice, "train", recipe.seed), spec.dev_items)


def prompts_to(tasks: Sequence[Task], tokenizer: Tokenizer, limit: int | None, context: int) -> list[Prompt]:
    """The items of the tasks as chats that await an answer. limit: tokens of it; the task's own when None."""
    found = [prompts_of(task, tokenizer, limit or task.max_tokens, context) for task in tasks]
    return [prompt for prompts in found for prompt in prompts]


def same(item: Item) -> tuple[str, ...]:
    """What two items have in common that ask the same: the words of their names, for b + a is a + b."""
    return tuple(sorted(item.id.split()))


def stage_seed(seed: int, stage: str) -> int:
    """A seed of the stage's own, from the recipe's."""
    return mix_keys(seed, 9, STAGES.index(stage))
