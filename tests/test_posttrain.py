"""From base to assistant on a model of seconds: every stage, taken up again, begun elsewhere, and wrongly asked for."""

import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from behemoth import assistant, posttrain, practice
from behemoth.base.errors import InputError
from behemoth.base.files import read_json, read_jsonl
from behemoth.data.overlap import INDEX, Overlap, indexed, unread
from behemoth.dials import Arithmetic
from behemoth.evals.records import CHAT, read_evaluation
from behemoth.model.open import open_model
from behemoth.recipe import load_recipe
from behemoth.train.loop import Plan
from small_assistant import RECIPE, TRAINED, without, write_folder
from small_recipes import call

GRADED = '[[dpo.pairs]]\nkind = "graded"\nprompts = 30\nsamples = 4\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("post")
    write_folder(folder)
    for stage in (*TRAINED, "evaluate", "report"):
        call("run", folder / "recipe.toml", "--out", folder / "run", "--stage", stage)
    return folder / "run"


def weights(spec) -> dict[str, torch.Tensor]:
    return open_model(spec).model.state_dict()


def test_every_stage_leaves_a_model_of_its_name(run):
    models = [weights(f"{run}:{name}") for name in ("teacher", "sft", "rl", "dpo")]
    for a, b in pairwise(models):
        assert any(not torch.equal(a[key], b[key]) for key in a)
    assert [open_model(f"{run}:{name}").turns for name in ("teacher", "sft", "rl", "dpo")] == [0, 1, 1, 1]
    assert open_model(run).name == "dpo"
    for path in run.glob("sft/checkpoints/*/*"):
        os.utime(path)  # as a copy leaves them: the time says nothing of the order
    assert open_model(run).name == "dpo"
    with pytest.raises(InputError, match=r"has no member 'ppo'; it has dpo, rl, sft, teacher"):
        open_model(f"{run}:ppo")


def test_what_each_stage_wrote_down(run):
    steps = {name: [r["step"] for r in read_jsonl(run / name / "metrics.jsonl")] for name in ("sft", "rl")}
    assert steps == {"sft": [1, 2, 3, 4, 5, 6], "rl": [1, 2, 3, 4]}
    looked = [r["step"] for r in read_jsonl(run / "rl" / "tasks.jsonl")]
    assert looked == [0, 2, 4]
    outcome = read_json(run / "rl" / "outcome.json")
    assert outcome["best_step"] in (2, 4) and outcome["stopped"] is None
    last = list(read_jsonl(run / "rl" / "metrics.jsonl"))[-1]
    assert last["rollouts"]["version"] == 3 and last["rollouts"]["groups"] == 4
    assert last["members"]["rl"]["kl"] >= 0
    assert {"prompt", "text", "parts", "advantage"} <= next(read_jsonl(run / "rl" / "rollouts.jsonl")).keys()
    told = read_json(run / "sft" / "data.json")
    tasks, _ = practice.practised(load_recipe(run / "recipe.toml"))
    assert told["kept"] + told["rejected"]["easy"] == len(tasks[0].items)
    pairs = read_json(run / "dpo" / "data.json")
    assert pairs["sources"]["pairs"]["kept"] == 6 and sum(pairs["rejected"].values()) >= 1


def test_the_table_from_base_to_assistant(run, capsys):
    found = assistant.read(run)
    assert [model["name"] for model in found["models"]] == ["base", "sft", "rl", "dpo"]
    assert [(s["from"], s["to"]) for s in found["steps"]] == [
        *pairwise(["base", "sft", "rl", "dpo"]),
        ("base", "dpo"),
    ]
    for model in found["models"]:
        score = model["scores"]["arithmetic"]
        assert score["items"] == 40 and score["low"] <= score["estimate"] <= score["high"]
    for model in found["models"]:
        texts = read_evaluation(run / "evals" / "exam" / model["name"]).tasks["held_out"].records
        nats, size = (sum(text["metrics"][key] for text in texts) for key in ("nats", "bytes"))
        assert model["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=0.02)
    a, b = found["models"][:2]
    worse = 100 * (b["bits_per_byte"] / a["bits_per_byte"] - 1)
    assert found["held_out"][0]["worse_percent"] == pytest.approx(worse, abs=0.01)
    assistant.show(found)
    assert "from base to assistant" in capsys.readouterr().out
    assert (run / "compare-dpo-base.html").exists()
    assert "From base to assistant" in (run / "report.html").read_text()


def known_to(run, stage) -> list[str]:
    """The names of the texts in the index of a stage."""
    return [line["id"] for line in read_jsonl(run / stage / "data" / INDEX / "documents.jsonl")]


def test_what_each_stage_learns_from_can_be_looked_up(run):
    assert list(indexed(run)) == ["pretrain", "sft", "rl", "dpo"] and unread(run) == []
    Overlap.open(indexed(run))
    assert known_to(run, "sft") == [r["id"] for r in read_jsonl(run / "sft" / "data" / "records.jsonl")]
    tasks, _ = practice.practised(load_recipe(run / "recipe.toml"))
    assert known_to(run, "rl") == [f"arithmetic/{item.id}" for task in tasks for item in task.items]
    assert known_to(run, "dpo") == [r["id"] for r in read_jsonl(run / "dpo" / "pairs.jsonl")]


PLANTED = {
    "sft": "Which of two rivers that meet below the old mill carries more water in a dry summer?",
    "dpo": "Why does the eastern bell tower lean so far to the left on most of the early drawings?",
    "": "How many of the five keepers of that lighthouse could read and write before the war began?",
}


def test_a_question_planted_in_what_a_stage_learns_from_comes_out_dirty(tmp_path, capsys):
    """Three questions of a suite, one in a file of conversations (other marks, other case), one in a file of pairs."""
    write_folder(tmp_path)
    before, _, rest = RECIPE.partition("[rl]\n")
    dpo = "[dpo]\n" + rest.partition("[dpo]\n")[2].replace(GRADED, "")
    recipe = before.replace("context_length = 64", "context_length = 128").replace("hard = 0.9\n", "") + dpo
    rows = '[[sft.conversations]]\nkind = "rows"\npath = "talks.jsonl"\n'
    (tmp_path / "recipe.toml").write_text(
        recipe.replace("[dpo]", f"{rows}[dpo]").replace('"none"', '"suite.toml"')
    )
    talk = {"prompt": "so -- " + PLANTED["sft"].upper().replace(" ", "\n"), "completion": "the one"}
    pair = {"prompt": PLANTED["dpo"], "chosen": "the draughtsman", "rejected": "it"}
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "suite.toml").write_text(
        'name = "own"\n[[tasks]]\nkind = "rows"\nname = "own"\npath = "own.jsonl"\nmax_tokens = 2\n'
    )
    items = [{"id": stage, "prompt": text, "answer": "the one"} for stage, text in PLANTED.items()]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for stage in ("data", "pretrain", "sft", "dpo", "evaluate"):
        call("run", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--stage", stage)
    call("eval", f"{tmp_path / 'run'}:dpo", "--suite", tmp_path / "suite.toml", "--out", tmp_path / "out")
    for marks in (tmp_path / "out" / "run-dpo", tmp_path / "run" / "evals" / "tasks" / "teacher"):
        found = {
            row["item"]: row for row in read_jsonl(marks / "contamination.jsonl") if row["task"] == "own"
        }
        assert {item: row["verdict"] for item, row in found.items()} == {
            "sft": "dirty",
            "dpo": "dirty",
            "": "clean",
        }
        assert [found[stage]["documents"][0]["stage"] for stage in ("sft", "dpo")] == ["sft", "dpo"]
        stages = read_evaluation(marks).tasks["own"].contamination["stages"]
        assert stages == ["pretrain", "sft", "dpo"]
    capsys.readouterr()
    call("data", "passport", tmp_path / "run", PLANTED["dpo"])
    assert (
        "looked into pretrain and sft and dpo" in (told := capsys.readouterr().out) and "dpo: pairs" in told
    )


def test_an_index_that_is_gone_is_written_again_from_the_pairs(run):
    copy = without(run, run.parent / "indexed")
    name = Path("dpo", "data", INDEX, "hashes.bin")
    shutil.rmtree(copy / "dpo" / "data")
    unfinished(copy, "dpo")
    call("run", run.parent / "recipe.toml", "--out", copy, "--stage", "dpo")
    assert (copy / name).read_bytes() == (run / name).read_bytes()


def unfinished(run, stage) -> None:
    """As if the stage had ended, and was killed before that was written down."""
    done = read_json(run / "stages.json")
    (run / "stages.json").write_text(json.dumps({name: f for name, f in done.items() if name != stage}))


def held_out(run, stage) -> dict[int, float]:
    lines = [
        line for line in read_jsonl(run / stage / "heldout.jsonl") if line["member"] in ("teacher", stage)
    ]
    return {line["step"]: line["bits_per_byte"] for line in lines}


def test_every_stage_begins_with_what_the_one_before_it_left(run):
    best = read_json(run / "rl" / "outcome.json")["best_step"]
    for earlier, later in pairwise(("pretrain", "sft", "rl", "dpo")):
        left = held_out(run, earlier)
        assert held_out(run, later)[0] == left[best if earlier == "rl" else max(left)]


def test_the_first_update_of_a_stage_is_held_to_the_model_that_it_begins_with(run):
    first = {name: next(read_jsonl(run / name / "metrics.jsonl"))["members"][name] for name in ("rl", "dpo")}
    assert first["rl"]["kl"] == 0 and first["rl"]["ratio"] == 1
    assert first["dpo"]["loss"] == pytest.approx(math.log(2), abs=1e-5) and first["dpo"]["margin"] == 0


def test_nothing_that_is_practised_is_set_aside_or_examined(run):
    tasks, dev = practice.practised(load_recipe(run / "recipe.toml"))
    aside, rest = ({item.prompt for task in side for item in task.items} for side in (dev.tasks, tasks))
    asked = {line["prompt"] for line in read_jsonl(run / "rl" / "rollouts.jsonl")}
    exam = read_evaluation(run / "evals" / "exam" / "sft")
    records = exam.tasks["arithmetic"].records
    assert exam.route == CHAT
    assert len(aside) == 20 and asked and asked <= rest and not aside & rest
    assert not {record["prompt"] for record in records} & (aside | rest)
    learnt = {line["id"] for line in read_jsonl(run / "sft" / "data" / "records.jsonl")}
    assert learnt <= {f"arithmetic/{item.id}" for task in tasks for item in task.items}


def test_the_words_of_a_recipe_reach_the_loop(run, monkeypatch):
    """What trains, on what, how fast, in how many parts: all that a wrong value of leaves no trace in a file."""
    copy, seen, rows = without(run, run.parent / "asked"), {}, posttrain.ExampleSource

    def loop(members, source, plan, start):
        seen[members[0].name] = (members[0], source, plan)
        raise InputError("seen")

    def packed(*words):
        seen["chunk"] = words[4]
        return rows(*words)

    def quick(backend, dev):
        assert backend.route == CHAT
        seen["dev"] = [item for task in dev.tasks for item in task.items]
        return asked(backend, dev)

    asked = posttrain.quick
    monkeypatch.setattr(posttrain, "quick", quick)
    monkeypatch.setattr(posttrain, "train", loop)
    monkeypatch.setattr(posttrain, "ExampleSource", packed)
    (copy / "sft" / "data.json").unlink()
    for stage in ("dpo", "rl", "sft"):
        shutil.rmtree(copy / stage / "checkpoints")
        unfinished(copy, stage)
        call("run", run.parent / "recipe.toml", "--out", copy, "--stage", stage, code=2)
        assert [line["step"] for line in read_jsonl(copy / stage / "heldout.jsonl")] == [0], "looked at once"
    assert read_json(copy / "sft" / "data.json") == read_json(run / "sft" / "data.json")
    for before, stage in pairwise(("teacher", "sft", "rl", "dpo")):
        begun, left = seen[stage][0].model.state_dict(), weights(f"{run}:{before}")
        assert all(torch.equal(begun[key], left[key]) for key in left)
    _, dev = practice.practised(load_recipe(run / "recipe.toml"))
    assert seen["chunk"] == 32 and seen["dev"] == [item for task in dev.tasks for item in task.items]

    member, source, plan = seen["sft"]
    assert plan == Plan(6, 2, 0.5) and member.steps == 6
    assert (source.rows, source._share, source._replay.context) == (4, 0.25, 64)
    assert [kind.__name__ for kind in map(type, member.optimizer.optimizers)] == ["Muon", "AdamW"]
    assert set(member.optimizer.rates) == {0.014, 0.02}
    assert member.schedule.keywords == {"warmup": 0.1, "decay": 0.5}
    assert member.objective.keywords == {"balance": 0.01}

    member, source, plan = seen["rl"]
    assert plan == Plan(4, 2, 1.0)
    assert (source.settings.samples, source.settings.microbatches, source.settings.max_staleness) == (4, 2, 0)
    assert source.policy is member.model and source.sampler.engine.model is member.model
    assert source.reference is not member.model
    assert source.sampler.temperature == 0.9 and source.rewards.weights["length"] == -0.1
    assert [prompt.limit for prompt in source.curriculum.draw(0)] == [4, 4, 4, 4]
    clip = {"clip_low": 0.3, "clip_high": 0.4, "one_sided": True}
    assert member.objective.keywords == {**clip, "kl": 0.05, "balance": 0.01}
    assert {group["weight_decay"] for group in member.optimizer._groups()} == {0.1, 0.0}

    member, source, plan = seen["dpo"]
    pairs = len(list(read_jsonl(run / "dpo" / "pairs.jsonl")))
    assert plan == Plan(round(pairs * 2 / 4), 1, 1.0) and source.rows_pairs == 4
    assert member.objective.keywords == {"beta": 0.2, "per_token": True, "nll": 0.05, "balance": 0.02}
    assert member.schedule.keywords == {"warmup": 0.2, "decay": 0.3}
    assert len({seen[name][1].seed for name in ("sft", "dpo")} | {seen["rl"][1].settings.seed}) == 3


def test_a_stage_that_stops_early_keeps_its_best_and_stays_ended(run, monkeypatch, capsys):
    copy, recipe = without(run, run.parent / "stops", "rl", "dpo"), run.parent / "recipe.toml"
    scored = posttrain.Best.update
    scores = {0: 0.1, 2: 0.5, 3: 0.2}
    with monkeypatch.context() as patch:
        patch.setattr(posttrain.Best, "update", lambda self, step, _: scored(self, step, scores[step]))
        patch.setattr(
            posttrain.Watch, "update", lambda self, facts: "it fell" if facts["version"] == 2 else None
        )
        call("run", recipe, "--out", copy, "--stage", "rl")
    found = read_json(copy / "rl" / "outcome.json")
    assert found == {"best_step": 2, "best_score": 0.5, "stopped": "it fell", "steps": 3}
    assert open_model(f"{copy}:rl").step == 3
    ended, best = weights(f"{copy}:rl"), weights(copy / "rl/checkpoints/step-00000002")
    assert all(torch.equal(ended[key], best[key]) for key in best)
    assert not list((copy / "rl").glob("best-*"))
    lines = (copy / "rl" / "metrics.jsonl").read_text()
    unfinished(copy, "rl")
    call("run", recipe, "--out", copy, "--stage", "rl")
    assert (copy / "rl" / "metrics.jsonl").read_text() == lines
    assert "rl" in read_json(copy / "stages.json")


def test_a_stage_taken_up_again_ends_the_same(run, monkeypatch):
    """Reinforcement learning, stopped after two steps: the prompts' pass rates and the best step come back too."""
    recipe, again = run.parent / "recipe.toml", without(run, run.parent / "again", "rl", "dpo")

    def stop(facts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        kept = posttrain.Watch.update

        def update(self, facts):
            if facts["version"] == 2:
                stop(facts)
            return kept(self, facts)

        patch.setattr(posttrain.Watch, "update", update)
        call("run", recipe, "--out", again, "--stage", "rl", code=130)
    assert open_model(f"{again}:rl").step == 2
    call("run", recipe, "--out", again, "--stage", "rl")
    before, after = weights(f"{run}:rl"), weights(f"{again}:rl")
    assert all(torch.equal(before[key], after[key]) for key in before)
    lines = [
        [(r["step"], r["prompt_id"], r["text"]) for r in read_jsonl(d / "rl" / "rollouts.jsonl")]
        for d in (run, again)
    ]
    assert lines[0] == lines[1]


def test_adapters_on_a_run_of_ours(run, tmp_path):
    recipe = f"""
name = "adapted"
[model]
path = "{run}:sft"
[train]
precision = "fp32"
[[assistant.exam]]
kind = "arithmetic"
digits = [1, 2]
items = 30
[sft]
steps = 3
rows_per_step = 4
[sft.adapter]
rank = 4
alpha = 8
[[sft.conversations]]
kind = "rows"
path = "rows.jsonl"
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage in ("import", "sft", "evaluate"):
        call("run", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--stage", stage)
    base, tuned = weights(f"{tmp_path / 'run'}:teacher"), weights(f"{tmp_path / 'run'}:sft")
    assert base.keys() == tuned.keys()
    changed = {key for key in base if not torch.equal(base[key], tuned[key])}
    assert any("experts.down_proj" in key for key in changed) and any("q_proj" in key for key in changed)
    assert not any("router" in key or "norm" in key or "embed" in key for key in changed)
    assert (tmp_path / "run" / "sft" / "adapter" / "adapter_model.safetensors").exists()
    assert [m["name"] for m in assistant.read(tmp_path / "run")["models"]] == ["base", "sft"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('start = "x"', 'start = "x"', r"assistant.start = 'x': the members of this run are teacher"),
        ("replay = 0.25", "replay = 1.0", "sft.replay"),
        ("samples = 4\nmax_tokens", "samples = 1\nmax_tokens", "rl.samples"),
        ('kind = "practice"', 'kind = "practise"', "practise"),
        ("beta = 0.2", "beta = 0", "dpo.beta"),
        ("dev_items = 20", "dev_items = 60", "none is left to practise"),
        ("correct = 1.0\nlength = -0.1", "correct = 0.0", "every reward would be 0"),
        ('"pairs.jsonl"', '"nowhere.jsonl"', "nowhere.jsonl: no such file or folder"),
        ('"pairs.jsonl"', '"useless.jsonl"', "useless.jsonl: no row can be used: 0 kept, 1 rejected"),
        ('kind = "practice"', 'kind = "rows"\npath = "useless.jsonl"', "useless.jsonl: no row can be used"),
        ('kind = "practice"', 'kind = "refusals"\npath = "nowhere.csv"', "nowhere.csv: no such file"),
        ("kl = 0.05", 'server = "hello"', "'hello' is not the address of a server"),
    ],
)
def test_recipes_that_cannot_be_run(old, new, says, tmp_path, capsys):
    """And told so at once: what is asked for here is the last stage but one, and no stage was done."""
    write_folder(tmp_path)
    (tmp_path / "useless.jsonl").write_text('{"a": 1}\n')
    text = RECIPE.replace("dev_items = 20", 'dev_items = 20\nstart = "x"') if "start" in old else RECIPE
    assert old in text
    (tmp_path / "recipe.toml").write_text(text.replace(old, new))
    call("run", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--stage", "export", code=2)
    assert says in capsys.readouterr().err


def test_an_exam_that_is_practised_is_refused():
    tasks = practice.tasks_of([Arithmetic(kind="arithmetic", items=50)], "train", seed=0)
    with pytest.raises(InputError, match="splits overlap"):
        practice.examined(tasks, tasks)


def test_conversations_with_what_is_learnt_marked(run, capsys):
    call("data", "show", run, "--stage", "sft", "--rows", 1)
    shown = capsys.readouterr().out
    assert ">> " in shown and "<|eot|>" in shown and "learnt" in shown
    call("data", "show", run, "--stage", "dpo", code=2)
