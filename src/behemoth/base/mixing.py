"""Numbers that look random and depend on integers alone, so that they are the same with every version of a library.

Orders of data, draws of tokens and of prompts all come from here: a draw is named by its key, and can be made again.
"""

from __future__ import annotations

import numpy as np


def mix(value: np.ndarray) -> np.ndarray:
    """Spread the bits of 64-bit integers: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def mix_keys(*keys: int) -> int:
    """One 64-bit key out of several integers; their order matters."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix(
            state * np.uint64(5) + np.array([key % 2**64], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        )
    return int(state[0]) >> 1
