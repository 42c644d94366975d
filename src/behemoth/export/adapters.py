"""Adapters in PEFT's own format, out and in.

A directory of `adapter_config.json` and `adapter_model.safetensors` that fits the Hugging Face directory of the same
base model: names are transformers' (`model/weights`), and for Llama 3's queries and keys the rows of B have its order.
PEFT nests what it puts on a layer's two stacks of experts in the order of the parameters, which is one in both models.

Read strictly: a setting that would change what the adapter computes is refused by name, and every weight that the
configuration names has to be in the file: an adapter whose experts were lost on the way would load all the same.

Left out: pickled adapters (.bin), and every method of PEFT but plain LoRA and its rank-stabilised scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import read_json, write_json
from behemoth.base.units import some
from behemoth.model.adapters import adapter_parameters, insert, part_of, places, remove_adapter
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import from_hf, hf_name, to_hf

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapping around transformers' model

TARGETS, STACKS = "target_modules", "target_parameters"
READ = {"peft_type", "r", "lora_alpha", "use_rslora", TARGETS, STACKS, "init_lora_weights", "bias"}
# Settings without a say in what a trained adapter computes. Any other has to be empty.
IDLE = {
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
}
STARTS = (True, False, "gaussian")  # from the others the base model's weights change as well
SUPPORTED = (
    f"supported is plain LoRA, {TARGETS} a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, "
    f"{STACKS} a list of experts.gate_up_proj, experts.down_proj"
)


# ------------------------------------------------------------------------------------------------------------- out


def save_adapter(model: Transformer, directory: Path, base: str | Path) -> None:
    """Write the adapter of `model` into `directory`, which is made if need be.

    base: the Hugging Face directory of the model without the adapter, where PEFT will look for it.
    """
    from peft import LoraConfig

    config, parameters = model.config, adapter_parameters(model)
    used: Any = model.peft_config["default"]  # type: ignore[index]
    adapted = {_place(model, name) for name in parameters}
    short = {_short(place) for place in adapted}
    everywhere = {place for place in places(model) if _short(place) in short} == adapted
    told = sorted(short if everywhere else (hf_name(place, config) for place in adapted))
    LoraConfig(
        r=used.r,
        lora_alpha=used.lora_alpha,
        target_modules=[name for name in told if "experts." not in name],
        target_parameters=[name for name in told if "experts." in name] or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    ).save_pretrained(str(directory))
    # PEFT keeps a set, whose order is another in every process.
    written = read_json(directory / ADAPTER_CONFIG)
    write_json(directory / ADAPTER_CONFIG, written | {TARGETS: sorted(written[TARGETS])})
    tensors = {
        _key(name, config): _rows(to_hf, name, parameter.detach(), config).cpu().contiguous()
        for name, parameter in parameters.items()
    }
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _place(model: Transformer, name: str) -> str:
    """Which of `places` an adapter's parameter belongs to."""
    owner = name.partition(".lora_")[0]
    plain = owner.replace(".base_layer", "")
    return f"{plain}.{model.get_submodule(owner).parameter_name}" if part_of(name) == "experts" else plain


def _short(place: str) -> str:
    """The end of a name, which means it in every layer."""
    return ".".join(place.split(".")[-2 if part_of(place) == "experts" else -1 :])


def _key(name: str, config: ModelConfig) -> str:
    """PEFT's name of an adapter's parameter in a file."""
    return PREFIX + hf_name(name.replace(".default", ""), config)


def _rows(
    order: Callable[[str, Tensor, ModelConfig], Tensor], name: str, tensor: Tensor, config: ModelConfig
) -> Tensor:
    """B has the rows of the weight it is added to, and their order; A has none of them."""
    return order(name.partition(".lora_")[0] + ".weight", tensor, config) if ".lora_B." in name else tensor


# -------------------------------------------------------------------------------------------------------------- in


def load_adapter(model: Transformer, directory: Path) -> None:
    """Put the adapter in `directory` on `model`, in place, as `add_adapter` does a fresh one.

    InputError: settings or targets that are not supported, each named. DamagedError: tensors that are missing,
    misshapen, or of nothing that the settings name. The model is then as it was.
    """
    settings = read_json(directory / ADAPTER_CONFIG)
    rank, alpha, chosen = _settings(settings, model, directory / ADAPTER_CONFIG)
    tensors = _tensors(directory / ADAPTER_WEIGHTS)
    insert(model, chosen, rank, alpha, seed=0)
    try:
        _fill(model, tensors, directory / ADAPTER_WEIGHTS)
    except DamagedError:
        remove_adapter(model)
        raise


def _settings(found: Any, model: Transformer, where: Path) -> tuple[int, float, list[str]]:
    """Rank, alpha and the places that an adapter_config.json names."""
    if not isinstance(found, Mapping) or found.get("peft_type") != "LORA":
        raise InputError(f"{where} is not a LoRA adapter; {SUPPORTED}")
    wanted = {kind: found.get(kind) or [] for kind in (TARGETS, STACKS)}
    problems = [
        f"{kind} = {names!r}: not a list" for kind, names in wanted.items() if not isinstance(names, list)
    ]
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        problems.append(f"r = {rank!r}, lora_alpha = {alpha!r}: not a rank and a number")
    if found.get("init_lora_weights", True) not in STARTS:
        problems.append(
            f"init_lora_weights = {found['init_lora_weights']!r}: its base is not the released one"
        )
    problems += [
        f"{key} = {value!r}"
        for key, value in found.items()
        if (key not in READ | IDLE and value) or (key == "bias" and value != "none")
    ]
    chosen: list[str] = []
    for kind, names in wanted.items() if not problems else ():
        theirs = {place: hf_name(place, model.config) for place in places(model)}
        mine = {p: name for p, name in theirs.items() if (part_of(p) == "experts") == (kind == STACKS)}
        meant = {t: [p for p, name in mine.items() if f".{name}".endswith(f".{t}")] for t in names}
        problems += [
            f"{kind}: this model has no {name} to adapt" for name, found_at in meant.items() if not found_at
        ]
        chosen += sorted({place for found_at in meant.values() for place in found_at})
    if problems or not chosen:
        told = "\n".join(f"  {problem}" for problem in problems or ["it names nothing to adapt"])
        raise InputError(f"{where} is not an adapter that can be put on this model\n{told}\n{SUPPORTED}")
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    return rank, alpha * math.sqrt(rank) if found.get("use_rslora") else alpha, chosen


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; save the adapter with PEFT's save_pretrained, as safetensors"
        )
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise DamagedError(path, f"not a whole safetensors file ({error})") from None
    # an adapter of a Llama 4 with eyes: its text part is what we have
    return {PREFIX + key.removeprefix(PREFIX).removeprefix("language_model."): x for key, x in found.items()}


@torch.no_grad()
def _fill(model: Transformer, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = {_key(name, model.config): (name, p) for name, p in adapter_parameters(model).items()}
    wrong = [f"{key}: missing" for key in parameters if key not in tensors]
    wrong += [f"{key}: not named in {ADAPTER_CONFIG}" for key in tensors if key not in parameters]
    wrong += [
        f"{key}: shape {list(tensors[key].shape)} where the model asks for {list(p.shape)}"
        for key, (_, p) in parameters.items()
        if key in tensors and tensors[key].shape != p.shape
    ]
    if wrong:
        raise DamagedError(path, f"the tensors do not fit: {some(wrong)}")
    for key, (name, parameter) in parameters.items():
        parameter.copy_(_rows(from_hf, name, tensors[key], model.config))
