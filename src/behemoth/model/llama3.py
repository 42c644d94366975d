"""Llama 3's dense decoder in the words of ours: the same forward under another config.json and order of rows.

It is the model of `transformer` with nothing of Llama 4's in it: no experts, positions in every layer, no chunk
shorter than the context, no QK-norm. Two things differ on disk. A feed-forward is called `mlp`. And RoPE turns feature
j of a head together with feature j + K/2, where ours turns 2j with 2j + 1: the same rotation of the same pairs, so
that reordering the rows of `q_proj` and `k_proj`, head by head, makes one layout of the other. Scores are dot products
over a head's features and do not see their order.

What fits this form is written in it, whether it was imported or trained here. Numbers of ours that mean nothing in
such a model (a temperature's floor where nothing reads it) go under the one key of ours, so that a config comes back
as it was.

Source: `transformers`' LlamaConfig and modeling_llama. Left out: biases, sliding windows, every RoPE scaling but
Llama 3's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from behemoth.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "llama"
REQUIRED = object()  # in the place of a default: the key has to be there
ROPE_THETA = 10_000.0  # where a config.json is silent

# Our name of a setting, Hugging Face's, and their default where a configuration leaves the key out.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", REQUIRED),
    "hidden_size": ("hidden_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", None),  # None: as many as query heads
    "head_size": ("head_dim", None),  # None: the width shared among the heads
    "dense_size": ("intermediate_size", REQUIRED),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "context_length": ("max_position_embeddings", 2048),
    "init_std": ("initializer_range", 0.02),
}

# Settings that would change the computation, and the only value of each that is supported.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0,
    "sliding_window": None,
    "quantization_config": None,
}

# What ours has to be: read by the model, and without a word in their configuration.
MEANT = {"num_experts": 0, "nope_every": 0, "qk_norm": False}
# What ours may be: read by nothing in such a model.
IDLE = (
    *("expert_size", "experts_per_token", "moe_every", "score_on"),
    *("chunk_size", "temperature_tuning", "temperature_floor", "temperature_scale"),
)


def fits(config: ModelConfig) -> bool:
    """Whether Llama 3's form says all of this model. (transformers wants the width to be a multiple of the heads.)"""
    return (
        all(getattr(config, name) == value for name, value in MEANT.items())
        and config.chunk_size >= config.context_length
        and config.hidden_size % config.num_heads == 0
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """LlamaConfig keys; RoPE and special tokens are the caller's."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    }


def idle(config: ModelConfig) -> dict[str, Any]:
    """The idle settings that `settings` would not guess."""
    guessed = _guessed(config.dense_size, config.context_length)
    return {name: getattr(config, name) for name in IDLE if getattr(config, name) != guessed[name]}


def settings(text: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings from LlamaConfig keys, but for RoPE; `kept` holds idle ones that were written down."""
    found = {ours: text.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
    heads = found["num_heads"]
    if found["num_kv_heads"] is None:
        found["num_kv_heads"] = heads
    if found["head_size"] is None:
        found["head_size"] = found["hidden_size"] // heads if heads else 0
    given = {name: kept[name] for name in IDLE if name in kept}
    return found | MEANT | _guessed(found["dense_size"], found["context_length"]) | given


def _guessed(dense_size: int, context_length: int) -> dict[str, Any]:
    """Idle settings that nobody wrote down: one chunk as long as the context, the rest as it comes."""
    defaults = {name: ModelConfig.model_fields[name].default for name in IDLE}
    return defaults | {
        "expert_size": dense_size,
        "chunk_size": context_length,
        "temperature_tuning": False,
    }


# ------------------------------------------------------------------------------------------------------ weights


def their_name(name: str) -> str:
    return name.replace(".feed_forward.", ".mlp.")


def our_name(name: str) -> str:
    return name.replace(".mlp.", ".feed_forward.")


def is_turned(name: str) -> bool:
    """Whether RoPE turns what this weight makes."""
    return name.endswith(("q_proj.weight", "k_proj.weight"))


def to_halves(weight: Tensor, head_size: int) -> Tensor:
    """Rows 0, 2, 4 ... of each head, then 1, 3, 5 ...: from neighbouring pairs to theirs."""
    return weight.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).reshape(weight.shape)


def to_pairs(weight: Tensor, head_size: int) -> Tensor:
    """The first row of each half of a head, then the second of each ...: back again."""
    return weight.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).reshape(weight.shape)
