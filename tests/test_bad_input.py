"""Everything a person can get wrong: a message of one screen that says what to change, exit code 2, no traceback."""

import json
import shutil

import pytest

from behemoth import cli
from behemoth.evals.endpoint import Endpoint

RECIPE = """
name = "small"
[[data.sources]]
kind = "files"
path = "text"
[tokenizer]
vocab_size = 320
[model]
hidden_size = 16
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_size = 8
expert_size = 16
dense_size = 32
experts = 2
[train]
tokens = 1024
context_length = 32
tokens_per_step = 256
precision = "fp32"
"""


@pytest.fixture
def folder(tmp_path):
    """A recipe, and a folder of text enough for it."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "text").mkdir()
    for number in range(80):
        words = " ".join(f"word{(number * 37 + i * i) % 997}" for i in range(60))
        (tmp_path / "text" / f"{number}.txt").write_text(words)
    return tmp_path


def refused(capsys, *words) -> str:
    """Call the command line, which has to refuse; what it says on stderr after the last note."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 40
    return said


def run(capsys, folder, *words) -> str:
    return refused(capsys, "run", folder / "recipe.toml", "--out", folder / "run", *words)


def test_missing_recipe(capsys, tmp_path):
    assert "nowhere.toml" in refused(capsys, "run", tmp_path / "nowhere.toml")


def test_unknown_key_with_the_nearest_match(capsys, folder):
    said = run(capsys, folder, "--set", "train.learning_rat=0.1", "--set", "model.expert=4")
    assert "2 problems" in said
    assert "learning_rate" in said
    assert "did you mean experts" in said


def test_impossible_sizes(capsys, folder):
    said = run(capsys, folder, "--set", "model.num_heads=3", "--set", "model.num_kv_heads=2")
    assert "num_heads" in said
    assert "num_kv_heads" in said


def test_empty_corpus(capsys, folder):
    shutil.rmtree(folder / "text")
    (folder / "text").mkdir()
    assert ".txt" in run(capsys, folder)
    assert not (folder / "run" / "data").exists()


def test_a_folder_that_is_not_there(capsys, folder):
    shutil.rmtree(folder / "text")
    assert str(folder / "text") in run(capsys, folder)


def test_a_folder_of_binaries(capsys, folder):
    for path in (folder / "text").iterdir():
        path.write_bytes(bytes(range(256)) * 8)
    assert "encoding" in run(capsys, folder) or "binary" in run(capsys, folder)


def test_corpus_smaller_than_one_batch(capsys, folder):
    for path in list((folder / "text").iterdir())[5:]:
        path.unlink()
    said = run(capsys, folder, "--set", "train.tokens_per_step=8192", "--set", "train.tokens=16384")
    assert "rows" in said
    assert "tokens_per_step" in said


def test_a_run_directory_that_cannot_be_written(capsys, folder):
    (folder / "file").write_text("in the way")
    said = refused(capsys, "run", folder / "recipe.toml", "--out", folder / "file" / "run")
    assert "file" in said
    assert "--out" in said


def test_a_run_directory_of_another_recipe(capsys, folder):
    run(capsys, folder, "--stage", "nonsense")
    (folder / "run").mkdir()
    (folder / "run" / "record.json").write_text(json.dumps({"intent": {"name": "other"}}))
    assert "another recipe" in run(capsys, folder)


def test_a_run_directory_of_an_imported_model(capsys, folder):
    (folder / "run").mkdir()
    (folder / "run" / "record.json").write_text(json.dumps({"imported_from": "elsewhere", "versions": {}}))
    said = run(capsys, folder)
    assert "imported model" in said
    assert "--out" in said


def test_unknown_stage(capsys, folder):
    assert "data, pretrain" in run(capsys, folder, "--stage", "pretrian")


def test_a_stage_before_the_ones_it_needs(capsys, folder):
    assert "data stage first" in run(capsys, folder, "--stage", "evaluate")


def test_nothing_trained_yet(capsys, folder):
    (folder / "empty").mkdir()
    assert "not a model" in refused(capsys, "generate", folder / "empty", "x")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A model and a tokenizer that belong together, as exported."""
    import torch

    from behemoth.model.config import ModelConfig
    from behemoth.model.transformer import Transformer
    from behemoth.model.weights import save_weights
    from behemoth.text.tokenizer import Tokenizer

    directory = tmp_path_factory.mktemp("export")
    tokenizer = Tokenizer.train(["some words to begin with"] * 3, 320)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=8,
        dense_size=32,
        expert_size=16,
        num_experts=2,
        context_length=32,
    )
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    save_weights(model, directory, tokenizer_sha256=tokenizer.sha256)
    tokenizer.save(directory)
    return directory


def copy_of(export, tmp_path):
    return shutil.copytree(export, tmp_path / "model")


def test_the_export_works_before_it_is_damaged(capsys, export):
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", str(export), "some", "--max-tokens", "3"])
    assert end.value.code == 0


def test_a_damaged_export(capsys, export, tmp_path):
    model = copy_of(export, tmp_path)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, "generate", model, "some")


def test_a_tokenizer_that_does_not_match_the_model(capsys, export, tmp_path):
    from behemoth.text.tokenizer import Tokenizer

    model = copy_of(export, tmp_path)
    Tokenizer.train(["other words, and more of them, altogether"] * 3, 384).save(model)
    said = refused(capsys, "generate", model, "some")
    assert "tokenizer" in said


def test_a_prompt_longer_than_the_context(capsys, export):
    assert "32" in refused(capsys, "generate", export, "words " * 40)


def test_an_export_to_an_unknown_format(capsys, export, tmp_path):
    assert "onnx" in refused(capsys, "export", export, tmp_path / "out", "--to", "onnx")


def test_wrong_words_on_the_command_line(capsys):
    assert "--temperature" in refused(capsys, "generate", "m", "--temperature", "-1")


# ------------------------------------------------------------------------------------------------ tasks and suites


@pytest.fixture
def suite(tmp_path):
    """Write a suite of one task of a person's own rows, or of several, and give its path."""

    def suite(*files: str) -> str:
        tasks = []
        for number, text in enumerate(files):
            (tmp_path / f"rows{number}.jsonl").write_text(text)
            tasks.append(f'[[tasks]]\nkind = "rows"\npath = "rows{number}.jsonl"\n')
        (tmp_path / "suite.toml").write_text("".join(tasks))
        return tmp_path / "suite.toml"

    return suite


def measured(capsys, export, suite, *words) -> str:
    """Nothing is evaluated, and nothing is written."""
    out = suite.parent / "kept"
    said = refused(capsys, "eval", export, "--suite", suite, "--out", out, *words)
    assert not list(out.rglob("*.jsonl"))
    return said


GOOD = '{"id": "a", "prompt": "2 + 2 =", "answer": "4"}\n'


def test_a_task_file_with_missing_fields(capsys, export, suite):
    rows = [
        '{"id": "a", "prompt": "A boat", "choices": ["floats", "sings"], "gold": 0}',
        '{"id": "b", "prompt": "A boat", "choices": ["floats", "sings"]}',
        '{"id": "c", "choices": ["floats", "sings"], "gold": 0}',
        "floats",
        '{"id": "d", "prompt": "A boat", "choices": ["floats"], "gold": 4}',
    ]
    said = measured(capsys, export, suite("\n".join(rows)))
    for told in (
        "rows0.jsonl cannot be read as rows: 4 of 5 rows are not right",
        "line 2: gold: missing; the row has id, prompt, choices",
        "line 3: prompt or query or context: missing",
        "line 4: not valid JSON",
        "line 5: gold: 4 is not one of the choices",
    ):
        assert told in said


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (GOOD + GOOD, "lines 1, 2 share the id 'a'"),
        (GOOD + GOOD.replace('"a"', '"b"'), "line 2 asks what 1 asks; take them out"),
        ("", "rows0.jsonl is empty; at least one row is needed"),
    ],
)
def test_a_task_file_that_repeats_itself_or_is_empty(capsys, export, suite, rows, told):
    assert told in measured(capsys, export, suite(rows))


def test_all_that_is_wrong_with_a_suite_is_told_at_once(capsys, export, suite):
    path = suite(GOOD + GOOD, "", GOOD)
    path.write_text(path.read_text() + '[[tasks]]\nkind = "rows"\npath = "elsewhere.jsonl"\n')
    said = measured(capsys, export, path)
    assert f"{path} has 3 problems" in said
    assert "task rows0: " in said and "task rows1: " in said and "elsewhere.jsonl: no such file" in said


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nowhere.toml", "no such file"),
        ("arithmetik", "did you mean arithmetic?"),
        ("startr", "did you mean starter?"),
    ],
)
def test_a_recipe_with_a_suite_that_is_none(capsys, folder, name, hint):
    said = run(capsys, folder, "--set", f"evaluation.suite={name}")
    assert name in said and hint in said
    assert not list((folder / "run").rglob("step-*"))


def test_words_that_do_not_belong_together(capsys, export, suite):
    assert "did you mean arithmetic?" in refused(capsys, "eval", export, "--suite", "arithmetik")
    assert "did you mean starter?" in refused(capsys, "eval", export, "--suite", "startr")
    assert "lies in none" in refused(capsys, "eval", export, "--suite", "starter")
    assert "name a --suite" in refused(capsys, "eval", export, "--limit", "3")
    assert "name a --suite" in refused(capsys, "compare", export, export, "--limit", "3")
    lm_eval = ("--suite", "lm-eval:arc_easy", "--against", export)
    assert "--against compares on suites of our own" in refused(capsys, "eval", export, *lm_eval)
    assert "--suite arithmetic" in refused(capsys, "compare", export, export)  # not evaluated yet


def test_a_model_that_is_not_there(capsys, suite, tmp_path, monkeypatch):
    monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, "pause", 0.001)
    path = suite(GOOD)
    assert "no such file or directory; a MODEL is" in measured(capsys, "nowhere", path)
    assert "is the server up" in measured(capsys, "http://127.0.0.1:9/v1#none", path)
    for verb in (("experts",), ("doctor",), ("compare", tmp_path)):
        assert str(tmp_path) in refused(capsys, *verb, tmp_path)
        assert "nowhere: no such file" in refused(capsys, *verb[:1], *["nowhere"] * len(verb))


def test_scores_kept_where_a_file_is(capsys, export, suite):
    path = suite(GOOD)
    said = refused(capsys, "eval", export, "--suite", path, "--out", path)
    assert f"{path}" in said and "choose another directory" in said


def test_no_text_to_look_a_passage_up_in(capsys, export):
    assert "no prepared text" in refused(capsys, "data", "passport", export, "some words")
