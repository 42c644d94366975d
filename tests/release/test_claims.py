"""A claim held against answers: what it is told on, and in which words. Whole verdicts are in test_gate.py."""

import math
from dataclasses import replace

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.evals.records import Evaluation, TaskResult
from behemoth.release import claims
from behemoth.release.claims import FAILS, HOLDS, UNKNOWN, NotMeasured, family, measure
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.policy import Claim
from behemoth.stats.bars import unseen_part
from behemoth.stats.intervals import Interval

BETTER = {"name": "sums", "says": "adds", "task": "sums", "is": "better", "than": "base"}
NOT_WORSE = BETTER | {"is": "not worse", "margin": 0.05}
TEXT = NOT_WORSE | {"task": "held_out", "says": "knows text", "margin": 0.15}
AT_LEAST = {"name": "bar", "says": "adds", "task": "sums", "is": "at least", "bar": 0.8}
AT_MOST = AT_LEAST | {"is": "at most", "bar": 0.05}


def claim(given, **changes):
    return Claim.model_validate(given | changes)


def task(name, values, ask="generate"):
    records = []
    for number, value in enumerate(values):
        metrics = {"nats": value * math.log(2), "bytes": 1000} if ask == "text" and value is not None else {}
        records.append({"item": f"{number}", "cluster": "", "score": value, "error": "", "metrics": metrics})
    return TaskResult(name, "accuracy", ask, "asked", records)


def right(count, of, missing=0):
    """So many right, the others wrong, and the last ones without a score."""
    values = [1.0] * count + [0.0] * (of - count)
    return task("sums", values[: of - missing] + [None] * missing)


def bits(mean, count=60, spread=20.0):
    noise = np.random.default_rng(0).normal(0, spread, count)
    return task("held_out", (mean + noise - noise.mean()).tolist(), "text")


def evidence(candidate, base=None):
    models = {CANDIDATE: candidate} | ({"base": base} if base else {})
    facts = {
        "model": {"name": "run", "sha256": CANDIDATE},
        "baselines": {"base": {"spec": "student", "sha256": "base"}},
        "tasks": {candidate.name: {"sha256": "asked", "items": len(candidate.records)}},
    }
    found = {name: Evaluation(name, name, "", "suite", {one.name: one}) for name, one in models.items()}
    return Evidence("e", facts, found)


def decided(given, candidate, base=None, without=(), others=0):
    """The check of a claim; `others`: claims beside it that could not be measured."""
    found = measure(given, evidence(candidate, base), without)
    lost = claims.Measured(reason="was not asked", why=claims.MISSING)
    checks = family([given] * (1 + others), [found] + [lost] * others, 0.95, "claim", ["one"] * (1 + others))
    return checks[0]


# ------------------------------------------------------------------------------------- on the items that are decided on


def test_of_clean_items_alone_their_scores_are_told():
    """Half of the items are left out; the candidate has those all right, and of the others 60%."""
    known = {str(number) for number in range(200)}
    candidate, base = right(320, 400), right(220, 400)
    found = decided(claim(BETTER), candidate, base, known)
    assert (found["items"], found["score"], found["other"]) == (200, 0.6, 0.1)
    assert "adds: 60.0 percent against 10.0 of base on 200 items of sums, +50.0 points" in found["sentence"]
    found = decided(claim(AT_LEAST), candidate, None, known)
    assert (found["items"], found["score"], found["other"]) == (200, 0.6, None)
    assert "adds: 60.0 percent on 200 items of sums" in found["sentence"]


def test_what_counts_against_a_claim_is_counted_on_those_items():
    candidate, base = right(300, 400, missing=20), right(100, 400, missing=5)
    assert decided(claim(BETTER), candidate, base)["against"] == 25
    assert "25 of them without a score" in decided(claim(BETTER), candidate, base)["sentence"]
    known = {str(number) for number in range(390, 400)}
    assert decided(claim(BETTER), candidate, base, known)["against"] == 10
    assert decided(claim(AT_LEAST), candidate, None, known)["against"] == 10
    known = {str(number) for number in range(380, 400)}
    found = decided(claim(AT_LEAST), candidate, None, known)
    assert found["against"] == 0 and "without a score" not in found["sentence"]


def test_a_text_that_is_left_out_need_have_no_score():
    candidate, base = bits(1700, 100), bits(1710, 100)
    candidate.records[7]["score"] = None
    with pytest.raises(NotMeasured, match="1 text of candidate has no score"):
        claims.counted_as(candidate, CANDIDATE, 0.0)
    assert decided(claim(TEXT), candidate, base)["status"] == UNKNOWN
    assert decided(claim(TEXT), candidate, base, {"7"})["items"] == 99


def test_answers_in_another_order_are_the_same_answers():
    """Half right, and the same half: item by item there is no difference."""
    candidate = right(200, 400)
    base = replace(candidate, records=candidate.records[::-1])
    found = decided(claim(BETTER), candidate, base)
    assert (found["estimate"], found["more_items"]) == (0.0, None) and found["high"] < 0.01


# --------------------------------------------------------------------------------------------------- the bar in words


@pytest.mark.parametrize(
    ("given", "changes", "bar", "words"),
    [
        (BETTER, {}, 0.0, "better than base"),
        (BETTER, {"margin": 0.2}, 0.2, "better than base by more than 20.0 points"),
        (NOT_WORSE, {}, -0.05, "not worse than base by 5.0 points or more"),
        (AT_LEAST, {}, 0.8, "more than 80.0 percent"),
        (AT_MOST, {}, 0.05, "less than 5.0 percent"),
        (TEXT, {}, -0.15, "not worse than base by 0.150 bits per byte or more"),
        (TEXT, {"is": "better", "margin": 0.01}, 0.01, "better than base by more than 0.010 bits per byte"),
        (AT_MOST, {"task": "held_out", "bar": 1.8}, 1.8, "less than 1.800 bits per byte"),
    ],
)
def test_the_bar_and_its_words(given, changes, bar, words):
    """Of what was not measured as well."""
    found = decided(claim(given, **changes), right(0, 300))
    assert (found["bar"], found["wanted"]) == (bar, words)
    if found["than"] or found["task"] == "held_out":
        assert (found["status"], found["score"], found["against"]) == (UNKNOWN, None, None)
    else:
        assert found["sentence"].removesuffix(f": {found['status']}").endswith(f"; it must be {words}")


def test_a_score_at_its_bar_does_not_hold():
    """`more than` is what the rule asks."""
    found = decided(claim(AT_LEAST), right(300, 300))
    low = found["low"]
    assert decided(claim(AT_LEAST, bar=low), right(300, 300))["status"] == UNKNOWN
    assert decided(claim(AT_LEAST, bar=low - 1e-9), right(300, 300))["status"] == HOLDS


# --------------------------------------------------------------------------------------------------------- of texts


def test_a_plus_of_bits_is_explained():
    found = decided(claim(TEXT), bits(1728), bits(1740))
    assert found["status"] == HOLDS and found["score"] == pytest.approx(1.728)
    assert "1.728 bits per byte against 1.740 of base on 60 documents of held_out" in found["sentence"]
    assert "+0.012 bits per byte (a plus is fewer bits, so better), 95% interval" in found["sentence"]
    assert (
        "(in it: 5.96% of all documents, like none of these, might take twice the bits)" in found["sentence"]
    )
    assert found["low"] == pytest.approx(0.012 - unseen_part(60, 0.95) * (1.740 + 0.012))
    points = decided(claim(BETTER), right(280, 400), right(220, 400))["sentence"]
    assert "a plus" not in points and "twice the bits" not in points


def test_few_texts_cannot_show_a_small_margin():
    found = decided(claim(TEXT, margin=0.05), bits(1728), bits(1740))
    assert (found["status"], found["why"]) == (UNKNOWN, claims.TOO_CLOSE)
    enough = 60 + found["more_items"]
    assert 90 < enough < 110
    assert decided(claim(TEXT, margin=0.05), bits(1728, enough), bits(1740, enough))["status"] == HOLDS
    assert decided(claim(TEXT, margin=0.05), bits(1728, 85), bits(1740, 85))["status"] == UNKNOWN


def test_more_texts_where_their_spread_decides():
    """Worse than the bar as it looks: what was not seen is on the other side, and asks for nothing."""
    middle = Interval(-0.032, -0.08, -0.01)
    found = claims.Measured(at=lambda level: middle, unit="bits per byte", items=60)
    more = claims.still_needed(claim(TEXT, margin=0.02), found, claims.Tested(middle, UNKNOWN))
    points = claims.Measured(at=lambda level: middle, items=60)
    assert (
        60 * (0.022 / 0.012 - 1)
        < more
        < claims.still_needed(claim(NOT_WORSE, margin=0.02), points, claims.Tested(middle, UNKNOWN))
    )
    assert claims.still_needed(claim(TEXT, margin=0.032), found, claims.Tested(middle, UNKNOWN)) is None


# -------------------------------------------------------------------------------- why it is unknown, and at which level


def test_the_four_ways_to_be_unknown():
    same = right(200, 400)
    assert decided(claim(BETTER), same, same)["reason"].startswith(
        "too close: the interval does not leave out"
    )
    assert decided(claim(BETTER), right(90, 99), right(0, 99))["why"] == "too few"
    assert decided(claim(BETTER, items=401), same, same)["why"] == "too few"
    assert decided(claim(BETTER), same)["reason"] == "missing: base was not asked anything"
    assert decided(claim(BETTER, task="words"), same, same)["why"] == "missing"
    assert decided(claim(AT_LEAST, bar=80), same)["why"] == "mismatched"
    assert decided(claim(BETTER), same, replace(same, sha256="another"))["why"] == "mismatched"
    assert decided(claim(BETTER), same, right(200, 300))["why"] == "mismatched"
    assert decided(claim(BETTER), same, replace(same, metric="f1"))["why"] == "mismatched"
    other = evidence(same, same)
    other.facts["model"]["sha256"] = "another"
    assert measure(claim(BETTER), other).why == "mismatched"
    for status, base in ((HOLDS, right(0, 400)), (FAILS, right(400, 400))):
        found = decided(claim(BETTER), same, base)
        assert (found["status"], found["why"]) == (status, None)
    texts = bits(1700)
    texts.records[0]["error"] = "cut off"
    assert decided(claim(TEXT), texts, bits(1700))["why"] == "missing"


def test_an_input_error_is_a_mismatch(monkeypatch):
    def pair(a, b):
        raise InputError("not the same items")

    monkeypatch.setattr(claims, "pair", pair)
    found = measure(claim(BETTER), evidence(right(9, 100), right(9, 100)))
    assert (found.why, found.reason) == ("mismatched", "not the same items")


def test_why_an_interval_has_another_level():
    good, bad = right(400, 400), right(0, 400)
    assert decided(claim(BETTER), good, bad)["level_why"] == ""
    found = decided(claim(BETTER), good, bad, others=2)
    assert (round(found["level"], 4), found["level_why"]) == (0.9833, "one of 3 read together")
    assert "98.33% interval (one of 3 read together) +97.2 to" in found["sentence"]
    found = decided(claim(BETTER), bad, good, others=2)
    assert (found["level"], found["level_why"]) == (0.95, "that a claim fails is decided for it alone")
    assert "95% interval (that a claim fails is decided for it alone) -100.0" in found["sentence"]
    assert decided(claim(BETTER), bad, good)["level_why"] == ""
    assert decided(claim(BETTER), right(9, 99), right(0, 99), others=2)["level_why"] == ""
