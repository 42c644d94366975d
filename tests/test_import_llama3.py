"""A Llama 3 of somebody else through the command line: in, looked at, talked to, measured, and out again."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from behemoth import cli
from behemoth.base.files import read_json
from behemoth.export import hf, imports
from behemoth.export.receipt import answer

SUITE = """
name = "own"
[[tasks]]
kind = "rows"
name = "follows"
path = "follows.jsonl"
[[tasks]]
kind = "rows"
name = "sums"
path = "sums.jsonl"
max_tokens = 4
"""


def call(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == code


@pytest.fixture(scope="module", autouse=True)
def here() -> Any:
    """Question transformers in this process; the export's own tests use fresh ones."""

    def question(places: list[Path]) -> list[dict[str, Any]]:
        return [hf._receipt(answer(place), {}) for place in places]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "question", question)
        patch.setattr(imports, "question", question)
        yield


@pytest.fixture(scope="module")
def theirs(save_llama3: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama3(tmp_path_factory.mktemp("llama3") / "theirs", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def run(theirs: Path) -> Path:
    call("import", theirs, "--out", theirs.parent / "run")
    return theirs.parent / "run"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the command line: what it prints, read as JSON where that was asked for."""

    def told(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        call(*words, code=code)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return json.loads(out) if "--json" in words else out + err

    return told


def test_it_writes_and_is_talked_to(
    run: Path, told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = told("generate", run, "the model reads", "--max-tokens", 5, "--json")
    assert written["prompt"] == "the model reads" and written["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the text\n/quit\n"))
    assert "has not been post-trained" in told("chat", run)


def test_the_doctor_finds_nothing_wrong(run: Path, theirs: Path, told: Callable[..., Any]) -> None:
    for place in (run, theirs):
        findings = {f["check"]: f for f in told("doctor", place, "--json")["findings"]}
        verdicts = {f["verdict"] for f in findings.values()}
        assert verdicts == {"ok", "not checked"}
        for looked_at in (
            "logits, transformers",
            "logits, cached engine",
            "experts survive export and import",
        ):
            assert findings[looked_at]["verdict"] == "ok"
        for of_llama4 in ("every n-th layer sees the row without positions", "no expert is empty"):
            assert findings[of_llama4]["verdict"] == "not checked"


def test_it_goes_out_as_it_came(run: Path, theirs: Path, told: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    receipt = told("export", run, out, "--json")["receipt"]
    assert receipt["verdict"] == "match"
    before, after = load_file(theirs / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert read_json(out / "config.json")["model_type"] == "llama"
    assert "checks agree" in told("import", out, "--out", tmp_path / "again")


def test_it_is_measured_as_itself_and_as_transformers_has_it(
    run: Path, theirs: Path, told: Callable[..., Any], tmp_path: Path
) -> None:
    """A run by our engine, the directory it came from by transformers: the same likelihoods."""
    (tmp_path / "own.toml").write_text(SUITE)
    follows = [
        {"id": f"f{n}", "prompt": f"{n} is", "choices": [" the text", " a"], "gold": 0} for n in range(6)
    ]
    sums = [{"id": f"s{n}", "prompt": f"{n} + {n} =", "answer": 2 * n} for n in range(3)]
    for name, items in (("follows", follows), ("sums", sums)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = told("eval", run, theirs, "--suite", tmp_path / "own.toml", "--out", tmp_path / "out", "--json")
    ours, others = found["evaluations"]
    assert (ours["model"]["kind"], others["model"]["kind"]) == ("behemoth", "transformers")
    assert ours["tasks"]["follows"]["score"] == others["tasks"]["follows"]["score"]


def test_its_report_is_a_page(run: Path) -> None:
    call("report", run)
    page = (run / "report.html").read_text().lower()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")


def test_what_is_not_read_is_told_with_what_is(
    theirs: Path, told: Callable[..., Any], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in theirs.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    said = told("import", other, "--out", tmp_path / "run", code=2)
    assert "model_type = 'qwen3' is not supported" in said and "'llama4_text'" in said
