"""AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest.

Muon (Keller Jordan, 2024; arXiv 2502.16982) replaces the momentum of a weight matrix by the nearest orthogonal one,
so that every direction of the matrix moves at the same speed. The orthogonalisation is five Newton-Schulz steps,
which are matrix products: all matrices of one shape, experts of all layers among them, go through them together.

Every parameter belongs to exactly one group; an assertion says so. Leaves out: sharded parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from behemoth.model.transformer import Transformer

ADAM_BETAS = (0.9, 0.95)  # GPT-3 and Llama
MUON_MOMENTUM = 0.95


@dataclass(frozen=True)
class Settings:
    kind: str  # "muon" or "adamw"
    learning_rate: float  # of the matrices inside the blocks
    adam_learning_rate: float  # of everything else
    weight_decay: float


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Projections and experts; not embeddings, head, norms or routers."""
    return name.startswith("layers.") and parameter.ndim >= 2 and ".router." not in name


class Optimizer:
    """One step over those of a model's parameters that learn; its state is a flat dictionary of tensors, by name."""

    def __init__(self, model: Transformer, settings: Settings):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        blocks = {name: p for name, p in named.items() if is_block_matrix(name, p)}
        others = {name: p for name, p in named.items() if name not in blocks}
        if settings.kind == "muon":
            pairs = [p for name, p in blocks.items() if "gate_up" in name]
            single = [p for name, p in blocks.items() if "gate_up" not in name]
            groups = [{"params": ps, "maps": n} for ps, n in ((single, 1), (pairs, 2)) if ps]
            first: torch.optim.Optimizer = Muon(
                groups, settings.learning_rate, settings.weight_decay, model.compute_dtype
            )
        else:
            first = adamw(blocks.values(), settings.learning_rate, settings.weight_decay)
        rest = (
            [adamw(others.values(), settings.adam_learning_rate, 0.0)] if others else []
        )  # none beside adapters
        self.optimizers = [first, *rest]
        self.names: dict[Tensor, str] = {p: name for name, p in named.items()}
        self.rates = [group["lr"] for group in self._groups()]
        covered = [p for group in self._groups() for p in group["params"]]
        assert len(covered) == len(set(covered)) == len(named), "every parameter in exactly one group"

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, factor: float) -> None:
        """Update every weight, at `factor` times the learning rates."""
        for group, rate in zip(self._groups(), self.rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """`{parameter name}/{quantity}` -> tensor."""
        return {
            f"{self.names[p]}/{key}": value
            for optimizer in self.optimizers
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            name, quantity = key.rsplit("/", 1)
            by_name[name][quantity] = value
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    kept = by_name.get(self.names[p], {})
                    optimizer.state[p] = {key: value.to(p.device) for key, value in kept.items()}


def adamw(parameters: Iterable[Tensor], rate: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=rate, betas=ADAM_BETAS, weight_decay=weight_decay, fused=True)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. A group's `maps` says how many linear maps lie side by side in its tensors."""

    def __init__(self, groups: list[dict], rate: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(groups, {"lr": rate, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        wide: dict[tuple[int, int], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            gradients = [p.grad for p in trained]
            for p in trained:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            moments = [self.state[p]["momentum"] for p in trained]
            torch._foreach_lerp_(moments, gradients, 1 - MUON_MOMENTUM)
            torch._foreach_lerp_(gradients, moments, MUON_MOMENTUM)  # Nesterov: look one step ahead
            torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            for p in trained:
                weight, gradient = (linear_maps(x, group["maps"]) for x in (p, p.grad))
                rate = group["lr"] * max(1.0, weight.shape[-1] / weight.shape[-2]) ** 0.5
                if weight.shape[-2] > weight.shape[-1]:
                    weight, gradient = weight.mT, gradient.mT
                wide[weight.shape[-2], weight.shape[-1]].append((weight, gradient, rate))
        for entries in wide.values():
            stacks = [gradient.flatten(0, 1) for _, gradient, _ in entries]
            updates = orthogonal(torch.cat(stacks).to(self.dtype)).split([len(stack) for stack in stacks])
            for (weight, _, rate), update in zip(entries, updates, strict=True):
                weight.add_(update.view(weight.shape), alpha=-rate)


def linear_maps(p: Tensor, maps: int) -> Tensor:
    """A view of a parameter as the linear maps x @ W it holds: (stack, maps, in, out)."""
    if p.ndim == 2:
        return p.T[None, None]
    return p.unflatten(-1, (maps, -1)).transpose(1, 2)


def orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """Near enough the nearest semi-orthogonal matrix to each of `stack` (n, rows <= columns, columns).

    Newton-Schulz with Keller Jordan's quintic, which sends singular values to between 0.7 and 1.2, fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack / stack.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
