"""The fast experts against the loop, forward and backward, and the router's gradient against a dense sum."""

import pytest
import torch
from torch import Tensor

from behemoth.model import experts
from behemoth.model.config import ModelConfig
from behemoth.model.experts import Routing, lay_out, run_experts, run_experts_plainly, swiglu
from behemoth.model.transformer import MoE

E, D, WIDTH = 6, 16, 24


def problem(tokens: int, k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tokens, scores and experts; the first and the last expert get no token."""
    generator = torch.Generator().manual_seed(tokens + 10 * k)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    chosen = torch.rand(tokens, E - 2, generator=generator).argsort(-1)[:, :k] + 1
    leaves = [
        draw(tokens, D),
        torch.rand(tokens, k, generator=generator),
        draw(E, D, 2 * WIDTH),
        draw(E, WIDTH, D),
    ]
    return chosen, *(
        (x / x.shape[-2] ** 0.5 if x.ndim == 3 else x).to(dtype).requires_grad_() for x in leaves
    )


def outputs(run, leaves: tuple[Tensor, ...], score_on: str) -> list[Tensor]:
    """The answer, and the gradient of everything it came from."""
    chosen, x_ND, scores_Nk, gate_up, down = leaves
    y_ND = run(x_ND, Routing(chosen, scores_Nk, torch.zeros(len(x_ND), E)), gate_up, down, score_on)
    weights = torch.linspace(-1, 1, y_ND.numel()).view_as(y_ND)
    return [y_ND, *torch.autograd.grad((y_ND.float() * weights).sum(), [x_ND, scores_Nk, gate_up, down])]


@pytest.mark.parametrize("score_on", ["input", "output"])
@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (1, 4), (33, 1), (33, 2), (64, 4)])
def test_fast_is_the_loop_in_fp32(tokens: int, k: int, score_on: str) -> None:
    leaves = problem(tokens, k, torch.float32)
    for fast, slow in zip(
        outputs(run_experts, leaves, score_on), outputs(run_experts_plainly, leaves, score_on), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score_on", ["input", "output"])
@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (33, 2), (64, 4), (600, 1), (300, 2)])
def test_fast_is_as_exact_as_the_loop_in_bf16(tokens: int, k: int, score_on: str) -> None:
    leaves = problem(tokens, k, torch.bfloat16)
    exact = (leaves[0], *(x.detach().float().requires_grad_() for x in leaves[1:]))
    for fast, slow, truth in zip(
        outputs(run_experts, leaves, score_on),
        outputs(run_experts_plainly, leaves, score_on),
        outputs(run_experts_plainly, exact, score_on),
        strict=True,
    ):
        assert fast.dtype == torch.bfloat16
        allowed = 2 * (slow.float() - truth).abs().max() + 0.01 * truth.abs().max()
        assert (fast.float() - truth).abs().max() <= allowed


@pytest.mark.parametrize("score_on", ["input", "output"])
@pytest.mark.parametrize("k", [1, 3])
def test_rounded_groups_change_nothing(k: int, score_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = problem(70, k, torch.float32)
    plain = outputs(run_experts_plainly, leaves, score_on)
    monkeypatch.setattr(experts, "group_multiple", lambda *_: 32)
    for fast, slow in zip(outputs(run_experts, leaves, score_on), plain, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_slots_lie_by_expert_and_no_two_pairs_share_one() -> None:
    chosen = problem(70, 2, torch.float32)[0]
    slot_P, ends_E, num_slots = lay_out(Routing(chosen, torch.ones(70, 2), torch.zeros(70, E)), 32)
    assert len(set(slot_P.tolist())) == 140
    assert num_slots == ends_E[-1]
    assert (ends_E % 32 == 0).all()
    assert torch.equal(torch.searchsorted(ends_E, slot_P, right=True), chosen.flatten())


def test_experts_without_tokens_get_no_gradient() -> None:
    _, _, _, gate_up, down = outputs(run_experts, problem(33, 2, torch.float32), "input")
    for gradient in (gate_up, down):
        assert gradient[[0, -1]].abs().max() == 0
        assert gradient[1:-1].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("k", [1, 2])
def test_router_gradient_is_that_of_the_dense_sum(tiny_config: ModelConfig, k: int) -> None:
    """Every expert reads every token, scaled by a score that is 0 where it was not chosen."""
    moe = MoE(tiny_config.model_copy(update={"experts_per_token": k}))
    generator = torch.Generator().manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
    x_BTD = torch.randn(2, 9, tiny_config.hidden_size, generator=generator)

    def dense(x_ND: Tensor) -> Tensor:
        logits_NE = moe.router(x_ND)
        chosen_NE = torch.zeros_like(logits_NE).scatter(1, logits_NE.topk(k, dim=-1).indices, 1.0)
        scaled_END = torch.einsum("ne,nd->end", logits_NE.sigmoid() * chosen_NE, x_ND)
        hidden_ENF = swiglu(*(scaled_END @ moe.experts.gate_up_proj).chunk(2, dim=-1))
        return moe.shared_expert(x_ND) + (hidden_ENF @ moe.experts.down_proj).sum(0)

    sparse, full = moe(x_BTD)[0], dense(x_BTD.flatten(0, 1)).view_as(x_BTD)
    torch.testing.assert_close(sparse, full, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), list(moe.parameters())) for y in (sparse, full)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert b.abs().max() > 0


def test_load_and_probability_count_every_choice(tiny_config: ModelConfig) -> None:
    moe = MoE(tiny_config.model_copy(update={"experts_per_token": 2}))
    routing = moe.route(torch.randn(11, tiny_config.hidden_size))
    assert routing.load_E.sum() == 22
    assert routing.load_E.tolist() == [
        int((routing.experts_Nk == e).sum()) for e in range(tiny_config.num_experts)
    ]
    load_E, prob_E = routing.weighed(torch.ones(11))
    assert torch.equal(load_E, routing.load_E)
    torch.testing.assert_close(prob_E.sum(), torch.tensor(11.0))
    assert prob_E.requires_grad and not load_E.requires_grad


def test_a_token_of_weight_zero_is_as_if_it_were_not_there(tiny_config: ModelConfig) -> None:
    moe = MoE(tiny_config.model_copy(update={"experts_per_token": 2}))
    x = torch.randn(11, tiny_config.hidden_size)
    weights = torch.tensor([0.0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1])
    found, meant = moe.route(x).weighed(weights), moe.route(x[weights > 0]).weighed(torch.ones(6))
    for a, b in zip(found, meant, strict=True):
        torch.testing.assert_close(a, b)
