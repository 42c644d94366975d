"""The log-probability of each token that was chosen: what preferences and rewards are learnt through.

`cross_entropy` knows its gradient as soon as it has the loss; here the loss is made of the log-probabilities later,
by whoever asked for them. So each chunk of logits is made twice: forward, and again when the gradient arrives. Never
more than a few hundred tokens' logits are in memory, as there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from behemoth.data.batch import Batch
from behemoth.model.transformer import Output, Transformer
from behemoth.objectives.loss import tokens_per_chunk


class Scores(NamedTuple):
    """Of each token that counts, in nats and fp32; 0 where the batch's weight is 0."""

    logp: Tensor  # log p(target), with gradient
    entropy: Tensor  # of the distribution it was taken from; no gradient


def answer_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """log p of every target of weight above 0, (B, T): under no_grad, the reference's or another model's opinion."""
    return scores(model, model(batch.tokens_BT, batch.documents_BT), batch).logp


def scores(model: Transformer, out: Output, batch: Batch) -> Scores:
    """The same of a forward already made, (B, T) each. Only slots that count are multiplied with the head."""
    counts_BT = batch.weights_BT > 0
    found = token_logprobs(out.hidden_BTD[counts_BT], model.lm_head.weight, batch.targets_BT[counts_BT])
    empty_BT = torch.zeros_like(batch.weights_BT)
    return Scores(*(empty_BT.masked_scatter(counts_BT, found_N) for found_N in found))


def token_logprobs(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Scores:
    """log softmax(hidden @ head.T) at the targets, (N,), and the entropy.

    hidden_ND and head_VD may differ in precision; the product is made in that of hidden, the softmax in fp32.
    """
    return Scores(*_ChunkedLogprobs.apply(hidden_ND, head_VD, targets_N))


def token_logprobs_plainly(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Scores:
    """`token_logprobs`, with every logit in memory at once: the reference."""
    logp_NV = (hidden_ND @ head_VD.to(hidden_ND.dtype).T).float().log_softmax(-1)
    logp_N = logp_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    return Scores(logp_N, -(logp_NV.exp() * logp_NV).sum(-1).detach())


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_ND, head_VD, targets_N)
        head = head_VD.to(hidden_ND.dtype)
        logp_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropy_N = torch.empty_like(logp_N)
        for part in chunks(hidden_ND, head):
            logp = (hidden_ND[part] @ head.T).float().log_softmax(-1)
            logp_N[part] = logp.gather(-1, targets_N[part].unsqueeze(-1)).squeeze(-1)
            entropy_N[part] = -(logp.exp() * logp).sum(-1)
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_ND, head_VD, targets_N = ctx.saved_tensors
        head = head_VD.to(hidden_ND.dtype)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32)
        for part in chunks(hidden_ND, head):
            weight, target = grad_N[part].unsqueeze(-1), targets_N[part].unsqueeze(-1)
            # d log p(target) / d logits = target - softmax
            grad = (hidden_ND[part] @ head.T).float().softmax(-1).mul_(-weight)
            grad = grad.scatter_add_(-1, target, weight).to(head.dtype)
            torch.mm(grad, head, out=grad_hidden[part])
            grad_head += grad.T @ hidden_ND[part]
        return grad_hidden, grad_head.to(head_VD.dtype), None


def chunks(hidden_ND: Tensor, head_VD: Tensor) -> list[slice]:
    size = tokens_per_chunk(len(head_VD), hidden_ND.device)
    return [slice(start, start + size) for start in range(0, len(hidden_ND), size)]
