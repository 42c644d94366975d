import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from behemoth.stats import bars
from behemoth.stats.bars import ABOVE, BELOW, MIN_STIRRING, beyond
from behemoth.stats.intervals import Interval, clopper_pearson
from behemoth.stats.paired import MIN_DIFFERING, Scores, holm, pair, tango


def normal(estimate, error=1.0):
    """The interval of an estimate with a known error: its one-sided p-value has a closed form."""

    def at(level):
        half = error * special.ndtri((1 + level) / 2)
        return Interval(estimate, estimate - half, estimate + half, level)

    return at


def fixed(low, high):
    return lambda level: Interval((low + high) / 2, low, high, level)


def statuses(found):
    return [one.status for one in found]


@pytest.mark.parametrize(
    ("low", "high", "side", "status"),
    [
        (0.2, 0.4, ABOVE, "holds"),
        (0.0, 0.1, ABOVE, "unknown"),
        (0.1, 0.2, ABOVE, "unknown"),  # at the bar is not beyond it
        (0.0, 0.1, BELOW, "unknown"),
        (-0.2, 0.0, ABOVE, "fails"),
        (0.0, 0.05, BELOW, "holds"),
        (0.05, 0.2, BELOW, "unknown"),
        (0.2, 0.3, BELOW, "fails"),
        (math.nan, math.nan, ABOVE, "unknown"),
    ],
)
def test_one_against_its_bar(low, high, side, status):
    assert statuses(bars.tested([fixed(low, high)], [0.1], [side], 0.95)) == [status]


def test_nothing_to_test():
    assert bars.tested([], [], [], 0.95) == []


def test_each_is_decided_at_the_level_of_its_step():
    """Of three the first two hold at 1 - 5% / 3, and the last is then alone at 95%."""
    found = bars.tested([normal(3), normal(2), normal(2.5)], [0, 0, 0], [ABOVE] * 3, 0.95)
    assert statuses(found) == ["holds", "holds", "holds"]
    assert [one.interval.level for one in found] == pytest.approx([1 - 0.05 / 3, 0.95, 1 - 0.05 / 3])
    assert [(one.among, one.family) for one in found] == [(3, 3), (1, 3), (3, 3)]


def test_what_does_not_hold_is_shown_at_the_step_that_stopped():
    found = bars.tested([normal(3), normal(1.9), normal(0.1)], [0, 0, 0], [ABOVE] * 3, 0.95)
    assert statuses(found) == ["holds", "unknown", "unknown"]
    assert [one.interval.level for one in found] == pytest.approx([1 - 0.05 / 3, 0.975, 0.975])


def test_failing_needs_the_plain_level_only():
    found = bars.tested([normal(-2), normal(2)], [0, 0], [ABOVE] * 2, 0.95)
    assert statuses(found) == ["fails", "unknown"]  # 2 errors do not reach 97.5%
    assert found[0].interval.level == 0.95 and found[0].interval.high < 0
    assert [(one.among, one.family) for one in found] == [(1, 2), (2, 2)]


def test_what_cannot_be_measured_stays_in_the_family():
    assert statuses(bars.tested([normal(2.1)], [0], [ABOVE], 0.95)) == ["holds"]
    found = bars.tested([normal(2.1), None], [0, 0], [ABOVE] * 2, 0.95)
    assert found[1] == bars.Tested(None, "unknown", 2, 2) and statuses(found) == ["unknown", "unknown"]
    assert statuses(bars.tested([None, None], [0, 0], [ABOVE] * 2, 0.95)) == ["unknown", "unknown"]


@given(
    st.lists(
        st.tuples(st.floats(-1, 6), st.floats(-1, 1), st.sampled_from([ABOVE, BELOW])),
        min_size=1,
        max_size=12,
    )
)
def test_holm_by_intervals_is_holm_by_p_values(drawn):
    """One-sided p-values, held against half of 5%, as the ends of two-sided intervals are."""
    p_values = np.array([stats.norm.sf(side * (estimate - bar)) for estimate, bar, side in drawn])
    adjusted, _ = holm(p_values, level=0.975)
    wanted = adjusted < 0.025
    found = bars.tested(
        [normal(e) for e, _, _ in drawn], [b for _, b, _ in drawn], [s for _, _, s in drawn], 0.95
    )
    assert [one.status == "holds" for one in found] == wanted.tolist()


def test_beyond():
    assert beyond(Interval(0, 1, 2), 0.9, ABOVE) and not beyond(Interval(0, 1, 2), 1.0, ABOVE)
    assert beyond(Interval(0, 1, 2), 2.1, BELOW) and not beyond(Interval(0, 1, 2), 2.0, BELOW)


# ----------------------------------------------------------------------------------------------------- differences


def answers(gains, losses, both, neither, size=1):
    right = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [gains, losses, both, neither], axis=0).astype(float)
    items = tuple(f"q{i}" for i in range(len(right)))
    clusters = () if size == 1 else tuple(f"p{i // size}" for i in range(len(right)))
    return pair(*(Scores(name, items, right[:, i], clusters) for i, name in enumerate("AB")))


def test_six_must_differ_for_a_difference():
    """Five of five are no more remarkable than 1 in 16, whatever the interval of a hundred says."""
    five, six = answers(5, 0, 95, 0), answers(6, 0, 94, 0)
    assert five.interval(0.95).low > 0 and bars.difference(five)(0.95).low == 0
    assert bars.difference(six)(0.95) == six.interval(0.95) and six.interval(0.95).low > 0
    lost = bars.difference(answers(0, 5, 95, 0))(0.95)
    assert lost.high == 0 and lost.low < -0.05
    assert bars.difference(answers(2, 3, 95, 0))(0.95) == answers(2, 3, 95, 0).interval(0.95)


def test_nothing_that_differs_shows_that_nothing_is_far_apart():
    """Identical answers: worse by no more than z^2 / (n + z^2), and never better."""
    found = bars.difference(answers(0, 0, 200, 400))(0.95)
    z = stats.t.ppf(0.975, 599)
    assert (found.low, found.high) == pytest.approx((-(z**2) / (600 + z**2), z**2 / (600 + z**2)))


def test_of_passages_that_all_agree_a_passage_counts_once():
    """100 passages of 5: what befalls a fortieth of them whole was perhaps never drawn."""
    found, alone = (
        bars.difference(answers(0, 0, 500, 0, size=5))(0.95),
        bars.difference(answers(0, 0, 500, 0))(0.95),
    )
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100)) and found.low == -found.high
    assert alone.high < 0.01 < found.high
    few = answers(0, 5, 495, 0, size=5)  # one passage lost whole
    assert bars.difference(few)(0.95).low <= few.interval(0.95).low


def marks(*values, size=1):
    items = tuple(map(str, range(len(values[0]))))
    return [Scores(name, items, np.asarray(v, float)) for name, v in zip("AB", values, strict=False)]


def test_marks_that_hardly_differ_are_no_surer_than_answers():
    """Always a quarter ahead: no spread at all, and still a fortieth of the items may be otherwise."""
    ahead = pair(*marks(np.full(150, 0.75), np.full(150, 0.5)))
    assert ahead.interval(0.95).low == ahead.interval(0.95).high == 0.25
    found, part = bars.difference(ahead)(0.95), 1 - 0.025 ** (1 / 150)
    assert (found.low, found.high) == pytest.approx((0.25 - 1.25 * part, 0.25 + 0.75 * part))


def test_a_few_that_stir_do_not_make_a_spread():
    stir = np.full(150, 0.5)
    stir[: MIN_STIRRING - 1] = 0.25
    base = np.full(150, 0.5)
    assert bars.hardly_any_stirs(stir - base, np.ones(150))
    stir[MIN_STIRRING - 1] = 0.25
    assert not bars.hardly_any_stirs(stir - base, np.ones(150))
    spread = pair(*marks(np.linspace(0.2, 0.9, 150), np.full(150, 0.5)))
    assert bars.difference(spread)(0.95) == spread.interval(0.95)


def test_small_passages_that_stir_do_not_speak_for_large_ones():
    """30 passages of 20 that all agree, and 200 of 2 of which 30 differ: worth 47 equal ones, and 2.8 of them stir."""
    sizes = np.repeat([20.0, 2.0], [30, 200])
    small, large = np.zeros(230), np.zeros(230)
    small[-30:] = 1
    large[:10] = 1
    assert bars.hardly_any_stirs(small, sizes)
    sizes = np.repeat([20.0, 10.0], [30, 30])  # worth 54: ten of the large are 12 of them, of the small 6
    assert not bars.hardly_any_stirs(large[:60], sizes) and bars.hardly_any_stirs(large[:60][::-1], sizes)


@pytest.mark.parametrize(("count", "hardly"), [(120, False), (121, True)])
def test_passages_of_very_unequal_size_are_never_enough(count, hardly):
    """However many stir: 30 of 6 and 120 of 1 are worth 75 equal ones, just half of 150."""
    sizes = np.repeat([6.0, 1.0], [30, count])
    assert bars.hardly_any_stirs(sizes * (np.arange(len(sizes)) % 2), sizes) == hardly


def test_a_share_of_unequal_passages_counts_what_was_not_seen():
    """35 passages of 20, all right, and 300 of 1 of which 15 are wrong: 99% and 71 passages' worth."""
    sizes = np.repeat([20, 1], [35, 300])
    names = tuple(map(str, np.repeat(np.arange(335), sizes)))
    right = np.ones(1000)
    right[-15:] = 0
    found = bars.score(Scores("a", tuple(map(str, range(1000))), right, names))(0.95)
    clusters = 1000**2 / (35 * 400 + 300)
    assert found.low == pytest.approx(0.985 * 0.025 ** (1 / clusters))


def text(name, bits, count=60):
    items = tuple(map(str, range(count)))
    return Scores(name, items, np.full(count, 100.0 * bits), (), np.full(count, 100.0), "bits per byte")


def test_of_texts_those_that_were_not_seen_might_take_twice_the_bits():
    part = 1 - 0.025 ** (1 / 60)
    found = bars.difference(pair(text("a", 0.9), text("b", 1.0)))(0.95)
    assert (found.estimate, found.high) == pytest.approx((0.1, 0.1))
    assert found.low == pytest.approx(0.1 - part * (1.0 + 0.1))
    score = bars.score(text("a", 0.9))(0.95)
    assert (score.low, score.high) == pytest.approx((0.9, 0.9 * (1 + part)))
    assert bars.unseen_part(60, 0.95) == pytest.approx(part) == pytest.approx(0.0596, abs=1e-4)


def test_texts_that_were_seen_count_as_they_are():
    """Where documents are many, or far apart, the spread is what decides."""
    generator = np.random.default_rng(0)
    a, b = (replace(text(name, 1.0), values=100 + 60 * generator.normal(size=60)) for name in "ab")
    paired = pair(a, b)
    assert bars.difference(paired)(0.95) == paired.interval(0.95)
    many = pair(text("a", 1.0, 2000), text("b", 1.0, 2000))
    assert -0.002 < bars.difference(many)(0.95).low < 0


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
def test_a_surer_interval_is_a_wider_one(gains, losses, kind):
    """What Holm by intervals rests on."""
    size = 5 if kind % 2 else 1
    paired = answers(gains, losses, 100, 80 + (-gains - losses) % 5, size)
    score = bars.score(replace(paired.a))
    for at in (bars.difference(paired), score):
        narrow, wide = at(0.95), at(0.9975)
        assert wide.low <= narrow.low + 1e-12 and narrow.high <= wide.high + 1e-12


# ------------------------------------------------------------------------------------------------------- one score


@pytest.mark.parametrize(("hits", "count"), [(0, 300), (300, 300), (3, 300), (297, 300), (150, 300), (1, 2)])
def test_a_share_of_items_is_exact(hits, count):
    scores = marks(np.arange(count) < hits)[0]
    assert bars.score(scores)(0.95) == clopper_pearson(hits, count, 0.95)


@pytest.mark.parametrize("count", [100, 300])
@pytest.mark.parametrize("level", [0.95, 0.9975])
def test_a_share_at_its_bar_is_told_to_lie_beyond_it_as_rarely_as_promised(count, level):
    """Added up over all outcomes, for shares from 0.5% to 99.5%."""
    scores = [marks(np.arange(count) < hits)[0] for hits in range(count + 1)]
    found = [bars.score(one)(level) for one in scores]
    for share in np.linspace(0.005, 0.995, 67):
        chances = stats.binom.pmf(np.arange(count + 1), count, share)
        for side in (ABOVE, BELOW):
            told = sum(chance for one, chance in zip(found, chances, strict=True) if beyond(one, share, side))
            assert told <= (1 - level) / 2 + 1e-12


def test_a_share_of_passages():
    """All alike: a passage counts as one item. Else by the design effect, which counts as 1 at least."""
    names = tuple(str(i // 5) for i in range(500))
    items = tuple(map(str, range(500)))
    right = Scores("a", items, np.ones(500), names)
    assert bars.score(right)(0.95).low == pytest.approx(0.025 ** (1 / 100))
    whole = Scores("a", items, (np.arange(500) >= 50).astype(float), names)  # ten passages of none
    assert bars.score(whole)(0.95).low < clopper_pearson(90, 100).low + 1e-3
    one_each = Scores("a", items, (np.arange(500) % 5 > 0).astype(float), names)  # more even than chance
    found = bars.score(one_each)(0.95)
    assert (found.low, found.high) == pytest.approx(
        (clopper_pearson(80, 100).low, clopper_pearson(80, 100).high)
    )
    spread = np.arange(500) % 5 > 0
    spread[np.arange(0, 50, 5)] = True
    found, alone = (
        bars.score(Scores("a", items, spread.astype(float), names))(0.95),
        clopper_pearson(410, 500),
    )
    assert found.low < alone.low and alone.high < found.high
    assert found.high - found.low < 1.1 * (alone.high - alone.low)


def test_marks_of_one_model():
    alike = bars.score(marks(np.full(100, 0.5))[0])(0.95)
    part = 1 - 0.025 ** (1 / 100)
    assert (alike.low, alike.high) == pytest.approx((0.5 - 0.5 * part, 0.5 + 0.5 * part))
    spread = bars.score(marks(np.linspace(0, 1, 101))[0])(0.95)
    assert 0.11 < spread.high - spread.low < 0.12


# ------------------------------------------------------------------------------ what a difference at the bar comes to


def told(count, level, bar, lost):
    """The chance that a true difference at the bar is told to lie above, and below, it; `lost`: share that only the
    other model has right."""
    gained = bar + lost
    most = [int(stats.binom.ppf(1 - 1e-9, count, share)) + 1 if share else 0 for share in (gained, lost)]
    g, b = np.meshgrid(np.arange(most[0] + 1.0), np.arange(most[1] + 1.0), indexing="ij")
    rest = count - g - b
    log = special.gammaln(count + 1) - sum(special.gammaln(x + 1) for x in (g, b, np.maximum(rest, 0)))
    log += special.xlogy(g, gained) + special.xlogy(b, lost) + special.xlogy(rest, 1 - gained - lost)
    chance = np.where(rest >= 0, np.exp(log), 0)
    low, high = tango(g, b, np.full(g.shape, float(count)), stats.t.ppf((1 + level) / 2, count - 1))
    few = g + b < MIN_DIFFERING
    low, high = np.where(few, np.minimum(low, 0), low), np.where(few, np.maximum(high, 0), high)
    return float(chance[low > bar].sum()), float(chance[high < bar].sum())


@pytest.mark.slow
def test_answers_at_the_bar_by_adding_up():
    """2.5% are promised. Where no margin is asked for, and for "not worse", it is that; a margin of very few items'
    worth, which all happen to be gains, is told to be passed in up to 5.2%. As in docs/statistics.md."""
    worst = dict.fromkeys(("no margin", "margin", "not worse", "one of twenty"), 0.0)
    for count in (100, 150, 300, 600):
        for bar in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1):
            for lost in (0.0, 0.005, 0.03, 0.2):
                if bar + lost > 0:
                    above, below = told(count, 0.95, bar, lost)
                    strict, _ = told(count, 1 - 0.05 / 20, bar, lost)
                    for kind, share in (
                        ("margin" if bar else "no margin", above),
                        ("not worse", below),
                        ("one of twenty", strict),
                    ):
                        worst[kind] = max(worst[kind], share)
    assert worst["no margin"] <= 0.026
    assert worst["margin"] <= 0.055
    assert worst["not worse"] <= 0.026
    assert worst["one of twenty"] <= 0.0035, worst
