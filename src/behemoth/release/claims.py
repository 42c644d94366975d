"""A claim of a policy held against what models answered: measured, decided, and said in a sentence.

The claims of a policy are one family (stats/bars.py, Holm): the chance that any false one among them is told to hold
is about half of 1 - level. What counts against a claim is counted against it: an item without a score, or one that
ended in an error, is wrong for the model that is claimed about and right for the one that it is compared with. A text
has no worst score, so none may be missing. Answers count only if they are all of those, and of that very model, that
the evidence says it asked for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from behemoth.base.errors import InputError
from behemoth.base.units import counted, percent
from behemoth.evals.compare import difference_of, take
from behemoth.evals.records import Record, TaskResult
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.policy import COMPARED, HELD_OUT, Claim, Is
from behemoth.stats import bars
from behemoth.stats.bars import Tested, tested
from behemoth.stats.paired import BITS, MIN_ITEMS, POINTS, Scores, amount, more_items, number, pair, shortage
from behemoth.stats.power import items_needed

Check = dict[str, Any]
HOLDS, FAILS, UNKNOWN = "holds", "fails", "unknown"
MISSING, MISMATCHED, TOO_FEW, TOO_CLOSE = "missing", "mismatched", "too few", "too close"  # why it is unknown
POWER = {
    "answers": 0.97,
    "the rest": 0.99,
}  # planned for 95%: of heavy tails the formula finds less than it says
NUMBERS: Check = {
    **dict.fromkeys(("says", "task", "metric", "unit", "is", "of", "than", "bar", "margin")),
    **dict.fromkeys(("estimate", "low", "high", "level", "items", "clusters", "more_items")),
    **dict.fromkeys(("score", "other", "against", "wanted")),
    "holm": False,
    "level_why": "",
}


class NotMeasured(Exception):
    """The evidence does not hold what a check needs; its message is the reason."""

    def __init__(self, reason: str, why: str = MISSING) -> None:
        super().__init__(reason)
        self.why = why


class Asked(Protocol):
    """What is asked of one number: by a claim, or by a bound on safety."""

    @property
    def says(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def is_(self) -> Is: ...
    @property
    def of(self) -> str: ...
    @property
    def than(self) -> str | None: ...
    @property
    def bar(self) -> float | None: ...
    @property
    def margin(self) -> float | None: ...


def check_of(
    name: str, kind: str, status: str, sentence: str, reason: str = "", why: str | None = None, **numbers: Any
) -> Check:
    """why: one of the four, of what is unknown; None of what is decided."""
    told = {
        "name": name,
        "kind": kind,
        "status": status,
        "why": why,
        "sentence": f"{sentence}: {status}",
        "reason": f"{why}: {reason}" if why else reason,
    }
    return told | NUMBERS | numbers


# --------------------------------------------------------------------------------------------- measured, and decided


@dataclass(frozen=True)
class Measured:
    """What the evidence says about a claim. at: its interval at a level; None, with the reason: it decides nothing.

    score, other: on these very items, of the model that is claimed about and of the one that it is compared with.
    why: in a word, why it decides nothing. lacking: items.
    """

    at: bars.At | None = None
    reason: str = ""
    why: str = ""
    lacking: float = 0.0
    unit: str = POINTS
    metric: str | None = None
    score: float = math.nan
    other: float = math.nan
    items: int | None = None
    clusters: int | None = None
    against: int = 0  # items without a score of their own that were counted against the claim


def family(
    claims: Sequence[Claim], found: Sequence[Measured], level: float, kind: str, names: Sequence[str]
) -> list[Check]:
    intervals = [None if one.reason else one.at for one in found]
    sides = [bars.BELOW if claim.is_ == "at most" else bars.ABOVE for claim in claims]
    decided = tested(intervals, [bar_of(claim) for claim in claims], sides, level)
    return [
        check_of_claim(claim, one, verdict, level, kind, name) | {"holm": len(claims) > 1}
        for claim, one, verdict, name in zip(claims, found, decided, names, strict=True)
    ]


def bar_of(claim: Asked) -> float:
    """What the number must lie beyond: of a comparison, how far the first is ahead."""
    margin = claim.margin or 0.0
    return {"better": margin, "not worse": -margin}.get(claim.is_, claim.bar or 0.0)


def measure(claim: Claim, evidence: Evidence, without: Collection[str] = ()) -> Measured:
    """without: items that do not count; then the least number that the policy asks for is not asked of the rest."""
    try:
        found = (compared if claim.is_ in COMPARED else barred)(claim, evidence, without)
    except NotMeasured as error:
        return Measured(reason=str(error), why=error.why)
    except InputError as error:
        return Measured(reason=str(error), why=MISMATCHED)
    assert found.items is not None
    if not without and not found.reason and found.items < claim.items:
        few = f"{counted(found.items, noun(found.unit))}; the policy asks for {claim.items:,}"
        return replace(found, reason=few, why=TOO_FEW, lacking=claim.items - found.items)
    return found


def compared(claim: Claim, evidence: Evidence, without: Collection[str]) -> Measured:
    assert claim.than is not None
    task, other = (answers_of(evidence, model, claim.task) for model in (claim.of, claim.than))
    if problem := difference_of(task, other, (claim.of, claim.than)):
        raise NotMeasured(problem, MISMATCHED)
    a, against = counted_as(all_but(task, without), claim.of, 0.0)
    b, more = counted_as(all_but(other, without), claim.than, 1.0)
    paired = pair(a, b if b.items == a.items else take(b, a.items))
    reason, lacking = paired.too_few
    return Measured(
        bars.difference(paired), reason, TOO_FEW, lacking, a.unit, task.metric, a.score, b.score,
        items=paired.items, clusters=len(paired.sums), against=against + more,
    )  # fmt: skip


def barred(claim: Claim, evidence: Evidence, without: Collection[str]) -> Measured:
    task = all_but(answers_of(evidence, claim.of, claim.task), without)
    scores, against = counted_as(task, claim.of, 1.0 if claim.is_ == "at most" else 0.0)
    if scores.unit == POINTS and bar_of(claim) >= 1:
        why = f"a bar of {bar_of(claim):g} where scores are shares of 1; 0.8 is eighty percent"
        raise NotMeasured(why, MISMATCHED)
    return measured_score(scores, task.metric, against)


def measured_score(scores: Scores, metric: str, against: int) -> Measured:
    clusters = len(set(scores.clusters or scores.items))
    reason, lacking = shortage(scores)
    return Measured(
        bars.score(scores) if clusters > 1 else None, reason, TOO_FEW, lacking, scores.unit, metric,
        scores.score, items=len(scores.items), clusters=clusters, against=against,
    )  # fmt: skip


def answers_of(evidence: Evidence, model: str, task: str) -> TaskResult:
    """A model's answers to a task: all of those, and of that very model, that the evidence says it asked for."""
    facts, evaluation = evidence.facts, evidence.evaluations.get(model)
    if evaluation is None:
        raise NotMeasured(f"{model} was not asked anything")
    of = facts["model"] if model == CANDIDATE else facts["baselines"].get(model, {})
    if evaluation.sha256 != of.get("sha256"):
        raise NotMeasured(
            f"the answers of {model} are another model's ({evaluation.sha256[:12]})", MISMATCHED
        )
    found, asked = evaluation.tasks.get(task), facts["tasks"].get(task)
    if found is None or asked is None:
        raise NotMeasured(f"{model} was not asked {task}")
    if found.sha256 != asked["sha256"]:
        raise NotMeasured(f"{model} was asked another version of {task} ({found.sha256[:12]})", MISMATCHED)
    if len(found.records) != asked["items"]:
        of = f"{len(found.records):,} of {asked['items']:,} items of {task}"
        raise NotMeasured(f"{model} answered {of}", MISMATCHED)
    return found


def all_but(task: TaskResult, without: Collection[str]) -> TaskResult:
    if not without:
        return task
    return replace(task, records=[record for record in task.records if record["item"] not in without])


def counted_as(task: TaskResult, model: str, value: float) -> tuple[Scores, int]:
    """The scores, with `value` for every item that has none of its own, and how many those are."""
    open_ = sum(not settled(record) for record in task.records)
    if not open_:
        return task.scores(model), 0
    if task.ask == "text":
        verb = "has" if open_ == 1 else "have"
        raise NotMeasured(f"{counted(open_, 'text')} of {model} {verb} no score, nor a worst one; ask again")
    records = [record if settled(record) else {**record, "score": value} for record in task.records]
    return replace(task, records=records).scores(model), open_


def settled(record: Record) -> bool:
    return record["score"] is not None and not record["error"] and math.isfinite(record["score"])


def check_of_claim(
    claim: Asked, found: Measured, verdict: Tested, level: float, kind: str, name: str
) -> Check:
    shown = verdict.interval or (found.at(level) if found.at is not None else None)
    reason = found.reason or reason_of(claim, found, verdict)
    why = (found.why if found.reason else TOO_CLOSE) if verdict.status == UNKNOWN else None
    unit = BITS if claim.task == HELD_OUT else found.unit
    numbers: Check = {
        "says": claim.says,
        "task": claim.task,
        "metric": found.metric,
        "unit": found.unit if shown else None,
        "is": claim.is_,
        "of": claim.of,
        "than": claim.than,
        "bar": bar_of(claim),
        "margin": (claim.margin or 0.0) if claim.is_ in COMPARED else None,
        "items": found.items,
        "clusters": found.clusters,
        "wanted": wanted(claim, unit),
    }
    if shown is not None:
        more = still_needed(claim, found, verdict) if verdict.status == UNKNOWN else None
        numbers |= {"estimate": shown.estimate, "low": shown.low, "high": shown.high, "level": shown.level}
        numbers |= {"score": found.score, "other": found.other if claim.than else None}
        numbers |= {"against": found.against, "more_items": more, "level_why": level_why(verdict)}
        if more and not found.reason:
            reason += f"; about {counted(more, 'more ' + noun(found.unit))} would tell, if it is as it looks"
    return check_of(name, kind, verdict.status, sentence_of(claim, found, numbers), reason, why, **numbers)


def level_why(verdict: Tested) -> str:
    """Why the interval is not at the level of its neighbours: what one claim is given of the whole family's error."""
    if verdict.interval is not None and verdict.among > 1:
        return f"one of {verdict.among:,} read together"
    if verdict.status == FAILS and verdict.family > 1:
        return "that a claim fails is decided for it alone"
    return ""


def still_needed(claim: Asked, found: Measured, verdict: Tested) -> int | None:
    """How many more items would decide, were the truth what was found.

    Of texts the end that faces the bar may be that of what was not seen, which shrinks as the documents grow in number,
    not with their root; the nearer end is of their spread alone.
    """
    if verdict.interval is None or found.items is None:
        return math.ceil(found.lacking) or None
    shown, gap = verdict.interval, verdict.interval.estimate - bar_of(claim)
    below, above = shown.estimate - shown.low, shown.high - shown.estimate
    spread, lacking = (below + above) / 2, 0.0
    if found.unit == BITS and gap:
        part, facing = bars.unseen_part(found.items, shown.level), below if gap > 0 else above
        spread = min(below, above)
        lacking = found.items * (math.log1p(-part) / math.log1p(-part * min(1.0, abs(gap) / facing)) - 1)
    error = spread / bars.normal_quantile(shown.level)
    return more_items(gap, error, found.items, level=shown.level, lacking=lacking)


def reason_of(claim: Asked, found: Measured, verdict: Tested) -> str:
    if verdict.status == HOLDS:
        return ""
    if verdict.status == UNKNOWN:
        return "the interval does not leave out the bar"
    side = "above" if claim.is_ == "at most" else "below"
    return f"the whole interval lies {side} {amount(bar_of(claim), found.unit, '+' if claim.than else '')}"


def sentence_of(claim: Asked, found: Measured, numbers: Check) -> str:
    """The claim in its own words, what was found, and what was asked for."""
    if "low" not in numbers:
        return f"{claim.says}: not measured"
    unit, sign = found.unit, "+" if claim.than else ""
    of = "" if claim.of == CANDIDATE else f" of {claim.of}"
    scored = f"{number(found.score, unit)} {'percent' if unit == POINTS else unit}{of}"
    if claim.than:
        scored += f" against {number(found.other, unit)} of {claim.than}"
    scored += f" on {counted(found.items or 0, noun(unit))} of {claim.task}"
    if found.against:
        scored += f", {found.against:,} of them without a score and counted against it"
    if claim.than:
        plus = " (a plus is fewer bits, so better)" if unit == BITS else ""
        scored += f", {amount(numbers['estimate'], unit, '+')}{plus}"
    ends = " to ".join(number(numbers[end], unit, sign) for end in ("low", "high"))
    why = f" ({numbers['level_why']})" if numbers["level_why"] else ""
    told = f"{claim.says}: {scored}, {percent(numbers['level'])} interval{why} {ends}"
    if unit == BITS:
        part = bars.unseen_part(found.clusters or 1, numbers["level"])
        told += f" (in it: {percent(part)} of all documents, like none of these, might take twice the bits)"
    return f"{told}; it must be {numbers['wanted']}"


def wanted(claim: Asked, unit: str) -> str:
    """What the number must be; at the bar is not enough."""
    margin, bar = amount(claim.margin or 0.0, unit), number(claim.bar or 0.0, unit)
    match claim.is_:
        case "better":
            return f"better than {claim.than}" + (f" by more than {margin}" if claim.margin else "")
        case "not worse":
            return f"not worse than {claim.than} by {margin} or more"
        case kind:
            side = "more" if kind == "at least" else "less"
            return f"{side} than {bar} {'percent' if unit == POINTS else unit}"


def noun(unit: str) -> str:
    return "item" if unit == POINTS else "document"


def items_for(
    claim: Claim,
    *,
    differing: float | None = None,
    sd: float | None = None,
    level: float = 0.95,
    design: float = 1.0,
) -> int:
    """Items on which a regression of twice the margin is held in 95% of cases; arguments as of `items_needed`.

    differing: share of items that just one of the two models then has right.
    """
    if claim.is_ not in COMPARED or not claim.margin:
        raise InputError(
            f"claim {claim.name}: only what is compared with a margin has a regression of twice it"
        )
    effect = bar_of(claim) + 2 * claim.margin
    power = POWER["answers" if sd is None else "the rest"]
    needed = items_needed(effect, differing=differing, sd=sd, power=power, level=level, design=design)
    return max(needed, MIN_ITEMS, claim.items)
