"""The loop's promises: sums and one weight, members that do not disturb each other, nothing non-finite."""

import copy
from functools import partial

import pytest
import torch

from behemoth.data.batch import Batch
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.objectives.distill import distill
from behemoth.objectives.loss import Loss
from behemoth.objectives.next_token import next_token
from behemoth.train.average import Average
from behemoth.train.loop import MAX_SKIPS, Member, NotFiniteError, Plan, train
from behemoth.train.optim import Optimizer, Settings
from behemoth.train.schedule import warmup_stable_decay

STEPS = 6


def model(seed=0, hidden_size=16) -> Transformer:
    config = ModelConfig(
        vocab_size=96,
        hidden_size=hidden_size,
        num_layers=4,
        num_heads=2,
        num_kv_heads=1,
        head_size=8,
        dense_size=32,
        expert_size=24,
        num_experts=4,
        experts_per_token=2,
        moe_every=2,
        chunk_size=8,
        context_length=24,
    )
    return Transformer(config).initialise(torch.Generator().manual_seed(seed))


def member(
    name="teacher", seed=0, kind="muon", objective=None, joins=0, steps=STEPS, hidden_size=16
) -> Member:
    made = model(seed, hidden_size)
    return Member(
        name,
        made,
        objective or partial(next_token, balance=0.01),
        Optimizer(made, Settings(kind, 0.02, 0.01, 0.1)),
        partial(warmup_stable_decay, warmup=0.2, decay=0.4),
        steps,
        joins,
    )


class Text:
    """Eight rows a step, some tokens without weight, rows unequal in weight."""

    def batch(self, step: int) -> Batch:
        g = torch.Generator().manual_seed(1000 + step)
        tokens = (
            torch.randint(0, 96, (8, 1), generator=g) + torch.arange(25)
        ) % 96  # each token tells the next
        documents = (torch.arange(24) >= 13).int().expand(8, -1)
        weights = (torch.rand(8, 24, generator=g) > torch.linspace(0, 0.9, 8).unsqueeze(1)).float()
        return Batch(tokens[:, :-1], tokens[:, 1:], weights, documents, float(weights.sum()))


def run(members, microbatches=1, start=0, steps=STEPS):
    return list(train(members, Text(), Plan(steps, microbatches), start))


def weights(m: Member) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in m.model.named_parameters()}


def gradients(microbatches: int) -> dict[str, torch.Tensor]:
    """The gradient of one step, caught on its way into the optimizer."""
    m, caught = member(), {}
    m.model.load_LE.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(2, -1))
    m.optimizer.step = lambda rate: caught.update({n: p.grad.clone() for n, p in m.model.named_parameters()})
    run([m], microbatches, steps=1)
    return caught


@pytest.mark.parametrize("microbatches", [2, 8])
def test_one_microbatch_of_eight_is_eight_of_one(microbatches):
    whole, parts = gradients(1), gradients(microbatches)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=2e-4, atol=2e-7, msg=name)


def test_reported_loss_does_not_depend_on_microbatches():
    one, eight = run([member()], 1)[0].updates["teacher"], run([member()], 8)[0].updates["teacher"]
    assert one.metrics["loss"] == pytest.approx(eight.metrics["loss"], rel=1e-6)
    assert one.load_LE == eight.load_LE


def test_the_teacher_is_bit_identical_with_and_without_students():
    alone, taught = member(), member()
    run([alone])
    taught.average = Average(taught.model, 0.9)
    learn = partial(distill, teacher=taught.average.model, soft=0.7, balance=0.01)
    student = member("student", 1, objective=learn, joins=2, steps=STEPS - 2, hidden_size=8)
    control = member("control", 1, joins=2, steps=STEPS - 2, hidden_size=8)
    reports = run([taught, student, control])
    for name, value in weights(alone).items():
        assert torch.equal(value, weights(taught)[name]), name
    assert [sorted(r.updates) for r in reports[:3]] == [
        ["teacher"],
        ["teacher"],
        ["control", "student", "teacher"],
    ]


def test_a_student_does_not_depend_on_its_siblings():
    def taught(siblings: list[Member]) -> dict[str, torch.Tensor]:
        teacher = member()
        teacher.average = Average(teacher.model, 0.9)
        learn = partial(distill, teacher=teacher.average.model, soft=0.7, balance=0.01)
        student = member("student", 1, objective=learn)
        run([teacher, *siblings, student])
        return weights(student)

    lonely, together = taught([]), taught([member("sibling", 5, hidden_size=8)])
    assert all(torch.equal(lonely[name], together[name]) for name in lonely)


def test_everything_learns_and_loads_are_handed_to_the_next_step():
    m = member()
    before = weights(m)
    reports = run([m])
    assert all(not torch.equal(before[name], value) for name, value in weights(m).items())
    assert reports[-1].updates["teacher"].metrics["loss"] < reports[0].updates["teacher"].metrics["loss"]
    torch.testing.assert_close(m.model.load_LE, torch.tensor(reports[-1].updates["teacher"].load_LE))
    assert m.model.load_LE.sum(-1).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_ten_steps_are_five_and_five(kind):
    """Stopping and going on from copies of the state changes no bit."""
    through = member(kind=kind)
    run([through])
    first = member(kind=kind)
    run([first], steps=3)
    second = member(seed=9, kind=kind)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.model.load_LE.copy_(first.model.load_LE)
    second.optimizer.load(copy.deepcopy(first.optimizer.state()))
    run([second], start=3)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(through).items())


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(bad):
    calls = []

    def sometimes(model, batch) -> Loss:
        calls.append(1)
        loss = next_token(model, batch, balance=0.01)
        if len(calls) != 2:
            return loss
        broken = (
            loss.total * float("nan")
            if bad == "loss"
            else loss.total + (loss.total - loss.total.detach()).sqrt()
        )
        return loss._replace(total=broken)

    m = member(objective=sometimes)
    m.average = Average(m.model, 0.5)
    stepping = train([m], Text(), Plan(STEPS))
    next(stepping)
    before, average, load = weights(m), copy.deepcopy(m.average.model.state_dict()), m.model.load_LE.clone()
    report = next(stepping)
    assert report.updates["teacher"].skipped
    assert m.skipped == 1
    assert all(torch.equal(before[name], value) for name, value in weights(m).items())
    assert all(torch.equal(average[name], value) for name, value in m.average.model.state_dict().items())
    assert torch.equal(load, m.model.load_LE)
    assert not next(stepping).updates["teacher"].skipped
    assert all(torch.isfinite(value).all() for value in weights(m).values())


def test_a_run_that_has_broken_down_stops_with_its_weights_unharmed():
    def broken(model, batch) -> Loss:
        loss = next_token(model, batch, balance=0.01)
        return loss._replace(total=loss.total * float("inf"))

    m = member(objective=broken, steps=50)
    before = weights(m)
    with pytest.raises(NotFiniteError, match=f"{MAX_SKIPS} steps in a row"):
        run([m], steps=50)
    assert all(torch.equal(before[name], value) for name, value in weights(m).items())
