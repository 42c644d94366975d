"""The engine: prompts in, tokens out. Evaluation, samples, `generate` and `chat` all
come here.

A batch is read once, padded on the right, and then grows by one token per row and forward; a row that is
finished leaves. Rows are taken in order of length, so that little of a batch is padding, and as many at a time
as a budget of tokens allows. Equal prompts in a batch (the group of a policy gradient, the samples of pass@k)
are read once. Every row has its own seed, so what it says does not depend on who is beside it.

Left out: rows that join a batch under way, prefixes kept from one call to the next, speculative decoding.

Shapes: B rows, T time, D model width, V vocabulary, N tokens of several rows.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from behemoth.base.errors import InputError
from behemoth.inference.cache import KVCache, round_up
from behemoth.inference.sampling import Sampling, choose, token_logprobs
from behemoth.model.adapters import adapter_parameters, merged
from behemoth.model.transformer import Transformer

Finish = Literal["stop", "length"]
Tokens = Sequence[int] | np.ndarray
Item = TypeVar("Item")

LOGITS_AT_ONCE = 2**21  # 8 MiB of fp32: they stay in a processor's cache until they are summed
FEWEST_AT_ONCE = 128  # rows, where the vocabulary is large: fewer do not fill a matrix product


class Token(NamedTuple):
    """One generated token; `finish` says why the row ends with it, None that it goes on."""

    id: int
    logprob: float  # under the model's own distribution: temperature 1, nothing cut
    finish: Finish | None


@dataclass(frozen=True)
class Completion:
    """What was generated after one prompt. After "stop" the last token is the stop token."""

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    prompt_tokens: int


@dataclass(frozen=True)
class StopText:
    """Strings that end a row wherever they begin and end among its tokens; `token_bytes[id]` is a token's text."""

    strings: tuple[bytes, ...] = ()
    token_bytes: Sequence[bytes] = ()

    def follow(self, tail: bytes, id: int) -> tuple[bool, bytes]:
        """Whether token `id` after `tail` completes one of the strings; and the tail for the next token."""
        if not self.strings:
            return False, b""
        text = tail + self.token_bytes[id]
        keep = max(len(string) for string in self.strings) - 1
        return any(string in text for string in self.strings), text[-keep:] if keep else b""


@dataclass(frozen=True)
class Request:
    """One row of a batch; `limit` is the most tokens that may follow the prompt."""

    prompt: Sequence[int]
    limit: int
    seed: int

    @property
    def room(self) -> int:
        return len(self.prompt) + self.limit


class Engine:
    """Generates from, and scores with, one model, whose weights are read anew at every call.

    max_context: longest row, prompt and answer together; by default the model's `context_length`.
    batch_tokens: most tokens of one batch, padding and answers included; at least one row is always taken.
    """

    def __init__(self, model: Transformer, max_context: int | None = None, batch_tokens: int = 32_768):
        self.model, self.batch_tokens = model, batch_tokens
        self.context = max_context or model.config.context_length

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | Sequence[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seeds: Sequence[int] | None = None,
        stop_ids: Iterable[int] = (),
        stop_text: StopText | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in the order of the prompts.

        max_tokens: for all, or one for each. seeds: one for each; by default 0, 1, 2 ... A row ends with a
        token of `stop_ids` or the token that completes a `stop_text` ("stop"), or after max_tokens or at the
        end of the context ("length"). Raises InputError for a prompt that is empty, longer than the context, or
        not of this vocabulary.
        """
        how, stops = Sampling(temperature, top_p, top_k), frozenset(stop_ids)
        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        requests = self._requests(prompts, limits, range(len(prompts)) if seeds is None else seeds)
        tokens: list[list[Token]] = [[] for _ in prompts]
        model = at_compute_precision(self.model)
        asked = [row for row, request in enumerate(requests) if request.limit > 0]
        for batch in batches(asked, lambda row: requests[row].room, self.batch_tokens):
            for step in decode(model, [requests[row] for row in batch], how, stops, stop_text or StopText()):
                for place, token in step:
                    tokens[batch[place]].append(token)
        return [completion(request, answer) for request, answer in zip(requests, tokens, strict=True)]

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop_ids: Iterable[int] = (),
    ) -> Iterator[Token]:
        """One prompt, token by token; by default to the end of the context. Raises as `generate`."""
        how, stops = Sampling(temperature, top_p, top_k), frozenset(stop_ids)
        (request,) = self._requests([prompt], [self.context if max_tokens is None else max_tokens], [seed])
        if request.limit == 0:
            return iter(())
        steps = decode(at_compute_precision(self.model), [request], how, stops)
        return (token for ((_, token),) in steps)

    def logprobs(self, rows: Sequence[Tokens]) -> list[np.ndarray]:
        """The natural log of the probability of each token given those before it: float32 (len(row) - 1,).

        The first token of a row has nothing before it and no entry; the last is not read, so that a row may be
        one token longer than the context. Raises InputError for a row that is empty, longer than that, or not
        of this vocabulary.
        """
        for row in rows:
            self.check(row, self.context + 1)
        model = at_compute_precision(self.model)
        scores = [np.zeros(0, np.float32)] * len(rows)
        asked = [number for number, row in enumerate(rows) if len(row) > 1]
        for batch in batches(asked, lambda number: len(rows[number]) - 1, self.batch_tokens):
            found = score_batch(model, [rows[number] for number in batch])
            for number, score in zip(batch, found, strict=True):
                scores[number] = score
        return scores

    def _requests(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int]
    ) -> list[Request]:
        """Everything a caller can have got wrong is found here, before any work."""
        for name, values in (("max_tokens", limits), ("seeds", seeds)):
            if len(values) != len(prompts):
                raise InputError(
                    f"{name} has {len(values)} values for {len(prompts)} prompts: give one for each"
                )
        if limits and min(limits) < 0:
            raise InputError(f"max_tokens = {min(limits)}: must be 0 or more")
        for prompt in prompts:
            self.check(prompt, self.context)
        return [
            Request(prompt, min(limit, self.context - len(prompt)), seed)
            for prompt, limit, seed in zip(prompts, limits, seeds, strict=True)
        ]

    def check(self, row: Tokens, most: int) -> None:
        if not len(row):
            raise InputError("the prompt has no tokens: begin it with the tokenizer's bos token")
        if len(row) > most:
            raise InputError(
                f"the prompt has {len(row)} tokens and the context holds {self.context}: "
                "shorten the prompt or raise the context"
            )
        low, high, size = np.min(row), np.max(row), self.model.config.vocab_size
        if low < 0 or high >= size:
            raise InputError(
                f"token {low if low < 0 else high} is not among the model's {size}: "
                "the text was not encoded by this model's tokenizer"
            )


def batches(rows: Iterable[Item], room: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Rows in order of the slots that each needs, most first, as many at a time as `budget` slots hold.

    A row too large for the budget comes alone. As `pad` rounds lengths up, most batches have one of few shapes.
    """
    batch: list[Item] = []
    for row in sorted(rows, key=room, reverse=True):
        if batch and (len(batch) + 1) * round_up(room(batch[0])) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def completion(request: Request, tokens: Sequence[Token]) -> Completion:
    finish = tokens[-1].finish if tokens else "length"
    assert finish is not None, "a row ended without a reason"
    return Completion([t.id for t in tokens], [t.logprob for t in tokens], finish, len(request.prompt))


@torch.inference_mode()
def decode(
    model: Transformer,
    requests: Sequence[Request],
    how: Sampling,
    stops: frozenset[int],
    stop_text: StopText = StopText(),
) -> Iterator[list[tuple[int, Token]]]:
    """Generate after every prompt at once: step by step, (row, token) of every row that still goes on."""
    last_BD, cache = read(model, [request.prompt for request in requests])
    rows, tails = list(range(len(requests))), [b""] * len(requests)
    for index in itertools.count():
        seeds = [requests[row].seed for row in rows]
        tokens_B, logprobs_B = choose(model.logits(last_BD), how, seeds, index)
        if logprobs_B.isnan().any():
            raise InputError(
                f"token {index + 1} of an answer has no probability: the model's weights hold nan"
            )
        step = []
        for row, id, logprob in zip(rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
            said_stop, tails[row] = stop_text.follow(tails[row], id)
            finish = "stop" if said_stop else why_finished(id, index + 1, requests[row].limit, stops)
            step.append((row, Token(id, logprob, finish)))
        yield step
        ended = [place for place, (_, token) in enumerate(step) if token.finish]
        if len(ended) == len(rows):
            return
        if ended:
            stays = cache.drop(ended)
            rows, tokens_B = [rows[place] for place in stays], tokens_B[stays]
        last_BD = model(tokens_B.unsqueeze(1), cache=cache).hidden_BTD[:, 0]


def why_finished(id: int, count: int, limit: int, stops: frozenset[int]) -> Finish | None:
    if id in stops:
        return "stop"
    return "length" if count == limit else None


def read(model: Transformer, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
    """Run the prompts, equal ones once: the last hidden state of each row (B, D), and the filled cache."""
    places: dict[tuple[int, ...], int] = {}
    rows = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    lengths, device = [len(prompt) for prompt in places], model.embed_tokens.weight.device
    cache = KVCache(model.config, lengths, device)
    tokens_BT, _ = pad(list(places), device)
    hidden_BTD = model(tokens_BT, cache=cache).hidden_BTD
    last_BD = hidden_BTD[torch.arange(len(lengths), device=device), cache.positions_B - 1]
    if len(places) < len(rows):
        cache.take(rows)
        last_BD = last_BD[rows]
    return last_BD, cache


@torch.inference_mode()
def score_batch(model: Transformer, rows: Sequence[Tokens]) -> list[np.ndarray]:
    """`Engine.logprobs` of one batch: one forward, and the head a few thousand tokens at a time."""
    device = model.embed_tokens.weight.device
    tokens_BT, real_BT = pad([row[:-1] for row in rows], device)
    hidden_ND = model(tokens_BT).hidden_BTD[real_BT]
    targets_N = torch.from_numpy(np.concatenate([row[1:] for row in rows]).astype(np.int64)).to(device)
    piece = max(FEWEST_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size)
    scores = [
        token_logprobs(model.logits(hidden), targets)
        for hidden, targets in zip(hidden_ND.split(piece), targets_N.split(piece), strict=True)
    ]
    return np.split(torch.cat(scores).cpu().numpy(), np.cumsum([len(row) - 1 for row in rows])[:-1])


def pad(rows: Sequence[Tokens], device: torch.device, rounded: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) int64, filled up on the right with token 0, which no real token ever sees, and which slots
    are real, (B, T) bool. T is the longest row's length, rounded up unless the caller knows better."""
    longest = max(len(row) for row in rows)
    longest = round_up(longest) if rounded else longest
    tokens_BT = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        tokens_BT[place, : len(row)] = row
    real_BT = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    return torch.from_numpy(tokens_BT).to(device), torch.from_numpy(real_BT).to(device)


def at_compute_precision(model: Transformer) -> Transformer:
    """The model; or, where its weights are finer than its activations, a copy with the weights cast once.

    Otherwise every forward would cast every weight: little beside a batch of training, most of the time of a
    step that reads one token. So it is with an adapter, which is folded in once.
    """
    if adapter_parameters(model):
        model = merged(model)
    weights = list(model.parameters())
    if all(weight.dtype == model.compute_dtype for weight in weights):
        return model
    cast = {id(w): nn.Parameter(w.detach().to(model.compute_dtype), requires_grad=False) for w in weights}
    return copy.deepcopy(model, memo=cast)  # deepcopy takes what the memo holds: the cast weights
