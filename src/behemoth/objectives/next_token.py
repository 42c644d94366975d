"""Predict the next token: pretraining, and with other weights on the tokens, supervised fine-tuning.

A sparse model also gets a balancing term, `balance * E * sum_e f_e * P_e` per layer (Switch Transformer, arXiv
2101.03961, eq. 4-6), with one change: f, the share of tokens that each expert takes, is that of the *previous* step.
So the term is linear in the tokens of this step, and exact over microbatches and ranks, where the usual one is not.
Tokens count there as they do in the loss: what is not learnt, a prompt or padding, asks nothing of the routers.
Nothing is added to the router's choice, so the exported weights route as the trained ones did.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behemoth.data.batch import Batch
from behemoth.model.transformer import Output, Transformer
from behemoth.objectives.loss import Loss, SoftTarget, cross_entropy


def next_token(model: Transformer, batch: Batch, *, balance: float) -> Loss:
    """Sum over tokens of weight * -log p(next token), plus the balancing term."""
    return predict(model, model(batch.tokens_BT, batch.documents_BT), batch, balance, soft=None)


def predict(model: Transformer, out: Output, batch: Batch, balance: float, soft: SoftTarget | None) -> Loss:
    """The loss of a forward already made, against the text and, when given, a teacher's distribution."""
    ce = cross_entropy(
        out.hidden_BTD.flatten(0, 1),
        model.lm_head.weight,
        batch.targets_BT.flatten(),
        batch.weights_BT.flatten(),
        soft,
    )
    spread, load_LE = uneven(model, out, batch.weights_BT)
    metrics = {"loss": ce.hard, "balance": spread.detach()} | ({"kl": ce.kl} if soft else {})
    return Loss(ce.total + balance * spread, metrics, load_LE)


def uneven(model: Transformer, out: Output, counts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The balancing term and this step's load, where token (b, t) counts `counts_BT[b, t]` times.

    The term is E * sum_e f_e P_e, summed over tokens and averaged over sparse layers: 1 per token when even, E at
    collapse. The load, (L, E), is how often each expert was chosen.
    """
    if not out.routings:
        return model.load_LE.new_zeros(()), model.load_LE
    load_LE, prob_LE = map(
        torch.stack, zip(*(r.weighed(counts_BT.flatten()) for r in out.routings), strict=True)
    )
    return model.config.num_experts * (model.load_LE * prob_LE).sum(1).mean(), load_LE
