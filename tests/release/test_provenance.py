import json
import re
from importlib.metadata import version

import pytest

from behemoth.base.errors import DamagedError
from behemoth.base.files import read_json, write_json, write_manifest
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource
from behemoth.release.provenance import gather, hub_of, lineage_of, lock

RECIPE = """
name = "tiny"
seed = 7
[[students]]
name = "student"
[train]
precision = "bf16"
[assistant]
start = "student"
[sft]
steps = 2
[dpo]
steps = 1
"""
ENGLISH = "The house stood at the end of the road, and nobody had lived there for many years. "
FRENCH = "La maison se trouvait au bout de la route, et personne n'y vivait depuis longtemps. "


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def save(run, stage, step, *members):
    place = run / stage / "checkpoints" / f"step-{step:08d}"
    for member in members:
        write(place / "weights" / member / "model.safetensors", f"{stage} {step} {member}")
    write(place / "state" / "run.json", "{}")
    write_manifest(place, step=step)
    rows = [{"step": n, "tokens": 100.0, "members": {key: {} for key in members}} for n in range(1, step + 1)]
    write(run / stage / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture
def run(tmp_path):
    """A run as far as its files tell of it: no weights that anybody could load."""
    place = tmp_path / "run"
    write(place / "recipe.toml", RECIPE)
    record = {"commit": "c0ffee" * 6 + "-dirty", "behemoth": "0.1.0", "begun": "2026-01-01T00:00:00+00:00"}
    record |= {"processor": "A processor", "device": "cpu", "intent": {"data": f"{tmp_path}/secret"}}
    record |= {"lock": {"sha256": "e" * 64, "distributions": ["torch==2.13.0"]}}
    write_json(place / "record.json", record | {"libraries": {"torch": "2.13.0"}})
    times = {"data": (1.5, "01"), "pretrain": (10.0, "02"), "sft": (2.0, "03"), "report": (9.0, "04")}
    stages = {k: {"seconds": s, "finished": f"2026-01-{d}T00:00:00+00:00"} for k, (s, d) in times.items()}
    write_json(place / "stages.json", stages)
    save(place, "pretrain", 4, "teacher", "student")
    save(place, "sft", 2, "sft")
    save(place, "dpo", 1, "dpo")
    write(place / "dpo" / "pairs.jsonl", '{"id": "a"}\n{"id": "b"}\n')
    return place


@pytest.fixture
def prepared(run, tmp_path):
    """The same with text that it was pretrained on: of four documents three are English."""
    for i in range(12):
        words = FRENCH if i % 4 == 0 else ENGLISH
        text = "".join(
            words.replace(" the ", f" the {i}{j} ").replace(" la ", f" la {i}{j} ") for j in range(4)
        )
        write(tmp_path / "texts" / f"{i}.txt", text)
    where = {"tokenizer_directory": run / "tokenizer", "vocab_size": 384}
    prepare([FilesSource(tmp_path / "texts", name="texts")], run / "data", **where)
    return run


def model(member="dpo"):
    return {"name": "tiny", "member": member, "sha256": "d" * 64}


def test_what_a_model_was_made_from_is_read_from_its_run(prepared):
    run = prepared
    told = gather(run, model())
    assert told["source"] == {
        "package": "behemoth-lab",
        "version": "0.1.0",
        "commit": "c0ffee" * 6,
        "dirty": True,
    }
    assert (told["seed"], told["precision"], told["machine"]["processor"]) == (7, "bf16", "A processor")
    assert told["data"]["pretrain"]["manifest_sha256"] == read_json(run / "data" / "MANIFEST.json")["sha256"]
    assert told["data"]["dpo"]["pairs"] == 2
    assert told["stages"] == {"data": 1.5, "pretrain": 10.0, "sft": 2.0}  # a report makes no model
    assert (told["seconds"], told["finished"]) == (13.5, "2026-01-03T00:00:00+00:00")


def test_the_line_of_models_ends_with_this_one(run):
    told = gather(run, model())
    line = [(each["member"], each["relation"]) for each in [*told["parents"], told["checkpoint"]]]
    assert line == [
        ("teacher", "distilled from"),
        ("student", "further trained"),
        ("sft", "further trained"),
        ("dpo", "this model"),
    ]
    manifest = read_json(run / "dpo" / "checkpoints" / "step-00000001" / "MANIFEST.json")
    assert told["checkpoint"]["manifest_sha256"] == manifest["sha256"]
    assert told["checkpoint"]["files"] == {
        "model.safetensors": manifest["files"]["weights/dpo/model.safetensors"]["sha256"]
    }
    steps = [(each["member"], each["steps"], each["tokens"]) for each in told["training"]]
    assert steps == [("teacher", 4, 400), ("student", 4, 400), ("sft", 2, None), ("dpo", 1, None)]


@pytest.mark.parametrize(
    ("member", "line"),
    [
        ("teacher", ["teacher"]),
        ("student", ["teacher", "student"]),
        ("student-control", ["student-control"]),
        ("sft", ["teacher", "student", "sft"]),
    ],
)
def test_only_what_a_model_was_made_from_is_in_its_line(run, member, line):
    save(run, "pretrain", 4, "teacher", "student", "student-control")
    told = gather(run, model(member))
    assert [each["member"] for each in [*told["parents"], told["checkpoint"]]] == line
    assert ("dpo" in told["data"]) is (member == "dpo")


def test_a_student_learns_from_the_step_on_at_which_it_joins(run):
    path = run / "pretrain" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[0]["members"]["student"]
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    told = gather(run, model("student"))["training"]
    assert [(each["steps"], each["tokens"]) for each in told] == [(4, 400), (3, 300)]


def test_a_student_that_learns_from_text_alone_has_no_teacher(run):
    write(run / "recipe.toml", RECIPE.replace("[[students]]", "[[students]]\nsoft = 0.0"))
    assert gather(run, model("student"))["parents"] == []


def test_the_newest_checkpoint_counts(run):
    save(run, "dpo", 12, "dpo")
    assert gather(run, model())["checkpoint"]["step"] == 12


def test_weights_that_were_changed_are_refused(run):
    write(
        run / "dpo" / "checkpoints" / "step-00000001" / "weights" / "dpo" / "model.safetensors", "dpo 1 dpx"
    )
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        gather(run, model())


def test_an_unknown_commit_is_neither_clean_nor_dirty(run):
    for commit, wanted in (("", (None, None)), ("abc", ("abc", False)), ("abc-dirty", ("abc", True))):
        write_json(run / "record.json", {"commit": commit, "lock": {"distributions": []}})
        source = gather(run, model())["source"]
        assert (source["commit"], source["dirty"]) == wanted


def test_a_step_that_was_done_again_counts_once(run):
    path = run / "pretrain" / "metrics.jsonl"
    path.write_text(path.read_text() * 2)
    assert gather(run, model())["training"][0] == {
        "member": "teacher",
        "stage": "pretrain",
        "steps": 4,
        "tokens": 400,
    }


def test_no_clock_and_no_path_of_this_machine(run, tmp_path, monkeypatch):
    before = gather(run, model())
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert gather(run, model()) == before
    assert str(tmp_path) not in json.dumps(before)
    assert "secret" not in json.dumps(before)


def test_a_run_without_a_recipe_tells_what_there_is(run):
    for name in ("recipe.toml", "record.json", "stages.json"):
        (run / name).unlink()
    told = gather(run, model())
    assert told["checkpoint"]["member"] == "dpo"
    assert (told["seed"], told["source"]["commit"], told["recipe_sha256"]) == (None, None, None)


def test_a_model_that_no_checkpoint_holds(run):
    assert list(lineage_of(run, {}, "nobody")) == []
    assert gather(run, model("nobody"))["checkpoint"] is None


def test_languages_are_told_from_the_training_text(prepared):
    seen = gather(prepared, model())["data"]["pretrain"]["languages"]
    assert seen["documents"] == sum(seen["found"].values()) > 0
    assert set(seen["found"]) <= {"en", "fr"}
    assert seen["found"]["en"] > seen["found"].get("fr", 0)


def test_the_lock_names_every_package_with_its_version():
    found = lock()
    assert f"numpy=={version('numpy')}" in found["distributions"]
    assert found["distributions"] == sorted(set(found["distributions"]), key=str.casefold)
    assert re.fullmatch("[0-9a-f]{64}", found["sha256"])
    assert lock() == found


def test_a_lock_of_the_run_is_preferred(run):
    assert gather(run, model())["lock"]["distributions"] == ["torch==2.13.0"]
    write_json(run / "record.json", {})
    assert gather(run, model())["lock"] == lock() | {"taken": "when the evidence was gathered"}


def test_names_on_the_hub(tmp_path):
    recipe = {
        "data": {"sources": [{"kind": "hub", "dataset": "allenai/c4"}, {"kind": "python"}]},
        "sft": {"conversations": [{"dataset": "../local/rows"}, {"dataset": str(tmp_path)}]},
        "model": {"path": "/cache/models--meta-llama--Llama-4-Scout/snapshots/abc"},
    }
    found = {"datasets": ["allenai/c4"], "base_models": ["meta-llama/Llama-4-Scout"]}
    assert hub_of(recipe) == found
    assert hub_of({"model": {"path": "/home/me/models/mine"}}) == {"datasets": [], "base_models": []}
