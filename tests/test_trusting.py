"""`behemoth trust`: a lab is made, changes its keys and takes things back, and its directory stays whole."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest

from behemoth import trusting
from behemoth.base.errors import InputError
from behemoth.bundle import trust
from behemoth.bundle.dsse import Envelope
from behemoth.bundle.keys import generate, read_private, write_private
from behemoth.bundle.refusals import Refused
from behemoth.bundle.trust import found_lab, read_trust, write_trust

FORK = multiprocessing.get_context("fork")
PEOPLE = ["Ada=builder", "Bo Li=evaluator,approver", "Cy=approver"]


@pytest.fixture(autouse=True)
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("BEHEMOTH_PASSPHRASE", "long enough")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def lab(tmp_path, capsys):
    trusting.init(tmp_path / "lab", "Acme", PEOPLE, False, False)
    capsys.readouterr()
    return tmp_path / "lab"


def ids(directory, name):
    return [keyid for keyid, key in read_trust(directory / "trust.json").keys.items() if key.name == name]


def test_a_new_lab(tmp_path, capsys):
    trusting.init(tmp_path / "lab", "Acme", PEOPLE, False, False)
    told = capsys.readouterr().out
    assert (
        "publish this file, and only this one" in told
        and f"move {tmp_path}/lab/keys/root.pem to a place" in told
    )
    found = read_trust(tmp_path / "lab" / "trust.json")
    assert (found.lab, found.version, found.demo) == ("Acme", 1, False)
    assert {key.name: key.roles for key in found.keys.values()} == {
        "root": (),
        "Ada": ("builder",),
        "Bo Li": ("evaluator", "approver"),
        "Cy": ("approver",),
    }
    files = sorted(path.name for path in (tmp_path / "lab" / "keys").iterdir())
    assert files == ["ada.pem", "bo-li.pem", "cy.pem", "root.pem"]
    for path in (tmp_path / "lab" / "keys").iterdir():
        assert b"ENCRYPTED" in path.read_bytes() and path.stat().st_mode & 0o077 == 0
        assert read_private(path).public.id in found.keys
    with pytest.raises(InputError, match="already exists"):
        trusting.init(tmp_path / "lab", "Acme", PEOPLE, False, False)


def test_no_private_key_is_in_what_is_published(lab):
    published = (lab / "trust.json").read_text()
    assert "PRIVATE" not in published and "PRIVATE" not in Envelope.read(lab / "trust.json").payload.decode()


WRONG = {
    "no name": ("", PEOPLE, "needs a short printable name"),
    "a name of two lines": ("a\nb", PEOPLE, "needs a short printable name"),
    "nobody": ("Acme", [], "needs people"),
    "no role": ("Acme", ["Ada"], "write it as NAME=ROLE"),
    "no person": ("Acme", ["=builder"], "write it as NAME=ROLE"),
    "an unknown role": ("Acme", ["Ada=bilder"], "did you mean builder"),
    "somebody twice": ("Acme", ["Ada=builder", "ADA=approver"], "the same key file"),
    "called root": ("Acme", ["Root=builder"], "another name"),
    "no letters": ("Acme", ["--=builder"], "another name"),
}


@pytest.mark.parametrize(("name", "people", "told"), WRONG.values(), ids=WRONG.keys())
def test_what_makes_no_lab_is_told_and_leaves_nothing(tmp_path, name, people, told):
    with pytest.raises(InputError, match=told):
        trusting.init(tmp_path / "lab", name, people, False, False)
    assert not list(tmp_path.iterdir())


def test_without_a_passphrase_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("BEHEMOTH_PASSPHRASE")
    with pytest.raises(InputError, match="BEHEMOTH_PASSPHRASE"):
        trusting.init(tmp_path / "lab", "Acme", PEOPLE, False, False)
    assert not (tmp_path / "lab").exists()


def test_a_role_that_nobody_has_is_said(tmp_path, capsys):
    trusting.init(tmp_path / "lab", "Acme", ["Ada=builder"], False, False)
    assert "nobody is evaluator or approver" in capsys.readouterr().err


def test_the_demo_lab(tmp_path, capsys):
    trusting.init(tmp_path / "demo", "", [], True, True)
    assert json.loads(capsys.readouterr().out)["demo"] is True
    trusting.show(tmp_path / "demo" / "trust.json", False)
    assert "DEMO KEYS: proves nothing" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave out"):
        trusting.init(tmp_path / "other", "Acme", [], True, False)


def test_a_person_gets_a_new_key(lab):
    (old,) = ids(lab, "Bo Li")
    read_trust(lab / "trust.json", remember=True)
    trusting.rotate(lab, "bo li", False)
    found = read_trust(lab / "trust.json", remember=True)
    new = read_private(lab / "keys" / "bo-li-2.pem").public.id
    assert found.version == 2 and set(ids(lab, "Bo Li")) == {old, new}
    found.allows(new, "approver", under=2)
    found.allows(old, "approver", under=1)  # what was signed before still counts
    with pytest.raises(Refused) as caught:
        found.allows(old, "approver", under=2)
    assert caught.value.code == "retired-key"
    trusting.rotate(lab, "Bo Li", False)
    assert (lab / "keys" / "bo-li-3.pem").exists() and read_trust(lab / "trust.json").version == 3


def test_a_new_key_is_never_somebody_elses(tmp_path):
    trusting.init(tmp_path / "lab", "Acme", ["Ada=builder", "Ada 2=approver"], False, False)
    trusting.rotate(tmp_path / "lab", "Ada", False)
    assert read_private(tmp_path / "lab/keys/ada-3.pem").public.id in ids(tmp_path / "lab", "Ada")
    assert len(ids(tmp_path / "lab", "Ada 2")) == 1


def test_a_revoked_person_can_have_a_new_key(lab):
    (old,) = ids(lab, "Ada")
    trusting.revoke(lab, "Ada", "laptop stolen", False)
    trusting.rotate(lab, "Ada", False)
    new = read_private(lab / "keys" / "ada-2.pem").public.id
    found = read_trust(lab / "trust.json")
    found.allows(new, "builder", under=found.version)
    with pytest.raises(Refused, match="laptop stolen"):
        found.allows(old, "builder")


def test_the_root_is_replaced(lab, capsys):
    read_trust(lab / "trust.json", remember=True)
    trusting.rotate(lab, None, False)
    assert f"destroy {lab}/keys/root.pem" in capsys.readouterr().out
    found = read_trust(lab / "trust.json", remember=True)
    assert found.root == (read_private(lab / "keys" / "root-2.pem").public.id,)
    (lab / "keys" / "root.pem").unlink()
    trusting.revoke(lab, "Cy", "left", False)
    trusting.rotate(lab, None, False)
    assert read_trust(lab / "trust.json", remember=True).version == 4
    assert (lab / "keys" / "root-3.pem").exists()


def test_a_change_needs_the_root_key(lab, tmp_path):
    root = lab / "keys" / "root.pem"
    root.rename(tmp_path / "safe.pem")
    before = (lab / "trust.json").read_bytes()
    with pytest.raises(InputError, match="bring the root key back"):
        trusting.rotate(lab, "Ada", False)
    write_private(root, generate(), "long enough")
    with pytest.raises(InputError, match="is not the root key"):
        trusting.revoke(lab, "Ada", "left", False)
    assert (lab / "trust.json").read_bytes() == before and not (lab / "keys" / "ada-2.pem").exists()
    with pytest.raises(InputError, match="give the directory"):
        trusting.rotate(tmp_path, "Ada", False)


def test_people_keys_bundles_and_versions_are_taken_back(lab, capsys):
    (cy,), bundle = ids(lab, "Cy"), "f" * 64
    for what in (cy[:12], bundle, "tiny<1.2"):
        trusting.revoke(lab, what, "  why\nnot ", False)
    found = read_trust(lab / "trust.json")
    assert found.version == 4
    assert found.keys[cy].revoked == {"version": 2, "reason": "why not"}
    assert found.withdrawn == {bundle: "why not"} and found.minimum == {"tiny": "1.2"}
    capsys.readouterr()
    trusting.show(lab / "trust.json", False)
    told = capsys.readouterr().out
    assert "revoked in version 2: why not" in told and "version 1.2 and later only" in told and bundle in told
    trusting.show(lab / "trust.json", True)
    assert json.loads(capsys.readouterr().out)["minimum"] == {"tiny": "1.2"}


def test_a_models_name_is_told_and_held_however_it_is_typed(lab, capsys):
    """What the lab released stands in no trust file, so a misspelt name cannot be refused, but is never kept quiet."""
    trusting.revoke(lab, "Run-Student<2", "bad", False)
    told = capsys.readouterr().out
    assert "in upper or lower case" in told and "first word on this model" in told
    assert "RUN-MEMBER" not in told
    with pytest.raises(Refused) as caught:
        read_trust(lab / "trust.json").allows_bundle("0" * 64, "run-student", "1.9")
    assert caught.value.code == "below-minimum-version"
    trusting.revoke(lab, " run-student < 3 ", "worse", False)
    assert "first word" not in capsys.readouterr().out
    assert dict(read_trust(lab / "trust.json").minimum) == {"run-student": "3"}
    trusting.revoke(lab, "run-studnet<3", "slipped", True)
    assert "did you mean run-student?" in json.loads(capsys.readouterr().out)["note"]
    trusting.revoke(lab, "tiny<3", "no such name", False)
    assert "tiny is no name that behemoth gives: those are RUN-MEMBER" in capsys.readouterr().out


def test_what_was_taken_back_does_not_come_back_by_revoking(lab):
    trusting.revoke(lab, "run-student<1.10", "bad", False)
    before = (lab / "trust.json").read_bytes()
    for version in ("1.9", "1.10", "1.10.0"):
        with pytest.raises(InputError, match=r"below 1\.10 already"):
            trusting.revoke(lab, f"Run-Student<{version}", "less", False)
    assert (lab / "trust.json").read_bytes() == before


def test_a_digest_in_capitals_is_the_same_bundle(lab):
    trusting.revoke(lab, "F" * 64, "bad", False)
    assert set(read_trust(lab / "trust.json").withdrawn) == {"f" * 64}


def test_no_lab_is_made_in_a_run_or_a_bundle(tmp_path, capsys):
    for name in ("run/record.json", "run/recipe.toml", "bundle/release/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    for place in ("run", "bundle"):
        for demo in (False, True):
            people = ("", []) if demo else ("Acme", PEOPLE)
            with pytest.raises(InputError, match=f"is a {place}, which is handed on"):
                trusting.init(tmp_path / place / "gate" / "lab", *people, demo, False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lab_that_came_into_a_run_gets_no_more_keys(lab):
    for name in ("record.json", "recipe.toml"):
        (lab.parent / name).write_text("{}")
    before = sorted(lab.rglob("*"))
    with pytest.raises(InputError, match="is a run, which is handed on"):
        trusting.rotate(lab, "Ada", False)
    assert [path for path in sorted(lab.rglob("*")) if path not in before and path.suffix == ".pem"] == []


@pytest.mark.parametrize(
    ("what", "reason", "told"),
    [
        ("Adda", "left", "did you mean Ada"),
        ("Ada", " ", "say why"),
        ("root", "stolen", "rotate"),
        ("tiny<latest", "bad", "is no person"),
        ("f" * 63, "bad", "is no person"),
    ],
)
def test_what_cannot_be_taken_back_is_told(lab, what, reason, told):
    before = (lab / "trust.json").read_bytes()
    with pytest.raises(InputError, match=told):
        trusting.revoke(lab, what, reason, False)
    assert (lab / "trust.json").read_bytes() == before


def test_revoking_twice_changes_nothing(lab):
    trusting.revoke(lab, "Cy", "left", False)
    with pytest.raises(InputError, match="revoked already"):
        trusting.revoke(lab, "Cy", "left again", False)
    assert read_trust(lab / "trust.json").version == 2


def test_an_unknown_person_gets_no_key(lab):
    with pytest.raises(InputError, match="did you mean Ada"):
        trusting.rotate(lab, "Adda", False)


def test_a_change_renews_a_file_that_ran_out(tmp_path):
    found_lab(tmp_path / "lab", "Acme", [], "long enough", expires="2099-01-01T00:00:00Z")
    root = read_private(tmp_path / "lab" / "keys" / "root.pem")
    path = tmp_path / "lab" / "trust.json"
    old = replace(read_trust(path), issued="2020-01-01T00:00:00Z", expires="2021-01-01T00:00:00Z")
    write_trust(path, old, root)
    with pytest.raises(Refused, match="ran out"):
        read_trust(path)
    trusting.revoke(tmp_path / "lab", "f" * 64, "old", False)
    found = read_trust(path)
    days = (trusting._seconds(found.expires) - trusting._seconds(found.issued)) / 86_400
    assert days == 366  # as long as before


def test_a_lab_can_set_an_end(tmp_path):
    trusting.init(tmp_path / "lab", "Acme", PEOPLE, False, True, "2099-12-31")
    assert read_trust(tmp_path / "lab" / "trust.json").expires == "2099-12-31T00:00:00Z"
    for day in ("2001-01-01", "2099-02-30", "soon", "2099-12-31T00:00:00Z"):
        with pytest.raises(InputError, match="a day to come"):
            trusting.init(tmp_path / "other", "Acme", PEOPLE, False, True, day)
    assert not (tmp_path / "other").exists()


def test_changes_at_once_each_get_a_version(lab):
    changers = [FORK.Process(target=trusting.revoke, args=(lab, digit * 64, "old", True)) for digit in "abcd"]
    for one in changers:
        one.start()
    for one in changers:
        one.join()
    found = read_trust(lab / "trust.json")
    assert found.version == 5 and set(found.withdrawn) == {digit * 64 for digit in "abcd"}


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_change_killed_at_any_moment_happened_or_did_not(lab, kills):
    """Rotations killed (-9) at random: the file is the old or the new one, and the next rotation goes through."""
    draw = random.Random(3)
    read_trust(lab / "trust.json", remember=True)
    for number in range(kills):
        before = read_trust(lab / "trust.json").version
        who = None if number % 2 else "Ada"
        victim = FORK.Process(target=trusting.rotate, args=(lab, who, True))
        victim.start()
        time.sleep(draw.uniform(0, 0.05))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        assert read_trust(lab / "trust.json", remember=True).version in (before, before + 1)
        trusting.rotate(lab, who, True)
    found = read_trust(lab / "trust.json", remember=True)
    assert found.version >= kills + 1
    assert found.root == (read_private(lab / "keys" / f"root-{len(found.handovers) + 1}.pem").public.id,)
    unused = [path for path in (lab / "keys").glob("*.pem") if read_private(path).public.id not in found.keys]
    roots = [path for path in unused if path.name.startswith("root")]
    assert unused == roots and len(roots) == len(found.handovers)  # earlier roots alone
    assert trust.FILE in os.listdir(lab)
