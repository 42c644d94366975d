"""How likely a continuation is after its prompt, for many pairs at once.

The choices of a question share its prompt, which is most of what there is to read: prompts that occur several
times are read once, and every continuation goes on from the cache of its own (`KVCache.expect`). The others are
read in one go with their continuation. Either way the head, as large as the rest of a small model, sees only the
positions that are scored. `Engine.logprobs` of the whole row is the obvious version of the same numbers.

Prompts of a few tokens are not worth it and are read again.

Left out: beginnings shared by different prompts (the examples of a few-shot task).

Shapes: B rows, T time, D model width, V vocabulary, N scored tokens of several rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from behemoth.inference.engine import (
    FEWEST_AT_ONCE,
    LOGITS_AT_ONCE,
    Engine,
    Tokens,
    at_compute_precision,
    batches,
    pad,
    read,
)
from behemoth.inference.sampling import token_logprobs
from behemoth.model.transformer import Transformer

WORTH_SHARING = 16  # tokens of a prompt; to read fewer again is quicker than to go on from a cache


class Scored(NamedTuple):
    """Of each token of a continuation: its log-probability in nats, and whether it was the likeliest."""

    logprobs: np.ndarray  # float32
    greedy: np.ndarray  # bool


class Ask(NamedTuple):
    """One continuation, and its place among the answers."""

    place: int
    tokens: Tokens


def score(engine: Engine, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Scored]:
    """Each (prompt, continuation). Raises InputError as `Engine.logprobs`; an empty continuation has no scores."""
    for prompt, continuation in pairs:
        engine.check([*prompt, *continuation], engine.context + 1)
    by_prompt: dict[tuple[int, ...], list[Ask]] = {}
    for place, (prompt, continuation) in enumerate(pairs):
        if len(continuation):
            by_prompt.setdefault(tuple(prompt), []).append(Ask(place, continuation))
    shared = {p for p, asks in by_prompt.items() if len(asks) > 1 and len(p) >= WORTH_SHARING}
    alone = [(p, ask) for p, asks in by_prompt.items() if p not in shared for ask in asks]

    model, budget = at_compute_precision(engine.model), engine.batch_tokens
    found = [Scored(np.zeros(0, np.float32), np.zeros(0, bool))] * len(pairs)
    for batch in batches(alone, lambda pair: len(pair[0]) + len(pair[1].tokens) - 1, budget):
        for (_, ask), scored in zip(batch, score_rows(model, batch), strict=True):
            found[ask.place] = scored
    for prompts in batches([p for p in by_prompt if p in shared], len, budget):
        for place, scored in score_shared(model, [(p, by_prompt[p]) for p in prompts], budget).items():
            found[place] = scored
    return found


@torch.inference_mode()
def score_rows(model: Transformer, rows: Sequence[tuple[tuple[int, ...], Ask]]) -> list[Scored]:
    """Prompt and continuation in one row; only what predicts the continuation goes to the head."""
    tokens_BT, _ = fill(model, [[*prompt, *ask.tokens[:-1]] for prompt, ask in rows])
    hidden_BTD = model(tokens_BT).hidden_BTD
    starts = [len(prompt) - 1 for prompt, _ in rows]
    hidden_ND = torch.cat(
        [
            hidden_D[a : a + len(ask.tokens)]
            for hidden_D, a, (_, ask) in zip(hidden_BTD, starts, rows, strict=True)
        ]
    )
    return judge(model, hidden_ND, [ask.tokens for _, ask in rows])


@torch.inference_mode()
def score_shared(
    model: Transformer, groups: Sequence[tuple[tuple[int, ...], Sequence[Ask]]], budget: int
) -> dict[int, Scored]:
    """Read each prompt once, then its continuations, all but the last token of each, from there."""
    last_BD, cache = read(model, [prompt for prompt, _ in groups])
    asks = [(row, ask) for row, (_, asks) in enumerate(groups) for ask in asks]
    first = judge(model, last_BD[[row for row, _ in asks]], [ask.tokens[:1] for _, ask in asks])
    found = {ask.place: scored for (_, ask), scored in zip(asks, first, strict=True)}
    longer = [(row, ask) for row, ask in asks if len(ask.tokens) > 1]
    longest = max(cache.lengths)
    for batch in batches(longer, lambda pair: longest + len(pair[1].tokens), budget):
        branch = copy.copy(cache)
        branch.take([row for row, _ in batch])
        branch.expect([len(ask.tokens) - 1 for _, ask in batch])
        tokens_BT, real_BT = fill(model, [ask.tokens[:-1] for _, ask in batch])
        hidden_ND = model(tokens_BT, cache=branch).hidden_BTD[real_BT]
        rest = judge(model, hidden_ND, [ask.tokens[1:] for _, ask in batch])
        for (_, ask), scored in zip(batch, rest, strict=True):
            found[ask.place] = Scored(
                *(np.concatenate(both) for both in zip(found[ask.place], scored, strict=True))
            )
    return found


def judge(model: Transformer, hidden_ND: Tensor, targets: Sequence[Tokens]) -> list[Scored]:
    """What the hidden states say of the tokens that came next, row after row; a few thousand at a time."""
    targets_N = torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(hidden_ND.device)
    piece = max(FEWEST_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size)
    logprobs, greedy = [], []
    for hidden, target in zip(hidden_ND.split(piece), targets_N.split(piece), strict=True):
        logits_NV = model.logits(hidden)
        logprobs.append(token_logprobs(logits_NV, target))
        greedy.append(logits_NV.argmax(-1) == target)
    ends = np.cumsum([len(tokens) for tokens in targets])[:-1]
    both = (np.split(torch.cat(found).cpu().numpy(), ends) for found in (logprobs, greedy))
    return [Scored(*of_row) for of_row in zip(*both, strict=True)]


def fill(model: Transformer, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """`pad`, and rounded only where a new shape costs more than the padding (`round_up`): continuations are short."""
    device = model.embed_tokens.weight.device
    return pad(rows, device, rounded=device.type == "cpu" and model.compute_dtype == torch.bfloat16)
