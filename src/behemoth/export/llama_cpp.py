"""What llama.cpp makes of a GGUF file, in our words: its rules, what they leave of a model, and the model it reads.

llama.cpp takes sizes and weights from the file and the rest of a Llama 4 from its own source: chunks of 8192 tokens, a
temperature that rises every 8192 positions by 0.1, positions in all layers but every fourth, QK-norm unless there are
exactly 128 experts, sigmoid scores on the experts' input, at least one expert and four layers. A model with other
numbers is another function there, and nothing would say so. Where the two are the same up to some token (a row that
ends in its first chunk does not know how long chunks are), the file is limited to that context; where they differ from
the first token on, nothing is written. A dense model without the rest of Llama 4 is llama.cpp's plain `llama`.

`read_back` follows the same rules: it builds from nothing but the file the model that llama.cpp would build, so that
the two can be asked the same. Its table of names is written by hand and the writer's is the `gguf` library's, so that
a weight in the wrong place is found.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36, src/models/llama4.cpp, src/models/llama.cpp, `build_moe_ffn`
in src/llama-graph.cpp, `is_masked_swa` in src/llama-hparams.h. Left out: a sliding window of 0, for which llama4.cpp
has a branch of its own that no model of ours fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import tokenizers
import torch
from tokenizers import Regex, models, pre_tokenizers
from torch import Tensor, nn

from behemoth.base.errors import InputError
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer, rope_frequencies
from behemoth.text.tokenizer import QWEN2_SPLIT

CHUNK = FLOOR = 8192
SCALE = 0.1
NOPE_EVERY = 4
UNNORMED = 128  # experts; with so many, Maverick's number, queries and keys are not normed
NO_CHUNKS = 2**31 - 1

# What llama.cpp reads under the architecture's name, and our word for it.
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "embedding_length": "hidden_size",
    "block_count": "num_layers",
    "feed_forward_length": "dense_size",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.key_length": "head_size",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}
SPARSE_SIZES = {
    "expert_count": "num_experts",
    "expert_used_count": "experts_per_token",
    "expert_feed_forward_length": "expert_size",
    "interleave_moe_layer_step": "moe_every",
}
RULES = {
    "llama4": {
        "score_on": "input",
        "nope_every": NOPE_EVERY,
        "chunk_size": CHUNK,
        "temperature_tuning": True,
        "temperature_floor": FLOOR,
        "temperature_scale": SCALE,
    },
    "llama": {
        "num_experts": 0,
        "score_on": "input",
        "nope_every": 0,
        "qk_norm": False,
        "chunk_size": NO_CHUNKS,
        "temperature_tuning": False,
    },
}

WHOLE = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
}
OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}
GATES, UPS, DOWNS = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"  # (E, out, in) where ours is (E, in, out)
ROPE_FACTORS = "rope_freqs.weight"  # what each frequency is divided by

# llama.cpp's names of the expressions that cut text into pieces, and whether there a piece that is a token skips the
# merges. Its source spells out the contractions in both cases where the tokenizers say (?i:...).
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}| ", r"|\p{N}{1,3}| ")
PIECES = {"qwen2": QWEN2_SPLIT, "llama-bpe": LLAMA3_SPLIT}
SKIPS_MERGES = {"qwen2": False, "llama-bpe": True}
CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


@dataclass(frozen=True)
class Limits:
    """What llama.cpp can compute of a model."""

    architecture: str  # its name for the family
    context: int  # up to so many tokens it computes the same function
    of: int  # and so many the model is meant for
    reasons: tuple[str, ...]  # why that is more; empty where it is not

    def __str__(self) -> str:
        if not self.reasons:
            return f"llama.cpp computes the same function in the whole context of {self.of} tokens"
        return (
            f"llama.cpp computes the same function up to {self.context} tokens, where the model is meant for "
            f"{self.of}: {'; '.join(self.reasons)}"
        )


def check_expressible(config: ModelConfig) -> Limits:
    """What is left of the model in llama.cpp. InputError names every setting that it cannot express at all."""
    if problems := _differences(config):
        raise InputError(
            "this model cannot be written as GGUF: llama.cpp would compute another function\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    found = _borders(config)
    context = min([config.context_length, *found.values()])
    reasons = tuple(reason for reason, end in found.items() if end < config.context_length)
    if context < 1:
        raise InputError(
            "this model cannot be written as GGUF: not even one token is the same in llama.cpp\n"
            + "\n".join(f"  {reason}" for reason in reasons)
        )
    return Limits("llama4" if config.num_experts else "llama", context, config.context_length, reasons)


def _differences(config: ModelConfig) -> list[str]:
    """What differs from the first token on."""
    problems = []
    layers = range(config.num_layers)
    if config.num_experts == 0:
        if not all(map(config.has_rope, layers)):
            problems.append(
                f"nope_every = {config.nope_every}: a dense model has positions in every layer there (its llama4 "
                "wants experts); train with nope_every = 0"
            )
        if config.qk_norm:
            problems.append(
                "qk_norm = true: a dense model has none there (its llama4 wants experts); train with qk_norm = false"
            )
        return problems
    if config.num_layers < NOPE_EVERY:
        problems.append(
            f"num_layers = {config.num_layers}: it fails where no layer is without positions; train with at least 4"
        )
    elif [config.has_rope(layer) for layer in layers] != [(layer + 1) % NOPE_EVERY != 0 for layer in layers]:
        problems.append(
            f"nope_every = {config.nope_every}: there every fourth layer of {config.num_layers} has no positions, "
            "and no other; train with nope_every = 4"
        )
    if config.qk_norm != (config.num_experts != UNNORMED):
        rule = "not normed with 128 experts" if config.qk_norm else "normed unless there are 128 experts"
        problems.append(
            f"qk_norm = {str(config.qk_norm).lower()} with num_experts = {config.num_experts}: there queries and "
            f"keys are {rule}; change one of the two"
        )
    if config.score_on != "input":
        problems.append(
            f"score_on = {config.score_on!r}: there scores are on the experts' input; train with score_on = 'input'"
        )
    return problems


def _borders(config: ModelConfig) -> dict[str, int]:
    """Each setting with a number of its own, and how many tokens of a row do not feel it."""
    if config.num_experts == 0:
        return {f"chunk_size = {config.chunk_size} where its llama has no chunks": config.chunk_size}
    found = {}
    if config.chunk_size != CHUNK:
        found[f"chunk_size = {config.chunk_size} where its own is {CHUNK}"] = min(config.chunk_size, CHUNK)
    # The factor on the queries of position p is 1 while p + 1 is below the floor.
    if not config.temperature_tuning:
        found[f"temperature_tuning = false where its queries grow at {FLOOR} tokens"] = FLOOR - 1
        return found
    same = min(config.temperature_floor, FLOOR) - 1
    if config.temperature_floor != FLOOR:
        found[f"temperature_floor = {config.temperature_floor} where its own is {FLOOR}"] = same
    if config.temperature_scale != SCALE:
        found[f"temperature_scale = {config.temperature_scale:g} where its own is {SCALE}"] = same
    return found


# --------------------------------------------------------------------------------------------------- reading a file


def as_read(config: ModelConfig, limits: Limits) -> dict[str, Any]:
    """The settings of ours that llama.cpp should have after reading the file of this model."""
    sizes = SIZES | (SPARSE_SIZES if config.num_experts else {})
    told = {ours: getattr(config, ours) for ours in sizes.values()}
    return told | {"context_length": limits.context, "qk_norm": config.qk_norm} | RULES[limits.architecture]


def settings_of(fields: Mapping[str, Any]) -> ModelConfig:
    """The model that llama.cpp takes a file's metadata for. KeyError: a key it needs is missing."""
    family = fields["general.architecture"]
    sparse = family == "llama4"
    sizes = SIZES | (SPARSE_SIZES if sparse else {})
    told = {ours: fields[f"{family}.{theirs}"] for theirs, ours in sizes.items()} | RULES[family]
    told.setdefault("qk_norm", told["num_experts"] != UNNORMED)
    return ModelConfig(**{"expert_size": told["dense_size"]} | told)


def read_back(path: Path) -> tuple[dict[str, Any], Transformer]:
    """A file's metadata, and the model that llama.cpp's rules make of it, in fp32."""
    reader = gguf.GGUFReader(path, "c")  # copied on writing, which torch asks for and nobody does
    fields = {key: field.contents() for key, field in reader.fields.items()}
    stored = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    config = settings_of(fields).model_copy(update={"tie_embeddings": "output.weight" not in stored})
    with torch.device("meta"):
        model = Transformer(config)
    factors = stored.pop(ROPE_FACTORS, torch.ones(config.head_size // 2))
    for name, tensor in _parameters(stored).items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.frequencies = rope_frequencies(config) / factors
    model.load_LE = torch.zeros(model.load_LE.shape)
    return fields, model


def _parameters(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under our names and in our layout."""
    found = {}
    for name, tensor in stored.items():
        part, layer = name.removesuffix(".weight"), ""
        if part.startswith("blk."):
            _, number, part = part.split(".")
            layer = f"layers.{number}."
        if part == GATES:
            both = torch.cat([tensor, stored[name.replace(GATES, UPS)]], dim=1)
            found[f"{layer}feed_forward.experts.gate_up_proj"] = both.transpose(1, 2).contiguous()
        elif part == DOWNS:
            found[f"{layer}feed_forward.experts.down_proj"] = tensor.transpose(1, 2).contiguous()
        elif part != UPS:
            known = OF_A_LAYER if layer else WHOLE
            found[f"{layer}{known[part]}.weight"] = tensor
    return found


def encoder_of(fields: Mapping[str, Any]) -> Callable[[str], list[int]]:
    """How llama.cpp makes ids of plain text, from a file's metadata."""
    pre, kinds = fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.token_type"]
    normal = {
        text: number
        for number, text in enumerate(fields["tokenizer.ggml.tokens"])
        if kinds[number] == gguf.TokenType.NORMAL
    }
    merges = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges", [])]
    bpe = tokenizers.Tokenizer(models.BPE(vocab=normal, merges=merges, ignore_merges=SKIPS_MERGES[pre]))
    after_contractions = PIECES[pre][PIECES[pre].index(")") + 1 :]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CONTRACTIONS + after_contractions), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return lambda text: list(bpe.encode(text, add_special_tokens=False).ids)
