"""What is practised, set aside and learnt from, in parts: the units under the stages of post-training."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from behemoth import assistant, lessons, posttrain, practice
from behemoth.base.errors import InputError
from behemoth.data.conversations import Conversation, Found
from behemoth.data.preferences import Pair
from behemoth.dials import STAGES, Arithmetic, ConversationRows, Graded, Recipe, Refusals, RlRecipe, Worked
from behemoth.evals.local import local
from behemoth.inference.engine import Engine
from behemoth.model.transformer import Transformer
from behemoth.tasks.refusal import part_of, read_prompts
from behemoth.tasks.task import Grade, Item, Task
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

ROWS = {"kind": "rows", "path": "x"}
SUMS = {"kind": "arithmetic"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the user asks the assistant; two and two are four"] * 4, 320)


def sums(count=40, name="sums"):
    items = tuple(
        Item(str(n), f"{n} + 1?", answer=str(n + 1), solution=f"first\n{n + 1}") for n in range(count)
    )
    return Task(name, "generate", items, "exact_match", grade=graded, source="ours", licence="MIT")


def graded(item, output):
    return Grade(float(item.answer in output))


def asked(conversation):
    return [message.content for message in conversation.messages]


@pytest.mark.parametrize(("direct", "least", "most"), [(0.0, 0, 0), (1.0, 40, 40), (0.5, 10, 30)])
def test_a_share_is_answered_at_once(direct, least, most):
    found = lessons.worked(sums(), direct, seed=0)
    answers = [asked(each)[1] for each in found.kept]
    assert least <= sum("first" not in answer for answer in answers) <= most
    assert all(answer.split("\n")[-1] == str(n + 1) for n, answer in enumerate(answers))
    assert (found.kept[3].id, found.kept[3].source, found.kept[3].licence) == ("sums/3", "ours", "MIT")
    assert found == lessons.worked(sums(), direct, seed=0)


def test_an_item_without_a_worked_answer_is_rejected():
    task = Task("plain", "generate", (Item("a", "1?", answer="1"),), "exact_match", grade=graded)
    assert lessons.worked(task, 0.0, 0).reasons == {"no worked answer": 1}


def test_the_hardest_are_those_whose_answers_are_least_likely(tokenizer, monkeypatch):
    """A model that finds the n-th answer n nats a token hard, and its question easier the higher n is."""
    talks = [lessons.talk(str(n), "what?", "it is " * (1 + (9 - n) // 2), "ours") for n in range(10)]
    talks.append(lessons.talk("long", "what?", "so " * 200, "ours"))
    masks = [np.array(encode_chat(tokenizer, each.messages).mask[1:], dtype=bool) for each in talks]

    class Known:
        def __init__(self, model, context):
            pass

        def logprobs(self, rows):
            assert len(rows) == 10, "what is too long is not scored"
            return [np.where(mask, -float(n), n - 10.0) for n, mask in enumerate(masks[:10])]

    monkeypatch.setattr(lessons, "Engine", Known)
    found = lessons.hardest(Found(talks, []), None, tokenizer, 64, 0.3)
    assert [each.id for each in found.kept] == ["7", "8", "9", "long"]
    assert found.reasons == {"easy": 7}


def test_what_a_recipe_names_becomes_conversations(tmp_path, tokenizer):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hello?", "completion": "Yes."}\n{"prompt": "x"}\n')
    (tmp_path / "bad.jsonl").write_text("".join(f'{{"goal": "do harm {n}"}}\n' for n in range(30)))
    entries = [
        Worked(kind="practice", direct=1.0),
        ConversationRows(kind="rows", path=str(tmp_path / "rows.jsonl"), licence="MIT"),
        Refusals(kind="refusals", path=str(tmp_path / "bad.jsonl"), column="goal"),
    ]
    found = lessons.conversations(entries, [sums(4)], None, tokenizer, 64, seed=0)
    sources = Counter(each.source for each in found.kept)
    refused = part_of(read_prompts(tmp_path / "bad.jsonl", "goal"), "train")
    assert 15 < len(refused) < 30, "some are for the exam"
    assert sorted(sources.values()) == sorted([4, 1, len(refused)])
    assert len(found.rejected) == 1
    assert {asked(each)[0] for each in found.kept if "bad" in each.source} == {
        item.prompt for item in refused
    }
    assert next(each for each in found.kept if each.licence == "MIT" and "Hello?" in asked(each)[0])


def test_what_the_exam_asks_is_learnt_from_nowhere():
    talks = [lessons.talk("a", "What  is 1 + 1?", "2", "x"), lessons.talk("b", "What is 1 + 2?", "3", "x")]
    found = lessons.not_asked(Found(talks, []), {"what is 1 + 1?"})
    assert [each.id for each in found.kept] == ["b"] and found.reasons == {"in the exam": 1}
    pair = Pair("p", (Message("user", "what is 1 + 1?"),), "2", "3")
    assert lessons.not_asked(Found([pair], []), {"what is 1 + 1?"}).reasons == {"in the exam": 1}


def test_rows_are_read_as_the_recipe_says():
    entry = ConversationRows(kind="rows", path="x", limit=3, licence="MIT", layout="alpaca")
    asked = lessons.where(entry, 5)
    assert {key: asked[key] for key in ("layout", "limit", "seed", "licence")} == {
        "layout": "alpaca",
        "limit": 3,
        "seed": 5,
        "licence": "MIT",
    }
    assert "licence" not in lessons.where(ConversationRows(kind="rows", dataset="d"), 5)


def test_what_became_of_the_rows_is_counted():
    long = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    kept = [lessons.talk("1", "a", "b", "x"), Conversation("2", (*long, Message("assistant", "d")))]
    told = lessons.counts(kept, {"easy": 3})
    sources = {"x": {"kept": 1}, "unknown": {"kept": 1}}
    assert told == {"kept": 2, "rejected": {"easy": 3}, "sources": sources, "turns": 2}
    assert lessons.counts([Pair("p", long, "yes", "no")], {})["turns"] == 2


def test_practice_that_is_set_aside():
    rest, dev = practice.set_aside([sums(10), sums(7, "more")], 5)
    for task, mine, aside in zip([sums(10), sums(7, "more")], rest, dev.tasks, strict=True):
        assert len(aside.items) == 5 and mine.name == aside.name == task.name
        assert sorted((*mine.items, *aside.items), key=lambda item: int(item.id)) == list(task.items)


def test_a_sum_whose_twin_is_set_aside_is_not_practised():
    twins = tuple(Item(f"{a} + {b}", f"{a} + {b}?", answer=str(a + b)) for a in range(6) for b in range(6))
    (rest,), dev = practice.set_aside([replace(sums(), items=twins)], 4)
    kept = {practice.same(item) for item in dev.tasks[0].items}
    assert len(rest.items) < 32 and not kept & {practice.same(item) for item in rest.items}


def test_practice_is_of_one_split_and_of_written_answers(tmp_path):
    entry = Arithmetic(
        kind="arithmetic", items=30, digits=(2,), steps=False, name="sums", operations=("subtract",)
    )
    (train,), (test,) = (practice.tasks_of([entry], split, seed=1) for split in ("train", "test"))
    assert not {item.prompt for item in train.items} & {item.prompt for item in test.items}
    assert (train.name, train.ask, len(train.items)) == ("sums", "generate", 30)
    assert all(" - " in item.prompt for item in train.items) and train.max_tokens == 16
    (worked,) = practice.tasks_of([entry.model_copy(update={"steps": True})], "train", seed=1)
    assert worked.max_tokens > 16
    assert practice.tasks_of([entry], "train", seed=2)[0].items != train.items
    with pytest.raises(InputError, match="train: sums names two tasks"):
        practice.tasks_of([entry, entry], "train", 0)


def test_only_what_is_written_can_be_practised(monkeypatch):
    likely = SimpleNamespace(name="likely", ask="choice")
    monkeypatch.setattr(practice.suites, "load", lambda path, split: SimpleNamespace(tasks=(likely,)))
    with pytest.raises(InputError, match="asks 'choice'"):
        practice.tasks_of([SimpleNamespace(path="x")], "train", 0)


def test_every_stage_has_a_seed_of_its_own():
    assert len({practice.stage_seed(seed, stage) for seed in (0, 1) for stage in STAGES}) == 6
    assert STAGES == ("sft", "rl", "dpo")


@pytest.mark.parametrize(
    ("stage", "start", "begins"),
    [("sft", None, "teacher"), ("sft", "student", "student"), ("dpo", None, "sft")],
)
def test_what_a_stage_begins_with(stage, start, begins, monkeypatch):
    """Its weights in fp32, but as they are stored under an adapter."""
    opened = []

    def open_model(spec, dtype, device):
        opened.append((spec, dtype))
        return SimpleNamespace(model=SimpleNamespace())

    monkeypatch.setattr(posttrain, "open_model", open_model)
    adapter = {"adapter": {}} if stage == "dpo" else {}
    tables = {
        "sft": {"conversations": [ROWS]},
        "dpo": {"pairs": [ROWS], **adapter},
        "assistant": {"start": start},
    }
    text = {"data": {"sources": [{"kind": "python"}]}, "model": {"size": "4M"}, "students": [{"size": "1M"}]}
    recipe = Recipe.model_validate({"name": "x", **text, **tables})
    settled = SimpleNamespace(recipe=recipe, train=SimpleNamespace(precision="bf16"))
    found = posttrain.before(SimpleNamespace(settled=settled, directory="RUN"), stage)
    assert opened == [(f"RUN:{begins}", None if adapter else torch.float32)]
    assert found.model.compute_dtype == torch.bfloat16


def test_what_reinforcement_learning_knows_of_itself_comes_back():
    known = []
    policy = SimpleNamespace(state=lambda: {"curriculum": {"a": [1, 2, 3]}}, restore=known.append)
    spec = RlRecipe(stop_after_fall=0.6)
    course = posttrain.Course(spec, policy, {})
    assert course.watch.fall == 0.6
    course.watch.known, course.stopped = {"steps": 7, "reward": 0.5}, "it fell"
    course.best.update(4, 0.25)
    again = posttrain.Course(spec, policy, course.notes())
    assert known == [policy.state()] and vars(again.best) == {"step": 4, "score": 0.25}
    assert again.watch.known == course.watch.known and course.notes()["stopped"] == "it fell"
    assert posttrain.Course(spec, None, {}).notes() == {}


def test_in_the_template_nothing_comes_before_the_prompt(tokenizer, tiny_config):
    model = Transformer(
        tiny_config.model_copy(update={"vocab_size": tokenizer.vocab_size, "context_length": 128})
    )
    backend = local(Engine(model), tokenizer, "m", "", chat=True)
    reader = backend.reader
    whole = encode_chat(tokenizer, [Message("user", "two?")], generation_prompt=True).ids
    assert [*reader.opening, *reader.encode("two?")] == whole and reader.first == []
    with pytest.raises(InputError, match="leave --chat out"):
        reader.score([])
    plain = local(Engine(model), tokenizer, "m", "").reader
    assert plain.opening == [tokenizer.bos_id] and backend.route != ""


def test_the_table_tells_who_gained():
    """A score of its own for each model, and differences from the earlier to the later."""
    base, sft = (
        SimpleNamespace(name=n, spec=n, sha256=n, tasks={"sums": 1, "held_out": 1}) for n in ("base", "sft")
    )

    def side(score):
        return {"score": score, "low": score - 1, "high": score + 1, "items": 9}

    told = {"difference": 0.5, "low": 0.4, "high": 0.6, "verdict": "better", "items": 9}
    text = told | {"difference": -0.2, "low": -0.3, "high": -0.1, "verdict": "worse"}
    result = {
        "tasks": [
            {"task": "sums", "a": side(0.75), "b": side(0.25), **told},
            {"task": "held_out", "a": side(2.2), "b": side(2.0), **text},
        ]
    }
    found = assistant.as_table([base, sft], [(sft, base, result)])
    assert found["exam"] == ["sums"]
    assert [model["scores"]["sums"]["estimate"] for model in found["models"]] == [0.25, 0.75]
    assert [model["bits_per_byte"] for model in found["models"]] == [2.0, 2.2]
    assert found["steps"] == [{"from": "base", "to": "sft", "task": "sums", **told}]
    (worse,) = found["held_out"]
    assert (worse["from"], worse["to"], worse["verdict"]) == ("base", "sft", "worse")
    assert (worse["worse_percent"], worse["low_percent"], worse["high_percent"]) == (10.0, 5.0, 15.0)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"rl": {}}, "rl needs tasks to practise"),
        ({"sft": {"conversations": [{"kind": "practice"}]}}, 'kind = "practice" needs tasks'),
        ({"dpo": {"pairs": [{"kind": "graded"}]}}, 'kind = "graded" needs tasks'),
        ({"sft": {"conversations": [ROWS], "replay": 0.1}}, "sft.replay is pretraining text"),
        ({"sft": {"conversations": [{"kind": "code"}]}}, r'kind = "code" need \[\[data.sources'),
        ({"sft": {"conversations": [{"kind": "rows"}]}}, "give path"),
        ({"sft": {"conversations": [ROWS | {"dataset": "y"}]}}, "one of the two"),
        ({"sft": {"conversations": [ROWS], "optimizer": "muon", "adapter": {}}}, "learnt with optimizer"),
        (
            {"assistant": {"start": "student"}, "sft": {"conversations": [ROWS]}},
            "the members of this run are teacher",
        ),
    ],
)
def test_tables_that_do_not_agree(tables, says):
    recipe = {"name": "x", "model": {"path": "weights"}}
    with pytest.raises(ValidationError, match=says):
        Recipe.model_validate(recipe | tables)
    fine = {"assistant": {"practice": [SUMS]}, "dpo": {"pairs": [{"kind": "graded"}]}, "rl": {}}
    assert Recipe.model_validate(recipe | fine).stages == ["rl", "dpo"]


def test_the_first_pairs_of_every_task_are_asked(monkeypatch, tokenizer):
    """As many prompts as the recipe says, shared by the tasks, with the rewards and the temperature of [rl]."""
    seen = {}

    def pairs(sampler, prompts, samples, rewards, seed):
        seen.update(
            prompts=prompts, samples=samples, rewards=rewards.weights, temperature=sampler.temperature
        )
        return [], Counter({"tie": 2})

    monkeypatch.setattr(lessons, "graded_pairs", pairs)
    monkeypatch.setattr(lessons, "EngineSampler", lambda engine, tok, heat: SimpleNamespace(temperature=heat))
    monkeypatch.setattr(lessons, "Engine", lambda model: None)
    monkeypatch.setattr(lessons, "practised", lambda recipe: ((sums(9), sums(9, "more")), None))
    practised = {"assistant": {"practice": [SUMS]}, "rl": {"temperature": 0.7, "max_tokens": 5}}
    recipe = Recipe.model_validate({"name": "x", "model": {"path": "w"}, **practised})
    job = SimpleNamespace(settled=SimpleNamespace(recipe=recipe), tokenizer=lambda: tokenizer)
    model = SimpleNamespace(config=SimpleNamespace(context_length=64))
    found = lessons.graded(job, Graded(kind="graded", prompts=6, samples=3), model)
    assert Counter(prompt.task.name for prompt in seen["prompts"]) == {"sums": 3, "more": 3}
    assert (seen["samples"], seen["temperature"], seen["rewards"]["correct"]) == (3, 0.7, 1.0)
    assert {prompt.limit for prompt in seen["prompts"]} == {5}
    assert found.reasons == {"tie": 2}
