"""Weights on disk: Hugging Face's layout, read and written with our own hands.

A weights directory holds `config.json` (the keys of `transformers`' Llama4TextConfig) and
`model.safetensors`, or several of them with an index when the model is big. Names are Llama4ForCausalLM's;
experts stay stacked as (E, in, out). A dense model that fits Llama 3's form has LlamaConfig's keys, and
LlamaForCausalLM's names and order of rows (`llama3`). Only what this architecture can compute is read: every other
setting is refused by name, so that a model which loads is the model that was saved. Of a multimodal Llama 4
checkpoint the text part is read; its vision weights are passed over.

Left out: quantised weights, and the files of Meta's own releases (their names differ; convert them first).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import read_json, write_json
from behemoth.model import llama3
from behemoth.model.config import ModelConfig
from behemoth.model.identity import CONFIG, INDEX, WEIGHTS, weight_files
from behemoth.model.llama3 import REQUIRED
from behemoth.model.transformer import Transformer, rope_frequencies

SHARD_BYTES = 4 * 1024**3  # above this the weights are cut into several files
OURS = "behemoth"  # the one key of ours in config.json: what theirs has no word for

# Our name of a setting, Hugging Face's, and their default where released configurations leave the key out.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", REQUIRED),
    "hidden_size": ("hidden_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", REQUIRED),
    "head_size": ("head_dim", REQUIRED),
    "dense_size": ("intermediate_size_mlp", REQUIRED),
    "expert_size": ("intermediate_size", REQUIRED),
    "num_experts": ("num_local_experts", REQUIRED),
    "experts_per_token": ("num_experts_per_tok", 1),
    "chunk_size": ("attention_chunk_size", 8192),
    "qk_norm": ("use_qk_norm", True),
    "temperature_tuning": ("attn_temperature_tuning", True),
    "temperature_floor": ("floor_scale", 8192),
    "temperature_scale": ("attn_scale", 0.1),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", False),
    "context_length": ("max_position_embeddings", 131_072),
    "init_std": ("initializer_range", 0.02),
}

# Settings that would change the computation, and the only value of each that is supported.
FIXED = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0, "quantization_config": None}

# What a key that has to be taken apart must be, before it is.
KINDS: dict[str, type] = {
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "moe_layers": list,
    "interleave_moe_layer_step": int,
    "no_rope_layers": list,
    "no_rope_layer_interval": int,
    "layer_types": list,
    "rope_parameters": dict,
    "rope_scaling": dict,
    OURS: dict,
}

ROPE_THETA = 500_000.0  # where a config.json is silent
SUPPORTED = (
    "supported are 'llama4_text' (or 'llama4', its text) and 'llama' (Llama 3 and what is built like it: dense, "
    "no biases, no sliding window)"
)

SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}


# ------------------------------------------------------------------------------------------------ config, out


def config_to_hf(config: ModelConfig, tokens: Mapping[str, int | list[int]] | None = None) -> dict[str, Any]:
    """The settings as LlamaConfig keys where Llama 3's form says them all, else as Llama4TextConfig's.

    tokens: bos_token_id, eos_token_id, pad_token_id, if known.
    """
    hf, unsaid = (llama3.config_to_hf, llama3.idle) if llama3.fits(config) else (_llama4_to_hf, _not_llama4)
    kept = unsaid(config)
    return {
        **hf(config),
        "rope_parameters": _rope_to_hf(config),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(tokens or {}),
        **({OURS: kept} if kept else {}),
    }


def _not_llama4(config: ModelConfig) -> dict[str, Any]:
    """What Llama4TextConfig has no word for."""
    return {"score_on": config.score_on} if config.score_on != "input" else {}


def _llama4_to_hf(config: ModelConfig) -> dict[str, Any]:
    layers = range(config.num_layers)
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "moe_layers": config.sparse_layers,
        "interleave_moe_layer_step": config.moe_every,
        "no_rope_layers": [int(config.has_rope(layer)) for layer in layers],  # sic: 1 where RoPE is used
        "no_rope_layer_interval": config.nope_every or config.num_layers + 1,
        "layer_types": [
            "chunked_attention" if config.has_rope(layer) else "full_attention" for layer in layers
        ],
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    if config.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = {theirs: getattr(config.rope_scaling, ours) for ours, theirs in SCALING_KEYS.items()}
    return {"rope_type": "llama3", "rope_theta": config.rope_theta, **scaling}


# ------------------------------------------------------------------------------------------------- config, in


def config_from_hf(hf: Mapping[str, Any], where: str = CONFIG) -> ModelConfig:
    """Read Llama4TextConfig keys, the text part of a multimodal Llama4Config, or LlamaConfig keys.

    InputError lists everything that is missing, malformed or not supported, each with what is supported.
    """
    if not isinstance(hf, Mapping):
        raise InputError(f"{where}: the top level is a {type(hf).__name__}; a configuration is an object")
    text = hf.get("text_config", {}) if is_multimodal(hf) else hf
    problems = _unsupported(text)
    settings = {} if problems else _settings(text, problems)
    if not problems:
        keys = _form(text)[0]
        try:
            config = ModelConfig(**settings)
        except ValidationError as error:
            problems = [_said_plainly(e, keys) for e in error.errors()]
        else:
            if keys is KEYS or llama3.fits(config):
                return config
            problems = [_unlike_llama3(config)]
    raise InputError(
        f"{where} does not describe a model that can be loaded\n" + "\n".join(f"  {p}" for p in problems)
    )


def is_multimodal(hf: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a Llama 4 with eyes, whose text part alone is read."""
    return hf.get("model_type") == "llama4" and isinstance(hf.get("text_config"), Mapping)


def _form(text: Mapping[str, Any]) -> tuple[dict[str, tuple[str, Any]], dict[str, Any]]:
    """The keys of an architecture, and the settings of it that have one supported value."""
    return (llama3.KEYS, llama3.FIXED) if text.get("model_type") == llama3.MODEL_TYPE else (KEYS, FIXED)


def _unsupported(text: Mapping[str, Any]) -> list[str]:
    if text.get("model_type") not in ("llama4_text", llama3.MODEL_TYPE):
        return [f"model_type = {text.get('model_type')!r} is not supported; {SUPPORTED}"]
    keys, fixed = _form(text)
    problems = [
        f"{theirs}: missing"
        for theirs, default in keys.values()
        if default is REQUIRED and theirs not in text
    ]
    problems += [
        f"{key} = {text[key]!r}: only {only!r} is supported"
        for key, only in fixed.items()
        if text.get(key, only) != only
    ]
    problems += [
        f"{key} = {text[key]!r}: must be a {kind.__name__}"
        for key, kind in KINDS.items()
        if text.get(key) is not None and not isinstance(text[key], kind)
    ]
    if problems:
        return problems
    numbers = {**text, **(text.get("rope_parameters") or {}), **(text.get("rope_scaling") or {})}
    problems += [
        f"{key} = {value}: not a finite number"
        for key, value in numbers.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return problems


def _settings(text: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Our settings from their keys; what cannot be said in ours is added to `problems` and left out."""
    if text["model_type"] == llama3.MODEL_TYPE:
        return llama3.settings(text, text.get(OURS) or {}) | _rope(text, problems, llama3.ROPE_THETA)
    found = {ours: text.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
    if isinstance(found["temperature_tuning"], int):
        found["temperature_tuning"] = bool(found["temperature_tuning"])  # the first releases wrote 4 for "on"
    found |= _layers(text, found["num_layers"], problems) | _rope(text, problems, ROPE_THETA)
    found["score_on"] = (text.get(OURS) or {}).get("score_on", "input")
    return found


def _layers(text: Mapping[str, Any], num_layers: int, problems: list[str]) -> dict[str, Any]:
    """Which layers are sparse and which have no positions, as the two intervals that ours knows."""
    layers = range(num_layers)

    step = text.get("interleave_moe_layer_step") or 1
    sparse = text.get("moe_layers")
    if sparse is None:
        sparse = [layer for layer in layers if (layer + 1) % step == 0]
    moe_every = _interval(sparse, num_layers)
    if moe_every is None:
        problems.append(f"moe_layers = {sparse}: only every n-th layer, counted from the n-th, is supported")

    interval = text.get("no_rope_layer_interval") or 4
    ropes = text.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in layers]
    nope_every = _interval([layer for layer, rope in enumerate(ropes[:num_layers]) if not rope], num_layers)
    if nope_every is None or len(ropes) < num_layers:
        problems.append(
            f"no_rope_layers = {ropes}: only 0 at every n-th of {num_layers} layers and 1 elsewhere is read"
        )

    types = text.get("layer_types")
    if types and types != ["chunked_attention" if rope else "full_attention" for rope in ropes[:num_layers]]:
        problems.append(
            f"layer_types = {types}: only chunked_attention with RoPE, full_attention without is supported"
        )
    dense = {} if sparse else {"num_experts": 0}
    return {"moe_every": moe_every or step, "nope_every": nope_every or 0, **dense}


def _interval(members: list[int], num_layers: int) -> int | None:
    """The n for which `members` are layers n-1, 2n-1, ...; 0 when there are none, None when there is no n."""
    if not members:
        return 0
    for n in range(1, num_layers + 1):
        if members == list(range(n - 1, num_layers, n)):
            return n
    return None


def _rope(text: Mapping[str, Any], problems: list[str], default_theta: float) -> dict[str, Any]:
    """Theta and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    rope = text.get("rope_parameters") or {
        "rope_theta": text.get("rope_theta"),
        **(text.get("rope_scaling") or {}),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta") or text.get("rope_theta") or default_theta
    if kind not in ("default", "llama3"):
        problems.append(f"rope_type = {kind!r}: only 'default' and 'llama3' are supported")
    if (part := rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 1))) != 1:
        problems.append(f"partial_rotary_factor = {part}: only 1 is supported")
    if kind != "llama3":
        return {"rope_theta": theta, "rope_scaling": None}
    problems += [f"rope scaling lacks {theirs}" for theirs in SCALING_KEYS.values() if theirs not in rope]
    return {
        "rope_theta": theta,
        "rope_scaling": {ours: rope.get(theirs) for ours, theirs in SCALING_KEYS.items()},
    }


def _unlike_llama3(config: ModelConfig) -> str:
    """Why settings read from LlamaConfig keys are not such a model after all."""
    if config.hidden_size % config.num_heads:
        return (
            f"hidden_size = {config.hidden_size}: not a multiple of num_attention_heads = {config.num_heads}"
        )
    return f"{OURS}.chunk_size = {config.chunk_size}: less than the context, and Llama 3 has no chunks"


def _said_plainly(error: Mapping[str, Any], keys: Mapping[str, tuple[str, Any]]) -> str:
    """A pydantic complaint under Hugging Face's name of the key."""
    ours = str(error["loc"][0]) if error["loc"] else ""
    theirs = keys[ours][0] if ours in keys else ours
    return f"{theirs} = {error['input']!r}: {error['msg']}" if ours else str(error["msg"])


# ------------------------------------------------------------------------------------------- names and layouts


def hf_name(name: str, config: ModelConfig) -> str:
    """A parameter's name in Llama4ForCausalLM, or in LlamaForCausalLM."""
    if llama3.fits(config):
        name = llama3.their_name(name)
    return name if name.startswith("lm_head.") else f"model.{name}"


def to_hf(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Our parameter `name` as they lay it out: the same numbers, of Llama 3's queries and keys in another order."""
    turned = llama3.fits(config) and llama3.is_turned(name)
    return llama3.to_halves(tensor, config.head_size) if turned else tensor


def from_hf(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Their tensor as our parameter `name`."""
    turned = llama3.fits(config) and llama3.is_turned(name)
    return llama3.to_pairs(tensor, config.head_size) if turned else tensor


# ----------------------------------------------------------------------------------------------- weights, out


def save_weights(
    model: Transformer,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    tokens: Mapping[str, int | list[int]] | None = None,
    tokenizer_sha256: str | None = None,
    turns: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and model.safetensors (or its shards) into `directory`, which is made if need be.

    dtype: precision on disk, the weights' own when None. tokens: special token ids for config.json.
    tokenizer_sha256: of the tokenizer.json these weights were trained with; `open_model` holds them to it.
    turns: the most questions in a conversation that taught them to answer in the chat template; 0 for none.
    Tied embeddings are written once, as Hugging Face does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.embed_tokens.weight.dtype
    config = config_to_hf(model.config, tokens) | {"dtype": str(dtype).removeprefix("torch.")}
    told = {"tokenizer_sha256": tokenizer_sha256, "turns": turns or None}
    if told := {key: value for key, value in told.items() if value}:
        config[OURS] = config.get(OURS, {}) | told
    write_json(directory / CONFIG, config)

    shards = list(_shards(model, dtype, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            hf_name(name, model.config): to_hf(name, p.detach(), model.config).to("cpu", dtype).contiguous()
            for name, p in shard.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(p.numel() * dtype.itemsize for p in model.parameters())
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(model: Transformer, dtype: torch.dtype, shard_bytes: int) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters in order, cut before they exceed `shard_bytes`. Tied ones appear once."""
    shard: dict[str, nn.Parameter] = {}
    held = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * dtype.itemsize
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = parameter
        held += size
    yield shard


# ------------------------------------------------------------------------------------------------ weights, in


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    key: str
    shape: list[int]
    dtype: str


READABLE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_weights(
    directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """The model of a weights directory, its activations in the precision of its weights.

    dtype: precision of the weights in memory, as stored when None. Every header is checked before any tensor
    is read, and tensors go one by one into a model without storage, so that memory holds the weights once.
    InputError: settings that are not supported. DamagedError names what is missing, extra or misshapen.
    """
    config = config_from_hf(read_json(directory / CONFIG), str(directory / CONFIG))
    with torch.device("meta"):
        model = Transformer(config)
    stored = _check(model, _headers(directory, config), directory)
    for name, tensor in _read(stored, dtype, device):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(from_hf(name, tensor, config)))
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.compute_dtype = model.embed_tokens.weight.dtype
    model.frequencies = rope_frequencies(config).to(device)
    model.load_LE = torch.full(model.load_LE.shape, 1 / max(config.num_experts, 1), device=device)
    return model


def _headers(directory: Path, config: ModelConfig) -> dict[str, Stored]:
    """What the files hold, under our names. Vision weights are passed over."""
    stored = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a dict)
                    if not key.startswith(("vision_model.", "multi_modal_projector.")):
                        part = tensors.get_slice(key)
                        name = key.removeprefix("language_model.").removeprefix("model.")
                        name = llama3.our_name(name) if llama3.fits(config) else name
                        stored[name] = Stored(file, key, list(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise DamagedError(file, f"not a whole safetensors file ({error})") from None
    return stored


def _check(model: Transformer, stored: dict[str, Stored], directory: Path) -> dict[str, Stored]:
    """Hold the headers against the model; DamagedError lists what does not fit."""
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    problems = [f"{hf_name(name, model.config)}: missing" for name in expected if name not in stored]
    problems += [f"{s.key}: not part of this model" for name, s in stored.items() if name not in expected]
    for name in expected.keys() & stored.keys():
        if stored[name].shape != expected[name]:
            problems.append(
                f"{stored[name].key}: shape {stored[name].shape} where {CONFIG} asks for {expected[name]}"
            )
        if stored[name].dtype not in READABLE:
            problems.append(
                f"{stored[name].key}: stored as {stored[name].dtype}; only {', '.join(READABLE)} are read"
            )
    if problems:
        more = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise DamagedError(
            directory, "the weights do not fit\n" + "\n".join(f"  {p}" for p in problems[:8] + more)
        )
    return stored


def _read(
    stored: dict[str, Stored], dtype: torch.dtype | None, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Tensors under our names, each copied out of the file."""
    for file in sorted({s.file for s in stored.values()}):
        with safe_open(file, framework="pt") as tensors:
            for name, where in stored.items():
                if where.file == file:
                    tensor = tensors.get_tensor(where.key)
                    yield name, tensor.to(device, dtype or tensor.dtype, copy=True)
