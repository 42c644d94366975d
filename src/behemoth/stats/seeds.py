"""What chance in training makes of a score: several seeds of one recipe, and whether a difference exceeds that.

Intervals over items say nothing about it: another seed is another model. A handful of runs gives a rough idea of the
spread, which Student's t is honest about (Student 1908): with 3 seeds its band is twice as wide as with 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from behemoth.base.errors import InputError
from behemoth.stats.intervals import LEVEL, Interval, t_quantile


@dataclass(frozen=True)
class Band:
    """mean: of the recipe; another: where the score of one more run would lie; noise: the largest difference between
    two single runs of it that chance alone gives in `level` of all pairs."""

    seeds: int
    mean: Interval
    another: Interval
    noise: float


def seed_band(scores: Sequence[float], level: float = LEVEL) -> Band:
    """mean +- t s / sqrt(n), mean +- t s sqrt(1 + 1/n), and t s sqrt(2), with n - 1 degrees of freedom."""
    values = _several(scores)
    count, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    t = float(t_quantile(count - 1, level))

    def within(half: float) -> Interval:
        return Interval(mean, mean - half, mean + half, level)

    return Band(
        count,
        within(t * spread / math.sqrt(count)),
        within(t * spread * math.sqrt(1 + 1 / count)),
        t * spread * 2**0.5,
    )


def seed_difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> tuple[Interval, float]:
    """Mean of `a` less mean of `b` over the seeds of two recipes, and its p-value (Welch 1947).

    Where seed i of both shares data order or first weights, give the differences to `seed_band` instead.
    """
    first, second = _several(a), _several(b)
    parts = np.array([values.var(ddof=1) / len(values) for values in (first, second)])
    estimate, error = float(first.mean() - second.mean()), float(np.sqrt(parts.sum()))
    if error == 0:
        return Interval(estimate, estimate, estimate, level), float(estimate == 0)
    df = parts.sum() ** 2 / (parts**2 / [len(first) - 1, len(second) - 1]).sum()
    half = float(t_quantile(df, level)) * error
    p_value = 2 * float(special.stdtr(df, -abs(estimate) / error))
    return Interval(estimate, estimate - half, estimate + half, level), p_value


def _several(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"scores of seeds {list(scores)}; at least 2 finite numbers, better 5")
    return values
