"""Attention in bf16 on a CPU: written out, beside torch's fused kernel; forward and backward.

    python benchmarks/attention_cpu.py [--tokens 2048] [--heads 4] [--rounds 5]

`model.transformer.attend` chooses between the two by what is printed here: the time of the fused kernel divided by
that of the written-out product, above 1 where writing out is faster. The two take turns, so that whatever else the
machine does falls on both; the ratio is the median over the turns. Every shape holds the same number of tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.model.transformer import attend_plainly, document_mask
from behemoth.train.machine import keep_freed_memory

LENGTHS, HEAD_SIZES = (64, 128, 256, 512, 1024), (32, 64)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=4, help="query heads; half as many key/value heads")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    keep_freed_memory()  # as in training
    print(f"{options.tokens} tokens, {options.heads} heads, {torch.get_num_threads()} threads; milliseconds")
    for head_size in HEAD_SIZES:
        for length in LENGTHS:
            for masked in (False, True):
                inputs = draw(options.tokens // length, length, options.heads, head_size, masked)
                plain, fused, ratio = compare(inputs, options.rounds)
                print(
                    f"head size {head_size}, {length:4d} tokens, {'documents' if masked else 'causal   '}:"
                    f"  written out {plain:7.1f}   fused {fused:7.1f}   ratio {ratio:.2f}"
                )


def draw(B: int, T: int, H: int, K: int, masked: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and, when asked, the mask of rows that hold four documents each."""
    q, k, v = (
        torch.randn(B, T, heads, K, dtype=torch.bfloat16, requires_grad=True) for heads in (H, H // 2, H // 2)
    )
    documents_BT = (torch.rand(B, T) < 4 / T).cumsum(1)
    return q, k, v, document_mask(documents_BT) if masked else None


def fused(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Tensor | None) -> Tensor:
    mask = None if mask_BTS is None else mask_BTS.unsqueeze(1)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True).transpose(
        1, 2
    )


def compare(inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of the rounds' ratios. The first round only warms up."""
    turns = [(run(attend_plainly, inputs), run(fused, inputs)) for _ in range(rounds + 1)][1:]
    plain, other = (statistics.median(turn[side] for turn in turns) for side in (0, 1))
    return plain, other, statistics.median(b / a for a, b in turns)


def run(attention: Attend, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> float:
    start = time.perf_counter()
    attention(*inputs).sum().backward()
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
