"""How much better an answer is than the others to the same prompt: its reward less the mean of its group.

That mean is the baseline of GRPO (arXiv 2402.03300) without its division by the group's deviation, which would weigh
prompts that are nearly always right or nearly always wrong more than the others (Dr. GRPO, arXiv 2503.20783). A group
whose rewards are all equal says nothing; it has no signal and is left out (the dynamic sampling of DAPO, arXiv
2503.14476, in its simple form: no others are drawn in its place).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of one group. Exactly 0 for all where all rewards are equal."""
    if not has_signal(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether some answer of the group is better than another."""
    return len(set(rewards)) > 1
