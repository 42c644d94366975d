"""Who says yes: the evaluator's word for a verdict, the approvals of people, and whether they are enough.

Each is an in-toto statement in a DSSE envelope (https://github.com/in-toto/attestation) over the same digests: of
verdict.json, of the evidence it rests on and of the model that was asked. So a word that was given for one verdict is
no word for another one, whatever the file is called. The verdict's own is SLSA's verification summary
(https://slsa.dev/spec/v1.0/verification_summary): this policy, these inputs, passed or failed.

What a verdict and a card say of the same evidence depends on the code that words them. So the evaluator signs the
number of that wording (`WORDING`) too: whoever checks a bundle with another one is told so, and takes no page on trust.

k of n is counted in people and not in keys: a person is a name in the trust file, however many keys or signatures
stand under it. Left out: an order in which people must sign, and approvals that run out by the clock (nothing in a
bundle can prove what time it is).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from behemoth.base.files import sha256
from behemoth.bundle.dsse import Envelope, read_statement, statement, subject_of
from behemoth.bundle.refusals import Refusal, Refused, refused
from behemoth.bundle.trust import APPROVER, BUILDER, EVALUATOR, Trust
from behemoth.release.policy import Mode, Policy

APPROVAL = "urn:behemoth:approval:v1"
SUMMARY = "https://slsa.dev/verification_summary/v1"
GATE = "urn:behemoth:gate"
DIRECTORY = "approvals"
MOST = 100  # approvals that are looked at; nobody needs more, and each costs a signature to check
TEXTS = ("by", "role", "mode", "note", "at")
OURS = version("behemoth-lab")
WORDING = 1  # raised with every release of this package whose verdict, card or NOTICE says anything otherwise


@dataclass(frozen=True)
class Approval:
    """One signed yes. The texts are what it says of itself; `check` holds them against trust and verdict."""

    file: str
    envelope: Envelope
    statement: Mapping[str, Any]
    sha256: str  # of the file

    @property
    def keyid(self) -> str:
        return self.envelope.signatures[0].keyid

    @property
    def said(self) -> Mapping[str, Any]:
        """by, role, mode, note, at, demo."""
        return self.statement["predicate"]

    @property
    def subjects(self) -> dict[str, str]:
        return subject_of(self.statement)


# ------------------------------------------------------------------------------------------------- what is signed


def subjects(verdict: Mapping[str, Any], verdict_sha256: str) -> dict[str, str]:
    """What every word is given for."""
    return {
        "verdict.json": verdict_sha256,
        "evidence": verdict["evidence"]["sha256"],
        "model": verdict["model"]["sha256"],
    }


def approval_statement(
    verdict: Mapping[str, Any],
    verdict_sha256: str,
    by: str,
    role: str,
    mode: str,
    note: str,
    at: str,
    demo: bool,
) -> bytes:
    """What a person signs: that the model may go out in `mode`, on this verdict."""
    said = {"by": by, "role": role, "mode": mode, "note": note, "at": at, "demo": demo}
    return statement(APPROVAL, subjects(verdict, verdict_sha256), said)


def verdict_statement(
    verdict: Mapping[str, Any],
    verdict_sha256: str,
    log_head: str,
    demo: bool,
    wording: int = WORDING,
    made_by: str = OURS,
) -> bytes:
    """What the evaluator signs: the verdict, the log up to it, and by which version's words.

    timeVerified is when the evidence was finished: a verdict is a function of it, so it has no other time.
    """
    policy, model, evidence = verdict["policy"], verdict["model"], verdict["evidence"]
    said = {
        "verifier": {"id": GATE, "version": {"behemoth": made_by}},
        "timeVerified": evidence["finished"],
        "resourceUri": f"urn:behemoth:model:{model['name']}",
        "policy": {"uri": "policy.toml", "digest": {"sha256": policy["sha256"]}},
        "inputAttestations": [{"uri": "evidence", "digest": {"sha256": evidence["sha256"]}}],
        "verificationResult": "PASSED" if verdict["verdict"] == "release" else "FAILED",
        "verifiedLevels": [],
        "behemoth": {
            "verdict": verdict["verdict"],
            "mode": verdict["mode"],
            "log_head": log_head,
            "demo": demo,
            "wording": wording,
        },
    }
    return statement(SUMMARY, subjects(verdict, verdict_sha256), said)


# ------------------------------------------------------------------------------------------------------ read back


def read_approvals(directory: Path) -> list[Approval]:
    """The approvals in `directory` (RUN/gate/approvals, BUNDLE/release/approvals). Refused: a file there is none."""
    found, refusals = [], []
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    if len(paths) > MOST:
        raise Refused("approval-malformed", f"{len(paths):,} approvals; {MOST} are the most")
    for path in paths:
        try:
            found.append(read_approval(path))
        except Refused as error:
            refusals.append(Refusal("approval-malformed", f"approval {path.name}: {error}"))
    if refusals:
        raise refused(refusals)
    return found


def read_approval(path: Path) -> Approval:
    """Refused: the file is not one approval of one person, in exactly the form of `approval_statement`."""
    envelope = Envelope.read(path)
    if len(envelope.signatures) != 1:
        raise Refused("approval-malformed", f"{len(envelope.signatures)} signatures; one person signs one")
    content = read_statement(envelope)
    said = content["predicate"]
    if content["predicateType"] != APPROVAL:
        raise Refused("approval-malformed", f"a statement of type {content['predicateType']!r}")
    if said.keys() != {*TEXTS, "demo"}:
        raise Refused("approval-malformed", f"says {', '.join(sorted(map(str, said)))}")
    if not all(isinstance(said[key], str) for key in TEXTS) or not isinstance(said["demo"], bool):
        raise Refused("approval-malformed", "holds a value of another kind")
    return Approval(path.name, envelope, content, sha256(path))


# ------------------------------------------------------------------------------------------------------ held against


def check(
    policy: Policy,
    mode: Mode,
    verdict: Mapping[str, Any],
    verdict_sha256: str,
    approvals: Sequence[Approval],
    trust: Trust,
    under: int | None = None,
) -> list[Refusal]:
    """Why these approvals do not suffice for `mode` under `policy`; nothing where they do.

    Every approval must be good, also one that is not needed: a bundle carries no word that does not hold.
    under: the version of the trust file that a bundle was built under (`Trust.allows`).
    """
    if mode not in policy.modes:
        return [Refusal("mode-not-allowed", f"the policy {policy.name} has no approvals for mode {mode!r}")]
    refusals, good = [], []
    for approval in approvals:
        found = check_one(policy, mode, verdict, verdict_sha256, approval, trust, under)
        refusals += found
        if not found:
            good.append(approval)
    return refusals + missing(policy, mode, good)


def check_one(
    policy: Policy,
    mode: Mode,
    verdict: Mapping[str, Any],
    verdict_sha256: str,
    approval: Approval,
    trust: Trust,
    under: int | None = None,
) -> list[Refusal]:
    """Why this approval does not count."""
    said, name = approval.said, f"approval {approval.file}"
    if refusals := unfit(policy, mode, approval.keyid, said["role"], trust, under):
        return [Refusal(one.code, f"{name}: {one.message}") for one in refusals]
    key = trust.key(approval.keyid)
    if not approval.envelope.signed_by(key.public):
        return [Refusal("approval-signature", f"{name} is not signed by {key.name}'s key, or was altered")]
    refusals = [
        Refusal(code, f"{name} is of {what}")
        for code, what, is_so in (
            ("approval-in-anothers-name", f"{said['by']!r} and signed by {key.name}", said["by"] == key.name),
            ("approval-of-another-mode", f"mode {said['mode']!r}, and this is {mode}", said["mode"] == mode),
            ("demo-differs", "another kind of lab (demo, or not)", said["demo"] is trust.demo),
        )
        if not is_so
    ]
    given, meant = approval.subjects, subjects(verdict, verdict_sha256)
    if given != meant:
        what = next((part for part in meant if given.get(part) != meant[part]), "thing as well")
        refusals.append(Refusal("approval-of-another-verdict", f"{name} is of another {what}"))
    return refusals


def unfit(
    policy: Policy, mode: Mode, keyid: str, role: str, trust: Trust, under: int | None = None
) -> list[Refusal]:
    """Why whoever holds this key may not approve in this role: to be asked before anything is signed, too."""
    try:
        trust.allows(keyid, role, under=under)
    except Refused as error:
        return error.refusals
    name, refusals = trust.key(keyid).name, []
    if role not in (EVALUATOR, APPROVER):
        refusals.append(Refusal("wrong-role", f"{name}: a {role} does not approve"))
    if person(name) in builders(trust) and not policy.approvals_of(mode).builder_may_approve:
        message = f"{name} holds a builder's key, and the policy lets no builder approve"
        refusals.append(Refusal("builder-approved", message))
    return refusals


def missing(policy: Policy, mode: Mode, good: Sequence[Approval]) -> list[Refusal]:
    """What of the policy's k of n is not there yet."""
    people: dict[str, set[str]] = {EVALUATOR: set(), APPROVER: set()}
    for approval in good:
        people[approval.said["role"]].add(person(approval.said["by"]))
    refusals = []
    for role, who in people.items():
        if len(who) < (asked := getattr(policy.approvals_of(mode), role)):
            refusals.append(
                Refusal("too-few-approvals", f"{len(who)} of {asked} {role} approvals for {mode} so far")
            )
    everybody = set().union(*people.values())
    if len(everybody) < (asked := policy.approvals_of(mode).people):
        refusals.append(
            Refusal("too-few-people", f"{len(everybody)} of {asked} people approved {mode} so far")
        )
    return refusals


def check_verdict(
    envelope: Envelope,
    verdict: Mapping[str, Any],
    verdict_sha256: str,
    trust: Trust,
    head: str,
    policy: Policy | None,
    mode: Mode,
    under: int | None = None,
) -> list[Refusal]:
    """Why the evaluator's word is none for this verdict. head: the hash of the verdict's entry in the log."""
    if len(envelope.signatures) != 1:
        return [
            Refusal(
                "verdict-signature", f"{len(envelope.signatures)} signatures of the verdict; one is meant"
            )
        ]
    keyid = envelope.signatures[0].keyid
    try:
        if policy is not None and (refusals := unfit_evaluator(policy, mode, keyid, trust, under)):
            return [Refusal(one.code, f"the verdict's signature: {one.message}") for one in refusals]
        trust.allows(keyid, EVALUATOR, under=under)
        if not envelope.signed_by(trust.key(keyid).public):
            return [
                Refusal("verdict-signature", "the verdict's signature does not hold; it or its content was altered")
            ]  # fmt: skip
        content = read_statement(envelope)
    except Refused as error:
        return [Refusal(error.code, f"the verdict's signature: {error}")]
    said = content["predicate"]
    try:
        ours, made_by = said["behemoth"], str(said["verifier"]["version"]["behemoth"])[:40]
        signed_head, wording = str(ours["log_head"]), int(ours["wording"])
    except (KeyError, TypeError, ValueError):
        return [Refusal("verdict-of-another", "what the evaluator signed is no summary of a verdict")]
    if envelope.payload != verdict_statement(
        verdict, verdict_sha256, signed_head, trust.demo, wording, made_by
    ):
        return [
            Refusal("verdict-of-another", "what the evaluator signed is another verdict than the one here")
        ]
    if wording != WORDING:
        message = f"the evaluator judged with behemoth {made_by}, which words verdict and card otherwise than {OURS}"
        return [Refusal("other-wording", f"{message}; check it with behemoth {made_by}")]
    if signed_head != head:
        return [
            Refusal("log-of-another", "the evaluator signed the verdict on another log than the one here")
        ]
    return []


def unfit_evaluator(
    policy: Policy, mode: Mode, keyid: str, trust: Trust, under: int | None = None
) -> list[Refusal]:
    """Why whoever holds this key may not sign the verdict: to be asked before anything is signed, too."""
    try:
        trust.allows(keyid, EVALUATOR, under=under)
    except Refused as error:
        return error.refusals
    name, asked = trust.key(keyid).name, getattr(policy.approvals, mode)
    if person(name) in builders(trust) and not (asked and asked.builder_may_evaluate):
        message = f"{name} holds a builder's key, and the policy lets no builder evaluate"
        return [Refusal("builder-evaluated", message)]
    return []


def builders(trust: Trust) -> set[str]:
    """Everybody who holds, or held, a builder's key."""
    return {person(key.name) for key in trust.keys.values() if BUILDER in key.roles}


def person(name: str) -> str:
    """One spelling of a name, so that nobody counts twice by writing himself otherwise."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
