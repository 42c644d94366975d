"""What a recipe will do, before it does anything: every value with its reason, and what the models cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from behemoth.base.config import nearest
from behemoth.base.errors import InputError
from behemoth.base.logs import table
from behemoth.base.units import human_bytes, human_count
from behemoth.model.config import ModelConfig
from behemoth.model.cost import cache_bytes, count_parameters, forward_flops, training_bytes, training_flops
from behemoth.recipe import Resolved, Setting, load_recipe, resolve, settings


def explain(path: Path, key: str, overrides: Iterable[str], as_json: bool) -> None:
    """Print the recipe's values, or those under `key`; without a key also what its models cost."""
    recipe = load_recipe(path, overrides)
    resolved = resolve(recipe, where=str(path))
    chosen = matching(settings(resolved), key)
    costs = {} if key else {name: cost(model, resolved) for name, model in models(resolved).items()}
    if as_json:
        values = {setting.key: {"value": setting.value, "reason": setting.reason} for setting in chosen}
        print(json.dumps({"settings": values, "models": costs, "steps": resolved.steps}, ensure_ascii=False))
        return
    rows = [(setting.key, setting.value, setting.reason) for setting in chosen]
    table(str(path), ["key", "value", "reason"], rows)
    if costs:
        _print_costs(resolved, costs)
        print(budget(resolved, in_minutes=recipe.train.minutes is not None))


def matching(found: list[Setting], key: str) -> list[Setting]:
    """The settings whose key is `key`, lies under it or ends with it; InputError if there is none."""
    chosen = [s for s in found if f".{key}." in f".{s.key}."] if key else found
    if not chosen:
        keys = [setting.key for setting in found]
        hint = nearest(key, [*keys, *(name.rsplit(".", 1)[-1] for name in keys)])
        raise InputError(f"{key}: the recipe has no such key" + (hint if "did you mean" in hint else ""))
    return chosen


def models(resolved: Resolved) -> dict[str, ModelConfig]:
    return {"teacher": resolved.model} | {student.name: student.model for student in resolved.students}


def cost(model: ModelConfig, resolved: Resolved) -> dict[str, float]:
    """Counts, operations and bytes of one model in this run; memory is without activations."""
    train = resolved.train
    counts = count_parameters(model)
    averaged = bool(resolved.students) and model is resolved.model
    return {
        "parameters": counts.total,
        "active_parameters": counts.active,
        "active_parameters_without_input_embedding": counts.active_in_matmuls,
        "forward_flops_per_token": forward_flops(model, train.context_length),
        "training_flops_per_token": training_flops(model, train.context_length),
        "training_bytes": training_bytes(model, train.optimizer, averaged),
        "weight_bytes_bf16": 2 * counts.total,
        "cache_bytes_per_sequence_bf16": cache_bytes(model, train.context_length),
    }


def _print_costs(resolved: Resolved, costs: dict[str, dict[str, float]]) -> None:
    labels = {
        "parameters": ("parameters", human_count),
        "active_parameters": ("of these active for one token", human_count),
        "active_parameters_without_input_embedding": ("active without the input embedding", human_count),
        "forward_flops_per_token": ("FLOPs per token, forward", human_count),
        "training_flops_per_token": ("FLOPs per token, training", human_count),
        "training_bytes": ("weights, gradients, optimizer (fp32)", human_bytes),
        "weight_bytes_bf16": ("weights alone in bf16", human_bytes),
        "cache_bytes_per_sequence_bf16": ("key/value cache of one row (bf16)", human_bytes),
    }
    rows = [[label, *(human(c[name]) for c in costs.values())] for name, (label, human) in labels.items()]
    table("Cost, by arithmetic", ["", *costs], rows)
    parts = {name: count_parameters(model).parts for name, model in models(resolved).items()}
    kinds = list(parts["teacher"])
    rows = [[kind, *(human_count(parts[name][kind].total) for name in parts)] for kind in kinds]
    table("Parameters by part", ["", *parts], rows)


def budget(resolved: Resolved, in_minutes: bool) -> str:
    """The run in one sentence; a budget in minutes becomes tokens by a speed that only the run knows."""
    if not resolved.steps:
        return f"nothing is pretrained; the model is {resolved.recipe.model.path}"
    per_step = resolved.train.tokens_per_step
    why = f"; the recipe gives {resolved.reasons['train.tokens']}" if in_minutes else ""
    return (
        f"{resolved.steps:,} steps of {per_step:,} tokens "
        f"({resolved.rows_per_step:,} rows of {resolved.train.context_length:,}), "
        f"{human_count(resolved.steps * per_step)} tokens in all{why}"
    )
