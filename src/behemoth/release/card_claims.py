"""The part of a model card that tells what was claimed, how it was asked, and what came of it.

All of it in the verdict's own words and numbers (release/claims.py): the bar, the scores, what was counted against a
claim. Added is what a reader needs beside them: who was asked how, and what was known before the policy was fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behemoth.base.units import counted, percent, some
from behemoth.evals.backends import CHAT
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.markdown import bullets, code, grid, words
from behemoth.release.metadata import Claims, measured_as, score_of
from behemoth.release.policy import HELD_OUT
from behemoth.report.bounds import on_levels
from behemoth.stats.paired import BITS, number

KINDS = ("safety", "judge", "tamper", "contamination", "stop", "licence")  # in the order of reading


def policy_told(evidence: Evidence, policy: Mapping[str, Any]) -> str:
    """What had to be shown: fixed before the evaluation, unless somebody had something to go by."""
    known, where = evidence.facts, f"the policy {code(policy['name'])} (SHA-256 {short(policy['sha256'])})"
    verdicts, looks = known.get("earlier_verdicts"), known.get("earlier_looks")
    before = []
    if "policy_number" not in known:
        before.append("nobody counted the policies of this run")
    elif known["policy_number"] != 1:
        before.append(f"it is no. {known['policy_number']} of this run's policies")
    if verdicts:
        given = some([f"{one['verdict']} ({one['mode']})" for one in verdicts])
        before.append(f"{counted(len(verdicts), 'verdict')} came before: {words(given)}")
    if looks:
        before.append(f"{counted(len(looks), 'evaluation')} had asked the same before")
    if not before:
        return f"What had to be shown was fixed before the evaluation, in {where}."
    return f"What had to be shown is in {where}. This was not the first look: {'; '.join(before)}."


def claimed_and_found(evidence: Evidence, claims: Claims, verdict: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{words(check['says'])} ({code(check['task'])})",
            found_of(check),
            words(check["wanted"]),
            words(check["status"]),
        ]
        for check in claims
    ]
    asked = dict.fromkeys(model for check in claims for model in (check["of"], check["than"]) if model)
    notes = []
    for name in [model for model in asked if model != CANDIDATE]:
        spec = str(evidence.facts["baselines"][name]["spec"])
        notes.append(f"{code(name)} is {code(spec.rpartition(':')[2].rpartition('/')[2])}.")
    if any(check["than"] for check in claims):
        notes.append("A difference above 0 speaks for the model that is named first.")
    if any(check["unit"] == BITS for check in claims):
        notes.append(
            "Bits per byte say how badly text is predicted: fewer are better. Their intervals leave room for documents "
            "like none of these, which might take twice the bits."
        )
    if any(check["task"] == HELD_OUT for check in claims):
        notes.append(f"{code(HELD_OUT)} is text that was set aside and not trained on.")
    notes.append(on_levels(claims, verdict["policy"]["level"]))
    table = grid(["claim", "found", "needed", "verdict"], rows)
    said = (
        " ".join(note for note in notes if note),
        how_asked(evidence, list(asked)),
        unclaimed(evidence, verdict),
    )
    return ["## Claimed and found", table, *said]


def how_asked(evidence: Evidence, models: Sequence[str]) -> str:
    """How the questions were put to each model: a form that one of them never saw is part of a difference."""
    ways: dict[str, list[str]] = {}
    for model in models:
        if evaluation := evidence.evaluations.get(model):
            ways.setdefault(evaluation.how, []).append(called(model))
    if not ways:
        return ""
    told = [f"{' and '.join(those)} {words(how)}" for how, those in ways.items()]
    notes = [f"Questions were put to {'; to '.join(told)}."]
    notes += [
        f"{code(model)} was never taught that template: a part of a difference between answers is their form."
        for model in models
        if model != CANDIDATE and untaught(evidence, model)
    ]
    return " ".join(notes)


def untaught(evidence: Evidence, baseline: str) -> bool:
    """Whether it was asked in a chat template, and nothing but pretraining stands behind it."""
    asked, spec = evidence.evaluations.get(baseline), evidence.facts["baselines"][baseline]["spec"]
    training = (evidence.provenance or {}).get("training", ())
    stages = {each["stage"] for each in training if each["member"] == spec}
    return asked is not None and asked.route == CHAT and stages == {"pretrain"}


def unclaimed(evidence: Evidence, verdict: Mapping[str, Any]) -> str:
    """What else the model was asked: a lab claims what went well."""
    told_of = {check["task"] for check in verdict["checks"]}
    scores = [
        f"{code(name)} {score_of(task)} ({words(measured_as(task))})"
        for name, task in evidence.evaluations[CANDIDATE].tasks.items()
        if name not in told_of
    ]
    return f"Measured as well, and nothing claimed: {', '.join(scores)}." if scores else ""


def found_of(check: Mapping[str, Any]) -> str:
    if check["estimate"] is None:
        return words(stopped(check["reason"] or check["sentence"]))
    unit, sign = check["unit"], "+" if check["than"] else ""
    estimate, low, high = (number(check[key], unit, sign) for key in ("estimate", "low", "high"))
    items = counted(check["items"], "document" if unit == BITS else "item")
    if check["against"]:
        items += f", {counted(check['against'], 'answer')} without a score and counted against the claim"
    scores = [(check["of"], check["score"]), (check["than"], check["other"])]
    told = [f"{called(model)} {number(score, unit)}" for model, score in scores if model]
    interval = f"{percent(check['level'])} interval {low} to {high}"
    lines = [f"**{estimate}** {words(unit)}, {interval}, {items}", ", ".join(told), words(check["reason"])]
    return "<br>".join(line for line in lines if line)


def called(model: str) -> str:
    return "this model" if model == CANDIDATE else code(model)


def other_checks(verdict: Mapping[str, Any]) -> list[str]:
    """Safety, contamination, tampering, licences and hard stops, in the gate's words."""
    checks = [check for check in verdict["checks"] if check["kind"] != "claim"]
    checks.sort(key=lambda check: KINDS.index(check["kind"]) if check["kind"] in KINDS else len(KINDS))
    lines = [f"**{words(check['status'])}**: {words(sentence_of(check))}" for check in checks]
    lines += [f"**not measured**: {words(stopped(sentence))}" for sentence in verdict["not_measured"]]
    return ["## Safety and other checks", bullets(lines)]


def sentence_of(check: Mapping[str, Any]) -> str:
    """In the gate's words; the status is told apart, and the reason where the sentence leaves it out."""
    said = str(check["sentence"]).removesuffix(f": {check['status']}")
    return stopped(said if check["reason"] in said else f"{said}; {check['reason']}")


def short(digest: str) -> str:
    return code(digest[:16])


def stopped(sentence: str) -> str:
    return str(sentence).strip().rstrip(".") + "."
