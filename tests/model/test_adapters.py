"""An adapter learns beside a frozen model, can be folded in, and can be taken off without a trace."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.base.errors import InputError
from behemoth.inference.engine import Engine
from behemoth.model import llama3
from behemoth.model.adapters import (
    PARTS,
    AdapterSettings,
    adapter_parameters,
    adapter_state,
    add_adapter,
    insert,
    load_adapter_state,
    merged,
    part_of,
    places,
    remove_adapter,
)
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import load_weights, save_weights

SETTINGS = AdapterSettings(rank=3, alpha=6)
SHAPES: dict[str, dict[str, Any]] = {
    "like Scout": {},
    "like Maverick, two experts a token, tied": {
        "moe_every": 2,
        "experts_per_token": 2,
        "tie_embeddings": True,
        "expert_size": 24,
        "qk_norm": False,
    },
    "like Llama 3": {"num_experts": 0, "nope_every": 0, "qk_norm": False, "chunk_size": 32},
}


@pytest.fixture
def imported(tiny_config: ModelConfig, tmp_path: Path) -> Callable[..., Transformer]:
    """`imported(shape)`: a model of that shape, as read from its Hugging Face directory."""

    def make(shape: str = "like Scout", dtype: torch.dtype | None = None) -> Transformer:
        config = tiny_config.model_copy(update=SHAPES[shape])
        model = Transformer(config).initialise(torch.Generator().manual_seed(0))
        save_weights(model, tmp_path / "base", dtype=dtype)
        assert llama3.fits(config) == (shape == "like Llama 3")
        return load_weights(tmp_path / "base")

    return make


def fill(model: Transformer, parts: tuple[str, ...] = PARTS, std: float = 0.2) -> None:
    """An adapter as if it had been trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in adapter_parameters(model).items():
        if ".lora_B." in name and part_of(name) in parts:
            parameter.data.normal_(0, std, generator=generator)


def rows() -> Tensor:
    return torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(1))


def logits(model: Transformer) -> Tensor:
    return model.logits(model(rows()).hidden_BTD)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.detach().float() - b.detach().float()).abs().max())


def learn(model: Transformer, steps: int = 1) -> None:
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=0.01)
    for _ in range(steps):
        F.cross_entropy(logits(model)[:, :-1].flatten(0, 1), rows()[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_is_unmerged(imported: Callable[..., Transformer], shape: str) -> None:
    model = imported(shape)
    before = copy.deepcopy(model.state_dict())
    add_adapter(model, SETTINGS, seed=0)
    fill(model)
    plain, under = merged(model), logits(model)
    assert type(plain) is Transformer and not hasattr(plain, "peft_config")
    assert list(plain.state_dict()) == list(before) and all(p.requires_grad for p in plain.parameters())
    assert largest(logits(plain), under) < 1e-5 * max(1, float(under.detach().abs().max()))
    assert (plain.lm_head.weight is plain.embed_tokens.weight) == model.config.tie_embeddings
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if part_of(name)}
    assert torch.equal(logits(model), under)  # merging left it alone


@pytest.mark.parametrize("shape", SHAPES)
def test_the_base_is_as_it_was_to_the_last_bit(imported: Callable[..., Transformer], shape: str) -> None:
    model = imported(shape)
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_parameters()]
    first = logits(model)
    add_adapter(model, SETTINGS, seed=0)
    assert torch.equal(logits(model), first)  # B is zero
    own = {name: tuple(p.shape) for name, p in adapter_parameters(model).items()}
    learn(model, steps=2)
    assert largest(logits(model), first) > 1e-3
    remove_adapter(model)
    after = model.state_dict()
    assert [name for name, _ in model.named_parameters()] == names and list(after) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert torch.equal(logits(model), first) and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    add_adapter(model, SETTINGS, seed=0)  # names do not depend on what was there before
    assert {name: tuple(p.shape) for name, p in adapter_parameters(model).items()} == own


def test_one_stack_alone_leaves_the_order_of_the_two(imported: Callable[..., Transformer]) -> None:
    """A forward under an adapter on one puts it behind the other; PEFT's names follow the order."""
    model = imported()
    names = [name for name, _ in model.named_parameters()]
    insert(model, [name for name in names if "gate_up" in name], rank=2, alpha=2, seed=0)
    fill(model)
    logits(model)
    assert [name for name, _ in merged(model).named_parameters()] == names
    remove_adapter(model)
    assert [name for name, _ in model.named_parameters()] == names


def test_what_an_experts_product_is(imported: Callable[..., Transformer]) -> None:
    """PEFT's layout of A and B for a stack (E, in, out), written out, in the weights and in what is computed."""
    model = imported("like Maverick, two experts a token, tied")
    plain, E, r = copy.deepcopy(model), model.config.num_experts, SETTINGS.rank
    add_adapter(model, AdapterSettings(r, 6, ("experts",)), seed=0)
    fill(model)
    found = adapter_parameters(model)
    assert len(found) == 4 * len(model.config.sparse_layers)
    for layer in model.config.sparse_layers:
        owner = f"layers.{layer}.feed_forward.experts"
        for stack, nested in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
            a, b = (found[f"{owner}{nested}.lora_{x}.default.weight"].detach() for x in "AB")
            a, b = a.view(E, r, -1), b.view(-1, r, E)
            weight = plain.get_parameter(f"{owner}.{stack}").data
            for e in range(E):
                weight[e] += 6 / r * (b[:, :, e] @ a[e])
    assert largest(logits(model), logits(plain)) < 1e-5
    for name, weight in merged(model).named_parameters():
        assert largest(weight, plain.get_parameter(name)) < 1e-6, name


@pytest.mark.parametrize("parts", [PARTS, ("attention",), ("dense",), ("experts",)])
def test_only_the_adapter_learns_and_it_does(
    imported: Callable[..., Transformer], parts: tuple[str, ...]
) -> None:
    model = imported("like Maverick, two experts a token, tied")
    add_adapter(model, AdapterSettings(3, 6, parts), seed=0)
    fill(model)
    first, adapter = logits(model), adapter_parameters(model)
    F.cross_entropy(first[:, :-1].flatten(0, 1), rows()[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in adapter)
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in adapter), name
    assert {part_of(name) for name in adapter} == set(parts)
    model.zero_grad()
    learn(model)
    assert largest(logits(model), first) > 1e-3


@pytest.mark.parametrize("parts", PARTS)
def test_a_fresh_one_learns_too(imported: Callable[..., Transformer], parts: str) -> None:
    model = imported()
    first = logits(model)
    add_adapter(model, AdapterSettings(3, 6, (parts,)), seed=0)
    learn(model)
    assert largest(logits(model), first) > 1e-4


def test_no_router_embedding_head_or_norm_is_adapted(imported: Callable[..., Transformer]) -> None:
    model = imported("like Maverick, two experts a token, tied")
    adapted = places(model)
    every = {name.removesuffix(".weight") for name, _ in model.named_parameters()}
    assert {name.rpartition(".")[2] for name in every - set(adapted)} == {
        *("embed_tokens", "router", "norm", "input_layernorm", "post_attention_layernorm")
    }
    add_adapter(model, SETTINGS, seed=0)
    assert sorted(places(model)) == sorted(adapted)
    assert len(adapter_parameters(model)) == 2 * len(adapted)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_engine_says_the_same_merged_or_not(imported: Callable[..., Transformer], shape: str) -> None:
    model = imported(shape)
    add_adapter(model, SETTINGS, seed=0)
    fill(model)
    plain, prompts = Engine(merged(model)), [rows()[0, :5].tolist(), rows()[1, :9].tolist()]
    under = Engine(model)
    assert [c.tokens for c in under.generate(prompts, max_tokens=12)] == [
        c.tokens for c in plain.generate(prompts, max_tokens=12)
    ]
    for a, b in zip(under.logprobs(rows().tolist()), plain.logprobs(rows().tolist()), strict=True):
        assert abs(a - b).max() < 1e-4
    remove_adapter(model)
    answers = [c.tokens for c in Engine(model).generate(prompts, max_tokens=12)]
    assert answers != [c.tokens for c in plain.generate(prompts, max_tokens=12)]


def test_a_bf16_model_has_an_fp32_adapter(imported: Callable[..., Transformer]) -> None:
    model = imported(dtype=torch.bfloat16)
    add_adapter(model, SETTINGS, seed=0)
    fill(model, std=0.02)
    learn(model)
    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.float32}
    plain, first = merged(model), logits(model)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16} == {first.dtype}
    remove_adapter(model)
    assert largest(logits(plain), first) < 0.5 * largest(logits(model), first)


def test_activations_may_be_coarser_than_the_weights(imported: Callable[..., Transformer]) -> None:
    model = imported()
    model.compute_dtype = torch.bfloat16
    add_adapter(model, SETTINGS, seed=0)
    fill(model)
    learn(model)
    assert logits(model).dtype == torch.bfloat16
    assert len(Engine(model).generate([[1, 2, 3]], max_tokens=4)[0].tokens) == 4


def test_the_seed_decides(imported: Callable[..., Transformer]) -> None:
    base = imported()
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))
        model = copy.deepcopy(base)
        expected = torch.random.get_rng_state()
        add_adapter(model, SETTINGS, seed)
        assert torch.equal(torch.random.get_rng_state(), expected)
        states.append(adapter_state(model))
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == (".lora_B." in name) for name in first)


def test_a_state_comes_back(imported: Callable[..., Transformer]) -> None:
    model = imported()
    other = copy.deepcopy(model)
    for seed, one in enumerate((model, other)):
        add_adapter(one, SETTINGS, seed)
    fill(model)
    state = adapter_state(model)
    load_adapter_state(other, {name: tensor.clone() for name, tensor in state.items()})
    assert torch.equal(logits(other), logits(model))
    name = next(iter(state))
    for wrong in (
        {key: tensor for key, tensor in state.items() if key != name},
        state | {name: torch.zeros(1, 1)},
        state | {"another": torch.zeros(1)},
    ):
        with pytest.raises(InputError, match=r"not this model's: (layers.0.self_attn.q_proj|another)"):
            load_adapter_state(other, wrong)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0}, "alpha 0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"parts": ("router",)}, "at least one of attention, dense, experts"),
        ({"parts": ()}, "at least one of attention"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        AdapterSettings(**{"rank": 4, "alpha": 8.0} | settings)


def test_where_no_adapter_can_go(imported: Callable[..., Transformer]) -> None:
    model = imported("like Llama 3")
    with pytest.raises(InputError, match="has none of them"):
        add_adapter(model, AdapterSettings(4, 8, ("experts",)), seed=0)
    add_adapter(model, SETTINGS, seed=0)
    with pytest.raises(InputError, match="has an adapter already"):
        add_adapter(model, SETTINGS, seed=0)
