"""How many nats a model needs for text it has not seen.

A document, [bos] ids [eos], is cut into windows of `context` tokens that do not overlap; within a window
each token is predicted from those before it, and the first token of a document is given. So every token is
predicted exactly once, by model and baselines alike, and the sum over a document divided by its bytes can
be compared across tokenizers. The first tokens of a window have little to go by: a sliding window would
flatter the model a little and cost many times more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.evals.results import scores
from behemoth.model.transformer import Transformer
from behemoth.stats.bootstrap import Interval
from behemoth.stats.paired import bits_per_byte

if TYPE_CHECKING:
    from behemoth.data.corpus import HeldOut

LOGIT_ROWS = 1024  # how many tokens' logits exist at once


class Window(NamedTuple):
    """A stretch of a document: every token but the first is to be predicted."""

    document: int
    tokens: np.ndarray


def score_documents(
    model: Transformer, documents: Sequence[HeldOut], context: int, batch_tokens: int = 8192
) -> np.ndarray:
    """Nats needed for each document, (documents,) float64. A forward reads at most `batch_tokens` tokens."""
    nats = np.zeros(len(documents))
    with torch.no_grad():
        for group in batches(cut(documents, context), batch_tokens):
            np.add.at(nats, [window.document for window in group], score_windows(model, group))
    return nats


def held_out_bits(
    model: Transformer, documents: Sequence[HeldOut], context: int, name: str = "model"
) -> Interval:
    """Bits per byte over all documents, with its interval."""
    return bits_per_byte(scores(name, documents, score_documents(model, documents, context)))


def fixed_subset(
    documents: Sequence[HeldOut], byte_lengths: np.ndarray, context: int, max_tokens: int, seed: int = 0
) -> list[HeldOut]:
    """The first window of a few documents, `max_tokens` in all but two documents at least: quick to score.

    `byte_lengths[id]` is the bytes a token stands for. The same documents and seed give the same subset.
    """
    chosen: list[HeldOut] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(len(documents)):
        for beginning in beginnings([documents[i]], byte_lengths, context + 1):
            total += len(beginning.tokens) - 1
            if total > max_tokens and len(chosen) >= 2:
                return chosen
            chosen.append(beginning)
    return chosen


def beginnings(documents: Sequence[HeldOut], byte_lengths: np.ndarray, max_tokens: int) -> list[HeldOut]:
    """Each document's first `max_tokens` tokens, so that no long one decides the result alone.

    A document whose beginning stands for no bytes is left out.
    """
    found = []
    for document in documents:
        tokens = document.tokens[:max_tokens]
        if num_bytes := int(byte_lengths[tokens[1:]].sum()):
            found.append(dataclasses.replace(document, tokens=tokens, num_bytes=num_bytes))
    return found


def cut(documents: Sequence[HeldOut], context: int) -> list[Window]:
    """Windows of `context` inputs; a window's last target is the next one's first input."""
    return [
        Window(number, document.tokens[start : start + context + 1])
        for number, document in enumerate(documents)
        for start in range(0, len(document.tokens) - 1, context)
    ]


def batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, the longest first, so that little of a batch is padding."""
    group: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.tokens)):
        if group and (len(group) + 1) * (len(group[0].tokens) - 1) > batch_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def score_windows(model: Transformer, group: list[Window]) -> np.ndarray:
    """Nats of each window, (windows,) float64. Padding stands to the right, where no token sees it."""
    tokens_BT, real_BT = padded(group)
    device = next(model.parameters()).device
    inputs, targets, real = (x.to(device) for x in (tokens_BT[:, :-1], tokens_BT[:, 1:], real_BT[:, 1:]))
    hidden_ND = model(inputs).hidden_BTD[real]
    nats_N = token_nats(model, hidden_ND, targets[real]).double().cpu()
    rows_N = real.cpu().nonzero()[:, 0]
    return torch.zeros(len(group), dtype=torch.float64).index_add_(0, rows_N, nats_N).numpy()


def token_nats(model: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Minus log probability of each target in fp32, a slice of the logits at a time."""
    return torch.cat(
        [
            F.cross_entropy(model.logits(hidden).float(), targets, reduction="none")
            for hidden, targets in zip(hidden_ND.split(LOGIT_ROWS), targets_N.split(LOGIT_ROWS), strict=True)
        ]
    )


def padded(group: list[Window]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T+1), zero beyond a window's end, and which slots are real."""
    longest = max(len(window.tokens) for window in group)
    tokens_BT = np.zeros((len(group), longest), np.int64)
    real_BT = np.zeros((len(group), longest), bool)
    for row, window in enumerate(group):
        tokens_BT[row, : len(window.tokens)] = window.tokens
        real_BT[row, : len(window.tokens)] = True
    return torch.from_numpy(tokens_BT), torch.from_numpy(real_BT)
