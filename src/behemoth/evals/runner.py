"""Ask a model everything in a suite, and lose nothing on the way.

The items of a task are cut into batches, longest first, by a rule that looks at nothing but the items; so an
evaluation that was interrupted has the same batches when it goes on, and ends as if nothing had happened, bit for
bit. Each finished batch is one line of TASK.jsonl.working, on the disk before the next batch begins. When the last
one is there, TASK.jsonl is written in the order of the task, then evaluation.json, and the working file goes.

Work is gone on with, and a finished task is believed, only where task, model, batches and the precision of the
numbers are the ones of now, and the records those that were written. What does not fit is kept under another name,
and said. The same command again asks nothing but the items that ended in an error.

Left out: several processes on one evaluation. A second one is refused.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import append_jsonl, fsync_path, read_jsonl, write_atomic
from behemoth.base.logs import progress, say
from behemoth.evals.backends import Backend, Failed, Generated, Likelihood
from behemoth.evals.records import (
    EVALUATION,
    Evaluation,
    Record,
    TaskResult,
    read_summary,
    read_task,
    records_path,
    write_records,
    write_summary,
)
from behemoth.evals.results import file_name
from behemoth.tasks.task import Item, Task, verdict

if TYPE_CHECKING:
    from behemoth.stats.intervals import Interval
    from behemoth.tasks.suite import Suite

GIVE_UP = 20  # failures in a row: whatever it is, it is not the items
WRITING = 30  # characters read in the time that writing one token takes, about: for the time left
METRICS = {
    "choice": ("accuracy", "accuracy_norm"),
    "continuation": ("accuracy",),
    "text": ("bits_per_byte",),
}


def evaluate(backend: Backend, spec: str, suite: Suite, out: Path, *, name: str = "") -> Evaluation:
    """Ask `backend` every task of `suite`, in `out`/NAME/; whatever is finished there is not asked again.

    spec: what a person calls the model, for the record. name: of the directory; by default the backend's, which
    two models of one command may share. InputError: the suite cannot be asked; the directory holds another
    model's evaluation or is in use; the model answers nothing at all.
    """
    check_suite(suite)
    directory = out / file_name(name or backend.name)
    fresh = Evaluation(backend.name, backend.sha256, spec, suite.name, {}, backend.kind)
    fresh = replace(fresh, precision=backend.precision, device=backend.device, route=backend.route)
    make_room(directory, fresh)
    with the_only_one(directory):
        before, entries = read_summary(directory) if (directory / EVALUATION).exists() else (fresh, {})
        trusted, others = what_is_there(directory, suite, entries, fresh.sha256)
        works = [take_up(directory, task, backend, trusted.get(task.name)) for task in suite.tasks]
        known = replace(fresh, tasks=others | trusted)
        if all(work.records is None for work in works):  # nothing is asked: it was finished then
            known = replace(known, version=before.version, finished=before.finished)
        write_summary(directory, known)
        left = sum(effort(work.task, batch) for work in works for batch in work.batches)
        with progress(f"evaluating {backend.name}", left) as advance:
            for work in works:
                if work.records is not None:
                    known.tasks[work.task.name] = finish(directory, backend, spec, work, advance)
                    write_summary(directory, known)
                    work.path.unlink()
        if not known.finished:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            known = replace(known, version=version("behemoth-lab"), finished=now)
        asked = {task.name: known.tasks[task.name] for task in suite.tasks}
        write_summary(directory, replace(known, tasks=others | asked))
    return replace(known, tasks=asked)


def quick(backend: Backend, suite: Suite) -> list[tuple[Task, Interval]]:
    """The score of every task, and no files: for a look during training. A task that has no interval is left out."""
    check_suite(suite)
    found = []
    for task in suite.tasks:
        records = [
            record for batch in cut(task, task.items, backend.batch) for record in ask(backend, task, batch)
        ]
        interval = result_of(task, records).interval
        if interval:
            found.append((task, interval))
    return found


def names_of(models: Sequence[tuple[str, Backend]], runs: Sequence[Path | None]) -> list[str]:
    """A directory name for each (spec, backend) of a command, where `runs` says which run each is of, if any.

    It is the backend's; RUN-MEMBER in a run, for every run has a teacher; the spec where two share even that.
    """
    shared = [
        file_name(f"{run.resolve().name}-{backend.name}" if run else backend.name)
        for run, (_, backend) in zip(runs, models, strict=True)
    ]
    names = [
        name if shared.count(name) == 1 else file_name(spec)
        for name, (spec, _) in zip(shared, models, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(
            f"two of the models would be written under the name {twice}; evaluate them one by one"
        )
    return names


def check_suite(suite: Suite) -> None:
    """Raise InputError where two tasks would share a file, or a task wants a metric that its items do not have."""
    files: dict[str, str] = {}
    for task in suite.tasks:
        other = files.setdefault(file_name(task.name), task.name)
        if other is not task.name:
            raise InputError(
                f"{suite.name}: the tasks {other} and {task.name} would share a file; rename one"
            )
        if task.metric not in METRICS.get(task.ask, (task.metric,)):
            allowed = " or ".join(METRICS[task.ask])
            raise InputError(f"task {task.name}: metric = {task.metric!r}; ask = {task.ask!r} has {allowed}")


# ------------------------------------------------------------------------------------------ what is there already


def make_room(directory: Path, fresh: Evaluation) -> None:
    """Make the directory; first move away one that is of earlier weights, of another precision, or broken."""
    if (directory / EVALUATION).exists() or any(directory.glob("*.jsonl")):
        with the_only_one(directory):
            try:
                earlier, _ = read_summary(directory)
            except InputError as error:  # no summary beside the records, or a broken one
                set_aside(directory, str(error))
            else:
                same = same_weights(earlier, fresh)
                if same and earlier.how == fresh.how:
                    return
                if not same and earlier.spec != fresh.spec:
                    raise InputError(
                        f"{directory} holds the evaluation of another model, {earlier.spec}; "
                        "give another directory (--out), or move that one away"
                    )
                other = f"was asked {earlier.how} then, and {fresh.how} now"
                if not same:
                    other = f"had other weights then ({earlier.sha256[:12]})"
                set_aside(directory, f"{fresh.spec} {other}")
    directory.mkdir(parents=True, exist_ok=True)


def what_is_there(
    directory: Path, suite: Suite, entries: dict[str, dict[str, Any]], model: str
) -> tuple[dict[str, TaskResult], dict[str, TaskResult]]:
    """The finished tasks of this suite that need not be asked again, and those of others.

    entries: of evaluation.json. model: the hash that every record must have.
    """
    asked = {task.name: task for task in suite.tasks}
    trusted, others = {}, {}
    for name, entry in entries.items():
        try:
            result = read_task(directory, name, entry, model)
        except DamagedError as error:
            set_aside(records_path(directory, name), str(error))
            continue
        if name not in asked:
            others[name] = result
        elif result.sha256 == asked[name].sha256:
            trusted[name] = result
        else:
            set_aside(records_path(directory, name), f"task {name} is not the one that was asked then")
    return trusted, others


def same_weights(a: Evaluation, b: Evaluation) -> bool:
    """By the hash of the weights; where there is none, by what it is called and where it is found."""
    if a.sha256 or b.sha256:
        return a.sha256 == b.sha256
    return (a.name, a.spec) == (b.name, b.spec)


def set_aside(path: Path, why: str) -> None:
    """Give a file or directory that does not fit another name, and say so; nothing is ever written over."""
    if path.exists():
        kept = next(
            p for i in itertools.count(1) if not (p := path.with_name(f"{path.name}.old-{i}")).exists()
        )
        path.rename(kept)
        say(f"{why}: kept as {kept}, and asked anew")


@contextmanager
def the_only_one(directory: Path) -> Iterator[None]:
    """Hold the directory, so that no second process writes into it; the lock goes with the process."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"{directory}: another process is evaluating there; wait for it, or choose --out"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@dataclass
class Work:
    """A task to be done: the lines of its working file, the records in them, and the batches to ask.

    records: by item; None where there is nothing to do. again: only items that ended in an error are asked.
    """

    task: Task
    path: Path
    lines: list[Any]
    records: dict[str, Record] | None
    batches: list[list[Item]]
    again: bool = False


def take_up(directory: Path, task: Task, backend: Backend, finished: TaskResult | None) -> Work:
    """Where a task stands. Its working file opens with what it is of, and with the records that it began from.

    A line that was torn when the last process died does not count: its batch is asked again.
    """
    path = records_path(directory, task.name)
    path = path.with_name(f"{path.name}.working")
    header = {"task": task.sha256, "model": backend.sha256, "name": backend.name, "batch": backend.batch}
    header |= {"precision": backend.precision, "device": backend.device, "route": backend.route}
    lines = list(read_jsonl(path))
    if lines[:1] != [header] or len(lines) < 2:
        set_aside(
            path,
            f"what was begun of {task.name} is of another task, model, batch size, precision or device, or unreadable",
        )
        begin = finished.records if finished else []
        if finished and not any(record["error"] for record in begin):
            return Work(task, path, [], None, [])
        lines = [header, {"records": begin}]
    begun = {record["item"] for record in lines[1]["records"] if not record["error"]}
    batches = cut(task, [item for item in task.items if item.id not in begun], backend.batch)
    records = {record["item"]: record for line in lines[1:] for record in line["records"]}
    return Work(task, path, lines, records, batches[len(lines) - 2 :], again=bool(lines[1]["records"]))


# ------------------------------------------------------------------------------------------------- asking a task


def finish(
    directory: Path, backend: Backend, spec: str, work: Work, advance: Callable[[float], None]
) -> TaskResult:
    """Ask what is left of a task, and write its records.

    Batches in which every item fails are held back until something is answered, so that a server which has gone
    away leaves no zeros behind.
    """
    assert work.records is not None
    task = work.task
    write_atomic(work.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in work.lines))
    waiting: list[list[Record]] = []
    for batch in work.batches:
        answers = [carry_on(work.records.get(record["item"]), record) for record in ask(backend, task, batch)]
        waiting.append(answers)
        failures = [record for records in waiting for record in records if record["error"]]
        if work.again or any(not record["error"] for record in answers):
            keep(work, waiting)
        elif len(failures) >= min(GIVE_UP, len(task.items)):
            shortest = work.batches[-1][-1]  # if this is answered, the others were too long, or the like
            if ask(backend, task, [shortest])[0]["error"]:
                raise gone(spec, backend, task, failures)
            keep(work, waiting)
        advance(effort(task, batch))
    keep(work, waiting)
    result = result_of(task, [work.records[item.id] for item in task.items])
    write_records(directory, result)
    return result


def keep(work: Work, waiting: list[list[Record]]) -> None:
    """Put finished batches on the disk, a line each."""
    assert work.records is not None
    for records in waiting:
        append_jsonl(work.path, {"records": records})
        work.records |= {record["item"]: record for record in records}
    if waiting:
        fsync_path(work.path)
        waiting.clear()


def carry_on(earlier: Record | None, record: Record) -> Record:
    """A record made anew: attempts add up, and marks that others put on the old one stay."""
    if earlier is None:
        return record
    return {**earlier, **record, "attempts": earlier["attempts"] + record["attempts"]}


def gone(spec: str, backend: Backend, task: Task, failures: Sequence[Record]) -> InputError:
    what = "the endpoint" if backend.kind == "endpoint" else "the model"
    fix = (
        "see that it is up and serves this model"
        if backend.kind == "endpoint"
        else "see what is wrong with it"
    )
    return InputError(
        f"{spec}: {what} answered none of {len(failures)} questions in a row of {task.name}; the last: "
        f"{failures[-1]['error']}. Nothing is recorded of these; {fix}, then give the same command again: "
        "it goes on from here"
    )


def result_of(task: Task, records: list[Record]) -> TaskResult:
    return TaskResult(
        task.name, task.metric, task.ask, task.sha256, records, task.chance, task.source, task.licence
    )


def cut(task: Task, items: Sequence[Item], batch: int) -> list[list[Item]]:
    """Batches of at most `batch` questions, longest first: what is alike in length is read together.

    The choices of an item stay together, and are as many questions.
    """
    batches: list[list[Item]] = []
    room = 0
    for item in sorted(items, key=longest, reverse=True):
        questions = len(item.choices) if task.ask == "choice" else 1
        if not batches or questions > room:
            batches.append([])
            room = batch
        batches[-1].append(item)
        room -= questions
    return batches


def longest(item: Item) -> int:
    """Characters of an item's longest question."""
    prompt = max(map(len, (item.prompt, *item.prompts)))
    return prompt + max(map(len, (item.answer, *item.choices)))


def effort(task: Task, items: Sequence[Item]) -> float:
    """About how long a batch takes, in characters read: the shared prompt of an item's choices is read once."""
    writing = WRITING * task.max_tokens * len(items) if task.ask == "generate" else 0
    texts = [text for item in items for text in (item.prompt, *item.prompts, *item.choices, item.answer)]
    return float(writing + sum(map(len, texts)))


def ask(backend: Backend, task: Task, items: Sequence[Item]) -> list[Record]:
    """The records of one batch. An item's seconds are its share of the batch's, without the grading."""
    began = time.perf_counter()
    answers = put(backend, task, items)
    share = round((time.perf_counter() - began) / len(items), 6)
    return [
        {**blank(item), "model": backend.sha256, "seconds": share, **judge(task, item, answer)}
        for item, answer in zip(items, answers, strict=True)
    ]


def put(backend: Backend, task: Task, items: Sequence[Item]) -> Sequence[Any]:
    """The model's answer to each item; of a choice, the answers to all its choices."""
    match task.ask:
        case "choice":
            pairs = [pair for item in items for pair in zip(prompts_of(item), item.choices, strict=True)]
            found = iter(backend.likelihoods(pairs))
            answers = [list(itertools.islice(found, len(item.choices))) for item in items]
            assert sum(map(len, answers)) == len(pairs), "a backend answers every question"
            return answers
        case "continuation":
            return backend.likelihoods([(item.prompt, item.answer) for item in items])
        case "generate":
            return backend.generate([item.prompt for item in items], task.max_tokens, task.stop)
        case "text":
            return backend.nats([item.answer for item in items])


def prompts_of(item: Item) -> tuple[str, ...]:
    return item.prompts or (item.prompt,) * len(item.choices)


# ---------------------------------------------------------------------------------- from an answer to a record


def blank(item: Item) -> Record:
    """A record before anything is known. `answer`: what would be right; `read`: what the grader took for an answer."""
    return {
        "item": item.id,
        "cluster": item.cluster,
        "model": "",
        "prompt": plain(item.prompt or "\n".join(item.prompts)),
        "output": "",
        "answer": plain(item.answer if item.gold is None else item.choices[item.gold]),
        "read": "",
        "score": None,
        "metrics": {},
        "why": "",
        "error": "",
        "seconds": 0.0,
        "tokens": 0,
        "truncated": False,
        "attempts": 1,
    }


def judge(task: Task, item: Item, answer: Any) -> Record:
    """What a record says of the answer."""
    problem = fault(answer)
    if problem is not None:
        return {
            "score": None if task.ask == "text" else 0.0,
            "error": plain(problem.why),
            "attempts": problem.attempts,
        }
    match task.ask:
        case "choice":
            return choose(task, item, answer)
        case "continuation":
            return follow(item, answer)
        case "generate":
            return grade(task, item, answer)
        case "text":
            return weigh(item, answer)


def fault(answer: Any) -> Failed | None:
    """Why there is no answer: the backend says so, or a number in it is none."""
    for part in answer if isinstance(answer, list) else [answer]:
        if isinstance(part, Failed):
            return part
        number = part.logprob if isinstance(part, Likelihood) else part
        if isinstance(number, float) and not math.isfinite(number):
            return Failed(f"the log-probability is {number}")
    return None


def choose(task: Task, item: Item, answers: Sequence[Likelihood]) -> Record:
    """The likeliest choice, and the likeliest by its length in characters, the space before it not counted."""
    logprobs = [answer.logprob for answer in answers]
    by_length = [p / len(c.removeprefix(" ")) for p, c in zip(logprobs, item.choices, strict=True)]
    chosen = {
        name: values.index(max(values))
        for name, values in (("accuracy", logprobs), ("accuracy_norm", by_length))
    }
    metrics = {name: float(choice == item.gold) for name, choice in chosen.items()}
    return {
        "output": plain(item.choices[chosen[task.metric]]),
        "score": metrics[task.metric],
        "metrics": metrics,
        "logprobs": logprobs,
        "tokens": sum(answer.tokens for answer in answers),
        "truncated": any(answer.truncated for answer in answers),
        "attempts": max(answer.attempts for answer in answers),
    }


def follow(item: Item, answer: Likelihood) -> Record:
    """Whether each token of what follows was the likeliest. What the model would have said instead is not asked."""
    return {
        "output": plain(item.answer) if answer.greedy else "",
        "score": float(answer.greedy),
        "metrics": {"accuracy": float(answer.greedy), "logprob": answer.logprob},
        "tokens": answer.tokens,
        "truncated": answer.truncated,
        "attempts": answer.attempts,
    }


def grade(task: Task, item: Item, answer: Generated) -> Record:
    """What the task's grader says of it, as a record."""
    found = verdict(task, item, answer.text)
    score = None if found.score is None else float(found.score)
    return {
        "output": plain(answer.text),
        "read": plain(found.answer),
        "score": score,
        "metrics": {**found.parts, task.metric: score},
        "why": plain(found.why),
        "finish": answer.finish,
        "tokens": answer.tokens,
        "truncated": answer.truncated,
        "attempts": answer.attempts,
    }


def weigh(item: Item, nats: float) -> Record:
    """A text's bits; the task's score divides their sum by that of the bytes."""
    bits, num_bytes = nats / math.log(2), len(item.answer.encode(errors="replace"))
    metrics = {"nats": nats, "bytes": num_bytes, "bits_per_byte": bits / num_bytes}
    return {"score": bits, "metrics": metrics}


def plain(text: str) -> str:
    """Text that can be written: half a surrogate pair becomes a question mark."""
    return text.encode(errors="replace").decode()
