"""A bundle is built of what was judged and approved, and of nothing else; twice it is the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import small_bundle
from small_bundle import POLICY, SEAL_KEY, approve, copied, make_lab, released

from behemoth import releasing
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import read_json, sha256, write_json
from behemoth.bundle import journal
from behemoth.bundle.keys import write_private
from behemoth.bundle.refusals import Refused
from behemoth.bundle.seal import unseal, write_seal_key
from behemoth.model.open import open_model
from behemoth.release import package
from behemoth.release.verify import verify


@pytest.fixture
def small(tmp_path) -> small_bundle.Small:
    return copied(tmp_path)


def contents(directory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def refused(small, out, mode="open", **more) -> list[str]:
    """The codes; and that nothing is left behind."""
    with pytest.raises(Refused) as error:
        small.build(out, mode, **more)
    assert not out.exists() and not list(out.parent.glob(".*"))
    return [refusal.code for refusal in error.value.refusals]


def test_two_builds_are_the_same_bytes(small, tmp_path):
    small.build(tmp_path / "one")
    time.sleep(1.1)  # a clock would tell
    os.environ["TZ"], before = "Pacific/Kiritimati", os.environ.get("TZ")
    try:
        small.build(tmp_path / "two")
    finally:
        os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_two_closed_builds_are_the_same_bytes(tmp_path):
    small = copied(tmp_path, mode="closed")
    small.build(tmp_path / "one", "closed")
    small.build(tmp_path / "two", "closed")
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert not [name for name in one if "safetensors" in name and not name.startswith("sealed/")]
    secret = (small.model / "model.safetensors").read_bytes()
    assert not any(secret[-500:] in data for data in one.values())
    kept = unseal(tmp_path / "one" / "sealed" / "model.safetensors", SEAL_KEY, "model.safetensors")
    assert kept == secret


def test_no_private_key_and_no_path_of_the_lab_goes_out(small, tmp_path):
    small.build(tmp_path / "bundle")
    for name, data in contents(tmp_path / "bundle").items():
        assert b"PRIVATE KEY" not in data and str(tmp_path).encode() not in data, name


def test_what_is_built(small, tmp_path):
    found = small.build(tmp_path / "bundle")
    assert found["name"] == "run-student" and found["builder"] == "Ada" and not found["demo"]
    assert found["sha256"] == sha256(tmp_path / "bundle" / "release" / "manifest.json")
    assert (tmp_path / "bundle" / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert "CC0-1.0" in (tmp_path / "bundle" / "NOTICE").read_text()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda gate: shutil.rmtree(gate), "no-record"),
        (lambda gate: (gate / "verdict.json").unlink(), "no-record"),
        (lambda gate: (gate / "verdict.dsse.json").unlink(), "verdict-unsigned"),
        (lambda gate: (gate / "approvals" / "di.json").unlink(), "too-few-approvals"),
        (lambda gate: shutil.rmtree(gate / "approvals"), "too-few-approvals"),
        (lambda gate: (gate / "policy.toml").write_text(POLICY.replace("0.1\n", "0.2\n")), "policy-changed"),
        (lambda gate: (gate / "evidence" / "more.txt").write_text("x"), "evidence-damaged"),
        (lambda gate: (gate / "evidence" / "doctor.json").write_text("{}"), "evidence-damaged"),
        (lambda gate: reseal(gate), "evidence-changed"),
        (
            lambda gate: journal.append(gate / "log.jsonl", "void", {"why": "", "what": ["verdict.json"]}),
            "log-differs",
        ),
        (lambda gate: journal.append(gate / "log.jsonl", "policy", {"sha256": "0" * 64}), "log-differs"),
        (
            lambda gate: (gate / "log.jsonl").write_bytes((gate / "log.jsonl").read_bytes()[200:]),
            "log-broken",
        ),
    ],
)
def test_what_keeps_a_bundle_from_being_built(small, tmp_path, spoil, code):
    spoil(small.gate)
    assert code in refused(small, tmp_path / "bundle")


def reseal(gate):
    write_json(
        gate / "evidence" / "doctor.json", read_json(gate / "evidence" / "doctor.json") | {"seconds": 9.0}
    )
    small_bundle.evidence.seal(gate / "evidence")


def test_who_may_not_build(small, tmp_path):
    assert refused(small, tmp_path / "bundle", key="cy") == ["wrong-role"]
    assert refused(small, tmp_path / "bundle", key="stranger") == ["unknown-key"]
    gone = {"version": 2, "reason": "lost"}
    for change, code in (("revoked", "revoked-key"), ("retired", "retired-key")):
        lab = make_lab(tmp_path / change, version=2, people={"builder": {change: gone}})
        assert refused(small, tmp_path / "bundle", trust=lab) == [code]


def test_the_builders_own_approval(tmp_path):
    small = copied(tmp_path, approvers=("cy", "both"))
    assert {"builder-approved", "too-few-approvals"} <= set(refused(small, tmp_path / "bundle"))


def test_a_verdict_for_the_other_way(tmp_path):
    small = copied(tmp_path, mode="closed")
    assert {"verdict-of-another-mode", "approval-of-another-mode"} <= set(
        refused(small, tmp_path / "bundle", "open")
    )
    with pytest.raises(InputError, match="--seal-key"):
        small.build(tmp_path / "bundle", "closed", seal_key=None)


def test_an_export_that_is_not_what_was_judged(small, tmp_path):
    path = small.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert "model-differs" in refused(small, tmp_path / "bundle")
    path.unlink()
    with pytest.raises(InputError, match="export it again"):
        small.build(tmp_path / "bundle")


def test_what_lies_beside_the_export_stays_there(small, tmp_path):
    (small.model / "notes.txt").write_text("not for strangers")
    (small.gate / "earlier" / "1").mkdir(parents=True)
    (small.gate / "earlier" / "1" / "verdict.json").write_text("{")
    small.build(tmp_path / "bundle")
    assert not {name for name in contents(tmp_path / "bundle") if "notes" in name or "earlier" in name}


def test_the_log_goes_along_up_to_the_last_approval(small, tmp_path):
    small.build(tmp_path / "one")
    journal.append(small.gate / "log.jsonl", "release", {"way": "open"})
    journal.append(small.gate / "log.jsonl", "note", {"why": "sent to a friend"})
    small.build(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nothing_is_overwritten_and_the_same_bundle_is_done_already(small, tmp_path):
    first = small.build(tmp_path / "bundle")
    assert small.build(tmp_path / "bundle") == first
    (tmp_path / "bundle" / "README.md").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        small.build(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "README.md").read_text() == "mine"


def test_a_link_in_the_place_where_a_bundle_is_built_is_not_followed(small, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".bundle.building").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="move it away"):
        small.build(tmp_path / "bundle")
    assert not os.listdir(tmp_path / "elsewhere") and not os.path.lexists(tmp_path / "bundle")


def test_a_file_for_llama_cpp_goes_out_when_the_evidence_is_of_it(tmp_path, key_files):
    small = copied(tmp_path, gguf=True)
    file = small.run / "export" / "gguf" / "model.gguf"
    small.build(tmp_path / "with", gguf=file)
    small.build(tmp_path / "without")
    for place, given in (("with", None), ("without", file)):
        with pytest.raises(InputError, match="choose another place"):
            small.build(tmp_path / place, gguf=given)
    assert "-c 32 " in (tmp_path / "with" / "README.md").read_text()
    found = verify(tmp_path / "with", small.lab)
    assert found.holds and any("model.gguf is the file whose hash" in line for line in found.established)
    file.write_bytes(b"another")
    assert "gguf-differs" in refused(small, tmp_path / "again", gguf=file)


def test_a_licence_without_a_text_is_not_released(tmp_path):
    small = copied(tmp_path, policy=POLICY.replace('model = "Apache-2.0"', 'model = "MIT"'))
    assert refused(small, tmp_path / "bundle") == ["not-released"]


def test_staged(tmp_path):
    small = copied(tmp_path, mode="closed")
    more = {"key": small.keys["builder"], "trust": small.trust, "model": small.model, "seal_key": SEAL_KEY}
    found = package.stage(small.run, tmp_path / "staged", **more)
    assert verify(tmp_path / "staged" / "closed", small.lab, seal_key=SEAL_KEY).holds
    prepared = contents(tmp_path / "staged" / "open")
    assert "model.sig" not in prepared and not [name for name in prepared if "approvals" in name]
    assert {"sealed/model.safetensors", "release/verdict.json", "release/manifest.json", "LICENSE"} <= set(
        prepared
    )
    assert "model.safetensors" not in prepared
    assert found["open"]["verdict"] == "release"
    assert any("2 of approver" in line for line in found["open"]["lacks"])
    assert read_json(tmp_path / "staged" / "staged.json") == {k: v for k, v in found.items() if k != "bundle"}
    assert package.stage(small.run, tmp_path / "staged", **more) == found
    with pytest.raises(InputError, match="staged"):
        open_model(tmp_path / "staged")
    with pytest.raises(InputError, match="closed bundle"):
        open_model(tmp_path / "staged" / "closed")


def test_staged_says_which_claims_stand_in_the_way(tmp_path):
    strict = (
        POLICY.replace("bar = 0.5", 'bar = 0.5\nmodes = ["closed"]')
        + """
[[claims]]
name = "names-open"
says = "names things nearly always"
task = "names"
is = "at least"
bar = 0.95
modes = ["open"]
"""
    )
    small = copied(tmp_path, mode="closed", policy=strict)
    more = {"key": small.keys["builder"], "trust": small.trust, "model": small.model, "seal_key": SEAL_KEY}
    found = package.stage(small.run, tmp_path / "staged", **more)
    assert found["open"]["verdict"] == "hold" and "nearly always" in found["open"]["lacks"][0]


def test_nothing_is_staged_that_may_never_open(tmp_path):
    closed = POLICY.partition("[approvals.open]")[0].replace(
        "margin = 0.1", 'margin = 0.1\nmodes = ["closed"]'
    )
    closed = (
        closed.replace("bar = 0.5", 'bar = 0.5\nmodes = ["closed"]') + "[approvals.closed]\napprover = 1\n"
    )
    small = copied(tmp_path, mode="closed", policy=closed)
    more = {"key": small.keys["builder"], "trust": small.trust, "model": small.model, "seal_key": SEAL_KEY}
    with pytest.raises(Refused) as error:
        package.stage(small.run, tmp_path / "staged", **more)
    assert error.value.code == "mode-not-allowed" and not (tmp_path / "staged").exists()


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def key_files(tmp_path, monkeypatch):
    """Private keys in files, and a memory for trust files of this test alone."""
    monkeypatch.setenv("BEHEMOTH_PASSPHRASE", "long enough")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for word in ("builder", "cy"):
        write_private(tmp_path / f"{word}.pem", small_bundle.private_keys()[word], "long enough")
    write_seal_key(tmp_path / "seal.key")
    return tmp_path


def release(small, key_files, as_="Ada", key="builder", **more):
    given = {
        "open_": None,
        "closed": None,
        "staged": None,
        "seal_key": None,
        "as_json": True,
    } | more
    releasing.release(str(small.run), as_=as_, key=key_files / f"{key}.pem", trust=small.trust, **given)


def test_release_and_verify_as_people_do(small, key_files, tmp_path, capsys):
    release(small, key_files, open_=tmp_path / "bundle")
    told = json.loads(capsys.readouterr().out)
    assert told["bundle"] == str(tmp_path / "bundle")
    release(small, key_files, open_=tmp_path / "bundle")  # after a kill between the bundle and the log
    entries = [entry for entry in journal.read(small.gate / "log.jsonl") if entry.kind == "release"]
    assert len(entries) == 1 and entries[0].facts["sha256"] == told["sha256"]
    capsys.readouterr()
    releasing.verify(tmp_path / "bundle", small.trust, None, False)
    said = capsys.readouterr().out
    assert "run-student 1.0, open" in said and "established" in said and "not established" in said
    assert f"SHA-256 of the manifest {told['sha256']}" in said and "vouches for itself" not in said
    releasing.verify(tmp_path / "bundle", tmp_path / "bundle" / "release" / "trust.json", None, False)
    assert "the bundle vouches for itself" in capsys.readouterr().out
    (tmp_path / "run" / "sft" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="is a run; of a demo run"):
        releasing.verify(tmp_path / "run", small.trust, None, False)
    with pytest.raises(InputError, match="nothing else is known here"):
        releasing.publish(tmp_path / "bundle", "s3://lab/model", small.trust, False, False)
    (tmp_path / "bundle" / "README.md").write_text("mine")
    with pytest.raises(AnswerIsNo):
        releasing.verify(tmp_path / "bundle", small.trust, None, False)
    assert "refused" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        releasing.verify(tmp_path / "bundle", small.trust, None, True)
    assert end.value.code == 1
    refusals = json.loads(capsys.readouterr().out)["refusals"]
    assert {"cut-file", "signed-file-changed"} <= {one["code"] for one in refusals}


def test_a_closed_release_as_people_do(key_files, tmp_path, capsys):
    small = copied(tmp_path, mode="closed")
    release(small, key_files, closed=tmp_path / "closed", seal_key=key_files / "seal.key")
    release(small, key_files, staged=tmp_path / "staged", seal_key=key_files / "seal.key", as_json=False)
    assert "to make it open" in capsys.readouterr().out
    releasing.verify(tmp_path / "closed", small.trust, key_files / "seal.key", False)
    assert "sealed files open" in capsys.readouterr().out
    ways = [e.facts["way"] for e in journal.read(small.gate / "log.jsonl") if e.kind == "release"]
    assert ways == ["closed", "staged"]


@pytest.mark.parametrize(("more", "said"), [
    ({}, "one of --open"), ({"open_": "a", "closed": "b"}, "one of --open"), ({"closed": "a"}, "needs --seal-key"),
    ({"open_": "a", "seal_key": "seal.key"}, "nothing that is encrypted"),
    ({"open_": "a", "as_": "Cy"}, "sign as yourself"),
])  # fmt: skip
def test_mistakes_are_told(small, key_files, more, said):
    places = {key: key_files / value if key != "as_" else value for key, value in more.items()}
    with pytest.raises(InputError, match=said):
        release(small, key_files, **places)


def test_no_verdict_to_release_on(key_files, tmp_path):
    small = copied(tmp_path)
    shutil.rmtree(small.gate)
    with pytest.raises(InputError, match="behemoth gate"):
        release(small, key_files, open_=tmp_path / "bundle")


def test_publish_wants_a_bundle_that_verifies(key_files, tmp_path, capsys):
    small = released(tmp_path / "made")
    releasing.publish(small.bundle, str(tmp_path / "out"), small.trust, False, False)
    assert "nothing was done" in capsys.readouterr().out and not (tmp_path / "out").exists()
    releasing.publish(small.bundle, str(tmp_path / "out"), small.trust, True, False)
    assert contents(tmp_path / "out") == contents(small.bundle)
    (small.bundle / "README.md").write_text("mine")
    with pytest.raises(AnswerIsNo, match="does not verify"):
        releasing.publish(small.bundle, str(tmp_path / "other"), small.trust, True, False)
    assert not (tmp_path / "other").exists()


def test_what_is_published_is_what_was_verified(key_files, tmp_path, monkeypatch):
    """Another whole bundle, signed by the builder alone, put there after it was looked at."""
    small, look = released(tmp_path / "made"), releasing.checked

    def then_swapped(*arguments):
        found = look(*arguments)
        (small.bundle / "README.md").write_text("mine")
        small_bundle.resign(small)
        return found

    monkeypatch.setattr(releasing, "checked", then_swapped)
    with pytest.raises(Refused, match="changed since it was verified"):
        releasing.publish(small.bundle, str(tmp_path / "out"), small.trust, True, False)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- kills

BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from behemoth import releasing
from behemoth.bundle.keys import read_private
releasing.released(Path({run!r}), "open", Path({out!r}), read_private(Path({key!r})), Path({trust!r}))
print("done")
"""


@pytest.mark.slow
def test_killed_at_any_moment_a_bundle_is_whole_or_absent(small, key_files, tmp_path):
    out = tmp_path / "out" / "bundle"
    given = {
        "run": str(small.run),
        "out": str(out),
        "key": str(key_files / "builder.pem"),
        "trust": str(small.trust),
    }
    code = BUILD.format(here=os.path.dirname(__file__), **given)
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    whole, seconds = contents(out), time.monotonic() - started
    for number in range(8):
        shutil.rmtree(out)
        job = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(seconds * (0.5 + number / 14))
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert not out.exists() or contents(out) == whole
        journal.read(small.gate / "log.jsonl")
        subprocess.run([sys.executable, "-c", code], check=True)
        assert contents(out) == whole
        assert not [path for path in out.parent.iterdir() if path != out]
    entries = [entry.kind for entry in journal.read(small.gate / "log.jsonl")]
    assert entries.count("release") == 1


def test_an_approval_after_the_build_is_for_the_next_one(small, tmp_path):
    small.build(tmp_path / "one")
    approve(small, "cy", file="cy-again", note="still")
    small.build(tmp_path / "two")
    assert "release/approvals/cy-again.json" in contents(tmp_path / "two")
