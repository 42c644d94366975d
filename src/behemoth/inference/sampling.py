"""Choosing a token: greedy, or one draw from the tempered distribution cut to its top k and its top p.

The draw inverts the cumulative distribution at one uniform number per row, a hash of the row's own seed and
of how many tokens it has drawn. So an answer does not depend on its neighbours, on the size of the batch, or
on what was drawn before: any token of any answer can be drawn again alone.

Top p is nucleus sampling (arXiv 1904.09751): the smallest set of likeliest tokens that holds at least p.
Left out: penalties for repetition, and constraints on the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.base.errors import InputError
from behemoth.base.mixing import mix

BLOCK = 64


@dataclass(frozen=True)
class Sampling:
    """How to choose. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing. k cuts first, then p, as in
    `transformers`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p = {self.top_p}: must be above 0 and at most 1 (1 cuts nothing)")
        if self.top_k < 0:
            raise InputError(f"top_k = {self.top_k}: must be 0 (cuts nothing) or positive")


def choose(logits_BV: Tensor, how: Sampling, seeds: Sequence[int], index: int) -> tuple[Tensor, Tensor]:
    """One token per row: (tokens_B int64, logprobs_B fp32).

    seeds: one per row; index: how many tokens the rows have drawn before. The log-probability is that of the
    model's own distribution: temperature 1, nothing cut.
    """
    logits_BV = logits_BV.float()
    if how == Sampling(1.0):  # what is drawn from is the model's own distribution: one softmax serves both
        probs_BV = logits_BV.softmax(-1)
        rank_B1 = pick(probs_BV, seeds, index)
        return rank_B1.squeeze(-1), probs_BV.gather(-1, rank_B1).log().squeeze(-1)
    tokens_B = logits_BV.argmax(-1) if how.temperature == 0 else draw(logits_BV, how, seeds, index)
    return tokens_B, token_logprobs(logits_BV, tokens_B)


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log softmax(logits) at the given tokens, (N,) fp32."""
    return -F.cross_entropy(logits_NV.float(), tokens_N, reduction="none")


def draw(logits_BV: Tensor, how: Sampling, seeds: Sequence[int], index: int) -> Tensor:
    """One draw of each row from its tempered and cut distribution: (B,)."""
    probs_BV, ids_BV = distribution(logits_BV, how)
    rank_B1 = pick(probs_BV, seeds, index)
    return (rank_B1 if ids_BV is None else ids_BV.gather(-1, rank_B1)).squeeze(-1)


def pick(probs_BV: Tensor, seeds: Sequence[int], index: int) -> Tensor:
    """The first place at which the cumulative probability exceeds the row's number, (B, 1).

    First among blocks of places, then inside one: a running sum goes number by number, a plain sum does not.
    """
    if short := -probs_BV.shape[-1] % BLOCK:
        probs_BV = F.pad(probs_BV, (0, short))
    blocks_BNC = probs_BV.unflatten(-1, (-1, BLOCK))
    sums_BN = blocks_BNC.sum(-1).double()
    u_B1 = torch.from_numpy(uniform(seeds, index)).to(probs_BV.device).unsqueeze(1)
    block_B1, u_B1 = invert(sums_BN, u_B1)
    rows_B1 = torch.arange(len(probs_BV), device=probs_BV.device).unsqueeze(1)
    place_B1, _ = invert(blocks_BNC[rows_B1, block_B1].squeeze(1).double(), u_B1)
    return block_B1 * BLOCK + place_B1


def invert(weights_BN: Tensor, u_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum exceeds u of the whole, and how far into that place, in [0, 1 - 2^-48]."""
    ends_BN = weights_BN.cumsum(-1)
    target_B1 = u_B1 * ends_BN[:, -1:]
    # right=True steps over weights of 0; the clamp is for rows of nan, which the engine reports
    place_B1 = torch.searchsorted(ends_BN, target_B1, right=True).clamp(max=ends_BN.shape[-1] - 1)
    weight_B1 = weights_BN.gather(-1, place_B1)
    inside_B1 = (target_B1 - (ends_BN.gather(-1, place_B1) - weight_B1)) / weight_B1
    return place_B1, inside_B1.clamp(0, 1 - 2.0**-48)


def distribution(logits_BV: Tensor, how: Sampling) -> tuple[Tensor, Tensor | None]:
    """What is drawn from: probabilities (once cut, of sum below 1) and the ids they belong to (None: all)."""
    # the largest logit goes first, so that a tiny temperature does not overflow
    probs_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / how.temperature).softmax(-1)
    if how.top_k == 0 and how.top_p == 1:
        return probs_BV, None
    probs_BV, ids_BV = probs_BV.sort(
        dim=-1, descending=True, stable=True
    )  # equals in order of id, in any batch
    if how.top_k:
        probs_BV, ids_BV = probs_BV[:, : how.top_k], ids_BV[:, : how.top_k]
    if how.top_p < 1:
        before_BV = probs_BV.double().cumsum(-1) - probs_BV
        probs_BV = probs_BV * (before_BV < how.top_p * probs_BV.double().sum(-1, keepdim=True))
    return probs_BV, ids_BV


def uniform(seeds: Sequence[int], index: int) -> np.ndarray:
    """Numbers in [0, 1 - 2^-48], each a function of its seed (modulo 2^64) and of the index alone: number `index`
    of the splitmix64 stream (Steele et al. 2014) that begins at the mixed seed."""
    state = mix(np.array([seed & MASK for seed in seeds], np.uint64))
    return (mix(state + np.uint64((index + 1) * GOLDEN & MASK)) >> np.uint64(16)) * 2.0**-48


GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
