import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from behemoth.base.errors import InputError
from behemoth.stats.bootstrap import bootstrap_interval
from behemoth.stats.paired import (
    Comparison,
    Interval,
    Scores,
    compare,
    compare_many,
    holm,
    mcnemar,
    more_items,
    not_worse,
    score_interval,
    tango,
    text_scores,
    too_few,
)


def texts(name, rate, sizes):
    return text_scores(
        name, [f"document-{i}" for i in range(len(sizes))], np.asarray(rate) * sizes * np.log(2), sizes
    )


@pytest.fixture
def pair():
    """Two models whose scores spread widely over documents but differ by a steady 0.1 bits per byte."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(500, 50_000, 80)
    difficulty, noise = generator.normal(2.0, 0.5, 80), generator.normal(0.1, 0.02, 80)
    return texts("student", difficulty, sizes), texts("control", difficulty + noise, sizes)


def answers(gains, losses, both, neither, passages_of=0):
    """Two models' right-or-wrong answers with these counts, in an order that is nobody's."""
    right = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [gains, losses, both, neither], axis=0).astype(float)
    right = np.random.default_rng(0).permutation(right)
    items = tuple(f"q{i}" for i in range(len(right)))
    clusters = tuple(f"p{i // passages_of}" for i in range(len(right))) if passages_of else ()
    return tuple(Scores(name, items, right[:, i], clusters) for i, name in enumerate("AB"))


def test_pairing_tells_apart_what_separate_intervals_cannot(pair):
    better, worse = pair
    assert score_interval(better).high > score_interval(worse).low  # apart, they overlap
    found = compare(better, worse)
    assert found.verdict == "better"
    assert found.difference.estimate == pytest.approx(0.1, abs=0.02)
    assert found.difference.estimate == pytest.approx(worse.score - better.score)
    drawn = bootstrap_interval(worse.values - better.values, better.sizes)
    assert [found.difference.low, found.difference.high] == pytest.approx([drawn.low, drawn.high], abs=0.002)


@pytest.mark.parametrize("made", [answers(60, 30, 100, 110), answers(60, 30, 100, 110, passages_of=4)])
def test_comparison_turned_round_changes_sign(made, pair):
    for a, b in (made, pair):
        there, back = compare(a, b), compare(b, a)
        assert (back.difference.low, back.difference.high) == pytest.approx(
            (-there.difference.high, -there.difference.low)
        )
        assert {there.verdict, back.verdict} == {"better", "worse"}
        assert there.p_value == pytest.approx(back.p_value)


def test_a_model_against_itself_cannot_be_told_apart(pair):
    found = compare(pair[0], pair[0])
    assert found.sentence.startswith("cannot tell student and student apart: +0.000 bits per byte")
    assert found.p_value == 1 and found.more_items is None
    assert compare(*[answers(0, 0, 100, 100)[0]] * 2).verdict == "cannot tell"


def test_tango_against_a_search_for_the_likeliest_shares():
    """At both ends, the shares that are likeliest under that difference lie `quantile` standard errors away."""
    gains, losses, items, quantile = 9.0, 3.0, 50.0, 1.96
    for end, sign in zip(tango(*map(np.array, (gains, losses, items, quantile))), (1, -1), strict=True):
        lost = np.linspace(max(0, -end), (1 - end) / 2, 1_000_001)[1:-1]
        rest = np.maximum(1 - 2 * lost - end, 1e-12)
        fit = gains * np.log(lost + end) + losses * np.log(lost) + (items - gains - losses) * np.log(rest)
        lost = lost[fit.argmax()]
        error = np.sqrt(items * (2 * lost + end - end**2))
        assert sign * (gains - losses - items * end) / error == pytest.approx(quantile, abs=1e-3)


def test_tango_where_nothing_differs():
    """Then the score test has a closed form: z^2 / (items + z^2) either way."""
    low, high = tango(*map(np.array, (0.0, 0.0, 100.0, 1.96)))
    assert (-low, high) == pytest.approx([1.96**2 / (100 + 1.96**2)] * 2)


def test_an_answer_test_is_mcnemars_at_zero():
    """Without correction its statistic is (gains - losses)^2 / (gains + losses)."""
    found = compare(*answers(45, 20, 5000, 5000))
    assert found.p_value == pytest.approx(special.chdtrc(1, 25**2 / 65), rel=0.01)
    assert found.p_value == pytest.approx(mcnemar(45, 20, mid_p=True), rel=0.2)


def test_mcnemar_exact():
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(10, 2, mid_p=True) == pytest.approx(2 * (1 + 12 + 33) / 4096)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0
    assert mcnemar(6, 0) < 0.05 < mcnemar(5, 0)


def test_answers_that_share_a_passage_are_worth_less():
    generator = np.random.default_rng(5)
    right = np.repeat(generator.integers(0, 2, (2, 80)), 10, axis=1).astype(float)
    items, clusters = tuple(map(str, range(800))), tuple(str(i // 10) for i in range(800))
    alone = compare(Scores("a", items, right[0]), Scores("b", items, right[1]))
    together = compare(Scores("a", items, right[0], clusters), Scores("b", items, right[1], clusters))
    width = [found.difference.high - found.difference.low for found in (alone, together)]
    assert width[1] > 2.8 * width[0]
    assert together.clusters == 80 and together.items == 800


def test_the_p_value_belongs_to_the_interval():
    generator = np.random.default_rng(1)
    for i in range(60):
        gains = int(generator.integers(20, 60))
        made = answers(gains, 40, 100, 100, passages_of=4 * (i % 2))
        found = compare(*made)
        assert (found.p_value < 0.05) == found.difference.excludes_zero == (found.verdict != "cannot tell")


def test_sentences_say_what_is_known():
    def said(verdict, *numbers, **rest):
        return Comparison("B", "A", Interval(*numbers), 0.01, verdict, **rest).sentence

    assert said("better", 0.021, 0.004, 0.038) == "B is better than A by 2.1 points, 95% interval 0.4 to 3.8"
    assert said("worse", -0.2, -0.25, -0.15, unit="bits per byte") == (
        "B is worse than A by 0.200 bits per byte, 95% interval 0.150 to 0.250"
    )
    assert said("cannot tell", 0.008, -0.011, 0.027, more_items=1900) == (
        "cannot tell B and A apart: +0.8 points, 95% interval -1.1 to +2.7; about 1,900 more items are needed"
    )
    assert said("cannot tell", 0.0, -0.011, 0.011).endswith("; too close for any practical number of items")
    assert said("better", 0.021, 0.004, 0.038, unscored=1).endswith("; 1 item left out, not scored by both")
    assert "99.75% interval" in said("better", 0.05, 0.01, 0.09, 0.9975)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (answers(60, 5, 10, 24), "99 items are too few, 100 at least"),
        (answers(60, 5, 25, 26, passages_of=4), "29 passages are too few, 30 at least"),
        (answers(5, 0, 45, 50), "one of them alone is right on only 5 items, and 6 are the least"),
        (
            (texts("A", 1.0, np.full(29, 9)), texts("B", 1.5, np.full(29, 9))),
            "29 documents are too few, 30 at least",
        ),
        (
            (texts("A", 1.0, np.array([9] * 59 + [900])), texts("B", 1.5, np.array([9] * 59 + [900]))),
            "60 documents of unequal size, worth 3 equal ones, are too few, 30 at least",
        ),
    ],
)
def test_too_little_is_never_called_a_difference(made, reason):
    found = compare(*made)
    assert (found.verdict, found.reason) == ("cannot tell", reason)
    assert reason in found.sentence


def test_one_rule_says_what_is_too_few():
    """Of one model's items and of two models' alike: by items, by passages of equal worth, by documents."""
    for made in (answers(20, 0, 30, 40), answers(60, 0, 100, 140, passages_of=20)):
        assert too_few(made[0]) == compare(*made).reason != ""
    assert too_few(answers(60, 0, 100, 140)[0]) == ""
    sizes = np.array([100] * 39 + [3900])
    document = texts("m", np.ones(40), sizes)
    assert too_few(document) == "40 documents of unequal size, worth 4 equal ones, are too few, 30 at least"
    named = replace(document, clusters=document.items)  # each a passage of its own: still documents
    assert too_few(named) == too_few(document)
    assert too_few(replace(document, values=document.values * np.nan)) == "none of 40 items was scored"


def test_no_score_lies_where_none_can():
    """Six documents, of which training saw some: t with two degrees of freedom would reach below nought."""
    found = score_interval(
        texts("m", [0.1, 2.4, 0.2, 0.1, 0.3, 2.2], np.array([9000, 900, 800, 700, 600, 500]))
    )
    assert found.low == 0 < found.estimate < found.high
    marks = np.array([1.0, 1.0, 0.25, 1.0, 1.0])
    assert score_interval(Scores("m", tuple("abcde"), marks)).high == 1


def test_one_item_is_no_evidence():
    found = compare(*answers(1, 0, 0, 0))
    assert (found.difference.low, found.difference.high, found.verdict) == (-1, 1, "cannot tell")
    assert (score_interval(answers(1, 0, 0, 0)[0]).low, found.p_value) == (0, 1)


def test_items_still_needed_would_do():
    """So many more of the same kind, and the difference that was seen is found with 80%: at 2.8 standard errors."""
    found = compare(*answers(60, 45, 100, 100))
    assert found.verdict == "cannot tell" and found.more_items
    more = (305 + found.more_items) / 305
    counts = [round(count * more) for count in (60, 45, 100, 100)]
    again = compare(*answers(*counts))
    error = (again.difference.high - again.difference.low) / 3.92
    assert again.difference.estimate / error == pytest.approx(2.8, abs=0.1)
    assert more_items(0.0, 0.1, 100) is None
    assert more_items(0.01, 0.001, 50, lacking=50) == 50


def test_not_worse():
    even = compare(*answers(40, 40, 460, 460))
    assert not_worse(even, 0.03).verdict == "not worse"
    assert not_worse(even, 0.005).verdict == "cannot tell"
    assert not_worse(compare(*answers(40, 90, 400, 400)), 0.005).verdict == "worse"
    assert (
        not_worse(compare(*answers(1, 1, 500, 500)), 0.02).verdict == "not worse"
    )  # few differ: that is the point
    few = not_worse(compare(*answers(0, 0, 40, 40)), 0.5)
    assert few.verdict == "cannot tell" and "too few" in few.sentence  # lack of data never passes
    assert not_worse(even, 0.03).sentence == (
        "A is not worse than B by more than 3.0 points, 95% interval of the difference -1.8 to +1.8"
    )
    with pytest.raises(InputError, match="margin"):
        not_worse(even, 0.0)


def test_holm_by_hand():
    adjusted, levels = holm(np.array([0.03, 0.001, 0.02, 0.6]))
    assert adjusted == pytest.approx([0.06, 0.004, 0.06, 0.6])
    assert levels == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 4, 1 - 0.05 / 3, 1 - 0.05 / 3])
    all_clear, levels = holm(np.array([0.001, 0.002]))
    assert all_clear == pytest.approx([0.002, 0.002])
    assert levels == pytest.approx([0.975, 0.95])


def test_many_comparisons_agree_with_their_intervals(pair):
    made = [answers(gains, 40, 200, 200) for gains in (40, 62, 64, 70, 95)] + [pair]
    alone, family = [compare(*one) for one in made], compare_many(made)
    assert [one.verdict for one in alone] == ["cannot tell", "better", "better", "better", "better", "better"]
    assert [one.verdict for one in family] == ["cannot tell"] * 2 + [
        "cannot tell",
        "better",
        "better",
        "better",
    ]
    for one, found in zip(alone, family, strict=True):
        assert found.difference.excludes_zero == (found.verdict == "better")
        assert found.p_value >= one.p_value
    assert compare_many([]) == []


def test_items_that_were_not_scored_are_left_out_and_told():
    a, b = answers(60, 20, 60, 60)
    values = a.values.copy()
    values[:3] = np.nan
    found = compare(Scores("A", a.items, values), b)
    assert (found.items, found.unscored) == (197, 3)
    assert "3 items left out" in found.sentence
    assert score_interval(Scores("A", a.items, values)).estimate == pytest.approx(np.nanmean(values))
    with pytest.raises(InputError, match="none of the 200 items"):
        compare(Scores("A", a.items, values * np.nan), b)


def test_different_items_are_refused_by_name(pair):
    a, b = pair
    with pytest.raises(InputError, match=r"1 only by student \(such as 'document-79'\)"):
        compare(a, Scores("short", b.items[:-1], b.values[:-1], sizes=b.sizes[:-1], unit=b.unit))
    with pytest.raises(InputError, match="another order"):
        compare(a, Scores("turned", b.items[::-1], b.values, sizes=b.sizes, unit=b.unit))
    with pytest.raises(InputError, match="other sizes"):
        compare(a, Scores("longer", b.items, b.values, sizes=b.sizes + 1, unit=b.unit))
    with pytest.raises(InputError, match="like with like"):
        compare(a, Scores("points", b.items, b.values))
    first, second = answers(10, 10, 50, 50, passages_of=3)
    with pytest.raises(InputError, match="other passages"):
        compare(first, Scores("B", second.items, second.values))


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="'q' was scored twice"):
        Scores("A", ("q", "r", "q"), np.zeros(3))
    with pytest.raises(InputError, match="2 values for 3 items"):
        Scores("A", ("q", "r", "s"), np.zeros(2))
    with pytest.raises(InputError, match="1 clusters for 3 items"):
        Scores("A", ("q", "r", "s"), np.zeros(3), ("p",))


def test_ten_thousand_items_are_compared_at_once():
    made = answers(1500, 1400, 4000, 3100, passages_of=5)
    started = time.process_time()
    compare(*made)
    assert time.process_time() - started < 0.1
