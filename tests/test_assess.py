"""The verbs that measure, end to end on one small run: eval, compare, doctor, experts, passport; and in training."""

import json
import shutil
import signal
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from behemoth import cli, pretrain, questions, rundir
from behemoth.base.files import read_json, read_jsonl, write_json
from behemoth.data.corpus import Corpus
from behemoth.doctor.examination import CHECKS
from behemoth.evals.endpoint import PROBE, Endpoint
from behemoth.evals.local import Local
from behemoth.evals.records import read_evaluation, write_evaluation
from behemoth.export import hf
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.loop import train

RECIPE = """
name = "small"
[[data.sources]]
kind = "files"
path = "text"
licence = "CC0-1.0"
[[data.sources]]
kind = "files"
path = "more"
licence = "CC-BY-4.0"
[tokenizer]
vocab_size = 320
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
init_std = 0.1
[train]
tokens = 6144
context_length = 32
tokens_per_step = 512
precision = "fp32"
save_every = 100
evaluate_every = 100
sample_every = 100
[evaluation]
every = 4
limit = 5
[[students]]
name = "student"
hidden_size = 16
num_layers = 4
num_heads = 2
num_kv_heads = 1
head_size = 8
expert_size = 16
dense_size = 32
init_std = 0.1
joins_at = 0.5
control = false
"""
SUITE = """
name = "own"
[[tasks]]
kind = "rows"
name = "follows"
path = "follows.jsonl"
licence = "CC0-1.0"
[[tasks]]
kind = "rows"
name = "passages"
path = "passages.jsonl"
[[tasks]]
kind = "rows"
name = "sums"
path = "sums.jsonl"
max_tokens = 4
"""
ONE_CHECK = "experts differ from their siblings"


def call(*words, code=0) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == code


@pytest.fixture
def told(capsys):
    """Call the command line: (stdout, stderr); with --json what it prints, which has to be one JSON value alone."""

    def told(*words, code=0):
        capsys.readouterr()
        call(*words, code=code)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return json.loads(out) if "--json" in words else (out, err)

    return told


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A teacher and a student of 12 steps."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "recipe.toml").write_text(RECIPE)
    for offset, name in enumerate(("text", "more")):  # which have files of the same names
        (folder / name).mkdir()
        for number in range(50):
            first = 7 * (2 * number + offset)
            said = [f"line {first + i * i % 89} says {'this' if i % 3 else 'that'} of {i}" for i in range(16)]
            (folder / name / f"{number:03}.txt").write_text("\n".join(said))
    for stage in ("data", "pretrain", "evaluate", "report"):
        call("run", folder / "recipe.toml", "--out", folder / "run", "--stage", stage)
    return folder / "run"


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Choices (two of them about one passage), texts, and sums to be written."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "own.toml").write_text(SUITE)
    follows = [
        {"id": f"f{n}", "prompt": f"line {n} says", "choices": ["this of", "zebra"], "gold": 0}
        | ({"cluster": "first"} if n < 2 else {})
        for n in range(8)
    ]
    write_rows(folder / "follows.jsonl", follows)
    write_rows(
        folder / "passages.jsonl", [{"id": f"p{n}", "text": f"line {n} says that of {n}"} for n in range(5)]
    )
    write_rows(
        folder / "sums.jsonl", [{"id": f"s{n}", "prompt": f"{n} + {n} =", "answer": 2 * n} for n in range(6)]
    )
    return folder / "own.toml"


@pytest.fixture
def deaf(monkeypatch):
    """From here on no model on this machine may be asked anything."""

    def no(*_):
        raise AssertionError("asked again")

    for question in ("likelihoods", "generate", "nats"):
        monkeypatch.setattr(Local, question, no)


def is_whole(page: Path) -> bool:
    text = page.read_text().lower()
    return text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")


# ------------------------------------------------------------------------------------------------------------- eval


def test_eval_keeps_every_item_and_says_who_is_better(run, suite, told, tmp_path, request):
    words = ("eval", run, "--suite", suite, "--against", f"{run}:student", "--out", tmp_path)
    out, err = told(*words)
    assert "Traceback" not in err
    for shown in (
        "follows",
        "passages",
        "sums",
        "exact_match",
        "lower is better",
        "teacher against student, own",
    ):
        assert shown in out
    assert "cannot tell teacher and student apart" in out
    assert out.rstrip().endswith(f"every item: {tmp_path}")
    follows = list(read_jsonl(tmp_path / "run-teacher" / "follows.jsonl"))
    assert [record["item"] for record in follows] == [f"f{n}" for n in range(8)]
    assert [record["cluster"] for record in follows][:3] == ["first", "first", ""]
    assert all(record["score"] == record["metrics"]["accuracy"] for record in follows)
    assert all(record["model"] and record["prompt"].startswith("line") for record in follows)
    sums = list(read_jsonl(tmp_path / "run-student" / "sums.jsonl"))
    assert len(sums) == 6 and sums[3]["answer"] == "6"

    files = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    request.getfixturevalue("deaf")
    found = told(*words, "--json")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == files
    teacher, student = found["evaluations"]
    assert (teacher["model"]["name"], student["model"]["name"]) == ("teacher", "student")
    assert teacher == read_json(tmp_path / "run-teacher" / "evaluation.json")
    assert teacher["tasks"]["follows"]["licence"] == "CC0-1.0"
    assert set(teacher["tasks"]["sums"]["contamination"]["groups"]) == {"all", "too short"}
    (comparison,) = found["comparisons"]
    assert (comparison["a"]["name"], comparison["b"]["name"]) == ("teacher", "student")
    assert [task["verdict"] for task in comparison["tasks"]] == ["cannot tell"] * 3  # a handful of items each


def test_a_limit_takes_the_same_few_items_every_time(run, told, tmp_path):
    words = ("eval", run, "--suite", "arithmetic", "--limit", 4, "--json", "--out")
    first, second = told(*words, tmp_path / "a"), told(*words, tmp_path / "b")
    for found in (first, second):
        assert [task["items"] for task in found["evaluations"][0]["tasks"].values()] == [4, 4]
    items = [[r["item"] for r in read_jsonl(tmp_path / d / "run-teacher" / "arithmetic.jsonl")] for d in "ab"]
    assert items[0] == items[1]


def test_two_suites_in_one_place_are_told_apart(run, suite, told, tmp_path, foreign):
    """What the directory holds of another suite is neither shown nor compared."""
    told("eval", run, "--suite", "arithmetic", "--limit", 3, "--out", tmp_path)
    found = told("compare", run, foreign, "--suite", suite, "--limit", 3, "--out", tmp_path, "--json")
    assert [task["task"] for task in found["tasks"]] == ["follows", "passages", "sums"]
    assert (tmp_path / "run-teacher" / "arithmetic.jsonl").exists()


def test_the_starter_suite_is_of_the_run(run, told, tmp_path):
    found = told("eval", f"{run}:student", "--suite", "starter", "--limit", 3, "--out", tmp_path, "--json")
    tasks = found["evaluations"][0]["tasks"]
    assert list(tasks) == ["next_passage", "arithmetic_choice"]
    assert tasks["next_passage"]["licence"] == "CC-BY-4.0, CC0-1.0"


def test_where_no_passage_can_be_cut_the_starter_suite_is_sums_alone(run, monkeypatch, capsys):
    corpus, tokenizer = Corpus.open(run / "data"), Tokenizer.load(run / "tokenizer")
    few = corpus.held_out()[:3]
    monkeypatch.setattr(corpus, "held_out", lambda: few)
    assert [task.name for task in questions.starter(corpus, tokenizer, 32).tasks] == ["arithmetic_choice"]
    assert "the starter suite is sums alone: no passages can be cut from 3" in capsys.readouterr().err


def test_ctrl_c_leaves_and_the_same_command_goes_on(run, suite, told, tmp_path, monkeypatch):
    words = ("eval", run, "--suite", suite, "--out")
    with monkeypatch.context() as patch:
        patch.setattr(Local, "nats", lambda *_: signal.raise_signal(signal.SIGINT))  # the second task
        _, err = told(*words, tmp_path / "a", code=130)
        assert err.rstrip().endswith("the same command goes on from here")
    asked = []
    likelihoods = Local.likelihoods
    monkeypatch.setattr(
        Local, "likelihoods", lambda self, pairs: asked.append(pairs) or likelihoods(self, pairs)
    )
    told(*words, tmp_path / "a")
    assert not asked  # the first task was done
    told(*words, tmp_path / "b")
    assert asked

    def records(place, task):
        return [{**r, "seconds": 0} for r in read_jsonl(tmp_path / place / "run-teacher" / f"{task}.jsonl")]

    for task in ("follows", "passages", "sums"):
        assert records("a", task) == records("b", task) != []


# ---------------------------------------------------------------------------------------------------------- compare


def test_the_members_of_a_run_are_compared_as_they_were_measured(run, told, tmp_path, deaf):
    out, _ = told("compare", run, f"{run}:student", "--out", tmp_path)
    page = tmp_path / "compare-teacher-student.html"
    assert out.rstrip().endswith(f"page: {page}")
    assert "teacher against student, starter" in out
    assert is_whole(page) and "next_passage" in page.read_text()
    assert is_whole(run / "compare-teacher-student.html")  # the one that the evaluate stage made
    found = told("compare", run, f"{run}:student", "--out", tmp_path, "--json")
    assert found["page"] == str(page)
    held_out = next(task for task in found["tasks"] if task["task"] == "held_out")
    measured = {
        row["name"]: row["bits_per_byte"] for row in read_json(run / "evals" / "results.json")["models"]
    }
    assert held_out["unit"] == "bits per byte"
    assert held_out["difference"] == pytest.approx(measured["student"] - measured["teacher"])


def test_two_finished_evaluations_are_compared(run, suite, told, tmp_path, monkeypatch):
    told("eval", run, f"{run}:student", "--suite", suite, "--out", tmp_path / "done")
    teacher, student = tmp_path / "done" / "run-teacher", tmp_path / "done" / "run-student"
    monkeypatch.chdir(tmp_path)
    out, _ = told("compare", teacher, student)
    page = Path("evals") / "compare-teacher-student.html"
    assert f"page: {page}" in out and is_whole(tmp_path / page)
    for words in (("compare", teacher, tmp_path / "done"), ("compare", teacher, student, "--limit", 3)):
        said = told(*words, code=2)[1]
        assert str(student) in said or "--limit" in said


def test_what_was_not_asked_the_same_is_refused_and_named(run, suite, told, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    told("eval", run, "--suite", suite, "--out", a)
    told("eval", f"{run}:student", "--suite", suite, "--limit", 4, "--out", b)
    told("eval", f"{run}:student", "--suite", "arithmetic", "--limit", 4, "--out", c)
    said = told("compare", a / "run-teacher", b / "run-student", code=2)[1]
    assert "were not asked the same" in said and "4 items only of teacher" in said
    said = told("compare", a / "run-teacher", c / "run-student", code=2)[1]
    assert "teacher was asked the suite own, student the suite arithmetic" in said
    assert "3 tasks only of teacher: 'follows', 'passages', 'sums'" in said
    error = told("compare", a / "run-teacher", c / "run-student", "--json", code=2)["error"]
    assert error["kind"] == "InputError"


def test_an_evaluation_of_other_weights_is_refused(run, told, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    kept = copy / "evals" / "tasks" / "teacher"
    found = read_evaluation(kept)
    for task in found.tasks.values():
        for record in task.records:
            record["model"] = "0" * 64
    write_evaluation(kept, replace(found, sha256="0" * 64))
    said = told("compare", copy, f"{copy}:student", code=2)[1]
    assert "is the evaluation of other weights (000000000000)" in said
    shutil.rmtree(kept)
    assert "has not been evaluated: say on what" in told("compare", copy, f"{copy}:student", code=2)[1]


# -------------------------------------------------------------------------------------------------- models elsewhere


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A tiny Llama of transformers, with a tokenizer of single bytes."""
    import tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("elsewhere") / "tiny-llama"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>").save_pretrained(
        directory
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_a_model_of_transformers_beside_ours(run, foreign, suite, told, tmp_path, monkeypatch):
    words = ("--suite", suite, "--out", tmp_path)
    out, err = told("eval", run, foreign, *words)
    assert "tiny-llama" in out
    assert f"{foreign}: what it was trained on is not known here" in err
    found = read_json(tmp_path / "tiny-llama" / "evaluation.json")
    assert found["model"]["kind"] == "transformers" and found["model"]["sha256"]
    with monkeypatch.context() as patch:
        for question in ("likelihoods", "generate", "nats"):
            patch.setattr(Local, question, lambda *_: pytest.fail("asked again"))
        compared = told("compare", run, foreign, *words, "--json")
    assert compared["page"] == str(tmp_path / "compare-teacher-tiny-llama.html")
    assert is_whole(Path(compared["page"]))
    assert {task["task"]: task["items"] for task in compared["tasks"]} == {
        "follows": 8,
        "passages": 5,
        "sums": 6,
    }


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that writes `says(prompt)`: a text, bytes to send as they are, or after a wait."""

    daemon_threads = True

    def __init__(self, says):
        super().__init__(("127.0.0.1", 0), Answer)
        self.says, self.prompts = says, []
        self.spec = f"http://127.0.0.1:{self.server_port}/v1#parrot"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_):
        """A client that went away."""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send({"data": [{"id": "parrot"}]})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        if prompt == PROBE[0]:  # only to see whether there is a page to ask
            return self.send({"choices": []})
        self.server.prompts.append(prompt)
        said = self.server.says(prompt)
        self.send({"choices": [{"text": said, "finish_reason": "stop"}]} if isinstance(said, str) else said)

    def send(self, body):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, seconds in {"timeout": 0.4, "pause": 0.001}.items():
        monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, name, seconds)
    servers = []

    def start(says):
        servers.append(Server(says))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def sums(suite, tmp_path):
    """The part of the suite that any server can be asked."""
    path = tmp_path / "sums.toml"
    path.write_text(f'[[tasks]]\nkind = "rows"\npath = "{suite.parent}/sums.jsonl"\ngrader = "numeric"\n')
    return path


def double(prompt):
    return f" {2 * int(prompt.split()[0])}"


def test_an_endpoint_beside_our_model(run, sums, serve, told, tmp_path, monkeypatch):
    server = serve(double)
    monkeypatch.chdir(run)  # whose text is not the endpoint's
    words = ("--suite", sums, "--out", tmp_path / "kept")
    found = told("eval", run, server.spec, *words, "--against", server.spec, "--json")
    ours, theirs = (evaluation["tasks"]["sums"] for evaluation in found["evaluations"])
    assert theirs["score"] == 1 and ours["score"] < 1
    assert "contamination" in ours and "contamination" not in theirs
    assert found["evaluations"][1]["model"] == {
        "name": "parrot", "spec": server.spec, "kind": "endpoint", "sha256": "",
        "precision": "", "device": "", "route": "completions",
    }  # fmt: skip
    assert len(found["comparisons"]) == 1
    asked = len(server.prompts)
    told("compare", run, server.spec, *words)
    assert len(server.prompts) == asked
    assert is_whole(tmp_path / "kept" / "compare-teacher-parrot.html")


def test_a_question_that_times_out_counts_as_wrong_and_is_asked_again(sums, serve, told, tmp_path):
    broken = {"slow": "3 + 3 =", "garbage": "4 + 4 ="}

    def says(prompt):
        if prompt == broken["slow"]:
            time.sleep(0.8)
        return b"<html>" if prompt == broken["garbage"] else double(prompt)

    server = serve(says)
    words = ("eval", server.spec, "--suite", sums, "--out", tmp_path / "kept")
    out, _ = told(*words)
    assert (
        "2 ended in an error, counted as wrong (no answer within 0.4 s); the same command tries again" in out
    )
    records = {record["item"]: record for record in read_jsonl(tmp_path / "kept" / "parrot" / "sums.jsonl")}
    assert [records[item]["score"] for item in ("s2", "s3", "s4")] == [1, 0, 0]
    assert records["s4"]["error"] == "not a JSON object: <html>"
    broken.update(slow="", garbage="")
    server.prompts.clear()
    out, _ = told(*words)
    assert sorted(server.prompts) == ["3 + 3 =", "4 + 4 ="]
    assert "error," not in out
    assert read_json(tmp_path / "kept" / "parrot" / "evaluation.json")["tasks"]["sums"]["score"] == 1


@pytest.mark.parametrize("trouble", ["timeout", "garbage"])
def test_an_endpoint_without_a_single_answer_leaves_no_zeros(sums, serve, told, tmp_path, trouble):
    def says(prompt):
        time.sleep(0.6 if trouble == "timeout" else 0)
        return b"<html>"

    server = serve(says)
    said = told("eval", server.spec, "--suite", sums, "--out", tmp_path / "kept", code=2)[1]
    assert f"{server.spec}: the endpoint answered none of 6 questions in a row of sums" in said
    assert ("no answer within 0.4 s" if trouble == "timeout" else "<html>") in said
    assert not list((tmp_path / "kept").rglob("sums.jsonl"))
    assert not read_json(tmp_path / "kept" / "parrot" / "evaluation.json")["tasks"]


# ------------------------------------------------------------------------------------------------------- the doctor


def look_once(patch) -> None:
    """A doctor who looks at one thing only: the whole examination takes seconds."""
    for name in [name for name in CHECKS if name != ONE_CHECK]:
        patch.delitem(CHECKS, name)


def plant_twins(directory: Path) -> None:
    """Make one expert of the first layer a copy of another."""
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        if ".0." in name and "experts." in name:
            tensor[1] = tensor[0]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def twins(run, tmp_path_factory):
    """The teacher's weights alone, with a fault, and nothing that says how they were."""
    directory = tmp_path_factory.mktemp("weights") / "twins"
    shutil.copytree(run / "pretrain" / "checkpoints" / "step-00000012" / "weights" / "teacher", directory)
    shutil.copytree(run / "tokenizer", directory, dirs_exist_ok=True)
    plant_twins(directory)
    return directory


@pytest.fixture
def one_check(monkeypatch):
    look_once(monkeypatch)


def test_the_doctor_finds_nothing_in_a_healthy_run(run, told):
    out, _ = told("doctor", run)
    assert f"{run}: " in out and "fault" not in out
    assert ONE_CHECK in out


def test_the_doctor_names_a_planted_fault(twins, told, one_check):
    out, err = told("doctor", twins, code=1)
    assert f"fault: {ONE_CHECK}" in out
    assert err.rstrip().endswith("1 of 1 checks found a fault")
    found = told("doctor", twins, "--json", code=1)
    assert not found["ok"]
    assert [finding["verdict"] for finding in found["findings"]] == ["fault"]


def test_a_fault_is_not_exported_unless_asked(run, twins, told, tmp_path, one_check, monkeypatch):
    monkeypatch.setattr(hf, "question", all_well)
    assert told("export", run, tmp_path / "well", "--json")["receipt"]["verdict"] == "match"
    said = told("export", twins, tmp_path / "out", code=1)[1]
    assert "the doctor found 1 fault" in said and ONE_CHECK in said
    assert said.rstrip().endswith("to go on in spite of it: --no-doctor")
    assert [path.name for path in tmp_path.iterdir()] == ["well"]
    told("export", twins, tmp_path / "out", "--no-doctor", "--json")
    assert (tmp_path / "out" / "receipt.json").exists()


def test_the_doctor_examines_the_very_files_that_are_published(run, told, tmp_path, monkeypatch):
    """A wrong end token in the directory itself: neither the run nor another export of it has that."""

    def write_wrongly(model, tokenizer, directory, chat):
        write_files(model, tokenizer, directory, chat)
        path = directory / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1]}))

    write_files = hf.write_files
    monkeypatch.setattr(hf, "question", all_well)
    monkeypatch.setattr(hf, "write_files", write_wrongly)
    for name in CHECKS.keys() - {"special tokens agree"}:
        monkeypatch.delitem(CHECKS, name)
    said = told("export", run, tmp_path / "out", code=1)[1]
    assert "special tokens agree" in said and "--no-doctor" in said
    assert not list(tmp_path.iterdir())
    told("export", run, tmp_path / "out", "--no-doctor")
    assert (tmp_path / "out" / "receipt.json").exists()


def all_well(places):
    """What transformers says, without asking it."""
    return [hf._receipt([], {}) for _ in places]


@pytest.mark.slow
def test_a_fault_that_came_after_the_export_is_found(run, told, tmp_path):
    directory = tmp_path / "teacher"
    assert told("export", run, directory, "--json")["receipt"]["verdict"] == "match"
    assert told("doctor", directory, "--json")["ok"]
    plant_twins(directory)
    assert "receipt.json" in told("doctor", directory, code=2)[1]  # not the weights that it was made for
    (directory / "receipt.json").unlink()
    assert f"fault: {ONE_CHECK}" in told("doctor", directory, code=1)[0]


@pytest.mark.slow
def test_the_doctor_reads_a_recipe(told):
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
    found = told("doctor", recipe, "--json")
    assert found["ok"]
    assert {finding["model"] for finding in found["findings"]} == {"teacher", "student"}


def test_the_doctor_looks_before_a_long_run_and_stops_it_on_a_fault(
    run, told, tmp_path, monkeypatch, one_check
):
    copy = shutil.copytree(
        run, tmp_path / "run", ignore=shutil.ignore_patterns("pretrain", "evals", "*.html")
    )
    write_json(copy / "stages.json", {"data": read_json(run / "stages.json")["data"]})
    words = ("run", run.parent / "recipe.toml", "--out", copy, "--stage", "pretrain")
    monkeypatch.setattr(pretrain, "LONG", 0)
    trained = []
    monkeypatch.setattr(pretrain, "train", lambda *given: trained.append(given) or train(*given))
    draw = pretrain.build.members

    def with_twins(resolved):
        members = draw(resolved)
        for name, weight in members[0].model.named_parameters():
            if "experts" in name and weight.dim() == 3:
                weight.data[1] = weight.data[0]
        return members

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.build, "members", with_twins)
        said = told(*words, code=1)[1]
    assert "this run takes more than an hour: the doctor looks first" in said
    assert "the doctor found 1 fault" in said and "--no-doctor" in said
    assert not trained and not list(copy.rglob("step-*"))
    assert not read_json(copy / rundir.DOCTOR)["examined"][0]["ok"]
    said = told(*words)[1]
    assert "doctor: small: 2 ok" in said
    assert trained


# -------------------------------------------------------------------------------------- in training, and afterwards


def test_tasks_at_chosen_steps_of_training(run):
    lines = list(read_jsonl(run / "pretrain" / "tasks.jsonl"))
    steps = {(line["step"], line["member"], line["task"]) for line in lines}
    members = {4: ["teacher"], 8: ["teacher", "student"], 12: ["teacher", "student"]}
    tasks = ("next_passage", "arithmetic_choice")
    assert steps == {(step, member, task) for step in members for member in members[step] for task in tasks}
    assert len(lines) == len(steps)
    assert all(0 <= line["low"] <= line["score"] <= line["high"] <= 1 for line in lines)
    page = (run / "report.html").read_text()
    assert all(f"{task} during training" in page for task in tasks)
    assert 'href="compare-teacher-student.html"' in page


def test_they_leave_no_trace_in_the_weights(run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.replace("every = 4\n", "")
    for name in ("text", "more"):
        text = text.replace(f'path = "{name}"', f'path = "{run.parent / name}"')
    recipe.write_text(text)
    for stage in ("data", "pretrain"):
        call("run", recipe, "--out", tmp_path / "run", "--stage", stage)
    assert not (tmp_path / "run" / "pretrain" / "tasks.jsonl").exists()
    checkpoint = Path("pretrain", "checkpoints", "step-00000012", "MANIFEST.json")
    hashes = [
        {name: facts["sha256"] for name, facts in read_json(place / checkpoint)["files"].items()}
        for place in (run, tmp_path / "run")
    ]
    for member in ("teacher", "student"):
        weights = f"weights/{member}/model.safetensors"
        assert hashes[0][weights] == hashes[1][weights]


def test_experts_of_a_member(run, told):
    found = read_json(run / "evals" / "experts.json")
    assert set(found) == {"teacher", "student"}
    out, _ = told("experts", f"{run}:student")
    assert f"{run}:student, layer 0" in out and "bits per byte added by removing it" in out
    assert out.rstrip().endswith(f"drawn in {run / 'report.html'}")
    told_again = told("experts", run, "--json")
    assert [layer["layer"] for layer in told_again["layers"]] == [0, 1, 2, 3]
    assert all(
        expert["without"]["all"]["added"] is not None
        for layer in told_again["layers"]
        for expert in layer["experts"]
    )
    assert read_json(run / "evals" / "experts.json") == found  # the same once more


def test_the_passport_of_a_passage(run, told, tmp_path):
    trained = next(read_jsonl_of(run / "data"))
    text = (run.parent / "text" / trained.partition("#")[0]).read_text()
    found = told("data", "passport", run, text, "--json")
    assert found["verdict"] == "dirty"
    best = found["documents"][0]
    assert (best["document"], best["source"], best["licence"], best["stage"]) == (
        trained, "files-0", "CC0-1.0", "pretrain",
    )  # fmt: skip
    (tmp_path / "passage.txt").write_text(text)
    out, _ = told("data", "passport", run, tmp_path / "passage.txt")
    assert out.startswith("dirty: ") and f"pretrain: {trained}, from files-0, licence CC0-1.0" in out
    out, _ = told(
        "data", "passport", run, "Nobody ever wrote these words into any of the documents of that run."
    )
    assert out.startswith("clean: ")
    assert (
        "clean" in told("data", "passport", run, "誰もこの言葉をそこに書かなかった。" * 14)[0]
    )  # no file's name
    assert "'nowhere.txt' is no file" in told("data", "passport", run, "nowhere.txt", code=2)[1]


def read_jsonl_of(data: Path):
    """The names of the training documents."""
    for path in sorted(data.glob("*/train/documents.jsonl")):
        for record in read_jsonl(path):
            yield record["id"]
