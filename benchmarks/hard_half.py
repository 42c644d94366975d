"""What `hard = 0.5` is worth where two cores can tell: the hardest half of worked sums against a random half.

    python benchmarks/hard_half.py runs/quickstart:student [--judge MODEL] [--seeds 3] [--steps 60] [--rows 32]

Each seed draws sums of one and two digits with their worked answers, and fine-tunes the same model twice, for the
same steps, on as many conversations: the hardest (`lessons.hardest`; by the model itself, as in a recipe, or by
`--judge`) and a random half. Both are then asked sums that neither saw, in the chat template, and the likelihood of
the worked answers to those is taken, easy and hard alike. The two models of a seed differ in nothing but the half.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import torch

from behemoth import build
from behemoth.base.logs import say, table
from behemoth.data.conversations import Conversation, Found
from behemoth.data.examples import Examples, ExampleSource, write_examples
from behemoth.derive import rates_rule
from behemoth.dials import Arithmetic, SftRecipe, Worked
from behemoth.evals.runner import quick
from behemoth.inference.engine import Engine
from behemoth.lessons import hardest, worked
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.practice import tasks_of
from behemoth.questions import answering
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Task
from behemoth.text.chat import encode_chat
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.loop import Plan, train

CONTEXT = 256
ARMS = ("hard", "random")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="what to begin with, such as runs/quickstart:student")
    parser.add_argument("--judge", help="says what is hard; the model itself without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=32, help="rows of a step")
    parser.add_argument("--items", type=int, default=2400, help="sums to practise, of which half are taken")
    parser.add_argument("--asked", type=int, default=600)
    options = parser.parse_args()
    rows, differences = [], []
    for seed in range(options.seeds):
        found = {arm: tuned_on(arm, options, seed) for arm in ARMS}
        for arm in ARMS:
            two_digits, right, nats = found[arm]
            rows.append([seed, arm, f"{two_digits:.0%}", f"{right:.1%}", f"{nats:.4f}"])
        differences.append(
            [100 * (found["hard"][1] - found["random"][1]), found["hard"][2] - found["random"][2]]
        )
        say(f"seed {seed}: {differences[-1]}")
    table(
        "sums that were not practised",
        ["seed", "half", "of it two digits", "solved", "nats a token of the worked answers"],
        rows,
    )
    mean, spread = np.mean(differences, axis=0), np.std(differences, axis=0, ddof=1)
    print(f"hard less random: {mean[0]:+.1f} points (deviation of a seed {spread[0]:.1f}), ", end="")
    print(f"{mean[1]:+.4f} nats (deviation {spread[1]:.4f}), {options.seeds} seeds")


def tuned_on(arm: str, options: argparse.Namespace, seed: int) -> tuple[float, float, float]:
    """Of one half: the share of it that has two digits; and of the model tuned on it, what it solves and its loss."""
    opened = open_model(options.model, torch.float32)
    model, tokenizer = opened.model, Tokenizer.load(opened.tokenizer_directory)
    (practice,) = tasks_of([sums(options.items)], "train", seed)
    (exam,) = tasks_of([sums(options.asked)], "test", seed)
    whole = worked(practice, 0.0, seed)
    judge = open_model(options.judge, torch.float32).model if options.judge else model
    half = hardest(whole, judge, tokenizer, CONTEXT, 0.5).kept
    if arm == "random":
        half = random.Random(seed).sample(whole.kept, len(half))
    digits = {f"{practice.name}/{item.id}": item.facts["digits"] for item in practice.items}
    fine_tune(model, tokenizer, half, options, seed)
    backend = answering(model, tokenizer, arm, chat=True)
    ((_, score),) = quick(backend, Suite("exam", (exam,)))
    two = float(np.mean([digits[each.id] == 2 for each in half]))
    return two, score.estimate, loss(model, tokenizer, exam, seed)


def sums(items: int) -> Arithmetic:
    return Arithmetic(kind="arithmetic", items=items, digits=(1, 2), operations=("add",))


def fine_tune(
    model: Transformer,
    tokenizer: Tokenizer,
    talks: list[Conversation],
    options: argparse.Namespace,
    seed: int,
) -> None:
    """As the sft stage does, with the rates that it derives, and no replay."""
    rates = {
        name: rate
        for name, (rate, _) in rates_rule("sft", "muon", model.config.hidden_size, False, False).items()
    }
    spec = SftRecipe(
        conversations=(Worked(kind="practice"),), optimizer="muon", rows_per_step=options.rows, **rates
    )
    with tempfile.TemporaryDirectory() as place:
        write_examples(Path(place) / "data", Found(talks, []), tokenizer, CONTEXT)
        examples = Examples.open(Path(place) / "data", tokenizer)
        source = ExampleSource(examples, CONTEXT, options.rows, seed, model.config.chunk_size)
        member = build.tuned("sft", model, spec, build.sft_objective(spec), options.steps, seed)
        for _ in train([member], source, Plan(options.steps, 1, spec.max_grad_norm)):
            pass


def loss(model: Transformer, tokenizer: Tokenizer, exam: Task, seed: int) -> float:
    """Nats per token of the worked answers, over all the exam's problems."""
    chats = [encode_chat(tokenizer, each.messages) for each in worked(exam, 0.0, seed).kept]
    scores = Engine(model, CONTEXT).logprobs([chat.ids for chat in chats])
    learnt = [s[np.array(chat.mask[1:], dtype=bool)] for s, chat in zip(scores, chats, strict=True)]
    return -float(np.concatenate(learnt).mean())


if __name__ == "__main__":
    main()
