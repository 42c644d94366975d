"""How many nats a model needs for text it has not seen.

A document, [bos] ids [eos], is cut into windows of `context` tokens that do not overlap; within a window
each token is predicted from those before it, and the first token of a document is given. So every token is
predicted exactly once, by model and baselines alike, and the sum over a document divided by its bytes can
be compared across tokenizers. The first tokens of a window have little to go by: a sliding window would
flatter the model a little and cost many times more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from behemoth.inference.engine import Engine
from behemoth.model.transformer import Transformer

if TYPE_CHECKING:
    from behemoth.data.corpus import HeldOut


class Window(NamedTuple):
    """A stretch of a document: every token but the first is to be predicted."""

    document: int
    tokens: np.ndarray


def score_documents(
    model: Transformer, documents: Sequence[HeldOut], context: int, batch_tokens: int = 8192
) -> np.ndarray:
    """Nats needed for each document, (documents,) float64. A forward reads at most `batch_tokens` tokens."""
    nats, windows = np.zeros(len(documents)), cut(documents, context)
    scored = Engine(model, context, batch_tokens).logprobs([window.tokens for window in windows])
    for window, logprobs in zip(windows, scored, strict=True):
        nats[window.document] -= logprobs.sum(dtype=np.float64)
    return nats


def held_out_bits(model: Transformer, documents: Sequence[HeldOut], context: int) -> float:
    """Bits per byte over all documents; `stats` knows how sure that is, at a hundred times the cost."""
    nats = score_documents(model, documents, context)
    return float(nats.sum()) / math.log(2) / sum(document.num_bytes for document in documents)


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


def stretches(
    documents: Sequence[HeldOut], byte_lengths: np.ndarray, length: int, most: int, seed: int = 0
) -> list[HeldOut]:
    """A stretch of `length` predicted tokens from a place inside each of up to `most` documents; seeded, so fixed.

    Many short stretches tell more than a few long ones, and from anywhere: files begin alike, with headers and imports.
    A shorter document is taken whole; a stretch that stands for no bytes is left out.
    """
    generator = np.random.default_rng(seed)
    found = []
    for i in generator.permutation(len(documents)):
        start = int(generator.integers(max(len(documents[i].tokens) - length, 1)))
        tokens = documents[i].tokens[start : start + length + 1]
        if num_bytes := int(byte_lengths[tokens[1:]].sum()):
            found.append(dataclasses.replace(documents[i], tokens=tokens, num_bytes=num_bytes))
        if len(found) == most:
            break
    return found


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
