"""Two models on the same documents: which is better, by how much, and can we tell?

Long and strange documents are hard for every model, so most of the spread in bits per byte is the
documents' own. Taking the difference document by document removes it (the paired bootstrap; Koehn 2004):
two models whose separate intervals overlap can still be told apart. Only valid when both scored the very
same documents, which is checked.

A positive difference always means that the first model is better: it needs so many bits per byte fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from behemoth.base.errors import InputError
from behemoth.stats.bootstrap import LEVEL, RESAMPLES, Interval, ratio_interval


@dataclass(frozen=True)
class Scores:
    """What one model needed for each document; `nats` and `num_bytes` are (documents,), in that order."""

    name: str
    documents: tuple[str, ...]
    nats: np.ndarray
    num_bytes: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """`difference` is bits per byte of `b` minus those of `a`: positive when `a` is better."""

    a: str
    b: str
    difference: Interval

    @property
    def sentence(self) -> str:
        return sentence(self.a, self.b, self.difference)


def bits_per_byte(
    scores: Scores, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bits needed per byte of text, all documents together: sum of nats / ln 2 / sum of bytes."""
    return ratio_interval(
        scores.nats / math.log(2), scores.num_bytes, level=level, resamples=resamples, seed=seed
    )


def compare(
    a: Scores, b: Scores, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """How many bits per byte `a` saves over `b`. Raises InputError unless both scored the same documents."""
    _check_same_items(a, b)
    saved = (b.nats - a.nats) / math.log(2)
    return Comparison(
        a.name, b.name, ratio_interval(saved, a.num_bytes, level=level, resamples=resamples, seed=seed)
    )


def sentence(a: str, b: str, difference: Interval, unit: str = "bits per byte") -> str:
    """The comparison in plain words; it claims a winner only when the interval leaves zero out."""
    level = f"{difference.level:.0%} interval"
    if not difference.excludes_zero:
        return (
            f"cannot tell {a} and {b} apart: {difference.estimate:+.3f} {unit} "
            f"({level} {difference.low:+.3f} to {difference.high:+.3f})"
        )
    low, high = sorted((abs(difference.low), abs(difference.high)))
    word = "better" if difference.low > 0 else "worse"
    return (
        f"{a} is {word} than {b} by {abs(difference.estimate):.3f} {unit} ({level} {low:.3f} to {high:.3f})"
    )


def _check_same_items(a: Scores, b: Scores) -> None:
    if a.documents == b.documents and np.array_equal(a.num_bytes, b.num_bytes):
        return
    only_a, only_b = set(a.documents) - set(b.documents), set(b.documents) - set(a.documents)
    if only_a or only_b:
        found = [
            f"{len(only)} only by {name} (such as {min(only)!r})"
            for name, only in ((a.name, only_a), (b.name, only_b))
            if only
        ]
        what = "; ".join(found)
    elif sorted(a.documents) == sorted(b.documents) and a.documents != b.documents:
        what = "the same ones in another order"
    else:
        what = "some with other sizes in bytes"
    raise InputError(
        f"{a.name} and {b.name} did not score the same documents: {what}. "
        "A paired comparison needs both on one set: score them again together"
    )
