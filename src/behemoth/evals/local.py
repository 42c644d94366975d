"""A model on this machine as a backend: texts become tokens, and a reader of tokens does the rest.

A prompt and what follows it become tokens as in lm-evaluation-harness (`lm_eval.api.model.TemplateLM`), so that
the two can be compared item by item: white space at the end of the prompt goes to the continuation, both are
encoded as one text, and the continuation is what lies beyond the prompt's own number of tokens. The model's
beginning-of-text token comes first. What the context cannot hold is cut away on the left; a prompt that is to be
answered makes room for the answer, but gives up no more than half the context for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch

from behemoth.base.errors import InputError
from behemoth.evals.backends import CHAT, Failed, Generated, Kind, Likelihood
from behemoth.inference.engine import Engine, Finish, StopText
from behemoth.inference.scoring import score
from behemoth.model.open import open_model
from behemoth.tasks.task import before_stop
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

Question = TypeVar("Question")
Answer = TypeVar("Answer")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Row(NamedTuple):
    """A question in tokens. `limit`: the most that may be written."""

    prompt: list[int]
    continuation: list[int]
    limit: int
    truncated: bool


class Written(NamedTuple):
    """What a reader wrote: the text of its tokens, special ones left out."""

    text: str
    tokens: int
    finish: Finish


class Reader(Protocol):
    """A model in tokens."""

    context: int
    opening: list[int]  # what every text begins with
    first: list[int]  # the same, but never nothing: what an empty prompt is
    precision: str  # of the activations
    device: str  # its kind

    def encode(self, text: str) -> list[int]: ...

    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Of each continuation after its prompt: log-probability in nats, and whether all of it was likeliest."""
        ...

    def write(self, rows: Sequence[Row], stop: Sequence[str]) -> list[Written]:
        """What follows each prompt, greedily. It may go beyond a stop string; `Local` cuts."""
        ...


class Local:
    """A `Backend` from a reader."""

    def __init__(self, reader: Reader, name: str, sha256: str, kind: Kind, batch: int = 256, route: str = ""):
        self.reader, self.name, self.sha256, self.kind, self.batch = reader, name, sha256, kind, batch
        self.route = route
        self.precision, self.device = reader.precision, reader.device

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failed]:
        def ask(rows: Sequence[Row]) -> list[Likelihood | Failed]:
            return [
                Likelihood(logprob, greedy, len(row.continuation), row.truncated)
                if math.isfinite(logprob)
                else Failed(f"the log-probability is {logprob}: the model's weights or activations overflow")
                for row, (logprob, greedy) in zip(rows, self.reader.score(rows), strict=True)
            ]

        return among(attempt(self.pair, pairs), ask)

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Generated | Failed]:
        stop = [string for string in stop if string]

        def ask(rows: Sequence[Row]) -> list[Generated | Failed]:
            written = self.reader.write(rows, stop)
            return [generated(row, text, stop) for row, text in zip(rows, written, strict=True)]

        return among(attempt(lambda prompt: self.prompt(prompt, max_tokens), prompts), ask)

    def nats(self, texts: Sequence[str]) -> list[float | Failed]:
        def ask(documents: Sequence[list[Row]]) -> list[float | Failed]:
            scores = iter(self.reader.score([row for rows in documents for row in rows]))
            sums = [math.fsum(-next(scores)[0] for _ in rows) for rows in documents]
            return [nats if math.isfinite(nats) else Failed(f"the sum is {nats} nats") for nats in sums]

        return among(attempt(self.windows, texts), ask)

    def pair(self, pair: tuple[str, str]) -> Row:
        prompt, continuation = pair
        kept = prompt.rstrip()
        opening = self.reader.opening if kept else self.reader.first
        before = self.reader.encode(kept)
        after = self.reader.encode(prompt + continuation)[len(before) :]
        if not after:
            raise InputError("nothing to score: the continuation has no token of its own")
        if len(after) > self.reader.context:
            raise InputError(
                f"the continuation has {len(after)} tokens and the context holds {self.reader.context}"
            )
        room = self.reader.context + 1 - len(after)  # the last token is not read
        whole = [*opening, *before]
        return Row(whole[-room:], after, 0, len(whole) > room)

    def prompt(self, prompt: str, max_tokens: int) -> Row:
        whole = [*(self.reader.opening if prompt else self.reader.first), *self.reader.encode(prompt)]
        context = self.reader.context
        kept = whole[-max(context - max_tokens, context // 2, 1) :]
        return Row(kept, [], min(max_tokens, context - len(kept)), len(kept) < len(whole))

    def windows(self, text: str) -> list[Row]:
        """Each token once: a window's last target is the next one's first input."""
        ids, context = [*self.reader.first, *self.reader.encode(text)], self.reader.context
        starts = range(0, len(ids) - 1, context)
        return [Row([ids[a]], ids[a + 1 : a + 1 + context], 0, False) for a in starts]


def attempt(prepare: Callable[[Question], Answer], questions: Sequence[Question]) -> list[Answer | Failed]:
    """What cannot be asked is told, and the others are."""

    def one(question: Question) -> Answer | Failed:
        try:
            return prepare(question)
        except InputError as error:
            return Failed(str(error))

    return [one(question) for question in questions]


def among(
    questions: Sequence[Question | Failed], ask: Callable[[Sequence[Question]], list[Answer | Failed]]
) -> list[Answer | Failed]:
    """Ask those that have not failed; every answer in its question's place."""
    answers = iter(halving([question for question in questions if not isinstance(question, Failed)], ask))
    return [question if isinstance(question, Failed) else next(answers) for question in questions]


def halving(
    questions: Sequence[Question], ask: Callable[[Sequence[Question]], list[Answer | Failed]]
) -> list[Answer | Failed]:
    """Ask them together; where that is refused (one answer is nan), in halves, so that only the culprits fail."""
    try:
        return ask(questions)
    except InputError as error:
        if len(questions) < 2:
            return [Failed(str(error)) for _ in questions]
    middle = len(questions) // 2
    return halving(questions[:middle], ask) + halving(questions[middle:], ask)


def generated(row: Row, written: Written, stop: Sequence[str]) -> Generated:
    """Of what was written, that which lies before the stop strings, each in turn."""
    text = before_stop(written.text, stop)
    finish = written.finish if text == written.text else "stop"
    return Generated(text, written.tokens, finish, row.truncated)


def dtype_of(precision: str | None) -> torch.dtype | None:
    """InputError: there is no such precision. None: as stored."""
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"precision = {precision!r}; it is one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision] if precision else None


def precision_of(dtype: torch.dtype) -> str:
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def where(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


# ---------------------------------------------------------------------------------------------- our own models


class Ours:
    """A model of this package: the engine reads. Scoring is quickest in batches that stay in a processor's cache,
    writing in large ones: a step costs hardly more for many rows than for one."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.writer = engine, Engine(engine.model, engine.context)
        self.tokenizer, self.encode = tokenizer, tokenizer.encode
        self.context = self.engine.context
        self.opening = self.first = [tokenizer.bos_id]
        self.precision = precision_of(engine.model.compute_dtype)
        self.device = engine.model.embed_tokens.weight.device.type

    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        scored = score(self.engine, [(row.prompt, row.continuation) for row in rows])
        return [(float(s.logprobs.sum(dtype="float64")), bool(s.greedy.all())) for s in scored]

    def write(self, rows: Sequence[Row], stop: Sequence[str]) -> list[Written]:
        done = self.writer.generate(
            [row.prompt for row in rows],
            max_tokens=[row.limit for row in rows],
            stop_ids=self.tokenizer.stop_ids,
            stop_text=StopText(tuple(string.encode() for string in stop), self.tokenizer.token_bytes),
        )
        return [Written(self.tokenizer.decode(d.tokens), len(d.tokens), d.finish) for d in done]


class Chatting(Ours):
    """The same model, asked as a person asks it: every prompt is a user's message in the chat template."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        super().__init__(engine, tokenizer)
        self.opening = self.first = []
        self.encode = lambda text: encode_chat(tokenizer, [Message("user", text)], generation_prompt=True).ids

    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        raise InputError(
            "in the chat template a model is asked to write; leave --chat out for choices and texts"
        )


def open_ours(spec: str | Path, dtype: torch.dtype | None, device: torch.device, chat: bool = False) -> Local:
    """Whatever `open_model` opens. chat: asked in the chat template."""
    opened = open_model(spec, dtype, device)
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    engine = Engine(opened.model, batch_tokens=4096 if device.type == "cpu" else 65_536)
    return local(engine, tokenizer, opened.name, opened.sha256, chat)


def local(engine: Engine, tokenizer: Tokenizer, name: str, sha256: str, chat: bool = False) -> Local:
    """Our engine as a backend."""
    reader = Chatting(engine, tokenizer) if chat else Ours(engine, tokenizer)
    return Local(reader, name, sha256, "behemoth", route=CHAT if chat else "")
