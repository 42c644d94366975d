"""The command line from outside: quick to start, and never a traceback for a person's mistake."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from behemoth import cli
from behemoth.base.errors import AnswerIsNo, BehemothError
from behemoth.recipe import load_recipe, resolve

RECIPES = Path(__file__).parents[1] / "recipes"
VERBS = ["run", "explain", "init", "generate", "chat", "eval", "compare", "doctor", "experts"]
VERBS += ["import", "export", "report", "data"]


@pytest.fixture
def behemoth(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def behemoth(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["behemoth", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return behemoth


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "behemoth", *arguments], capture_output=True, text=True)


def test_help_is_quick_and_names_every_verb():
    """Under 0.3 s of processor time, the best of several: other work on the machine does not count."""
    seconds = []
    for _ in range(5):
        before = os.times()
        result = shell("--help")
        after = os.times()
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
        assert result.returncode == 0
    assert min(seconds) < 0.3
    assert not [verb for verb in VERBS if f"  {verb} " not in result.stdout]


@pytest.mark.parametrize("verb", [*VERBS[:-1], "data show", "data passport"])
def test_every_verb_explains_itself(behemoth, verb):
    code, out, _ = behemoth(*verb.split(), "--help")
    assert code == 0
    assert f"behemoth {verb}" in " ".join(out.split())


def test_no_mistake_shows_a_traceback(tmp_path):
    result = shell("explain", str(tmp_path / "missing.toml"))
    assert result.returncode == 2
    assert result.stderr.endswith("missing.toml: no such file\n")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain"], "RECIPE"),
        (["explian", "x"], "explian"),
        (["explain", RECIPES / "quickstart.toml", "model.hiden_size"], "did you mean model.hidden_size?"),
        (["explain", RECIPES / "quickstart.toml", "--set", "train.tokns=3"], "did you mean tokens?"),
        (["explain", RECIPES / "quickstart.toml", "--set", "tokens"], "write it as key=value"),
        (["explain", RECIPES], "is a folder; give the .toml file itself"),
        (["init", "/nowhere"], "/nowhere: no such folder"),
        (["generate", "x", "--temperature", "warm"], "'--temperature': Input should be a valid number"),
    ],
    ids=str,
)
def test_wrong_use_is_told_in_words(behemoth, arguments, told):
    code, out, err = behemoth(*arguments)
    assert code == 2
    assert told in err
    assert not out


def test_errors_for_programs_are_one_object(behemoth):
    code, out, _ = behemoth("explain", RECIPES / "quickstart.toml", "--set", "train.keep=1", "--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["error"]["kind"]) == (2, 2, "RecipeError")
    assert "train.keep = 1" in told["error"]["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(AnswerIsNo("no"), 1), (BehemothError("bad"), 2), (KeyboardInterrupt(), 130)],
    ids=repr,
)
def test_exit_codes(behemoth, monkeypatch, error, code):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert behemoth()[0] == code


def test_a_reader_that_has_gone_is_no_fault():
    command = [sys.executable, "-m", "behemoth", "explain", str(RECIPES / "scout.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "run/stages.json"),
        OSError(errno.EROFS, "Read-only file system", "run/stages.json"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_a_disk_that_refuses_is_told_in_words(behemoth, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    code, _, err = behemoth()
    assert code == 2
    assert err.endswith("; make room, or choose another directory\n")
    assert not isinstance(error, OSError) or err.startswith(f"run/stages.json: {error.strerror}")


def test_the_help_of_run_names_every_stage(behemoth):
    from behemoth.stages import STAGES

    *most, last = STAGES
    assert f"{', '.join(most)} or {last}" in " ".join(behemoth("run", "--help")[1].replace("│", " ").split())


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "No such file", "x")])
def test_our_own_faults_keep_their_traceback(monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(type(error)):
        cli.main()


def test_explain_gives_each_value_and_the_cost(behemoth):
    code, out, _ = behemoth("explain", RECIPES / "quickstart.toml")
    assert code == 0
    for words in (
        "model.hidden_size",
        "the width and depth",
        "4.3M",
        "1.25M",
        "FLOPs per token, training",
        "steps of",
    ):
        assert words in out


@pytest.mark.parametrize("key", ["train", "train.tokens_per_step", "tokens_per_step"])
def test_explain_one_key(behemoth, key):
    _, out, _ = behemoth("explain", RECIPES / "quickstart.toml", key)
    assert "train.tokens_per_step" in out
    assert "model.hidden_size" not in out


def test_explain_for_programs(behemoth):
    told = json.loads(behemoth("explain", RECIPES / "quickstart.toml", "--json")[1])
    assert told["settings"]["model.hidden_size"]["value"] == "128"
    assert told["models"]["teacher"]["parameters"] == 4_265_088


def test_init_writes_a_recipe_for_a_folder(behemoth, tmp_path):
    folder = tmp_path / 'My "own" texts'
    folder.mkdir()
    (folder / "a.txt").write_text("some prose\n" * 60_000)
    (folder / "b.jsonl.gz").write_bytes(b"x" * 1000)
    (folder / "picture.png").write_bytes(b"x" * 1000)
    code, out, _ = behemoth("init", folder, "--out", tmp_path / "mine.toml")
    assert code == 0
    assert f"behemoth run {tmp_path / 'mine.toml'}" in out
    assert "1 .txt, 1 .jsonl.gz files" in out
    resolved = resolve(load_recipe(tmp_path / "mine.toml"))
    assert resolved.recipe.name == "my-own-texts"
    assert resolved.recipe.data.sources[0].path == str(folder)
    assert resolved.model.vocab_size == 1024


@pytest.mark.parametrize("size", [1000, 1_000_000, 10_000_000, 80_000_000])
def test_init_fits_any_amount_of_text(behemoth, tmp_path, size):
    (tmp_path / "a.txt").touch()
    with open(tmp_path / "a.txt", "r+b") as file:
        file.truncate(size)
    assert behemoth("init", tmp_path, "--out", tmp_path / "r.toml")[0] == 0
    resolved = resolve(load_recipe(tmp_path / "r.toml"))
    assert 100_000 <= resolved.recipe.train.tokens <= 2_000_000
    assert not resolved.students


def test_the_student_that_init_suggests_is_possible(behemoth, tmp_path):
    for size in (1000, 1_000_000, 10_000_000, 80_000_000):
        with open(tmp_path / "a.txt", "wb") as file:
            file.truncate(size)
        recipe = tmp_path / f"{size}.toml"
        behemoth("init", tmp_path, "--out", recipe)
        before, _, after = recipe.read_text().partition("# [[students]]")
        recipe.write_text(before + "[[students]]" + after.replace("# name", "name").replace("# size", "size"))
        assert len(resolve(load_recipe(recipe)).students) == 1


def test_init_refuses_a_folder_of_binaries_and_an_existing_file(behemoth, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0")
    code, _, err = behemoth("init", tmp_path, "--out", tmp_path / "r.toml")
    assert code == 2
    assert "holds no text that can be read (1 other files); wanted are .txt .md" in err
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "r.toml").touch()
    code, _, err = behemoth("init", tmp_path, "--out", tmp_path / "r.toml")
    assert code == 2
    assert "already exists" in err
