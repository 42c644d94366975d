"""The mathematics of a Llama-4-style decoder, in one file.

A block is  h = x + attention(norm(x));  y = h + feed_forward(norm(h)).  What makes it Llama 4:

- *iRoPE*: three layers of four turn queries and keys by their position (interleaved pairs) and see only their own
  chunk of the row; every fourth layer has no positions, sees the whole row, and sharpens its queries with
  log(position), so that attention does not flatten on rows longer than those of training (arXiv 2501.19399).
- *QK-norm* without weights, after RoPE, on the RoPE layers only.
- *Mixture of experts*: a shared expert reads every token; of the routed ones each token takes the top k by router
  logit, and the sigmoid of that logit scales what the expert *reads*. SwiGLU is not homogeneous, so scaling what it
  writes would be another function. No capacity, no dropped tokens, no renormalisation.

Parameters carry Hugging Face's names (`transformers`' Llama4ForCausalLM, less its leading "model."), so a checkpoint
of ours is a checkpoint of theirs; `llama3` makes Llama 3's layout of it. The module knows no devices, meshes or files:
those are applied from outside.

Shapes: B batch, T time, D model width, H query heads, G key/value heads, K head size, E experts, F expert width,
V vocabulary, N = B*T routed tokens, k experts per token, L sparse layers, C chunk, S = a row or a chunk of keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from behemoth.model.config import ModelConfig
from behemoth.model.experts import Routing, run_experts, swiglu


class Output(NamedTuple):
    """What a forward leaves: the last hidden states, and what the routers did (by sparse layer, first to last)."""

    hidden_BTD: Tensor  # after the final norm; `model.logits` turns it into logits
    routings: list[Routing]

    @property
    def experts(self) -> list[Tensor]:
        """Who was chosen, (N, k) for each sparse layer."""
        return [routing.experts_Nk for routing in self.routings]


class Cache(Protocol):
    """The keys and values of earlier tokens, one place per row; see `inference.cache`."""

    empty: bool
    positions_B: Tensor

    def store(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> None: ...
    def append(self, layer: int, k_B1GK: Tensor, v_B1GK: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class Linear(nn.Linear):
    """x @ W.T in the precision of x: the weights may be kept in a finer one."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(fan_in, fan_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in fp32, rounded back, then times the weight (in that order, as released)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return unit_rms(x, self.eps) * self.weight.to(x.dtype)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last dim, computed in fp32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


# ---------------------------------------------------------------------------------------------------- positions


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of features, (K/2,) fp32; scaled as Llama 3 does when asked."""
    inverse = 1.0 / config.rope_theta ** (torch.arange(0, config.head_size, 2).float() / config.head_size)
    if (scaling := config.rope_scaling) is None:
        return inverse
    turns = (
        scaling.original_context * inverse / (2 * math.pi)
    )  # how often a pair turns over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1) if high > low else (turns >= low).float()
    return inverse * (keep + (1 - keep) / scaling.factor)


def rotate(x_BTHK: Tensor, angles_BTK: Tensor) -> Tensor:
    """Turn each interleaved pair (x[2j], x[2j+1]), a complex number, by its unit-length `angles` (…, K/2)."""
    pairs = torch.view_as_complex(x_BTHK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles_BTK.unsqueeze(-2)).flatten(-2).to(x_BTHK.dtype)


def temperature(positions: Tensor, config: ModelConfig) -> Tensor:
    """The factor on a no-position layer's queries: 1 + scale * ln(1 + floor((p + 1) / floor))."""
    return 1 + config.temperature_scale * torch.log1p(((positions + 1) / config.temperature_floor).floor())


# ---------------------------------------------------------------------------------------------------- attention


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Tensor | None) -> Tensor:
    """Softmax attention; query head h reads key head h // (H/G). No mask means causal with T = S. (B, T, H, K)

    On a CPU in bf16 the written-out product is two to four times as fast as torch's fused kernel at chunks of 64 and
    128, and still a little at 512 (benchmarks/attention_cpu.py), and in any precision where a row asks with one token;
    everywhere else the fused kernel is.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    few = q.shape[2] == 1 or (q.dtype == torch.bfloat16 and k.shape[2] <= 512)
    if q.device.type == "cpu" and few:
        return attend_plainly(q_BTHK, k_BSGK, v_BSGK, mask_BTS)
    mask = None if mask_BTS is None else mask_BTS.unsqueeze(1)
    groups = q.shape[1] // k.shape[1]
    if (
        groups > 1 and mask is not None and q.device.type == "cuda"
    ):  # most fused kernels take only one of the two
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, enable_gqa=grouped
    ).transpose(1, 2)


def attend_plainly(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Tensor | None) -> Tensor:
    """`attend`, written out: scores, mask, softmax, sum."""
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    q = q_BTHK.transpose(1, 2).reshape(
        B, G, H // G * T, K
    )  # the query heads of one key head, one after another
    k, v = k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    scores = (q @ k.transpose(-1, -2) * K**-0.5).view(B, H, T, S)
    if mask_BTS is None:
        mask_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill_(~mask_BTS.unsqueeze(1), float("-inf")).softmax(-1)
    y = weights.view(B, G, H // G * T, S) @ v
    return y.view(B, H, T, K).transpose(1, 2)


def fold(x: Tensor, chunk: int) -> Tensor:
    """(B, T, ...) -> (B * T/C, C, ...): the chunks of a row become rows. A short last chunk is filled up."""
    short = -x.shape[1] % chunk
    if short:
        x = torch.cat([x, x[:, -1:].expand(-1, short, *x.shape[2:])], dim=1)
    return x.unflatten(1, (-1, chunk)).flatten(0, 1)


def document_mask(documents_BT: Tensor) -> Tensor:
    """What may be seen: earlier slots of the same document. (B, T, T) bool."""
    same = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)
    return same.tril()


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.has_rope = config.has_rope(layer)
        D, K = config.hidden_size, config.head_size
        self.q_proj = Linear(D, config.num_heads * K)
        self.k_proj = Linear(D, config.num_kv_heads * K)
        self.v_proj = Linear(D, config.num_kv_heads * K)
        self.o_proj = Linear(config.num_heads * K, D)

    def forward(self, x_BTD: Tensor, row: Row, cache: Cache | None = None) -> Tensor:
        q, k, v = (
            project(x_BTD).unflatten(-1, (-1, self.config.head_size))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.has_rope:
            q, k = rotate(q, row.angles), rotate(k, row.angles)
            if self.config.qk_norm:
                q, k = unit_rms(q, self.config.norm_eps), unit_rms(k, self.config.norm_eps)
        elif self.config.temperature_tuning:
            q = (q * row.temperature.view(*row.temperature.shape, 1, 1)).to(q.dtype)

        if cache is not None and not cache.empty:
            y = attend(q, *cache.append(self.layer, k, v))
        else:
            if cache is not None:
                cache.store(self.layer, k, v)
            y = self.within_chunks(q, k, v, row) if self.has_rope else attend(q, k, v, row.mask)
        return self.o_proj(y.flatten(-2))

    def within_chunks(self, q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
        """Chunks are rows of their own: no mask is needed to keep them apart."""
        B, T, C = *q.shape[:2], self.config.chunk_size
        if T <= C:
            return attend(q, k, v, row.mask)
        y = attend(fold(q, C), fold(k, C), fold(v, C), row.chunk_mask)
        return y.unflatten(0, (B, -1)).flatten(1, 2)[:, :T]


class Row(NamedTuple):
    """What every layer needs to know about the rows, computed once per forward."""

    angles: Tensor  # (1 or B, T, K/2) complex, unit length
    temperature: Tensor  # (1 or B, T) fp32
    mask: Tensor | None  # (B, T, T) bool when documents are packed; None is plain causal
    chunk_mask: Tensor | None  # the same for folded chunks, (B * T/C, C, C)


# -------------------------------------------------------------------------------------------------- feed-forward


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            Linear(size, width),
            Linear(size, width),
            Linear(width, size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Experts(nn.Module):
    """The routed experts' weights, stacked; gate and up side by side, both as x @ W."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, D, width = config.num_experts, config.hidden_size, config.expert_size
        self.score_on = config.score_on
        self.gate_up_proj = nn.Parameter(torch.empty(E, D, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(E, width, D))

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        gate_up, down = self.gate_up_proj.to(x_ND.dtype), self.down_proj.to(x_ND.dtype)
        return run_experts(x_ND, routing, gate_up, down, self.score_on)


class MoE(nn.Module):
    """y = shared(x) + sum over the top k of expert_e(sigmoid(logit_e) * x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.experts_per_token
        self.router = Linear(config.hidden_size, config.num_experts)
        self.experts = Experts(config)
        self.shared_expert = MLP(config.hidden_size, config.expert_size)

    def route(self, x_ND: Tensor) -> Routing:
        logits_NE = self.router(x_ND)
        top_Nk, experts_Nk = logits_NE.topk(self.top_k, dim=-1)
        return Routing(experts_Nk, top_Nk.float().sigmoid().to(x_ND.dtype), logits_NE)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        routing = self.route(x_ND)
        y_ND = self.shared_expert(x_ND) + self.experts(x_ND, routing)
        return y_ND.view_as(x_BTD), routing


# --------------------------------------------------------------------------------------------------------- model


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        sparse = config.is_sparse(layer)
        self.feed_forward = MoE(config) if sparse else MLP(config.hidden_size, config.dense_size)

    def forward(self, x_BTD: Tensor, row: Row, cache: Cache | None) -> tuple[Tensor, Routing | None]:
        h = x_BTD + self.self_attn(self.input_layernorm(x_BTD), row, cache)
        y = self.feed_forward(self.post_attention_layernorm(h))
        y, routing = y if isinstance(y, tuple) else (y, None)
        return h + y, routing


class Transformer(nn.Module):
    """The decoder. `compute_dtype` is the precision of the activations; the weights are cast to it where used.

    `load_LE`, the share of the choices that each expert received in the previous optimizer step, is kept here for
    the balancing term; the loop writes it, checkpoints keep it, exported weights do not have it.
    """

    load_LE: Tensor
    frequencies: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        even = torch.full((len(config.sparse_layers), config.num_experts), 1 / max(config.num_experts, 1))
        self.register_buffer("load_LE", even, persistent=False)
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Output:
        """Hidden states of every token.

        tokens_BT: int64 ids. documents_BT: which document of its row each token belongs to, where rows are packed;
        documents do not see each other. cache: when empty it is filled with these rows, which start at position 0;
        otherwise T is 1 and the tokens follow what it holds. Chunks and positions count slots of the row.
        """
        row = self.describe(tokens_BT, documents_BT, cache)
        x_BTD = self.embed_tokens(tokens_BT).to(self.compute_dtype)
        routings = []
        for block in self.layers:
            x_BTD, routing = block(x_BTD, row, cache)
            if routing is not None:
                routings.append(routing)
        return Output(self.norm(x_BTD), routings)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in the precision of the activations."""
        return self.lm_head(hidden)

    def describe(self, tokens_BT: Tensor, documents_BT: Tensor | None, cache: Cache | None) -> Row:
        T, C, device = tokens_BT.shape[1], self.config.chunk_size, tokens_BT.device
        positions = torch.arange(T, device=device).unsqueeze(0)
        if cache is not None:
            positions = positions + cache.positions_B.unsqueeze(1)
        turns = positions.unsqueeze(-1).float() * self.frequencies
        mask = chunk_mask = None
        if documents_BT is not None:
            mask = document_mask(documents_BT)
            chunk_mask = document_mask(fold(documents_BT, C)) if T > C else None
        angles = torch.polar(torch.ones_like(turns), turns)
        return Row(angles, temperature(positions.float(), self.config), mask, chunk_mask)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Transformer:
        """Draw every weight: N(0, init_std), projections into the residual stream divided by sqrt(2 * layers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            into_residual = "o_proj" in name or "down_proj" in name
            std = self.config.init_std / (math.sqrt(2 * self.config.num_layers) if into_residual else 1)
            parameter.normal_(0, std, generator=generator)
        return self
