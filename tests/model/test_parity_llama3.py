"""The same function as transformers' LlamaForCausalLM, through the border where rows are reordered.

Tiny models of Llama 3's form, drawn by transformers, saved by transformers and read by us: logits, gradients, names
and every setting that matters, with rows that reach beyond the original context of the scaled RoPE.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from behemoth.base.errors import InputError
from behemoth.inference.engine import Engine
from behemoth.model import llama3
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.cost import cache_bytes, count_parameters, keys_read
from behemoth.model.transformer import Transformer
from behemoth.model.weights import (
    CONFIG,
    OURS,
    SCALING_KEYS,
    WEIGHTS,
    config_from_hf,
    config_to_hf,
    hf_name,
    load_weights,
    save_weights,
    to_hf,
)

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "rms_norm_eps": 1e-5,
    "rope_parameters": SCALED,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "untied, two query heads a key head, scaled": {},
    "tied": {"tie_word_embeddings": True},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "plain RoPE": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "wide heads": {"head_dim": 16},
}
T = 40


def drawn(changes: dict[str, Any], seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY | changes, attn_implementation="eager")).eval()


def through_disk(theirs: LlamaForCausalLM, directory: Path) -> Transformer:
    theirs.save_pretrained(directory)
    return load_weights(directory)


def rows(length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(96, (2, length), generator=torch.Generator().manual_seed(seed))


def our_logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    return model.logits(model(tokens_BT).hidden_BTD)


def their_logits(theirs: LlamaForCausalLM, tokens_BT: Tensor) -> Tensor:
    return theirs(tokens_BT, use_cache=False).logits


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.detach().float() - b.detach().float()).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_theirs_in_fp32(shape: str, tmp_path: Path) -> None:
    theirs = drawn(SHAPES[shape])
    model, tokens_BT = through_disk(theirs, tmp_path), rows()
    found, meant = our_logits(model, tokens_BT), their_logits(theirs, tokens_BT)
    assert meant.std() > 0.1  # large enough for 1e-5 to mean something
    assert largest(found, meant) < 1e-5
    for logits_BTV in (found, meant):
        F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        ours = to_hf(name, parameter.grad, model.config)
        gradient = expected[hf_name(name, model.config)].grad
        assert gradient is not None and gradient.abs().max() > 0, name
        assert largest(ours, gradient) < 1e-5 * max(1, float(gradient.abs().max())), name


def test_bf16_is_as_close_to_them_as_they_are_to_themselves(tmp_path: Path) -> None:
    mine, own = [], []
    for seed in range(4):
        theirs = drawn({}, seed).to(torch.bfloat16)
        model, tokens_BT = through_disk(theirs, tmp_path / str(seed)), rows(seed=seed)
        assert model.compute_dtype == torch.bfloat16 and model.frequencies.dtype == torch.float32
        with torch.no_grad():
            eager = their_logits(theirs, tokens_BT)
            theirs.set_attn_implementation("sdpa")
            own.append((their_logits(theirs, tokens_BT) - eager).abs().float())
            mine.append((our_logits(model, tokens_BT) - eager).abs().float())
    assert 0 < torch.cat(mine).max() <= 2 * torch.cat(own).max()
    assert torch.cat(mine).mean() <= 2 * torch.cat(own).mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_comes_in_goes_out_tensor_for_tensor(shape: str, tmp_path: Path) -> None:
    model = through_disk(drawn(SHAPES[shape]), tmp_path / "in")
    save_weights(model, tmp_path / "out")
    there, back = load_file(tmp_path / "in" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    original = json.loads((tmp_path / "in" / CONFIG).read_text())
    assert OURS not in written
    assert all(value == original.get(key, value) for key, value in written.items() if not is_token(key))
    again = load_weights(tmp_path / "out")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())


def is_token(key: str) -> bool:
    return key.endswith("_token_id")


def test_the_cached_engine_writes_what_transformers_writes(tmp_path: Path) -> None:
    theirs = drawn({})
    model = through_disk(theirs, tmp_path)
    prompt = rows(12)[:1]
    theirs.generation_config.eos_token_id = None
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False
    )
    (answer,) = Engine(model).generate([prompt[0].tolist()], max_tokens=30)
    assert answer.tokens == written[0, 12:].tolist()


def test_reordering_is_a_permutation_and_its_inverse() -> None:
    weight = torch.arange(16 * 3).view(16, 3)
    halves = llama3.to_halves(weight, 8)
    assert halves[:8, 0].tolist() == [0, 6, 12, 18, 3, 9, 15, 21]  # head 0: rows 0 2 4 6, 1 3 5 7
    assert halves[8:, 0].tolist() == [24 + x for x in (0, 6, 12, 18, 3, 9, 15, 21)]
    assert torch.equal(llama3.to_pairs(halves, 8), weight)
    assert torch.equal(llama3.to_halves(llama3.to_pairs(weight, 8), 8), weight)


# -------------------------------------------------------------------------------------------------------- settings

# Every setting that changes the computation without changing a shape, and another value for it.
CHANGED: dict[str, dict[str, Any]] = {
    "num_attention_heads": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
    "num_key_value_heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "head_dim": {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 2},
    "rms_norm_eps": {"rms_norm_eps": 1e-2},
    "tie_word_embeddings": {"tie_word_embeddings": True},
    **{
        f"rope_parameters.{key}": {"rope_parameters": SCALED | {key: value}}
        for key, value in {
            "rope_theta": 100.0,
            "factor": 2.0,
            "low_freq_factor": 0.2,
            "high_freq_factor": 8.0,
            "original_max_position_embeddings": 4,
        }.items()
    },
    "rope_parameters.rope_type": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
}
IN_SHAPES = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"}
NOT_COMPUTED = {"max_position_embeddings", "initializer_range"}
DEFAULTED = {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "rope_parameters": None}


@pytest.mark.parametrize("key", CHANGED)
def test_no_setting_is_ignored(key: str, tmp_path: Path) -> None:
    """Changing it in config.json changes our logits, and the changed ones are theirs again."""
    theirs, tokens_BT = drawn({}), rows()
    with torch.no_grad():
        before = our_logits(through_disk(theirs, tmp_path), tokens_BT)
        changed = drawn(CHANGED[key])
        changed.load_state_dict(theirs.state_dict())
        changed.tie_weights()
        found = our_logits(through_disk(changed, tmp_path / "changed"), tokens_BT)
        meant = their_logits(changed, tokens_BT)
    assert largest(found, before) > 1e-3
    assert largest(found, meant) < 1e-5


def test_every_setting_has_a_check() -> None:
    checked = {key.partition(".")[0] for key in CHANGED}
    assert checked - {"rope_parameters"} | IN_SHAPES | NOT_COMPUTED == {
        key for key, _ in llama3.KEYS.values()
    }
    scaling = {key.partition(".")[2] for key in CHANGED if "." in key}
    assert scaling == {*SCALING_KEYS.values(), "rope_theta", "rope_type"}
    said = {*llama3.KEYS, *llama3.MEANT, *llama3.IDLE, "rope_theta", "rope_scaling"}
    assert said == set(ModelConfig.model_fields)


@pytest.mark.parametrize("key", DEFAULTED)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(key: str, tmp_path: Path) -> None:
    """Once as a key that is not there and, where they write it so, once as null."""
    hf = json.loads(LlamaConfig(**TINY).to_json_string())
    for left_out in ({k: v for k, v in hf.items() if k != key}, hf | {key: DEFAULTED[key]}):
        config = config_from_hf(left_out)
        asked = LlamaConfig.from_dict(left_out)
        rope = asked.rope_parameters
        assert isinstance(rope, dict)
        assert (config.num_kv_heads, config.head_size) == (asked.num_key_value_heads, asked.head_dim)
        assert (config.norm_eps, config.rope_theta) == (asked.rms_norm_eps, rope["rope_theta"])
        assert (config.rope_scaling is None) == (rope["rope_type"] == "default")


def test_every_key_of_theirs_has_a_place() -> None:
    """A key that a new release adds must be read, refused, or known to change nothing."""
    read = {key for key, _ in llama3.KEYS.values()} | set(llama3.FIXED) | {"rope_parameters"}
    changes_nothing = {"use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp"}
    theirs = {name for name in LlamaConfig.__annotations__ if name.islower() and not name.startswith("base_")}
    theirs -= {"model_type", "keys_to_ignore_at_inference", "default_theta"}
    assert theirs - read - changes_nothing == set()


RELEASED_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_released_settings_are_read_and_cost_what_is_published() -> None:
    """Llama 3.2 1B: 1,235,814,400 parameters, and a cache of 2 * 8 * 64 numbers per layer and token."""
    config = config_from_hf(RELEASED_1B)
    assert config.rope_scaling == RopeScaling(factor=32, low_freq_factor=1, high_freq_factor=4)
    assert (config.head_size, config.context_length, config.tie_embeddings) == (64, 131_072, True)
    counts = count_parameters(config)
    assert counts.total == counts.active == 1_235_814_400
    assert cache_bytes(config, 1000) == 1000 * 16 * 2 * 8 * 64 * 2
    assert {keys_read(config, layer, 10_000) for layer in range(16)} == {10_001 / 2}


def test_costs_are_those_of_the_model_itself(tmp_path: Path) -> None:
    for number, changes in enumerate(SHAPES.values()):
        theirs = drawn(changes)
        config = through_disk(theirs, tmp_path / str(number)).config
        assert count_parameters(config).total == sum(p.numel() for p in theirs.parameters())


# ------------------------------------------------------------------------------------------- which form, what not

OWN = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    dense_size=64,
    expert_size=24,
    nope_every=0,
    chunk_size=8192,
    qk_norm=False,
    context_length=32,
)
NOT_LLAMA3: dict[str, dict[str, Any]] = {
    "experts": {"num_experts": 4},
    "a layer without positions": {"nope_every": 3},
    "chunks": {"chunk_size": 16},
    "QK-norm": {"qk_norm": True},
    "heads that do not divide the width": {"num_heads": 6, "num_kv_heads": 2},
}


def test_a_dense_model_of_ours_that_fits_is_written_as_llama_and_comes_back() -> None:
    """Numbers that nothing reads are kept under our own key, so that nothing is another afterwards."""
    hf = config_to_hf(OWN)
    assert (hf["model_type"], hf["intermediate_size"]) == ("llama", 64)
    assert hf[OURS] == {"expert_size": 24, "chunk_size": 8192, "temperature_tuning": True}
    assert config_from_hf(json.loads(json.dumps(hf))) == OWN
    idle = OWN.model_copy(
        update={"experts_per_token": 2, "moe_every": 2, "temperature_floor": 7, "temperature_scale": 0.5}
    )
    assert config_from_hf(json.loads(json.dumps(config_to_hf(idle)))) == idle


@pytest.mark.parametrize("name", NOT_LLAMA3)
def test_what_llama3_cannot_say_stays_llama4(name: str) -> None:
    config = OWN.model_copy(update=NOT_LLAMA3[name])
    hf = config_to_hf(config)
    assert hf["model_type"] == "llama4_text"
    assert config_from_hf(json.loads(json.dumps(hf))) == config


REFUSED: list[tuple[str, Any, str]] = [
    ("attention_bias", True, "attention_bias = True: only False"),
    ("mlp_bias", True, "mlp_bias = True: only False"),
    ("sliding_window", 4096, "sliding_window = 4096: only None"),
    ("hidden_act", "gelu", "hidden_act = 'gelu': only 'silu'"),
    ("attention_dropout", 0.1, "attention_dropout = 0.1"),
    ("quantization_config", {"quant_method": "fp8"}, "quantization_config"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5: only 1"),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_type = 'yarn'"),
    ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "rope_type = 'linear'"),
    ("rope_parameters", {"rope_type": "llama3", "factor": 2.0}, "rope scaling lacks low_freq_factor"),
    ("hidden_size", "wide", "hidden_size = 'wide'"),
    ("hidden_size", 33, "hidden_size = 33: not a multiple of num_attention_heads = 4"),
    ("num_attention_heads", 0, "num_attention_heads = 0"),
    ("intermediate_size", None, "intermediate_size = None"),
    ("num_key_value_heads", 3, "num_kv_heads = 3"),
    ("head_dim", 7, "head_size = 7 is odd"),
    (OURS, {"chunk_size": 8}, "behemoth.chunk_size = 8: less than the context"),
]


@pytest.mark.parametrize(("key", "value", "told"), REFUSED, ids=str)
def test_what_is_not_supported_is_refused_by_name(key: str, value: Any, told: str) -> None:
    hf = json.loads(LlamaConfig(**TINY | {"head_dim": 8}).to_json_string())
    with pytest.raises(InputError) as error:
        config_from_hf(hf | {key: value})
    assert told in str(error.value)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe", "mistral", "gemma3_text", "deepseek_v3", None])
def test_another_architecture_is_told_what_is_supported(kind: str | None) -> None:
    with pytest.raises(InputError) as error:
        config_from_hf({"model_type": kind})
    assert f"model_type = {kind!r} is not supported" in str(error.value)
    assert all(name in str(error.value) for name in ("'llama4_text'", "'llama'", "no sliding window"))
