"""The group-relative policy gradient: numbers worked out by hand, and the identities it keeps."""

import math
from dataclasses import replace

import pytest
import torch
from small_model import gradients, tiny

from behemoth.data.batch import Rollouts, padded
from behemoth.model.transformer import Transformer
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.objectives.policy_gradient import (
    clipped_surrogate,
    divergence,
    one_sided_surrogate,
    policy_gradient,
)

PLAIN = {"clip_low": 0.2, "clip_high": 0.28, "one_sided": False, "kl": 0.0, "balance": 0.0}
LENGTHS = [2, 11, 5, 1]


def rollouts(sampler: Transformer, advantages: list[float], lengths: list[int] = LENGTHS) -> Rollouts:
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(96, (5 + length,), generator=g).tolist() for length in lengths]
    tokens, targets, weights = padded(rows, [[0] * 5 + [1] * length for length in lengths], 8)
    by_token = torch.tensor(advantages).unsqueeze(1) * weights
    batch = Rollouts(tokens, targets, weights, None, float(sum(lengths)), by_token, torch.zeros_like(weights))
    with torch.no_grad():
        return replace(batch, sampled_BT=answer_logprobs(sampler, batch))


def test_the_clip_by_hand():
    """Bounds 0.8 and 1.3. Too high a ratio stops a gain, too low a ratio stops a loss, and neither the other."""
    ratio = torch.tensor([1.0, 1.25, 2.0, 0.5, 2.0, 0.5, 0.9]).requires_grad_()
    advantage = torch.tensor([2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    loss, clipped = clipped_surrogate(ratio.log(), ratio, advantage, 0.2, 0.3)
    torch.testing.assert_close(loss.detach(), torch.tensor([-2.0, -2.5, -2.6, -1.0, 4.0, 1.6, 1.8]))
    assert clipped.tolist() == [False, False, True, False, False, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [-2.0, -2.0, 0.0, -2.0, 2.0, 0.0, 2.0]


def test_the_one_sided_clip_by_hand():
    """Bound 1.3: every token has a gradient of -min(ratio, 1.3) * advantage, and there is no lower bound."""
    logp = torch.tensor([-1.0, -2.0, -1.5, -0.5]).requires_grad_()
    ratio = torch.tensor([1.0, 2.0, 0.1, 2.0]) * (logp - logp.detach()).exp()
    loss, clipped = one_sided_surrogate(logp, ratio, torch.tensor([2.0, 2.0, -2.0, -2.0]), 0.2, 0.3)
    torch.testing.assert_close(loss.detach(), torch.tensor([2.0, 5.2, -0.3, -1.3]))
    assert clipped.tolist() == [False, True, False, True]
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, torch.tensor([-2.0, -2.6, 0.2, 2.6]))


def test_the_estimate_of_the_divergence_by_hand():
    found = divergence(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, math.exp(-1), math.e - 2]))


@pytest.mark.parametrize("one_sided", [False, True])
def test_a_group_of_equals_teaches_nothing(one_sided):
    model = tiny()
    loss = policy_gradient(model, rollouts(tiny(1), [0.0] * 4), **PLAIN | {"one_sided": one_sided})
    assert not any(gradient.any() for gradient in gradients(model, loss.total))


@pytest.mark.parametrize("one_sided", [False, True])
def test_on_policy_it_is_the_policy_gradient_and_tokens_weigh_the_same(one_sided):
    """-sum of A * grad log p over tokens, whichever answer they are of: nothing is divided by an answer's length."""
    model, advantages = tiny(), [0.75, -0.25, -0.25, -0.25]
    batch = rollouts(model, advantages)
    loss = policy_gradient(model, batch, **PLAIN | {"one_sided": one_sided})
    meant = torch.zeros(())
    for row, (length, advantage) in enumerate(zip(LENGTHS, advantages, strict=True)):
        logits = model.logits(model(batch.tokens_BT[row : row + 1, : 4 + length]).hidden_BTD)[0, 4:]
        answer = batch.targets_BT[row, 4 : 4 + length]
        meant = meant - advantage * logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    for a, b in zip(gradients(model, loss.total), gradients(model, meant), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert float(loss.metrics["ratio"]) == batch.weight
    assert float(loss.metrics["balance"]) == pytest.approx(batch.weight, rel=1e-5)
    assert loss.load_LE.sum(1).tolist() == [batch.weight] * 4
    assert float(loss.metrics["clipped"]) == float(loss.metrics["drift"]) == 0


@pytest.mark.parametrize("one_sided", [False, True])
def test_microbatches_change_nothing(one_sided):
    model = tiny()
    model.load_LE.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, -1))
    batch = rollouts(tiny(1), [0.75, -0.25, -0.25, -0.25])
    with torch.no_grad():
        batch = replace(batch, reference_BT=answer_logprobs(tiny(2), batch))
    options = PLAIN | {"one_sided": one_sided, "kl": 0.1, "balance": 0.1}
    whole = policy_gradient(model, batch, **options)
    parts = [policy_gradient(model, part, **options) for part in batch.microbatches(4)]
    torch.testing.assert_close(torch.stack([part.load_LE for part in parts]).sum(0), whole.load_LE)
    assert set(whole.metrics) == {"loss", "ratio", "clipped", "entropy", "drift", "kl", "balance"}
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value, rtol=1e-4, atol=1e-4)
    summed = gradients(model, torch.stack([part.total for part in parts]).sum())
    for a, b in zip(gradients(model, whole.total), summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_divergence_pulls_back_to_the_reference_and_only_when_asked():
    model, batch = tiny(), rollouts(tiny(), [0.0] * 4)
    with torch.no_grad():
        batch = replace(batch, reference_BT=answer_logprobs(tiny(1), batch))
    free, pulled = (policy_gradient(model, batch, **PLAIN | {"kl": kl}) for kl in (0.0, 0.5))
    assert pulled.total.item() == pytest.approx(0.5 * float(free.metrics["kl"]))
    assert not any(gradient.any() for gradient in gradients(model, free.total))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pulled.total.backward()
    optimizer.step()
    assert policy_gradient(model, batch, **PLAIN).metrics["kl"] < free.metrics["kl"]


def test_drift_tells_how_far_the_sampler_is():
    model = tiny()
    batch = rollouts(model, [0.0] * 4)
    likelier = replace(batch, sampled_BT=batch.sampled_BT + 0.1 * batch.weights_BT)
    loss = policy_gradient(model, likelier, **PLAIN)
    assert float(loss.metrics["drift"]) / batch.weight == pytest.approx(0.1, rel=1e-4)
    assert float(loss.metrics["ratio"]) / batch.weight == pytest.approx(math.exp(-0.1), rel=1e-4)
