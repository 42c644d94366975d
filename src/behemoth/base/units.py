"""Numbers as people write and read them: 400M parameters, 2.5B tokens, 1.2 GB, 3 min 20 s.

Counts are decimal (K = 1,000), and so are bytes (1 GB = 10^9 bytes), as in papers and on the labels of disks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from behemoth.base.errors import InputError

SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(value: str | int | float) -> int:
    """Read "400M", "2.5B", "820_000", 2e9 or 2048 as a whole number; InputError for anything else."""
    text = str(value).strip() if not isinstance(value, bool) else "true"
    match = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([KMBT]?)", text, re.IGNORECASE)
    if match:
        number = Decimal(match[1].replace("_", "").replace(",", "")) * SCALES[match[2].upper()]
        if number == number.to_integral_value():
            return int(number)
    raise InputError(f"{value!r} is not a count; write a whole number such as 820_000, 4M or 2.5B")


def human_count(number: float) -> str:
    """4_000_000 -> "4.0M", 1_250_432 -> "1.25M", 2048 -> "2,048": three digits that matter."""
    if abs(number) < 10_000:
        return f"{number:,.0f}"
    return _scaled(number, 1000, ["K", "M", "B", "T"], "")


def human_bytes(number: float) -> str:
    """1_250_000 -> "1.25 MB"."""
    if abs(number) < 1000:
        return f"{number:.0f} B"
    return _scaled(number, 1000, ["kB", "MB", "GB", "TB", "PB"], " ")


def human_duration(seconds: float) -> str:
    """0.42 -> "0.42 s", 200 -> "3 min 20 s", 9000 -> "2 h 30 min", 200_000 -> "2 d 7 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for limit, large, large_name, small, small_name in (
        (3600, 60, "min", 1, "s"),
        (86_400, 3600, "h", 60, "min"),
        (float("inf"), 86_400, "d", 3600, "h"),
    ):
        if whole < limit:
            rest = whole % large // small
            return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("unreachable")


def percent(share: float) -> str:
    """0.95 as 95%, 0.9975 as 99.75%."""
    return f"{round(100 * share, 2):g}%"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, noun: str) -> str:
    """1 -> "1 item", 1200 -> "1,200 items": for nouns that end in a plain s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _scaled(number: float, base: int, names: list[str], space: str) -> str:
    value = number / base
    for name in names[:-1]:
        if abs(value) < 999.5:
            return _three_digits(value) + space + name
        value /= base
    return _three_digits(value) + space + names[-1]


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text
