"""Training speed on a CPU: our sparse model beside transformers' Llama4ForCausalLM and beside our own dense model.

    python benchmarks/train_cpu.py [--precision fp32|bf16] [--experts 8] [--rounds 7]

Every contender has the same shapes, batch, optimizer (fused AdamW), threads and allocator settings, and they take
turns within one process: a round is one step of each. A ratio is that of the medians of the rounds; the smallest
times are printed beside them. The dense model has the active size of the sparse one: its feed-forward is as wide as
the shared expert and the chosen one together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

from behemoth.data.batch import Batch
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf
from behemoth.objectives.next_token import next_token
from behemoth.train.machine import dtype_of, keep_freed_memory
from behemoth.train.optim import adamw

VOCAB, CONTEXT, ROWS = 4096, 256, 16


def config(experts: int, width: int = 256) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_layers=4,
        num_heads=width // 32,
        num_kv_heads=width // 64,
        head_size=32,
        dense_size=4 * width,
        expert_size=2 * width,
        num_experts=experts,
        chunk_size=CONTEXT // 2,
        context_length=CONTEXT,
        temperature_floor=CONTEXT // 2,
    )


def ours(settings: ModelConfig, precision: str, batch: Batch) -> Callable[[], None]:
    model = Transformer(settings, dtype_of(precision)).initialise(torch.Generator().manual_seed(0))
    objective = partial(next_token, balance=0.01 if settings.num_experts else 0.0)
    optimizer = adamw(model.parameters(), 1e-3, 0.1)

    def step() -> None:
        (objective(model, batch).total / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(settings: ModelConfig, precision: str, batch: Batch, attention: str) -> Callable[[], None]:
    """transformers' own model and loss; in bf16 under autocast, as its Trainer does with fp32 master weights."""
    model = Llama4ForCausalLM._from_config(
        Llama4TextConfig(**config_to_hf(settings)), attn_implementation=attention
    ).train()
    optimizer = adamw(model.parameters(), 1e-3, 0.1)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=batch.tokens_BT, labels=batch.tokens_BT, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[2:] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--experts", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1), generator=generator)
    weights = torch.ones(ROWS, CONTEXT)
    documents = torch.zeros(ROWS, CONTEXT, dtype=torch.int32)
    batch = Batch(
        tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, documents, float(weights.numel())
    )
    print(f"{ROWS} x {CONTEXT} tokens a step, width 256, 4 layers, {torch.get_num_threads()} threads")
    for precision in asked.precision:
        for experts in asked.experts:
            sparse, dense = config(experts), config(0)
            times = measure(
                {
                    "ours": ours(sparse, precision, batch),
                    "transformers eager": theirs(sparse, precision, batch, "eager"),
                    "transformers sdpa": theirs(sparse, precision, batch, "sdpa"),
                    "ours, dense": ours(dense, precision, batch),
                },
                asked.rounds,
            )
            medians = {name: statistics.median(found) for name, found in times.items()}
            print(f"\n{precision}, {experts} experts      tokens/s: median   best")
            for name, found in times.items():
                print(
                    f"  {name:20} {ROWS * CONTEXT / medians[name]:16,.0f} {ROWS * CONTEXT / min(found):7,.0f}"
                )
            better = min(medians["transformers eager"], medians["transformers sdpa"])
            print(f"  against the better transformers path: {better / medians['ours']:.2f}x")
            print(f"  against our dense model:              {medians['ours, dense'] / medians['ours']:.2f}x")


if __name__ == "__main__":
    main()
