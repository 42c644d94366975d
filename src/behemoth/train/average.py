"""The running average of a model's weights: a quieter model than the one being trained, and a better teacher."""

from __future__ import annotations

import copy

import torch

from behemoth.model.transformer import Transformer


class Average:
    """`model` follows the trained one: weight += (1 - decay) * (trained - weight), once a step."""

    def __init__(self, trained: Transformer, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(trained).requires_grad_(False)

    @torch.no_grad()
    def update(self, trained: Transformer) -> None:
        torch._foreach_lerp_(list(self.model.parameters()), list(trained.parameters()), 1 - self.decay)
