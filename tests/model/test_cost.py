"""Costs by arithmetic, against the model itself on the meta device and against the announced figures."""

from pathlib import Path

import pytest
import torch

from behemoth.model.config import ModelConfig
from behemoth.model.cost import (
    attention_flops,
    cache_bytes,
    count_parameters,
    forward_flops,
    keys_read,
    optimizer_bytes,
    training_flops,
)
from behemoth.model.transformer import Transformer
from behemoth.recipe import load_recipe, resolve

RECIPES = Path(__file__).parents[2] / "recipes"
ANNOUNCED = {  # parameters in total and active; Behemoth: "nearly two trillion" and 288B
    "scout": (107.77e9, 17.17e9),
    "maverick": (400.71e9, 17.18e9),
    "behemoth-2t": (1.99e12, 288.5e9),
}


def recipe_model(name: str) -> ModelConfig:
    return resolve(load_recipe(RECIPES / f"{name}.toml")).model


@pytest.mark.parametrize("name", ["quickstart", "moe-400m", *ANNOUNCED])
def test_count_equals_the_meta_device(name):
    config = recipe_model(name)
    assert count_parameters(config).total == parameters_on_meta(config)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_embeddings": True},
        {"num_experts": 0},
        {"moe_every": 2},
        {"experts_per_token": 2},
        {"num_kv_heads": 1, "head_size": 16},
    ],
    ids=str,
)
def test_count_equals_the_meta_device_when_fields_change(tiny_config, change):
    config = tiny_config.model_copy(update=change)
    assert count_parameters(config).total == parameters_on_meta(config)


def parameters_on_meta(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


@pytest.mark.parametrize("name", ANNOUNCED)
def test_announced_figures(name):
    counts, (total, active) = count_parameters(recipe_model(name)), ANNOUNCED[name]
    assert counts.total == pytest.approx(total, rel=2e-3)
    assert counts.active == pytest.approx(active, rel=2e-3)


def test_scout_without_its_input_embedding():
    assert count_parameters(recipe_model("scout")).active_in_matmuls == pytest.approx(16.14e9, rel=1e-3)


def test_a_sparse_model_has_a_sparse_layer(tiny_config):
    fields = tiny_config.model_dump()
    assert ModelConfig(**fields | {"moe_every": 4}).sparse_layers == [3]
    assert ModelConfig(**fields | {"moe_every": 5, "num_experts": 0}).sparse_layers == []
    with pytest.raises(ValueError, match="moe_every = 5 is more than num_layers = 4, so that no layer"):
        ModelConfig(**fields | {"moe_every": 5})


def test_a_dense_model_is_all_active(tiny_config):
    counts = count_parameters(tiny_config.model_copy(update={"num_experts": 0}))
    assert counts.active == counts.total


@pytest.mark.parametrize("row_length", [1, 7, 16, 24, 32, 40])
def test_keys_read_counts_the_mask(tiny_config, row_length):
    """Against the mask written out: a key is read if it is not later and, in chunks, of the same chunk."""
    for layer in range(tiny_config.num_layers):
        chunk = tiny_config.chunk_size if tiny_config.has_rope(layer) else row_length
        pairs = sum(j <= i and i // chunk == j // chunk for i in range(row_length) for j in range(row_length))
        assert keys_read(tiny_config, layer, row_length) == pytest.approx(pairs / row_length)


def test_a_dense_forward_multiplies_every_matrix_once(tiny_config):
    config = tiny_config.model_copy(update={"num_experts": 0})
    weights = sum(
        p.numel() for name, p in meta_parameters(config) if p.ndim == 2 and "embed_tokens" not in name
    )
    row = config.context_length
    assert forward_flops(config, row) - attention_flops(config, row) == 2 * weights
    assert training_flops(config, row) == 3 * forward_flops(config, row)


def meta_parameters(config: ModelConfig) -> list[tuple[str, torch.nn.Parameter]]:
    with torch.device("meta"):
        return list(Transformer(config).named_parameters())


def test_scout_attention_share():
    """Scout at 8192 tokens a row: 96.8 GFLOP of weights and 12.1 of attention per training token."""
    scout = recipe_model("scout")
    assert 3 * attention_flops(scout, 8192) == pytest.approx(12.1e9, rel=0.01)
    assert 3 * attention_flops(scout, 65_536) == pytest.approx(33.2e9, rel=0.01)
    assert training_flops(scout, 8192) == pytest.approx((96.8 + 12.1) * 1e9, rel=0.01)


def test_optimizer_state(tiny_config):
    total = count_parameters(tiny_config).total
    assert optimizer_bytes(tiny_config, "adamw") == 8 * total
    assert 4 * total < optimizer_bytes(tiny_config, "muon") < 8 * total


def test_cache_keeps_a_chunk(tiny_config):
    per_slot = 2 * tiny_config.num_kv_heads * tiny_config.head_size * 2
    assert cache_bytes(tiny_config, 8) == 4 * 8 * per_slot
    assert cache_bytes(tiny_config, 100) == (3 * 16 + 100) * per_slot
