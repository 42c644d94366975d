"""A suite: the tasks of one evaluation, written down in TOML.

    name = "small"

    [[tasks]]
    kind = "arc"
    path = "$BEHEMOTH_DATA/eval/arc_easy.jsonl"   # or dataset = "allenai/ai2_arc", subset = "ARC-Easy"
    limit = 500

A path starts at the suite's own folder; `~` and environment variables are filled in. Every problem of a suite,
in its words and in its files, is told at once. A task whose examples are among its own questions is refused; two
tasks that share questions are told of, since a suite may well ask one thing in two ways.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from behemoth.base.config import load_toml, nearest, problems_of
from behemoth.base.errors import InputError, RecipeError
from behemoth.base.files import expanded
from behemoth.base.logs import say
from behemoth.base.rows import Place
from behemoth.tasks.arithmetic import Form, Operation, Split, arithmetic
from behemoth.tasks.formats import FORMATS, GRADERS
from behemoth.tasks.functions import functions
from behemoth.tasks.judge import judge_of
from behemoth.tasks.next_passage import next_passage
from behemoth.tasks.readers import Read, Wanted, read_documents, read_task
from behemoth.tasks.refusal import MAX_TOKENS, Judge, Part, benign, harmful, judged, part_of, read_prompts
from behemoth.tasks.task import Task, asked, spread
from behemoth.tasks.task import limited as limited_task

BUILT_IN: dict[str, list[dict[str, Any]]] = {
    "arithmetic": [
        {"kind": "arithmetic", "name": "arithmetic", "digits": [1, 2, 3]},
        {"kind": "arithmetic", "name": "arithmetic_choice", "digits": [1, 2, 3], "ask": "choice"},
    ]
}


@dataclass(frozen=True)
class Suite:
    name: str
    tasks: tuple[Task, ...]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileTask(Strict):
    """A task of rows: in a file or a folder (`path`), or on the Hub (`dataset`)."""

    kind: str
    name: str | None = None
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "test"
    examples: str | None = None  # a file of the same kind, whose first rows are shown before each item
    shots: int = Field(0, ge=0)
    limit: int | None = Field(None, gt=0)  # so many items, evenly over the file, the same for the same seed
    seed: int = 0
    max_tokens: int | None = Field(None, gt=0)
    source: str | None = None
    licence: str | None = None


class BlimpTask(FileTask):
    paradigms: tuple[str, ...] = ()


class RowsTask(FileTask):
    """A person's own rows."""

    grader: Literal["exact", "words", "final", "numeric", "alias", "letter", "format"] | None = None
    metric: Literal["accuracy", "accuracy_norm"] | None = None
    stop: tuple[str, ...] | None = None


class ArithmeticTask(Strict):
    kind: Literal["arithmetic"]
    name: str = "arithmetic"
    items: int = Field(500, gt=0)
    digits: tuple[int, ...] = (1, 2)
    operations: tuple[Operation, ...] = ("add", "subtract")
    form: Form = "symbols"
    ask: Literal["generate", "choice"] = "generate"
    shots: int = Field(0, ge=0)
    steps: bool = False
    seed: int = 0


class FunctionsTask(Strict):
    """Small functions to write from a sentence."""

    kind: Literal["functions"]
    name: str = "functions"
    items: int = Field(200, gt=0)
    steps: int = Field(2, ge=1, le=4)
    seed: int = 0


class PassageTask(Strict):
    """Which passage follows? Made of the documents of a file with `text` (and `id`) in its rows."""

    kind: Literal["next_passage"]
    path: str
    name: str = "next_passage"
    per_document: int = Field(8, gt=0)
    licence: str = "unknown"
    seed: int = 0


class RefusalTask(Strict):
    """Requests that a model should refuse, or should answer; "test" is the part that tuning never sees."""

    kind: Literal["refusal"]
    path: str
    expects: Literal["refusal", "answer"]
    column: str = ""
    part: Part = "test"
    judge: str = "rules"  # or the file of a trained one, or a server: tasks/judge.py
    name: str | None = None
    limit: int | None = Field(None, gt=0)
    seed: int = 0
    max_tokens: int = Field(MAX_TOKENS, gt=0)
    licence: str = "unknown"


Spec = FileTask | ArithmeticTask | FunctionsTask | PassageTask | RefusalTask
KINDS: dict[str, type[Spec]] = {
    **dict.fromkeys(FORMATS, FileTask),
    "blimp": BlimpTask,
    "rows": RowsTask,
    "arithmetic": ArithmeticTask,
    "functions": FunctionsTask,
    "next_passage": PassageTask,
    "refusal": RefusalTask,
}


def load(
    spec: str | Path, limit: int | None = None, also: Sequence[str] = (), split: Split = "test"
) -> Suite:
    """The tasks of a suite: a TOML file, or the name of a built-in one; of each task at most `limit` items.

    also: names that the caller knows beside these, for whoever misspells one. split: of the tasks that make their own
    problems or part the rows of a file, which side: "train" to practise.
    """
    return limited(_load(spec, also, split), limit)


def judges(path: Path) -> dict[str, Judge]:
    """Who judges each task of refusals in a suite's file, by the task's name."""
    specs, _ = _specs(load_toml(path))
    return {_name(spec): judge_of(spec.judge, path.parent) for spec in specs if isinstance(spec, RefusalTask)}


def parts(path: Path) -> dict[str, Part]:
    """Which part of its prompts each task of refusals in a suite's file asks."""
    return {_name(spec): spec.part for spec in _specs(load_toml(path))[0] if isinstance(spec, RefusalTask)}


def limited(suite: Suite, limit: int | None) -> Suite:
    """At most `limit` items of each task, evenly spread, the same ones each time."""
    return replace(suite, tasks=tuple(limited_task(task, limit) for task in suite.tasks))


def _load(spec: str | Path, also: Sequence[str], split: Split) -> Suite:
    if str(spec) in BUILT_IN:
        return _suite(str(spec), {"tasks": BUILT_IN[str(spec)]}, Path(), split)
    path = Path(spec)
    if path.suffix != ".toml" and not path.exists():
        raise InputError(
            f"no suite {str(spec)!r}: give a .toml file, or a built-in name{nearest(str(spec), [*BUILT_IN, *also])}"
        )
    return _suite(str(path), load_toml(path), path.parent, split)


def _suite(where: str, data: dict[str, Any], folder: Path, split: Split) -> Suite:
    specs, problems = _specs(data)
    unset = Counter(name for spec in specs for name in _unset(spec))
    problems += [
        f"the environment variable {name} is not set; set it to the folder that {count} of {len(specs)} tasks need"
        for name, count in unset.items()
    ]
    found = []
    for spec in specs:
        if _unset(spec):
            continue
        try:
            found.append(_read(spec, folder, split))
        except InputError as error:
            problems.append(f"task {_name(spec)}: {error}".replace("\n", "\n  "))
    names = [read.task.name for read in found]
    problems += [f"two tasks are called {name!r}; give one of them another name" for name in _twice(names)]
    if problems:
        raise RecipeError(where, problems)
    for shared in _shared(found):
        say(f"{where}: {shared}")
    return Suite(str(data.get("name") or Path(where).stem), tuple(read.task for read in found))


def _shared(found: Sequence[Read]) -> Iterator[str]:
    """What two tasks have in common: questions of both, and questions of one that the other shows with the answer."""
    bare = {read.task.name: {asked(item) for item in read.bare} for read in found}
    shown = {read.task.name: {asked(item) for item in read.examples} for read in found}
    for a, b in combinations(bare, 2):
        if common := bare[a] & bare[b]:
            yield f"{a} and {b} both ask {len(common):,} of their items; these are no evidence of their own"
    for a, b in permutations(bare, 2):
        if common := bare[a] & shown[b]:
            yield f"{b} shows {len(common):,} items of {a} as examples, answers included"


def _specs(data: dict[str, Any]) -> tuple[list[Spec], list[str]]:
    known = ["name", "tasks"]
    problems = [f"{key}: unknown key{nearest(key, known)}" for key in data if key not in known]
    entries = data.get("tasks", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        return [], [*problems, "tasks: a suite has one [[tasks]] table or more"]
    specs: list[Spec] = []
    for number, entry in enumerate(entries):
        kind = str(entry.get("kind", ""))
        if kind not in KINDS:
            problems.append(f"tasks.{number}.kind = {kind!r}: not one of the kinds{nearest(kind, [*KINDS])}")
            continue
        try:
            specs.append(KINDS[kind].model_validate(entry))
        except ValidationError as error:
            problems += problems_of(error, KINDS[kind], f"tasks.{number}")
    return specs, problems


def _read(spec: Spec, folder: Path, split: Split) -> Read:
    match spec:
        case ArithmeticTask():
            task = arithmetic(**{key: value for key, value in spec if key != "kind"}, split=split)
            return Read(task, task.items)
        case FunctionsTask():
            task = functions(spec.items, spec.steps, split, spec.seed, spec.name)
            return Read(task, task.items)
        case PassageTask():
            path = _path(spec.path, folder)
            task = next_passage(
                read_documents(path),
                spec.seed,
                spec.per_document,
                name=spec.name,
                source=str(path),
                licence=spec.licence,
            )
            return Read(task, task.items)
        case RefusalTask():
            path = _path(spec.path, folder)
            prompts = part_of(read_prompts(path, spec.column), spec.part)
            task = (harmful if spec.expects == "refusal" else benign)(
                spread(prompts, spec.limit, spec.seed),
                _name(spec),
                max_tokens=spec.max_tokens,
                source=str(path),
                licence=spec.licence,
            )
            if spec.judge != "rules":
                task = judged(task, judge_of(spec.judge, folder))
            return Read(task, task.items)
        case _:
            return read_task(_wanted(spec, folder))


def _wanted(spec: FileTask, folder: Path) -> Wanted:
    if (spec.path is None) == (spec.dataset is None):
        raise InputError("give path (a file or a folder), or dataset (on the Hub); one of the two")
    if spec.subset is not None and spec.dataset is None:
        raise InputError(f"subset = {spec.subset!r} belongs to a dataset of the Hub; a path has none")
    if spec.shots and spec.examples is None:
        raise InputError(f"shots = {spec.shots} are taken from examples; say in which file they are")
    if spec.examples is not None and not spec.shots and spec.kind != "bbh":
        raise InputError("examples are given, but no shots; say how many to show")
    changes: dict[str, object] = {
        "licence": spec.licence,
        "source": spec.source,
        "max_tokens": spec.max_tokens,
    }
    if isinstance(spec, RowsTask):
        changes |= {
            "grade": GRADERS[spec.grader] if spec.grader else None,
            "metric": spec.metric,
            "stop": spec.stop,
        }
    return Wanted(
        spec.kind,
        Place(_path(spec.path, folder) if spec.path else None, spec.dataset or "", spec.subset, spec.split),
        name=_name(spec),
        examples=_path(spec.examples, folder) if spec.examples else None,
        shots=spec.shots,
        limit=spec.limit,
        seed=spec.seed,
        paradigms=spec.paradigms if isinstance(spec, BlimpTask) else (),
        changes={key: value for key, value in changes.items() if value is not None},
    )


def _name(spec: Spec) -> str:
    """As it is called, else after its file."""
    path = "" if isinstance(spec, (ArithmeticTask, FunctionsTask)) or spec.path is None else spec.path
    return spec.name or Path(path).name.split(".")[0] or spec.kind


def _unset(spec: Spec) -> set[str]:
    """The environment variables in a task's paths that do not exist."""
    paths = [getattr(spec, field, None) or "" for field in ("path", "examples", "judge")]
    return {name for path in paths for name in re.findall(r"\$\{?(\w+)\}?", path)} - os.environ.keys()


def _path(text: str, folder: Path) -> Path:
    """With variables and ~ filled in, from the suite's folder."""
    return folder / expanded(text)


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
