"""The life cycle on a folder of text, small enough for seconds: every stage but the export, which is `slow`."""

import json

import pytest

from behemoth import cli
from behemoth.base.files import read_json, read_jsonl

RECIPE = """
name = "small"
[[data.sources]]
kind = "files"
path = "text"
licence = "CC0-1.0"
[tokenizer]
vocab_size = 384
[model]
hidden_size = 32
num_layers = 4
num_heads = 2
num_kv_heads = 1
head_size = 16
expert_size = 32
dense_size = 64
experts = 4
chunk_size = 16
[train]
tokens = 8192
context_length = 32
tokens_per_step = 512
save_every = 5
evaluate_every = 8
sample_every = 16
[[students]]
name = "small-one"
hidden_size = 16
num_layers = 4
num_heads = 1
num_kv_heads = 1
head_size = 16
expert_size = 16
dense_size = 32
joins_at = 0.5
"""


def call(*words) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "text").mkdir()
    for number in range(120):
        words = [f"line {number * 7 + i * i % 89} says {'this' if i % 3 else 'that'} of {i}" for i in range(40)]
        (folder / "text" / f"{number:03}.txt").write_text("\n".join(words))
    for stage in ("data", "pretrain", "evaluate", "report"):
        call("run", folder / "recipe.toml", "--out", folder / "run", "--stage", stage)
    return folder / "run"


def test_every_member_is_measured_beside_its_baselines(run):
    found = read_json(run / "evals" / "results.json")
    names = {row["name"] for row in found["models"]}
    assert {"teacher", "small-one", "small-one-control", "token 3-gram", "xz, all documents together"} <= names
    assert [(c["a"], c["b"]) for c in found["comparisons"]] == [
        ("teacher", "token 3-gram"),
        ("small-one", "byte 5-gram (small-one's tokens)"),
        ("small-one", "small-one-control"),
    ]
    teacher = next(row for row in found["models"] if row["name"] == "teacher")
    assert teacher["low"] < teacher["bits_per_byte"] < teacher["high"] < 8
    documents = list(read_jsonl(run / "evals" / "held_out" / "teacher.jsonl"))
    assert len(documents) == teacher["documents"] >= 12
    assert {"document", "source", "bytes", "tokens", "nats"} == set(documents[0])


def test_the_student_joins_half_way_and_everyone_learns(run):
    steps = list(read_jsonl(run / "pretrain" / "metrics.jsonl"))
    assert [step["step"] for step in steps] == list(range(1, 17))
    assert set(steps[7]["members"]) == {"teacher"}
    assert set(steps[8]["members"]) == {"teacher", "small-one", "small-one-control"}
    assert "kl" in steps[8]["members"]["small-one"]
    assert steps[-1]["members"]["teacher"]["loss"] < steps[0]["members"]["teacher"]["loss"]
    held_out = list(read_jsonl(run / "pretrain" / "heldout.jsonl"))
    assert [(h["step"], h["member"]) for h in held_out][:2] == [(8, "teacher"), (16, "teacher")]


def test_who_the_experts_are(run):
    layers = read_json(run / "evals" / "experts.json")["teacher"]
    assert len(layers) == 4
    assert sum(expert["share"] for expert in layers[0]["experts"]) == pytest.approx(1)


def test_the_frozen_recipe_says_why(run):
    text = (run / "recipe.toml").read_text()
    assert 'precision = "' in text
    assert "measured" in text
    assert "# derived: " in text


def test_a_finished_stage_is_not_run_again(run, capsys):
    before = (run / "pretrain" / "metrics.jsonl").stat().st_mtime_ns, read_json(run / "stages.json")
    call("run", run.parent / "recipe.toml", "--out", run, "--stage", "pretrain")
    assert (run / "pretrain" / "metrics.jsonl").stat().st_mtime_ns == before[0]
    assert set(read_json(run / "stages.json")) == set(before[1]) == {"data", "pretrain", "evaluate", "report"}


def test_generate_for_programs(run, capsys):
    call("generate", run, "line 7", "--max-tokens", 5, "--temperature", 0, "--json")
    first = json.loads(capsys.readouterr().out)
    call("generate", f"{run}:small-one", "line 7", "--max-tokens", 5, "--temperature", 0, "--json")
    second = json.loads(capsys.readouterr().out)
    assert first["model"] == "teacher"
    assert second["model"] == "small-one"
    assert first["text"]


def test_eval_against_another_member(run, capsys, tmp_path):
    call("eval", run, "--against", f"{run}:small-one", "--out", tmp_path / "found", "--json")
    found = json.loads(capsys.readouterr().out)
    (comparison,) = found["comparisons"]
    recorded = {row["name"]: row["bits_per_byte"] for row in read_json(run / "evals" / "results.json")["models"]}
    measured = {row["name"]: row["bits_per_byte"] for row in found["models"]}
    assert measured[str(run)] == pytest.approx(recorded["teacher"], rel=5e-3)  # there in the run's precision
    assert comparison["difference"] == pytest.approx(measured[f"{run}:small-one"] - measured[str(run)])
    assert len(list((tmp_path / "found" / "held_out").iterdir())) == 2


def test_data_show_marks_the_borders(run, capsys):
    call("data", "show", run, "--rows", 1)
    shown = capsys.readouterr().out
    assert "line" in shown
    assert ".txt" in shown or "document" in shown


def test_the_report_stands_alone(run):
    page = (run / "report.html").read_text()
    assert "small-one" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page


@pytest.mark.slow
def test_export_and_import_come_back_to_the_same_model(run, tmp_path, capsys):
    call("run", run.parent / "recipe.toml", "--out", run, "--stage", "export")
    assert read_json(run / "export" / "teacher" / "receipt.json")["verdict"] == "match"
    call("import", run / "export" / "teacher", "--out", tmp_path / "imported")
    capsys.readouterr()
    answers = []
    for model in (run, run / "export" / "teacher", tmp_path / "imported"):
        call("generate", model, "line 7", "--max-tokens", 12, "--temperature", 0, "--json")
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert len(set(answers)) == 1


def test_minutes_become_tokens_once(run, tmp_path):
    text = RECIPE.replace("tokens = 8192", "minutes = 0.01").replace('path = "text"', f'path = "{run.parent}/text"')
    (tmp_path / "minutes.toml").write_text(text)
    call("run", tmp_path / "minutes.toml", "--out", tmp_path / "run", "--stage", "data")
    settled = (tmp_path / "run" / "recipe.toml").read_text()
    assert "minutes" not in settled.split("[train]")[1].split("tokens")[0]
    assert "tokens = " in settled
