"""Muon against its definition, and the bookkeeping of parameter groups."""

import math

import pytest
import torch

from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.train.optim import Muon, Optimizer, Settings, linear_maps, orthogonal
from behemoth.train.schedule import warmup_stable_decay


def newton_schulz(g: torch.Tensor) -> torch.Tensor:
    """One matrix, as Keller Jordan writes it."""
    x = g / g.norm()
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_orthogonal_makes_every_direction_move_alike():
    stack = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(stack))
    assert values.min() > 0.3
    assert values.max() < 1.3
    for one, matrix in zip(orthogonal(stack), stack, strict=True):
        torch.testing.assert_close(one, newton_schulz(matrix), rtol=1e-4, atol=1e-5)


def test_orthogonal_of_nothing_is_nothing():
    assert orthogonal(torch.zeros(2, 4, 6)).abs().max() == 0


def test_batched_muon_moves_each_matrix_as_if_it_were_alone():
    g = torch.Generator().manual_seed(1)
    square, tall, pairs = (torch.randn(*s, generator=g) for s in [(8, 8), (12, 8), (3, 8, 2 * 12)])
    parameters = [torch.nn.Parameter(x.clone()) for x in (square, tall, pairs)]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=g)
    starts = [p.detach() * (1 - 0.1 * 0.2) for p in parameters]  # weight decay comes first
    optimizer = Muon(
        [{"params": parameters[:2], "maps": 1}, {"params": parameters[2:], "maps": 2}],
        0.1,
        0.2,
        torch.float32,
    )
    gradients = [p.grad.clone() for p in parameters]
    optimizer.step()
    # Nesterov after one step from rest: a fixed multiple of the gradient, which the orthogonalisation forgets
    for p, start, gradient in zip(parameters[:2], starts[:2], gradients[:2], strict=True):
        scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
        torch.testing.assert_close(
            p.detach(), start - 0.1 * scale * newton_schulz(gradient), rtol=1e-4, atol=1e-5
        )
    for e in range(3):
        for half in (slice(0, 12), slice(12, 24)):
            step = newton_schulz(gradients[2][e][:, half]) * (12 / 8) ** 0.5
            torch.testing.assert_close(
                parameters[2].detach()[e][:, half], starts[2][e][:, half] - 0.1 * step, rtol=1e-4, atol=1e-5
            )


def test_gate_and_up_are_two_maps_and_a_stack_of_down_is_one():
    p = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    assert linear_maps(p, 2).shape == (2, 2, 3, 4)
    assert torch.equal(linear_maps(p, 2)[1, 1], p[1][:, 4:])
    assert linear_maps(p, 1).shape == (2, 1, 3, 8)
    assert linear_maps(torch.zeros(5, 7), 1).shape == (1, 1, 7, 5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group(kind, tied):
    config = ModelConfig(
        vocab_size=64, hidden_size=16, num_layers=4, num_heads=2, num_kv_heads=1, head_size=8, dense_size=32,
        expert_size=16, num_experts=4, moe_every=2, tie_embeddings=tied,
    )  # fmt: skip
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    optimizer = Optimizer(model, Settings(kind, 0.01, 0.003, 0.1))
    groups = [group for part in optimizer.optimizers for group in part.param_groups]
    owners = [p for group in groups for p in group["params"]]
    assert sorted(map(id, owners)) == sorted(map(id, model.parameters()))
    rest = {optimizer.names[p] for p in optimizer.optimizers[-1].param_groups[0]["params"]}
    assert {"embed_tokens.weight", "norm.weight", "layers.1.feed_forward.router.weight"} <= rest
    assert optimizer.optimizers[-1].param_groups[0]["weight_decay"] == 0


def test_the_schedule_warms_up_stays_and_decays_to_nothing():
    rate = [warmup_stable_decay(p, warmup=0.1, decay=0.4) for p in (0.05, 0.1, 0.3, 0.6, 0.8, 1.0)]
    assert rate == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.0])
    assert not any(math.isnan(warmup_stable_decay(p, warmup=0, decay=0)) for p in (0, 0.5, 1))
