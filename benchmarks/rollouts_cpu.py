"""Tokens per second of sampling rollouts, ours beside `transformers`' `generate` on the same weights, in one run.

    python benchmarks/rollouts_cpu.py [--export DIR] [--dtype bfloat16] [--prompts 32] [--group 8] [--repeats 5]

A step of a policy gradient: a group of answers to each of several prompts of unequal length, drawn at temperature 1
with nothing cut. Ours are all one batch, and come with the log-probability of every token, which the step needs;
theirs come without, from `num_return_sequences`, with prompts padded on the left, in each of a few batch sizes, of
which the best is kept. Then the two take turns, so that whatever else the machine does falls on both; the ratio is
taken within each turn. First no answer ends before its last token; then one token in `--ends` ends an answer, and
only tokens up to that one count.

The weights are drawn here, in the quickstart's shape, unless an exported directory is named; both sides read them from
a directory.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from behemoth.inference.engine import Engine
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import load_weights, save_weights
from behemoth.train.machine import keep_freed_memory

SHORTEST, LONGEST = 16, 48  # tokens of a prompt
Count = Callable[[], int]  # runs all of it, and says how many tokens were written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, help="a directory that behemoth exported")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--ends", type=int, default=24, help="one token in so many ends an answer")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()

    ours, theirs = models(options.export, getattr(torch, options.dtype))
    size = sum(weight.numel() for weight in ours.parameters())
    print(
        f"{size / 1e6:.1f}M parameters, {options.dtype}, {torch.get_num_threads()} threads, {options.repeats} turns"
    )
    print(
        f"{options.prompts} prompts x {options.group} answers of {options.new_tokens} tokens; tokens/s, best (median)"
    )
    draw = random.Random(0)
    vocabulary = range(ours.config.vocab_size)
    prompts = [draw.choices(vocabulary, k=draw.randint(SHORTEST, LONGEST)) for _ in range(options.prompts)]
    for name, stops in (("full", []), ("ends", draw.sample(vocabulary, len(vocabulary) // options.ends))):
        run_ours = partial(sample, Engine(ours), prompts, options, stops)
        sizes = [size for size in (8, 16, 32, 64) if size <= options.prompts]
        runs = {size: partial(sample_theirs, theirs, prompts, options, stops, size) for size in sizes}
        run_ours()
        speeds = {size: speed(run) for size, run in runs.items()}
        best = max(speeds, key=lambda size: speeds[size])
        compare(f"{name}, theirs {best} x {options.group} at once", run_ours, runs[best], options.repeats)


def models(export: Path | None, dtype: torch.dtype) -> tuple[Transformer, PreTrainedModel]:
    with tempfile.TemporaryDirectory() as temporary:
        directory = export or drawn(Path(temporary))
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        return load_weights(directory, dtype), theirs


def drawn(directory: Path) -> Path:
    """A model of the quickstart's shape, written as an export writes it."""
    config = ModelConfig(
        vocab_size=2048,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_size=32,
        dense_size=512,
        expert_size=256,
        num_experts=8,
        chunk_size=64,
        context_length=256,
    )
    save_weights(Transformer(config).initialise(torch.Generator().manual_seed(0)), directory)
    return directory


def sample(engine: Engine, prompts: list[list[int]], options: argparse.Namespace, stops: list[int]) -> int:
    rows = [prompt for prompt in prompts for _ in range(options.group)]
    done = engine.generate(rows, max_tokens=options.new_tokens, temperature=1.0, stop_ids=stops)
    return sum(len(answer.tokens) for answer in done)


@torch.inference_mode()
def sample_theirs(
    model: PreTrainedModel, prompts: list[list[int]], options: argparse.Namespace, stops: list[int], size: int
) -> int:
    count = 0
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        longest = max(map(len, batch))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        y = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=options.new_tokens,
            num_return_sequences=options.group,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=stops or None,
            pad_token_id=0,
        )[:, longest:]
        ended = torch.isin(y, torch.tensor(stops, dtype=y.dtype)).cumsum(1)
        count += int((ended.cumsum(1) <= 1).sum())  # up to and with the first token that ends it
    return count


def compare(name: str, ours: Count, theirs: Count, repeats: int) -> None:
    turns = [(speed(ours), speed(theirs)) for _ in range(repeats)]
    ratios = [us / them for us, them in turns]
    us, them = (f"{max(side):7.0f} ({statistics.median(side):7.0f})" for side in zip(*turns, strict=True))
    print(
        f"{name}: ours {us}   transformers {them}   "
        f"ratio min {min(ratios):.2f} median {statistics.median(ratios):.2f}",
        flush=True,
    )


def speed(run: Count) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
