"""Who answers: the engine over the very parameters that are trained, or a server whose tokens are checked."""

from types import SimpleNamespace

import pytest
import torch
from rl_cases import CONTEXT, model, prompts, sampler, task, tokenizer

from behemoth.base.errors import InputError
from behemoth.data.batch import padded
from behemoth.inference.cache import KVCache
from behemoth.inference.engine import at_compute_precision
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.rl.advantages import advantages
from behemoth.rl.rewards import Reward
from behemoth.rl.rollouts import EndpointSampler, prompts_of
from behemoth.rl.source import Group, Settings, rollouts
from behemoth.tasks.task import Item, Task

# Measured with 20 seeds: at most 1e-6 nats in fp32, and 0.008 in bf16, where nearly all tokens agree bit for bit.
FP32, BF16 = 1e-5, 0.05


def groups_of(of, n=4, limit=40):
    """Answers of up to 40 tokens to prompts of about 20, in chunks of 8."""
    asked = prompts(3, limit=limit)
    answers = sampler(of).sample(asked, n, seed=1, version=7)
    totals = [float(i) for i in range(n)]
    rewards = [Reward(total, {"correct": total}) for total in totals]
    return [Group(p, s, rewards, totals, advantages(totals)) for p, s in zip(asked, answers, strict=True)]


def chosen_experts(of: torch.nn.Module, rows, starts):
    """Each row's experts (layers, tokens): by the full forward, and token by token after its prompt, with the cache."""
    found = []
    for row, start in zip(rows, starts, strict=True):
        whole = torch.stack(of(torch.tensor([row])).experts)[:, start:, 0]
        cache = KVCache(of.config, [start], torch.device("cpu"))
        of(torch.tensor([row[:start]]), cache=cache)
        steps = [
            torch.stack(of(torch.tensor([[token]]), cache=cache).experts)[:, 0, 0] for token in row[start:]
        ]
        found.append((whole, torch.stack(steps, 1)))
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FP32), (torch.bfloat16, BF16)], ids=["fp32", "bf16"]
)
def test_sampler_and_trainer_agree_on_every_token(dtype, tolerance):
    policy = model(dtype)
    groups = groups_of(policy)
    batch, silent_B = rollouts(groups, Settings(4))
    assert batch.tokens_BT.shape[1] > 4 * policy.config.chunk_size
    assert (
        batch.weight
        == sum(len(s.ids) for group in groups for s in group.samples)
        == float(batch.weights_BT.sum())
    )
    with torch.no_grad():
        trainer_BT = answer_logprobs(policy, batch)
    assert not silent_B.any()
    assert (batch.sampled_BT != 0).sum() == batch.weight
    assert (trainer_BT - batch.sampled_BT).abs().max() < tolerance


@torch.no_grad()
def test_sampler_and_trainer_choose_the_same_experts_in_fp32():
    policy = model()
    groups = groups_of(policy)
    rows = [[*group.prompt.ids, *s.ids] for group in groups for s in group.samples]
    starts = [len(group.prompt.ids) for group in groups for _ in group.samples]
    chosen = chosen_experts(policy, rows, starts)
    for whole, by_steps in chosen:
        assert torch.equal(whole, by_steps)
    assert len(torch.unique(torch.cat([whole.flatten() for whole, _ in chosen]))) == 4
    # and beside other rows, padded as a batch is
    tokens_BT, _, weights_BT = padded(
        rows, [[0] * a + [1] * (len(r) - a) for r, a in zip(rows, starts, strict=True)]
    )
    for layer, experts_Nk in enumerate(policy(tokens_BT).experts):
        experts_BT = experts_Nk[:, 0].view_as(tokens_BT)
        for row, (whole, _), start in zip(experts_BT, chosen, starts, strict=True):
            assert torch.equal(row[start : start + whole.shape[1] - 1], whole[layer, :-1])
    assert weights_BT.sum() == sum(len(row) - start for row, start in zip(rows, starts, strict=True))


def test_the_sampler_shares_the_parameters_that_are_trained():
    policy = model()
    used = at_compute_precision(sampler(policy).engine.model)
    assert [p.data_ptr() for p in used.parameters()] == [p.data_ptr() for p in policy.parameters()]
    asks, asked = sampler(policy), prompts(2)
    before = asks.sample(asked, 2, 0, 0)
    with torch.no_grad():
        policy.lm_head.weight.mul_(-1)
    after = asks.sample(asked, 2, 0, 1)
    assert [s.ids for group in before for s in group] != [s.ids for group in after for s in group]
    assert {s.version for group in after for s in group} == {1}


def test_answers_keep_what_is_needed_and_depend_on_the_seed_alone():
    asks, asked = sampler(model()), prompts(3, limit=12)
    groups = asks.sample(asked, 5, seed=3, version=9)
    assert [len(group) for group in groups] == [5, 5, 5]
    assert len({s.ids for group in groups for s in group}) == 15
    for s in (s for group in groups for s in group):
        assert len(s.ids) == len(s.logprobs) <= 12
        assert (s.finish == "stop") == (s.ids[-1] in tokenizer().stop_ids)
        assert s.text == tokenizer().decode(s.ids)
    assert [s.ids for s in asks.sample(asked, 5, 3, 9)[0]] == [s.ids for s in groups[0]]
    assert [s.ids for s in asks.sample(asked, 5, 4, 9)[0]] != [s.ids for s in groups[0]]
    twice = asks.sample([asked[0], asked[0]], 5, 3, 9)  # equal prompts are answered apart
    assert len({s.ids for group in twice for s in group}) == 10


def test_prompts_are_chats_with_room_for_an_answer(capsys):
    (first, *_), many = prompts(2), task(3)
    text = tokenizer().decode(first.ids, keep_special=True)
    assert text.endswith("say x, 0<|eot|><|header_start|>assistant<|header_end|>\n\n")
    assert first.id == "crosses/0"
    longer = Task(
        "crosses", "generate", (*many.items, Item("long", "x " * 99)), "exact_match", grade=many.grade
    )
    assert len(prompts_of(longer, tokenizer(), 4, CONTEXT)) == 3
    assert "1 of 4 prompts leave no room for 4 tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match="no item leaves room"):
        prompts_of(many, tokenizer(), CONTEXT, CONTEXT)
    choice = Task("pick", "choice", (Item("1", "a", choices=("b", "c"), gold=0),), "accuracy")
    with pytest.raises(InputError, match="asks 'choice'"):
        prompts_of(choice, tokenizer(), 4, CONTEXT)
    with pytest.raises(InputError, match="above 0"):
        sampler(model(), temperature=0)


# --------------------------------------------------------------------------------------------------- a server


def said(text, finish="stop", tokens=(), logprobs=(), why=""):
    return SimpleNamespace(text=text, finish=finish, tokens=tokens, logprobs=logprobs, why=why)


class Chats:
    def __init__(self, *answers):
        self.answers, self.asked = answers, None

    def chat(self, conversations, **how):
        self.asked = (conversations, how)
        return self.answers


def test_a_server_is_asked_for_each_sample_by_itself():
    server = Chats(*[said("x")] * 6)
    groups = EndpointSampler(server, tokenizer(), 0.7, version=3).sample(
        prompts(3, limit=9), 2, seed=1, version=5
    )
    conversations, how = server.asked
    assert conversations[2] == [{"role": "user", "content": "say x, 1"}]
    assert how["max_tokens"] == [9] * 6 and how["temperature"] == 0.7 and len(set(how["seeds"])) == 6
    assert all(0 <= seed < 2**31 for seed in how["seeds"])
    assert [len(group) for group in groups] == [2, 2, 2]
    assert {s.version for group in groups for s in group} == {3}  # of the weights that it serves


def test_a_servers_logprobs_count_only_where_its_tokens_are_ours():
    words = tokenizer()
    text = "two and two are four"
    ours = [words.token_bytes[i] for i in words.encode(text)]
    assert len(ours) > 2 and len(ours[1]) > 1
    both = ours[0] + ours[1]
    known = tuple(-0.1 * i for i in range(len(ours) + 1))
    answers = [
        said(text, tokens=[*ours, b"<|eot|>"], logprobs=known),
        said(text, tokens=[*ours, b""], logprobs=known),
        said(text, "length", ours, known[:-1]),
        said(text, tokens=ours, logprobs=known[:-1]),  # nothing of the stop token
        said(text, "length", [ours[0] + ours[1], *ours[2:]], known[:-2]),  # cut elsewhere
        said(text, tokens=[both[:-1], both[-1:], *ours[2:], b""], logprobs=known),  # as many, cut elsewhere
        said(text),
        said("", "length"),
        said("", why="HTTP 500"),
    ]
    (group,) = EndpointSampler(Chats(*answers), words).sample(prompts(1, limit=20), 9, 0, 0)
    assert [s.logprobs for s in group] == [known, known, known[:-1], *[None] * 4]
    assert group[0].ids == (*words.encode(text), words.eot_id)
    assert group[2].ids == tuple(words.encode(text))


def test_a_servers_answer_is_cut_at_the_limit_in_our_tokens():
    answer = said("x" * 30, tokens=[b"x" * 30, b"<|eot|>"], logprobs=(-1.0, -1.0))
    ((kept,),) = EndpointSampler(Chats(answer), tokenizer()).sample(prompts(1, limit=5), 1, 0, 0)
    assert (len(kept.ids), kept.finish, kept.logprobs) == (5, "length", None)
    assert kept.text == tokenizer().decode(kept.ids) and 0 < len(kept.text) < 30
