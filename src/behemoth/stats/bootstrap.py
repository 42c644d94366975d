"""How sure a number is: draw the documents again and see how far it moves.

Bits per byte is a ratio of sums, and the tokens of one document depend on each other, so what is drawn with
replacement is whole documents (the cluster bootstrap: Davison & Hinkley 1997, section 3.8; as an interval
the percentiles: Efron & Tibshirani 1993, chapter 13). Simulated with files whose sizes span two orders of
magnitude, a 95% interval held the true value 91 times of 100 with 60 documents and 94 times with 200; the
BCa correction was no better (90 and 93).

Leaves out: what another training seed would have given. An interval here speaks of other documents, never
of other runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from behemoth.base.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000
BLOCK = 4_000_000  # draws held in memory at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate, and two ends that should hold the true value in `level` of all repetitions."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def ratio_interval(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Sum of `numerator` over sum of `denominator`, both (documents,), with its percentile interval.

    The same data and seed give the same interval. Raises InputError for fewer than two documents, for a
    document without bytes and for a score that is not a finite number.
    """
    top, bottom = _checked(numerator, denominator)
    draws = np.concatenate([(w @ top) / (w @ bottom) for w in _times_drawn(len(top), resamples, seed)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), level)


def _times_drawn(items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item was drawn, (resamples, items) in blocks: `items` draws with replacement per row."""
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // items)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(items, size=(count, items)) + np.arange(count)[:, None] * items
        yield np.bincount(drawn.ravel(), minlength=count * items).reshape(count, items).astype(np.float64)


def _checked(numerator: np.ndarray, denominator: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise InputError(
            f"scores of shape {top.shape} beside sizes of shape {bottom.shape}; both must be (documents,)"
        )
    if len(top) < 2:
        raise InputError(f"no interval from {len(top)} document(s); score at least 2, better 60")
    if not np.isfinite(top).all():
        raise InputError(f"the score of document number {np.argmin(np.isfinite(top))} is not a finite number")
    if not (bottom > 0).all():
        raise InputError(f"document number {np.argmin(bottom > 0)} has no bytes; leave empty documents out")
    return top, bottom
