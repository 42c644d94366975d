"""Out to transformers and back in: what matches is published with its receipt, what does not is named and is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from behemoth.base.errors import AnswerIsNo, DamagedError, InputError
from behemoth.base.files import sha256
from behemoth.export import hf, imports
from behemoth.export.hf import export, export_all
from behemoth.export.imports import import_model
from behemoth.export.receipt import answer
from behemoth.export.reference import BEYOND, TRIES, ask
from behemoth.model import llama3
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.open import Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import CONFIG, WEIGHTS
from behemoth.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the model reads the text and the text reads like the model\n"] * 4, 320)


@pytest.fixture
def opened(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Opened:
    """A Scout-like model with a tokenizer, as if opened from a run."""
    tokenizer.save(tmp_path / "tokenizer")
    config = tiny_config.model_copy(
        update={"vocab_size": tokenizer.vocab_size, "rope_scaling": RopeScaling(original_context=32)}
    )
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    return Opened(model, tmp_path / "tokenizer", "teacher", "0" * 64, tmp_path)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Question transformers in this process, which has imported it already; the fresh one has a test of its own."""

    def question(places: list[Path]) -> list[dict[str, Any]]:
        return [hf._receipt(answer(place), {}) for place in places]

    monkeypatch.setattr(hf, "question", question)
    monkeypatch.setattr(imports, "question", question)


def with_config(opened: Opened, **changes: Any) -> Opened:
    config = opened.model.config.model_copy(update=changes)
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    return Opened(model, opened.tokenizer_directory, "other", "0" * 64, opened.directory)


def check(receipt: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in receipt["checks"] if c["name"] == name)


# ------------------------------------------------------------------------------------------------------------ out


@pytest.mark.slow
def test_two_models_through_one_fresh_process(opened: Opened, tmp_path: Path) -> None:
    student = with_config(opened, moe_every=2, qk_norm=False)
    outs = [tmp_path / "export" / name for name in ("teacher", "student")]
    receipts = export_all(list(zip([opened, student], outs, strict=True)))
    for out, receipt, model in zip(outs, receipts, [opened.model, student.model], strict=True):
        assert receipt["verdict"] == "match" and receipt == json.loads((out / "receipt.json").read_text())
        assert receipt["files"] == {p.name: sha256(p) for p in out.iterdir() if p.name != "receipt.json"}
        assert receipt["versions"].keys() >= {"torch", "transformers"}
        back = open_model(out).model.state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["student", "teacher"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0},
        {"moe_every": 2, "qk_norm": False},
        {"experts_per_token": 2, "tie_embeddings": True},
        {"nope_every": 0},
        {"chunk_size": 20, "temperature_floor": 8, "context_length": 24},
    ],
)
def test_every_shape_matches_and_comes_back(opened: Opened, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = with_config(opened, **changes)
    assert export(model, tmp_path / "out")["verdict"] == "match"
    back = open_model(tmp_path / "out").model
    assert back.config == model.model.config
    assert all(torch.equal(back.state_dict()[name], x) for name, x in model.model.state_dict().items())


@pytest.mark.usefixtures("here")
def test_the_receipt_says_what_the_rows_cross(opened: Opened, tmp_path: Path) -> None:
    both = check(export(opened, tmp_path / "a"), "logits, text")
    assert both["note"] == "crosses the chunk border at 16; crosses the temperature floor at 16"
    assert 0 < both["value"] <= both["limit"] <= 1e-4
    short = check(export(with_config(opened, temperature_floor=8192), tmp_path / "b"), "logits, text")
    assert "the context of 32 ends before the temperature floor at 8192" in short["note"]
    assert "crosses the chunk border at 16" in short["note"]


def test_rows_go_beyond_the_last_border(opened: Opened, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ask(opened.model, tokenizer, tmp_path, tmp_path, tmp_path, imported=False)
    asked = json.loads((tmp_path / "questions.json").read_text())
    assert len(asked["rows"]["text"]) == 16 + BEYOND
    assert {14, 15, 16, 17, 18} <= set(asked["watched"]["text"])
    assert opened.model.compute_dtype == torch.float32


def test_a_row_with_an_undecided_router_is_not_asked(
    opened: Opened, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Two experts with the same router row tie on every token, so every row has a tie; apart, the first has none."""
    for number, tied in enumerate((False, True)):
        router = opened.model.layers[1].feed_forward.router.weight
        with torch.no_grad():
            router[1] = router[0] if tied else router[1]
        ask(opened.model, tokenizer, tmp_path, tmp_path, tmp_path, imported=False)
        first = json.loads((tmp_path / "questions.json").read_text())["rows"]["any id"][0]
        assert first == (TRIES - 1 if tied else 0), number


@pytest.mark.usefixtures("here")
def test_bf16_on_disk_is_compared_as_rounded(opened: Opened, tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in opened.model.state_dict().items()}
    receipt = export(opened, tmp_path / "out", torch.bfloat16)
    assert receipt["verdict"] == "match" and check(receipt, "logits, text")["value"] < 1e-5
    assert {x.dtype for x in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}
    assert all(torch.equal(opened.model.state_dict()[name], x) for name, x in before.items())
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.usefixtures("here")
def test_generation_stops_where_our_tokenizer_says(
    opened: Opened, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export(opened, tmp_path / "out")
    for file in (CONFIG, "generation_config.json"):
        written = json.loads((tmp_path / "out" / file).read_text())
        assert written["eos_token_id"] == list(tokenizer.stop_ids)
        assert {tokenizer.eos_id, tokenizer.eot_id} <= set(written["eos_token_id"])
        assert (written["bos_token_id"], written["pad_token_id"]) == (tokenizer.bos_id, tokenizer.pad_id)
    assert written["do_sample"] and (written["temperature"], written["top_p"]) == (0.6, 0.9)


@pytest.mark.usefixtures("here")
def test_the_exported_tokenizer_keeps_user_text_plain(
    opened: Opened, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export(opened, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("<|eot|>", "a<|begin_of_text|>b", "<|header_start|>system<|header_end|>"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_tokens.values())


# ------------------------------------------------------------------------------------------------- what is refused


def nudge(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["model.layers.2.self_attn.v_proj.weight"][3, 5] += 0.5
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def swap_gate_and_up(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = "model.layers.1.feed_forward.experts.gate_up_proj"
    tensors[name] = torch.cat(tensors[name].chunk(2, dim=-1)[::-1], dim=-1).contiguous()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def lose(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    del tensors["model.layers.1.feed_forward.router.weight"]
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        values = json.loads((directory / file).read_text()) | changes
        (directory / file).write_text(json.dumps(values))

    return change


def other_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


SABOTAGE = {
    "one weight": (nudge, ["tensors: 1 ", "layers.2.self_attn.v_proj", "first differs after layer 2 "]),
    "gate and up": (
        swap_gate_and_up,
        ["layers.1.feed_forward.experts.gate_up", "first differs after layer 1 "],
    ),
    "a lost tensor": (lose, ["missing: model.layers.1.feed_forward.router.weight"]),
    "a setting": (
        edit(CONFIG, attn_scale=0.7),
        ["attn_scale: 0.1 was meant, 0.7", "first differs after layer 3 "],
    ),
    "a chunk": (
        edit(CONFIG, attention_chunk_size=8),
        ["attention_chunk_size: 16 was meant, 8", "after layer 0 "],
    ),
    "stop tokens": (
        edit("generation_config.json", eos_token_id=[1]),
        ["special tokens: 1", "eos_token_id: meant ["],
    ),
    "a forged token": (
        edit("tokenizer_config.json", split_special_tokens=False),
        ["tokenizer: 1", "<|begin_of_text|>plain"],
    ),
    "a template": (other_template, ["chat template: 1"]),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SABOTAGE)
def test_what_differs_is_named_and_not_published(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, named = SABOTAGE[name]

    def ask_then_damage(
        model: Any, tokenizer: Any, evidence: Path, directory: Path, *rest: Any, **more: Any
    ) -> None:
        ask(model, tokenizer, evidence, directory, *rest, **more)
        damage(directory)

    monkeypatch.setattr(hf, "ask", ask_then_damage)
    with pytest.raises(AnswerIsNo, match="was not published") as error:
        export(opened, tmp_path / "export" / "teacher")
    assert all(words in str(error.value) for words in named), str(error.value)
    evidence = tmp_path / "export" / "teacher.receipt-failed.json"
    assert str(evidence) in str(error.value) and json.loads(evidence.read_text())["verdict"] == "mismatch"
    assert list((tmp_path / "export").iterdir()) == [evidence]


def test_a_process_that_dies_publishes_nothing(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.sys, "executable", "/bin/false")
    with pytest.raises(AnswerIsNo, match="could not load or run"):
        export(opened, tmp_path / "export" / "teacher")
    assert list((tmp_path / "export").iterdir()) == []


def test_what_cannot_be_exported_is_refused_first(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="score_on = 'output' cannot be exported"):
        export(with_config(opened, score_on="output"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(opened, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- in


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("multimodal", [False, True])
def test_what_went_out_comes_in(
    opened: Opened, tokenizer: Tokenizer, tmp_path: Path, capfd: Any, multimodal: bool
) -> None:
    out = tmp_path / "out"
    export(opened, out)
    if multimodal:
        give_eyes(out)
    receipt = import_model(out, tmp_path / "run")
    assert receipt["verdict"] == "match" and receipt["files"][WEIGHTS] == sha256(out / WEIGHTS)
    assert ("vision weights were left out" in capfd.readouterr().err) == multimodal
    back = open_model(tmp_path / "run")
    assert back.model.config == opened.model.config
    assert all(torch.equal(back.model.state_dict()[name], x) for name, x in opened.model.state_dict().items())
    assert Tokenizer.load(back.tokenizer_directory).sha256 == tokenizer.sha256
    export(back, tmp_path / "again")
    again, before = load_file(tmp_path / "again" / WEIGHTS), load_file(out / WEIGHTS)
    for name, tensor in again.items():
        assert torch.equal(tensor, before[f"language_model.{name}" if multimodal else name])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "use_cache": True},
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        {"dtype": "bfloat16", "head_dim": 16, "pretraining_tp": 2},
    ],
    ids=["untied, scaled", "tied, one key head", "plain RoPE", "bf16, wide heads"],
)
def test_a_llama3_comes_in_and_goes_out_as_it_was(
    save_llama3: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = save_llama3(tmp_path / "theirs", **changes)
    receipt = import_model(source, tmp_path / "run")
    assert receipt["verdict"] == "match" and receipt["files"][WEIGHTS] == sha256(source / WEIGHTS)
    assert check(receipt, "logits, text")["note"] == "" and check(receipt, "logits, text")["value"] > 0
    opened = open_model(tmp_path / "run")
    assert llama3.fits(opened.model.config)
    assert export(opened, tmp_path / "again")["verdict"] == "match"
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(x.dtype == after[name].dtype and torch.equal(x, after[name]) for name, x in before.items())
    theirs, ours = (AutoConfig.from_pretrained(path).to_dict() for path in (source, tmp_path / "again"))
    about_use = {"use_cache", "pretraining_tp", "pad_token_id", "_name_or_path"}
    assert {key for key in theirs if theirs[key] != ours.get(key)} <= about_use
    assert not list(tmp_path.glob("*.receipt-failed.json"))


@pytest.mark.slow
def test_a_llama3_in_and_out_through_fresh_processes(
    save_llama3: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_llama3(tmp_path / "theirs", tie_word_embeddings=True)
    assert import_model(source, tmp_path / "run")["versions"].keys() >= {"torch", "transformers"}
    assert export(open_model(tmp_path / "run"), tmp_path / "again")["verdict"] == "match"
    assert sha256(source / WEIGHTS) == sha256(tmp_path / "again" / WEIGHTS)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("way", ["to_pairs", "to_halves"])
def test_rows_in_the_wrong_order_are_found(
    save_llama3: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Reordered one way only, either way."""
    source = save_llama3(tmp_path / "theirs")
    monkeypatch.setattr(llama3, way, lambda weight, _: weight)
    with pytest.raises(AnswerIsNo, match="was not imported") as error:
        import_model(source, tmp_path / "run")
    assert "self_attn.q_proj.weight" in str(error.value)
    assert ("first differs after layer 0" in str(error.value)) == (way == "to_pairs")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("here")
def test_a_layout_that_errs_both_ways_is_found_by_the_answers(
    save_llama3: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("to_pairs", "to_halves"):
        monkeypatch.setattr(llama3, way, lambda weight, _: weight)
    with pytest.raises(AnswerIsNo, match="first differs after layer 0"):
        import_model(save_llama3(tmp_path / "theirs"), tmp_path / "run")


@pytest.mark.usefixtures("here")
def test_a_dense_model_of_ours_in_llama3s_form_is_exported_so(opened: Opened, tmp_path: Path) -> None:
    plain = {"num_experts": 0, "nope_every": 0, "qk_norm": False}
    for name, more, model_type in (
        ("fits", {"chunk_size": 32}, "llama"),
        ("has chunks", {"chunk_size": 16}, "llama4_text"),
    ):
        model = with_config(opened, **plain, **more)
        receipt = export(model, tmp_path / name)
        assert json.loads((tmp_path / name / CONFIG).read_text())["model_type"] == model_type
        assert ("chunk border" in check(receipt, "logits, text")["note"]) == (model_type == "llama4_text")
        back = open_model(tmp_path / name).model
        assert back.config == model.model.config
        assert all(torch.equal(back.state_dict()[k], x) for k, x in model.model.state_dict().items())


@pytest.mark.parametrize("kind", ["qwen2", "mixtral"])
def test_another_architecture_is_refused_by_name(
    save_llama3: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    source = save_llama3(tmp_path / "theirs")
    edit(CONFIG, model_type=kind)(source)
    with pytest.raises(InputError, match=rf"model_type = '{kind}' is not supported; supported are .*'llama'"):
        import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def give_eyes(directory: Path) -> None:
    """Dress an export up as the text part of a multimodal checkpoint."""
    tensors = {f"language_model.{name}": x for name, x in load_file(directory / WEIGHTS).items()}
    save_file(
        tensors | {"vision_model.patch.weight": torch.ones(2)}, directory / WEIGHTS, metadata={"format": "pt"}
    )
    text = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    (directory / "receipt.json").unlink()


def test_an_import_with_another_tokenizer_is_refused(opened: Opened, tmp_path: Path) -> None:
    hf.save_weights(with_config(opened, vocab_size=64).model, tmp_path / "source")
    Tokenizer.load(opened.tokenizer_directory).save(tmp_path / "source")
    with pytest.raises(InputError, match=r"320 tokens.*vocab_size = 64"):
        import_model(tmp_path / "source", tmp_path / "run")


def test_a_broken_import_leaves_no_run(opened: Opened, tmp_path: Path) -> None:
    source = tmp_path / "source"
    hf.save_weights(opened.model, source)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        import_model(source, tmp_path / "run")
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(DamagedError, match=WEIGHTS):
        import_model(source, tmp_path / "run")
    assert not [path for path in tmp_path.iterdir() if "run" in path.name]
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="already exists"):
        import_model(source, tmp_path / "run")
