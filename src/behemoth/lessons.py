"""What fine-tuning and preferences learn from: gathered from all that a recipe names, chosen, and written down once.

Conversations come from the practised tasks' worked answers, the run's own code, and files; pairs from files, and from
answers of the model itself that a grader tells apart. Every row is kept, or rejected with a reason that is counted.
Of what is learnt there is an index (`data/overlap.py`), so that any text can be asked for later.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import read_jsonl, remove_tree, write_atomic, write_json
from behemoth.base.logs import progress, say
from behemoth.base.rows import Place
from behemoth.data.code_pairs import code_pairs, training_documents
from behemoth.data.conversations import Conversation, Found, Rejected, read_conversations
from behemoth.data.corpus import Corpus, told_apart
from behemoth.data.examples import Examples, write_examples
from behemoth.data.overlap import write_index
from behemoth.data.preference_rows import EncodedPair, encode_pairs
from behemoth.data.preferences import Pair, read_pairs
from behemoth.data.sources import Document
from behemoth.dials import (
    Code,
    ConversationRows,
    Conversations,
    DpoRecipe,
    Graded,
    PairRows,
    Recipe,
    Refusals,
    RlRecipe,
    Rows,
    SftRecipe,
    Worked,
)
from behemoth.evals.endpoint import Endpoint, address
from behemoth.inference.engine import Engine
from behemoth.inference.scoring import score
from behemoth.model.transformer import Transformer
from behemoth.practice import asked_in, practised, prompts_to, stage_seed
from behemoth.rl.pairs import graded_pairs
from behemoth.rl.rewards import Rewards
from behemoth.rl.rollouts import EngineSampler, Prompt
from behemoth.rundir import Run
from behemoth.tasks.refusal import part_of, read_prompts, refusal_pairs
from behemoth.tasks.task import Task, limited, wording
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

Row = TypeVar("Row", Conversation, Pair)
# Of what the context holds, for a conversation about code: names cost more tokens than prose.
CODE_BYTES = 0.8
COUNTS = "data.json"  # in a stage's directory: what was kept and rejected, for the report


def joined(parts: Sequence[Found[Row]]) -> Found[Row]:
    return Found(
        [row for part in parts for row in part.kept], [each for part in parts for each in part.rejected]
    )


def told(name: str, found: Found[Row]) -> Found[Row]:
    """The same, and a line about it."""
    say(f"{name}: {found}")
    return found


def not_asked(found: Found[Row], exam: set[str]) -> Found[Row]:
    """Without what asks a question of the exam, in any of its turns."""
    kept, rejected = [], list(found.rejected)
    for row in found.kept:
        messages = row.messages if isinstance(row, Conversation) else row.prompt
        if any(message.role == "user" and wording(message.content) in exam for message in messages):
            rejected.append(Rejected(row.id, "in the exam"))
        else:
            kept.append(row)
    return Found(kept, rejected)


def tell_left_out(reasons: Mapping[str, int]) -> None:
    """All that was rejected: by its reader, as easy, or as too long for the context."""
    if reasons:
        say("left out: " + ", ".join(f"{count:,} {why}" for why, count in reasons.items()))


def name_of(entry: Rows) -> str:
    return entry.path or entry.dataset or ""


def where(entry: ConversationRows | PairRows, seed: int) -> dict[str, Any]:
    """The rows that are meant, as the readers of conversations and of pairs take them."""
    place = Place(Path(entry.path) if entry.path else None, entry.dataset or "", entry.subset, entry.split)
    asked = {"place": place, "layout": entry.layout, "limit": entry.limit, "seed": seed}
    return asked | ({"licence": entry.licence} if entry.licence else {})


def check(recipe: Recipe, run: Path) -> None:
    """InputError where the rows to learn from cannot be read or are of no use: now, not after hours.

    What a stage has taken in is not asked for again. A server of answers may come up later, so it is only told.
    """
    if recipe.sft and not (run / "sft" / COUNTS).exists():
        for entry in recipe.sft.conversations:
            if isinstance(entry, Refusals):
                to_refuse(entry, recipe.seed)
            elif isinstance(entry, ConversationRows):
                read_conversations(**where(entry, recipe.seed))
    if recipe.dpo and not (run / "dpo" / COUNTS).exists():
        for part in recipe.dpo.pairs:
            if isinstance(part, PairRows):
                read_pairs(**where(part, recipe.seed))
    if recipe.rl and recipe.rl.server and not (run / "rl").exists():
        address(recipe.rl.server)
        try:
            Endpoint(recipe.rl.server)
        except InputError as error:
            say(f"the rl stage will need its server: {error}")


def counts(kept: Sequence[Conversation | Pair], rejected: dict[str, int]) -> dict[str, Any]:
    """What became of the rows that were read, for the report; and the most questions that one of them asks."""
    sources = Counter(each.source or "unknown" for each in kept)
    asked = [each.messages if isinstance(each, Conversation) else each.prompt for each in kept]
    return {
        "kept": len(kept),
        "rejected": rejected,
        "sources": {name: {"kept": n} for name, n in sources.items()},
        "turns": max(sum(message.role == "user" for message in messages) for messages in asked),
    }


# --------------------------------------------------------------------------------------------------- conversations


def prepare_conversations(job: Run, spec: SftRecipe, model: Transformer) -> Examples:
    """Read, choose and encode the conversations, once. model: the one that will learn them, which says what is hard."""
    recipe, tokenizer, context = job.settled.recipe, job.tokenizer(), job.settled.train.context_length
    directory, report = job.directory / "sft" / "data", job.directory / "sft" / COUNTS
    if not report.exists():  # it is written last
        remove_tree(directory)
        tasks, _ = practised(recipe)
        corpus = job.corpus() if (job.directory / "data").is_dir() else None
        found = conversations(spec.conversations, tasks, corpus, tokenizer, context, recipe.seed)
        found = not_asked(found, asked_in(recipe))
        if spec.hard < 1:
            found = hardest(found, model, tokenizer, context, spec.hard)
        manifest = write_examples(directory, found, tokenizer, context)
        tell_left_out(manifest["rejected"])
        fits = {record["id"] for record in read_jsonl(directory / "records.jsonl")}
        write_json(report, counts([each for each in found.kept if each.id in fits], manifest["rejected"]))
    return Examples.open(directory, tokenizer)


def conversations(
    entries: Iterable[Conversations],
    practice: Sequence[Task],
    corpus: Corpus | None,
    tokenizer: Tokenizer,
    context: int,
    seed: int,
) -> Found[Conversation]:
    """Everything that a recipe names, one list; what is rejected is told by reason."""
    parts: list[Found[Conversation]] = []
    for entry in entries:
        match entry:
            case Worked():
                parts += [worked(task, entry.direct, seed) for task in practice]
            case Code():
                assert corpus is not None, "the recipe was checked: code needs sources"
                parts.append(about_code(corpus, tokenizer, entry.items, context, seed))
            case Refusals():
                parts.append(told(entry.path, to_refuse(entry, seed)))
            case ConversationRows():
                parts.append(told(name_of(entry), read_conversations(**where(entry, seed))))
    return joined(parts)


def to_refuse(entry: Refusals, seed: int) -> Found[Conversation]:
    """The file's prompts but those of the held-out fifth, each with a refusal."""
    prompts = part_of(read_prompts(Path(entry.path), entry.column or ""), "train")
    answered = refusal_pairs([item.prompt for item in prompts], seed)
    made = [talk(f"{entry.path}/{i}", *pair, entry.path) for i, pair in enumerate(answered)]
    return Found(made, [])


def worked(task: Task, direct: float, seed: int) -> Found[Conversation]:
    """A task's items with their worked answers, a share with its last line alone; those without are rejected."""
    kept, rejected = [], []
    draw = random.Random(f"direct {task.name} {seed}")
    for item in task.items:
        lines = item.solution.strip().split("\n")
        answer = lines[-1] if draw.random() < direct else "\n".join(lines)
        if answer:
            kept.append(talk(f"{task.name}/{item.id}", item.prompt, answer, task.source, task.licence))
        else:
            rejected.append(Rejected(f"{task.name}/{item.id}", "no worked answer"))
    return told(task.name, Found(kept, rejected))


def about_code(
    corpus: Corpus, tokenizer: Tokenizer, items: int, context: int, seed: int
) -> Found[Conversation]:
    licence = ", ".join(sorted({name for source in corpus.sources for name in source.licences}))
    longest = int(context * corpus.report["bytes_per_token"] * CODE_BYTES)
    made = code_pairs(training_documents(corpus, tokenizer, seed), items, longest, seed, licence)
    return told("questions about the run's own code", Found(made, []))


def talk(id: str, question: str, answer: str, source: str, licence: str = "unknown") -> Conversation:
    return Conversation(id, (Message("user", question), Message("assistant", answer)), source, licence)


def hardest(
    found: Found[Conversation], model: Transformer, tokenizer: Tokenizer, context: int, share: float
) -> Found[Conversation]:
    """The share of the conversations whose answers the model finds least likely, by nats per learnt token.

    Llama 4 dropped more than half of its instructions as easy, and of the largest model's 95%; there other models
    judged, here the model itself does.
    """
    encoded = [encode_chat(tokenizer, each.messages) for each in found.kept]
    fits = [number for number, chat in enumerate(encoded) if len(chat.ids) <= context + 1 and any(chat.mask)]
    nats = np.full(len(encoded), np.inf)  # what does not fit is rejected later, under its own reason
    scores = Engine(model, context).logprobs([encoded[number].ids for number in fits])
    for number, logprobs in zip(fits, scores, strict=True):
        nats[number] = -float(logprobs[np.array(encoded[number].mask[1:], dtype=bool)].mean())
    border = np.quantile(nats[fits], 1 - share) if fits else 0.0
    kept = [each for each, n in zip(found.kept, nats, strict=True) if n >= border]
    easy = [Rejected(each.id, "easy") for each, n in zip(found.kept, nats, strict=True) if n < border]
    say(
        f"the hardest {share:.0%}: {len(kept):,} conversations above {border:.2f} nats a token, {len(easy):,} below"
    )
    return Found(kept, [*found.rejected, *easy])


# ----------------------------------------------------------------------------------------------------------- pairs


def prepare_pairs(job: Run, spec: DpoRecipe, model: Transformer) -> tuple[list[EncodedPair], np.ndarray]:
    """The pairs, and the log-probability of both answers under the model that the stage begins with, (P, 2).

    Found once and written down: pairs.jsonl, a line a pair, and the index of their texts.
    """
    path, tokenizer = job.directory / "dpo" / "pairs.jsonl", job.tokenizer()
    context, directory = job.settled.train.context_length, path.parent / "data"
    if not path.exists():
        remove_tree(directory)
        found = not_asked(
            joined([pairs(job, part, model) for part in spec.pairs]), asked_in(job.settled.recipe)
        )
        names = told_apart([pair.id for pair in found.kept])
        found = Found(
            [replace(p, id=name) for p, name in zip(found.kept, names, strict=True)], found.rejected
        )
        encoded = encode_pairs(found, tokenizer, context)
        tell_left_out(encoded.reasons)
        fits = {pair.id for pair in encoded.kept}
        kept = [pair for pair in found.kept if pair.id in fits]
        references = reference_of(model, encoded.kept).tolist()
        write_json(path.parent / COUNTS, counts(kept, dict(encoded.reasons)))
        lines = [{**asdict(pair), "reference": both} for pair, both in zip(kept, references, strict=True)]
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    records = list(read_jsonl(path))
    found = Found(
        [
            Pair(
                r["id"],
                tuple(Message(**m) for m in r["prompt"]),
                r["chosen"],
                r["rejected"],
                r["source"],
                r["licence"],
            )
            for r in records
        ],
        [],
    )
    if not directory.exists():
        write_index(directory, [whole(pair) for pair in found.kept])
    reference = np.array([record["reference"] for record in records], dtype=np.float32)
    return encode_pairs(found, tokenizer, context).kept, reference


def whole(pair: Pair) -> Document:
    """The question and both answers, as one text."""
    parts = [*(message.content for message in pair.prompt), pair.chosen, pair.rejected]
    return Document("\n".join(parts), pair.id, pair.source, pair.licence)


def pairs(job: Run, part: Graded | PairRows, model: Transformer) -> Found[Pair]:
    """Preferences from a file or the Hub, or from the model's own answers."""
    if isinstance(part, Graded):
        return graded(job, part, model)
    return told(name_of(part), read_pairs(**where(part, job.settled.recipe.seed)))


def graded(job: Run, part: Graded, model: Transformer) -> Found[Pair]:
    """Pairs that the model makes of its own answers to practice tasks."""
    recipe, tokenizer = job.settled.recipe, job.tokenizer()
    rl = recipe.rl or RlRecipe()
    tasks, _ = practised(recipe)
    each = [limited(task, math.ceil(part.prompts / len(tasks))) for task in tasks]
    prompts = prompts_to(each, tokenizer, rl.max_tokens, model.config.context_length)
    sampler, rewards = EngineSampler(Engine(model), tokenizer, rl.temperature), Rewards(dict(rl.rewards))
    with progress("answers to compare"):
        found, seen = graded_pairs(sampler, prompts, part.samples, rewards, stage_seed(recipe.seed, "dpo"))
    say(
        f"{len(prompts):,} prompts, {part.samples} answers to each: "
        + ", ".join(f"{count:,} {what}" for what, count in seen.most_common())
    )
    left_out = [what for what, count in seen.items() if what != "pair" for _ in range(count)]
    return Found(found, [Rejected(what, what) for what in left_out])


def reference_of(model: Transformer, pairs: Sequence[EncodedPair]) -> np.ndarray:
    """log p(answer | prompt) of both answers, (P, 2)."""
    asked = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    found = score(Engine(model), asked)
    return np.array([scored.logprobs.sum(dtype=np.float64) for scored in found]).reshape(-1, 2)


# ------------------------------------------------------------------------------------------------- prompts to answer


def note_prompts(directory: Path, prompts: Sequence[Prompt]) -> None:
    """Index what the policy will be asked and rewarded for, once: each question with its answer, also worked out."""
    if directory.exists():
        return
    texts = ["\n".join([each.item.prompt, each.item.answer, each.item.solution]) for each in prompts]
    write_index(
        directory,
        [
            Document(text, each.id, each.task.source, each.task.licence)
            for text, each in zip(texts, prompts, strict=True)
        ],
    )
