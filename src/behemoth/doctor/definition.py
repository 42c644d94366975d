"""Llama 4's two hard parts written out in fp64, slowly, from the weights alone: what the checks compare against.

Nothing here calls the model's own code: masks come from positions, one head and one expert at a time. Which layers
have positions, and where chunks lie, is worked out again from the numbers of the configuration.

Source of every rule: the released Llama 4 configurations and `transformers`' modeling_llama4. One row, no batch.
Shapes as in `model.transformer`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.model.config import ModelConfig


def has_positions(config: ModelConfig, layer: int) -> bool:
    """Every n-th layer, counted from the n-th, has none."""
    return config.nope_every == 0 or (layer + 1) % config.nope_every != 0


def attention(
    weights: Any, config: ModelConfig, layer: int, x_TD: Tensor, documents_T: Tensor | None = None
) -> Tensor:
    """One layer's attention over one row, head by head, each with its mask spelt out."""
    T, H, G, K = len(x_TD), config.num_heads, config.num_kv_heads, config.head_size
    x = x_TD.double()
    q, k, v = (
        (x @ projection.weight.double().T).view(T, heads, K)
        for projection, heads in ((weights.q_proj, H), (weights.k_proj, G), (weights.v_proj, G))
    )
    i, j = torch.arange(T, device=x.device)[:, None], torch.arange(T, device=x.device)[None]
    sees_TT = j <= i
    if has_positions(config, layer):
        sees_TT = sees_TT & (i // config.chunk_size == j // config.chunk_size)
        q, k = turn(q, config), turn(k, config)
        if config.qk_norm:
            q, k = (h / (h.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() for h in (q, k))
    elif config.temperature_tuning:
        reached = ((i[:, 0] + 1) // config.temperature_floor).double()
        q = q * (1 + config.temperature_scale * (1 + reached).log())[:, None, None]
    if documents_T is not None:
        sees_TT = sees_TT & (documents_T[:, None] == documents_T[None])
    heads = []
    for head in range(H):
        group = head // (H // G)
        scores_TT = (q[:, head] @ k[:, group].T / math.sqrt(K)).masked_fill(~sees_TT, float("-inf"))
        heads.append(scores_TT.softmax(-1) @ v[:, group])
    return torch.cat(heads, dim=-1) @ weights.o_proj.weight.double().T


def turn(x_THK: Tensor, config: ModelConfig) -> Tensor:
    """Rotary positions on neighbouring pairs of features: (a, b) -> (a cos - b sin, a sin + b cos)."""
    T, K = len(x_THK), config.head_size
    rates = [frequency(config, pair) for pair in range(K // 2)]
    angles = torch.outer(torch.arange(T).double(), torch.tensor(rates, dtype=torch.float64))
    cos, sin = angles.cos()[:, None].to(x_THK.device), angles.sin()[:, None].to(x_THK.device)
    a, b = x_THK[..., 0::2], x_THK[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def frequency(config: ModelConfig, pair: int) -> float:
    """Radians per position of one pair, stretched as Llama 3 does where the configuration asks for it."""
    plain = config.rope_theta ** (-2 * pair / config.head_size)
    if (scaling := config.rope_scaling) is None:
        return plain
    wavelength = 2 * math.pi / plain
    low, high = (scaling.original_context / f for f in (scaling.low_freq_factor, scaling.high_freq_factor))
    if wavelength <= high:
        return plain
    if wavelength > low:
        return plain / scaling.factor
    keep = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - keep) * plain / scaling.factor + keep * plain


class Routed(NamedTuple):
    """What a sparse layer gives for each token, and how clearly it chose."""

    output_ND: Tensor
    chosen_NE: Tensor  # bool
    scores_NE: Tensor  # 0 where not chosen
    gap_N: Tensor


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate x) * (up x)), each as x @ W."""
    return (F.silu(x @ gate) * (x @ up)) @ down


def dense(weights: Any, x_ND: Tensor) -> Tensor:
    """A layer without experts."""
    parts = (weights.gate_proj, weights.up_proj, weights.down_proj)
    return swiglu(x_ND.double(), *(part.weight.double().T for part in parts))


def sparse(weights: Any, config: ModelConfig, x_ND: Tensor) -> Routed:
    """shared(x) + sum over the k likeliest experts of expert(sigmoid(logit) * x), expert by expert."""
    x, k, width = x_ND.double(), config.experts_per_token, config.expert_size
    logits_NE = x @ weights.router.weight.double().T
    order_NE = logits_NE.argsort(dim=-1, descending=True)
    chosen_NE = torch.zeros_like(logits_NE, dtype=torch.bool).scatter(1, order_NE[:, :k], True)
    ranked = logits_NE.gather(1, order_NE)
    gap_N = (
        ranked[:, k - 1] - ranked[:, k]
        if k < config.num_experts
        else torch.full_like(ranked[:, 0], torch.inf)
    )
    scores_NE = torch.where(chosen_NE, 1 / (1 + (-logits_NE).exp()), 0.0)
    output_ND = dense(weights.shared_expert, x_ND)
    gate_up, down = weights.experts.gate_up_proj.double(), weights.experts.down_proj.double()
    for e in range(config.num_experts):
        (rows,) = chosen_NE[:, e].nonzero(as_tuple=True)
        gate, up = gate_up[e, :, :width], gate_up[e, :, width:]
        score = scores_NE[rows, e, None]
        if config.score_on == "input":
            output_ND[rows] += swiglu(score * x[rows], gate, up, down[e])
        else:
            output_ND[rows] += score * swiglu(x[rows], gate, up, down[e])
    return Routed(output_ND, chosen_NE, scores_NE, gap_N)
