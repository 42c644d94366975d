"""What a model costs, from its configuration alone: parameters, arithmetic, memory. No torch here.

Arithmetic counts the matrix products of one token (two operations per weight touched) and attention as it
really is: a query reads (S + 1) / 2 keys of a row of S on average, and only (C + 1) / 2 of its chunk of C
where the layer is chunked. Training is three times the forward, without recomputation; norms, rotations,
softmax and the embedding look-up count nothing. Leaves out activations: they depend on how a step is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from behemoth.model.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model: all of them, and those that one token touches."""

    total: int
    active: int


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by part. `active` counts the input embedding whole, as published figures do."""

    parts: dict[str, Part]
    input_embedding: int  # 0 when the embedding is tied to the head, which uses it in full

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts.values())

    @property
    def active(self) -> int:
        return sum(part.active for part in self.parts.values())

    @property
    def active_in_matmuls(self) -> int:
        """Active parameters without the input embedding, which is looked up and not multiplied."""
        return self.active - self.input_embedding


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters by part: embedding, head, attention, router, experts (shared, routed), dense, norms."""
    width, layers = config.hidden_size, config.num_layers
    sparse = len(config.sparse_layers)
    expert = 3 * width * config.expert_size
    embedding = config.vocab_size * width
    parts = {
        "embedding": _all(embedding),
        "head": _all(0 if config.tie_embeddings else embedding),
        "attention": _all(layers * 2 * width * config.head_size * (config.num_heads + config.num_kv_heads)),
        "router": _all(sparse * width * config.num_experts),
        "shared experts": _all(sparse * expert),
        "routed experts": Part(
            sparse * config.num_experts * expert, sparse * config.experts_per_token * expert
        ),
        "dense layers": _all((layers - sparse) * 3 * width * config.dense_size),
        "norms": _all((2 * layers + 1) * width),
    }
    return Parameters(parts, input_embedding=0 if config.tie_embeddings else embedding)


def forward_flops(config: ModelConfig, row_length: int) -> float:
    """Floating-point operations of one token's forward pass, averaged over a row of `row_length` tokens."""
    counts = count_parameters(config)
    weights = counts.active_in_matmuls - counts.parts["norms"].active
    return 2.0 * weights + attention_flops(config, row_length)


def training_flops(config: ModelConfig, row_length: int) -> float:
    """Forward and backward of one token: the backward costs twice the forward."""
    return 3.0 * forward_flops(config, row_length)


def attention_flops(config: ModelConfig, row_length: int) -> float:
    """One token's scores and weighted values in the forward, over the keys that are really read."""
    per_key = 4 * config.num_heads * config.head_size
    return per_key * sum(keys_read(config, layer, row_length) for layer in range(config.num_layers))


def keys_read(config: ModelConfig, layer: int, row_length: int) -> float:
    """Keys that one query reads on average in `layer`, itself included; exact when chunks divide the row."""
    reach = min(row_length, config.chunk_size) if config.has_rope(layer) else row_length
    whole, rest = divmod(row_length, reach)
    return (whole * reach * (reach + 1) / 2 + rest * (rest + 1) / 2) / row_length


def weight_bytes(config: ModelConfig, bytes_per_parameter: int = 4) -> int:
    return count_parameters(config).total * bytes_per_parameter


def optimizer_bytes(config: ModelConfig, optimizer: Literal["muon", "adamw"]) -> int:
    """State in fp32: AdamW keeps two moments; Muon keeps one for matrices, and AdamW has the rest."""
    counts = count_parameters(config)
    parts = counts.parts
    others = sum(parts[name].total for name in ("embedding", "head", "router", "norms"))
    if optimizer == "adamw":
        return 8 * counts.total
    return 4 * (counts.total - others) + 8 * others


def training_bytes(config: ModelConfig, optimizer: Literal["muon", "adamw"], averaged: bool) -> int:
    """Weights, gradients, optimizer state and any running average, in fp32; no activations."""
    return weight_bytes(config) * (3 if averaged else 2) + optimizer_bytes(config, optimizer)


def cache_bytes(config: ModelConfig, length: int, bytes_per_value: int = 2) -> int:
    """Keys and values kept for one sequence of `length` tokens; chunked layers keep at most a chunk."""
    kept = sum(
        min(length, config.chunk_size) if config.has_rope(layer) else length
        for layer in range(config.num_layers)
    )
    return kept * 2 * config.num_kv_heads * config.head_size * bytes_per_value


def _all(number: int) -> Part:
    return Part(number, number)
