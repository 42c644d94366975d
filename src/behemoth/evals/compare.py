"""Two evaluations side by side: task by task which model is better, and the very items on which they part.

Both must have been asked the same: the same suite, the same tasks (by the hash of all that is asked and how it
is graded) and the same items. Anything else is refused and named, for a comparison on whatever two evaluations
happen to share compares nothing. An item that one of them could not score is left out for both, and counted.

All tasks are one family (Holm), so that of twenty tasks with nothing to find none is reported as found, about 19
times of 20. What `compare_evaluations` returns is plain data: it is written as JSON, printed here, and drawn
by behemoth.report.compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.logs import table
from behemoth.base.units import counted, some
from behemoth.evals.records import Evaluation, TaskResult
from behemoth.stats.intervals import LEVEL, Interval
from behemoth.stats.paired import Comparison, Scores, compare_many, score_interval

EXAMPLES = 100  # items kept of each task and each direction: enough to read, and the file stays small
DIRTY = {"dirty", "partly dirty"}  # marks of an item that was found in the training data
WHOLE = 8_000  # characters kept of one text

Marks = Mapping[str, Mapping[str, str]]  # task -> item -> what was found of it in the training data


def compare_evaluations(
    a: Evaluation, b: Evaluation, marks: Mapping[str, Marks] | None = None, *, examples: int = EXAMPLES
) -> dict[str, Any]:
    """Every task that `a` and `b` were asked, compared item by item.

    marks: of "a" and of "b" what `contamination.read_verdicts` found in its training data; nothing where nobody could
    look. With them a task is also compared on the items that are clean for each that was looked up, and on those
    that are not for one, each alone. InputError, with every reason, unless both were asked the same items.

    {"a", "b": {"name", "spec", "sha256", "how"}, "suite", "level", "sentence", "remarks": [sentence],
     "looked_into": [name], "counts": {"better", "worse", "cannot tell"},
     "tasks": [{"task", "metric", "ask", "sha256", "unit", "chance", "items", "left_out",
                "a", "b": {"score", "low", "high", "items", "scored", "unscored", "errors"},
                "difference", "low", "high", "level", "p_value", "verdict", "sentence", "reason", "enough",
                "method", "more_items",
                "agreement"?: {"both", "a", "b", "neither"},
                "contamination"?: {"clean" | "dirty": {"items", "a", "b", "difference", ...}},
                "differing": {"a", "b", "equal"},
                "examples": [{"item", "better", "prompt", "reference", "gap", "a", "b": {"output", "read",
                              "score", "why", "error", "logprob", "truncated"}}]}]}

    A difference is positive where `a` is better. Scores and differences in "points" are fractions of 1. The scores'
    intervals have the level of the whole; a difference's has the level at which Holm tested it.
    """
    check_same(a, b)
    names = names_of(a, b)
    pairs = {name: shared(a.tasks[name].scores(names[0]), b.tasks[name].scores(names[1])) for name in a.tasks}
    found = compare_family(pairs)
    marks = {side: known for side, known in (marks or {}).items() if known}
    subsets = compare_subsets(pairs, list(marks.values()))
    looked_into = [name for side, name in zip("ab", names, strict=True) if side in marks]
    tasks = [
        describe_task(a.tasks[name], b.tasks[name], pair, found.get(name), subsets.get(name), examples)
        for name, pair in pairs.items()
    ]
    alike = same_weights(a, b)
    for task in tasks:
        if alike and not differ(task):
            task["sentence"] = "nothing to tell apart: the same weights, and no item on which they differ"
    return {
        "a": describe_model(a, names[0]),
        "b": describe_model(b, names[1]),
        "suite": a.suite,
        "level": LEVEL,
        "sentence": headline(names, tasks, alike),
        "remarks": remarks(names, tasks, looked_into, alike) + asked_otherwise(a, b, names),
        "looked_into": looked_into,
        "counts": {"better": 0, "worse": 0, "cannot tell": 0} | Counter(task["verdict"] for task in tasks),
        "tasks": tasks,
    }


def compare_family(pairs: Mapping[str, tuple[Scores, Scores]]) -> dict[str, Comparison]:
    """The tasks that have items enough to say anything, compared as one family."""
    enough = {name: pair for name, pair in pairs.items() if len(pair[0].items) > 1}
    return dict(zip(enough, compare_many(list(enough.values())), strict=True)) if enough else {}


def show(results: Mapping[str, Any]) -> None:
    """Print what `compare_evaluations` returned."""
    a, b = results["a"]["name"], results["b"]["name"]
    rows = [
        [
            task["task"],
            *(told(task[side]["score"], task) for side in "ab"),
            told(task["difference"], task, "+"),
            told_interval(task),
            task["verdict"],
        ]
        for task in results["tasks"]
    ]
    head = ["task", a, b, "difference", "interval", f"{a} is"]
    table(f"{a} against {b}, {results['suite']}", head, rows)
    print("\n".join([results["sentence"], *results["remarks"]]))
    if len(results["tasks"]) > 1:
        print("\n".join(f"{task['task']}: {task['sentence']}." for task in results["tasks"]))


def told(value: float | None, task: Mapping[str, Any], sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value * 100:{sign}.1f}" if task["unit"] == "points" else f"{value:{sign}.3f}"


def told_interval(task: Mapping[str, Any]) -> str:
    return (
        " to ".join(told(task[end], task, "+") for end in ("low", "high")) if task["low"] is not None else ""
    )


# ------------------------------------------------------------------------------------ the same was asked of both


def check_same(a: Evaluation, b: Evaluation) -> None:
    """Raise InputError with everything in which the two evaluations were asked different things."""
    names = names_of(a, b)
    problems = []
    if a.suite != b.suite:
        problems.append(f"{names[0]} was asked the suite {a.suite}, {names[1]} the suite {b.suite}")
    for name, one, other in ((names[0], a, b), (names[1], b, a)):
        if only := [task for task in one.tasks if task not in other.tasks]:
            problems.append(f"{counted(len(only), 'task')} only of {name}: {some([*map(repr, only)])}")
    for task in a.tasks:
        if task in b.tasks and (problem := difference_of(a.tasks[task], b.tasks[task], names)):
            problems.append(f"{task}: {problem}")
    if not a.tasks:
        problems.append(f"{names[0]} has no finished task")
    if problems:
        raise InputError(
            f"{names[0]} and {names[1]} were not asked the same, so they cannot be compared\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\n  evaluate both with the same suite, and let both finish"
        )


def difference_of(a: TaskResult, b: TaskResult, names: tuple[str, str]) -> str:
    """In what two records of one task differ; "" where they may be compared."""
    items = [[record["item"] for record in task.records] for task in (a, b)]
    said = []
    for name, task in zip(names, items, strict=True):
        if twice := [item for item, times in Counter(task).items() if times > 1]:
            said.append(f"{counted(len(twice), 'item')} twice in {name}: {some([*map(repr, twice)])}")
    for name, one, other in ((names[0], items[0], items[1]), (names[1], items[1], items[0])):
        known = set(other)
        if only := [item for item in one if item not in known]:
            said.append(f"{counted(len(only), 'item')} only of {name}: {some([*map(repr, only)])}")
    if a.sha256 != b.sha256:
        said.append(f"another version of the task ({a.sha256[:12]} and {b.sha256[:12]})")
    if a.metric != b.metric:
        said.append(f"another metric ({a.metric} and {b.metric})")
    return "; ".join(said)


def names_of(a: Evaluation, b: Evaluation) -> tuple[str, str]:
    """The models' names, told apart where they are the same: by their weights, or as the first and the second."""
    if a.name != b.name:
        return a.name, b.name
    if a.sha256 and b.sha256 and a.sha256 != b.sha256:
        return f"{a.name} ({a.sha256[:7]})", f"{b.name} ({b.sha256[:7]})"
    return f"{a.name} (1)", f"{b.name} (2)"


def shared(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Both on the items that both could be scored on, in the order of `a`."""
    common = scored(a) & scored(b)
    order = [item for item in a.items if item in common]
    a, b = take(a, order), take(b, order)
    clusters = a.clusters or b.clusters  # one has none where the items that name a passage went unscored
    return replace(a, clusters=clusters), replace(b, clusters=clusters)


def scored(scores: Scores) -> set[str]:
    return {item for item, value in zip(scores.items, scores.values, strict=True) if math.isfinite(value)}


def take(scores: Scores, items: Sequence[str]) -> Scores:
    place = {item: i for i, item in enumerate(scores.items)}
    index = np.array([place[item] for item in items], np.int64)
    return replace(
        scores,
        items=tuple(items),
        values=scores.values[index],
        clusters=tuple(scores.clusters[i] for i in index) if scores.clusters else (),
        sizes=None if scores.sizes is None else scores.sizes[index],
    )


# --------------------------------------------------------------------------------------------------- one task


def describe_task(
    a: TaskResult,
    b: TaskResult,
    pair: tuple[Scores, Scores],
    found: Comparison | None,
    subsets: dict[str, Any] | None,
    examples: int,
) -> dict[str, Any]:
    items = len(pair[0].items)
    return {
        "task": a.name,
        "metric": a.metric,
        "ask": a.ask,
        "sha256": a.sha256,
        "unit": pair[0].unit,
        "chance": a.chance,
        "items": items,
        "left_out": len(a.records) - items,
        "a": describe_score(a, pair[0]),
        "b": describe_score(b, pair[1]),
        **(describe_comparison(found) if found else too_few(items, len(a.records))),
        **({"agreement": agreement(*pair)} if is_right_or_wrong(pair) else {}),
        **({"contamination": subsets} if subsets else {}),
        **differing(a, b, pair, examples),
    }


def describe_score(task: TaskResult, scores: Scores) -> dict[str, Any]:
    """A model's score on the items of the comparison, and what became of all that it was asked."""
    unscored = len(task.records) - len(scored(task.scores(scores.name)))
    return {
        **describe_interval(scores),
        "items": len(task.records),
        "scored": len(task.records) - unscored,
        "unscored": unscored,
        "errors": sum(bool(record["error"]) for record in task.records),
    }


def describe_interval(scores: Scores) -> dict[str, float | None]:
    if len(scores.items) < 2:
        return {"score": None, "low": None, "high": None}
    interval: Interval = score_interval(scores)
    return {"score": interval.estimate, "low": interval.low, "high": interval.high}


def describe_comparison(found: Comparison) -> dict[str, Any]:
    return {
        "difference": found.difference.estimate,
        "low": found.difference.low,
        "high": found.difference.high,
        "level": found.difference.level,
        "p_value": found.p_value,
        "verdict": found.verdict,
        "sentence": found.sentence,
        "reason": found.reason,
        "enough": found.enough,
        "method": found.method,
        "more_items": found.more_items,
    }


def too_few(items: int, asked: int) -> dict[str, Any]:
    """What is said of a task that hardly any item could be scored of."""
    numbers = dict.fromkeys(("difference", "low", "high", "level", "p_value", "more_items"))
    sentence = f"cannot tell: {counted(items, 'item')} of {asked:,} could be scored for both"
    few = {"verdict": "cannot tell", "enough": False, "reason": "too few items", "method": ""}
    return {**numbers, **few, "sentence": sentence}


def describe_model(evaluation: Evaluation, name: str) -> dict[str, Any]:
    return {"name": name, "spec": evaluation.spec, "sha256": evaluation.sha256, "how": evaluation.how}


def is_right_or_wrong(pair: tuple[Scores, Scores]) -> bool:
    return all(scores.sizes is None and np.isin(scores.values, (0, 1)).all() for scores in pair)


def agreement(a: Scores, b: Scores) -> dict[str, int]:
    """How many items both have right, only `a`, only `b`, and neither."""
    right, other = a.values == 1, b.values == 1
    return {
        "both": int((right & other).sum()),
        "a": int((right & ~other).sum()),
        "b": int((other & ~right).sum()),
        "neither": int((~right & ~other).sum()),
    }


# ------------------------------------------------------------------------------------- clean items, and the others


def compare_subsets(
    pairs: Mapping[str, tuple[Scores, Scores]], marks: Sequence[Marks]
) -> dict[str, dict[str, Any]]:
    """Each marked task on its clean items alone and on the dirty ones alone; each kind is a family of its own."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("clean", "dirty"):
        parts = {}
        for name, (a, b) in pairs.items():
            if known := [mark[name] for mark in marks if name in mark]:
                items = [item for item in a.items if kind_of(item, known) == kind]
                parts[name] = (take(a, items), take(b, items))
                found.setdefault(name, {})[kind] = {"items": len(items)}
        for name, comparison in compare_family(parts).items():
            for side, scores in zip("ab", parts[name], strict=True):
                found[name][kind][side] = describe_interval(scores)
            found[name][kind] |= describe_comparison(comparison)
    return found


def kind_of(item: str, marks: Sequence[Mapping[str, str]]) -> str:
    """ "dirty" where any of the item was found, "clean" where nothing was, "" where it was too short to look for."""
    found = {mark.get(item, "") for mark in marks}
    if found & DIRTY:
        return "dirty"
    return "clean" if found == {"clean"} else ""


# ----------------------------------------------------------------------------------------- the items that differ


def differing(a: TaskResult, b: TaskResult, pair: tuple[Scores, Scores], examples: int) -> dict[str, Any]:
    """How many items either model does better on, and the most telling ones of each, the widest gap first.

    Of texts it is the difference in bits that counts, for that is the document's share in the difference of
    the whole; equal gaps stay in the order of the task.
    """
    lower_is_better = pair[0].unit == "bits per byte"
    gaps = (pair[0].values - pair[1].values) * (-1 if lower_is_better else 1)
    order = np.argsort(-np.abs(gaps), kind="stable")
    records = [{record["item"]: record for record in task.records} for task in (a, b)]
    shown = {}
    for side, chosen in (("a", order[gaps[order] > 0]), ("b", order[gaps[order] < 0])):
        shown[side] = [
            example(records[0][item], records[1][item], side, float(gaps[i]), values_of(pair, i))
            for i in chosen[:examples].tolist()
            for item in [pair[0].items[i]]
        ]
    counts = {
        "a": int((gaps > 0).sum()),
        "b": int((gaps < 0).sum()),
        "equal": int((gaps == 0).sum()),
    }
    return {"differing": counts, "examples": shown["a"] + shown["b"]}


def values_of(pair: tuple[Scores, Scores], i: int) -> tuple[float, float]:
    """Both models' scores on one item: a fraction of 1, or bits per byte of the document."""
    a, b = (float(scores.values[i] / (1 if scores.sizes is None else scores.sizes[i])) for scores in pair)
    return a, b


def example(
    a: Mapping[str, Any], b: Mapping[str, Any], better: str, gap: float, values: tuple[float, float]
) -> dict[str, Any]:
    sides = {
        side: {
            **{key: ends_of(record.get(key)) for key in ("output", "read", "why", "error")},
            "score": value,
            "logprob": record["metrics"].get("logprob"),
            "truncated": bool(record.get("truncated")),
        }
        for side, record, value in (("a", a, values[0]), ("b", b, values[1]))
    }
    return {
        "item": a["item"],
        "better": better,
        "prompt": ends_of(a["prompt"]),
        "reference": ends_of(a["answer"]),
        "gap": gap,
        **sides,
    }


def ends_of(value: object) -> str:
    """A text as the file keeps it: whole, or its two ends with what was left out between said."""
    said = "" if value is None else str(value)
    if len(said) <= WHOLE:
        return said
    half = WHOLE // 2
    return f"{said[:half]}\n[{len(said) - 2 * half:,} characters left out]\n{said[-half:]}"


# ------------------------------------------------------------------------------------------------ in plain words


def headline(names: tuple[str, str], tasks: Sequence[Mapping[str, Any]], alike: str = "") -> str:
    """The strongest statement that the verdicts allow, in one sentence. alike: the hash of both, where it is one."""
    a, b = names
    if alike and not any(map(differ, tasks)):
        return f"{a} and {b} are the same weights ({alike[:12]}) and answer alike: there is nothing to tell apart."
    if len(tasks) == 1:
        return whole(tasks[0]["sentence"])
    better, worse, open_ = (
        [task["task"] for task in tasks if task["verdict"] == verdict]
        for verdict in ("better", "worse", "cannot tell")
    )
    total = len(tasks)
    if not better and not worse:
        return f"Cannot tell {a} and {b} apart on any of {total} tasks."
    if better and worse:
        said = f"{a} is better than {b} on {len(better)} of {total} tasks and worse on {len(worse)}"
        return said + (f"; on the other {len(open_)} it cannot be told." if open_ else ".")
    word, found = ("better", better) if better else ("worse", worse)
    if not open_:
        return f"{a} is {word} than {b} on all {total} tasks."
    rest = "the other one" if len(open_) == 1 else f"the other {len(open_)}"
    return f"{a} is {word} than {b} on {len(found)} of {total} tasks; on {rest} it cannot be told."


def remarks(
    names: tuple[str, str], tasks: Sequence[Mapping[str, Any]], looked_into: Sequence[str], alike: str = ""
) -> list[str]:
    """What may be concluded, and what must be known before anything is."""
    verdicts, said = {task["verdict"] for task in tasks}, []
    nothing = bool(alike) and not any(map(differ, tasks))  # to tell apart, which the headline says
    if alike and not nothing:
        said.append(f"Both are the same weights ({alike[:12]}): what differs comes from how they were run.")
    if verdicts == {"cannot tell"} and not alike:
        said.append("That is not evidence that they are equal: the intervals say how much may hide.")
    elif {"better", "worse"} <= verdicts:
        said.append(
            f"Neither is better overall: whether to prefer {names[0]} or {names[1]} depends on the task."
        )
    if len(tasks) > 1 and not nothing:
        said.append(
            "All tasks were judged together: the chance of a wrong verdict among them is about 5%, over the verdicts "
            "on whole tasks."
        )
    said += [clean_alone(task) for task in tasks if needs_dirty_items(task)]
    if len(looked_into) == 1:
        (known,) = looked_into
        unknown = names[1 - names.index(known)]
        said.append(
            f"Items were looked up in the training data of {known} only: what {unknown} was trained on is not known "
            "here."
        )
    if left_out := sum(task["left_out"] for task in tasks):
        are = "is" if left_out == 1 else "are"
        said.append(
            f"{counted(left_out, 'item')} could not be scored for one of the two and {are} left out for both."
        )
    for side, name in zip("ab", names, strict=True):
        if errors := sum(task[side]["errors"] for task in tasks if task["ask"] != "text"):
            said.append(f"{counted(errors, 'item')} of {name} ended in an error and counted as wrong.")
    return said


def asked_otherwise(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> list[str]:
    """Rounding differs between precisions and devices, and a server words its prompts: few answers move, but some."""
    if a.how == b.how:
        return []
    return [f"{names[0]} was asked {a.how}, {names[1]} {b.how}: a small difference may come from that alone."]


def needs_dirty_items(task: Mapping[str, Any]) -> bool:
    """Whether there is a verdict on all items that the clean ones do not bear out."""
    clean = task.get("contamination", {}).get("clean")
    return clean is not None and task["verdict"] not in ("cannot tell", clean.get("verdict"))


def clean_alone(task: Mapping[str, Any]) -> str:
    clean = task["contamination"]["clean"]
    few = "are too few to say" if not clean.get("enough") else "do not bear it out"
    return f"{task['task']}: the verdict rests on all items; the clean ones alone {few}."


def same_weights(a: Evaluation, b: Evaluation) -> str:
    """The hash of both, where it is known and one."""
    return a.sha256 if a.sha256 == b.sha256 else ""


def differ(task: Mapping[str, Any]) -> bool:
    return bool(task["differing"]["a"] or task["differing"]["b"])


def whole(sentence: str) -> str:
    """A verdict as a sentence of its own. A model's name keeps its first letter as it is."""
    return ("C" + sentence[1:] if sentence.startswith("cannot tell") else sentence) + "."
