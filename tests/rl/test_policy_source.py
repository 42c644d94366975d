"""The policy as a source of batches: what is in them, what is told of them, and that learning from them works."""

import json
import math
from functools import partial

import pytest
import torch
from rl_cases import Scripted, model, prompts, sampler, tokenizer

from behemoth.base.errors import InputError
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.objectives.policy_gradient import policy_gradient
from behemoth.rl.curriculum import Curriculum
from behemoth.rl.rewards import Rewards
from behemoth.rl.source import PolicySource, Settings
from behemoth.train.loop import Member, Plan, train
from behemoth.train.optim import Optimizer
from behemoth.train.optim import Settings as OptimizerSettings

ASKED = prompts(6, limit=8)


def source(sampler, policy=None, size=3, samples=4, weights=None, asked=ASKED, reference=None, **settings):
    curriculum = Curriculum(asked, size)
    rewards = Rewards(weights or {"correct": 1})
    return PolicySource(
        policy or model(), sampler, curriculum, rewards, Settings(samples, **settings), reference
    )


def better_and_better(prompt, i):
    return "y" * (3 - i) + "x" * i


def objective(**how):
    return partial(
        policy_gradient, clip_low=0.2, clip_high=0.28, one_sided=False, kl=0.0, balance=0.01, **how
    )


def test_a_batch_holds_every_answer_with_its_advantage():
    made = source(Scripted(better_and_better))
    batch = made.batch(5)
    assert batch.documents_BT is None and batch.reference_BT is None
    assert len(batch.tokens_BT) == 12
    assert batch.weight == batch.weights_BT.sum() == made.facts["tokens"]
    for row in range(12):
        answer = batch.targets_BT[row][batch.weights_BT[row] == 1].tolist()
        assert tokenizer().decode(answer) == better_and_better(None, row % 4)
        assert answer[-1] == tokenizer().eot_id
        first = int(batch.weights_BT[row].argmax())
        assert tokenizer().decode(batch.tokens_BT[row, : first + 1].tolist()).endswith("assistant\n\n")
        told = batch.advantages_BT[row][batch.weights_BT[row] == 1]
        torch.testing.assert_close(told, torch.full_like(told, (row % 4 - 1.5) / 3))
    outside = batch.weights_BT == 0
    assert not batch.advantages_BT[outside].any() and not batch.sampled_BT[outside].any()
    assert (batch.sampled_BT[~outside] == -1.5).all()


def test_the_facts_of_a_batch():
    made = source(Scripted(better_and_better), weights={"correct": 1, "finished": 0.5})
    made.batch(4)
    facts = made.facts
    assert facts.pop("seconds").keys() == {"sampling", "grading", "scoring"}
    assert facts.pop("parts") == {
        "correct": 0.5,
        "readable": 1,
        "finished": 1,
        "length": facts["tokens"] / 96,
    }
    assert facts.pop("tokens") > 12
    assert facts == {
        "reward": 1.0, "pass_rate": 0.5, "tasks": {"crosses": 0.5}, "samples": 12, "finished": 1, "entropy": 1.5,
        "groups": 3, "groups_without_signal": 0, "failed": 0, "unscored": 0, "stand_ins": 0, "version": 4,
    }  # fmt: skip
    json.dumps(facts)


def test_groups_without_signal_are_left_out_and_counted():
    made = source(Scripted(lambda prompt, i: "x" if prompt.item.id < "4" else "xyyy"[: i + 1]), size=6)
    batch = made.batch(0)
    assert made.facts["groups_without_signal"] == 4 and made.facts["groups"] == 6
    assert len(batch.tokens_BT) == 8
    assert all(batch.advantages_BT[row].any() for row in (1, 2, 3))
    assert made.facts["samples"] == 24  # the numbers are of all answers


def test_a_step_without_any_signal_is_valid_and_learns_nothing():
    policy = model()
    made = source(Scripted(lambda prompt, i: "x"), policy)
    batch = made.batch(0)
    assert batch.weight > 0 and not batch.advantages_BT.any()
    assert made.facts["groups_without_signal"] == 3
    loss = policy_gradient(policy, batch, clip_low=0.2, clip_high=0.28, one_sided=False, kl=0.0, balance=0.0)
    (loss.total / batch.weight).backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())


def test_what_cannot_be_scored_is_left_out_of_its_group():
    made = source(Scripted(lambda prompt, i: ["?", "x", "y", "?"][i]))
    batch = made.batch(0)
    assert len(batch.tokens_BT) == 6 and made.facts["unscored"] == 6
    assert batch.advantages_BT[0].max() == 0.5
    with pytest.raises(InputError, match="none of the answers to 3 prompts could be scored: a question"):
        source(Scripted(lambda prompt, i: "?")).batch(0)


def test_rows_are_filled_up_to_whole_microbatches():
    made = source(Scripted(lambda prompt, i: ["x", "y", "?", "?"][i]), microbatches=4)
    batch = made.batch(0)  # six answers
    assert len(batch.tokens_BT) == 8 and not batch.weights_BT[6:].any()
    assert sum(part.weight for part in batch.microbatches(4)) == batch.weight == made.facts["tokens"]


def test_old_weights_are_refused_beyond_the_bound():
    served = Scripted(better_and_better, version=2)
    made = source(served, max_staleness=3)
    made.batch(5)
    assert made.facts["version"] == 2
    with pytest.raises(
        InputError, match="for step 6 were written by the weights of step 2, and max_staleness = 3"
    ):
        made.batch(6)


def test_the_trainer_stands_in_for_a_silent_sampler_and_the_reference_is_asked():
    policy, reference = model(), model(init_std=0.3)
    made = source(Scripted(better_and_better, logprobs=False), policy, reference=reference, microbatches=2)
    batch = made.batch(0)
    assert made.facts["stand_ins"] == 12 and made.facts["entropy"] is None
    with torch.no_grad():
        torch.testing.assert_close(batch.sampled_BT, answer_logprobs(policy, batch))
        torch.testing.assert_close(batch.reference_BT, answer_logprobs(reference, batch))
    assert not torch.equal(batch.sampled_BT, batch.reference_BT)


def test_transcripts_are_the_best_and_the_worst_of_a_group():
    made = source(
        Scripted(lambda prompt, i: "x" if prompt.item.id < "5" else better_and_better(prompt, i)), size=6
    )
    made.batch(7)
    best, worst = made.transcripts
    assert (best["text"], worst["text"]) == ("xxx", "yyy")
    assert best["prompt_id"] == worst["prompt_id"] == "crosses/5"
    assert best.keys() == {
        "step", "version", "prompt_id", "task", "prompt", "text", "finish", "tokens", "reward", "parts", "advantage"
    }  # fmt: skip
    assert (best["step"], best["version"], best["reward"], best["advantage"]) == (8, 7, 1, 0.5)
    assert best["prompt"] == "say x, 5"


def test_capabilities_take_turns_in_the_transcripts():
    made = source(Scripted(better_and_better), size=4, asked=prompts(4, 8, "sums") + prompts(4, 8, "code"))
    shown = []
    for step in range(4):
        made.batch(step)
        shown.append(made.transcripts[0]["task"])
    assert shown == ["sums", "sums", "code", "code"]


def test_a_source_that_is_restored_goes_on_as_the_other_one():
    policy = model()
    one, other = source(sampler(policy), policy), source(sampler(policy), policy)
    for step in range(3):
        one.batch(step)
    other.restore(json.loads(json.dumps(one.state())))
    a, b = one.batch(3), other.batch(3)
    assert torch.equal(a.tokens_BT, b.tokens_BT) and torch.equal(a.advantages_BT, b.advantages_BT)
    assert torch.equal(a.sampled_BT, b.sampled_BT)


def test_scores_reach_the_curriculum():
    made = source(Scripted(lambda prompt, i: "x"))
    made.batch(2)

    assert all(known == [4, 4, 2] for known in made.state()["curriculum"].values())
    assert len(made.state()["curriculum"]) == 3


def test_one_sample_is_no_group():
    with pytest.raises(InputError, match="samples = 1"):
        Settings(1)


def test_it_learns_to_say_one_token_through_the_loop():
    policy = model(hidden_size=32, num_experts=0)
    made = source(sampler(policy), policy, size=8, samples=8, asked=prompts(12, limit=4), microbatches=2)
    member = Member(
        "rl",
        policy,
        objective(),
        Optimizer(policy, OptimizerSettings("adamw", 0.01, 0.01, 0.0)),
        lambda done: 1.0,
        80,
    )
    rewards = []
    for step in train([member], made, Plan(80, microbatches=2)):
        rewards.append(made.facts["reward"])
        assert math.isfinite(step.updates["rl"].metrics["loss"]) and made.facts["version"] == step.step - 1
        if rewards[-1] > 0.95:
            break
    assert rewards[0] < 0.1
    assert rewards[-1] > 0.9, rewards
