"""The life cycle on a folder of text, small enough for seconds: every stage but the export, which is `slow`."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from types import SimpleNamespace

import pytest

from behemoth import cli, measure, rundir, stages
from behemoth.base.config import validate
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import read_json, read_jsonl, write_json, write_manifest
from behemoth.base.logs import say
from behemoth.data.corpus import Corpus
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource
from behemoth.dials import Recipe
from behemoth.train.monitor import Monitor
from small_recipes import MODEL, call

RECIPE = (
    MODEL
    + """chunk_size = 16
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
init_std = 0.1
joins_at = 0.5
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "text").mkdir()
    for number in range(120):
        words = [
            f"line {number * 7 + i * i % 89} says {'this' if i % 3 else 'that'} of {i}" for i in range(40)
        ]
        (folder / "text" / f"{number:03}.txt").write_text("\n".join(words))
    for stage in ("data", "pretrain", "evaluate", "report"):
        call("run", folder / "recipe.toml", "--out", folder / "run", "--stage", stage)
    return folder / "run"


@pytest.fixture
def untrained(run, tmp_path):
    """A copy of the run with its data alone; `train(code)` trains it."""
    copy = shutil.copytree(
        run, tmp_path / "copy", ignore=shutil.ignore_patterns("pretrain", "evals", "*.html")
    )
    write_json(copy / "stages.json", {"data": read_json(run / "stages.json")["data"]})

    def train(code=0):
        call("run", run.parent / "recipe.toml", "--out", copy, "--stage", "pretrain", code=code)

    return copy, train


def at_step(monkeypatch, actions):
    """Call `actions[step]()` after a step was reported."""
    report = Monitor.step

    def report_and_act(self, step):
        report(self, step)
        actions.get(step.step, lambda: None)()

    monkeypatch.setattr(Monitor, "step", report_and_act)


def test_every_member_is_measured_beside_its_baselines(run):
    found = read_json(run / "evals" / "results.json")
    names = {row["name"] for row in found["models"]}
    assert {
        "teacher",
        "small-one",
        "small-one-control",
        "token 3-gram",
        "xz, all documents together",
    } <= names
    assert [(c["a"], c["b"]) for c in found["comparisons"]] == [
        ("teacher", "token 3-gram"),
        ("teacher", "byte 5-gram"),
        ("small-one", "token 3-gram (small-one's tokens)"),
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
    assert read_json(run / "stages.json") == before[1]
    assert set(before[1]) == {"data", "pretrain", "evaluate", "report"}
    assert "pretrain is finished" in capsys.readouterr().err


def test_seconds_add_up_until_a_stage_is_finished_and_then_are_replaced(tmp_path, monkeypatch):
    clock = iter([0, 5, 100, 107, 200, 203])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    job = SimpleNamespace(directory=tmp_path, recipe=validate(Recipe, tomllib.loads(RECIPE), "recipe"))
    finished = {"seconds": 1.0, "finished": "2026-01-01"}
    write_json(tmp_path / "stages.json", {"data": finished, "pretrain": finished, "report": finished})

    def fails(_):
        raise KeyboardInterrupt

    def works(_):
        pass

    with pytest.raises(KeyboardInterrupt):
        stages.do(job, "evaluate", fails, asked=False)
    assert read_json(tmp_path / "stages.json")["evaluate"] == {"seconds": 5, "finished": None}
    stages.do(job, "evaluate", works, asked=False)
    facts = read_json(tmp_path / "stages.json")["evaluate"]
    assert facts["seconds"] == 12
    assert facts["finished"]
    stages.do(job, "evaluate", works, asked=False)  # finished: not run, and no time taken
    stages.do(job, "evaluate", works, asked=True)
    stored = read_json(tmp_path / "stages.json")
    assert stored["evaluate"]["seconds"] == 3
    assert stored["report"]["finished"] is None  # it shows the old evaluation, so it is to be drawn again


def test_a_stage_waits_for_the_ones_it_needs(tmp_path):
    job = SimpleNamespace(directory=tmp_path, recipe=validate(Recipe, tomllib.loads(RECIPE), "recipe"))
    write_json(tmp_path / "stages.json", {"data": {"seconds": 1.0, "finished": "2026-01-01"}})
    for name in ("evaluate", "export", "report"):
        with pytest.raises(InputError, match="pretrain stage first"):
            stages.do(job, name, lambda _: None, asked=True)


def test_a_frozen_recipe_stays_as_it_is(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    settled = copy / "recipe.toml"
    rundir.begin(run.parent / "recipe.toml", copy, [])
    settled.write_text(settled.read_text().replace("balance = 0.01", "balance = 0.02"))
    with pytest.raises(InputError, match="was changed after the run began"):
        rundir.begin(run.parent / "recipe.toml", copy, [])


def test_eval_does_not_write_over_the_runs_own_results(run, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", str(run), "--out", str(run / "evals")])
    assert end.value.code == 2
    assert "keeps its own results" in capsys.readouterr().err


def test_nobody_reading_stderr_stops_nothing(monkeypatch):
    class Gone:
        def write(self, _: str) -> None:
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    say("into the void")


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 16])
def test_a_signal_in_any_step_saves_and_leaves(untrained, monkeypatch, capsys, step):
    copy, train = untrained
    with monkeypatch.context() as patch:
        at_step(patch, {step: lambda: signal.raise_signal(signal.SIGTERM)})
        train(code=143)
    said = capsys.readouterr().err
    assert f"saved at step {step}" in said
    assert "go on with:" in said
    assert (copy / "pretrain" / "checkpoints" / f"step-{step:08d}").exists()
    first = read_json(copy / "stages.json")["pretrain"]
    assert first["finished"] is None
    held_out = list(read_jsonl(copy / "pretrain" / "heldout.jsonl"))
    assert (step in [line["step"] for line in held_out]) == (
        step == 16
    )  # no session after the last step adds it
    train()
    facts = read_json(copy / "stages.json")["pretrain"]
    assert facts["finished"]
    assert facts["seconds"] >= first["seconds"]
    steps = [line["step"] for line in read_jsonl(copy / "pretrain" / "metrics.jsonl")]
    assert steps == list(range(1, 17))


def test_a_signal_outside_training_says_how_to_go_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages.build, "prepare_data", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(stages.sys, "argv", ["behemoth", "run", "my recipe.toml"])
    call("run", run.parent / "recipe.toml", "--out", tmp_path / "run", code=130)
    assert "go on with:\n  behemoth run 'my recipe.toml'\n" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a real small disk (tmpfs) needs the right to mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_lines_and_saves_and_not_the_run(run, small_disk, monkeypatch, capfd):
    out, ballast = small_disk / "run", small_disk / "ballast"
    words = ("run", run.parent / "recipe.toml", "--out", out, "--stage")

    def fill():
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    call(*words, "data")
    with monkeypatch.context() as patch:
        at_step(patch, {6: fill, 12: ballast.unlink, 16: fill})
        call(*words, "pretrain", code=1)
    said = capfd.readouterr().err
    assert said.count("training goes on, and what cannot be written of it is lost") == 1
    assert "step 10: checkpoint NOT saved" in said
    assert "step 16 could not be saved; make room and run the same command" in said
    call(*words, "pretrain", code=2)  # still full: told in words
    assert "make room, or choose another directory" in capfd.readouterr().err
    ballast.unlink()
    call(*words, "pretrain")
    assert "going on from step 15 of 16" in capfd.readouterr().err
    assert read_json(out / "stages.json")["pretrain"]["finished"]


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
    recorded = {row["name"]: row for row in read_json(run / "evals" / "results.json")["models"]}
    measured = {row["name"]: row["bits_per_byte"] for row in found["models"]}
    teacher = next(row for row in found["models"] if row["name"] == str(run))
    assert (teacher["step"], teacher["sha256"]) == (16, recorded["teacher"]["sha256"])
    assert measured[str(run)] == pytest.approx(recorded["teacher"]["bits_per_byte"])
    assert measured["token 3-gram"] == pytest.approx(recorded["token 3-gram"]["bits_per_byte"], rel=1e-12)
    assert comparison["difference"] == pytest.approx(measured[f"{run}:small-one"] - measured[str(run)])
    assert len(list((tmp_path / "found" / "held_out").iterdir())) == 2


def test_eval_refuses_a_model_of_another_text(run, capsys, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    call("eval", run, "--against", copy)  # the same text elsewhere
    shard = next((copy / "data").glob("*/train/tokens-00000.bin"))
    shard.write_bytes(shard.read_bytes()[::-1])
    manifest = read_json(copy / "data" / "MANIFEST.json")
    write_manifest(copy / "data", **{k: v for k, v in manifest.items() if k not in ("files", "sha256")})
    capsys.readouterr()
    call("eval", run, "--against", copy, code=2)
    said = capsys.readouterr().err
    assert str(copy / "data") in said
    assert str(run / "data") in said


def test_eval_says_when_a_training_text_is_unknown(run, capsys, tmp_path):
    (weights,) = (run / "pretrain" / "checkpoints").glob("step-00000016/weights/teacher")
    bare = shutil.copytree(weights, tmp_path / "bare")
    shutil.copytree(run / "tokenizer", bare, dirs_exist_ok=True)
    call("eval", run, "--against", bare, "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert "training text is unknown" in rows[str(bare)]["note"]
    assert rows[str(bare)]["bits_per_byte"] == rows[str(run)]["bits_per_byte"]
    write_json(bare / "config.json", read_json(bare / "config.json") | {"max_position_embeddings": 16})
    call("eval", run, "--against", bare, "--json")
    short = {row["name"]: row["bits_per_byte"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert short[str(bare)] == short[str(run)]  # one context for all: the smallest
    assert short[str(run)] != rows[str(run)]["bits_per_byte"]


def test_baselines_say_how_much_they_were_fitted_on(run, monkeypatch):
    monkeypatch.setattr(measure, "BASELINE_TOKENS", 4096)
    job = rundir.begin(run.parent / "recipe.toml", run, [])
    notes = {name: note for name, _, _, note in measure.fit_baselines(job, job.corpus(), job.tokenizer())}
    assert notes["token 3-gram"] == "fitted on the first 4,096 of the tokens the teacher saw"
    assert notes["byte 5-gram (small-one's tokens)"] == "fitted on the tokens small-one saw"
    assert "% of the training text" in notes["token 3-gram (whole corpus)"]
    monkeypatch.setattr(measure, "BASELINE_TOKENS", 1)  # less than a row, and still something to fit
    assert len(list(measure.fit_baselines(job, job.corpus(), job.tokenizer()))) == 6


def test_the_whole_corpus_is_every_source_once(tmp_path):
    sources = []
    for name, count, weight in (("a", 40, 1.0), ("b", 8, 20.0)):
        (tmp_path / name).mkdir()
        for number in range(count):
            text = " ".join(f"{name}{(number * 31 + i * i) % 499}" for i in range(50))
            (tmp_path / name / f"{number}.txt").write_text(text)
        sources.append(FilesSource(tmp_path / name, name=name, weight=weight))
    place = {"vocab_size": 320, "seed": 0, "tokenizer_directory": tmp_path / "tokenizer"}
    prepare(sources, tmp_path / "data", tokenizer=None, held_out=0.1, **place)
    corpus = Corpus.open(tmp_path / "data")
    rows = list(measure.every_row(corpus, 16))
    assert len(rows) == corpus.batches(16, 1, 0).num_rows
    assert len({b"".join(piece.tobytes() for piece in row) for row in rows}) == len(rows)
    assert corpus.num_tokens - 2 * 17 <= 16 * len(rows) <= corpus.num_tokens
    assert len(list(measure.every_row(corpus, 16, share=0.5))) == pytest.approx(len(rows) / 2, abs=2)


def test_what_is_suggested_next_works(run, capsys, tmp_path, monkeypatch):
    call("run", run.parent / "recipe.toml", "--out", run, "--stage", "report")
    said = capsys.readouterr().out.split("next:\n")[1]
    suggested = [shlex.split(line) for line in said.strip().splitlines()]
    assert [words[1] for words in suggested] == ["generate", "chat", "doctor", "experts", "compare"]
    assert suggested[4][-1] == f"{run}:small-one"
    monkeypatch.chdir(tmp_path)  # where the page goes
    call(*suggested[0][1:], "--max-tokens", 2)
    call(*suggested[3][1:])
    call(*suggested[4][1:])


def test_an_export_that_fails_leaves_the_one_before(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("export"))
    (copy / "export" / "teacher").mkdir(parents=True)
    (copy / "export" / "teacher" / "receipt.json").write_text("the old one")
    words = ("run", run.parent / "recipe.toml", "--out", copy, "--stage", "export")

    def refuses(jobs):
        raise AnswerIsNo("transformers answers differently")

    def publishes(jobs):
        for _, out in jobs:
            out.mkdir(parents=True)

    monkeypatch.setattr(stages, "export_all", refuses)
    call(*words, code=1)
    assert (copy / "export" / "teacher" / "receipt.json").read_text() == "the old one"
    monkeypatch.setattr(stages, "export_all", publishes)
    call(*words, code=1)  # the doctor finds no model in what was exported
    assert (copy / "export" / "teacher" / "receipt.json").read_text() == "the old one"
    assert not all(found["ok"] for found in read_json(copy / "doctor.json")["examined"])
    call(*words, "--no-doctor")
    assert sorted(path.name for path in (copy / "export").iterdir()) == ["small-one", "teacher"]
    assert not (copy / "export" / "teacher" / "receipt.json").exists()
    assert not list(copy.glob("export.*"))


def test_the_commit_is_that_of_our_own_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "__file__", str(tmp_path / "lib" / "behemoth" / "rundir.py"))
    assert rundir.commit() == ""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert rundir.commit() == ""


def test_answers_for_programs(run, capsys):
    call("data", "show", run, "--rows", 1, "--json")
    assert "line" in json.loads(capsys.readouterr().out)["text"]
    call("report", run, "--json")
    assert json.loads(capsys.readouterr().out)["report"] == str(run / "report.html")


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
    text = RECIPE.replace("tokens = 8192", "minutes = 0.01").replace(
        'path = "text"', f'path = "{run.parent}/text"'
    )
    (tmp_path / "minutes.toml").write_text(text)
    call("run", tmp_path / "minutes.toml", "--out", tmp_path / "run", "--stage", "data")
    settled = (tmp_path / "run" / "recipe.toml").read_text()
    assert "minutes" not in settled.split("[train]")[1].split("tokens")[0]
    assert "tokens = " in settled
