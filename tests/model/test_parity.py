"""The same function as transformers' Llama4ForCausalLM: logits, gradients, names, and every setting that matters.

Tiny models shaped like Scout (sparse everywhere, QK-norm, scaled RoPE) and like Maverick (every second layer, neither),
on rows that cross chunk borders and temperature floors. The oracle is their eager attention without a cache.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Llama4ForCausalLM, Llama4TextConfig

from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_from_hf, config_to_hf, hf_name

SCOUT = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    dense_size=64,
    expert_size=48,
    num_experts=4,
    rope_scaling=RopeScaling(original_context=32),
    rope_theta=1000.0,
    chunk_size=8,
    temperature_floor=8,
    context_length=64,
    init_std=0.15,
)
MAVERICK = SCOUT.model_copy(update={"num_experts": 8, "moe_every": 2, "qk_norm": False, "rope_scaling": None})
SHAPES = {
    "scout": SCOUT,
    "maverick": MAVERICK,
    "top two": SCOUT.model_copy(update={"experts_per_token": 2}),
    "dense": SCOUT.model_copy(update={"num_experts": 0}),
    "tied, one key head": SCOUT.model_copy(update={"tie_embeddings": True, "num_kv_heads": 1}),
}
T = 21  # two chunk borders, two floors, and not a multiple of the chunk


def ours(config: ModelConfig, seed: int = 0) -> Transformer:
    return Transformer(config).initialise(torch.Generator().manual_seed(seed))


def theirs(model: Transformer, attention: str = "eager", **changes: Any) -> Llama4ForCausalLM:
    """Their model with our weights; `changes` are made to its settings."""
    config = Llama4TextConfig(**(config_to_hf(model.config) | changes), attn_implementation=attention)
    oracle = Llama4ForCausalLM(config)
    oracle.load_state_dict(
        {hf_name(name, model.config): tensor for name, tensor in model.state_dict().items()}, strict=True
    )
    return oracle.to(model.embed_tokens.weight.dtype).eval()


def rows(config: ModelConfig, num_rows: int = 2, length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(seed))


def in_bf16(model: Transformer) -> Transformer:
    frequencies = model.frequencies.clone()  # positions stay fp32, as on loading
    model = model.to(torch.bfloat16)
    model.compute_dtype, model.frequencies = torch.bfloat16, frequencies
    return model


def our_logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens_BT).hidden_BTD)


def their_logits(oracle: Llama4ForCausalLM, tokens_BT: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        return oracle(tokens_BT, use_cache=False, **arguments).logits


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_theirs_in_fp32(shape: str) -> None:
    model = ours(SHAPES[shape])
    tokens_BT = rows(model.config)
    logits_BTV = our_logits(model, tokens_BT)
    assert logits_BTV.std() > 0.1  # large enough for 1e-5 to mean something
    assert largest(logits_BTV, their_logits(theirs(model), tokens_BT)) < 1e-5


@pytest.mark.parametrize("shape", ["scout", "maverick"])
def test_bf16_is_as_close_to_them_as_they_are_to_themselves(shape: str) -> None:
    """Our distance to their eager path, at most twice that between their eager and sdpa paths."""
    mine, own = [], []
    for seed in range(4):
        model = in_bf16(ours(SHAPES[shape], seed))
        tokens_BT = rows(model.config, 4, seed=seed)
        eager = their_logits(theirs(model), tokens_BT)
        own.append((their_logits(theirs(model, "sdpa"), tokens_BT) - eager).abs().float())
        mine.append((our_logits(model, tokens_BT) - eager).abs().float())
    assert 0 < torch.cat(mine).max() <= 2 * torch.cat(own).max()
    assert (
        torch.cat(mine).mean() <= 2 * torch.cat(own).mean()
    )  # the largest comes from a token that changed experts


@pytest.mark.parametrize("shape", ["scout", "maverick", "top two"])
def test_every_gradient_is_theirs(shape: str) -> None:
    model = ours(SHAPES[shape])
    oracle, tokens_BT = theirs(model), rows(model.config)
    for logits_BTV in (model.logits(model(tokens_BT).hidden_BTD), oracle(tokens_BT, use_cache=False).logits):
        F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    expected = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        their_gradient = expected[hf_name(name, model.config)].grad
        assert their_gradient.abs().max() > 0, name
        assert largest(parameter.grad, their_gradient) < 1e-5 * max(1, their_gradient.abs().max()), name


@pytest.mark.parametrize("shape", ["scout", "maverick", "dense"])
def test_names_and_shapes_are_theirs(shape: str) -> None:
    model = ours(SHAPES[shape])
    found = {hf_name(name, model.config): tensor.shape for name, tensor in model.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in theirs(model).state_dict().items()}


def test_left_padding_changes_nothing() -> None:
    """Their padded rows, ours without. (Their temperature counts the padding, so its floor is out of reach here.)"""
    model = ours(SCOUT.model_copy(update={"temperature_floor": 1000}))
    tokens_BT = rows(model.config)
    for padding in (1, 5, 8, 11):
        padded = F.pad(tokens_BT, (padding, 0))
        mask = (torch.arange(T + padding) >= padding).long().expand(2, -1)
        logits_BTV = their_logits(theirs(model), padded, attention_mask=mask)[:, padding:]
        assert largest(our_logits(model, tokens_BT), logits_BTV) < 1e-5


# Every setting that changes the computation without changing a shape, and another value for it.
CHANGED = {
    "num_heads": {"num_heads": 8, "num_kv_heads": 4, "head_size": 4},
    "num_kv_heads": {"num_heads": 2, "num_kv_heads": 1, "head_size": 16},
    "head_size": {"num_heads": 16, "num_kv_heads": 8, "head_size": 2},
    "experts_per_token": {"experts_per_token": 3},
    "nope_every": {"nope_every": 3},
    "no layer without positions": {"nope_every": 0},
    "chunk_size": {"chunk_size": 7},
    "rope_theta": {"rope_theta": 100.0},
    "rope_scaling": {"rope_scaling": None},
    "rope_scaling.factor": {"rope_scaling": RopeScaling(original_context=32, factor=2)},
    "rope_scaling.low_freq_factor": {"rope_scaling": RopeScaling(original_context=32, low_freq_factor=0.1)},
    "rope_scaling.high_freq_factor": {"rope_scaling": RopeScaling(original_context=32, high_freq_factor=8)},
    "rope_scaling.original_context": {"rope_scaling": RopeScaling(original_context=4)},
    "qk_norm": {"qk_norm": False},
    "temperature_tuning": {"temperature_tuning": False},
    "temperature_floor": {"temperature_floor": 5},
    "temperature_scale": {"temperature_scale": 0.5},
    "norm_eps": {"norm_eps": 1e-2},
    "tie_embeddings": {"tie_embeddings": True},
}
IN_SHAPES = {
    *("vocab_size", "hidden_size", "num_layers", "dense_size", "expert_size", "num_experts", "moe_every")
}  # a tensor is missing or misshapen when one of these is ignored
NOT_COMPUTED = {"context_length", "init_std"}
NOT_THEIRS = {"score_on"}


@pytest.mark.parametrize("key", CHANGED)
def test_no_setting_is_ignored(key: str) -> None:
    """Changing it changes our logits, and the changed ones are theirs again, with the setting read from a config."""
    model = ours(SCOUT)
    config = config_from_hf(config_to_hf(ModelConfig(**(SCOUT.model_dump() | CHANGED[key]))))
    changed = Transformer(config)
    changed.load_state_dict(model.state_dict())
    tokens_BT = rows(SCOUT)
    assert largest(our_logits(changed, tokens_BT), our_logits(model, tokens_BT)) > 1e-3
    assert largest(our_logits(changed, tokens_BT), their_logits(theirs(changed), tokens_BT)) < 1e-5
    assert largest(our_logits(model, tokens_BT), their_logits(theirs(changed), tokens_BT)) > 1e-3


def test_every_setting_has_a_check() -> None:
    checked = {field for changes in CHANGED.values() for field in changes}
    assert checked | IN_SHAPES | NOT_COMPUTED | NOT_THEIRS == set(ModelConfig.model_fields)
    scaling = {key.partition(".")[2] for key in CHANGED if "." in key}
    assert scaling == set(RopeScaling.model_fields)


def test_score_on_output_is_another_function() -> None:
    model, tokens_BT = ours(SCOUT), rows(SCOUT)
    changed = Transformer(SCOUT.model_copy(update={"score_on": "output"}))
    changed.load_state_dict(model.state_dict())
    assert largest(our_logits(changed, tokens_BT), our_logits(model, tokens_BT)) > 1e-3
