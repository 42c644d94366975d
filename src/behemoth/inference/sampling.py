"""Choosing a token: greedy, or one draw from the tempered distribution cut to its top k and its top p.

The draw inverts the cumulative distribution at one uniform number per row, a hash of the row's own seed and
of how many tokens it has drawn. So an answer does not depend on its neighbours, on the size of the batch, or
on what was drawn before: any token of any answer can be drawn again alone.

Top p is nucleus sampling (arXiv 1904.09751): the smallest set of likeliest tokens that holds at least p.
Left out: penalties for repetition, and constraints on the output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from behemoth.base.errors import InputError


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
    tokens_B = logits_BV.argmax(-1) if how.temperature == 0 else draw(logits_BV, how, seeds, index)
    return tokens_B, token_logprobs(logits_BV, tokens_B)


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log softmax(logits) at the given tokens, (N,) fp32."""
    return -F.cross_entropy(logits_NV.float(), tokens_N, reduction="none")


def draw(logits_BV: Tensor, how: Sampling, seeds: Sequence[int], index: int) -> Tensor:
    """The first token at which the cumulative probability exceeds the row's number."""
    probs_BV, ids_BV = distribution(logits_BV, how)
    cumulative_BV = probs_BV.double().cumsum(-1)
    u_B = torch.tensor([uniform(seed, index) for seed in seeds], dtype=torch.float64, device=logits_BV.device)
    target_B1 = u_B.unsqueeze(1) * cumulative_BV[:, -1:]
    # right=True steps over tokens of probability 0; the clamp is for rows of nan, which the engine reports
    rank_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=probs_BV.shape[-1] - 1)
    return (rank_B1 if ids_BV is None else ids_BV.gather(-1, rank_B1)).squeeze(-1)


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


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1 - 2^-48], a function of its two arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") * 2.0**-48
