"""What the models of a run are asked: the suite that a recipe names, and the starter that any run has."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import remove_tree
from behemoth.base.logs import say
from behemoth.data.corpus import Corpus, HeldOut
from behemoth.evals import perplexity, results
from behemoth.evals.backends import Backend
from behemoth.evals.local import Local, local
from behemoth.evals.records import HELD_OUT, Evaluation, TaskResult, write_evaluation
from behemoth.evals.runner import blank
from behemoth.evals.runner import evaluate as ask
from behemoth.inference.engine import Engine
from behemoth.model.open import Opened
from behemoth.model.transformer import Transformer
from behemoth.tasks import suite as suites
from behemoth.tasks.arithmetic import arithmetic
from behemoth.tasks.next_passage import next_passage
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Item
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import dtype_of

STARTER = "starter"  # the suite that any run has: made from its own held-out text, and arithmetic
NO_SUITE = "none"
ARITHMETIC_ITEMS = 200
TASK_TOKENS = 8192  # of one forward


def check_suite(name: str) -> None:
    """InputError where a recipe names a suite that cannot be asked: now, not after hours of training."""
    if name not in (STARTER, NO_SUITE):
        suites.load(name, also=(STARTER, NO_SUITE))


def suite_of(name: str, corpus: Corpus, tokenizer: Tokenizer, context: int) -> Suite:
    """The tasks that a recipe names: a file, a built-in suite, the starter, or none."""
    if name == NO_SUITE:
        return Suite(name, ())
    return starter(corpus, tokenizer, context) if name == STARTER else suites.load(name)


def starter(corpus: Corpus, tokenizer: Tokenizer, context: int) -> Suite:
    """Which passage really follows, asked of the run's own held-out documents; and sums, by likelihood.

    A passage takes about a quarter of the context, and what it may follow half.
    """
    documents = beginnings(corpus, tokenizer)
    texts = [(document.id, tokenizer.decode(document.tokens.tolist())) for document in documents]
    licences = sorted({licence for source in corpus.sources for licence in source.licences})
    room = int(context * corpus.report["bytes_per_token"])
    sums = arithmetic(ARITHMETIC_ITEMS, ask="choice", name="arithmetic_choice")
    try:
        passages = next_passage(
            texts,
            passage_chars=min(100, room // 4),
            prompt_chars=min(300, room // 2),
            source="the run's held-out text",
            licence=", ".join(licences),
        )
    except InputError as error:  # other texts than prose, or none as long
        say(f"the {STARTER} suite is sums alone: {error}")
        return Suite(STARTER, (sums,))
    return Suite(STARTER, (passages, sums))


def held_out_task(
    documents: Sequence[HeldOut], nats: np.ndarray, tokenizer: Tokenizer, model: str
) -> TaskResult:
    """The held-out documents as a task of texts, from what is measured already. nats: (documents,)."""
    records = []
    for document, needed in zip(documents, nats.tolist(), strict=True):
        text, bits = tokenizer.decode(document.tokens.tolist()), needed / math.log(2)
        item = Item(document.id, answer=text, cluster=document.id)
        metrics = {"nats": needed, "bytes": document.num_bytes, "bits_per_byte": bits / document.num_bytes}
        tokens = len(document.tokens)
        records.append({**blank(item), "model": model, "score": bits, "metrics": metrics, "tokens": tokens})
    asked = json.dumps([[document.id, int(document.num_bytes)] for document in documents])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    return TaskResult(HELD_OUT, "bits_per_byte", "text", digest, records, source=results.NOTE)


def put_to(
    opened: Opened,
    tokenizer: Tokenizer,
    name: str,
    spec: str,
    suite: Suite,
    out: Path,
    *,
    precision: str,
    chat: bool,
    documents: Sequence[HeldOut] = (),
    context: int = 0,
) -> Evaluation:
    """Ask one model every task, and score it on held-out `documents`, in rows of `context` tokens, as one more task.

    Everything is kept in out/name. chat: as in `put_by`.
    """
    opened.model.compute_dtype = dtype_of(precision)
    found = put_by(
        partial(answering, opened.model, tokenizer, name, opened.sha256), name, spec, suite, out, chat
    )
    if documents:
        nats = perplexity.score_documents(opened.model, documents, context)
        text = held_out_task(documents, nats, tokenizer, opened.sha256)
        found = replace(found, tasks=found.tasks | {HELD_OUT: text})
    write_evaluation(out / name, found)
    return found


def put_by(
    asking: Callable[[bool], Backend], name: str, spec: str, suite: Suite, out: Path, chat: bool
) -> Evaluation:
    """Ask every task, in out/name. chat: written answers in the chat template, choices and texts as they are.

    asking: the backend, by whether it asks in the template. What is asked without it is kept beside `out` until all is.
    """
    written = tuple(task for task in suite.tasks if chat and task.ask == "generate")
    others = tuple(task for task in suite.tasks if task not in written)
    backend = asking(bool(written))
    found = Evaluation(name, backend.sha256, spec, suite.name, {}, backend.kind)
    if written:
        found = ask(backend, spec, replace(suite, tasks=written), out, name=name)
    if others:
        aside = out.with_name(f"{out.name}.plain")  # two ways of asking share no directory
        rest = ask(asking(False), spec, replace(suite, tasks=others), aside, name=name)
        found = replace(found, tasks=found.tasks | rest.tasks) if written else rest
        write_evaluation(out / name, found)
        remove_tree(aside)
    return found


def beginnings(corpus: Corpus, tokenizer: Tokenizer) -> list[HeldOut]:
    """The held-out documents of a run, as far as they are examined."""
    return perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, results.EXAMINED_TOKENS)


def answering(
    model: Transformer, tokenizer: Tokenizer, name: str, sha256: str = "", chat: bool = False
) -> Local:
    """A model in memory, as tasks see it. chat: it is asked in the chat template."""
    return local(Engine(model, batch_tokens=TASK_TOKENS), tokenizer, name, sha256, chat)
