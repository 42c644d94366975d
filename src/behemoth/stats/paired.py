"""Two models on the same items: which is better, by how much, and can we tell?

Hard items are hard for every model, so most of the spread in a score is the items' own. Taking the difference item by
item removes it (Miller 2024, arXiv 2411.00640, section 4): two models whose separate intervals overlap can still be
told apart. Only valid when both scored the very same items, which is checked.

A positive difference always means that the first model is better: more points, or so many bits per byte fewer. Sums
over clusters go through `intervals.clustered`; right-or-wrong answers through the score interval of Tango, which holds
what it promises when few answers differ and at zero is McNemar's test. `p_value` belongs to the interval: below
1 - level exactly when zero lies outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from behemoth.base.errors import InputError
from behemoth.base.units import counted, percent
from behemoth.stats.intervals import (
    LEVEL,
    Interval,
    checked,
    clustered,
    design_effect,
    effective_clusters,
    ratio_interval,
    share_interval,
    t_quantile,
)

MIN_CLUSTERS = 30  # effective ones; below, no formula holds what it promises
MIN_ITEMS = 100
MIN_DIFFERING = 6  # the fewest right-or-wrong answers that an exact test can call a difference: 2 / 2^6 < 5%
POWER = 0.8  # for the items still needed
POINTS, BITS = "points", "bits per byte"
Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Scores:
    """What one model scored on each item; a value that is not a number (nan) was not scored.

    clusters: the shared passage of each item; () where each stands on its own
    sizes: what the values are summed over, such as bytes: the score is sum of values / sum of sizes; None: the mean
    unit: "points", values 0 to 1, told times 100, more is better; or "bits per byte", less is better
    """

    name: str
    items: tuple[str, ...]
    values: np.ndarray
    clusters: tuple[str, ...] = ()
    sizes: np.ndarray | None = None
    unit: str = POINTS

    def __post_init__(self) -> None:
        count = len(self.items)
        for what, given in (
            ("values", self.values),
            ("clusters", self.clusters or self.items),
            ("sizes", self.sizes),
        ):
            if given is not None and len(given) != count:
                raise InputError(f"{self.name}: {len(given):,} {what} for {count:,} items; one for each")
        if len(set(self.items)) < count:
            raise InputError(
                f"{self.name}: {_repeated(self.items)!r} was scored twice; each item counts once"
            )

    @property
    def score(self) -> float:
        known = np.isfinite(self.values)
        sizes = known.sum() if self.sizes is None else self.sizes[known].sum()
        return float(self.values[known].sum() / sizes) if sizes else math.nan


@dataclass(frozen=True)
class Comparison:
    """`difference` is positive when `a` is better; reason says why a verdict could not be given.

    In a family of comparisons (`compare_many`), p_value is Holm's and the interval has the level at which Holm
    tested it, so that interval and verdict agree.
    """

    a: str
    b: str
    difference: Interval
    p_value: float
    verdict: Verdict
    more_items: int | None = None
    unit: str = POINTS
    method: str = ""
    reason: str = ""
    enough: bool = True  # items and clusters for any verdict, that of `not_worse` too
    items: int = 0
    clusters: int = 0
    unscored: int = 0

    @property
    def sentence(self) -> str:
        """The comparison in plain words; it names a winner only when the verdict does."""
        kind = "item" if self.unit == POINTS else "document"
        found = self.difference
        told = f"{percent(found.level)} interval"
        if self.verdict == "cannot tell":
            said = (
                f"cannot tell {self.a} and {self.b} apart: {amount(found.estimate, self.unit, '+')}, "
                f"{told} {number(found.low, self.unit, '+')} to {number(found.high, self.unit, '+')}"
            )
            said += f"; {self.reason}" if self.reason else ""
            if self.more_items:
                verb = "is" if self.more_items == 1 else "are"
                said += f"; about {counted(self.more_items, 'more ' + kind)} {verb} needed"
            elif not self.reason:
                said += f"; too close for any practical number of {kind}s"
        else:
            low, high = sorted((abs(found.low), abs(found.high)))
            said = (
                f"{self.a} is {self.verdict} than {self.b} by {amount(abs(found.estimate), self.unit)}, "
                f"{told} {number(low, self.unit)} to {number(high, self.unit)}"
            )
        return said + (
            f"; {counted(self.unscored, kind)} left out, not scored by both" if self.unscored else ""
        )


def text_scores(name: str, documents: Sequence[str], nats: np.ndarray, num_bytes: np.ndarray) -> Scores:
    """Bits per byte of text: a document is an item and its own cluster, its size is its bytes."""
    bits = np.asarray(nats, np.float64) / math.log(2)
    return Scores(name, tuple(documents), bits, sizes=np.asarray(num_bytes, np.float64), unit=BITS)


def score_interval(scores: Scores, level: float = LEVEL) -> Interval:
    """One model's score. Right-or-wrong answers: `share_interval`; anything else: `ratio_interval`, cut where no
    score can lie: below 0, and of points above 1."""
    known = _known(scores.values, scores)
    sums, sizes = by_cluster(scores.values[known], known, scores)
    if scores.unit == POINTS and len(sums) == 1:
        return Interval(float(sums[0] / sizes[0]), 0.0, 1.0, level)
    if right_or_wrong(scores.values[known], scores):
        return share_interval(sums, sizes, level)
    found = ratio_interval(sums, sizes, level)
    most = 1.0 if scores.unit == POINTS else math.inf
    return replace(found, low=max(found.low, 0.0), high=min(found.high, most))


def too_few(scores: Scores) -> str:
    """Why these items are too few for anything to be said, of one model or of two; "" where they are enough."""
    return shortage(scores)[0]


def shortage(scores: Scores) -> tuple[str, float]:
    """`too_few`, and how many items that lacks."""
    known = np.isfinite(scores.values)
    if not known.any():
        return f"none of {counted(len(known), 'item')} was scored", MIN_ITEMS
    _, sizes = by_cluster(scores.values[known], known, scores)
    return _too_few(scores, sizes, int(known.sum()))


def _too_few(scores: Scores, sizes: np.ndarray, items: int) -> tuple[str, float]:
    """Why nothing may be said on `items` in clusters of `sizes`, or "", and how many items that lacks."""
    clusters, effective = len(sizes), float(effective_clusters(sizes))
    if scores.sizes is None and items < MIN_ITEMS:
        return f"{counted(items, 'item')} are too few, {MIN_ITEMS} at least", MIN_ITEMS - items
    if effective < MIN_CLUSTERS:
        kind = "passage" if clusters < items else "document"
        unequal = clusters >= MIN_CLUSTERS or effective < 0.95 * clusters
        equal = min(round(effective), MIN_CLUSTERS - 1)  # not as many as it takes, whatever rounding says
        worth = f" of unequal size, worth {equal} equal ones," if unequal else ""
        lacking = items * (MIN_CLUSTERS / effective - 1)
        return f"{counted(clusters, kind)}{worth} are too few, {MIN_CLUSTERS} at least", lacking
    return "", 0.0


# ---------------------------------------------------------------------------------------------- two models


@dataclass(frozen=True)
class Paired:
    """What two models' answers come to, whatever the level that is asked for later."""

    a: Scores
    b: Scores
    sums: np.ndarray  # (clusters,): what `a` is ahead by
    sizes: np.ndarray
    gains: float  # items that only `a` has right; nan where answers are not right or wrong
    losses: float
    items: int
    unscored: int

    @property
    def p_value(self) -> float:
        if len(self.sums) < 2:
            return 1.0
        return float(paired_test(self.sums, self.sizes, self.gains, self.losses, LEVEL)[3])

    @property
    def too_few(self) -> tuple[str, float]:
        """Why these items are too few for any verdict, or "", and how many items that lacks."""
        return _too_few(self.a, self.sizes, self.items)

    def interval(self, level: float) -> Interval:
        if len(self.sums) < 2:
            return Interval(float(self.sums[0] / self.sizes[0]), -1.0, 1.0, level)
        ends = paired_test(self.sums, self.sizes, self.gains, self.losses, level)
        return Interval(float(ends[0]), float(ends[1]), float(ends[2]), level)


def compare(a: Scores, b: Scores, level: float = LEVEL) -> Comparison:
    """Is `a` better than `b`? Raises InputError unless both scored the same items."""
    paired = pair(a, b)
    return _concluded(paired, level, paired.p_value)


def compare_many(pairs: Sequence[tuple[Scores, Scores]], level: float = LEVEL) -> list[Comparison]:
    """Comparisons read together, such as one for each task: the chance of any false verdict stays below 1 - level.

    Holm (1979): the smallest of m p-values is held against (1 - level) / m, the next against (1 - level) / (m - 1),
    until one fails. Each interval is drawn at the level of its own step, those after the failing one at its level:
    so an interval leaves zero out exactly when Holm finds a difference. Read alone, an interval holds the true value
    at least as often as `level` says; that all of them do at once is not promised.
    """
    if not pairs:
        return []
    found = [pair(a, b) for a, b in pairs]
    p_values = np.array([paired.p_value for paired in found])
    adjusted, steps = holm(p_values, level)
    return [
        _concluded(paired, float(step), float(p), threshold=1 - level)
        for paired, p, step in zip(found, adjusted, steps, strict=True)
    ]


def holm(p_values: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """p-values adjusted for being read together (Holm 1979), and the level at which each was tested, last axis."""
    p_values = np.asarray(p_values, np.float64)
    count = p_values.shape[-1]
    order = np.argsort(p_values, -1, kind="stable")
    left = np.arange(count, 0, -1)
    adjusted = np.minimum(1, np.maximum.accumulate(np.take_along_axis(p_values, order, -1) * left, -1))
    failed = adjusted > 1 - level
    first = np.where(failed.any(-1), failed.argmax(-1), count - 1)[..., None]
    steps = 1 - (1 - level) / left[np.minimum(np.arange(count), first)]
    back = np.argsort(order, -1, kind="stable")
    return np.take_along_axis(adjusted, back, -1), np.take_along_axis(steps, back, -1)


def pair(a: Scores, b: Scores) -> Paired:
    """Raises InputError unless both scored the same items."""
    _check_same_items(a, b)
    ahead = a.values - b.values if a.unit == POINTS else b.values - a.values
    known = _known(ahead, a, b)
    sums, sizes = by_cluster(ahead[known], known, a)
    gains = losses = math.nan
    if right_or_wrong(a.values[known], a) and right_or_wrong(b.values[known], b):
        gains, losses = float((ahead[known] > 0).sum()), float((ahead[known] < 0).sum())
    if a.unit != POINTS:
        checked(sums, sizes)
    return Paired(a, b, sums, sizes, gains, losses, int(known.sum()), int((~known).sum()))


def _concluded(paired: Paired, level: float, p_value: float, threshold: float | None = None) -> Comparison:
    """threshold: what the p-value is held against, where that is not 1 - level."""
    a, b, clusters = paired.a, paired.b, len(paired.sums)
    interval = paired.interval(level)
    if clusters < 2:
        method, error = "none", np.asarray(math.nan)
    else:
        found = clustered(paired.sums, paired.sizes)
        error = found.error
        method = "difference of sums over clusters" if math.isnan(paired.gains) else "Tango's score interval"
        method += f", Student's t with {found.df:.0f} degrees of freedom"
    reason, lacking = paired.too_few
    enough, differing = not reason, paired.gains + paired.losses
    if enough and differing < MIN_DIFFERING:
        alone = counted(int(differing), "item")
        reason = f"one of them alone is right on only {alone}, and {MIN_DIFFERING} are the least"
    verdict: Verdict = "cannot tell"
    if not reason and p_value < (1 - level if threshold is None else threshold):
        verdict = "better" if interval.estimate > 0 else "worse"
    more = None
    if verdict == "cannot tell":
        more = more_items(interval.estimate, float(error), paired.items, level=level, lacking=lacking)
    return Comparison(
        a.name,
        b.name,
        interval,
        p_value,
        verdict,
        more_items=more,
        unit=a.unit,
        method=method,
        reason=reason,
        enough=enough,
        items=paired.items,
        clusters=clusters,
        unscored=paired.unscored,
    )


def paired_test(
    sums: np.ndarray, sizes: np.ndarray, gains: np.ndarray | float, losses: np.ndarray | float, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimate, low, high and p-value of a paired difference; `sums` and `sizes` (..., clusters).

    gains, losses: items right for one model only, where answers are right or wrong; else nan.
    """
    found = clustered(sums, sizes)
    if np.isnan(gains).all():
        return found.estimate, *found.ends(level), found.p_value
    items = sizes.sum(-1)
    design = design_effect(found, (gains + losses) / items - found.estimate**2, items)
    low, high = tango(gains / design, losses / design, items / design, t_quantile(found.df, level))
    score = (gains - losses) / np.sqrt(np.maximum(gains + losses, 1) * design)
    return found.estimate, low, high, 2 * special.stdtr(found.df, -np.abs(score))


def tango(
    gains: np.ndarray, losses: np.ndarray, items: np.ndarray, quantile: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the difference of two paired shares: the score test turned round (Tango 1998), by bisection.

    For clustered items the counts are divided by the design effect, and need not be whole.
    """
    ends = _tango_low(np.stack([gains, losses]), np.stack([losses, gains]), items, quantile)
    return ends[0], -ends[1]


def _tango_low(gains: np.ndarray, losses: np.ndarray, items: np.ndarray, quantile: np.ndarray) -> np.ndarray:
    """Cut in 2 and in 2 again, or for a few numbers, where a call costs more than what it computes, in 64."""
    high = (gains - losses) / items
    low = np.full_like(high, -1.0)
    bits = 1 if high.size > 100 else 6
    cuts = (np.arange(1, 2**bits) / 2**bits).reshape(-1, *[1] * high.ndim)
    for _ in range(math.ceil(45 / bits)):
        width = (high - low) / 2**bits
        far = _tango_score(gains, losses, items, low + cuts * (high - low)) > quantile
        low = low + width * far.sum(0)
        high = low + width
    return high


def _tango_score(
    gains: np.ndarray, losses: np.ndarray, items: np.ndarray, difference: np.ndarray
) -> np.ndarray:
    """How many standard errors the counts lie above `difference`; the share lost is fitted under it."""
    linear = (2 * items - gains + losses) * difference - gains - losses
    constant = losses * difference * (1 - difference)
    lost = (np.sqrt(np.maximum(linear**2 + 8 * items * constant, 0)) - linear) / (4 * items)
    variance = items * (2 * lost + difference * (1 - difference))
    return (gains - losses - items * difference) / np.sqrt(np.maximum(variance, 1e-300))


def more_items(
    estimate: float,
    error: float,
    items: int,
    *,
    level: float = LEVEL,
    power: float = POWER,
    lacking: float = 0.0,
) -> int | None:
    """How many more would find a difference as large as it looks, with `power`; `lacking` is a least number.

    The error shrinks with the root of the items, and must become estimate / (z of level + z of power). None
    when the difference looks like nothing: a hundred times the items would not find it.
    """
    wanted = 0.0
    if error > 0 and math.isfinite(error):
        reach = abs(estimate) / (special.ndtri((1 + level) / 2) + special.ndtri(power))
        wanted = items * ((error / reach) ** 2 - 1) if reach > 0.1 * error else math.inf
    wanted = max(wanted, lacking)
    if not math.isfinite(wanted) or wanted <= 0:
        return None
    step = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    return int(math.ceil(wanted / step) * step)


# ---------------------------------------------------------------------------------------------- single questions


def mcnemar(gains: int, losses: int, mid_p: bool = False) -> float:
    """p-value that `gains` and `losses` are equally likely (McNemar 1947), exact by the binomial.

    The exact test errs on the side of silence; mid_p counts only half of what was observed (Fagerland, Lydersen &
    Laake 2013) and comes close to what it promises.
    """
    fewer, both = min(gains, losses), gains + losses
    tail = special.bdtr(fewer, both, 0.5)
    if mid_p:
        tail -= special.binom(both, fewer) * 0.5 ** (both + 1)
    return float(min(1.0, 2 * tail))


@dataclass(frozen=True)
class NotWorse:
    """Whether `a` is worse than `b` by less than `margin`, in the unit of the scores (0.01 is one point)."""

    comparison: Comparison
    margin: float
    verdict: Literal["not worse", "worse", "cannot tell"]

    @property
    def sentence(self) -> str:
        found, unit = self.comparison.difference, self.comparison.unit
        a, b, margin = self.comparison.a, self.comparison.b, amount(self.margin, unit)
        ends = f"{percent(found.level)} interval of the difference {number(found.low, unit, '+')} to "
        ends += number(found.high, unit, "+")
        if self.verdict == "not worse":
            return f"{a} is not worse than {b} by more than {margin}, {ends}"
        if self.verdict == "worse":
            return f"{a} is worse than {b} by more than {margin}, {ends}"
        why = f"; {self.comparison.reason}" if self.comparison.reason else ""
        return f"cannot tell whether {a} is worse than {b} by more than {margin}, {ends}{why}"


def not_worse(comparison: Comparison, margin: float) -> NotWorse:
    """Non-inferiority: the whole interval must lie above -margin, so lack of data never passes.

    The two-sided interval at 95% is a one-sided test at 2.5%, as is usual (ICH E9, 1998, section 3.3.2).
    """
    if not margin > 0:
        raise InputError(f"a margin of {margin}; say how much worse would still be accepted, above 0")
    found = comparison.difference
    verdict: Literal["not worse", "worse", "cannot tell"] = "cannot tell"
    if comparison.enough:
        verdict = "not worse" if found.low > -margin else "worse" if found.high < -margin else verdict
    return NotWorse(comparison, margin, verdict)


# ---------------------------------------------------------------------------------------------- words


def number(value: float, unit: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if unit == POINTS else f"{value:{sign}.3f}"


def amount(value: float, unit: str, sign: str = "") -> str:
    return f"{number(value, unit, sign)} {unit}"


# ---------------------------------------------------------------------------------------------- items


def _known(values: np.ndarray, *scores: Scores) -> np.ndarray:
    """Which items were scored by all; refuses when none was."""
    known = np.isfinite(values)
    if not known.any():
        names = " and ".join(one.name for one in scores)
        raise InputError(f"none of the {len(values):,} items was scored by {names}; run the evaluation again")
    return known


def by_cluster(values: np.ndarray, known: np.ndarray, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sizes of the clusters that have a known value."""
    sizes = np.ones(len(values)) if scores.sizes is None else scores.sizes[known]
    if not scores.clusters:
        return values, sizes
    _, number = np.unique(np.asarray(scores.clusters)[known], return_inverse=True)
    return np.bincount(number, values), np.bincount(number, sizes)


def right_or_wrong(values: np.ndarray, scores: Scores) -> bool:
    return scores.sizes is None and bool(((values == 0) | (values == 1)).all())


def _repeated(items: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(item for item in items if item in seen or seen.add(item))  # type: ignore[func-returns-value]


def _check_same_items(a: Scores, b: Scores) -> None:
    if a.unit != b.unit:
        raise InputError(f"{a.name} was scored in {a.unit} and {b.name} in {b.unit}; compare like with like")
    same_sizes = a.sizes is b.sizes or (
        a.sizes is not None and b.sizes is not None and np.array_equal(a.sizes, b.sizes)
    )
    if a.items == b.items and same_sizes and a.clusters == b.clusters:
        return
    kind = "documents" if a.unit == BITS else "items"
    only_a, only_b = set(a.items) - set(b.items), set(b.items) - set(a.items)
    if only_a or only_b:
        found = [
            f"{len(only):,} only by {name} (such as {min(only)!r})"
            for name, only in ((a.name, only_a), (b.name, only_b))
            if only
        ]
        what = "; ".join(found)
    elif a.items != b.items:
        what = "the same ones in another order"
    elif not same_sizes:
        what = "some with other sizes in bytes"
    else:
        what = "the same ones grouped by other passages"
    raise InputError(
        f"{a.name} and {b.name} did not score the same {kind}: {what}. "
        "A paired comparison needs both on one set: score them again together"
    )
