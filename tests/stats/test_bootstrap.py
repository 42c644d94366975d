import time

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.stats import bootstrap
from behemoth.stats.bootstrap import bootstrap_interval
from behemoth.stats.intervals import Interval, ratio_interval


def skewed_documents(generator, count):
    """Sizes over two orders of magnitude, difficulty that depends on size: as real files are."""
    size = np.exp(generator.normal(8, 0.8, count)).round() + 1
    rate = 2.0 + 0.3 * generator.normal(size=count) - 0.1 * (np.log(size) - 8)
    return rate * size, size


def test_estimate_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    interval = bootstrap_interval(np.array([10.0, 30.0]), np.array([10.0, 10.0]))
    assert interval.estimate == 2.0
    heavy = bootstrap_interval(np.array([100.0, 30.0]), np.array([100.0, 10.0]))
    assert heavy.estimate == pytest.approx(130 / 110)


def test_agrees_with_the_formula_where_there_are_many_documents():
    bits, size = skewed_documents(np.random.default_rng(0), 2000)
    formula, drawn = ratio_interval(bits, size), bootstrap_interval(bits, size, resamples=4000)
    assert [drawn.low, drawn.high] == pytest.approx([formula.low, formula.high], abs=0.1 * width(formula))


def width(interval):
    return interval.high - interval.low


def test_a_higher_level_is_wider_and_more_documents_are_narrower():
    bits, size = skewed_documents(np.random.default_rng(1), 1600)
    assert width(bootstrap_interval(bits, size, level=0.99)) > width(
        bootstrap_interval(bits, size, level=0.8)
    )
    assert width(bootstrap_interval(bits[:100], size[:100])) > 2 * width(bootstrap_interval(bits, size))


def test_agrees_with_a_slow_obvious_bootstrap():
    generator = np.random.default_rng(5)
    size = generator.uniform(90, 110, 200)
    bits = size * generator.normal(2, 0.2, 200)
    draws = []
    for _ in range(4000):
        chosen = generator.integers(200, size=200)
        draws.append(bits[chosen].sum() / size[chosen].sum())
    fast = bootstrap_interval(bits, size)
    assert [fast.low, fast.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.003)


def test_same_seed_same_interval_and_fast():
    bits, size = skewed_documents(np.random.default_rng(2), 400)
    started = time.process_time()
    first = bootstrap_interval(bits, size, resamples=2000)
    assert time.process_time() - started < 0.2
    assert first == bootstrap_interval(bits, size, resamples=2000)
    assert first != bootstrap_interval(bits, size, resamples=2000, seed=1)


def test_blocks_of_draws_change_nothing(monkeypatch):
    bits, size = skewed_documents(np.random.default_rng(3), 50)
    whole = bootstrap_interval(bits, size, resamples=1000)
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * 50)  # seven resamples at a time, the last block a short one
    assert bootstrap_interval(bits, size, resamples=1000) == whole


def test_documents_that_all_agree_give_a_point():
    assert bootstrap_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])) == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("bits", "size", "message"),
    [
        ([1.0], [1.0], "no interval from 1 document"),
        ([1.0, np.nan], [1.0, 1.0], "document number 1 is not a finite number"),
        ([1.0, 1.0], [1.0, 0.0], "document number 1 has no bytes"),
        ([1.0, 1.0], [1.0], "both must be"),
    ],
)
def test_bad_input_is_refused_by_name(bits, size, message):
    for interval in (bootstrap_interval, ratio_interval):
        with pytest.raises(InputError, match=message):
            interval(np.array(bits), np.array(size))
