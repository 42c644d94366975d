"""What the experts do: which tokens go to which, and what is lost without each.

Routing is counted over held-out text. A token is characteristic of an expert when it goes there more often than
other tokens do and often enough to matter. So tokens are ranked by what each adds to the mutual information
between token and expert,

    n(token, expert) * log( p(expert | token) / p(expert) ).

Plain lift, the quotient alone, would put whatever occurred a few times in one place above everything else.

What an expert is worth is measured by removing it: its output becomes zero, so that the tokens which choose it
keep the shared expert alone, and the held-out text is scored again. An expert that can be removed for nothing is
idle, or a copy of the shared one. Left out: removing several at once, and sending the tokens to the next best.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from behemoth.base.logs import progress
from behemoth.evals.perplexity import cut, score_documents
from behemoth.inference.engine import batches, pad
from behemoth.model.transformer import MoE, Transformer
from behemoth.stats.paired import Comparison, compare_many, text_scores

if TYPE_CHECKING:
    from behemoth.data.corpus import HeldOut

KINDS = {  # of tokens, by how they are written; the first that fits
    "white space": re.compile(r"\s+"),
    "number": re.compile(r"\s?\d+"),
    "beginning of a word": re.compile(r"\s[^\W\d_]+"),
    "inside a word": re.compile(r"[^\W\d_]+"),
    "punctuation": re.compile(r"\s?[^\w\s]+\s*"),
}
OTHER = "other"
MOST_REMOVED = 512  # experts that are removed in turn, each at the price of scoring the text once


def kind_of(token: str) -> str:
    """Which of KINDS a token's text is; a mixture, or no text at all, is "other"."""
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(token)), OTHER)


def expert_map(
    model: Transformer,
    documents: Sequence[HeldOut],
    decode: Callable[[list[int]], str],
    context: int,
    *,
    top: int = 12,
    min_occurrences: int = 20,
    batch_tokens: int = 8192,
) -> list[dict[str, Any]]:
    """For each sparse layer: every expert's share of the choices, and its most characteristic tokens.

    A token is listed as [text, fraction of its occurrences that went to this expert, occurrences]; `kinds` is how
    what the expert reads divides among the kinds of tokens, and the layer's own `kinds` how all text does.
    """
    inputs = [window.tokens[:-1] for window in cut(documents, context)]  # whatever has a next token
    counts_LEV, occurrences_V = count_routing(model, inputs, batch_tokens)
    kinds_V = np.array([kind_of(decode([v])) if n else OTHER for v, n in enumerate(occurrences_V)])
    layers = []
    for layer, counts_EV in zip(model.config.sparse_layers, counts_LEV, strict=True):
        experts = describe_layer(counts_EV, occurrences_V, decode, top, min_occurrences)
        for expert, counts_V in zip(experts, counts_EV, strict=True):
            expert["kinds"] = shares_of(kinds_V, counts_V)
        layers.append({"layer": layer, "kinds": shares_of(kinds_V, occurrences_V), "experts": experts})
    return layers


def shares_of(kinds_V: np.ndarray, counts_V: np.ndarray) -> dict[str, float]:
    total = max(int(counts_V.sum()), 1)
    return {kind: float(counts_V[kinds_V == kind].sum()) / total for kind in (*KINDS, OTHER)}


def losses_without(
    model: Transformer, documents: Sequence[HeldOut], context: int, batch_tokens: int = 8192
) -> list[dict[str, Any]]:
    """What removing each expert adds to the held-out bits per byte, all text and source by source.

    documents: what is scored, once for every expert; `perplexity.stretches` takes it from inside many of them. One
    entry per layer and expert (of every layer, where that is not too many): {"layer", "expert", "sources": {name:
    {"added", "low", "high", "level", "verdict", "documents", "tokens"}}}; the name "all" stands for every document.
    Intervals are paired by document, and all the experts of a model are one family (Holm) in each source. The verdict
    is of the model with the expert: "better" where the expert is worth something.
    """
    if not model.config.sparse_layers:
        return []
    base = score_documents(model, documents, context, batch_tokens)
    names = list(dict.fromkeys(document.source for document in documents))
    groups = {"all": list(range(len(documents)))} | {
        name: [i for i, document in enumerate(documents) if document.source == name] for name in names
    }
    if len(names) == 1:
        del groups[names[0]]
    layers, E = model.config.sparse_layers, model.config.num_experts
    chosen = layers[:: -(-len(layers) * E // MOST_REMOVED)]  # of a model with very many, layers evenly spaced
    pairs = [(layer, expert) for layer in chosen for expert in range(E)]
    scored = []
    with progress("removing each expert in turn", total=len(pairs)) as advance:
        for layer, expert in pairs:
            with removed(model, layer, expert):
                scored.append(score_documents(model, documents, context, batch_tokens))
            advance(1)
    worth = {name: added(base, scored, documents, rows) for name, rows in groups.items()}
    return [
        {"layer": layer, "expert": expert, "sources": {name: found[i] for name, found in worth.items()}}
        for i, (layer, expert) in enumerate(pairs)
    ]


def added(
    base: np.ndarray, scored: Sequence[np.ndarray], documents: Sequence[HeldOut], rows: list[int]
) -> list[dict[str, Any]]:
    """Bits per byte of the documents `rows` without each expert, less those with it; the experts are one family.

    base: nats with every expert, (documents,); scored: the same without each in turn.
    """
    ids, num_bytes = [documents[i].id for i in rows], np.array([documents[i].num_bytes for i in rows])
    what = {"documents": len(rows), "tokens": sum(len(documents[i].tokens) - 1 for i in rows)}
    if len(rows) < 2:
        nothing = {"low": None, "high": None, "level": None, "verdict": "cannot tell", **what}
        differences = (
            float((without[rows] - base[rows]).sum() / np.log(2) / num_bytes.sum()) for without in scored
        )
        return [{"added": difference, **nothing} for difference in differences]
    with_it = text_scores("with", ids, base[rows], num_bytes)
    family = compare_many([(with_it, text_scores("without", ids, nats[rows], num_bytes)) for nats in scored])
    return [{"added": one.difference.estimate, **told(one), **what} for one in family]


def told(found: Comparison) -> dict[str, Any]:
    of = found.difference
    return {"low": of.low, "high": of.high, "level": of.level, "verdict": found.verdict}


@contextmanager
def removed(model: Transformer, layer: int, expert: int) -> Iterator[None]:
    """The model while one expert adds nothing; afterwards it is as it was, to the bit."""
    moe = model.layers[layer].feed_forward
    assert isinstance(moe, MoE), f"layer {layer} has no experts"
    weight = moe.experts.down_proj.data[expert]
    kept = weight.clone()
    weight.zero_()
    try:
        yield
    finally:
        weight.copy_(kept)


@torch.inference_mode()
def count_routing(
    model: Transformer, rows: Sequence[np.ndarray], batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each token went to each expert, (L, E, V), and how often it occurred, (V,)."""
    config = model.config
    E, V = config.num_experts, config.vocab_size
    counts_LEV = np.zeros((len(config.sparse_layers), E, V), np.int64)
    occurrences_V = np.zeros(V, np.int64)
    device = next(model.parameters()).device
    for batch in batches(rows, len, batch_tokens):
        tokens_BT, real_BT = pad(batch, device)
        tokens_N, real_N = np.concatenate(batch), real_BT.flatten()
        occurrences_V += np.bincount(tokens_N, minlength=V)
        for counts_EV, chosen_Mk in zip(counts_LEV, model(tokens_BT).experts, strict=True):
            pairs_Nk = chosen_Mk[real_N].cpu().numpy() * V + tokens_N[:, None]
            counts_EV += np.bincount(pairs_Nk.flatten(), minlength=E * V).reshape(E, V)
    return counts_LEV, occurrences_V


def describe_layer(
    counts_EV: np.ndarray,
    occurrences_V: np.ndarray,
    decode: Callable[[list[int]], str],
    top: int,
    min_occurrences: int,
) -> list[dict[str, Any]]:
    shares = counts_EV.sum(1) / max(counts_EV.sum(), 1)
    choices_per_token = counts_EV.sum() / max(occurrences_V.sum(), 1)
    fractions_EV = counts_EV / np.maximum(occurrences_V, 1)
    experts = []
    for expert, (counts_V, fractions_V) in enumerate(zip(counts_EV, fractions_EV, strict=True)):
        expected = max(shares[expert] * choices_per_token, 1e-12)  # the fraction of an average token
        with np.errstate(divide="ignore", invalid="ignore"):
            information_V = np.where(counts_V > 0, counts_V * np.log(fractions_V / expected), 0.0)
        information_V[occurrences_V < min_occurrences] = 0.0
        best = [int(v) for v in np.argsort(-information_V, kind="stable")[:top] if information_V[v] > 0]
        tokens = [[decode([v]), round(float(fractions_V[v]), 4), int(occurrences_V[v])] for v in best]
        experts.append({"expert": expert, "share": float(shares[expert]), "tokens": tokens})
    return experts
