"""What a run's models are worth: held-out bits per byte beside baselines, document by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from behemoth import build
from behemoth.base.files import write_json
from behemoth.base.units import human_count
from behemoth.data.corpus import Corpus
from behemoth.data.packing import Stream
from behemoth.data.shards import ShardReader
from behemoth.evals import baselines, experts, perplexity, results
from behemoth.model.open import open_model
from behemoth.recipe import Resolved
from behemoth.rundir import Run
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device, dtype_of

BASELINE_TOKENS = 20_000_000  # the most that an n-gram is fitted on; more takes minutes and gigabytes
MAPPED_DOCUMENTS = 60  # held-out documents whose tokens are followed to their experts


def evaluate(job: Run) -> None:
    """Held-out bits per byte of every member beside baselines, document by document; and who the experts are."""
    resolved, corpus, tokenizer = job.settled, job.corpus(), job.tokenizer()
    context = resolved.train.context_length
    documents = perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, results.EXAMINED_TOKENS)
    entries, maps, names = [], {}, [member.name for member in build.members(resolved)]
    for name in names:
        opened = open_model(f"{job.directory}:{name}", device=device())
        model = opened.model
        model.compute_dtype = dtype_of(resolved.train.precision)
        nats = perplexity.score_documents(model, documents, context)
        scores = results.scores(name, documents, nats)
        entries.append(results.Entry(scores, "model", step=opened.step, sha256=opened.sha256))
        maps[name] = experts.expert_map(model, documents[:MAPPED_DOCUMENTS], tokenizer.decode, context)

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
