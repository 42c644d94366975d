import math

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.stats.bootstrap import Interval
from behemoth.stats.paired import Scores, bits_per_byte, compare, sentence


def scores(name, rate, sizes):
    documents = tuple(f"document-{i}" for i in range(len(sizes)))
    return Scores(name, documents, np.asarray(rate) * sizes * math.log(2), np.asarray(sizes))


@pytest.fixture
def pair():
    """Two models whose scores spread widely over documents but differ by a steady 0.1 bits per byte."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(500, 50_000, 80)
    difficulty = generator.normal(2.0, 0.5, 80)
    noise = generator.normal(0.1, 0.02, 80)
    return scores("student", difficulty, sizes), scores("control", difficulty + noise, sizes)


def test_pairing_tells_apart_what_separate_intervals_cannot(pair):
    better, worse = pair
    assert bits_per_byte(better).high > bits_per_byte(worse).low  # apart, they overlap
    difference = compare(better, worse).difference
    assert difference.excludes_zero
    assert difference.estimate == pytest.approx(0.1, abs=0.02)
    assert difference.estimate == pytest.approx(
        bits_per_byte(worse).estimate - bits_per_byte(better).estimate
    )


def test_comparison_turned_round_changes_sign(pair):
    there, back = compare(*pair).difference, compare(*reversed(pair)).difference
    assert back.estimate == pytest.approx(-there.estimate)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-3)


def test_a_model_against_itself_cannot_be_told_apart(pair):
    assert compare(pair[0], pair[0]).sentence.startswith("cannot tell student and student apart")


def test_no_difference_is_rarely_called_one():
    false_alarms = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        sizes, rate = generator.integers(500, 50_000, 60), generator.normal(2, 0.4, 60)
        a = scores("a", rate + generator.normal(0, 0.05, 60), sizes)
        b = scores("b", rate + generator.normal(0, 0.05, 60), sizes)
        false_alarms += compare(a, b, resamples=1000).difference.excludes_zero
    assert false_alarms <= 22  # 5% of 200, and three standard errors


def test_sentences_say_what_is_known():
    assert sentence("student", "control", Interval(0.1531, 0.1412, 0.1659)) == (
        "student is better than control by 0.153 bits per byte (95% interval 0.141 to 0.166)"
    )
    assert sentence("student", "teacher", Interval(-0.2, -0.25, -0.15)) == (
        "student is worse than teacher by 0.200 bits per byte (95% interval 0.150 to 0.250)"
    )
    assert sentence("a", "b", Interval(0.004, -0.01, 0.02, 0.9)) == (
        "cannot tell a and b apart: +0.004 bits per byte (90% interval -0.010 to +0.020)"
    )


def test_different_documents_are_refused_by_name(pair):
    a, b = pair
    fewer = Scores("short", b.documents[:-1], b.nats[:-1], b.num_bytes[:-1])
    with pytest.raises(InputError, match="1 only by student \\(such as 'document-79'\\)"):
        compare(a, fewer)
    with pytest.raises(InputError, match="another order"):
        compare(a, Scores("turned", b.documents[::-1], b.nats[::-1], b.num_bytes[::-1]))
    with pytest.raises(InputError, match="other sizes"):
        compare(a, Scores("longer", b.documents, b.nats, b.num_bytes + 1))
