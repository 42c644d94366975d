"""Does a number lie beyond its bar? Several of them at once, by intervals alone.

A claim holds when the whole interval lies beyond its bar, and fails when the whole interval lies on the other side;
anything else is unknown, and so is what was measured on too little. Lying at the bar is not lying beyond it. The
two-sided interval at 95% is a one-sided test at 2.5%, as is usual (ICH E9, 1998, section 3.3.2).

Of many claims some hold by chance. So Holm's (1979) procedure: each interval is drawn at 1 - (1 - level) / m for m
claims; those that hold leave, and the rest are drawn again for as many as are left, until none holds. That finds
exactly what Holm finds in the p-values, for an interval at a level leaves out what its test rejects at that level. A
claim that cannot be measured stays among the m. That one fails is decided at the plain level: to hold back what may be
good costs a repetition, to let out what is not cannot be undone.

Here are also the intervals for this, which err to the safe side where those of `paired` and `intervals` only come out
right on average: for a share near 0 or 1, where hardly any item tells the models apart, and where what matters may be
too rare to have been drawn. No interval can be right for every loss, however rare and large (Bahadur & Savage 1956), so
one is assumed to be the worst: an answer that is wrong, a text that takes twice the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from behemoth.stats.intervals import (
    Interval,
    checked,
    clopper_pearson,
    clustered,
    design_effect,
    effective_clusters,
    t_quantile,
)
from behemoth.stats.paired import (
    BITS,
    MIN_DIFFERING,
    Paired,
    Scores,
    by_cluster,
    right_or_wrong,
    score_interval,
)

At = Callable[[float], Interval]  # the interval at a level
Status = Literal["holds", "fails", "unknown"]
ABOVE, BELOW = 1, -1  # the side of its bar on which a claim wants the number
MIN_STIRRING = (
    12  # passages, or marks, that differ from the rest: below, their spread is hardly known (by simulation)
)


@dataclass(frozen=True)
class Tested:
    """interval: at the level at which this was decided; None where there was none to draw. family: how many claims
    there are; among: how many of them were read together at that level, 1 where it was decided alone."""

    interval: Interval | None
    status: Status
    among: int = 1
    family: int = 1


def tested(
    intervals: Sequence[At | None], bars: Sequence[float], sides: Sequence[int], level: float
) -> list[Tested]:
    """Which of these hold, as one family. None: what should be claimed could not be measured."""
    found: dict[int, Tested] = {}
    left = dict(enumerate(intervals))
    drawn: dict[int, Interval] = {}
    while left:
        step = 1 - (1 - level) / len(left)
        drawn = {i: interval(step) for i, interval in left.items() if interval is not None}
        held = [i for i in drawn if beyond(drawn[i], bars[i], sides[i])]
        found |= {i: Tested(drawn[i], "holds", len(left)) for i in held}
        left = {i: interval for i, interval in left.items() if i not in found}
        if not held:
            break
    for i, interval in left.items():
        found[i] = Tested(drawn.get(i), "unknown", len(left))
        if interval is not None and beyond(plain := interval(level), bars[i], -sides[i]):
            found[i] = Tested(plain, "fails")
    return [replace(found[i], family=len(intervals)) for i in range(len(intervals))]


def beyond(interval: Interval, bar: float, side: int) -> bool:
    """Whether the whole interval lies on that side of the bar; one that is not a number lies nowhere."""
    return interval.low > bar if side == ABOVE else interval.high < bar


def normal_quantile(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


# ---------------------------------------------------------------------------------------------- how far apart


def difference(paired: Paired) -> At:
    """How far `a` is ahead of `b`."""

    def at(level: float) -> Interval:
        found = paired.interval(level)
        if paired.a.unit == BITS:
            return with_unseen(found, -paired.b.score, found.estimate, len(paired.sums))
        if not math.isnan(paired.gains) and paired.gains + paired.losses < MIN_DIFFERING:
            found = replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
        if not alone(paired) and hardly_any_stirs(paired.sums, paired.sizes):
            found = with_unseen(found, -1.0, 1.0, float(effective_clusters(paired.sizes)))
        return found

    return at


def alone(paired: Paired) -> bool:
    """Right-or-wrong answers of which each is its own cluster: Tango's interval needs no help."""
    return not math.isnan(paired.gains) and bool((paired.sizes == 1).all())


def hardly_any_stirs(sums: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether all clusters but a few show the very same, each counted by its size: then their spread says little about
    what was not seen. So it is of very unequal ones, where those that stir are mostly small."""
    rates, clusters = sums / sizes, float(effective_clusters(sizes))
    stirring = sizes[np.abs(rates - np.median(rates)) > 1e-9].sum() / sizes.sum()
    return bool(stirring * clusters < MIN_STIRRING or clusters < len(sizes) / 2)


def unseen_part(clusters: float, level: float) -> float:
    """The largest part of all clusters of which none would be drawn as often as the level lets one side of an interval
    go wrong: the upper end of 0 seen (Clopper & Pearson 1934)."""
    return 1.0 - float(((1 - level) / 2) ** (1 / clusters))


def with_unseen(found: Interval, least: float, most: float, clusters: float) -> Interval:
    """At least as wide as if the part of all clusters that could have stayed unseen were at either extreme."""
    part = unseen_part(clusters, found.level)
    low, high = (found.estimate + part * (end - found.estimate) for end in (least, most))
    return replace(found, low=min(found.low, low), high=max(found.high, high))


# ---------------------------------------------------------------------------------------------- one score


def score(scores: Scores) -> At:
    """One model's score. A share of right answers by the exact interval, which never holds less than it promises."""
    known = np.isfinite(scores.values)
    sums, sizes = by_cluster(scores.values[known], known, scores)
    exact = right_or_wrong(scores.values[known], scores)

    def at(level: float) -> Interval:
        found = exact_share(sums, sizes, level) if exact else score_interval(scores, level)
        if scores.unit == BITS:
            return with_unseen(found, found.estimate, 2 * found.estimate, len(sums))
        if hardly_any_stirs(sums, sizes):
            found = with_unseen(found, 0.0, 1.0, float(effective_clusters(sizes)))
        return found

    return at


def exact_share(hits: np.ndarray, sizes: np.ndarray, level: float) -> Interval:
    """Clopper & Pearson's interval for a share, `hits` of `sizes` in each cluster.

    Clusters: at the number of independent items that would tell as much, made less by what t costs (Korn & Graubard
    1998, as in the surveys of the NCHS); where all clusters show the same, a cluster counts as one item.
    """
    hits, sizes = checked(hits, sizes)
    items, share = float(sizes.sum()), float(hits.sum() / sizes.sum())
    if not (sizes == 1).all():
        moments = clustered(hits, sizes, correction=1)
        design = max(1.0, float(design_effect(moments, np.asarray(share * (1 - share)), np.asarray(items))))
        cost = float(t_quantile(items - 1, level) / t_quantile(moments.df, level)) ** 2
        items = items / design * cost if moments.error > 0 else float(effective_clusters(sizes))
    return replace(clopper_pearson(share * items, items, level), estimate=share)
