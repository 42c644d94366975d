"""Direct preference optimisation: the identities it keeps, and its loss from its definition."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_model import gradients, tiny

from behemoth.data.batch import Pairs, padded
from behemoth.model.transformer import Transformer
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.objectives.preference import dpo

PLAIN = {"beta": 0.3, "per_token": False, "nll": 0.0, "balance": 0.0}
LENGTHS = [(3, 9), (12, 2), (1, 1), (7, 4)]  # tokens of the preferred answer, and of the rejected one


def pairs(reference: Transformer) -> Pairs:
    g = torch.Generator().manual_seed(2)
    rows, masks = [], []
    for lengths in LENGTHS:
        prompt = torch.randint(96, (5,), generator=g).tolist()
        for length in lengths:
            rows.append(prompt + torch.randint(96, (length,), generator=g).tolist())
            masks.append([0] * 5 + [1] * length)
    batch = Pairs(*padded(rows, masks, 8), None, float(len(LENGTHS)), torch.zeros(len(rows)))
    with torch.no_grad():
        return replace(batch, reference_B=answer_logprobs(reference, batch).sum(1))


@pytest.mark.parametrize("per_token", [False, True])
def test_before_the_first_step_the_loss_is_log_two(per_token):
    model = tiny()
    loss = dpo(model, pairs(model), **PLAIN | {"per_token": per_token})
    assert loss.total.item() == float(4 * torch.tensor(2.0).log())
    assert float(loss.metrics["margin"]) == float(loss.metrics["accuracy"]) == 0


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("nll", [0.0, 0.5])
def test_the_loss_is_its_definition(per_token, nll):
    model, reference = tiny(), tiny(1)
    batch = pairs(reference)
    found = dpo(model, batch, **PLAIN | {"per_token": per_token, "nll": nll})
    meant, right = 0.0, 0
    for i, lengths in enumerate(LENGTHS):
        rewards = []
        for row, length in zip((2 * i, 2 * i + 1), lengths, strict=True):
            tokens, answer = (
                batch.tokens_BT[row : row + 1, : 4 + length],
                batch.targets_BT[row, 4 : 4 + length],
            )
            logp, before = (
                m.logits(m(tokens).hidden_BTD)[0, 4:].log_softmax(-1).gather(1, answer[:, None]).sum()
                for m in (model, reference)
            )
            rewards.append(0.3 * (logp - before) / (length if per_token else 1))
            if row % 2 == 0:
                meant -= nll * logp / length
        meant -= F.logsigmoid(rewards[0] - rewards[1])
        right += int(rewards[0] > rewards[1])
    torch.testing.assert_close(found.total, meant, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(model, found.total), gradients(model, meant), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert float(found.metrics["accuracy"]) == right


@pytest.mark.parametrize("number", [2, 4])
def test_microbatches_change_nothing(number):
    model, batch = tiny(), pairs(tiny(1))
    model.load_LE.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, -1))
    options = {"beta": 0.3, "per_token": True, "nll": 0.2, "balance": 0.1}
    whole, parts = (
        dpo(model, batch, **options),
        [dpo(model, part, **options) for part in batch.microbatches(number)],
    )
    torch.testing.assert_close(torch.stack([part.load_LE for part in parts]).sum(0), whole.load_LE)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value, rtol=1e-4, atol=1e-5)
    summed = gradients(model, torch.stack([part.total for part in parts]).sum())
    for a, b in zip(gradients(model, whole.total), summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_in_the_balancing_term_a_pair_counts_once_however_long_its_answers():
    model = tiny()
    loss = dpo(model, pairs(model), **PLAIN)
    assert float(loss.metrics["balance"]) == pytest.approx(
        4, rel=1e-5
    )  # the load is even before the first step
    assert loss.load_LE.sum(1).tolist() == pytest.approx([4.0] * 4, rel=1e-5)


def test_following_the_gradient_comes_to_prefer_the_preferred():
    model = tiny()
    batch = pairs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(8):
        optimizer.zero_grad()
        dpo(model, batch, **PLAIN).total.backward()
        optimizer.step()
    after = dpo(model, batch, **PLAIN)
    assert after.metrics["accuracy"] == 4
    assert after.total.item() < 4 * math.log(2) < after.total.item() + after.metrics["margin"].item()
