"""Tokens per second of greedy generation, ours beside `transformers`' on the same weights, in the same run.

    python benchmarks/generate_cpu.py [--dtype bfloat16] [--hidden 256] [--experts 8] [--repeats 5]

The two take turns, so that whatever else the machine does falls on both; the ratio is taken within each turn.
Both run to the full length: no stop tokens. transformers runs as `generate` does by default (sdpa, dynamic
cache).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Llama4ForCausalLM
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig

from behemoth.inference.engine import Engine
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf

PROMPT_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()

    ours, theirs = models(options.hidden, options.experts, getattr(torch, options.dtype))
    size = sum(weight.numel() for weight in ours.parameters())
    threads = torch.get_num_threads()
    print(f"{size / 1e6:.1f}M parameters, {options.dtype}, {threads} threads, {options.repeats} turns")
    print(f"{PROMPT_TOKENS} tokens read, {options.new_tokens} written; tokens per second, best (median)")
    for rows in options.rows:
        prompts = torch.randint(
            ours.config.vocab_size, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)
        )
        compare(
            rows, *runners(ours, theirs, prompts, options.new_tokens), options.new_tokens, options.repeats
        )


def models(hidden: int, experts: int, dtype: torch.dtype) -> tuple[Transformer, Llama4ForCausalLM]:
    """A small Scout-shaped model, twice."""
    config = ModelConfig(
        vocab_size=4096,
        hidden_size=hidden,
        num_layers=8,
        num_heads=hidden // 32,
        num_kv_heads=hidden // 64,
        head_size=32,
        dense_size=2 * hidden,
        expert_size=hidden,
        num_experts=experts,
        chunk_size=128,
        context_length=1024,
    )
    ours = Transformer(config, dtype).initialise(torch.Generator().manual_seed(0)).to(dtype)
    theirs = Llama4ForCausalLM(Llama4TextConfig(**config_to_hf(config))).eval().to(dtype)
    theirs.load_state_dict(
        {k if k.startswith("lm_head") else f"model.{k}": v for k, v in ours.state_dict().items()}
    )
    return ours, theirs


def runners(
    ours: Transformer, theirs: Llama4ForCausalLM, prompts: torch.Tensor, new_tokens: int
) -> tuple[Callable[[], list[list[int]]], Callable[[], list[list[int]]]]:
    engine = Engine(ours)

    def run_ours() -> list[list[int]]:
        return [done.tokens for done in engine.generate(prompts.tolist(), max_tokens=new_tokens)]

    def run_theirs() -> list[list[int]]:
        mask = torch.ones_like(prompts)
        y = theirs.generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return y[:, prompts.shape[1] :].tolist()

    return run_ours, run_theirs


def compare(
    rows: int,
    ours: Callable[[], list[list[int]]],
    theirs: Callable[[], list[list[int]]],
    new_tokens: int,
    repeats: int,
) -> None:
    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))  # also the warm-up
    turns = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    speeds = [[rows * new_tokens / turn[side] for turn in turns] for side in (0, 1)]
    ratios = [theirs / ours for ours, theirs in turns]
    us, them = (f"{max(s):7.0f} ({statistics.median(s):7.0f})" for s in speeds)
    print(
        f"B={rows:<3d} ours {us}   transformers {them}   "
        f"ratio min {min(ratios):.2f} median {statistics.median(ratios):.2f}   same answers {same}/{rows}"
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
