"""An evaluation that is killed and started again, over and over, ends with the records of one that never was.

The model is one of ours, the suite has every kind of task, and each evaluation is a process of its own; it is
forked, so that a kill falls into the evaluation and not into the start of Python. BEHEMOTH_SEED, printed, replays
the moments.
"""

import json
import multiprocessing
import os
import random
import time

import pytest
import torch

from behemoth.evals.backends import open_backend
from behemoth.evals.records import read_evaluation
from behemoth.evals.runner import evaluate
from behemoth.model.transformer import Transformer
from behemoth.model.weights import save_weights
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Grade, Item, Task
from behemoth.text.tokenizer import Tokenizer

FORK = multiprocessing.get_context("fork")
WORDS = ["river", "stone", "cloud", "green", "old", "runs", "sleeps", "under", "light", "never", "because"]


def is_even(item, output):
    return (
        Grade(None, "nothing written")
        if not output
        else Grade(float(len(output) % 2 == 0), answer=output[:3])
    )


def make_suite(count):
    chooser = random.Random(0)

    def text(words):
        return " ".join(chooser.choice(WORDS) for _ in range(words))

    def some(**of):
        return tuple(
            Item(str(n), **{name: make() for name, make in of.items()}, cluster=f"p{n // 3}")
            for n in range(count)
        )

    def choices():
        return tuple(" " + word for word in chooser.sample(WORDS, 4))

    return Suite(
        "killed",
        (
            Task(
                "choose",
                "choice",
                some(prompt=lambda: text(8), choices=choices, gold=lambda: 1),
                "accuracy_norm",
            ),
            Task("write", "generate", some(prompt=lambda: text(4)), "even", is_even, max_tokens=16),
            Task(
                "follow",
                "continuation",
                some(prompt=lambda: text(6), answer=lambda: " " + text(2)),
                "accuracy",
            ),
            Task("read", "text", some(answer=lambda: text(40)), "bits_per_byte"),
        ),
    )


@pytest.fixture
def model(tiny_config, tmp_path):
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 3, 320)
    config = tiny_config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    weights = Transformer(config).initialise(torch.Generator().manual_seed(0))
    save_weights(weights, tmp_path / "model", tokenizer_sha256=tokenizer.sha256)
    tokenizer.save(tmp_path / "model")
    found = open_backend(tmp_path / "model", device="cpu")
    found.batch = 8
    return found


def work(model, suite, out):
    torch.set_num_threads(1)  # threads of the parent are not there after a fork
    evaluate(model, "killed", suite, out, name="m")


def begin(model, suite, out):
    process = FORK.Process(target=work, args=(model, suite, out))
    process.start()
    return process


def records_of(out):
    """All that is kept but how long it took, and when, and the order of the items."""
    found = read_evaluation(out / "m")
    lines = {path.name: path.read_text().splitlines() for path in (out / "m").glob("*.jsonl")}
    records = {name: [json.loads(line) | {"seconds": 0} for line in text] for name, text in lines.items()}
    assert all(len(records[f"{name}.jsonl"]) == len(task.records) for name, task in found.tasks.items())
    summary = json.loads((out / "m" / "evaluation.json").read_text())
    assert summary.pop("finished")
    for entry in summary["tasks"].values():
        entry.pop("records_sha256")  # the seconds are in it
    return records, summary


def check_kills(model, tmp_path, count, kills):
    suite = make_suite(count)
    began = time.monotonic()
    undisturbed = begin(model, suite, tmp_path / "undisturbed")
    undisturbed.join()
    seconds, wanted = time.monotonic() - began, records_of(tmp_path / "undisturbed")
    assert undisturbed.exitcode == 0
    assert {len(records) for records in wanted[0].values()} == {count} and len(wanted[0]) == 4

    seed = int(os.environ.get("BEHEMOTH_SEED", time.time_ns() % 10**9))
    chooser, killed, midway, ended, out = random.Random(seed), 0, 0, 0, tmp_path / "0"
    print(f"BEHEMOTH_SEED={seed}, undisturbed {seconds:.1f} s")
    while killed < kills:
        process = begin(model, suite, out)
        process.join(chooser.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert records_of(out) == wanted
            ended, out = ended + 1, tmp_path / str(ended + 1)
        else:
            killed += 1
            midway += any(out.rglob("*.working"))
    last = begin(model, suite, out)
    last.join()
    assert last.exitcode == 0
    assert records_of(out) == wanted
    left = {path.name for path in (out / "m").iterdir() if not path.name.startswith(".")}
    assert left == {*wanted[0], "evaluation.json"}
    print(f"{killed} kills, {midway} within a task, {ended + 1} evaluations ended, all alike")


def test_three_kills(model, tmp_path):
    check_kills(model, tmp_path, 40, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills(model, tmp_path):
    check_kills(model, tmp_path, 120, 20)
