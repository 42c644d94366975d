"""Before a run: how small a difference could be seen, and how many items a difference of some size needs.

Two models on the same items (Miller 2024, arXiv 2411.00640, section 5). What matters is how much the differences
between them spread: for right-or-wrong answers that is the share of items on which just one of them is right, for
anything else the standard deviation of the differences. Items that share passages count for less, by the design
effect. What is found is that a difference of at least the planned size is called one in `power` of all repetitions;
a verdict also needs the least numbers of stats/paired.py.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from behemoth.base.errors import InputError
from behemoth.stats.intervals import LEVEL, effective_clusters

POWER = 0.8


def items_needed(
    effect: float,
    *,
    differing: float | None = None,
    sd: float | None = None,
    power: float = POWER,
    level: float = LEVEL,
    design: float = 1.0,
) -> int:
    """Items on which a true difference of `effect` (0.02 is two points) is found with probability `power`.

    differing: share of items that just one model has right (Connor 1987, for McNemar's test: `effect` is the excess of
    one model's share over the other's); or sd: the standard deviation of the differences by item. design: see
    `design_effect`. Student's t costs half a squared quantile of items more (Guenther 1981).
    """
    spread, under = _spreads(effect, differing, sd)
    z, reach = special.ndtri((1 + level) / 2), special.ndtri(power)
    independent = ((z * spread + reach * under) / effect) ** 2 + z * z / 2
    return math.ceil(independent * design)


def smallest_effect(
    items: int,
    *,
    differing: float | None = None,
    sd: float | None = None,
    power: float = POWER,
    level: float = LEVEL,
    design: float = 1.0,
) -> float:
    """The smallest true difference that `items` find with probability `power`: `items_needed` turned round.

    nan where even the largest possible difference, every differing item in favour of one model, would not be.
    """
    needs = {"differing": differing, "sd": sd, "power": power, "level": level, "design": design}
    low, high = 1e-9, differing if differing is not None else 1e9
    if items_needed(high, **needs) > items:  # type: ignore[arg-type]
        return math.nan
    for _ in range(80):
        middle = math.sqrt(low * high)
        enough = items_needed(middle, **needs) <= items  # type: ignore[arg-type]
        low, high = (low, middle) if enough else (middle, high)
    return high


def spread_of_difference(score: float, correlation: float) -> float:
    """Standard deviation of the difference of two right-or-wrong answers: both right with probability `score`,
    correlated over items, for language models by 0.3 to 0.7 (Miller 2024, section 4)."""
    if not (0 <= score <= 1 and -1 <= correlation <= 1):
        raise InputError(
            f"score {score}, correlation {correlation}; a score lies in 0 to 1, a correlation in -1 to 1"
        )
    return math.sqrt(2 * score * (1 - score) * (1 - correlation))


def design_effect(sizes: np.ndarray, correlation: float) -> float:
    """How many items in clusters of `sizes` tell as much as one that stands alone, where answers within a cluster are
    alike by `correlation`: 1 + (mean size, weighted by size, - 1) x correlation (Kish 1965, section 8.2)."""
    sizes = np.asarray(sizes, np.float64)
    return 1 + (float(sizes.sum() / effective_clusters(sizes)) - 1) * correlation


def _spreads(effect: float, differing: float | None, sd: float | None) -> tuple[float, float]:
    """Standard deviation of a difference where there is none in truth, and where it is `effect`."""
    if not effect > 0:
        raise InputError(f"effect {effect}; say the difference that should be found, above 0")
    if (differing is None) == (sd is None):
        raise InputError("say either `differing` (right-or-wrong answers) or `sd` (anything else)")
    if sd is not None:
        return sd, sd
    assert differing is not None
    if not effect <= differing <= 1:
        raise InputError(
            f"an effect of {effect:g} with {differing:.1%} of the items differing; the effect is part of what differs"
        )
    return math.sqrt(differing), math.sqrt(differing - effect**2)
