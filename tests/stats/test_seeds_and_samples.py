from itertools import combinations

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.stats.samples import pass_at_k, pass_at_k_interval
from behemoth.stats.seeds import seed_band, seed_difference


@pytest.mark.parametrize(
    ("samples", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 4, 2), (5, 0, 5), (5, 3, 4)]
)
def test_pass_at_k_by_looking_at_every_choice(samples, right, k):
    choices = list(combinations([True] * right + [False] * (samples - right), k))
    wanted = sum(map(any, choices)) / len(choices)
    assert pass_at_k(np.array([samples]), np.array([right]), k) == pytest.approx([wanted])


def test_pass_at_k_of_many_samples_does_not_overflow():
    found = pass_at_k(np.full(3, 10_000), np.array([0, 1, 10_000]), 100)
    assert found == pytest.approx([0, 0.01, 1])


def test_pass_at_k_interval_is_over_problems():
    right = np.random.default_rng(0).integers(0, 11, 100)
    found = pass_at_k_interval(np.full(100, 10), right, 1)
    assert found.estimate == pytest.approx(right.mean() / 10)
    assert found.high - found.low == pytest.approx(2 * 1.984 * (right / 10).std(ddof=1) / 10, rel=0.02)
    single = pass_at_k_interval(np.ones(100, int), np.arange(100) % 2, 1)
    assert (single.low, single.high) == pytest.approx((0.4035, 0.5965), abs=1e-3)
    with pytest.raises(InputError, match="pass@11 from 10"):
        pass_at_k(np.full(2, 10), np.array([1, 2]), 11)
    with pytest.raises(InputError, match="more right"):
        pass_at_k(np.array([2]), np.array([3]), 1)


def test_band_by_hand():
    """Mean 2, standard deviation 1, t of 2 degrees of freedom 4.303."""
    band = seed_band([1.0, 2.0, 3.0])
    assert (band.seeds, band.mean.estimate) == (3, 2.0)
    assert band.mean.high - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    assert band.another.high - 2 == pytest.approx(4.3027 * (4 / 3) ** 0.5, abs=1e-3)
    assert band.noise == pytest.approx(4.3027 * 2**0.5, abs=1e-3)


def test_difference_between_recipes():
    """Welch's test on a textbook pair of samples, worked out by hand: t = -1.27, df = 7.02."""
    a, b = [3.0, 4.0, 5.0, 6.0, 7.0], [4.0, 5.0, 8.0, 9.0, 6.5]
    found, p_value = seed_difference(a, b)
    spread = (np.var(a, ddof=1) / 5 + np.var(b, ddof=1) / 5) ** 0.5
    assert found.estimate == pytest.approx(-1.5)
    assert -1.5 / spread == pytest.approx(-1.289, abs=0.01)
    assert p_value == pytest.approx(0.237, abs=0.01)
    assert found.low < 0 < found.high
    assert seed_difference([1.0, 1.0], [2.0, 2.0])[1] == 0


def test_one_seed_is_no_band():
    with pytest.raises(InputError, match="at least 2 finite"):
        seed_band([0.5])
    with pytest.raises(InputError, match="at least 2 finite"):
        seed_band([0.5, float("nan")])
