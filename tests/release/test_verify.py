"""What a verifier must see through: whoever holds the whole bundle, and may hold some of the lab's keys, but not all.

Changes by somebody without keys are in test_tampered_bundles; here manifest and signature are made anew with the
builder's key, so that only what lies behind them can refuse.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_bundle
from small_bundle import SEAL_KEY, copied, make_lab, released, resign

from behemoth.base.errors import InputError
from behemoth.base.files import _digest as files_digest
from behemoth.base.files import sha256, write_json
from behemoth.bundle import dsse, journal, manifest, oms
from behemoth.bundle.refusals import CODES, Refused
from behemoth.bundle.trust import handover, read_trust, write_trust
from behemoth.release import approvals, card, evidence, licences, record
from behemoth.release import verify as verifying
from behemoth.release.approvals import WORDING
from behemoth.release.record import Findings, differences, read_record
from behemoth.release.verify import Verification, verify


@pytest.fixture
def small(tmp_path) -> small_bundle.Small:
    return released(tmp_path)


def codes(small, trust=None, seal_key=None) -> list[str]:
    found = look(small, trust, seal_key)
    return [refusal.code for refusal in found.refusals]


def look(small, trust=None, seal_key=None) -> Verification:
    found = verify(small.bundle, trust or small.lab, seal_key=seal_key)
    assert found.holds == (not found.refusals)
    assert all(refusal.code in CODES and refusal.message for refusal in found.refusals)
    return found


def edit(path: Path, **changes) -> None:
    """Change fields of a JSON file, written as write_json does."""
    write_json(path, json.loads(path.read_text()) | changes)


# -------------------------------------------------------------------------------------------------- what is established


def test_a_good_bundle_is_established_word_for_word(small):
    found = look(small)
    assert not found.refusals
    said = "\n".join(found.established)
    for what in (
        "byte for byte",
        "Ada (builder)",
        "computed again",
        "Cy (approver), Di (approver)",
        "README.md",
    ):
        assert what in said
    assert "when any of it was made" in "\n".join(found.not_established)
    assert found.facts["name"] == "run-student" and found.facts["mode"] == "open"


def test_signed_again_it_still_holds(small):
    """What the tests below lean on: `resign` by itself breaks nothing."""
    resign(small)
    assert codes(small) == []


def test_a_closed_bundle_with_and_without_its_key(tmp_path):
    small = released(tmp_path, "closed")
    without = look(small)
    assert not without.refusals and not (small.bundle / "model.safetensors").exists()
    said = [line for line in without.established if "weights" in line]
    assert len(said) == 2 and all("by the builder's word" in line for line in said)
    assert any("sealed files hold" in line for line in without.not_established)
    with_key = look(small, seal_key=SEAL_KEY)
    assert not with_key.refusals and any("sealed files open" in line for line in with_key.established)
    assert codes(small, seal_key=bytes(32)) == ["wrong-seal-key"]


def test_no_torch_and_no_network_are_needed(small):
    code = (
        "import sys, socket; socket.socket = None; from pathlib import Path;"
        "from behemoth.bundle.trust import read_trust;"
        "from behemoth.release.verify import verify;"
        f"found = verify(Path({str(small.bundle)!r}), read_trust(Path({str(small.trust)!r})));"
        "print(found.holds, {'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True set()"


def test_what_is_no_bundle_is_told(tmp_path, small):
    with pytest.raises(InputError):
        verify(tmp_path / "nothing", small.lab)
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "staged.json").write_text("{}")
    with pytest.raises(InputError, match="closed"):
        verify(tmp_path / "staged", small.lab)


# --------------------------------------------------------------------------------------------- the trust file's word


def trusting(small, tmp_path, **changes):
    return read_trust(make_lab(tmp_path / "other-lab", **changes))


def test_an_older_trust_file_is_not_enough(small, tmp_path):
    resign(small, trust={"version": 2, "sha256": small.lab.sha256})
    assert "trust-too-old" in codes(small)


def test_two_trust_files_of_one_version(small, tmp_path):
    assert "trust-forked" in codes(small, trusting(small, tmp_path, issued="2026-03-02T12:00:00Z"))


def test_a_newer_trust_file_serves(small, tmp_path):
    assert codes(small, trusting(small, tmp_path, version=7)) == []


def test_another_labs_trust_file(small, tmp_path):
    assert "facts-differ" in codes(small, trusting(small, tmp_path, version=2, lab="other"))


def test_a_demo_is_told_apart(small, tmp_path):
    assert "demo-differs" in codes(small, trusting(small, tmp_path, version=2, demo=True))
    resign(small, demo=True)
    assert "demo-differs" in codes(small)


def test_withdrawn(small, tmp_path):
    digest = sha256(small.bundle / manifest.MANIFEST)
    assert codes(small, trusting(small, tmp_path, version=2, withdrawn={digest: "it was wrong"})) == [
        "withdrawn"
    ]


def test_an_older_version_replayed(small, tmp_path):
    least = {"run-student": "1.1"}
    assert codes(small, trusting(small, tmp_path, version=2, minimum=least)) == ["below-minimum-version"]
    resign(small, version="1.1")
    assert "facts-differ" in codes(small, trusting(small, tmp_path, version=2, minimum=least))


GONE = {"version": 2, "reason": "lost"}


@pytest.mark.parametrize("who", ["builder", "evaluator", "cy"])
def test_revoked_keys(small, tmp_path, who):
    assert "revoked-key" in codes(
        small, trusting(small, tmp_path, version=2, people={who: {"revoked": GONE}})
    )


@pytest.mark.parametrize("who", ["builder", "evaluator", "cy"])
def test_retired_keys_count_for_what_is_older(small, tmp_path, who):
    newer = trusting(small, tmp_path, version=2, people={who: {"retired": GONE}})
    assert codes(small, newer) == []
    resign(small, trust={"version": 2, "sha256": newer.sha256})
    assert "retired-key" in codes(small, newer)


@pytest.mark.parametrize(
    ("key", "code"), [("stranger", "unknown-key"), ("cy", "wrong-role"), ("root", "wrong-role")]
)
def test_who_may_not_build(small, key, code):
    resign(small, key)
    assert code in codes(small)


def test_everything_signed_anew_by_strangers(tmp_path):
    """The whole bundle made by somebody else, with a trust file of their own inside."""
    small = copied(tmp_path, approvers=())
    strangers = tmp_path / "strangers"
    shutil.copytree(small.run, strangers / "run")
    theirs = small_bundle.make(strangers / "made")
    theirs.build(strangers / "bundle")
    keys = {word: small_bundle.generate() for word in small_bundle.PEOPLE}
    people = {
        key.public.id: small_bundle.TrustedKey(key.public, *small_bundle.PEOPLE[w]) for w, key in keys.items()
    }
    root = small.keys["root"].public
    other = small_bundle.Trust("lab", 1, small_bundle.AT, False, (root.id,), {
        root.id: small_bundle.TrustedKey(root, "root", ()), **people
    })  # fmt: skip
    found = verify(strangers / "bundle", other)
    assert [refusal.code for refusal in found.refusals] == ["trust-forked", "unknown-key"]


# ------------------------------------------------------------------------------- whoever has the builder's key, alone


def test_other_weights(small):
    path = small.bundle / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    resign(small)
    assert {"model-differs", "receipt-differs"} <= set(codes(small))


def test_more_weights(small):
    shutil.copyfile(small.bundle / "model.safetensors", small.bundle / "more.safetensors")
    resign(small)
    assert {"model-differs", "foreign-file"} <= set(codes(small))


@pytest.mark.parametrize("name", ["tokenizer.json", "receipt.json"])
def test_another_tokenizer_or_receipt(small, name):
    edit(small.bundle / name, more=1)
    resign(small)
    assert "receipt-differs" in codes(small)


def test_a_missing_part_of_the_model(small):
    (small.bundle / "tokenizer.json").unlink()
    resign(small)
    assert codes(small)[0] == "receipt-differs"


@pytest.mark.parametrize(("name", "code"), [
    ("README.md", "card-differs"),
    ("NOTICE", "licence-differs"), ("LICENSE", "licence-differs"),
])  # fmt: skip
def test_a_text_that_says_more(small, name, code):
    path = small.bundle / name
    path.write_text(path.read_text() + "\nIt is the best model in the world.\n")
    resign(small)
    assert codes(small) == [code]


@pytest.mark.parametrize(
    "name", ["modeling.py", "extra/model.safetensors", "release/notes.txt", "release/approvals/a.txt", "sealed/x",
             "release/verdict.html"]
)  # fmt: skip
def test_what_belongs_to_no_bundle(small, name):
    path = small.bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('hello')")
    resign(small)
    assert "foreign-file" in codes(small)


def test_a_policy_edited_after_the_fact(small):
    path = small.bundle / "release" / "policy.toml"
    path.write_text(path.read_text().replace("margin = 0.1", "margin = 0.05"))
    resign(small)
    assert {"policy-changed", "verdict-differs"} <= set(codes(small))


def test_evidence_edited(small):
    path = small.bundle / "release" / "evidence" / "doctor.json"
    edit(path, seconds=0.2)
    resign(small)
    assert "evidence-damaged" in codes(small)
    evidence.seal(path.parent)
    resign(small)
    assert "evidence-changed" in codes(small) and "evidence-damaged" not in codes(small)


def test_one_score_edited_and_every_hash_made_anew(small):
    """As far as anybody comes without the evaluator's and the approvers' keys."""
    place = small.bundle / "release" / "evidence"
    answers = place / "evaluations" / "candidate" / "sums.jsonl"
    answers.write_text(answers.read_text().replace('"score": 1.0', '"score": 0.0', 1))
    summary = json.loads((answers.parent / "evaluation.json").read_text())
    summary["tasks"]["sums"]["records_sha256"] = sha256(answers)
    write_json(answers.parent / "evaluation.json", summary)
    evidence.seal(place)
    resign(small)
    assert {"evidence-changed", "verdict-differs"} <= set(codes(small))


def test_evidence_that_names_a_file_outside(small):
    """Whole by its own manifest, which leads out of the bundle."""
    place = small.bundle / "release" / "evidence"
    listed = json.loads((place / "MANIFEST.json").read_text())
    outside = {"bytes": (small.bundle / "NOTICE").stat().st_size, "sha256": sha256(small.bundle / "NOTICE")}
    files = {"files": listed["files"] | {"../../NOTICE": outside}}
    write_json(place / "MANIFEST.json", files | {"sha256": files_digest(files)})
    resign(small)
    assert "evidence-damaged" in codes(small)


def test_a_verdict_edited(small):
    path = small.bundle / "release" / "verdict.json"
    verdict = json.loads(path.read_text())
    verdict["checks"][1]["estimate"] += 0.01
    write_json(path, verdict)
    resign(small)
    assert {"verdict-differs", "verdict-of-another", "approval-of-another-verdict", "log-differs"} <= set(
        codes(small)
    )


@pytest.mark.parametrize(("name", "code"), [
    ("verdict.dsse.json", "verdict-unsigned"), ("verdict.json", "no-record"), ("policy.toml", "no-record"),
    ("log.jsonl", "no-record"), ("evidence/MANIFEST.json", "no-record"), ("evidence/facts.json", "evidence-damaged"),
    ("approvals/cy.json", "too-few-approvals"), ("trust.json", "malformed"),
])  # fmt: skip
def test_a_part_of_the_record_left_out(small, name, code):
    (small.bundle / "release" / name).unlink()
    resign(small)
    assert code in codes(small)


def test_an_approval_twice_is_one(small):
    place = small.bundle / "release" / "approvals"
    shutil.copyfile(place / "cy.json", place / "di.json")
    resign(small)
    assert {"too-few-approvals", "too-few-people"} <= set(codes(small))


@pytest.mark.parametrize(("keep", "code"), [
    ([0, 1], "log-differs"), ([0, 2, 1], "log-broken"), ([1, 2, 3, 4], "log-broken"),
    ([0, 1, 2, 3], "approval-not-logged"),
])  # fmt: skip
def test_a_log_cut_or_shuffled(small, keep, code):
    path = small.bundle / "release" / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[number] for number in keep))
    resign(small)
    assert code in codes(small)


@pytest.mark.parametrize(("kinds", "code"), [
    ("evidence policy verdict", "log-differs"), ("policy verdict evidence", "log-differs"),
    ("policy evidence verdict void", "log-differs"), ("policy evidence policy! verdict", "log-differs"),
    ("policy evidence verdict evidence!", "log-differs"), ("policy evidence verdict verdict!", "log-differs"),
    ("policy evidence verdict note", ""),
])  # fmt: skip
def test_a_log_that_tells_another_story(small, kinds, code):
    """A whole chain, written by somebody who can write logs and sign bundles."""
    path = small.bundle / "release" / "log.jsonl"
    facts = {entry.kind: dict(entry.facts) for entry in journal.read(path)}
    given = [entry for entry in journal.read(path) if entry.kind == "approval"]
    path.unlink()
    for word in kinds.split():
        kind, changed = word.rstrip("!"), word.endswith("!")
        told = facts.get(kind, {"why": "?", "what": ["verdict.json"]})
        journal.append(path, kind, told | ({"sha256": "0" * 64} if changed else {}))
    for entry in given:
        journal.append(path, "approval", entry.facts)
    resign(small)
    found = codes(small)
    assert (code in found) if code else ("log-differs" not in found)
    assert "log-of-another" in found  # which the evaluator never saw


@pytest.mark.parametrize(("facts", "code"), [
    ({"name": "other"}, "facts-differ"), ({"version": "9"}, "facts-differ"), ({"model": "0" * 64}, "facts-differ"),
    ({"lab": "other"}, "facts-differ"), ({"mode": "closed", "sealed": {}}, "verdict-of-another-mode"),
    ({"mode": "ajar"}, "malformed"), ({"demo": 1}, "malformed"), ({"more": 1}, "malformed"),
    ({"sealed": {}}, "malformed"), ({"trust": {}}, "malformed"), ({"trust": []}, "malformed"),
    ({"trust": {"version": True, "sha256": "0" * 64}}, "malformed"), ({"behemoth": 1}, "malformed"),
    ({"trust": {"version": 1, "sha256": "x"}}, "malformed"), ({"name": None}, "malformed"),
    ({"mode": "closed", "sealed": {"../../etc/passwd": {"sha256": "0" * 64}}}, "facts-differ"),
])  # fmt: skip
def test_a_manifest_that_says_otherwise(small, facts, code):
    kept = small.lab  # names the model, so its name has to be text to be signed
    record = json.loads((small.bundle / manifest.MANIFEST).read_text())
    said = {key: value for key, value in record.items() if key not in ("format", "files")} | facts
    record = manifest.write(small.bundle, said)
    oms.sign(
        small.bundle,
        small.keys["builder"],
        name=str(said["name"]),
        hashes=manifest.hashes(small.bundle, record),
    )
    assert code in codes(small, kept)


def test_another_trust_file_inside(small, tmp_path):
    shutil.copyfile(make_lab(tmp_path / "v2", version=2), small.bundle / "release" / "trust.json")
    resign(small)
    assert codes(small) == ["facts-differ"]


def test_a_root_that_handed_over_is_the_labs_still(small, tmp_path):
    new = small_bundle.generate()
    later = replace(handover(small.lab, small.keys["root"], new.public), version=2)
    assert codes(small, write_trust(tmp_path / "trust.json", later, new)) == []
    forgotten = replace(later, handovers=())
    assert codes(small, write_trust(tmp_path / "trust.json", forgotten, new)) == ["facts-differ"]


def test_signed_under_another_name(small):
    record = json.loads((small.bundle / manifest.MANIFEST).read_text())
    oms.sign(small.bundle, small.keys["builder"], name="other", hashes=manifest.hashes(small.bundle, record))
    assert codes(small) == ["facts-differ"]


PIECES = ["release", "release/evidence", "release/approvals", "release/log.jsonl", "release/verdict.json",
          "release/verdict.dsse.json", "release/manifest.json", "model.safetensors", "receipt.json", "README.md",
          "model.sig"]  # fmt: skip


def test_pieces_of_two_good_bundles_do_not_mix(tmp_path):
    """The other bundle is of the same lab, keys and policy, and of another model."""
    other = copied(tmp_path / "other", bundled=True, seed=1, right=0.95)
    assert codes(other) == []
    for number, piece in enumerate(PIECES):
        small = released(tmp_path / str(number))
        source, target = other.bundle / piece, small.bundle / piece
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        assert codes(small), piece
        if piece not in ("model.sig", "release/manifest.json"):
            resign(small)
            assert codes(small), piece


def test_an_open_bundle_from_approvals_for_a_closed_one(tmp_path):
    small = released(tmp_path / "a")
    closed = copied(tmp_path / "b", mode="closed")
    shutil.rmtree(small.bundle / "release" / "approvals")
    for name in ("approvals", "verdict.json", "verdict.dsse.json", "log.jsonl"):
        source, target = closed.gate / name, small.bundle / "release" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    resign(small)
    assert {"verdict-of-another-mode", "approval-of-another-mode", "facts-differ"} <= set(codes(small))


def test_a_verdict_of_hold_is_no_release(tmp_path):
    """Everybody signs and approves what the gate holds back."""
    small = small_bundle.make(tmp_path, right=0.35)
    assert json.loads((small.gate / "verdict.json").read_text())["verdict"] != "release"
    with pytest.raises(small_bundle.package.Refused) as error:
        small.build(tmp_path / "bundle")
    assert error.value.code == "not-released"


def test_an_evaluator_and_approvers_who_sign_a_made_up_verdict(small):
    """Every key but root's: computing the verdict again is what is left."""
    place = small.gate
    verdict = json.loads((place / "verdict.json").read_text())
    verdict["checks"][1] |= {"estimate": 0.69, "low": 0.65, "high": 0.75}
    shutil.rmtree(place / "approvals")
    small_bundle.judge(small, verdict=verdict)
    for who in ("cy", "di"):
        small_bundle.approve(small, who)
    with pytest.raises(small_bundle.package.Refused) as error:
        small.build(small.run.parent / "again")
    assert error.value.code == "verdict-differs" and len(error.value.refusals) == 1


def test_a_sealed_file_changed(tmp_path):
    small = released(tmp_path, "closed")
    path = small.bundle / "sealed" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    resign(small)
    assert codes(small) == []  # without the key nobody can know, and it is said
    assert codes(small, seal_key=SEAL_KEY) == ["sealed-file-changed"]


def test_sealed_files_that_hold_something_else(tmp_path):
    small = released(tmp_path, "closed")
    edit(small.model / "config.json", hidden_size=16)
    small_bundle.package.seal.seal(
        small.model / "config.json", small.bundle / "sealed" / "config.json", SEAL_KEY, "config.json"
    )
    resign(small)
    assert "facts-differ" in codes(small, seal_key=SEAL_KEY)


# ----------------------------------------------------------------------------------------- another version, other words


def test_what_the_manifest_says_of_the_version_changes_nothing(small):
    """The builder writes it; which words a card has is what the evaluator signed."""
    resign(small, behemoth="0.0.9")
    assert codes(small) == []
    card = small.bundle / "README.md"
    card.write_text(card.read_text() + "\nIn other words.\n")
    resign(small, behemoth="0.0.9")
    assert codes(small) == ["card-differs"]


def test_a_verdict_in_the_words_of_another_version(small):
    place = small.bundle / "release"
    verdict, digest = json.loads((place / "verdict.json").read_text()), sha256(place / "verdict.json")
    head = next(entry.sha256 for entry in journal.read(place / "log.jsonl") if entry.kind == "verdict")
    told = approvals.verdict_statement(verdict, digest, head, False, WORDING + 1, "9.9")
    dsse.sign(told, dsse.IN_TOTO, [small.keys["evaluator"]]).write(place / "verdict.dsse.json")
    resign(small)
    found = look(small)
    assert [one.code for one in found.refusals] == ["other-wording"]
    assert "check it with behemoth 9.9" in found.refusals[0].message
    assert not any("README" in line for line in found.established)


WORDS = {1: "d0e24e5349c1858d"}  # of what one bundle says, by the number of the wording


def test_who_changes_what_is_said_raises_the_number_of_the_wording(tmp_path):
    """Else a bundle that was good is refused as forged by whoever has the next version of this package."""
    said = ""
    for mode in ("open", "closed"):
        small = released(tmp_path / mode, mode, gguf=True)
        record, kept = (
            read_record(small.gate, Findings()),
            json.loads((small.gate / "verdict.json").read_text()),
        )
        names = ("name", "version", "mode", "demo")
        facts = {key: value for key, value in look(small).facts.items() if key in names}
        receipt = json.loads((small.run / "export/gguf/gguf-receipt.json").read_text())
        told = facts | {"licence": "Apache-2.0", "gguf": receipt, "files": ["README.md"]}
        said += card.render(record.evidence, record.verdict, told) + json.dumps(kept)
        said += (small.bundle / "NOTICE").read_text()
    plain = re.sub(r"[0-9a-f]{12,64}|\d+\.\d{7,}(e-\d+)?", "#", said)  # neither hashes nor the last places
    found = hashlib.sha256(plain.encode()).hexdigest()[:16]
    assert {WORDING: found} == WORDS, f"raise approvals.WORDING, once a release, and write {found} here"


@pytest.mark.parametrize(("one", "other", "same"), [
    ({"a": 0.1 + 0.2}, {"a": 0.3}, True), ({"a": 0.3}, {"a": 0.3000001}, False), ({"a": 1}, {"a": 1.0}, True),
    ({"a": True}, {"a": 1}, False), ({"a": None}, {"a": 0}, False), ({"a": 1}, {"b": 1}, False), ([1], [1, 2], False),
    ("by 41.2 points, of 600", "by 41.3 points, of 600", True), ("by 41.2 points", "by 41.4 points", False),
    ("by 41.2 points, of 600", "by 41.2 points, of 601", False), ("holds", "fails", False), ("2", "2.0", False),
    ("1,234.5 items", "1,234.6 items", True), ("+0.5", "-0.5", False), (0, -0.0, True), ("a", 1, False),
])  # fmt: skip
def test_two_verdicts_may_differ_by_rounding_only(one, other, same):
    assert (next(differences(one, other), None) is None) is same


# ---------------------------------------------------------------------------------------------- files made to confuse

JUNK = {
    "empty": b"",
    "not json": b"{",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "empty object": b"{}",
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "deep and whole": b"[" * 5_000 + b"]" * 5_000,
    "a long number": b"9" * 10_000,
    "infinite": b'{"a": 1e999}',
    "nan": b'{"a": NaN}',
    "half a character": b'{"a": "\\ud800"}',
    "nul": b'{"a": "\\u0000"}',
    "wrong kinds": b'{"files": 1, "model": 1, "verdict": [], "mode": {}, "policy": 1, "evidence": 1, "inputs": 3}',
    "wrong kinds within": b'{"files": {"../../../etc/passwd": {"bytes": 1, "sha256": "0"}}, "model": {"name": 1}, '
    b'"sha256": "0"}',
}  # fmt: skip
RECORD = ["verdict.json", "verdict.dsse.json", "policy.toml", "log.jsonl", "trust.json", "manifest.json",
          "approvals/cy.json"]  # fmt: skip
EVIDENCE = ["facts.json", "doctor.json", "receipt.json", "licences.json", "provenance.json", "MANIFEST.json",
            "evaluations/candidate/evaluation.json", "evaluations/candidate/sums.jsonl"]  # fmt: skip


FILES = [*RECORD, *(f"evidence/{name}" for name in EVIDENCE)]


@pytest.mark.parametrize("name", FILES)
def test_no_file_can_crash_its_reader(small, name):
    crash(small, name, ["deep", "wrong kinds", "wrong kinds within"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_no_file_can_crash_its_reader_whatever_it_holds(small, name):
    crash(small, name, JUNK)


def crash(small, name, kinds):
    for what in kinds:
        (small.bundle / "release" / name).write_bytes(JUNK[what])
        if name != "manifest.json":
            resign(small)
        assert codes(small), what


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVIDENCE if name != "MANIFEST.json"])
def test_nor_when_the_evidence_is_sealed_around_it(small, name):
    place = small.bundle / "release" / "evidence"
    for what, junk in JUNK.items():
        (place / name).write_bytes(junk)
        evidence.seal(place)
        resign(small)
        assert codes(small), what


def test_one_key_twice_is_refused_though_every_hash_is_right(small):
    """Two readers would see two verdicts."""
    path = small.bundle / "release" / "verdict.json"
    path.write_text(
        path.read_text().replace('"verdict": "release"', '"verdict": "hold", "verdict": "release"')
    )
    resign(small)
    assert codes(small)[0] == "malformed"


@pytest.mark.parametrize(("name", "size"), [("verdict.json", 40 << 20), ("policy.toml", 80 << 10)])
def test_a_file_too_large_to_be_a_record(small, name, size):
    with open(small.bundle / "release" / name, "r+b") as file:
        file.truncate(size)
    resign(small)
    assert "too-large" in codes(small)


def test_more_lines_or_more_work_than_any_record_has(small, monkeypatch):
    monkeypatch.setattr(record, "MOST_WORK", 199)
    assert codes(small) == ["too-large"]
    monkeypatch.setattr(record, "MOST_LINES", 399)
    assert codes(small) == ["too-large"]
    monkeypatch.setattr(record, "MOST_LINES", 400)
    monkeypatch.setattr(record, "MOST_WORK", 200)
    assert codes(small) == []


@pytest.mark.parametrize("by", ["nobody", "stranger", "cy"])
def test_nothing_is_opened_that_no_builder_signed(small, monkeypatch, by):
    """Else whoever hands out a bundle has the reader's time and memory."""
    opened = []
    monkeypatch.setattr(verifying, "read_record", lambda *arguments: opened.append(arguments))
    (small.bundle / "release" / "evidence" / "more.jsonl").write_text("{}\n")
    if by != "nobody":
        resign(small, by)
    assert codes(small) and not opened
    assert any("nobody of the lab signed" in line for line in look(small).not_established)
    resign(small)
    codes(small)
    assert opened


@pytest.mark.parametrize(
    "name", ["../facts.json", "/dev/zero", "../../../../../../../../dev/zero", "pipe", 1]
)
def test_a_licence_is_a_text_of_the_evidence_and_nothing_else(small, name):
    place = small.gate / "evidence"
    (place / "licences").mkdir()
    edit(place / "licences.json", model_texts=[name])
    evidence.seal(place)
    os.mkfifo(place / "licences" / "pipe")
    with pytest.raises(Refused, match=r"none of the evidence|not a plain file"):
        licences.licence_text("Apache-2.0", place)


def test_a_record_too_large_in_all(small, monkeypatch):
    monkeypatch.setattr(record, "MOST_BYTES", 100_000)
    assert "too-large" in codes(small)


def test_names_and_digests_are_text(small):
    edit(small.bundle / "release" / "verdict.json", mode=["open"])
    resign(small)
    assert codes(small) == ["malformed"]


def test_what_a_stranger_wrote_cannot_move_the_cursor(small):
    path = small.bundle / "release" / "verdict.json"
    edit(path, verdict="hold", reasons=["\x1b[2J\x1b[Hall is well\u202e\r\n"], mode="\x1b[31m")
    resign(small, lab="\x1b]0;title\x07")
    found = look(small)
    assert {"not-released", "facts-differ"} <= {one.code for one in found.refusals}
    assert all(line.isprintable() for line in [one.message for one in found.refusals] + found.established)


def test_nothing_is_opened_behind_a_link(small):
    path = small.bundle / "release" / "policy.toml"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "symlink" in codes(small)


def test_everything_that_is_wrong_is_told_at_once(small):
    for name in ("README.md", "NOTICE", "tokenizer.json", "release/policy.toml"):
        (small.bundle / name).write_text("# nothing")
    (small.bundle / "release" / "approvals" / "cy.json").unlink()
    resign(small)
    found = codes(small)
    assert {"licence-differs", "receipt-differs", "malformed"} <= set(found)
    order = list(CODES)
    assert found == sorted(found, key=order.index)  # the gravest first


@pytest.mark.slow
def test_no_byte_can_be_changed(small):
    """Of every file some bytes, by one bit each."""
    for path in sorted(path for path in small.bundle.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert codes(small), (path, place)
        path.write_bytes(whole)
    assert codes(small) == []


def test_the_evaluators_signature_is_of_the_log_too(small):
    """A verdict signed for a log in which another policy stood."""
    place = small.bundle / "release"
    verdict = json.loads((place / "verdict.json").read_text())
    told = small_bundle.approvals.verdict_statement(verdict, sha256(place / "verdict.json"), "0" * 64, False)
    dsse.sign(told, dsse.IN_TOTO, [small.keys["evaluator"]]).write(place / "verdict.dsse.json")
    resign(small)
    assert "log-of-another" in codes(small)
