"""Weights and settings out and in again, and every damage named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Llama4ForCausalLM, Llama4TextConfig

from behemoth.base.errors import BehemothError, DamagedError, InputError
from behemoth.base.files import sha256, write_manifest
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import (
    CONFIG,
    FIXED,
    INDEX,
    KEYS,
    WEIGHTS,
    config_from_hf,
    config_to_hf,
    load_weights,
    save_weights,
)


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    return Transformer(tiny_config).initialise(torch.Generator().manual_seed(0))


@pytest.fixture
def saved(model: Transformer, tmp_path: Path) -> Path:
    save_weights(model, tmp_path / "weights")
    return tmp_path / "weights"


def same(a: Transformer, b: Transformer) -> bool:
    """The same tensors, bit for bit, under the same names."""
    ours, others = a.state_dict(), b.state_dict()
    return list(ours) == list(others) and all(torch.equal(ours[name], others[name]) for name in ours)


def tokenizer_json(directory: Path, num_ids: int) -> str:
    """A tokenizer.json with this many ids; returns its SHA-256."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {f"t{i}": i for i in range(num_ids - 1)}
    added = [{"id": num_ids - 1, "content": "<|end|>"}]
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    return sha256(directory / "tokenizer.json")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------------- settings

CONFIGS = {
    "scout": {"rope_scaling": RopeScaling()},
    "maverick": {"moe_every": 2, "qk_norm": False, "num_experts": 8},
    "dense": {"num_experts": 0},
    "one layer sparse": {"moe_every": 4},
    "no layer without positions": {"nope_every": 0},
    "every layer without positions": {"nope_every": 1},
    "tied": {"tie_embeddings": True},
    "score on output": {"score_on": "output"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_come_back(tiny_config: ModelConfig, name: str) -> None:
    config = tiny_config.model_copy(update=CONFIGS[name])
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize("name", ["scout", "maverick", "dense", "no layer without positions"])
def test_settings_come_back_from_the_file_transformers_writes(tiny_config: ModelConfig, name: str) -> None:
    config = tiny_config.model_copy(update=CONFIGS[name])
    assert config_from_hf(json.loads(Llama4TextConfig(**config_to_hf(config)).to_json_string())) == config


def test_every_key_of_theirs_has_a_place() -> None:
    """A key that a new release adds must be read, refused, or known to change nothing."""
    read = {theirs for theirs, _ in KEYS.values()} | set(FIXED)
    read |= {
        "moe_layers",
        "interleave_moe_layer_step",
        "no_rope_layers",
        "no_rope_layer_interval",
        "layer_types",
    }
    read |= {"rope_parameters"}
    changes_nothing = {
        *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
        *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),  # never read by their model
    }
    theirs = {
        name for name in Llama4TextConfig.__annotations__ if name.islower() and not name.startswith("base_")
    }
    theirs -= {"model_type", "keys_to_ignore_at_inference", "default_theta"}
    assert theirs - read - changes_nothing == set()


RELEASED_SCOUT = {
    "model_type": "llama4_text",
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "use_qk_norm": True,
    "vocab_size": 202048,
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_released_settings_are_read(wrapped: bool) -> None:
    """Older keys, empty lists, missing defaults, an int for a switch; alone or inside a multimodal config."""
    hf: dict[str, Any] = RELEASED_SCOUT | {"attn_temperature_tuning": 4}
    config = config_from_hf(
        {"model_type": "llama4", "text_config": hf, "vision_config": {}} if wrapped else hf
    )
    assert config.rope_scaling == RopeScaling() and config.rope_theta == 500_000
    assert config.sparse_layers == list(range(48))
    assert [layer for layer in range(48) if not config.has_rope(layer)] == list(range(3, 48, 4))
    assert config.temperature_tuning is True
    assert (config.temperature_floor, config.temperature_scale, config.chunk_size) == (8192, 0.1, 8192)
    assert (config.expert_size, config.dense_size, config.context_length) == (8192, 16384, 10_485_760)


REFUSED = [
    ("model_type", "qwen3"),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("attention_dropout", 0.1),
    ("quantization_config", {"quant_method": "fp8"}),
    ("no_rope_layers", [1, 0, 0, 1]),
    ("no_rope_layers", [1, 1]),
    ("moe_layers", [0, 1]),
    ("moe_layers", "all"),
    ("moe_layers", ["1"]),
    ("interleave_moe_layer_step", "two"),
    ("layer_types", ["full_attention"] * 4),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 10000.0}),
    ("rope_parameters", [1]),
    ("rms_norm_eps", float("nan")),
    ("floor_scale", 0),
    ("hidden_size", "wide"),
    ("num_hidden_layers", 4.5),
    ("num_key_value_heads", 3),
    ("attention_chunk_size", None),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(tiny_config: ModelConfig, key: str, value: Any) -> None:
    named = "num_kv_heads = 3" if key == "num_key_value_heads" else key.removesuffix("_parameters")
    with pytest.raises(InputError, match=named):
        config_from_hf(config_to_hf(tiny_config) | {key: value})


def test_all_refusals_come_at_once(tiny_config: ModelConfig) -> None:
    hf = config_to_hf(tiny_config) | {"attention_bias": True, "hidden_act": "relu"}
    del hf["vocab_size"]
    with pytest.raises(InputError) as error:
        config_from_hf(hf)
    assert all(
        word in str(error.value)
        for word in ("attention_bias = True", "hidden_act = 'relu'", "vocab_size: missing")
    )


# -------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_come_back_bit_for_bit(tiny_config: ModelConfig, tmp_path: Path, name: str) -> None:
    model = Transformer(tiny_config.model_copy(update=CONFIGS[name])).initialise(
        torch.Generator().manual_seed(0)
    )
    save_weights(model, tmp_path)
    back = load_weights(tmp_path)
    assert same(back, model) and back.config == model.config
    assert torch.equal(back.frequencies, model.frequencies) and torch.equal(back.load_LE, model.load_LE)
    tokens_BT = torch.arange(40).view(2, 20)
    assert torch.equal(back(tokens_BT).hidden_BTD, model(tokens_BT).hidden_BTD)
    assert (back.lm_head.weight is back.embed_tokens.weight) == model.config.tie_embeddings
    assert not any(tensor.is_meta for tensor in [*back.parameters(), *back.buffers()])


def test_shards_are_the_same_weights(model: Transformer, saved: Path, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "cut", shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert same(load_weights(tmp_path / "cut"), model)
    assert Llama4ForCausalLM.from_pretrained(tmp_path / "cut").lm_head.weight.equal(model.lm_head.weight)
    (tmp_path / "cut" / files[1]).unlink()
    with pytest.raises(DamagedError, match=files[1]):
        load_weights(tmp_path / "cut")


def test_precision_is_as_stored_or_as_asked(model: Transformer, tmp_path: Path) -> None:
    save_weights(model, tmp_path, dtype=torch.bfloat16)
    stored = load_weights(tmp_path)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16} == {stored.compute_dtype}
    assert torch.equal(stored.lm_head.weight, model.lm_head.weight.bfloat16())
    assert stored.frequencies.dtype == torch.float32
    wide = load_weights(tmp_path, torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32} == {wide.compute_dtype}


def test_the_text_part_of_a_multimodal_checkpoint_is_read(model: Transformer, saved: Path) -> None:
    tensors = {f"language_model.{key}": tensor for key, tensor in load_file(saved / WEIGHTS).items()}
    tensors |= {"vision_model.x": torch.ones(2), "multi_modal_projector.linear_1.weight": torch.ones(2)}
    save_file(tensors, saved / WEIGHTS)
    text = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    assert same(load_weights(saved), model)


def test_a_loaded_model_does_not_lean_on_its_file(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """The parameters own their memory, so the file may be overwritten under a running model."""
    model = Transformer(tiny_config).initialise(torch.Generator().manual_seed(0))
    save_weights(model, tmp_path)
    back = load_weights(tmp_path)
    with open(tmp_path / WEIGHTS, "r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    assert same(back, model)


# --------------------------------------------------------------------------------------------------------- damage


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.feed_forward.router.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.9.surplus.weight"] = torch.ones(3)


def turn(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.2.feed_forward.experts.down_proj"
    tensors[name] = tensors[name][:, :-1].contiguous()


def shrink(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"layers\.1\.feed_forward\.router\.weight: missing"),
        (add, r"layers\.9\.surplus\.weight: not part"),
        (turn, r"layers\.2\.feed_forward\.experts\.down_proj: shape \[4, 31, 32\] where .* \[4, 32, 32\]"),
        (shrink, r"lm_head\.weight: stored as I8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved: Path, damage: Any, message: str) -> None:
    tensors = load_file(saved / WEIGHTS)
    damage(tensors)
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(DamagedError, match=message):
        load_weights(saved)


# The settings that live in shapes: none of them can be ignored, because a tensor would not fit.
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 97),
        ("hidden_size", 40),
        ("num_hidden_layers", 3),
        ("intermediate_size_mlp", 65),
        ("intermediate_size", 40),
        ("num_local_experts", 5),
        ("interleave_moe_layer_step", 1),
        ("num_attention_heads", 8),
        ("head_dim", 16),
    ],
)
def test_settings_that_live_in_shapes_cannot_be_ignored(
    tiny_config: ModelConfig, tmp_path: Path, key: str, value: int
) -> None:
    maverick = Transformer(tiny_config.model_copy(update={"moe_every": 2})).initialise(
        torch.Generator().manual_seed(0)
    )
    save_weights(maverick, tmp_path)
    edit(tmp_path / CONFIG, **{key: value, "moe_layers": None, "no_rope_layers": None, "layer_types": None})
    with pytest.raises(DamagedError, match="do not fit"):
        load_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_named(saved: Path, keep: int) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(DamagedError, match=WEIGHTS):
        load_weights(saved)


def test_missing_files_are_named(saved: Path) -> None:
    (saved / WEIGHTS).rename(saved / "elsewhere")
    with pytest.raises(DamagedError, match=WEIGHTS):
        load_weights(saved)
    (saved / INDEX).write_text("{}")
    with pytest.raises(DamagedError, match=INDEX):
        load_weights(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"model_type": "llama4_text"}'])
def test_a_broken_config_is_named(saved: Path, text: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(InputError, match=CONFIG):
        load_weights(saved)


# -------------------------------------------------------------------------------------------------------- opening


@pytest.fixture
def run(model: Transformer, tmp_path: Path) -> Path:
    """A run with two members and two checkpoints; the student's embedding differs, and so does each save."""
    run = tmp_path / "run"
    digest = tokenizer_json(run / "tokenizer", 90)
    for step in (10, 200):
        checkpoint = run / "pretrain" / "checkpoints" / f"step-{step:08d}"
        for number, member in enumerate(("control", "teacher")):
            with torch.no_grad():
                model.norm.weight.fill_(step + number)
            save_weights(model, checkpoint / "weights" / member, tokenizer_sha256=digest)
        write_manifest(checkpoint, step=step, facts={})
    return run


def test_a_run_is_its_newest_teacher(run: Path) -> None:
    opened = open_model(run)
    assert opened.name == "teacher"
    assert opened.model.norm.weight[0] == 201
    assert opened.tokenizer_directory == run / "tokenizer"


def test_members_checkpoints_and_weights_can_be_named(run: Path) -> None:
    checkpoint = run / "pretrain" / "checkpoints" / "step-00000010"
    found = {
        f"{run}:control": 200,
        f"{checkpoint}": 11,
        f"{checkpoint}:control": 10,
        f"{checkpoint}/weights/control": 10,
    }
    for spec, expected in found.items():
        assert open_model(spec).model.norm.weight[0] == expected, spec
    assert open_model(checkpoint).sha256 == open_model(checkpoint / "weights" / "teacher").sha256
    assert len({open_model(spec).sha256 for spec in found}) == 3


def test_a_damaged_checkpoint_is_stepped_over_in_a_run_and_refused_alone(run: Path, capfd: Any) -> None:
    newest = run / "pretrain" / "checkpoints" / "step-00000200"
    flip(newest / "weights" / "teacher" / WEIGHTS)
    assert open_model(run).model.norm.weight[0] == 11
    assert "step-00000200 is damaged" in capfd.readouterr().err
    for spec in (newest, newest / "weights" / "teacher"):
        with pytest.raises(DamagedError, match=r"teacher/model\.safetensors"):
            open_model(spec)
    flip(run / "pretrain" / "checkpoints" / "step-00000010" / "weights" / "control" / WEIGHTS)
    with pytest.raises(DamagedError, match="every checkpoint is damaged"):
        open_model(run)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_exported_directory_is_held_to_its_receipt(saved: Path) -> None:
    tokenizer_json(saved, 96)
    files = {path.name: sha256(path) for path in saved.iterdir()}
    (saved / "receipt.json").write_text(json.dumps({"verdict": "match", "files": files}))
    assert open_model(saved).name == "weights"
    for name in files:
        whole = (saved / name).read_bytes()
        flip(saved / name)
        with pytest.raises(BehemothError, match=name):
            open_model(saved)
        (saved / name).write_bytes(whole)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(DamagedError, match=r"tokenizer\.json: missing"):
        open_model(saved)


@pytest.mark.parametrize("num_ids", [97, 1000])
def test_a_tokenizer_too_large_for_the_model_is_refused_with_both_numbers(saved: Path, num_ids: int) -> None:
    tokenizer_json(saved, num_ids)
    with pytest.raises(InputError, match=rf"{num_ids} tokens.*vocab_size = 96"):
        open_model(saved)


def test_a_tokenizer_too_small_for_the_model_is_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_weights(Transformer(tiny_config.model_copy(update={"vocab_size": 4096})), tmp_path)
    tokenizer_json(tmp_path, 320)
    with pytest.raises(InputError, match=r"320 tokens.*vocab_size = 4096"):
        open_model(tmp_path)


def test_another_tokenizer_of_the_same_size_is_refused(run: Path) -> None:
    tokenizer = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    edit(
        run / "tokenizer" / "tokenizer.json",
        added_tokens=[*tokenizer["added_tokens"], {"id": 3, "content": "x"}],
    )
    with pytest.raises(InputError, match="SHA-256"):
        open_model(run)


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "pretrain" / "checkpoints").mkdir(parents=True)
    for spec, message in {
        tmp_path / "nothing": "no such file or directory",
        f"{tmp_path}/nothing:teacher": "no such file or directory",
        tmp_path / "empty": "is not a model",
        tmp_path / "young": "no checkpoint yet",
        f"{run}:pupil": "no member 'pupil'; it has control, teacher",
    }.items():
        with pytest.raises(InputError, match=message):
            open_model(spec)
    weights = shutil.copytree(run / "pretrain/checkpoints/step-00000010/weights/teacher", tmp_path / "alone")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        open_model(weights)
