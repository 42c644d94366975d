"""A model small enough to take many gradients of."""

from typing import Any

import torch
from torch import Tensor

from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer

SMALL = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_size": 8,
    "dense_size": 32,
    "expert_size": 24,
    "num_experts": 4,
    "chunk_size": 8,
    "context_length": 32,
    "init_std": 0.2,
}


def tiny(seed: int = 0, **changes: Any) -> Transformer:
    return Transformer(ModelConfig(**SMALL | changes)).initialise(torch.Generator().manual_seed(seed))


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    """Of every parameter; zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]
