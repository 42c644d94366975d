"""Prefer one answer to another: direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7).

    loss per pair = -log sigmoid(beta * (r(chosen) - r(rejected))),   r = log p(answer) - log p_reference(answer)

Two additions, both off by default: `per_token` divides each r by its answer's number of tokens, so that length is
not a reward (length-normalised DPO as in Tulu 3, arXiv 2411.15124); beta then is of the size of 5. `nll` adds that much
of the chosen answer's cross-entropy per token, which keeps its likelihood from sinking with the rejected one's
(Llama 3, arXiv 2407.21783, section 4.1.4; 0.2 there).

What the reference thinks is computed once, before training, and comes with the batch: one model is in memory, not two.
"""

from __future__ import annotations

import torch.nn.functional as F

from behemoth.data.batch import Pairs
from behemoth.model.transformer import Transformer
from behemoth.objectives.logprobs import scores
from behemoth.objectives.loss import Loss
from behemoth.objectives.next_token import uneven


def dpo(
    model: Transformer, batch: Pairs, *, beta: float, per_token: bool, nll: float, balance: float
) -> Loss:
    """Sum over pairs. In the balancing term a pair counts 1, shared evenly among its answers' tokens."""
    out = model(batch.tokens_BT, batch.documents_BT)
    logp_B = (batch.weights_BT * scores(model, out, batch).logp).sum(1)
    tokens_B = batch.weights_BT.sum(1)
    ratio_B = logp_B - batch.reference_B
    reward_B = beta * (ratio_B / tokens_B if per_token else ratio_B)
    better, worse = reward_B.unflatten(0, (-1, 2)).unbind(1)
    loss = -F.logsigmoid(better - worse).sum()
    surprise = -(logp_B / tokens_B)[0::2].sum()

    of_pair_B = tokens_B.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2)
    spread, load_LE = uneven(model, out, batch.weights_BT / of_pair_B.unsqueeze(1))
    metrics = {
        "loss": loss,
        "accuracy": (better > worse).float().sum(),
        "margin": (better - worse).sum(),
        "reward_chosen": better.sum(),
        "reward_rejected": worse.sum(),
        "nll_chosen": surprise,
        "balance": spread,
    }
    total = loss + nll * surprise + balance * spread
    return Loss(total, {name: value.detach() for name, value in metrics.items()}, load_LE)
