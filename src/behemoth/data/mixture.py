"""Which row comes when, as a pure function of its index.

A permutation of row numbers is computed, not stored: a Feistel network (Luby and Rackoff 1988) on the
smallest even number of bits that holds them, walked until it lands inside (Black and Rogaway 2002). It
depends on integers alone, so it is the same with every version of every library. Sources are mixed in blocks
of 1024 rows that each hold the wanted shares exactly (to one row); inside a block their order is permuted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from behemoth.base.mixing import mix, mix_keys

BLOCK = 1024  # rows over which the shares of a mixture are exact; also their resolution
ROUNDS = 6


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Send every `index` in [0, size) to its place in the permutation of [0, size) that `key` names."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = mix(np.arange(ROUNDS, dtype=np.uint64) + np.uint64(mix_keys(key)))
    place = _feistel(np.asarray(index, dtype=np.uint64), half, keys)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], half, keys)
    return place.astype(np.int64)


def _feistel(value: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << bits) | right


def quotas(weights: Sequence[float]) -> list[int]:
    """Rows of each source in a block, by largest remainder; every source has at least one row."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    rows = np.maximum(np.floor(shares), 1).astype(np.int64)
    while rows.sum() < BLOCK:
        rows[(shares - rows).argmax()] += 1
    while rows.sum() > BLOCK:  # rows given to sources whose share is less than one
        rows[np.where(rows > 1, shares - rows, np.inf).argmin()] -= 1
    return rows.tolist()


@lru_cache(maxsize=4)
def _block(rows: tuple[int, ...], key: int) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a block: its source, and how many rows of that source came before in the block."""
    source = np.repeat(np.arange(len(rows)), rows)[permute(np.arange(BLOCK), BLOCK, key)]
    rank = np.zeros(BLOCK, dtype=np.int64)
    for s in range(len(rows)):
        chosen = source == s
        rank[chosen] = np.arange(int(chosen.sum()))
    return source, rank


def draw(
    index: np.ndarray, weights: Sequence[float], num_rows: Sequence[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Source, and row of that source, of every `index` of the mixture.

    A source gives each of its `num_rows` rows once, in a permuted order, before any row again; every pass
    (epoch) has an order of its own.
    """
    rows = quotas(weights)
    block, place = np.divmod(index, BLOCK)
    source, rank, row = (np.zeros_like(index) for _ in range(3))
    for number in np.unique(block).tolist():
        here = block == number
        sources, ranks = _block(tuple(rows), mix_keys(seed, 1, number))
        source[here], rank[here] = sources[place[here]], ranks[place[here]]
    epoch, position = np.divmod(block * np.array(rows)[source] + rank, np.array(num_rows)[source])
    for s, e in sorted(set(zip(source.tolist(), epoch.tolist(), strict=True))):
        here = (source == s) & (epoch == e)
        row[here] = permute(position[here], num_rows[s], mix_keys(seed, 2, s, e))
    return source, row
