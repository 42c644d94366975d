"""Routed experts, twice: a loop that anyone can check, and the same function without the loop.

The fast path sorts the (token, choice) pairs by expert, so that each expert's tokens lie together; then one grouped
matrix product makes every gate and up, one makes every down, and the rows go back where they came from. Going there
and coming back are permutations, so neither direction, forward or backward, ever scatters with addition.

Shapes as in `transformer`; P = N * k pairs of a token and one of its experts, in token order; S slots, in expert
order.
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

    def weighed(self, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Each expert's choices, and the router's softmax, summed over the tokens by weight: two fp32 (E,).

        Only the second has a gradient (Switch, arXiv 2101.03961, eq. 5 and 6, before their division by the tokens).
        """
        prob_NE = self.logits_NE.float().softmax(-1)
        load_E = torch.zeros_like(prob_NE[0]).index_add_(
            0, self.experts_Nk.flatten(), weights_N.repeat_interleave(self.experts_Nk.shape[1])
        )
        return load_E, weights_N @ prob_NE


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
    k = routing.experts_Nk.shape[1]
    slot_P, ends_E, num_slots = lay_out(routing, group_multiple(x_ND, routing))
    x_NkD, score_Nk1 = x_ND.unsqueeze(1).expand(-1, k, -1), routing.scores_Nk.unsqueeze(-1)
    if score_on == "input":
        x_NkD = x_NkD * score_Nk1
    x_SD = Dispatch.apply(x_NkD.flatten(0, 1), slot_P, num_slots)
    hidden_SF = swiglu(*F.grouped_mm(x_SD, gate_up, offs=ends_E).chunk(2, dim=-1))
    y_NkD = Combine.apply(F.grouped_mm(hidden_SF, down, offs=ends_E), slot_P).view_as(x_NkD)
    if score_on == "output":
        y_NkD = y_NkD * score_Nk1
    return y_NkD.sum(1) if k > 1 else y_NkD.squeeze(1)


def group_multiple(x_ND: Tensor, routing: Routing) -> int:
    """To what the group sizes are rounded up, with rows of zeros.

    On a CPU in bf16 every new matrix shape costs the library milliseconds of code generation, and experts get new
    numbers of tokens at every step: rounding makes the shapes few, and the step several times faster.
    """
    many = routing.experts_Nk.numel() >= 512
    return 32 if x_ND.device.type == "cpu" and x_ND.dtype == torch.bfloat16 and many else 1


def lay_out(routing: Routing, multiple: int) -> tuple[Tensor, Tensor, int]:
    """Where each pair goes: its slot, in expert order; the end of each expert's slots; how many slots there are."""
    expert_P = routing.experts_Nk.flatten()
    order_P = expert_P.argsort(stable=True)
    place_P = torch.empty_like(order_P).scatter_(
        0, order_P, torch.arange(len(order_P), device=order_P.device)
    )
    count_E = routing.load_E.long()
    if multiple == 1:
        return place_P, count_E.cumsum(0).to(torch.int32), len(expert_P)
    room_E = (count_E + multiple - 1) // multiple * multiple
    ends_E = room_E.cumsum(0)
    shift_E = (ends_E - room_E) - (count_E.cumsum(0) - count_E)
    return place_P + shift_E[expert_P], ends_E.to(torch.int32), int(ends_E[-1])


def to_slots(x_PD: Tensor, slot_P: Tensor, num_slots: int) -> Tensor:
    """Each row to its slot; slots of nobody are zero."""
    return x_PD.new_zeros(num_slots, x_PD.shape[1]).index_copy_(0, slot_P, x_PD)


class Dispatch(torch.autograd.Function):
    """Pairs to slots, a permutation: its transpose takes them back."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, slot_P: Tensor, num_slots: int) -> Tensor:
        ctx.save_for_backward(slot_P)
        return to_slots(x_PD, slot_P, num_slots)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None, None]:
        (slot_P,) = ctx.saved_tensors
        return grad_SD.index_select(0, slot_P), None, None


class Combine(torch.autograd.Function):
    """Slots to pairs; the transpose of `Dispatch`."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, slot_P: Tensor) -> Tensor:
        ctx.save_for_backward(slot_P)
        ctx.num_slots = len(y_SD)
        return y_SD.index_select(0, slot_P)

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None]:
        (slot_P,) = ctx.saved_tensors
        return to_slots(grad_PD.contiguous(), slot_P, ctx.num_slots), None
