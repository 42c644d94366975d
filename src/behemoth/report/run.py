"""What the report knows of a run: the files of its directory, and nothing else.

Any of them may be missing, because a report is also wanted of a run that is not finished. Lines that were
written twice (a run that was killed goes on from its last checkpoint and repeats some steps) count once,
the later one.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, read_jsonl

Point = tuple[float, float]

AFTER = ("sft", "rl", "dpo")  # the stages that may follow pretraining
EDGE = 10  # first and last steps of RL whose answers are shown


@dataclass(frozen=True)
class Member:
    """A model of the run as its newest weights describe it."""

    name: str
    config: dict[str, Any]
    parameters: int
    active: int  # parameters that take part in one token


@dataclass(frozen=True)
class Run:
    """Everything read from `path`; what was not there is empty."""

    path: Path
    recipe: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # member -> task -> its score
    task_scores: list[dict[str, Any]] = field(default_factory=list)  # during training
    compared: list[str] = field(default_factory=list)  # pages beside the report
    doctor: dict[str, Any] = field(default_factory=dict)
    assistant: dict[str, Any] = field(default_factory=dict)  # what each stage after pretraining changed
    after: dict[str, Stage] = field(default_factory=dict)  # these stages, in their order

    def places(self) -> dict[int, float]:
        """Where each step stands on the axis of a curve: at the tokens read so far."""
        return self.tokens_at()

    def tokens_at(self) -> dict[int, float]:
        """How many tokens training had read after each step."""
        found, total = {}, 0.0
        for line in self.metrics:
            total += line.get("tokens", 0)
            found[line["step"]] = total
        return found

    def member_names(self) -> list[str]:
        """In the order in which they appear; a teacher comes first because it starts first."""
        names = [name for line in self.metrics for name in line.get("members", {})]
        names += [line["member"] for line in self.held_out] + [member.name for member in self.members]
        return list(dict.fromkeys(names))

    def leaders(self) -> list[Member]:
        """The member that the report is about, if its weights were found: the first to learn."""
        return [member for member in self.members if member.name in self.member_names()[:1]]

    def series(self, member: str, key: str) -> list[Point]:
        """(place, value) of a number the loop wrote for a member; where it is not finite, nothing."""
        places = self.places()
        pairs = ((line["step"], line.get("members", {}).get(member, {}).get(key)) for line in self.metrics)
        return [(places[step], float(value)) for step, value in pairs if is_number(value)]


@dataclass(frozen=True)
class Stage(Run):
    """What came after pretraining, read as a run of its own; here curves stand over steps."""

    outcome: dict[str, Any] = field(default_factory=dict)  # of RL: the step kept, and why it stopped
    first: list[dict[str, Any]] = field(default_factory=list)  # answers of the first steps of RL
    last: list[dict[str, Any]] = field(default_factory=list)  # and of the last ones

    def places(self) -> dict[int, float]:
        return {0: 0.0} | {line["step"]: float(line["step"]) for line in self.metrics}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(path: Path) -> Run:
    """Read what is there. Raises InputError if `path` is no run directory at all."""
    if not path.is_dir() or not any(
        (path / name).exists() for name in ("recipe.toml", "record.json", "pretrain")
    ):
        raise InputError(f"{path} is not a run directory: it has no recipe.toml, record.json or pretrain/")
    recipe = path / "recipe.toml"
    pretrain, evals = path / "pretrain", path / "evals"
    return Run(
        path,
        recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        optional(path / "record.json"),
        optional(path / "stages.json"),
        optional(path / "data" / "report.json"),
        by_step(pretrain / "metrics.jsonl"),
        by_step(pretrain / "heldout.jsonl", "member"),
        by_step(pretrain / "samples.jsonl", "member", "prompt"),
        optional(evals / "results.json"),
        optional(evals / "experts.json"),
        read_members(path),
        read_tasks(evals / "tasks"),
        by_step(pretrain / "tasks.jsonl", "member", "task"),
        sorted(page.name for page in path.glob("compare-*.html")),
        optional(path / "doctor.json"),
        optional(evals / "assistant.json"),
        {name: read_stage(path / name) for name in AFTER if (path / name).is_dir()},
    )


def read_stage(path: Path) -> Stage:
    first, last = first_and_last(path / "rollouts.jsonl")
    return Stage(
        path,
        data=optional(path / "data.json"),
        metrics=by_step(path / "metrics.jsonl"),
        held_out=by_step(path / "heldout.jsonl", "member"),
        samples=by_step(path / "samples.jsonl", "member", "prompt"),
        task_scores=by_step(path / "tasks.jsonl", "member", "task"),
        outcome=optional(path / "outcome.json"),
        first=first,
        last=last,
    )


def first_and_last(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the first and of the last `EDGE` steps; the file may be too large to be held whole."""
    first: dict[int, list[dict[str, Any]]] = {}
    last: dict[int, list[dict[str, Any]]] = {}
    before = 0
    for line in read_jsonl(path):
        step = line["step"]
        if step < before:  # a run that was killed writes its last steps again
            first = {other: lines for other, lines in first.items() if other < step}
            last = {other: lines for other, lines in last.items() if other < step}
        before = step
        if step in first or len(first) < EDGE:
            first.setdefault(step, []).append(line)
        else:
            last.setdefault(step, []).append(line)
            if len(last) > EDGE:
                del last[min(last)]
    return [*chain(*first.values())], [*chain(*last.values())]


def optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_tasks(path: Path) -> dict[str, dict[str, Any]]:
    """Every evaluated model's tasks, in the order in which they were measured."""
    found = sorted(path.glob("*/evaluation.json"), key=lambda file: file.stat().st_mtime_ns)
    return {file.parent.name: read_json(file)["tasks"] for file in found}


def by_step(path: Path, *keys: str) -> list[dict[str, Any]]:
    """One line per step (and per value of `keys`), the last one written, in the order of steps."""
    latest = {(line["step"], *(line.get(key) for key in keys)): line for line in read_jsonl(path)}
    return sorted(latest.values(), key=lambda line: line["step"])


def read_members(path: Path) -> list[Member]:
    """The models of the newest checkpoint, or the exported ones where no checkpoint was kept."""
    saves = sorted((path / "pretrain" / "checkpoints").glob("step-*/weights"))
    places = [saves[-1]] if saves else [path / "export"]
    directories = [d for place in places if place.is_dir() for d in sorted(place.iterdir())]
    return [
        describe(d.name, d)
        for d in directories
        if (d / "config.json").exists() and (d / "model.safetensors").exists()
    ]


def describe(name: str, directory: Path) -> Member:
    """Sizes from the header of the weights: its length in eight bytes, then JSON with all shapes."""
    config = read_json(directory / "config.json")
    config = config.get("text_config", config)
    with open(directory / "model.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    sizes = {
        tensor: math.prod(facts["shape"]) for tensor, facts in header.items() if tensor != "__metadata__"
    }
    routed = sum(size for tensor, size in sizes.items() if ".experts." in tensor)
    chosen = config.get("num_experts_per_tok", 1) / max(config.get("num_local_experts", 1), 1)
    total = sum(sizes.values())
    return Member(name, config, total, round(total - routed * (1 - chosen)))
