"""How sure a number is, by formula.

What is drawn anew in thought is clusters: documents, or items that share a passage. A score is a ratio of sums over
clusters (bits over bytes, right answers over items), and its spread is that of the clusters' own. How the formulas
were chosen, and what they hold in simulation, is in docs/statistics.md.

Leaves out: what another training seed would have given (stats/seeds.py). An interval here speaks of other items,
never of other runs.

All of them work along the last axis, so that a simulation runs the very formulas that a person's numbers go through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from behemoth.base.errors import InputError

LEVEL = 0.95


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


# ---------------------------------------------------------------------------------------------- sums over clusters


def effective_clusters(sizes: np.ndarray) -> np.ndarray:
    """How many equal clusters would tell as much: (sum of sizes)^2 / sum of squares (Kish 1965, section 8.2)."""
    return sizes.sum(-1) ** 2 / (sizes**2).sum(-1)


@dataclass(frozen=True)
class Moments:
    """A ratio of sums over clusters: what it is, its standard error, and how lopsided that error is."""

    estimate: np.ndarray
    error: np.ndarray
    df: np.ndarray  # degrees of freedom
    skew: np.ndarray  # of the estimate; a mean of n has that of one over root n

    def ends(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Low and high: Student's t, made longer where Hall (1992) finds it short.

        Where a few clusters lie far out on one side, t misses on that side. Hall's transformation
        g(t) = t + skew (t^2 / 3 + 1 / 6) + skew^2 t^3 / 27 moves both ends; in small samples it moves them too far
        when the skewness is itself a matter of chance. Taking the outer one of the two at each end holds its promise
        from normal to exponential tails.
        """
        quantile, a, b = t_quantile(self.df, level), self._third, self.skew / 6
        low, high = ((np.cbrt(1 + 3 * a * (x - b)) - 1) / a for x in (quantile, -quantile))
        return (
            self.estimate - self.error * np.maximum(quantile, low),
            self.estimate - self.error * np.minimum(-quantile, high),
        )

    @property
    def p_value(self) -> np.ndarray:
        """That the true ratio is zero: below 1 - level exactly where `ends(level)` leave zero out."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.estimate == 0, 0.0, self.estimate / self.error)
            moved = t + self._third * t**2 + self._third**2 * t**3 / 3 + self.skew / 6
        agreed = np.where(t * moved > 0, np.minimum(np.abs(t), np.abs(moved)), 0.0)
        return 2 * special.stdtr(self.df, -np.where(np.isfinite(t), agreed, np.inf))

    @property
    def _third(self) -> np.ndarray:
        """A third of the skewness, never quite zero, so that it can be divided by."""
        return np.where(np.abs(self.skew) < 1e-6, 1e-6, self.skew) / 3


def clustered(sums: np.ndarray, sizes: np.ndarray, correction: float = 0.5) -> Moments:
    """Sum of `sums` over sum of `sizes`, both (..., clusters).

    The standard error of Miller 2024 (arXiv 2411.00640, section 2.2) for clusters of any size, with the correction
    CR2 of Bell & McCaffrey (2002): each cluster pulls the estimate towards itself, so its residual is divided by
    sqrt(1 - its share of the total). They also give t fewer degrees of freedom where clusters are unequal, by a
    formula that for shares comes to about the effective number of clusters less one, which is used here.

    correction: 0.5 for CR2; 1 for CR3, which is the jackknife and a little longer.
    """
    total = sizes.sum(-1, keepdims=True)
    estimate = sums.sum(-1, keepdims=True) / total
    pull = (sums - estimate * sizes) / total / (1 - sizes / total) ** correction
    error = np.sqrt((pull**2).sum(-1))
    skew = (pull**3).sum(-1) / np.where(error > 0, error, 1) ** 3
    return Moments(estimate[..., 0], error, effective_clusters(sizes) - 1, skew)


def t_quantile(df: np.ndarray | float, level: float) -> np.ndarray:
    """How many standard errors either way hold `level` of Student's t."""
    return special.stdtrit(df, (1 + level) / 2)


def ratio_interval(sums: np.ndarray, sizes: np.ndarray, level: float = LEVEL) -> Interval:
    """Sum of `sums` over sum of `sizes`, one of each per cluster.

    Raises InputError for fewer than two clusters, for one without size and for a sum that is not a finite number.
    """
    moments = clustered(*checked(sums, sizes))
    low, high = moments.ends(level)
    return Interval(float(moments.estimate), float(low), float(high), level)


def checked(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums, sizes = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    if sums.shape != sizes.shape or sums.ndim != 1:
        raise InputError(
            f"scores of shape {sums.shape} beside sizes of shape {sizes.shape}; both must be (documents,)"
        )
    if len(sums) < 2:
        raise InputError(f"no interval from {len(sums)} document(s); score at least 2, better 60")
    if not np.isfinite(sums).all():
        raise InputError(
            f"the score of document number {np.argmin(np.isfinite(sums))} is not a finite number"
        )
    if not (sizes > 0).all():
        raise InputError(f"document number {np.argmin(sizes > 0)} has no bytes; leave empty documents out")
    return sums, sizes


# ---------------------------------------------------------------------------------------------- shares


def wilson(hits: float, trials: float, level: float = LEVEL) -> Interval:
    """A share, by the score test turned round (Wilson 1927)."""
    _check_share(hits, trials)
    low, high = wilson_ends(np.asarray(hits / trials), np.asarray(trials), special.ndtri((1 + level) / 2))
    return Interval(hits / trials, float(low), float(high), level)


def wilson_ends(share: np.ndarray, trials: np.ndarray, quantile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    extra = quantile**2 / trials
    middle = (share + extra / 2) / (1 + extra)
    half = quantile / (1 + extra) * np.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return np.maximum(0, middle - half), np.minimum(1, middle + half)


def clopper_pearson(hits: float, trials: float, level: float = LEVEL) -> Interval:
    """A share, by the exact test turned round (Clopper & Pearson 1934): never below `level`, so often wide.

    Of 0 hits in n the upper end is about 3.7 / n (one-sided at 95%, the "rule of three": 3 / n).
    """
    _check_share(hits, trials)
    tail = (1 - level) / 2
    low = special.betaincinv(hits, trials - hits + 1, tail) if hits else 0.0
    high = special.betaincinv(hits + 1, trials - hits, 1 - tail) if hits < trials else 1.0
    return Interval(hits / trials, float(low), float(high), level)


def jeffreys(hits: np.ndarray, trials: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a share: Beta(1/2, 1/2) updated by the counts (Brown, Cai & DasGupta 2001)."""
    tail, misses = (1 - level) / 2, trials - hits
    low = np.where(hits > 0, special.betaincinv(hits + 0.5, misses + 0.5, tail), 0.0)
    return low, np.where(misses > 0, special.betaincinv(hits + 0.5, misses + 0.5, 1 - tail), 1.0)


def share_ends(
    hits: np.ndarray, sizes: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and both ends of the share of right answers, `hits` of `sizes` in each cluster, (..., clusters).

    Items that stand alone: Jeffreys' interval, which of those that can be right on average strays least at single
    shares. Clusters: Wilson's at the number of independent items that would tell as much (items over the design
    effect; Dean & Pagano 2015), with Student's t.
    """
    items = sizes.sum(-1)
    if (sizes == 1).all():
        hits = hits.sum(-1)
        return hits / items, *jeffreys(hits, items, level)
    found = clustered(hits, sizes, correction=1)
    effective = items / design_effect(found, found.estimate * (1 - found.estimate), items)
    effective = np.where(
        found.error > 0, effective, effective_clusters(sizes)
    )  # all alike: as if they always were
    return found.estimate, *wilson_ends(found.estimate, effective, t_quantile(found.df, level))


def share_interval(hits: np.ndarray, sizes: np.ndarray, level: float = LEVEL) -> Interval:
    share, low, high = share_ends(*checked(hits, sizes), level)
    return Interval(float(share), float(low), float(high), level)


def design_effect(found: Moments, spread: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The variance that was found over that of independent items whose mean squared deviation is `spread`."""
    alone = spread / (items - 1)
    return np.where((alone > 0) & (found.error > 0), found.error**2 / np.where(alone > 0, alone, 1), 1.0)


def _check_share(hits: float, trials: float) -> None:
    if not (trials > 0 and 0 <= hits <= trials):
        raise InputError(
            f"{hits} hits in {trials} trials; hits lie between 0 and the trials, of which there is one at least"
        )
