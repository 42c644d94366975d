"""The learning rate over a run: warm up, stay, decay (arXiv 2404.06395 calls it WSD)."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[float], float]


def warmup_stable_decay(progress: float, *, warmup: float, decay: float) -> float:
    """The factor on the learning rate at `progress` (0 to 1): linear up over `warmup`, down to 0 over `decay`."""
    if progress < warmup:
        return progress / warmup
    if progress > 1 - decay:
        return (1 - progress) / decay
    return 1.0
