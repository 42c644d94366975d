"""An adapter goes to PEFT and comes from PEFT, and means the same on both sides.

The other side is transformers and PEFT on the Hugging Face directory of the same base model, drawn by transformers.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from behemoth.base.errors import DamagedError, InputError
from behemoth.export import imports
from behemoth.export.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from behemoth.model.adapters import (
    AdapterSettings,
    adapter_parameters,
    adapter_state,
    add_adapter,
    merged,
    part_of,
)
from behemoth.model.config import ModelConfig
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf, load_weights

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = ["gate_proj", "up_proj", "down_proj"]
STACKS = ["experts.gate_up_proj", "experts.down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "like Scout": {},
    "like Maverick": {"moe_every": 2, "expert_size": 24},
    "like Llama 3": {"num_experts": 0, "nope_every": 0, "qk_norm": False, "chunk_size": 32},
    "like Llama 3, tied": {
        "num_experts": 0,
        "nope_every": 0,
        "qk_norm": False,
        "chunk_size": 32,
        "tie_embeddings": True,
    },
}


@pytest.fixture
def drawn(tiny_config: ModelConfig, tmp_path: Path) -> Callable[[str], Path]:
    """`drawn(shape)`: the directory of a model that transformers drew and saved."""

    def make(shape: str) -> Path:
        torch.manual_seed(0)
        hf = config_to_hf(tiny_config.model_copy(update=SHAPES[shape]))
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf)).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def fill(named: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for name, parameter in named:
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.2, generator=generator)


def rows() -> Tensor:
    return torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(model: Transformer) -> Tensor:
    return model.logits(model(rows()).hidden_BTD)


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    return model.eval()(rows(), use_cache=False).logits


def base_of(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


def made_by_peft(base: Path, out: Path, **settings: Any) -> Tensor:
    """An adapter drawn, filled and saved by PEFT on the Hugging Face model; returns what it then computes."""
    model = get_peft_model(base_of(base), LoraConfig(**{"r": 3, "lora_alpha": 6} | settings))
    fill(model.named_parameters())
    model.save_pretrained(str(out))
    return theirs(model)


# ------------------------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("shape", SHAPES)
def test_peft_reads_ours(drawn: Callable[[str], Path], shape: str, tmp_path: Path) -> None:
    base = drawn(shape)
    model = load_weights(base)
    first = ours(model)
    add_adapter(model, AdapterSettings(3, 6), seed=0)
    fill(adapter_parameters(model).items())
    meant = ours(model)
    save_adapter(model, tmp_path / "adapter", base)
    settings = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert sorted(settings["target_modules"]) == sorted(ATTENTION + DENSE)
    assert (settings["target_parameters"] or []) == (sorted(STACKS) if model.config.num_experts else [])
    found = PeftModel.from_pretrained(base_of(base), str(tmp_path / "adapter"))
    assert largest(theirs(found), meant) < 1e-5
    assert largest(theirs(found.merge_and_unload()), meant) < 1e-5
    assert largest(meant, first) > 0.1

    again = load_weights(base)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(ours(again), meant)
    state = adapter_state(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter_state(again).items())


@pytest.mark.parametrize("parts", [("experts",), ("attention",), ("dense", "experts")])
def test_peft_reads_some_parts(drawn: Callable[[str], Path], parts: tuple[str, ...], tmp_path: Path) -> None:
    base = drawn("like Maverick")
    model = load_weights(base)
    add_adapter(model, AdapterSettings(2, 5, parts), seed=0)
    fill(adapter_parameters(model).items())
    save_adapter(model, tmp_path / "adapter", base)
    found = PeftModel.from_pretrained(base_of(base), str(tmp_path / "adapter"))
    assert largest(theirs(found), ours(model)) < 1e-5


# -------------------------------------------------------------------------------------------------------------- in


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("like Llama 3", {}),  # what PEFT does unasked: q_proj and v_proj
        ("like Llama 3, tied", {"target_modules": "all-linear"}),
        ("like Llama 3", {"target_modules": ["k_proj"], "lora_dropout": 0.1}),
        ("like Llama 3", {"target_modules": ["model.layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"]}),
        ("like Scout", {"target_modules": ATTENTION + DENSE, "target_parameters": STACKS}),
        ("like Maverick", {"target_modules": DENSE, "target_parameters": STACKS, "use_rslora": True}),
        ("like Maverick", {"target_modules": [], "target_parameters": STACKS}),
        ("like Scout", {"target_modules": ["q_proj"], "target_parameters": STACKS[:1]}),
        ("like Scout", {"target_modules": ["q_proj"], "target_parameters": STACKS[1:]}),
        ("like Scout", {"target_modules": [], "target_parameters": ["layers.1.feed_forward." + STACKS[0]]}),
    ],
)
def test_ours_reads_peft(
    drawn: Callable[[str], Path], shape: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = drawn(shape)
    meant = made_by_peft(base, tmp_path / "theirs", **settings)
    model = load_weights(base)
    first = ours(model)
    load_adapter(model, tmp_path / "theirs")
    assert largest(ours(model), meant) < 1e-5 and largest(meant, first) > 1e-3
    assert largest(ours(merged(model)), meant) < 1e-5

    save_adapter(model, tmp_path / "again", base)  # and as it came it goes out again
    came, went = (load_file(tmp_path / place / ADAPTER_WEIGHTS) for place in ("theirs", "again"))
    assert came.keys() == went.keys() and all(torch.equal(came[key], went[key]) for key in came)
    found = PeftModel.from_pretrained(base_of(base), str(tmp_path / "again"))
    assert sum(".lora_" in name for name, _ in found.named_parameters()) == len(came)
    assert largest(theirs(found), meant) < 1e-5


def edit(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, directory / ADAPTER_WEIGHTS)


def test_an_adapter_of_a_llama_4_with_eyes(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    """There the text part is one level down."""
    base = drawn("like Scout")
    out = tmp_path / "theirs"
    meant = made_by_peft(base, out, target_modules=ATTENTION, target_parameters=STACKS)

    def lower(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace("base_model.model.", "base_model.model.language_model.")] = tensors.pop(key)

    edit(out, lower)
    model = load_weights(base)
    load_adapter(model, out)
    assert largest(ours(model), meant) < 1e-5


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.fixture
def adapter(drawn: Callable[[str], Path], tmp_path: Path) -> tuple[Transformer, Path]:
    """A model and an adapter of ours for it."""
    model = load_weights(drawn("like Scout"))
    owner = copy.deepcopy(model)
    add_adapter(owner, AdapterSettings(3, 6), seed=0)
    save_adapter(owner, tmp_path / "adapter", tmp_path / "base")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is not a LoRA adapter"),
        ({"use_dora": True}, "use_dora = True"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern = "),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
        ({"bias": "all"}, "bias = 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"a_setting_of_next_year": 1}, "a_setting_of_next_year = 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"target_modules": ".*q_proj"}, "target_modules = '.*q_proj': not a list"),
        ({"target_modules": ["q_proj", "router"]}, "this model has no router to adapt"),
        ({"target_modules": ["embed_tokens"]}, "this model has no embed_tokens to adapt"),
        ({"target_modules": ["oj"]}, "this model has no oj to adapt"),
        ({"target_modules": [], "target_parameters": None}, "it names nothing to adapt"),
        ({"r": "eight"}, "r = 'eight'"),
    ],
)
def test_what_cannot_be_put_on_is_named(
    adapter: tuple[Transformer, Path], changes: dict[str, Any], said: str
) -> None:
    model, directory = adapter
    settings = json.loads((directory / ADAPTER_CONFIG).read_text())
    (directory / ADAPTER_CONFIG).write_text(json.dumps(settings | changes))
    with pytest.raises(InputError) as error:
        load_adapter(model, directory)
    assert said in str(error.value) and "supported is plain LoRA" in str(error.value)
    assert not adapter_parameters(model)


def drop_experts(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if part_of(key) == "experts"]:
        del tensors[key]


def misshape(tensors: dict[str, Tensor]) -> None:
    key = min(tensors)
    tensors[key] = tensors[key][:, 1:].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_experts, "experts.base_layer.lora_A.weight: missing"),
        (misshape, "shape [12, 63] where the model asks for [12, 64]"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more: not named in adapter_config.json"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_model_alone(
    adapter: tuple[Transformer, Path], change: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    model, directory = adapter
    first = ours(model)
    edit(directory, change)
    with pytest.raises(DamagedError) as error:
        load_adapter(model, directory)
    assert said in str(error.value)
    assert not adapter_parameters(model) and torch.equal(ours(model), first)


def test_files_that_are_not_there_or_not_whole(adapter: tuple[Transformer, Path]) -> None:
    model, directory = adapter
    (directory / ADAPTER_WEIGHTS).write_bytes(b"half of a file")
    with pytest.raises(DamagedError, match="not a whole safetensors file"):
        load_adapter(model, directory)
    (directory / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(InputError, match="as safetensors"):
        load_adapter(model, directory)
    (directory / ADAPTER_CONFIG).unlink()
    with pytest.raises(InputError, match="no such file"):
        load_adapter(model, directory)


def test_an_adapter_comes_in_with_its_model(
    save_llama3: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`import --adapter`: the run holds what PEFT computes with both."""
    base = save_llama3(tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION + DENSE))
    fill(theirs.named_parameters())
    theirs.save_pretrained(str(tmp_path / "adapter"))
    told = {"verdict": "match", "versions": {}, "checks": []}
    monkeypatch.setattr(
        imports, "_receipt", lambda *_: told
    )  # the base model's own, which has tests of its own
    imports.import_model(base, tmp_path / "run", tmp_path / "adapter")
    ours = open_model(tmp_path / "run").model
    with torch.no_grad():
        tokens = torch.arange(5, 25)[None]
        torch.testing.assert_close(
            ours.logits(ours(tokens).hidden_BTD), theirs(tokens).logits, rtol=0, atol=2e-5
        )
        plain = load_weights(base)
        assert (plain.logits(plain(tokens).hidden_BTD) - theirs(tokens).logits).abs().max() > 1e-3
