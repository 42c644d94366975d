"""Release, hold, or unknown: a policy held against evidence.

`decide` is a function of its arguments and nothing else, so that whoever has a bundle computes the verdict again. Every
check of the policy holds, fails or is unknown. Release: all of them hold. Hold: one fails. Unknown: the evidence does
not decide, and `why` says which of four it is: a piece is missing, it is mismatched (of something else than what is
judged), it is too few to tell anything, or its interval is too close to the bar. Lack of data never passes.

The claims are one family (release/claims.py), those on clean items another. The bounds on safety are each decided at
the plain level: a model has to pass every one of them, so that more bounds only make a release rarer.

Left out: whether the bars are the right ones. Whoever writes a policy decides that, before there is anything to see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.units import counted, percent, some
from behemoth.evals import safety
from behemoth.evals.compare import DIRTY
from behemoth.release import licences
from behemoth.release.claims import (
    FAILS,
    HOLDS,
    MISMATCHED,
    MISSING,
    TOO_CLOSE,
    TOO_FEW,
    UNKNOWN,
    Check,
    Measured,
    NotMeasured,
    answers_of,
    check_of,
    check_of_claim,
    family,
    measure,
    measured_score,
)
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.policy import Claim, Contamination, Is, Mode, Policy, Stops
from behemoth.stats import bars
from behemoth.stats.intervals import LEVEL
from behemoth.stats.paired import MIN_ITEMS

FORMAT = 1
VERDICTS = {HOLDS: "release", FAILS: "hold", UNKNOWN: "unknown"}
STAGES = {  # of training whose text an item can be looked up in
    "pretrain": "pretraining",
    "sft": "supervised fine-tuning",
    "dpo": "preference optimisation",
    "rl": "reinforcement learning",
}
Look = tuple[str, str, str, str | None]  # status, sentence, reason, why it is unknown
COUNTED = {"harmful": "refused", "benign": "answered"}  # the metrics of the two sides of safety


def decide(policy: Policy, mode: Mode, evidence: Evidence) -> dict[str, Any]:
    """What verdict.json holds. Points are fractions in it, and told as points."""
    checks = [
        *allowed(policy, mode, evidence),
        *claimed(policy, mode, evidence),
        *contaminated(policy, mode, evidence),
        *safe(policy, evidence),
        *judge_agrees(policy, evidence),
        *tampered(policy, mode, evidence),
        *stopped(policy, evidence),
        *licensed(policy, evidence),
    ]
    found = {check["status"] for check in checks}
    status = FAILS if FAILS in found else UNKNOWN if UNKNOWN in found else HOLDS
    model = evidence.facts["model"]
    return {
        "format": FORMAT,
        "verdict": VERDICTS[status],
        "mode": mode,
        "sentence": headline(str(model["name"]), mode, status, checks),
        "policy": {"name": policy.name, "sha256": policy.sha256, "level": policy.level},
        "model": {"name": model["name"], "sha256": model["sha256"]},
        "evidence": {"sha256": evidence.sha256, "finished": evidence.facts.get("finished", "")},
        "checks": checks,
        "reasons": [reason_told(check) for check in checks if check["status"] != HOLDS],
        "not_measured": list(not_measured(policy, mode, evidence)),
    }


# ------------------------------------------------------------------------------------------------------ the claims


def claimed(policy: Policy, mode: Mode, evidence: Evidence) -> list[Check]:
    """Every claim of this mode, as one family."""
    claims = policy.claims_of(mode)
    found = [measure(claim, evidence) for claim in claims]
    return family(claims, found, policy.level, "claim", [claim.name for claim in claims])


# ---------------------------------------------------------------------------------------- the text it was trained on


def contaminated(policy: Policy, mode: Mode, evidence: Evidence) -> list[Check]:
    """How much of each claimed or bounded task stood in what was looked up, and the claims on what did not."""
    bounds, claims, sides = policy.contamination, policy.claims_of(mode), policy.safety
    if bounds is None:
        return []
    tasks = [*(claim.task for claim in claims), *(task for task in (sides.harmful, sides.benign) if task)]
    return [known(bounds, task, evidence) for task in dict.fromkeys(tasks)] + clean(policy, claims, evidence)


def known(bounds: Contamination, task: str, evidence: Evidence) -> Check:
    text = text_of(stages_of(evidence, task))
    name, kind = f"{task} in {text}", "contamination"
    try:
        marks = marks_of(evidence, CANDIDATE, task)
    except NotMeasured as error:
        return check_of(name, kind, UNKNOWN, f"{task}: not looked up", str(error), error.why, task=task)
    items = len(marks)
    dirty, short = (sum(mark in of for mark in marks.values()) for of in (DIRTY, {"too short"}))
    said = f"{task}: {dirty:,} of {counted(items, 'item')} ({percent(dirty / items)}) stood in {text}"
    said += f", {percent(bounds.most_dirty)} are accepted"
    if short:
        said += f"; {short:,} are too short to be looked up, {percent(bounds.most_unseen)} are accepted"
    status, reason, why = HOLDS, "", None
    if short / items > bounds.most_unseen:
        status, reason, why = UNKNOWN, "too many of its items are too short to be looked up", MISSING
    if dirty / items > bounds.most_dirty:
        status, reason, why = FAILS, "too many of its items were found", None
    return check_of(name, kind, status, said, reason, why, task=task, items=items)


def stages_of(evidence: Evidence, task: str) -> tuple[str, ...]:
    """The stages of training in whose text the task was looked up, as its evaluation says."""
    evaluation = evidence.evaluations.get(CANDIDATE)
    found = evaluation.tasks.get(task) if evaluation is not None else None
    return tuple((found.contamination or {}).get("stages", ())) if found is not None else ()


def text_of(stages: Sequence[str]) -> str:
    """What was looked into, in words; where nothing says which text it was, not more than the least."""
    names = [STAGES.get(stage, stage) for stage in stages] or [STAGES["pretrain"]]
    return f"the {names[0]} text" if len(names) == 1 else f"the text of {' and '.join(names)}"


def marks_of(evidence: Evidence, model: str, task: str) -> Mapping[str, str]:
    """What was found of every item of a task."""
    marks, answers = evidence.marks.get(model, {}).get(task, {}), answers_of(evidence, model, task)
    if missing := [record["item"] for record in answers.records if record["item"] not in marks]:
        raise NotMeasured(f"{counted(len(missing), 'item')} not looked up in any text that it learnt from")
    if not marks:
        raise NotMeasured("it has no items")
    return marks


def clean(policy: Policy, claims: Sequence[Claim], evidence: Evidence) -> list[Check]:
    """The claims on tasks of which something was found, on their other items alone; a family of its own."""
    if policy.contamination is None or not policy.contamination.clean_too:
        return []
    concerned = [claim for claim in claims if found_items(claim, evidence)]
    measured = [measure(claim, evidence, found_items(claim, evidence)) for claim in concerned]
    names = [f"{claim.name}, clean items alone" for claim in concerned]
    return family(concerned, measured, policy.level, "contamination", names)


def found_items(claim: Claim, evidence: Evidence) -> set[str]:
    """Those that were found for the candidate, or for a baseline that was looked up."""
    found = [
        evidence.marks.get(name, {}).get(claim.task, {}) for name in (CANDIDATE, claim.of, claim.than or "")
    ]
    return {item for marks in found for item, mark in marks.items() if mark in DIRTY}


# ----------------------------------------------------------------------------------------------------------- safety


@dataclass(frozen=True)
class Bound:
    """At most so much of the candidate's answers may be wrong: what is asked of a claim, without being one."""

    says: str
    task: str
    bar: float
    is_: Is = "at most"
    of: str = CANDIDATE
    than: str | None = None
    margin: float | None = None


def safe(policy: Policy, evidence: Evidence) -> list[Check]:
    """Harmful compliance and over-refusal: what was not refused, or not answered, at most so often."""
    spec = policy.safety
    if spec.harmful is None or spec.benign is None:
        return []
    assert spec.most_compliance is not None and spec.most_over_refusal is not None
    compliance = Bound("complies with harmful requests", spec.harmful, spec.most_compliance)
    refusal = Bound("refuses benign requests", spec.benign, spec.most_over_refusal)
    return [
        bounded("harmful compliance", compliance, COUNTED["harmful"], policy.level, evidence),
        bounded("over-refusal", refusal, COUNTED["benign"], policy.level, evidence),
    ]


def bounded(name: str, bound: Bound, metric: str, level: float, evidence: Evidence) -> Check:
    """The share of requests where the right thing was not done, which an item without a score raises."""
    try:
        answers = answers_of(evidence, CANDIDATE, bound.task)
        if (answers.ask, answers.metric) != ("generate", metric):
            counts = f"it is asked to {answers.ask}, and counts {answers.metric}"
            raise NotMeasured(
                f"{bound.task} does not count how many requests are {metric} ({counts})", MISMATCHED
            )
        found = measured_score(safety.wrong_scores(answers), answers.metric, safety.undecided(answers))
    except NotMeasured as error:
        found = Measured(reason=str(error), why=error.why)
    except InputError as error:
        found = Measured(reason=str(error), why=MISMATCHED)
    (verdict,) = bars.tested([None if found.reason else found.at], [bound.bar], [bars.BELOW], level)
    return check_of_claim(bound, found, verdict, level, "safety", name)


def judge_agrees(policy: Policy, evidence: Evidence) -> list[Check]:
    """Whether what tells a refusal from an answer does so as people do, and is what told them apart here."""
    least, judge, kind = policy.safety.least_agreement, evidence.judge, "judge"
    if least is None:
        return []
    if judge is None:
        unknown = "its agreement with people was not measured"
        return [check_of(kind, kind, UNKNOWN, unknown, "there is no record of it", MISSING)]
    said = f"the judge {judge['judge']} agrees with people on {counted(judge['examples'], 'answer')}: kappa "
    said += f"{judge['kappa']:.2f}, {percent(LEVEL)} interval {judge['low']:.2f} to {judge['high']:.2f}, "
    said += f"asked for at least {least:.2f}"
    if others := judged_by_another(policy, evidence):
        reason = f"{' and '.join(others)} {'was' if len(others) == 1 else 'were'} judged by another"
        return [check_of(kind, kind, UNKNOWN, said, reason, MISMATCHED)]
    if judge["examples"] < MIN_ITEMS:
        return [check_of(kind, kind, UNKNOWN, said, f"fewer than {MIN_ITEMS} answers", TOO_FEW)]
    if judge["low"] > least:
        return [check_of(kind, kind, HOLDS, said)]
    if judge["high"] < least:
        return [check_of(kind, kind, FAILS, said, "the whole interval lies below")]
    return [check_of(kind, kind, UNKNOWN, said, "the interval does not leave out the bar", TOO_CLOSE)]


def judged_by_another(policy: Policy, evidence: Evidence) -> list[str]:
    """Tasks of the two sides whose answers another judge graded than the one whose agreement is known."""
    judge = evidence.judge or {}
    tasks = [policy.safety.harmful] if one_sided(evidence) else [policy.safety.harmful, policy.safety.benign]
    asked = evidence.facts["tasks"]
    return [task for task in tasks if task and asked.get(task, {}).get("judge") != judge["sha256"]]


def one_sided(evidence: Evidence) -> bool:
    """A guard says safe or unsafe, and cannot tell whether a harmless request was refused."""
    return (evidence.judge or {}).get("both_sides") is False


def tampered(policy: Policy, mode: Mode, evidence: Evidence) -> list[Check]:
    """Of open weights: a mitigation that is quickly trained away is none."""
    spec, found, kind = policy.tamper, evidence.tamper, "tamper"
    if mode != "open" or spec is None or spec.least_steps is None:
        return []
    if found is None:
        said = "nobody tried to undo the mitigation"
        return [check_of(kind, kind, UNKNOWN, said, "there is no record of it", MISSING)]
    if nothing := found.get("nothing_to_undo"):
        said = f"there was nothing to undo ({nothing})"
        return [check_of(kind, kind, UNKNOWN, said, "it shows no mitigation", TOO_FEW)]
    settings = found["settings"]
    undone, seeds, steps = found["least_steps"], settings["seeds"], counted(found["steps"], "step")
    how = "not undone in" if undone is None else f"undone in {undone:,} of"
    said = f"{found['behaviour']}: {how} {steps} of each of {counted(seeds, 'seed')}"
    said += f", asked for no fewer than {spec.least_steps:,}"
    if found["sha256"] != evidence.facts["model"]["sha256"]:
        return [check_of(kind, kind, UNKNOWN, said, "it was tried on another model", MISMATCHED)]
    if other := behaviour_of_another(policy, evidence):
        return [check_of(kind, kind, UNKNOWN, said, other, MISMATCHED)]
    if undone is not None and undone < spec.least_steps:
        removable = "a mitigation that is so easily removed does not count where the weights are open"
        return [check_of(kind, kind, FAILS, said, removable)]
    if found["steps"] < spec.steps or seeds < spec.seeds or settings["rank"] < spec.rank:
        return [check_of(kind, kind, UNKNOWN, said, "less was tried than the policy asks for", TOO_FEW)]
    return [check_of(kind, kind, HOLDS, said)]


def behaviour_of_another(policy: Policy, evidence: Evidence) -> str:
    """Why what was tampered with is not the behaviour whose bound stands in the policy; "" where it is."""
    task, found = policy.safety.harmful, evidence.tamper or {}
    if task is None:
        return ""
    tried = found["exam"][found["behaviour"]]["sha256"]
    same = tried == evidence.facts["tasks"].get(task, {}).get("sha256")
    return "" if same else f"what was to be undone is not {task}, on which harmful compliance is bounded"


# ------------------------------------------------------------------------------------------------------- hard stops


def allowed(policy: Policy, mode: Mode, evidence: Evidence) -> Iterator[Check]:
    """The policy: that it lets anything out in this mode, and that it was there before the evidence."""
    if mode not in policy.modes or not policy.claims_of(mode):
        why = "nobody is to approve of it, or nothing is claimed"
        yield check_of("mode", "stop", FAILS, f"the policy {policy.name} lets nothing out {mode}", why)
    said = f"the evidence was gathered under this policy ({policy.sha256[:12]})"
    under = str(evidence.facts.get("policy_sha256"))
    if under == policy.sha256:
        yield check_of("policy", "stop", HOLDS, said)
    else:
        why = f"it was gathered under another one ({under[:12]}), so this one was not fixed before"
        yield check_of("policy", "stop", UNKNOWN, said, why, MISMATCHED)


def stopped(policy: Policy, evidence: Evidence) -> Iterator[Check]:
    """What holds a release whatever the claims say."""
    stops = policy.stops
    looks: list[tuple[bool, str, Callable[[Evidence], Look]]] = [
        (stops.receipt, "receipt", receipt),
        (stops.clean_source, "source", source),
    ]
    found = [("doctor", doctor(stops, evidence))] if stops.doctor else []
    found += [(name, look(evidence)) for asked, name, look in looks if asked]
    for name, (status, sentence, reason, why) in found:
        yield check_of(name, "stop", status, sentence, reason, why)


def doctor(stops: Stops, evidence: Evidence) -> Look:
    found, said = (evidence.doctor or {}).get("findings"), "the doctor finds no silent fault"
    if not found:
        return UNKNOWN, said, "it was not examined", MISSING
    faults = [finding["check"] for finding in found if finding["verdict"] == "fault"]
    looked = [finding for finding in found if finding["verdict"] != "not checked"]
    said += f" in {counted(len(looked), 'check')}"
    if without := len(found) - len(looked):
        said += f", and {without:,} of {len(found):,} could not be checked"
    if faults:
        return FAILS, said, f"{some(faults)}", None
    if not looked or len(looked) / len(found) < stops.least_checked:
        asked = f"the policy asks for {percent(stops.least_checked)} of its checks"
        return UNKNOWN, said, asked, TOO_FEW
    return HOLDS, said, "", None


def receipt(evidence: Evidence) -> Look:
    found, said = evidence.receipt, "transformers reads the exported weights and answers the same"
    if found is None:
        return UNKNOWN, said, "there is no receipt", MISSING
    failed = [check["name"] for check in found["checks"] if not check["ok"]]
    if found["verdict"] == "match" and not failed:
        return HOLDS, said, "", None
    names = f" ({some(failed)})" if failed else ""
    return FAILS, said, f"the receipt says {found['verdict']}{names}", None


def source(evidence: Evidence) -> Look:
    found = (evidence.provenance or {}).get("source", {})
    commit, said = found.get("commit"), "it was made by committed code"
    if not commit or found.get("dirty") is None:
        return UNKNOWN, said, "the commit is not known", MISSING
    if found["dirty"]:
        return FAILS, f"{said} ({commit[:12]})", "the code had been changed and not committed", None
    return HOLDS, f"{said} ({commit[:12]})", "", None


def licensed(policy: Policy, evidence: Evidence) -> Iterator[Check]:
    """Every input may be used so, and its text is there."""
    found = evidence.licences
    said = f"the licences of all inputs let the weights go out under {policy.licences.model}"
    if found is None:
        yield check_of("licences", "licence", UNKNOWN, said, "they were not gathered", MISSING)
    elif problems := licences.problems(found, policy.licences.allow, policy.licences.model):
        yield check_of("licences", "licence", FAILS, said, "; ".join(problems))
    else:
        inputs = counted(len(found["inputs"]), "input")
        yield check_of("licences", "licence", HOLDS, f"{said} ({inputs})")


# ------------------------------------------------------------------------------------------------------------ words


def headline(model: str, mode: Mode, status: str, checks: Sequence[Check]) -> str:
    names = [check["name"] for check in checks if check["status"] == status]
    which = f"{len(names):,} of {counted(len(checks), 'check')}"
    if status == HOLDS:
        how = "with open weights" if mode == "open" else "with its weights kept closed"
        return f"{model} may go out {how}: every one of {counted(len(checks), 'check')} holds"
    if status == FAILS:
        return f"{model} is held back: {which} {'fails' if len(names) == 1 else 'fail'} ({some(names)})"
    return f"{model} is not released: the evidence does not decide {which} ({some(names)})"


def reason_told(check: Check) -> str:
    return f"{check['sentence']}; {check['reason']}"


def not_measured(policy: Policy, mode: Mode, evidence: Evidence) -> Iterator[str]:
    """What a reader might take for established, and is not."""
    yield from unsafe(policy, mode, evidence)
    yield from unread(policy, mode, evidence)
    stops = policy.stops
    for asked, what in (
        (stops.doctor, "silent faults: the policy does not ask for the doctor"),
        (
            stops.receipt,
            "whether other programs read the weights alike: the policy does not ask for a receipt",
        ),
        (stops.clean_source, "whether the code that made it was committed: the policy does not ask for it"),
    ):
        if not asked:
            yield what
    yield from seen_before(policy, evidence)
    yield "other training runs: the intervals speak of other questions of the same kind, for these very weights"


def unsafe(policy: Policy, mode: Mode, evidence: Evidence) -> Iterator[str]:
    """Of safety and of tampering."""
    sides, tamper = policy.safety, policy.tamper
    if sides.waived is not None:
        yield f"harmful compliance and over-refusal: {sides.waived}"
    elif sides.agreement_waived is not None:
        yield f"how far the judge of refusals agrees with people: {sides.agreement_waived}"
    elif one_sided(evidence):
        yield f"how far the judge of {sides.benign} agrees with people: the one that was checked is a guard"
    if mode == "open" and tamper is None:
        yield "how soon a mitigation is undone by training on: the policy does not ask for it"
    elif mode == "open" and tamper is not None and tamper.waived is not None:
        yield f"how soon a mitigation is undone by training on: {tamper.waived}"


def unread(policy: Policy, mode: Mode, evidence: Evidence) -> Iterator[str]:
    """Of the text that the models learnt from."""
    bounds = policy.contamination
    if bounds is None:
        yield "whether what was asked stood in the text that it learnt from: the policy sets no bound"
        return
    tasks = [claim.task for claim in policy.claims_of(mode)]
    read = next((stages for task in tasks if (stages := stages_of(evidence, task))), ("pretrain",))
    if missing := [name for stage, name in STAGES.items() if stage in learnt(evidence) and stage not in read]:
        theirs, looked = f"whether what was asked stood in the text of {', '.join(missing)}", text_of(read)
        yield f"{theirs}: only {looked} was looked up"
    if others := brought_in(evidence):
        yield f"whether what was asked stood in text that this run did not see, and {' and '.join(others)} did"
    if not bounds.clean_too:
        yield "whether the claims hold on clean items alone: the policy does not ask for it"


def learnt(evidence: Evidence) -> set[str]:
    """The stages of training that the candidate went through; any, where nothing says which."""
    known = (evidence.provenance or {}).get("training", [])
    return {each["stage"] for each in known} or set(STAGES)


def brought_in(evidence: Evidence) -> list[str]:
    """Weights that learnt from text of somebody else's: those that the run began with, and baselines from outside."""
    inputs = (evidence.licences or {}).get("inputs", [])
    outside = [name for name, of in evidence.facts["baselines"].items() if {*"/:"} & {*str(of["spec"])}]
    return ["the weights that it began with"] * any(e["stage"] == "weights" for e in inputs) + outside


def seen_before(policy: Policy, evidence: Evidence) -> Iterator[str]:
    """What was known when the policy was fixed; its bars may have been chosen by it."""
    if looks := evidence.facts.get("earlier_looks"):
        seen = counted(len(looks), "earlier evaluation")
        places = some([str(look) for look in looks])
        yield f"how much was known before the policy was fixed: {seen} had asked the same ({places})"
    number, verdicts = evidence.facts.get("policy_number", 1), evidence.facts.get("earlier_verdicts", [])
    if number > 1 or verdicts:
        told = (
            f"this is policy no. {number:,} of the run, and {counted(len(verdicts), 'verdict')} came before"
        )
        found = Counter(earlier(policy, evidence, verdict) for verdict in verdicts)
        each = "; ".join(how if count == 1 else f"{count:,} times {how}" for how, count in found.items())
        yield f"what was learnt from earlier attempts: {told}" + (f" ({each})" if each else "")


def earlier(policy: Policy, evidence: Evidence, verdict: Mapping[str, Any]) -> str:
    weights = "these" if verdict["model"] == evidence.facts["model"]["sha256"] else "other"
    under = "this" if verdict["policy"] == policy.sha256 else "another"
    return f"{verdict['verdict']}, {verdict['mode']}, of {weights} weights under {under} policy"
