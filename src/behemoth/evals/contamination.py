"""Which items of an evaluation stood in the training data, and what the score is without them.

The text of an item is its prompt and its right answer. It is looked up in the index of every stage of training
(`data/overlap.py`, which says what each verdict means), and the score is told for all items and for each verdict,
with its interval: never the filtered one alone, and "cannot tell" without an interval where a group is too small to
say anything.

What a task asks every time is no evidence against one item. 8-grams that at least three items share, and one in
a hundred, are left out of the look-up: instructions, worked examples, "which of the following statements". Items
of one `cluster` count as one here, so a passage with many questions stays. An item that holds nothing else is
"too short".

Left out: solutions that are neither in the prompt nor the answer; the reasons a model may know an item by
other words. Whether known items score better because they are known is not decided here, only shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import read_jsonl, write_atomic
from behemoth.base.logs import progress, table
from behemoth.data.overlap import Overlap, Verdict, kept_grams
from behemoth.evals.records import Evaluation, Record, TaskResult, read_evaluation, write_summary
from behemoth.stats.paired import too_few

FILE = "contamination.jsonl"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SHARED_BY, SHARED_PART = 3, 0.01  # items, and part of them, that make an 8-gram the task's own
SHOWN = 3  # documents named with an item


def annotate(directory: Path, overlap: Overlap) -> Evaluation:
    """Judge every item of the evaluation in `directory`: contamination.jsonl holds a line for each, and
    evaluation.json the scores by verdict, which the returned evaluation carries too."""
    evaluation = read_evaluation(directory)
    rows, tasks = [], {}
    with progress(
        "looking for known items", total=sum(len(t.records) for t in evaluation.tasks.values())
    ) as step:
        for name, task in evaluation.tasks.items():
            found = []
            for row in judged(task, overlap):
                found.append(row)
                step(1)
            tasks[name] = replace(task, contamination=by_verdict(task, found, overlap.stages))
            rows += found
    marked = replace(evaluation, tasks=tasks)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(directory / FILE, "".join(lines).encode(errors="replace"))
    write_summary(directory, marked)
    return marked


def judged(task: TaskResult, overlap: Overlap) -> Iterator[Record]:
    """What contamination.jsonl says of each item, in the order of the task."""
    texts = [text_of(record) for record in task.records]
    own = shared_grams(texts, [record["cluster"] or record["item"] for record in task.records])
    for record, text in zip(task.records, texts, strict=True):
        found = overlap.find(text, ignore=own)
        yield {
            "task": task.name,
            "item": record["item"],
            "verdict": found.verdict,
            "words": found.words,
            "known_words": found.covered,
            "share": round(found.share, 4),
            "longest_run": found.longest,
            "documents": [asdict(match) for match in found.matches[:SHOWN]],
        }


def text_of(record: Record) -> str:
    """What would have to be in the training data for the item to be known."""
    return f"{record['prompt']} {record['answer']}"


def shared_grams(texts: Sequence[str], clusters: Sequence[str]) -> np.ndarray:
    """The 8-grams that belong to the task and not to an item, sorted."""
    _, cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    grams, text, _, _ = kept_grams(texts)
    holder = cluster[text]
    order = np.lexsort((holder, grams))
    grams, holder = grams[order], holder[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (holder[1:] != holder[:-1])
    found, count = np.unique(grams[new], return_counts=True)
    return found[count >= max(SHARED_BY, math.ceil(SHARED_PART * (cluster.max(initial=-1) + 1)))]


def by_verdict(task: TaskResult, rows: Sequence[Record], stages: Sequence[str]) -> dict[str, Any]:
    """The score of all items and of those of each verdict that occurs."""
    verdicts = [row["verdict"] for row in rows]
    groups = {"all": task.records} | {
        verdict: [record for record, v in zip(task.records, verdicts, strict=True) if v == verdict]
        for verdict in VERDICTS
    }
    parts = {name: _part(replace(task, records=records)) for name, records in groups.items() if records}
    return {"stages": list(stages), "groups": parts}


def _part(task: TaskResult) -> dict[str, Any]:
    scores = task.scores("")
    few = too_few(scores)
    interval = None if few else task.interval
    return {
        "items": len(task.records),
        "scored": len(scores.items),
        "score": task.summary["score"],
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "note": f"cannot tell: {few}" if few else "",
    }


def read_verdicts(directory: Path) -> dict[str, dict[str, Verdict]]:
    """The verdict of every item, by task, of an evaluation that was annotated; {} where it was not."""
    found: dict[str, dict[str, Verdict]] = {}
    for row in read_jsonl(directory / FILE):
        if row["verdict"] not in VERDICTS:
            raise InputError(
                f"{directory / FILE}: verdict {row['verdict']!r}; it is one of {', '.join(VERDICTS)}"
            )
        found.setdefault(row["task"], {})[row["item"]] = row["verdict"]
    return found


def show(evaluation: Evaluation) -> None:
    """Print the scores by verdict of every task that was looked up; nothing where none was."""
    rows = [
        [name, group, f"{part['items']:,}", *_told(task, part), part["note"]]
        for name, task in evaluation.tasks.items()
        if task.contamination
        for group, part in task.contamination["groups"].items()
        if group != "all" or len(task.contamination["groups"]) > 2  # where all are alike, that line says it
    ]
    if rows:
        stages = next(t.contamination["stages"] for t in evaluation.tasks.values() if t.contamination)
        title = f"{evaluation.name}: items found in the text of {' and '.join(stages)}"
        table(title, ["task", "items that are", "items", "score", "95% interval", ""], rows)


def _told(task: TaskResult, part: dict[str, Any]) -> tuple[str, str]:
    scale, digits = (1, 3) if task.ask == "text" else (100, 1)
    score, low, high = (
        None if part[k] is None else f"{scale * part[k]:.{digits}f}" for k in ("score", "low", "high")
    )
    return score or "-", "" if low is None else f"{low} to {high}"
