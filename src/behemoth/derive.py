"""The rules that turn a few numbers into a model's shape and a run's batches: pure functions, no torch.

First guesses that are good enough to start from (Llama 4's proportions, the exponents of published scaling
studies), not results of a search. `recipe.py` asks them for what a recipe leaves open, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import log, log2, sqrt
from typing import Any

from pydantic import ValidationError

from behemoth.model.config import ModelConfig
from behemoth.model.cost import count_parameters

MICROBATCH_TOKENS = 16_384  # one forward's worth that fits beside a small model on any machine
SIZE_TOLERANCE = 1.02  # a size is a round number: 4,002,944 parameters are "4M"
# Widths of whole heads, an even number of them from 256 on; finer where models are small.
WIDTHS = [*range(32, 256, 32), *range(256, 512, 64), *range(512, 2048, 128), *range(2048, 32_769, 256)]


# --- a shape ------------------------------------------------------------------------------------------------


def vocabulary_rule(size: int) -> int:
    """The power of two nearest the square root of the size, from 1024 to 131,072."""
    return 2 ** max(10, min(17, round(log2(sqrt(size)))))


def candidates(
    size: int, given: Mapping[str, Any], vocab_size: int, context: int | None
) -> list[ModelConfig]:
    """Every width, with depths from half to one and a half times the usual, up to the first above `size`."""
    shapes: list[ModelConfig] = []
    for hidden_size in WIDTHS:
        usual = depth_rule(hidden_size)
        depths = [n for n in range(4, round(1.5 * usual) + 1, 4) if n >= 0.5 * usual] or [4]
        for num_layers in [given["num_layers"]] if "num_layers" in given else depths:
            with suppress(ValidationError):  # explicit heads may fit some widths and not others
                place = {"hidden_size": hidden_size, "num_layers": num_layers}
                shapes.append(shape({**given, **place}, vocab_size, context))
                if count_parameters(shapes[-1]).total > size * SIZE_TOLERANCE:
                    break  # deeper is larger still
    return shapes


def best_fit(shapes: list[ModelConfig], size: int) -> ModelConfig | None:
    """Of the shapes that fill nine tenths of `size`, the one of usual depth; else the largest that fits."""
    totals = [(count_parameters(shape).total, shape) for shape in shapes]
    fitting = [(total, shape) for total, shape in totals if total <= size * SIZE_TOLERANCE]
    full = [shape for total, shape in fitting if total >= 0.9 * size]
    if full:
        return min(full, key=lambda shape: abs(log(shape.num_layers / depth_rule(shape.hidden_size))))
    return max(fitting, key=lambda pair: pair[0], default=(0, None))[1]


def shape(given: Mapping[str, Any], vocab_size: int, context: int | None) -> ModelConfig:
    """The whole configuration of one `hidden_size`, by Llama 4's proportions where `given` says nothing else.

    `context` is the rows' length, if known. Raises pydantic's ValidationError.
    """
    hidden_size = given["hidden_size"]
    head_size = given.get("head_size", 32 if hidden_size < 512 else 64 if hidden_size < 2048 else 128)
    num_heads = given.get("num_heads", max(1, hidden_size // head_size))
    wide = hidden_size >= 1024
    expert_size = given.get("expert_size", -(-8 * hidden_size // 5 // 128) * 128 if wide else 2 * hidden_size)
    row = given.get("context_length") or context or context_rule(hidden_size)
    chunk_size = given.get("chunk_size", min(8192, max(1, row // 4)))
    derived = {
        "vocab_size": vocab_size,
        "num_layers": max(4, 4 * round(depth_rule(hidden_size) / 4)),
        "num_heads": num_heads,
        "num_kv_heads": kv_heads_rule(num_heads, hidden_size),
        "head_size": head_size,
        "expert_size": expert_size,
        "dense_size": (1 + given.get("experts_per_token", 1)) * expert_size,
        "num_experts": 8,
        "chunk_size": chunk_size,
        "temperature_floor": chunk_size,
        "rope_theta": 10_000.0 if row <= 8192 else 500_000.0,
        "tie_embeddings": False,
        "context_length": row,
    }
    return ModelConfig.model_validate({**derived, **given})


def depth_rule(hidden_size: int) -> float:
    """Layers for a width: 48 at Scout's 5120, growing as width to the 0.6 (so 5 at 128 and 96 at 16384)."""
    return 48 * (hidden_size / 5120) ** 0.6


def kv_heads_rule(num_heads: int, hidden_size: int) -> int:
    """Two query heads share a key/value head in small models, four or more in large; at most eight kept."""
    most = max(1, num_heads // 2 if hidden_size < 512 else min(8, num_heads // 4))
    return max(divisor for divisor in range(1, most + 1) if num_heads % divisor == 0)


def context_rule(hidden_size: int) -> int:
    return 256 if hidden_size < 256 else 1024 if hidden_size < 1024 else 2048 if hidden_size < 2048 else 8192


# --- a run --------------------------------------------------------------------------------------------------


def rows_rule(tokens: int, context: int) -> int:
    """Rows of a step: a power of two of them, of about 2 x sqrt(tokens) tokens together."""
    return 2 ** max(0, round(log2(2 * sqrt(tokens) / context)))


def microbatches_rule(rows: int, context: int) -> int:
    """The smallest divisor of `rows` that keeps one forward within MICROBATCH_TOKENS (or at one row)."""
    most = max(1, MICROBATCH_TOKENS // context)
    return next(
        n for n in range(max(1, rows // most), rows + 1) if rows % n == 0 and (rows // n <= most or n == rows)
    )


def nearest_divisor(rows: int, wanted: int) -> int:
    return min((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: abs(n - wanted))


def average_rule(steps: int) -> float:
    """A decay that remembers about one twelfth of the steps."""
    return round(max(0.9, min(0.9995, 1 - 12 / steps)), 4)


# --- post-training ------------------------------------------------------------------------------------------


LARGE = 512  # width, from which the published rates of post-training are meant


def rates_rule(
    stage: str, optimizer: str, hidden_size: int, adapter: bool, opened: bool
) -> dict[str, tuple[float, str]]:
    """The learning rates of a stage: of the matrices inside the blocks, and of everything else.

    opened: the weights came from elsewhere; where they are large too, the field's values for those (Llama 3, Tulu 3).
    """
    if optimizer == "muon":
        falls = float(f"{6e-3 * (128 / hidden_size) ** (2 / 3):.3g}")
        both = (0.014, "a little above pretraining's, for few steps"), (falls, "a third of pretraining's")
    elif adapter:
        rate = {"sft": 2e-4, "rl": 2e-5, "dpo": 2e-5}[stage]
        both = ((rate, "the usual one for adapters"),) * 2
    elif opened and hidden_size >= LARGE:
        rate = {"sft": 1e-5, "rl": 1e-6, "dpo": 5e-7}[stage]
        both = ((rate, "the usual one for large models that are trained already"),) * 2
    else:
        at_128 = {"sft": 1e-3, "rl": 7e-5, "dpo": 6e-6}[stage]
        rate = float(f"{at_128 * (128 / hidden_size) ** (2 / 3):.3g}")
        both = ((rate, f"{at_128:g} at width 128, falling as width to the 2/3"),) * 2
    return dict(zip(("learning_rate", "adam_learning_rate"), both, strict=True))
