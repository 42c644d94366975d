"""What post-training was worth: the model of every stage on the same exam, and on the held-out text.

Each is compared with the one before it, item by item; all differences of a table are told with the interval that makes
them. The exam is asked as a person would ask it, in the chat template, of the base model too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from behemoth import practice
from behemoth.base.files import read_json, write_json
from behemoth.base.logs import table
from behemoth.evals.compare import compare_evaluations
from behemoth.evals.records import Evaluation
from behemoth.model.config import TEACHER
from behemoth.model.open import open_model
from behemoth.questions import HELD_OUT, beginnings, put_to
from behemoth.report.compare import write_compare
from behemoth.rundir import Run
from behemoth.tasks.suite import Suite
from behemoth.train.machine import device

EXAM = Path("evals") / "exam"  # in a run: what every stage's model answered
TABLE = Path("evals") / "assistant.json"
BASE = "base"


def evaluate_assistant(job: Run) -> None:
    """Ask every stage's model the exam, and write the table and a page that compares the first with the last."""
    recipe = job.settled.recipe
    exam = Suite("exam", practice.tasks_of(recipe.assistant.exam, "test", recipe.seed))
    start = recipe.assistant.start or TEACHER
    found = [
        on_exam(job, name, member, exam) for name, member in [(BASE, start), *((s, s) for s in recipe.stages)]
    ]
    if not found[0].tasks:
        return
    steps = [(b, a, compare_evaluations(b, a)) for a, b in pairwise(found)]
    whole = compare_evaluations(found[-1], found[0])
    all_of_it = [(found[-1], found[0], whole)] if len(steps) > 1 else []
    write_json(job.directory / TABLE, as_table(found, [*steps, *all_of_it]))
    write_compare(job.directory / f"compare-{found[-1].name}-{BASE}.html", whole)


def on_exam(job: Run, name: str, member: str, exam: Suite) -> Evaluation:
    """One model on the exam, and on the held-out text where the run has any."""
    spec, tokenizer, train = f"{job.directory}:{member}", job.tokenizer(), job.settled.train
    return put_to(
        open_model(spec, device=device()),
        tokenizer,
        name,
        spec,
        exam,
        job.directory / EXAM,
        precision=train.precision,
        chat=True,
        documents=beginnings(job.corpus(), tokenizer) if (job.directory / "data").is_dir() else (),
        context=train.context_length,
    )


def as_table(found: Sequence[Evaluation], steps: Sequence[tuple[Evaluation, Evaluation, Any]]) -> Any:
    """What `show` prints and the report draws."""
    told = {evaluation.name: scores_of(evaluation, steps) for evaluation in found}
    return {
        "exam": [name for name in found[0].tasks if name != HELD_OUT],
        "models": [
            {
                "name": evaluation.name,
                "spec": evaluation.spec,
                "sha256": evaluation.sha256,
                "scores": {name: score for name, score in told[evaluation.name].items() if name != HELD_OUT},
                "bits_per_byte": told[evaluation.name].get(HELD_OUT, {}).get("estimate"),
            }
            for evaluation in found
        ],
        "steps": [
            {"from": a.name, "to": b.name, **{key: task[key] for key in STEP}}
            for b, a, result in steps
            for task in result["tasks"]
            if task["task"] != HELD_OUT
        ],
        "held_out": [
            {"from": a.name, "to": b.name, **worse(task)}
            for b, a, result in steps
            for task in result["tasks"]
            if task["task"] == HELD_OUT
        ],
    }


STEP = ("task", "difference", "low", "high", "verdict", "items")


def scores_of(evaluation: Evaluation, steps: Sequence[tuple[Evaluation, Evaluation, Any]]) -> dict[str, Any]:
    """Each task's score with its interval, from the first comparison that the model takes part in."""
    for b, a, result in steps:
        for side, one in (("a", b), ("b", a)):
            if one is evaluation:
                return {
                    task["task"]: {
                        "estimate": task[side]["score"],
                        **{key: task[side][key] for key in ("low", "high", "items")},
                    }
                    for task in result["tasks"]
                }
    return {}


def worse(task: dict[str, Any]) -> dict[str, Any]:
    """By how many percent more bits the later model needs, with the interval of the difference."""
    before = task["b"]["score"]
    ends = {"worse_percent": task["difference"], "low_percent": task["high"], "high_percent": task["low"]}
    found = {
        key: None if end is None or not before else round(-100 * end / before, 2) for key, end in ends.items()
    }
    return found | {"verdict": task["verdict"]}


def show(found: dict[str, Any]) -> None:
    """The way from base to assistant: every model's scores, and what each stage added."""
    steps = {(step["to"], step["task"]): step for step in reversed(found["steps"])}
    lost = {entry["to"]: entry for entry in reversed(found["held_out"])}
    with_text = found["models"][0]["bits_per_byte"] is not None
    rows = []
    for number, model in enumerate(found["models"]):
        row = [model["name"]]
        for task in found["exam"]:
            score = model["scores"][task]
            row.append(f"{score['estimate']:.1%} ({score['low']:.1%} to {score['high']:.1%})")
            row.append(change(steps[model["name"], task]) if number else "")
        if with_text:
            row += [f"{model['bits_per_byte']:.3f}", more_bits(lost[model["name"]]) if number else ""]
        rows.append(row)
    heads = [head for task in found["exam"] for head in (task, "points more than before")]
    heads += ["held-out bits/byte", "change"] if with_text else []
    items = ", ".join(f"{found['models'][0]['scores'][task]['items']} of {task}" for task in found["exam"])
    table(f"from base to assistant{': the exam, ' * bool(items)}{items}", ["model", *heads], rows)
    print("each model against the one before, item by item; what is compared of two is one family (Holm)")
    last = found["models"][-1]["name"]
    for step in found["steps"]:
        if (step["from"], step["to"]) == (BASE, last):
            print(f"{last} is {step['verdict']} than {BASE}, {step['task']}: {change(step)} points")


def more_bits(entry: dict[str, Any]) -> str:
    if entry["worse_percent"] is None:
        return "cannot tell"
    return f"{entry['worse_percent']:+.1f}% ({entry['low_percent']:+.1f} to {entry['high_percent']:+.1f})"


def change(step: dict[str, Any]) -> str:
    if step["difference"] is None:
        return "cannot tell"
    return (
        f"{100 * step['difference']:+.1f} ({100 * step['low']:+.1f} to {100 * step['high']:+.1f})"
        + ", cannot tell" * (step["verdict"] == "cannot tell")
    )


def read(directory: Path) -> dict[str, Any] | None:
    """The table of a run, if it has one."""
    path = directory / TABLE
    return read_json(path) if path.exists() else None
