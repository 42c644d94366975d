"""Adapters: that every part of one changes the answers, and that folding it into the weights keeps them.

An adapter on the fused parameters of experts can be added, trained, saved and loaded, and change nothing
(vllm-project/vllm#41754): its own weights look well, and those beside it make up for it in the loss. So each part is
put on a copy alone, without the others. A model that has no adapter of its own gets one that is drawn, which says the
same of the code.
"""

from __future__ import annotations

import copy

import torch

from behemoth.doctor.patient import (
    CLOSE,
    Check,
    Finding,
    NotChecked,
    Patient,
    at_least,
    at_most,
    decided,
    relative,
)
from behemoth.export.adapters import load_adapter
from behemoth.model.adapters import (
    AdapterSettings,
    adapter_parameters,
    adapter_state,
    add_adapter,
    load_adapter_state,
    merged,
    part_of,
)
from behemoth.model.transformer import Transformer

FELT = 1e-6  # of the largest value; an adapter without effect changes not one bit
DRAWN = "a drawn adapter of rank 2"


@torch.no_grad()
def takes_effect(p: Patient) -> Finding:
    """The last hidden states with each part of the adapter alone, against those without any."""
    model = copy.deepcopy(p.learner if p.adapter is None or p.proxy is None else p.model)
    model.compute_dtype = torch.float32
    rows = p.text_BT[:2]
    without_BTD = model(rows).hidden_BTD
    if p.adapter is None:
        draw(model)
    else:
        load_adapter(model, p.adapter)
    whole, changes = copy.deepcopy(adapter_state(model)), {}
    for part in sorted({part_of(name) or "" for name in whole}):
        alone = {name: x if part_of(name) == part else torch.zeros_like(x) for name, x in whole.items()}
        load_adapter_state(model, alone)
        changes[part] = relative(model(rows).hidden_BTD, without_BTD)
    least = min(changes, key=lambda part: changes[part])
    return at_least(
        f"{DRAWN if p.adapter is None else 'its adapter'} on {', '.join(changes)}, each part alone",
        changes[least],
        FELT,
        f"relative change of the last hidden states by the part that changes them least ({least})",
        "it was not trained, or is not reached by the forward: look at its B, and at what PEFT wraps "
        "(model/adapters.py)",
    )


@torch.no_grad()
def merging_keeps(p: Patient) -> Finding:
    """The plain model that an adapter is folded into, against the two of them."""
    model = copy.deepcopy(p.learner)
    draw(model)
    rows = p.text_BT[:2]
    clear_B = decided(model, rows).tolist()
    if not any(clear_B):
        raise NotChecked("every row begins with a token that a router leaves to rounding")
    under_BTD, plain_BTD = model(rows).hidden_BTD, merged(model)(rows).hidden_BTD
    return at_most(
        f"{DRAWN}, {sum(clear_B)} tokens",
        max(relative(plain_BTD[row, :n], under_BTD[row, :n]) for row, n in enumerate(clear_B)),
        CLOSE,
        "largest relative difference of the last hidden states, merged and unmerged",
        "what is saved and sampled from is not what was trained: look at `merged` in model/adapters.py",
    )


def draw(model: Transformer) -> None:
    """An adapter on all there is, as if it had been trained."""
    add_adapter(model, AdapterSettings(rank=2, alpha=2), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapter_parameters(model).items():
        if ".lora_B." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * model.config.init_std)


CHECKS: dict[str, Check] = {
    "every part of an adapter changes the answers": takes_effect,
    "a merged adapter answers as before": merging_keeps,
}
