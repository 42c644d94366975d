"""Seconds to evaluate: our tasks and engine beside lm-evaluation-harness with its own transformers backend.

    python benchmarks/evaluate_cpu.py [EXPORT] [--data DIR] [--items 100] [--repeats 3] [--batch-sizes 1 8 32]

Both read the same exported weights, in fp32, and are asked the same questions: what a suite's tasks put together
is handed to the harness as its requests, so that neither side reads files, and both encode the texts themselves.
The harness first runs every batch size on each kind of task and keeps its best. Then the two take turns, and the
ratio is taken within each turn. Where the answers differ, the line says in how many items. Items with a
continuation that the context cannot hold are left out: the harness stops at them.

Needs lm-eval with its hf extra (lm-eval[hf]), a run of the quickstart, and task files (BEHEMOTH_DATA).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from behemoth.evals.backends import Backend, open_backend
from behemoth.evals.runner import ask, cut
from behemoth.tasks.suite import load
from behemoth.tasks.task import Task

EXPORT = Path("runs/quickstart/export/teacher")
FILES = {
    "arc": "arc_easy.jsonl",
    "piqa": "piqa.jsonl",
    "boolq": "boolq.jsonl.gz",
    "blimp": "blimp_half.jsonl.gz",
    "lambada": "lambada_openai.jsonl.gz",
    "gsm8k": "gsm8k_test.jsonl",
}
SUITE = """
[[tasks]]
kind = "{kind}"
path = "{path}"
limit = {limit}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "export", type=Path, nargs="?", default=EXPORT, help="a directory that behemoth exported"
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("BEHEMOTH_DATA"), help="has eval/*.jsonl")
    parser.add_argument("--tasks", nargs="*", default=list(FILES), choices=list(FILES))
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64, help="of a written answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32])
    options = parser.parse_args()
    if options.data is None or not options.export.exists():
        print(
            f"not run: it wants task files (--data, or BEHEMOTH_DATA) and an export (make quickstart: {EXPORT})"
        )
        return
    options.data = Path(options.data)

    backend = open_backend(options.export, "fp32", "cpu")
    harness = open_harness(options.export)
    print(f"{options.export}, fp32, {torch.get_num_threads()} threads; {options.items} items a task")
    totals: list[tuple[float, float]] = [(0.0, 0.0)] * options.repeats
    for task in tasks(options):
        turns = race(backend, harness, fitting(backend, task), options.batch_sizes, options.repeats)
        totals = [(a + c, b + d) for (a, b), (c, d) in zip(totals, turns, strict=True)]
    tell("all of it", totals)


def tasks(options: argparse.Namespace) -> Sequence[Task]:
    blocks = []
    for kind in options.tasks:
        path = (options.data / "eval" / FILES[kind]).resolve()
        blocks.append(SUITE.format(kind=kind, path=path, limit=options.items))
        if kind == "gsm8k":
            blocks.append(f"max_tokens = {options.max_tokens}\n")
    return load(written('name = "speed"\n' + "".join(blocks))).tasks


def written(text: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="behemoth-speed-")) / "suite.toml"
    path.write_text(text)
    return path


def open_harness(export: Path) -> HFLM:
    """The harness' own backend; a model already loaded spares it a library for many machines."""
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(export, add_bos_token=True)
    return HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=True, device="cpu")


def answered(backend: Backend, task: Task) -> list[dict[str, Any]]:
    """What the runner records, in the order of the task."""
    records = [
        record for batch in cut(task, task.items, backend.batch) for record in ask(backend, task, batch)
    ]
    place = {item.id: number for number, item in enumerate(task.items)}
    return sorted(records, key=lambda record: place[record["item"]])


def fitting(backend: Backend, task: Task) -> Task:
    """The task without the items that cannot be asked."""
    failed = {record["item"] for record in answered(backend, task) if record["error"]}
    return replace(task, items=tuple(item for item in task.items if item.id not in failed))


def race(
    backend: Backend, harness: HFLM, task: Task, batch_sizes: Sequence[int], repeats: int
) -> list[tuple[float, float]]:
    requests = requests_of(task)

    def theirs() -> list[Any]:
        asked = harness.generate_until if task.ask == "generate" else harness.loglikelihood
        return asked(requests, disable_tqdm=True)

    def ours() -> list[Any]:
        return answered(backend, task)

    answers = ours()  # also the warm-up
    trials = []
    for size in batch_sizes:
        harness.batch_size_per_gpu = size
        trials.append((seconds(theirs), size))
    harness.batch_size_per_gpu = min(trials)[1]
    differ = differences(task, answers, theirs())
    turns = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    tell(f"{task.name} ({len(task.items)} items)", turns, f"batch {min(trials)[1]}, {differ} answers differ")
    return turns


def requests_of(task: Task) -> list[Instance]:
    """The same questions for the harness."""
    options = {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False}
    kind = "generate_until" if task.ask == "generate" else "loglikelihood"
    asked: list[tuple[Any, ...]] = []
    for item in task.items:
        match task.ask:
            case "choice":
                prompts = item.prompts or (item.prompt,) * len(item.choices)
                asked += zip(prompts, item.choices, strict=True)
            case "continuation":
                asked.append((item.prompt, item.answer))
            case "generate":
                asked.append((item.prompt, options))
    return [Instance(kind, {}, arguments, number) for number, arguments in enumerate(asked)]


def differences(task: Task, records: Sequence[dict[str, Any]], answers: Sequence[Any]) -> int:
    """Items of which the two do not say the same."""
    if task.ask == "generate":
        return sum(record["output"] != text for record, text in zip(records, answers, strict=True))
    if task.ask == "continuation":
        return sum(record["score"] != greedy for record, (_, greedy) in zip(records, answers, strict=True))
    logprobs = iter(logprob for logprob, _ in answers)
    found = 0
    for item, record in zip(task.items, records, strict=True):
        chosen = [next(logprobs) for _ in item.choices]
        found += (chosen.index(max(chosen)) == item.gold) != record["metrics"]["accuracy"]
    return found


def tell(name: str, turns: Sequence[tuple[float, float]], note: str = "") -> None:
    ratios = [theirs / ours for ours, theirs in turns]
    us, them = (f"{min(s):7.2f} ({statistics.median(s):7.2f}) s" for s in zip(*turns, strict=True))
    print(
        f"{name:22s} ours {us}   lm-eval {them}   "
        f"ratio min {min(ratios):.2f} median {statistics.median(ratios):.2f}   {note}",
        flush=True,
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
