"""Routed experts, twice: a loop that anyone can check, and the same function without the loop.

The fast path sorts the (token, choice) pairs by expert, so that each expert's tokens lie together; then one grouped
matrix product makes every gate and up, one makes every down, and the rows go back where they came from. Going there
and coming back are permutations, so neither direction, forward or backward, ever scatters with addition.

Shapes as in `transformer`; P = N * k pairs of a token and one of its experts, in token order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Routing(NamedTuple):
    """Who reads what: k experts for each token, and the scores that go with them."""

    experts_Nk: Tensor
    scores_Nk: Tensor  # sigmoid of the chosen logits
    logits_NE: Tensor

    @property
    def load_E(self) -> Tensor:
        """How many choices fell on each expert. fp32, no gradient."""
        E = self.logits_NE.shape[-1]
        return torch.zeros(E, device=self.experts_Nk.device).index_add_(
            0, self.experts_Nk.flatten(), torch.ones(self.experts_Nk.numel(), device=self.experts_Nk.device)
        )

    @property
    def prob_E(self) -> Tensor:
        """The router's softmax summed over the tokens; fp32, with gradient (Switch, arXiv 2101.03961, eq. 6)."""
        return self.logits_NE.float().softmax(-1).sum(0)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def run_experts_plainly(
    x_ND: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, score_on: str
) -> Tensor:
    """The reference: each expert in turn reads the tokens that chose it."""
    y_ND = torch.zeros_like(x_ND)
    for e in range(gate_up.shape[0]):
        token, choice = (routing.experts_Nk == e).nonzero(as_tuple=True)
        score = routing.scores_Nk[token, choice].unsqueeze(-1)
        x = x_ND[token] * score if score_on == "input" else x_ND[token]
        y = swiglu(*(x @ gate_up[e]).chunk(2, dim=-1)) @ down[e]
        y_ND = y_ND.index_add(0, token, y if score_on == "input" else y * score)
    return y_ND


def run_experts(x_ND: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, score_on: str) -> Tensor:
    """sum over k of expert_e(score * x): gate_up (E, D, 2F), down (E, F, D) -> (N, D)."""
    expert_P = routing.experts_Nk.flatten()
    order_P = expert_P.argsort(stable=True)
    inverse_P = torch.empty_like(order_P).scatter_(
        0, order_P, torch.arange(len(order_P), device=order_P.device)
    )
    ends_E = routing.load_E.cumsum(0).to(torch.int32)
    score_P1 = routing.scores_Nk.flatten().index_select(0, order_P).unsqueeze(-1)

    x_PD = Gather.apply(x_ND, order_P, inverse_P)
    if score_on == "input":
        x_PD = x_PD * score_P1
    hidden_PF = swiglu(*F.grouped_mm(x_PD, gate_up, offs=ends_E).chunk(2, dim=-1))
    y_PD = F.grouped_mm(hidden_PF, down, offs=ends_E)
    if score_on == "output":
        y_PD = y_PD * score_P1
    return Return.apply(y_PD, order_P, inverse_P, len(x_ND))


def gather(x_ND: Tensor, order_P: Tensor) -> Tensor:
    """Row p of the answer is the token of the p-th pair in expert order."""
    return x_ND.index_select(0, order_P // (len(order_P) // len(x_ND)))


def give_back(y_PD: Tensor, inverse_P: Tensor, tokens: int) -> Tensor:
    """Put the pairs back in token order and add up the k of each token."""
    return y_PD.index_select(0, inverse_P).view(tokens, -1, y_PD.shape[-1]).sum(1)


class Gather(torch.autograd.Function):
    """Tokens to experts; its transpose is `give_back`."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_P: Tensor, inverse_P: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_P)
        ctx.tokens = len(x_ND)
        return gather(x_ND, order_P)

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (inverse_P,) = ctx.saved_tensors
        return give_back(grad_PD, inverse_P, ctx.tokens), None, None


class Return(torch.autograd.Function):
    """Experts to tokens; its transpose is `gather`."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, order_P: Tensor, inverse_P: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(order_P)
        return give_back(y_PD, inverse_P, tokens)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        (order_P,) = ctx.saved_tensors
        return gather(grad_ND, order_P), None, None, None
