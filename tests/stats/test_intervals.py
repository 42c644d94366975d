import numpy as np
import pytest
from scipy import special

from behemoth.base.errors import InputError
from behemoth.stats.intervals import (
    Interval,
    clopper_pearson,
    clustered,
    effective_clusters,
    jeffreys,
    ratio_interval,
    share_ends,
    share_interval,
    wilson,
)


def ends(interval):
    return pytest.approx([interval.low, interval.high], abs=5e-5)


def test_shares_as_published():
    """Newcombe 1998, table 1: 81 of 263 and 0 of 20."""
    assert ends(wilson(81, 263)) == [0.2553, 0.3662]
    assert ends(clopper_pearson(81, 263)) == [0.2527, 0.3676]
    assert ends(wilson(0, 20)) == [0.0, 0.1611]
    assert ends(clopper_pearson(0, 20)) == [0.0, 0.1684]
    assert clopper_pearson(0, 300, level=0.9).high == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert clopper_pearson(20, 20).high == 1.0


@pytest.mark.parametrize(("hits", "trials"), [(3, 2), (-1, 5), (0, 0)])
def test_an_impossible_share_is_refused(hits, trials):
    with pytest.raises(InputError, match="hits in"):
        wilson(hits, trials)
    with pytest.raises(InputError, match="hits in"):
        clopper_pearson(hits, trials)


def covered(low, high, trials, share):
    hits = np.arange(trials + 1)
    chance = special.binom(trials, hits) * share**hits * (1 - share) ** (trials - hits)
    return chance[(low <= share) & (share <= high)].sum()


def test_exact_coverage_of_shares():
    """Added up over all outcomes, no draws: exact never falls short, Jeffreys strays less than Wilson."""
    hits, strays = np.arange(101.0), {}
    wilsons = np.array([[wilson(h, 100).low, wilson(h, 100).high] for h in hits]).T
    exact = np.array([[clopper_pearson(h, 100).low, clopper_pearson(h, 100).high] for h in hits]).T
    for name, (low, high) in {
        "wilson": wilsons,
        "jeffreys": jeffreys(hits, np.full(101, 100.0)),
        "exact": exact,
    }.items():
        strays[name] = np.array([covered(low, high, 100, p) for p in np.linspace(0.05, 0.95, 91)])
    assert strays["exact"].min() >= 0.95
    assert abs(strays["wilson"].mean() - 0.95) < 0.002
    assert abs(strays["jeffreys"].mean() - 0.95) < 0.002
    inside = {name: ((found >= 0.94) & (found <= 0.96)).mean() for name, found in strays.items()}
    assert inside["jeffreys"] > 0.85 > inside["wilson"]


def test_effective_clusters():
    assert effective_clusters(np.ones(40)) == 40
    assert effective_clusters(np.array([1000.0] + [1.0] * 39)) == pytest.approx(1.08, abs=0.01)


def test_standard_error_of_single_items_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=50)
    found = clustered(values, np.ones(50))
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert found.df == pytest.approx(49)


def test_standard_error_is_of_clusters_and_not_of_items():
    """Every item three times over, as a passage of three: nothing is known better for it."""
    values = np.random.default_rng(0).normal(size=50)
    tripled = clustered(3 * values, np.full(50, 3.0))
    assert tripled.error == pytest.approx(clustered(values, np.ones(50)).error)
    flat = clustered(np.repeat(values, 3), np.ones(150))
    assert flat.error < 0.6 * tripled.error


def test_the_jackknife_is_what_leaving_out_each_cluster_changes():
    generator = np.random.default_rng(1)
    sizes, sums = generator.integers(1, 50, 20).astype(float), generator.normal(size=20)
    estimate = sums.sum() / sizes.sum()
    left_out = [np.delete(sums, i).sum() / np.delete(sizes, i).sum() for i in range(20)]
    slow = np.sqrt(((np.array(left_out) - estimate) ** 2).sum())
    assert clustered(sums, sizes, correction=1).error == pytest.approx(slow)


def test_a_long_tail_lengthens_only_its_own_side():
    values = np.random.default_rng(2).exponential(size=60)
    found = ratio_interval(values, np.ones(60))
    t = special.stdtrit(59, 0.975) * values.std(ddof=1) / np.sqrt(60)
    assert found.high - found.estimate > 1.1 * t
    assert found.estimate - found.low == pytest.approx(t)


def test_p_value_belongs_to_the_interval():
    generator = np.random.default_rng(3)
    sums, sizes = (
        generator.exponential(size=(300, 40)) - 0.7,
        generator.integers(1, 9, (300, 40)).astype(float),
    )
    found = clustered(sums, sizes)
    for level in (0.8, 0.95, 0.999):
        low, high = found.ends(level)
        assert np.array_equal((low > 0) | (high < 0), found.p_value < 1 - level)


def test_clusters_that_all_agree_give_a_point():
    found = ratio_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert (found.estimate, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert clustered(np.zeros(40), np.ones(40)).p_value == 1
    assert clustered(np.ones(40), np.ones(40)).p_value == 0


def test_shares_of_clustered_answers_are_less_certain():
    right = np.array([5.0, 0.0] * 20)
    alone, together = (
        share_interval(np.repeat(right / 5, 5), np.ones(200)),
        share_interval(right, np.full(40, 5.0)),
    )
    assert alone.estimate == together.estimate == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert share_interval(np.full(40, 5.0), np.full(40, 5.0)).low == pytest.approx(
        0.91, abs=0.01
    )  # as of 40 items


def test_formulas_work_along_the_last_axis():
    sizes = np.random.default_rng(4).integers(1, 9, (3, 40)).astype(float)
    hits = np.floor(sizes * 0.6)
    many = np.stack(share_ends(hits, sizes), -1)
    for row, size, wanted in zip(hits, sizes, many, strict=True):
        one = share_interval(row, size)
        assert wanted == pytest.approx([one.estimate, one.low, one.high])


def test_an_interval_knows_whether_it_leaves_zero_out():
    assert Interval(0.1, 0.05, 0.2).excludes_zero and Interval(-0.1, -0.2, -0.05).excludes_zero
    assert not Interval(0.1, -0.05, 0.2).excludes_zero
