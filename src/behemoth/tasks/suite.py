"""A suite: the tasks of one evaluation, written down in TOML.

    name = "small"

    [[tasks]]
    kind = "arc"
    path = "$BEHEMOTH_DATA/eval/arc_easy.jsonl"   # or dataset = "allenai/ai2_arc", subset = "ARC-Easy"
    limit = 500

A path starts at the suite's own folder; `~` and environment variables are filled in. Every problem of a suite,
in its words and in its files, is told at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from behemoth.base.config import load_toml, nearest, problems_of
from behemoth.base.errors import InputError, RecipeError
from behemoth.tasks.arithmetic import Form, Operation, arithmetic
from behemoth.tasks.formats import FORMATS, GRADERS
from behemoth.tasks.next_passage import next_passage
from behemoth.tasks.readers import Place, Wanted, read_documents, read_task
from behemoth.tasks.task import Task, limited

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

    grader: Literal["exact", "words", "final", "numeric", "alias", "letter"] | None = None
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


class PassageTask(Strict):
    """Which passage follows? Made of the documents of a file with `text` (and `id`) in its rows."""

    kind: Literal["next_passage"]
    path: str
    name: str = "next_passage"
    per_document: int = Field(8, gt=0)
    licence: str = "unknown"
    seed: int = 0


Spec = FileTask | ArithmeticTask | PassageTask
KINDS: dict[str, type[Spec]] = {
    **dict.fromkeys(FORMATS, FileTask),
    "blimp": BlimpTask,
    "rows": RowsTask,
    "arithmetic": ArithmeticTask,
    "next_passage": PassageTask,
}


def load(spec: str | Path, limit: int | None = None) -> Suite:
    """The tasks of a suite: a TOML file, or the name of a built-in one; of each task at most `limit` items."""
    suite = _load(spec)
    return replace(suite, tasks=tuple(limited(task, limit) for task in suite.tasks))


def _load(spec: str | Path) -> Suite:
    if str(spec) in BUILT_IN:
        return _suite(str(spec), {"tasks": BUILT_IN[str(spec)]}, Path())
    path = Path(spec)
    if path.suffix != ".toml" and not path.exists():
        raise InputError(
            f"no suite {str(spec)!r}: give a .toml file, or a built-in name{nearest(str(spec), [*BUILT_IN])}"
        )
    return _suite(str(path), load_toml(path), path.parent)


def _suite(where: str, data: dict[str, Any], folder: Path) -> Suite:
    specs, problems = _specs(data)
    tasks = []
    for spec in specs:
        try:
            tasks.append(_task(spec, folder))
        except InputError as error:
            problems.append(f"task {_name(spec)}: {error}".replace("\n", "\n  "))
    names = [task.name for task in tasks]
    problems += [f"two tasks are called {name!r}; give one of them another name" for name in _twice(names)]
    if problems:
        raise RecipeError(where, problems)
    return Suite(str(data.get("name") or Path(where).stem), tuple(tasks))


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


def _task(spec: Spec, folder: Path) -> Task:
    match spec:
        case ArithmeticTask():
            return arithmetic(**{key: value for key, value in spec if key != "kind"})
        case PassageTask():
            path = _path(spec.path, folder)
            documents = read_documents(path)
            return next_passage(
                documents,
                spec.seed,
                spec.per_document,
                name=spec.name,
                source=str(path),
                licence=spec.licence,
            )
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
    path = "" if isinstance(spec, ArithmeticTask) or spec.path is None else spec.path
    return spec.name or Path(path).name.split(".")[0] or spec.kind


def _path(text: str, folder: Path) -> Path:
    """With variables and ~ filled in, from the suite's folder; a variable that is not set is an InputError."""
    unset = [name for name in re.findall(r"\$\{?(\w+)\}?", text) if name not in os.environ]
    if unset:
        raise InputError(
            f"{text}: the environment variable {unset[0]} is not set; set it to the folder it stands for"
        )
    return folder / Path(os.path.expandvars(text)).expanduser()


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
