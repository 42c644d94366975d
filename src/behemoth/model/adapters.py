"""Low-rank adapters (LoRA, arXiv 2106.09685): the model is frozen, and beside each chosen matrix W learns a product of
two thin ones, W + alpha / rank * B A.

PEFT does it, inside our own modules: the Transformer stays a Transformer, with the same forward. A matrix is wrapped
where it stands. The routed experts' matrices lie stacked in one parameter; there every expert has an A and a B of its
own, and the stack is read as the sum. That sum is made anew in every forward and kept until the backward, so training
holds the adapted experts twice, and reading one token costs as much as making them: sample and save from `merged`.

B begins as zeros, so a fresh adapter changes nothing. Adapters are kept in fp32, whatever the model is kept in.

Left out: routers, embeddings, head and norms, which stay as they are; dropout, which PEFT does not have for experts
and which would make a resumed run another one; DoRA and the other variants.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from behemoth.base.errors import InputError
from behemoth.base.units import some
from behemoth.model.transformer import Experts, Transformer

PARTS = ("attention", "dense", "experts")


@dataclass(frozen=True)
class AdapterSettings:
    """What is adapted and how much. "dense" is every feed-forward that reads all tokens, shared experts included.

    A part that the model does not have is passed over. InputError: a rank or alpha that is not above zero, a part
    that does not exist.
    """

    rank: int
    alpha: float  # the product counts alpha / rank times
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(
                f"an adapter of rank {self.rank} and alpha {self.alpha}: both have to be above zero; "
                "rank = 16, alpha = 32 is a common choice"
            )
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise InputError(
                f"adapter parts {list(self.parts)}: at least one of {', '.join(PARTS)}, and nothing else"
            )


def part_of(name: str) -> str | None:
    """The part that a weight belongs to; None where no adapter goes."""
    if ".self_attn." in name:
        return "attention"
    if ".experts." in name:
        return "experts"
    return "dense" if ".feed_forward." in name and ".router." not in name else None


def places(model: Transformer, parts: Sequence[str] = PARTS) -> list[str]:
    """What can be adapted, or is: names of matrices (without ".weight") and of stacked experts."""
    names = (name.replace(".base_layer", "") for name, _ in model.named_parameters() if ".lora_" not in name)
    return [name.removesuffix(".weight") for name in names if part_of(name) in parts]


# ------------------------------------------------------------------------------------------------- on and off


def add_adapter(model: Transformer, settings: AdapterSettings, seed: int) -> None:
    """Put a fresh adapter on `model`, in place; nothing but the adapter requires a gradient afterwards.

    InputError: the model has an adapter already, or none of the parts.
    """
    chosen = places(model, settings.parts)
    if not chosen:
        raise InputError(
            f"adapter parts {list(settings.parts)}: this model has none of them (no experts); "
            "a dense model has attention and dense"
        )
    insert(model, chosen, settings.rank, settings.alpha, seed)


def insert(model: Transformer, chosen: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    """`add_adapter` for some of `places(model)`."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and only wanted here

    if adapter_parameters(model):
        raise InputError("the model has an adapter already; merge it or remove it first")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        target_modules=[name for name in chosen if part_of(name) != "experts"],
        target_parameters=[name for name in chosen if part_of(name) == "experts"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()


def remove_adapter(model: Transformer) -> None:
    """Take the adapter off: bit for bit the model it was put on, all of it trainable."""
    _unwrap(model, merge=False)


@torch.no_grad()
def merged(model: Transformer) -> Transformer:
    """A plain copy with the adapter folded into the weights, in their precision; `model` is not touched."""
    plain = copy.deepcopy(model)
    _unwrap(plain, merge=True)
    return plain


def _unwrap(model: Transformer, merge: bool) -> None:
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            layer: Any = module
            while isinstance(layer, LoraLayer):
                if merge:
                    layer.merge()
                layer = layer.base_layer
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, layer)
    for experts in model.modules():
        if isinstance(experts, Experts):  # a forward under an adapter takes the two out and puts them back
            experts._parameters = {name: experts._parameters[name] for name in ("gate_up_proj", "down_proj")}
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


# ------------------------------------------------------------------------------------------------ its numbers


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by their names in `model.named_parameters()`; empty where there is no adapter.

    A matrix has A (rank, in) and B (out, rank). Of E stacked experts, kept as (E, in, out), PEFT's A is
    (E * rank, out) and its B (in, rank * E): W[e] + alpha / rank * B[:, :, e] A[e], with A as (E, rank, out) and B as
    (in, rank, E). The two stacks of a layer are wrapped one in the other, gate and up inside ("base_layer").
    """
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def adapter_state(model: Transformer) -> dict[str, Tensor]:
    """The adapter's tensors, for a checkpoint."""
    return {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}


@torch.no_grad()
def load_adapter_state(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Fill the adapter of `model` with the tensors of an `adapter_state`. InputError where they do not fit it."""
    found = adapter_parameters(model)
    wrong = [name for name in found if name not in tensors or tensors[name].shape != found[name].shape]
    wrong += [name for name in tensors if name not in found]
    if wrong:
        raise InputError(
            f"the saved adapter is not this model's: {some(wrong)} missing, misshapen or unknown; "
            "add the adapter with the settings it was trained with"
        )
    for name, parameter in found.items():
        parameter.copy_(tensors[name])
