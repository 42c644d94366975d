"""Do raters agree beyond chance? Two people, a person and a judge model, or many with gaps.

Cohen's kappa (Cohen 1960; weighted 1968) and Krippendorff's alpha (Krippendorff 2004, chapter 11) are both 1 less
observed over expected disagreement, computed from a table that is a sum over items. So the spread is that of leaving
out one item's table at a time (the jackknife; for kappa Fleiss & Davies 1982), with Student's t.

Leaves out: whether 0.8 is enough. That depends on what is decided by it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from behemoth.base.errors import InputError
from behemoth.stats.intervals import LEVEL, Interval, t_quantile

Weights = Literal["nominal", "linear", "quadratic"]


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    weights: Weights = "nominal",
    categories: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Two raters who rated the same items. linear and quadratic weights count steps between `categories`, which are
    in ascending order; by default those that occur, sorted."""
    if len(first) != len(second):
        raise InputError(f"{len(first)} ratings beside {len(second)}; both rate the same items")
    codes, count = _coded([*first, *second], categories)
    tables = np.zeros((len(first), count, count))
    tables[np.arange(len(first)), codes[: len(first)], codes[len(first) :]] = 1
    cost = _costs(weights, count)

    def kappa(table: np.ndarray) -> np.ndarray:
        chance = (
            table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :] / table.sum((-2, -1))[..., None, None]
        )
        return _one_less_ratio((cost * table).sum((-2, -1)), (cost * chance).sum((-2, -1)))

    return _jackknifed(tables, kappa, level)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Hashable | None]],
    *,
    weights: Weights = "nominal",
    categories: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Any number of raters: ratings[item][rater], None where one did not rate. An item rated once tells nothing.

    quadratic weights on equally spaced categories are Krippendorff's interval data.
    """
    items = [[rating for rating in item if rating is not None] for item in ratings]
    items = [item for item in items if len(item) > 1]
    codes, count = _coded([rating for item in items for rating in item], categories)
    counts = np.zeros((len(items), count))
    np.add.at(counts, (np.repeat(np.arange(len(items)), [len(item) for item in items]), codes), 1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(count)
    tables = pairs / (counts.sum(1) - 1)[:, None, None]
    cost = _costs(weights, count)

    def alpha(table: np.ndarray) -> np.ndarray:
        each, total = table.sum(-1), table.sum((-2, -1))[..., None, None]
        chance = each[..., :, None] * each[..., None, :] / (total - 1)  # equal ratings cost nothing
        return _one_less_ratio((cost * table).sum((-2, -1)), (cost * chance).sum((-2, -1)))

    return _jackknifed(tables, alpha, level)


def _jackknifed(tables: np.ndarray, measure: Callable[[np.ndarray], np.ndarray], level: float) -> Interval:
    """`measure` of the sum of `tables`, (items, categories, categories), and what leaving out each item changes."""
    count = len(tables)
    if count < 2:
        raise InputError(f"agreement on {count} item(s) rated twice or more; rate 2 at least, better 100")
    total = tables.sum(0)
    estimate, without = float(measure(total)), measure(total - tables)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(t_quantile(count - 1, level) * error)
    return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half), level)


def _one_less_ratio(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where everybody always says the same, chance explains all: there is no agreement to be seen, 0."""
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), 0.0)


def _costs(weights: Weights, count: int) -> np.ndarray:
    steps = np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(np.float64)
    match weights:
        case "nominal":
            return np.minimum(steps, 1)
        case "linear":
            return steps
        case "quadratic":
            return steps**2


def _coded(ratings: list[Hashable], categories: Sequence[Hashable] | None) -> tuple[np.ndarray, int]:
    known = list(categories) if categories is not None else sorted(set(ratings))  # type: ignore[type-var]
    number = {category: i for i, category in enumerate(known)}
    if strange := sorted({str(rating) for rating in ratings if rating not in number}):
        raise InputError(f"rating {strange[0]!r} is none of the categories {known}")
    return np.array([number[rating] for rating in ratings], np.int64), len(known)
