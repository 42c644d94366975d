"""Out to GGUF: what is written reads back as the same model within the limits it names, and what cannot is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from behemoth import verbs
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import read_json, sha256
from behemoth.export import gguf as ours
from behemoth.export.gguf import vocabulary_of, write_gguf, writing
from behemoth.export.hf import write_files
from behemoth.export.llama_cpp import LLAMA3_SPLIT, Limits, check_expressible, read_back
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.open import Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.text.tokenizer import Tokenizer

DENSE = {"num_experts": 0, "nope_every": 0, "qk_norm": False}
FREE = {"chunk_size": 8192, "temperature_floor": 8192}  # llama.cpp's own numbers


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["the model reads the text and the text reads like the model\n"] * 4, 320).save(directory)
    return directory


@pytest.fixture
def make(tiny_config: ModelConfig, tokens: Path) -> Callable[..., Opened]:
    """`make(**changes)`: a drawn model as if opened from a run; chunks of 16, a temperature's floor of 16."""

    def making(dtype: torch.dtype = torch.float32, **changes: Any) -> Opened:
        config = tiny_config.model_copy(update={"vocab_size": 320} | changes)
        model = Transformer(config).initialise(torch.Generator().manual_seed(0))
        frequencies = model.frequencies
        model.to(dtype).frequencies = frequencies
        model.compute_dtype = dtype
        return Opened(model, tokens, "student", "5" * 64, tokens)

    return making


def check(receipt: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in receipt["checks"] if c["name"] == name)


def stored(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


# --------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("changes", "context", "words"),
    [
        (FREE, 32, []),
        ({"context_length": 8}, 8, []),
        ({}, 15, ["chunk_size = 16", "temperature_floor = 16"]),
        (FREE | {"chunk_size": 20}, 20, ["chunk_size = 20"]),
        (FREE | {"temperature_floor": 21}, 20, ["temperature_floor = 21"]),
        (FREE | {"temperature_scale": 0.2, "context_length": 9000}, 8191, ["temperature_scale = 0.2"]),
        (FREE | {"temperature_tuning": False, "context_length": 9000}, 8191, ["temperature_tuning = false"]),
        (FREE | {"chunk_size": 9000, "context_length": 9000}, 8192, ["chunk_size = 9000"]),
        (FREE | {"context_length": 100_000}, 100_000, []),
        (DENSE | {"chunk_size": 32}, 32, []),
        (DENSE | {"chunk_size": 20}, 20, ["chunk_size = 20"]),
    ],
)
def test_limits(tiny_config: ModelConfig, changes: dict[str, Any], context: int, words: list[str]) -> None:
    limits = check_expressible(tiny_config.model_copy(update=changes))
    assert limits.context == context and limits.of == changes.get("context_length", 32)
    assert len(limits.reasons) == len(words) and all(map(str.__contains__, limits.reasons, words))
    assert limits.architecture == ("llama" if changes.get("num_experts") == 0 else "llama4")
    assert str(context) in str(limits) and all(word in str(limits) for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nope_every": 2}, "nope_every = 2"),
        ({"nope_every": 0}, "nope_every = 0"),
        ({"num_layers": 8, "nope_every": 8}, "nope_every = 8"),
        ({"num_layers": 3}, "num_layers = 3"),
        ({"qk_norm": False}, "qk_norm = false"),
        ({"num_experts": 128}, "qk_norm = true with num_experts = 128"),
        ({"score_on": "output"}, "score_on = 'output'"),
        ({"temperature_floor": 1}, "not even one token"),
        ({"num_experts": 0}, "nope_every = 4"),
        ({"num_experts": 0, "nope_every": 0}, "qk_norm = true"),
    ],
)
def test_what_llama_cpp_computes_differently_is_refused_by_name(
    make: Callable[..., Opened], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        write_gguf(make(**changes), tmp_path / "model.gguf")
    assert words in str(error.value) and not list(tmp_path.iterdir())


def test_maverick_is_expressible(tiny_config: ModelConfig) -> None:
    maverick = {"num_experts": 128, "qk_norm": False, "moe_every": 2}
    assert not check_expressible(tiny_config.model_copy(update=FREE | maverick)).reasons


# -------------------------------------------------------------------------------------------------------- the file


def test_a_file_and_its_receipt(make: Callable[..., Opened], tmp_path: Path) -> None:
    opened, path = make(), tmp_path / "out" / "model.gguf"
    receipt = write_gguf(opened, path)
    assert receipt["verdict"] == "match" and [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    assert receipt["files"] == {"model.gguf": sha256(path)}
    assert receipt["source"] == {"name": "student", "sha256": "5" * 64}
    assert receipt["limits"]["context"] == 15 and receipt["limits"]["of"] == 32
    assert "up to 15 tokens" in receipt["limits"]["said"] and "chunk_size = 16" in receipt["limits"]["said"]
    assert check(receipt, "logits")["value"] < 1e-5
    assert check(receipt, "logits beyond the limit")["value"] > 1e-3
    assert json.loads(json.dumps(receipt)) == receipt

    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    assert fields["llama4.context_length"] == 15 and fields["behemoth.context_length"] == 32
    assert fields["general.description"] == receipt["limits"]["said"]
    assert fields["behemoth.limits"] == receipt["limits"]["reasons"]
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    assert (
        fields["tokenizer.ggml.eot_token_id"] == tokenizer.eot_id and fields["tokenizer.ggml.pre"] == "qwen2"
    )
    assert "<|header_start|>" in fields["tokenizer.chat_template"] and fields["tokenizer.ggml.add_bos_token"]


def test_tensors_lie_as_llama_cpp_reads_them(make: Callable[..., Opened], tmp_path: Path) -> None:
    """Experts as (E, out, in), gates and ups apart; queries in the order of our pairs."""
    opened = make(moe_every=2)
    write_gguf(opened, tmp_path / "model.gguf")
    found, block = stored(tmp_path / "model.gguf"), opened.model.layers[1]
    feed_forward: Any = block.feed_forward
    gate, up = feed_forward.experts.gate_up_proj.chunk(2, dim=-1)
    for name, tensor in {
        "blk.1.attn_q.weight": block.self_attn.q_proj.weight,
        "blk.1.ffn_gate_exps.weight": gate.transpose(1, 2),
        "blk.1.ffn_up_exps.weight": up.transpose(1, 2),
        "blk.1.ffn_down_exps.weight": feed_forward.experts.down_proj.transpose(1, 2),
        "blk.1.ffn_gate_inp.weight": feed_forward.router.weight,
        "blk.0.ffn_down.weight": opened.model.layers[0].feed_forward.down_proj.weight,
        "output.weight": opened.model.lm_head.weight,
    }.items():
        assert np.array_equal(found[name].data, tensor.detach().numpy()), name
    assert "blk.0.ffn_gate_exps.weight" not in found


def test_the_same_model_gives_the_same_bytes(make: Callable[..., Opened], tmp_path: Path) -> None:
    first, second = (write_gguf(make(), tmp_path / name) for name in ("a.gguf", "b.gguf"))
    assert first["files"]["a.gguf"] == second["files"]["b.gguf"]


def test_a_refusal_in_between_publishes_nothing(make: Callable[..., Opened], tmp_path: Path) -> None:
    with pytest.raises(AnswerIsNo), writing(make(), tmp_path / "model.gguf"):
        raise AnswerIsNo("the doctor found a fault")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        FREE,
        DENSE | {"chunk_size": 32},
        DENSE | {"chunk_size": 20},
        {"moe_every": 2, "experts_per_token": 2},
        {"tie_embeddings": True},
        {"rope_scaling": RopeScaling(original_context=32)},
        DENSE | {"rope_scaling": RopeScaling(factor=8, high_freq_factor=4, original_context=32)},
        {"vocab_size": 384},
    ],
    ids=str,
)
def test_other_shapes(make: Callable[..., Opened], tmp_path: Path, changes: dict[str, Any]) -> None:
    receipt = write_gguf(make(**changes), tmp_path / "model.gguf")
    assert receipt["verdict"] == "match"
    limited = bool(receipt["limits"]["reasons"])
    assert limited == any(c["name"] == "logits beyond the limit" for c in receipt["checks"])


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_sixteen_bits_stay_as_they_are(
    make: Callable[..., Opened], tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    opened = make(dtype)
    assert write_gguf(opened, tmp_path / "model.gguf")["verdict"] == "match"
    found = stored(tmp_path / "model.gguf")
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.0.ffn_up_exps.weight"] == kind
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert opened.model.compute_dtype == dtype


def test_llama_3_from_elsewhere(save_llama3: Callable[..., Path], tmp_path: Path) -> None:
    opened = open_model(save_llama3(tmp_path / "theirs"))
    receipt = write_gguf(opened, tmp_path / "model.gguf")
    assert receipt["verdict"] == "match" and receipt["limits"]["architecture"] == "llama"
    fields, _ = read_back(tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"


# ---------------------------------------------------------------------------------------------- what is not the same


def altered(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[str, Tensor], tuple[str, Tensor] | None]
) -> None:
    original = ours._tensors

    def tensors(model: Transformer, architecture: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in original(model, architecture):
            if changed := change(name, tensor):
                yield changed

    monkeypatch.setattr(ours, "_tensors", tensors)


SWAPPED = {"blk.2.ffn_gate_exps.weight": "blk.2.ffn_up_exps.weight"}
SWAPPED |= {after: before for before, after in SWAPPED.items()}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda name, x: (SWAPPED.get(name, name), x), {"tensors", "logits"}),
        (lambda name, x: (name, x.flip(0) if name == "blk.1.attn_q.weight" else x), {"tensors", "logits"}),
        (lambda name, x: None if name == "blk.1.attn_k.weight" else (name, x), {"tensors", "logits"}),
        (lambda name, x: (name, x * 2 if name == "rope_freqs.weight" else x), {"tensors", "logits"}),
    ],
    ids=["gate and up swapped", "rows reversed", "one missing", "other positions"],
)
def test_wrong_weights_are_found_and_not_published(
    make: Callable[..., Opened],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[str, Tensor], tuple[str, Tensor] | None],
    failed: set[str],
) -> None:
    altered(monkeypatch, change)
    with pytest.raises(AnswerIsNo, match="was not published"):
        write_gguf(make(rope_scaling=RopeScaling(original_context=32)), tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf.receipt-failed.json"]
    receipt = read_json(tmp_path / "model.gguf.receipt-failed.json")
    assert {c["name"] for c in receipt["checks"] if not c["ok"]} == failed


def test_a_limit_that_is_too_generous_is_found(
    make: Callable[..., Opened], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token more than the temperature's floor allows, and the answers are no longer the same."""
    monkeypatch.setattr(ours, "check_expressible", lambda _: Limits("llama4", 16, 32, ("untrue",)))
    with pytest.raises(AnswerIsNo, match="logits: "):
        write_gguf(make(), tmp_path / "model.gguf")


def test_wrong_settings_are_found(
    make: Callable[..., Opened], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ours._add_settings

    def other(writer: gguf.GGUFWriter, config: ModelConfig, limits: Limits) -> None:
        original(writer, config, limits)
        writer.kv_data[0]["llama4.attention.layer_norm_rms_epsilon"].value = 0.1

    monkeypatch.setattr(ours, "_add_settings", other)
    with pytest.raises(AnswerIsNo, match="norm_eps"):
        write_gguf(make(), tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("key", "failed"),
    [
        ("merges", {"vocabulary", "tokenizer"}),
        ("tokens", {"vocabulary", "tokenizer"}),
        ("eos_token_id", {"vocabulary"}),
    ],
)
def test_a_wrong_vocabulary_is_found(
    make: Callable[..., Opened], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, failed: set[str]
) -> None:
    original = ours._add_vocabulary

    def other(writer: gguf.GGUFWriter, vocabulary: ours.Vocabulary) -> None:
        original(writer, vocabulary)
        entry = writer.kv_data[0][f"tokenizer.ggml.{key}"]
        match key:
            case "eos_token_id":
                entry.value = 7
            case "merges":
                entry.value = entry.value[:-9]
            case "tokens":
                entry.value = [*entry.value[50:100], *entry.value[:50], *entry.value[100:]]

    monkeypatch.setattr(ours, "_add_vocabulary", other)
    with pytest.raises(AnswerIsNo):
        write_gguf(make(), tmp_path / "model.gguf")
    receipt = read_json(tmp_path / "model.gguf.receipt-failed.json")
    assert {c["name"] for c in receipt["checks"] if not c["ok"]} == failed


# ------------------------------------------------------------------------------------------------------ tokenizers


def test_llama_3s_expression_is_the_one_of_its_tokenizers(
    save_llama3: Callable[..., Path], tmp_path: Path
) -> None:
    definition = (save_llama3(tmp_path / "theirs") / "tokenizer.json").read_text()
    assert json.loads(definition)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == LLAMA3_SPLIT


def normalised(definition: dict[str, Any]) -> None:
    definition["normalizer"] = {"type": "NFC"}


def textual(definition: dict[str, Any]) -> None:
    definition["added_tokens"][3]["special"] = False


def other_pieces(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,4}|\s+|\S+"


def prefixed(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def merging(definition: dict[str, Any]) -> None:
    definition["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (normalised, "its normaliser NFC"),
        (textual, "which is text"),
        (other_pieces, "how it cuts text"),
        (prefixed, "how it cuts text"),
        (merging, "ignore_merges = True with the expression of qwen2"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_express_is_refused(
    tokens: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    tokenizer = Tokenizer.load(tokens)
    definition = json.loads(tokenizer.definition)
    change(definition)
    with pytest.raises(InputError, match=words):
        vocabulary_of(Tokenizer(json.dumps(definition), tokenizer.names), 320)


def test_ids_beyond_the_tokenizer_have_names_of_their_own(tokens: Path) -> None:
    vocabulary = vocabulary_of(Tokenizer.load(tokens), 384)
    assert len(vocabulary.tokens) == 384 and vocabulary.tokens[-1] == "[PAD383]"
    assert vocabulary.types[-1] == gguf.TokenType.UNUSED and vocabulary.types[-65] == gguf.TokenType.CONTROL


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command(make: Callable[..., Opened], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = make()
    write_files(opened.model, Tokenizer.load(opened.tokenizer_directory), tmp_path / "student")
    verbs.export(str(tmp_path / "student"), "gguf", tmp_path / "model.gguf", doctor=False, as_json=False)
    receipt = read_json(tmp_path / "model.gguf.receipt.json")
    assert receipt["files"] == {"model.gguf": sha256(tmp_path / "model.gguf")}
    assert "up to 15 tokens" in " ".join("".join(capsys.readouterr()).split())
    with pytest.raises(InputError, match="already exists"):
        verbs.export(str(tmp_path / "student"), "gguf", tmp_path / "model.gguf", doctor=False, as_json=True)
    with pytest.raises(InputError, match="--to onnx"):
        verbs.export(str(tmp_path / "student"), "onnx", tmp_path / "model", doctor=False, as_json=True)
