"""The chunked loss against the plain one, and the identities that every objective keeps."""

from dataclasses import replace

import pytest
import torch
from small_model import tiny

from behemoth.data.batch import Batch
from behemoth.objectives.distill import distill
from behemoth.objectives.loss import SoftTarget, cross_entropy, cross_entropy_plainly
from behemoth.objectives.next_token import next_token, uneven

N, D, V = 700, 24, 4096  # several chunks of 256 tokens, the last one short


def problem(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(V, D, generator=g) * 0.2).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=g)
    weights = (torch.rand(N, generator=g) > 0.3).float() * torch.rand(N, generator=g)
    teacher = SoftTarget(torch.randn(N, 8, generator=g), torch.randn(V, 8, generator=g), 0.7)
    return hidden, head, targets, weights, teacher


@pytest.mark.parametrize("soft", [False, True])
def test_chunked_loss_and_gradients_equal_the_plain_ones(soft):
    hidden, head, targets, weights, teacher = problem()
    answers = []
    for function in (cross_entropy, cross_entropy_plainly):
        hidden.grad = head.grad = None
        ce = function(hidden, head, targets, weights, teacher if soft else None)
        (ce.total / 3).backward()
        answers.append((ce, hidden.grad, head.grad))
    (fast, fast_dh, fast_dw), (plain, plain_dh, plain_dw) = answers
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(fast_dh, plain_dh, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fast_dw, plain_dw, rtol=1e-4, atol=1e-5)


def test_bf16_activations_with_an_fp32_head():
    hidden, head, targets, weights, _ = problem(torch.bfloat16)
    ce = cross_entropy(hidden, head, targets, weights)
    ce.total.backward()
    plain = cross_entropy_plainly(hidden.detach().float(), head.detach(), targets, weights)
    assert abs(ce.total - plain.total) / plain.total < 2e-3
    assert head.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16


def test_a_token_of_weight_zero_has_no_gradient():
    hidden, head, targets, weights, teacher = problem()
    cross_entropy(hidden, head, targets, weights, teacher).total.backward()
    assert hidden.grad[weights == 0].abs().max() == 0
    assert hidden.grad[weights > 0].abs().amax(-1).min() > 0


def test_no_gradient_is_made_when_nobody_asks():
    hidden, head, targets, weights, _ = problem()
    with torch.no_grad():
        ce = cross_entropy(hidden, head, targets, weights)
    assert not ce.total.requires_grad


# --- objectives ---------------------------------------------------------------------------------------------


def batch(rows=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 96, (rows, 25), generator=g)
    documents = (torch.arange(24) // 11).int().expand(rows, -1)
    weights = torch.ones(rows, 24)
    weights[:, 10] = 0
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, documents, float(weights.sum()))


def test_distilling_from_itself_has_no_divergence():
    model = tiny()
    loss = distill(model, batch(), teacher=model, soft=1.0, balance=0.0)
    assert abs(float(loss.metrics["kl"])) < 1e-3
    loss.total.backward()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-4


def test_distilling_with_no_share_of_the_teacher_is_predicting_the_text():
    model, teacher = tiny(), tiny(1)
    soft = distill(model, batch(), teacher=teacher, soft=0.0, balance=0.01)
    hard = next_token(model, batch(), balance=0.01)
    assert torch.equal(soft.total, hard.total)
    assert teacher.lm_head.weight.grad is None


def test_the_balancing_term_is_one_when_loads_are_even_and_has_no_gradient_then():
    model = tiny()
    out = model(batch().tokens_BT)
    term = uneven(model, out, batch().weights_BT)[0] / batch().weight
    assert abs(term.item() - 1) < 1e-5
    (gradient,) = torch.autograd.grad(term, [model.layers[0].feed_forward.router.weight])
    assert gradient.abs().max() < 1e-6


def test_the_balancing_term_pushes_away_from_the_loaded_expert():
    model = tiny()
    model.load_LE.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, -1))
    before = probabilities(model)
    optimizer = torch.optim.SGD([layer.feed_forward.router.weight for layer in model.layers], lr=0.1)
    with torch.enable_grad():
        out = model(batch().tokens_BT)
        term, _ = uneven(model, out, batch().weights_BT)
        gradients = torch.autograd.grad(term, optimizer.param_groups[0]["params"])
    for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    assert (probabilities(model)[:, 0] < before[:, 0]).all()


def probabilities(model):
    out = model(batch().tokens_BT)
    return torch.stack([routing.logits_NE.softmax(-1).sum(0) for routing in out.routings]).detach()


def test_a_token_of_weight_zero_does_not_count_in_the_balancing_term_or_the_load():
    model, some = tiny(), batch()
    model.load_LE.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, -1))
    out = model(some.tokens_BT, some.documents_BT)
    term, load_LE = uneven(model, out, some.weights_BT)
    counts = some.weights_BT.flatten() > 0
    probs = torch.stack([r.logits_NE[counts].softmax(-1).sum(0) for r in out.routings])
    assert load_LE.sum(1).tolist() == [some.weight] * 4  # one expert per token
    torch.testing.assert_close(term, 4 * (model.load_LE * probs).sum(1).mean())


def test_a_dense_model_has_no_balancing_term():
    model = tiny(num_experts=0)
    assert float(next_token(model, batch(), balance=0.01).metrics["balance"]) == 0


def test_rows_that_weigh_nothing_change_nothing():
    model, whole = tiny(), batch()
    model.load_LE.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, -1))
    masked = replace(whole, weights_BT=whole.weights_BT * torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
    found, meant = (next_token(model, some, balance=1.0) for some in (masked, whole.microbatches(2)[0]))
    torch.testing.assert_close(found.total, meant.total)
    assert torch.equal(found.load_LE, meant.load_LE)
