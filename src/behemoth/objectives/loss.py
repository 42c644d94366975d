"""What a model is asked to do: an objective is a function `(model, batch) -> Loss`.

A loss is a *sum* over tokens, or pairs, and its weight comes with the batch, so one microbatch of eight rows and
eight of one row give the same gradient: the loop divides once, by the weight of the whole step. Every term must be
additive over tokens for that, the balancing term included.

`cross_entropy` never holds the logits of more than a few hundred tokens: it makes them chunk by chunk, takes the
gradient of each chunk at once, and forgets them (the idea of "Cut Your Losses", arXiv 2411.09009, in plain torch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """Sums over the tokens of a batch, never means."""

    total: Tensor  # what is differentiated
    metrics: dict[str, Tensor]  # what is reported, divided by the step's weight; no gradient
    load_LE: (
        Tensor  # how often each expert was chosen, by sparse layer, tokens counted by weight; no gradient
    )


Objective = Callable[[Any, Any], Loss]  # a Transformer, and the kind of Batch that the objective is made for


class SoftTarget(NamedTuple):
    """A teacher's distribution, as the hidden states and the head that make it, and its share of the target."""

    hidden_ND: Tensor
    head_VD: Tensor
    share: float


class CrossEntropy(NamedTuple):
    """Weighted sums over tokens, in nats."""

    total: Tensor  # (1 - share) * hard + share * KL(teacher || student); the one with a gradient
    hard: Tensor  # -log p(target)
    kl: Tensor  # KL(teacher || student); zero without a teacher


def cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor, soft: SoftTarget | None = None
) -> CrossEntropy:
    """Softmax cross-entropy of `hidden @ head.T` against the targets, mixed with a teacher's distribution.

    hidden_ND and head_VD may differ in precision; the product is made in that of hidden, the softmax in fp32.
    """
    return CrossEntropy(*_ChunkedCrossEntropy.apply(hidden_ND, head_VD, targets_N, weights_N, soft))


def cross_entropy_plainly(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor, soft: SoftTarget | None = None
) -> CrossEntropy:
    """`cross_entropy`, with every logit in memory at once: the reference."""
    logp = (hidden_ND @ head_VD.to(hidden_ND.dtype).T).float().log_softmax(-1)
    hard = -(weights_N * logp.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)).sum()
    if soft is None:
        return CrossEntropy(hard, hard.detach(), torch.zeros(()))
    teacher = (soft.hidden_ND @ soft.head_VD.to(soft.hidden_ND.dtype).T).float().log_softmax(-1)
    kl = (weights_N * (teacher.exp() * (teacher - logp)).sum(-1)).sum()
    return CrossEntropy((1 - soft.share) * hard + soft.share * kl, hard.detach(), kl.detach())


def tokens_per_chunk(vocab_size: int, device: torch.device) -> int:
    """As many tokens as keep a chunk of fp32 logits near 4 MB on a CPU (its cache) or 256 MB on an accelerator."""
    return max(64, (2**20 if device.type == "cpu" else 2**26) // vocab_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        soft: SoftTarget | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = head_VD.to(hidden_ND.dtype)
        if soft is not None:
            soft = soft._replace(head_VD=soft.head_VD.to(soft.hidden_ND.dtype))
        learning = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_ND) if learning else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if learning else None
        hard, kl = torch.zeros(2, dtype=torch.float64, device=hidden_ND.device).unbind()
        size = tokens_per_chunk(len(head), hidden_ND.device)
        for start in range(0, len(hidden_ND), size):
            part = slice(start, start + size)
            logp = (hidden_ND[part] @ head.T).float().log_softmax(-1)
            target, weight = targets_N[part].unsqueeze(-1), weights_N[part].unsqueeze(-1)
            hard -= (weight * logp.gather(-1, target)).sum()
            probs = None
            if soft is not None:
                teacher = (soft.hidden_ND[part] @ soft.head_VD.T).float().log_softmax(-1)
                probs = teacher.exp()
                kl += (weight * probs * teacher.sub_(logp)).sum()
            if grad_hidden is None or grad_head is None:
                continue
            # d/dlogits = softmax - target, where the target is one-hot, or a mixture of one-hot and teacher
            grad = logp.exp_()
            if soft is not None and probs is not None:
                grad.sub_(probs, alpha=soft.share)
            grad.scatter_add_(
                -1, target, grad.new_full((1, 1), (soft.share if soft else 0.0) - 1).expand_as(target)
            )
            grad = grad.mul_(weight).to(head.dtype)
            torch.mm(grad, head, out=grad_hidden[part])
            grad_head += grad.T @ hidden_ND[part]
        if learning:
            ctx.save_for_backward(grad_hidden, grad_head)
        share = 0.0 if soft is None else soft.share
        total = ((1 - share) * hard + share * kl).float()
        hard, kl = hard.float(), kl.float()
        ctx.mark_non_differentiable(hard, kl)
        return total, hard, kl

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_total.to(grad_hidden.dtype), grad_head * grad_total, None, None, None
