"""What a run's models are worth: held-out bits per byte beside baselines, document by document, and tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from behemoth import build
from behemoth.base.files import write_json
from behemoth.base.units import human_count
from behemoth.data.corpus import Corpus, HeldOut
from behemoth.data.overlap import Overlap, indexed
from behemoth.data.packing import Stream
from behemoth.data.shards import ShardReader
from behemoth.evals import baselines, contamination, experts, perplexity, results
from behemoth.evals.compare import compare_evaluations
from behemoth.evals.records import write_evaluation
from behemoth.evals.runner import evaluate as ask
from behemoth.model.open import Opened, open_model
from behemoth.questions import HELD_OUT, answering, beginnings, held_out_task, suite_of
from behemoth.recipe import Resolved
from behemoth.report.compare import write_compare
from behemoth.rundir import Run
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device, dtype_of

BASELINE_TOKENS = 20_000_000  # the most that an n-gram is fitted on; more takes minutes and gigabytes
MAPPED_DOCUMENTS = 60  # held-out documents whose tokens are followed to their experts
REMOVAL_DOCUMENTS = 64  # from inside which text is scored again without each expert in turn
REMOVAL_TOKENS = 128  # of each
TASKS = Path("evals") / "tasks"  # in a run: what was asked of each member


def evaluate(job: Run) -> None:
    """Every member on held-out text, beside baselines, and on the recipe's tasks; and who its experts are."""
    resolved, corpus, tokenizer = job.settled, job.corpus(), job.tokenizer()
    context = resolved.train.context_length
    documents = beginnings(corpus, tokenizer)
    names = [member.name for member in build.members(resolved)]
    entries, maps, needed = [], {}, {}
    for name in names:
        opened = open_model(f"{job.directory}:{name}", device=device())
        model = opened.model
        model.compute_dtype = dtype_of(resolved.train.precision)
        needed[name] = perplexity.score_documents(model, documents, context)
        scores = results.scores(name, documents, needed[name])
        entries.append(results.Entry(scores, "model", step=opened.step, sha256=opened.sha256))
        if not name.endswith(build.CONTROL):  # a yardstick, whose experts nobody will use
            maps[name] = examine_experts(opened, documents, tokenizer, context)

    fitted = fit_baselines(job, corpus, tokenizer)
    entries += [
        results.Entry(results.scores(name, documents, model.score([d.tokens for d in documents])), kind, note)
        for name, model, kind, note in fitted
    ]
    texts = [tokenizer.decode_bytes(document.tokens.tolist()) for document in documents]
    alone = results.scores("xz, each document alone", documents, baselines.xz_per_document(texts))
    entries.append(results.Entry(alone, "reference", "a compressor, which has seen nothing before"))
    together = results.Line("xz, all documents together", baselines.xz_together(texts), len(texts))
    for entry in entries:
        results.write_scores(job.directory / "evals", entry.scores, documents)
    results.write_results(job.directory / "evals", entries, [together], pairs(names, resolved))
    write_json(
        job.directory / "evals" / "experts.json", {name: found for name, found in maps.items() if found}
    )
    measure_tasks(job, needed, documents)


def measure_tasks(job: Run, nats: Mapping[str, np.ndarray], documents: Sequence[HeldOut]) -> None:
    """Every member on the recipe's suite, item by item, each held against the training text; pages that compare.

    nats: what each member needed for each held-out document, which is kept as one more task.
    """
    tokenizer = job.tokenizer()
    suite = suite_of(
        job.settled.recipe.evaluation.suite, job.corpus(), tokenizer, job.settled.train.context_length
    )
    overlap = Overlap.open({"pretrain": job.directory / "data"} | indexed(job.directory))
    found = {}
    for name in nats:
        spec = f"{job.directory}:{name}"
        opened = open_model(spec, device=device())
        opened.model.compute_dtype = dtype_of(job.settled.train.precision)
        evaluation = ask(
            answering(opened.model, tokenizer, name, opened.sha256), spec, suite, job.directory / TASKS
        )
        evaluation.tasks[HELD_OUT] = held_out_task(documents, nats[name], tokenizer, opened.sha256)
        write_evaluation(job.directory / TASKS / name, evaluation)
        found[name] = contamination.annotate(job.directory / TASKS / name, overlap)
    for a, b in compared(job.settled):
        marks = {
            side: contamination.read_verdicts(job.directory / TASKS / of) for side, of in (("a", a), ("b", b))
        }
        result = compare_evaluations(found[a], found[b], marks)
        write_compare(job.directory / f"compare-{a}-{b}.html", result)


def compared(resolved: Resolved) -> list[tuple[str, str]]:
    """The members that a page is made of: the teacher and each student, a student and its control."""
    found = [(build.TEACHER, student.name) for student in resolved.students]
    return found + [(s.name, s.name + build.CONTROL) for s in resolved.students if s.control]


def examine_experts(
    opened: Opened, documents: list[HeldOut], tokenizer: Tokenizer, context: int
) -> list[dict[str, Any]]:
    """The expert map of `evals.experts`, each expert with what removing it adds to the bits per byte of stretches from
    inside many held-out documents."""
    model = opened.model
    layers = experts.expert_map(model, documents[:MAPPED_DOCUMENTS], tokenizer.decode, context)
    length = min(context, REMOVAL_TOKENS)
    few = perplexity.stretches(documents, tokenizer.byte_lengths, length, REMOVAL_DOCUMENTS)
    without = {(row["layer"], row["expert"]): row for row in experts.losses_without(model, few, context)}
    for layer in layers:
        for expert in layer["experts"]:
            if (place := (layer["layer"], expert["expert"])) in without:
                expert["without"] = without[place]["sources"]
    return layers


def fit_baselines(job: Run, corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[str, Any, Any, str]]:
    """N-grams fitted on exactly the tokens that a member saw, and for orientation on the whole corpus."""
    resolved, table = job.settled, baselines.token_bytes(tokenizer)
    context, rows, seed = resolved.train.context_length, resolved.rows_per_step, resolved.recipe.seed
    most = max(1, BASELINE_TOKENS // context)  # rows

    def seen(first_step: int, steps: int) -> Iterator[list[np.ndarray]]:
        begin, end = first_step * rows, (first_step + steps) * rows
        return islice(corpus.stream(context, rows, seed, first_step + steps), begin, min(end, begin + most))

    def fit(read: Callable[[], Iterator[list[np.ndarray]]], label: str) -> Iterator[tuple[str, Any]]:
        trigram = baselines.TokenNgram.fit(chain.from_iterable(read()), tokenizer.vocab_size, order=3)
        yield f"token 3-gram{label}", trigram
        yield f"byte 5-gram{label}", baselines.ByteNgram.fit(chain.from_iterable(read()), table, order=5)

    members = [(build.TEACHER, 0, resolved.steps, "")] + [
        (student.name, student.first_step, student.steps, f" ({student.name}'s tokens)")
        for student in resolved.students
    ]
    for name, first_step, steps, label in members:
        part = f"the first {human_count(most * context)} of " if steps * rows > most else ""
        for title, model in fit(partial(seen, first_step, steps), label):
            yield title, model, "baseline", f"fitted on {part}the tokens {said(name)} saw"
    share = min(1.0, most / corpus.batches(context, rows, seed).num_rows)
    part = (
        f"{share:.1%} of the training text, of every source alike" if share < 1 else "all the training text"
    )
    for title, model in fit(partial(every_row, corpus, context, share), " (whole corpus)"):
        yield title, model, "reference", f"fitted on {part}"


def every_row(corpus: Corpus, context: int, share: float = 1.0) -> Iterator[list[np.ndarray]]:
    """The rows of each source, once each, by document; of a corpus too large to count, as much of every source."""
    for source in corpus.sources:
        shards = ShardReader(corpus.directory / source.name / "train", corpus.vocab_size)
        stream = Stream(shards, context, key=0)
        yield from (stream.row(number).pieces() for number in range(math.ceil(stream.num_rows * share)))


def said(name: str) -> str:
    return "the teacher" if name == build.TEACHER else name


def pairs(names: list[str], resolved: Resolved) -> list[tuple[str, str]]:
    """Who is compared with whom: each with both n-grams of its own tokens, a student with its control too."""
    found = [(build.TEACHER, "token 3-gram"), (build.TEACHER, "byte 5-gram")]
    for student in resolved.students:
        found += [
            (student.name, f"{kind} ({student.name}'s tokens)") for kind in ("token 3-gram", "byte 5-gram")
        ]
        if student.control:
            found.append((student.name, student.name + build.CONTROL))
    return found
