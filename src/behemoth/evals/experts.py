"""Which tokens go to which expert: routing, counted over held-out text.

A token is characteristic of an expert when it goes there more often than other tokens do and often enough to
matter. So tokens are ranked by what each adds to the mutual information between token and expert,

    n(token, expert) * log( p(expert | token) / p(expert) ).

Plain lift, the quotient alone, would put whatever occurred a few times in one place above everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from behemoth.evals.perplexity import cut
from behemoth.inference.engine import batches, pad
from behemoth.model.transformer import Transformer

if TYPE_CHECKING:
    from behemoth.data.corpus import HeldOut


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

    A token is listed as [text, fraction of its occurrences that went to this expert, occurrences].
    """
    inputs = [window.tokens[:-1] for window in cut(documents, context)]  # whatever has a next token
    counts_LEV, occurrences_V = count_routing(model, inputs, batch_tokens)
    return [
        {"layer": layer, "experts": describe_layer(counts_EV, occurrences_V, decode, top, min_occurrences)}
        for layer, counts_EV in zip(model.config.sparse_layers, counts_LEV, strict=True)
    ]


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
