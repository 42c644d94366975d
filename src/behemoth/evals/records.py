"""What an evaluation leaves behind: every item of every task, and what they add up to.

    OUT/MODEL/evaluation.json   the model, the suite, and of each finished task the score with its interval
    OUT/MODEL/TASK.jsonl        one line per item, in the order of the task

An item ends in one of three ways. It has a score. It could not be scored, because its grader could not decide:
then it is in no mean, and the summary says where the score would lie had all of these been wrong, or right. Or
it ended in an error (a time-out, an answer that is no answer): that counts as wrong. Of a text there is no
worst score to count, so a text that ended in an error is left out of the mean and counted beside it.

No torch here: pages and comparisons read these files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import read_json, read_jsonl, write_atomic, write_json
from behemoth.base.files import sha256 as sha256_of
from behemoth.base.logs import table
from behemoth.evals.backends import CHAT
from behemoth.evals.results import file_name
from behemoth.stats.intervals import Interval
from behemoth.stats.paired import Scores, score_interval, text_scores, too_few
from behemoth.stats.power import smallest_effect

EVALUATION = "evaluation.json"
HELD_OUT = "held_out"  # the task of a run's held-out text
OF_MODEL = ("name", "spec", "kind", "sha256", "precision", "device", "route")  # what is kept of a model
CLIPPED = 200  # characters of an error in a table's notes
NORMAL = 1.96  # standard errors on each side of a 95% interval
CORRELATION = 0.5  # of two models' answers, about

Record = dict[str, Any]


@dataclass(frozen=True)
class TaskResult:
    """A finished task: its items' records, in the order of the task.

    contamination: what a comparison with the training data found, where one was made.
    """

    name: str
    metric: str
    ask: str
    sha256: str
    records: list[Record]
    chance: float | None = None
    source: str = ""
    licence: str = "unknown"
    contamination: dict[str, Any] | None = None

    def scores(self, model: str) -> Scores:
        """The items that have a score, as statistics want them; texts in bits, over their bytes."""
        scored = [record for record in self.records if record["score"] is not None]
        items = tuple(record["item"] for record in scored)
        named = any(record["cluster"] for record in scored)
        clusters = tuple(record["cluster"] or record["item"] for record in scored) if named else ()
        if self.ask == "text":
            nats = np.array([record["metrics"]["nats"] for record in scored], np.float64)
            num_bytes = np.array([record["metrics"]["bytes"] for record in scored], np.int64)
            found = text_scores(model, items, nats, num_bytes)
            return replace(found, clusters=clusters) if clusters else found
        values = np.array([record["score"] for record in scored], np.float64)
        return Scores(model, items, values, clusters)

    @cached_property
    def interval(self) -> Interval | None:
        """The score; None where there is nothing to draw from again: fewer than two passages, texts or items."""
        scores = self.scores("")
        return score_interval(scores) if len(set(scores.clusters or scores.items)) > 1 else None

    @property
    def detectable(self) -> float | None:
        """The smallest true difference to another model that a comparison on these items finds 8 times of 10, where the
        two models' answers correlate by a half, as is usual (Miller 2024, arXiv 2411.00640, section 5). Of texts None:
        there models agree much more, and it is the two of them that decide; nor where the items are too few for any
        verdict. It is of a comparison on this task alone: one of several tasks that are judged together finds less."""
        scores = self.scores("")
        count = len(scores.items)
        if self.ask == "text" or too_few(scores) or self.interval is None:
            return None
        if not self.interval.low < self.interval.high:  # marks that are all alike
            return None
        sd = (self.interval.high - self.interval.low) / 2 / NORMAL * math.sqrt(count)
        return smallest_effect(count, sd=sd * math.sqrt(2 * (1 - CORRELATION)))

    @property
    def lines(self) -> bytes:
        """What TASK.jsonl holds."""
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        return "".join(lines).encode(errors="replace")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The task's entry of evaluation.json. `worst` and `best`: had every unscored item been wrong, or right."""
        scores = self.scores("")
        items, scored = len(self.records), len(scores.items)
        errors = sum(bool(record["error"]) for record in self.records)
        score = low = high = worst = best = None
        if scored:
            score = float(scores.values.sum() / (scored if scores.sizes is None else scores.sizes.sum()))
        if self.interval:
            low, high = self.interval.low, self.interval.high
        if self.ask != "text":
            right = float(scores.values.sum())
            worst, best = right / items, (right + items - scored) / items
        return {
            "sha256": self.sha256,
            "metric": self.metric,
            "ask": self.ask,
            "items": items,
            "scored": scored,
            "unscored": items - scored,
            "errors": errors,
            "score": score,
            "low": low,
            "high": high,
            "worst": worst,
            "best": best,
            "detectable": self.detectable,
            "chance": self.chance,
            "source": self.source,
            "licence": self.licence,
            **({"contamination": self.contamination} if self.contamination is not None else {}),
        }


@dataclass(frozen=True)
class Evaluation:
    """One model's finished tasks. sha256 is of the weights, "" where nobody can know (an endpoint).

    precision, device, route: how it was asked, as its backend says. finished: when the last of it was asked (UTC),
    and version, by which version of this package; "" until then.
    """

    name: str
    sha256: str
    spec: str
    suite: str
    tasks: dict[str, TaskResult]
    kind: str = ""
    precision: str = ""
    device: str = ""
    route: str = ""
    version: str = ""
    finished: str = ""

    @property
    def how(self) -> str:
        """What the same weights may answer differently in: "in bf16 on cpu", "through /chat/completions"."""
        if self.route not in ("", CHAT):
            return f"through /{self.route}"
        template = "in the chat template, " if self.route else ""
        return f"{template}in {self.precision or 'unknown precision'} on {self.device or 'an unknown device'}"

    def as_dict(self) -> dict[str, Any]:
        """What evaluation.json holds, and what `--json` prints."""
        return {
            "model": {key: getattr(self, key) for key in OF_MODEL},
            "suite": self.suite,
            "version": self.version,
            "finished": self.finished,
            "tasks": {
                name: task.summary | {"records_sha256": hashlib.sha256(task.lines).hexdigest()}
                for name, task in self.tasks.items()
            },
        }


# ------------------------------------------------------------------------------------------------ to disk and back


def records_path(directory: Path, task: str) -> Path:
    return directory / f"{file_name(task)}.jsonl"


def write_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """Write every record and the summary; each file is whole or absent, and the summary comes last."""
    for task in evaluation.tasks.values():
        write_records(directory, task)
    write_summary(directory, evaluation)


def write_records(directory: Path, task: TaskResult) -> None:
    write_atomic(records_path(directory, task.name), task.lines)


def write_summary(directory: Path, evaluation: Evaluation) -> None:
    write_json(directory / EVALUATION, evaluation.as_dict())


def read_evaluation(directory: Path) -> Evaluation:
    """Read an evaluation back. InputError: there is none; DamagedError: a file is not what was written."""
    found, entries = read_summary(directory)
    tasks = {name: read_task(directory, name, entry, found.sha256) for name, entry in entries.items()}
    return replace(found, tasks=tasks)


def read_summary(directory: Path) -> tuple[Evaluation, dict[str, dict[str, Any]]]:
    """The evaluation without its tasks, and what evaluation.json says of each."""
    path = directory / EVALUATION
    if not path.exists():
        raise InputError(f"{directory}: no evaluation there (no {EVALUATION}); make one with behemoth eval")
    record = read_json(path)
    try:
        model, entries = record["model"], dict(record["tasks"])
        facts = {key: str(model[key]) for key in OF_MODEL}
        facts |= {key: str(record[key]) for key in ("suite", "version", "finished")}
        return Evaluation(tasks={}, **facts), entries
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(path, f"not the summary of an evaluation ({error!r})") from None


def read_task(directory: Path, name: str, entry: dict[str, Any], model: str) -> TaskResult:
    """The records of one task: the very ones that its entry in evaluation.json is of, and of this model's hash."""
    path = records_path(directory, name)
    records = list(read_jsonl(path))
    try:
        metric, ask, sha256, items = entry["metric"], entry["ask"], entry["sha256"], entry["items"]
        if len(records) != items:
            raise DamagedError(path, f"holds {len(records):,} of {items:,} items; run the evaluation again")
        if sha256_of(path) != entry["records_sha256"]:
            raise DamagedError(path, "altered after it was written (SHA-256); run the evaluation again")
        if any(record["model"] != model for record in records):
            raise DamagedError(path, "holds answers of another model; run the evaluation again")
        rest = {key: entry[key] for key in ("chance", "source", "licence", "contamination") if key in entry}
        result = TaskResult(name, metric, ask, sha256, records, **rest)
        result.scores("")  # every record has what a score is made of
        return result
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(path, f"not the records of a task ({error!r}); run the evaluation again") from None


# ------------------------------------------------------------------------------------------------------ for people


def show(evaluations: Sequence[Evaluation]) -> None:
    """Print a row for each task and model, and a note wherever a score is not the whole story."""
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.tasks)
    shown = [
        (name, evaluation, evaluation.tasks[name])
        for name in names
        for evaluation in evaluations
        if name in evaluation.tasks
    ]
    rows = []
    for name, evaluation, task in shown:
        entry = task.summary
        interval = f"{told(entry['low'], task)} to {told(entry['high'], task)}" if task.interval else ""
        counts = [entry["scored"], entry["unscored"], entry["errors"]]
        rows.append(
            [
                name,
                evaluation.name,
                task.metric,
                told(entry["score"], task),
                interval,
                told(entry["detectable"], task),
                told(task.chance, task),
                *counts,
            ]
        )
    suites = ", ".join(dict.fromkeys(evaluation.suite for evaluation in evaluations))
    head = [
        "task",
        "model",
        "metric",
        "score",
        "95% interval",
        "detects",
        "chance",
        "scored",
        "unscored",
        "errors",
    ]
    texts = any(task.ask == "text" for _, _, task in shown)
    table(f"{suites} (percent{'; of texts bits per byte, lower is better' if texts else ''})", head, rows)
    print(
        "detects: the smallest true difference to another model that these items find 8 times of 10, in a comparison "
        "on this task alone"
    )
    for note in [note for _, evaluation, task in shown for note in notes(evaluation.name, task)]:
        print(note)


def told(value: float | None, task: TaskResult) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if task.ask == "text" else f"{100 * value:.1f}"


def notes(model: str, task: TaskResult) -> list[str]:
    """What must be said beside a score: how far the unscored items could move it, and what went wrong."""
    entry, said = task.summary, []
    undecided = [record for record in task.records if record["score"] is None and not record["error"]]
    failed = [record for record in task.records if record["error"]]
    if few := too_few(task.scores("")):
        said.append(f"{task.name}, {model}: too few to compare, whatever the interval ({few})")
    if undecided:
        bounds = f"{told(entry['worst'], task)} if they were wrong, {told(entry['best'], task)} if right"
        why = clip(undecided[0]["why"])
        said.append(f"{task.name}, {model}: {len(undecided):,} could not be scored ({why}); {bounds}")
    if failed:
        how = "left out" if task.ask == "text" else "counted as wrong"
        said.append(
            f"{task.name}, {model}: {len(failed):,} ended in an error, {how} ({clip(failed[0]['error'])}); "
            "the same command tries again"
        )
    return said


def clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CLIPPED else line[: CLIPPED - 3] + "..."
