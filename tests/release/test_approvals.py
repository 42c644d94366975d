"""Whose yes counts, for what, and when there are enough."""

import json
from pathlib import Path

import pytest
import small_bundle
from small_bundle import POLICY, approve, copied, judge, make_lab

from behemoth.base.files import sha256
from behemoth.bundle import dsse, journal
from behemoth.bundle.refusals import CODES, Refused
from behemoth.release import approvals
from behemoth.release.policy import load_policy

BUILDER_MAY = POLICY.replace("people = 2", "people = 2\nbuilder_may_approve = true")
OF_BOTH_ROLES = POLICY.replace("approver = 2\npeople = 2", "evaluator = 1\napprover = 1\npeople = 2")


@pytest.fixture
def small(tmp_path) -> small_bundle.Small:
    return copied(tmp_path, approvers=("cy",))


def codes(small, mode="open", trust=None, under=1) -> list[str]:
    """Why what lies in approvals/ does not suffice."""
    verdict = json.loads((small.gate / "verdict.json").read_text())
    given = approvals.read_approvals(small.gate / "approvals")
    policy, digest = load_policy(small.gate / "policy.toml"), sha256(small.gate / "verdict.json")
    refusals = approvals.check(policy, mode, verdict, digest, given, trust or small.lab, under)
    assert all(refusal.code in CODES and refusal.message for refusal in refusals)
    return [refusal.code for refusal in refusals]


def test_two_people_suffice_and_one_does_not(small):
    assert codes(small) == ["too-few-approvals", "too-few-people"]
    approve(small, "di")
    assert codes(small) == []


def test_one_person_counts_once(small):
    approve(small, "cy", file="cy-again", note="and again")
    assert codes(small) == ["too-few-approvals", "too-few-people"]


def test_one_person_with_two_keys_counts_once(tmp_path):
    small = copied(tmp_path, approvers=())
    lab = make_lab(tmp_path / "two", people={"di": {"name": "Cy"}})
    approve(small, "cy")
    approve(small, "di", by="Cy")
    assert codes(small, trust=small_bundle.read_trust(lab)) == ["too-few-approvals", "too-few-people"]


def test_roles_and_people_are_counted_apart(tmp_path):
    small = copied(tmp_path, policy=OF_BOTH_ROLES, approvers=("cy", "di"))
    assert codes(small) == ["too-few-approvals"]  # two people, and none of them an evaluator
    approve(small, "evaluator", role="evaluator")
    assert codes(small) == []


@pytest.mark.parametrize(
    ("who", "said", "code"),
    [
        ("stranger", {}, "unknown-key"),
        ("evaluator", {}, "wrong-role"),
        ("builder", {"role": "builder"}, "wrong-role"),
        ("root", {}, "wrong-role"),
        ("both", {}, "builder-approved"),
        ("di", {"by": "Cy"}, "approval-in-anothers-name"),
        ("di", {"mode": "closed"}, "approval-of-another-mode"),
        ("di", {"demo": True}, "demo-differs"),
        ("di", {"verdict_sha256": "0" * 64}, "approval-of-another-verdict"),
    ],
)
def test_each_way_to_be_wrong_has_its_own_code(small, who, said, code):
    approve(small, who, **said)
    assert code in codes(small)
    assert "too-few-approvals" in codes(small)  # and it does not count


def test_who_may_not_approve_is_told_before_anything_is_signed(small):
    policy = load_policy(small.gate / "policy.toml")
    for who, role, expected in (
        ("cy", "approver", []),
        ("both", "approver", ["builder-approved"]),
        ("builder", "builder", ["wrong-role", "builder-approved"]),
        ("evaluator", "approver", ["wrong-role"]),
        ("stranger", "approver", ["unknown-key"]),
    ):
        found = approvals.unfit(policy, "open", small.keys[who].public.id, role, small.lab)
        assert [refusal.code for refusal in found] == expected


def test_the_policy_may_let_builders_approve(tmp_path):
    small = copied(tmp_path, policy=BUILDER_MAY, approvers=("cy", "both"))
    assert codes(small) == []


def test_the_policy_may_let_builders_evaluate(tmp_path):
    may = POLICY.replace("people = 2", "people = 2\nbuilder_may_evaluate = true")
    small = copied(tmp_path, policy=may, approvers=("cy",))
    head = [entry.sha256 for entry in journal.read(small.gate / "log.jsonl") if entry.kind == "verdict"][-1]
    policy, old = load_policy(small.gate / "policy.toml"), small.keys["old"].public.id
    assert not approvals.unfit_evaluator(policy, "open", old, small.lab)
    found = approvals.unfit_evaluator(policy, "closed", old, small.lab)
    assert [refusal.code for refusal in found] == ["builder-evaluated"]
    verdict, digest = (
        json.loads((small.gate / "verdict.json").read_text()),
        sha256(small.gate / "verdict.json"),
    )
    told = approvals.verdict_statement(verdict, digest, head, False)
    signed = dsse.sign(told, dsse.IN_TOTO, [small.keys["old"]])
    assert approvals.check_verdict(signed, verdict, digest, small.lab, head, policy, "open") == []


def test_a_policy_without_the_mode_lets_nothing_out(tmp_path):
    only_open = (
        POLICY.partition("[approvals.closed]")[0]
        .replace("[safety]", "[safety]\n")
        .replace("margin = 0.1", 'margin = 0.1\nmodes = ["open"]')
        .replace("bar = 0.5", 'bar = 0.5\nmodes = ["open"]')
    )
    small = copied(tmp_path, policy=only_open)
    assert codes(small) == [] and codes(small, mode="closed") == ["mode-not-allowed"]


def test_a_revoked_key_counts_no_more_and_a_retired_one_for_what_is_older(small, tmp_path):
    approve(small, "di")
    gone = {"version": 2, "reason": "lost"}
    revoked = small_bundle.read_trust(make_lab(tmp_path / "r", version=2, people={"di": {"revoked": gone}}))
    assert "revoked-key" in codes(small, trust=revoked)
    retired = small_bundle.read_trust(make_lab(tmp_path / "o", version=2, people={"di": {"retired": gone}}))
    assert codes(small, trust=retired, under=1) == []
    assert "retired-key" in codes(small, trust=retired, under=2)


def test_an_approval_of_an_earlier_verdict_is_none_of_the_next(small):
    approve(small, "di")
    verdict = json.loads((small.gate / "verdict.json").read_text())
    judge(small, verdict=verdict | {"sentence": "another one"})
    assert codes(small).count("approval-of-another-verdict") == 2


def test_a_changed_payload_is_not_what_was_signed(small):
    path = small.gate / "approvals" / "cy.json"
    envelope = json.loads(path.read_text())
    signed = dsse.Envelope.read(path)
    other = signed.payload.replace(b'"note":""', b'"note":"?"')
    envelope["payload"] = dsse.Envelope("x", other, signed.signatures).as_dict()["payload"]
    path.write_text(json.dumps(envelope))
    assert "approval-signature" in codes(small)


def test_the_keyid_of_another_does_not_help(small):
    """A stranger signs and writes an approver's key id beside it."""
    path = approve(small, "stranger", by="Di")
    envelope = json.loads(path.read_text())
    envelope["signatures"][0]["keyid"] = small.keys["di"].public.id
    path.write_text(json.dumps(envelope))
    assert "approval-signature" in codes(small)


def statement(said, kind=approvals.APPROVAL, subject=None):
    return dsse.statement(kind, subject or {"verdict.json": "0" * 64}, said)


WHOLE = {"by": "Cy", "role": "approver", "mode": "open", "note": "", "at": "", "demo": False}


@pytest.mark.parametrize(
    "write",
    [
        lambda path, keys: path.write_text("{}"),
        lambda path, keys: path.write_text("[" * 100_000),
        lambda path, keys: path.write_bytes(b"\xff\xfe"),
        lambda path, keys: path.mkdir(),
        lambda path, keys: path.symlink_to("/dev/zero"),
        lambda path, keys: dsse.sign(b"{}", dsse.IN_TOTO, keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE), "text/plain", keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE, "urn:other"), dsse.IN_TOTO, keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE | {"more": 1}), dsse.IN_TOTO, keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE | {"by": 1}), dsse.IN_TOTO, keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE | {"demo": 0}), dsse.IN_TOTO, keys).write(path),
        lambda path, keys: dsse.sign(statement(WHOLE), dsse.IN_TOTO, keys * 2).write(path),
        lambda path, keys: dsse.sign(
            statement(WHOLE), dsse.IN_TOTO, [*keys, small_bundle.private_keys()["di"]]
        ).write(path),
        lambda path, keys: dsse.sign(
            statement(WHOLE).replace(b'{"at"', b'{"by":"Di","at"'), dsse.IN_TOTO, keys
        ).write(path),
    ],
)
def test_what_is_no_approval_is_refused_before_it_is_counted(tmp_path, write):
    write(tmp_path / "zed.json", [small_bundle.private_keys()["cy"]])
    with pytest.raises(Refused) as error:
        approvals.read_approvals(tmp_path)
    assert error.value.code == "approval-malformed" and "zed.json" in str(error.value)


def test_more_files_than_a_reader_looks_at(tmp_path):
    for number in range(approvals.MOST + 1):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(Refused, match="the most"):
        approvals.read_approvals(tmp_path)


# ------------------------------------------------------------------------------------------- the evaluator's signature


def signed_codes(small, key="evaluator", trust=None, under=1, **changes) -> list[str]:
    verdict = json.loads((small.gate / "verdict.json").read_text())
    digest = sha256(small.gate / "verdict.json")
    head = [entry.sha256 for entry in journal.read(small.gate / "log.jsonl")][-1]
    policy = load_policy(small.gate / "policy.toml")
    said = {"log_head": head, "demo": False} | changes
    told = approvals.verdict_statement(verdict | said.pop("verdict", {}), digest, **said)
    envelope = dsse.sign(told, dsse.IN_TOTO, [small.keys[key]])
    found = approvals.check_verdict(
        envelope, verdict, digest, trust or small.lab, head, policy, "open", under
    )
    return [refusal.code for refusal in found]


def test_the_evaluators_word_is_for_this_verdict_and_this_log(small):
    assert signed_codes(small) == []
    assert signed_codes(small, verdict={"mode": "closed"}) == ["verdict-of-another"]
    assert signed_codes(small, verdict={"verdict": "hold"}) == ["verdict-of-another"]
    assert signed_codes(small, demo=True) == ["verdict-of-another"]
    assert signed_codes(small, log_head="0" * 64) == ["log-of-another"]
    assert signed_codes(small, wording=approvals.WORDING + 1) == ["other-wording"]
    assert signed_codes(small, wording="") == ["verdict-of-another"]
    assert signed_codes(small, key="old") == ["builder-evaluated"]
    assert signed_codes(small, key="stranger") == ["unknown-key"]
    assert signed_codes(small, key="cy") == ["wrong-role"]
    assert signed_codes(small, key="builder") == ["wrong-role"]


def test_the_summary_is_slsas(small):
    envelope = dsse.Envelope.read(small.gate / "verdict.dsse.json")
    said = dsse.read_statement(envelope)
    assert said["predicateType"] == "https://slsa.dev/verification_summary/v1"
    kept = {"verifier", "timeVerified", "resourceUri", "policy", "inputAttestations", "verificationResult"}
    assert kept <= set(said["predicate"]) and said["predicate"]["verificationResult"] == "PASSED"
    verdict = json.loads((small.gate / "verdict.json").read_text())
    assert said["predicate"]["timeVerified"] == verdict["evidence"]["finished"]
    assert dsse.subject_of(said)["verdict.json"] == sha256(small.gate / "verdict.json")


def test_the_same_signature_twice(small, tmp_path):
    first = Path(small.gate / "approvals" / "cy.json").read_bytes()
    assert approve(small, "cy", log=False).read_bytes() == first


def test_a_verdict_altered_after_it_was_signed(small):
    """Other bytes under the evaluator's signature, or two signatures where one person signs."""
    verdict, digest = (
        json.loads((small.gate / "verdict.json").read_text()),
        sha256(small.gate / "verdict.json"),
    )
    signed = dsse.Envelope.read(small.gate / "verdict.dsse.json")
    policy = load_policy(small.gate / "policy.toml")
    altered = dsse.Envelope(
        signed.payload_type, signed.payload.replace(b"PASSED", b"FAILED"), signed.signatures
    )
    both = dsse.sign(signed.payload, dsse.IN_TOTO, [small.keys["evaluator"], small.keys["cy"]])
    for envelope in (altered, both):
        found = approvals.check_verdict(envelope, verdict, digest, small.lab, "", policy, "open")
        assert [refusal.code for refusal in found] == ["verdict-signature"]
