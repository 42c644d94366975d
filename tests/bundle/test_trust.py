"""The trust file: who may say what, under which root, and what an older or another file cannot bring back."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest

from behemoth.base.errors import InputError
from behemoth.base.files import remove_tree
from behemoth.bundle import seen, trust
from behemoth.bundle.dsse import Envelope, Signature, canonical, sign
from behemoth.bundle.keys import generate, read_private
from behemoth.bundle.refusals import Refused
from behemoth.bundle.trust import TRUST_TYPE, Trust, TrustedKey, handover, make_demo, read_trust, write_trust

FORK = multiprocessing.get_context("fork")
ROOT, NEXT, THIRD, ADA, BO, CY = (generate() for _ in range(6))
EARLY, LATE = "2026-01-31T12:00:00Z", "2027-01-31T12:00:00Z"


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "behemoth" / "trust"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "trust.json"


def lab(**changes) -> Trust:
    keys = {
        ROOT.public.id: TrustedKey(ROOT.public, "root", ()),
        ADA.public.id: TrustedKey(ADA.public, "Ada", ("builder",)),
        BO.public.id: TrustedKey(BO.public, "Bo", ("evaluator", "approver")),
    }
    return replace(Trust("Acme", 1, EARLY, False, (ROOT.public.id,), keys), **changes)


def with_key(one, keyid, **changes):
    return replace(one, keys={**one.keys, keyid: replace(one.keys[keyid], **changes)})


def code(call, *args, **kinds):
    with pytest.raises(Refused) as caught:
        call(*args, **kinds)
    return caught.value.code


def signed_by_hand(place, facts, key=ROOT, payload_type=TRUST_TYPE):
    data = facts if isinstance(facts, bytes) else canonical(facts)
    sign(data, payload_type, [key]).write(place)
    return place


def test_what_is_written_is_read(place):
    made = write_trust(place, lab(withdrawn={"f" * 64: "leaked"}, minimum={"m": "1.2"}), ROOT)
    found = read_trust(place)
    assert found == made and found.lab == "Acme" and not found.demo and len(found.sha256) == 64
    assert found.key(BO.public.id).roles == ("evaluator", "approver")
    assert found.withdrawn == {"f" * 64: "leaked"} and found.minimum == {"m": "1.2"}
    before = place.read_bytes()
    write_trust(place, found, ROOT)
    assert place.read_bytes() == before


def test_who_may_say_what(place):
    gone = {"version": 2, "reason": "stolen"}
    one = with_key(lab(), BO.public.id, revoked=gone)
    write_trust(place, one, ROOT)
    found = read_trust(place)
    found.allows(ADA.public.id, "builder")
    assert code(found.allows, ADA.public.id, "approver") == "wrong-role"
    assert code(found.allows, ROOT.public.id, "builder") == "wrong-role"
    assert code(found.allows, CY.public.id, "builder") == code(found.key, CY.public.id) == "unknown-key"
    assert code(found.allows, BO.public.id, "approver") == "revoked-key"
    assert code(found.allows, BO.public.id, "builder") == "revoked-key"  # before the role


def test_a_replaced_key_counts_for_what_came_before():
    one = with_key(lab(version=5), ADA.public.id, retired={"version": 4, "reason": "replaced"})
    one.allows(ADA.public.id, "builder")
    one.allows(ADA.public.id, "builder", under=3)
    for version in (4, 5):
        assert code(one.allows, ADA.public.id, "builder", under=version) == "retired-key"


def test_bundles_that_the_lab_took_back():
    one = lab(withdrawn={"f" * 64: "leaked a key"}, minimum={"m": "1.10"})
    with pytest.raises(Refused, match="leaked a key") as caught:
        one.allows_bundle("f" * 64, "m", "2")
    assert caught.value.code == "withdrawn"
    for version in ("1.10", "1.10.0", "1.10.1", "2"):
        one.allows_bundle("0" * 64, "m", version)
    one.allows_bundle("0" * 64, "other", "0.1")
    for version in ("1.9", "1", "0", "latest", "1.10-rc1", ""):
        assert code(one.allows_bundle, "0" * 64, "m", version) == "below-minimum-version"


def test_a_model_is_taken_back_however_its_name_is_typed():
    one = lab(minimum={"Run-Student": "2", "run-student": "1.5", "Übung-sft": "3"})
    for name in ("run-student", "RUN-STUDENT", "Run-Student"):
        assert code(one.allows_bundle, "0" * 64, name, "1.9") == "below-minimum-version"
        one.allows_bundle("0" * 64, name, "2")
    assert code(one.allows_bundle, "0" * 64, "u\u0308bung-SFT", "2") == "below-minimum-version"
    one.allows_bundle("0" * 64, "run-student-2", "1")


def test_only_a_root_that_the_file_names_signs_it(place):
    good = write_trust(place, lab(), ROOT)
    signed_by_hand(place, good.payload(), key=ADA)
    assert code(read_trust, place) == "bad-root-signature"
    signed_by_hand(place, good.payload(), key=CY)
    assert code(read_trust, place) == "bad-root-signature"
    lying = sign(good.payload(), TRUST_TYPE, [CY]).signatures[0].sig
    Envelope(TRUST_TYPE, good.payload(), (Signature(ROOT.public.id, lying),)).write(place)
    assert code(read_trust, place) == "bad-root-signature"
    place.unlink()
    assert code(write_trust, place, lab(), ADA) == "bad-root-signature"
    assert not place.exists()


def test_expiry_is_by_the_clock(place):
    write_trust(place, lab(expires=LATE), ROOT)
    assert read_trust(place, at="2027-01-31T11:59:59Z").expires == LATE
    assert code(read_trust, place, at=LATE) == "trust-expired"
    write_trust(place, lab(expires="2020-01-01T00:00:00Z"), ROOT)
    assert code(read_trust, place) == "trust-expired"


def edited(path, value):
    """A change of one field of the signed JSON."""

    def change(facts):
        *parents, last = path
        at = facts
        for name in parents:
            at = at[name]
        at[last] = value
        return facts

    return change


ADAS = ("keys", ADA.public.id)
MALFORMED = {
    "another format": edited(["format"], 2),
    "format true": edited(["format"], True),
    "a field more": edited(["extra"], 1),
    "no lab": edited(["lab"], ""),
    "a lab of two lines": edited(["lab"], "Ac\nme"),
    "a lab that turns the text round": edited(["lab"], "Ac\u202eme"),
    "version zero": edited(["version"], 0),
    "version true": edited(["version"], True),
    "version text": edited(["version"], "1"),
    "a date": edited(["issued"], "2026-01-31"),
    "a day that is not": edited(["issued"], "2026-02-31T00:00:00Z"),
    "expires nonsense": edited(["expires"], "never"),
    "demo text": edited(["demo"], "no"),
    "no root": edited(["root"], []),
    "root twice": edited(["root"], [ROOT.public.id] * 2),
    "root unknown": edited(["root"], [CY.public.id]),
    "root with a role": edited(["keys", ROOT.public.id, "roles"], ["builder"]),
    "a person as root": edited(["root"], [ADA.public.id]),
    "a person without a role": edited([*ADAS, "roles"], []),
    "an unknown role": edited([*ADAS, "roles"], ["king"]),
    "a role twice": edited([*ADAS, "roles"], ["builder", "builder"]),
    "roles text": edited([*ADAS, "roles"], "builder"),
    "another key's id": edited([*ADAS, "public"], CY.public.pem),
    "no key": edited([*ADAS, "public"], "-"),
    "a key no text": edited([*ADAS, "public"], 1),
    "a name typed in two ways": edited([*ADAS, "name"], "BO"),
    "a name with space": edited([*ADAS, "name"], "Ada "),
    "a name not in form C": edited([*ADAS, "name"], "A\u0308da"),
    "revoked true": edited([*ADAS, "revoked"], True),
    "revoked without why": edited([*ADAS, "revoked"], {"version": 1, "reason": ""}),
    "retired by name": edited([*ADAS, "retired"], {"version": "1", "reason": "old"}),
    "withdrawn no digest": edited(["withdrawn"], [{"bundle": "all", "reason": "old"}]),
    "withdrawn twice": edited(["withdrawn"], [{"bundle": "f" * 64, "reason": "old"}] * 2),
    "minimum no version": edited(["minimum"], {"m": "latest"}),
    "minimum a list": edited(["minimum"], []),
    "handovers no list": edited(["handovers"], {}),
    "a handover no envelope": edited(["handovers"], [{}]),
    "keys a list": edited(["keys"], []),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_root_signs_has_to_make_sense(place, change):
    signed_by_hand(place, change(json.loads(lab().payload())))
    assert code(read_trust, place) == "malformed"


def test_another_kind_of_statement_or_spelling_is_no_trust_file(place):
    signed_by_hand(place, lab().payload(), payload_type="application/vnd.in-toto+json")
    assert code(read_trust, place) == "malformed"
    signed_by_hand(place, json.dumps(json.loads(lab().payload()), indent=1).encode())
    assert code(read_trust, place) == "malformed"


def test_an_older_file_is_refused_once_a_newer_was_seen(place, tmp_path, memory):
    """The attack: a revoked key is brought back with the file of last week."""
    old = tmp_path / "old.json"
    write_trust(old, lab(), ROOT)
    newer = with_key(lab(version=2), ADA.public.id, revoked={"version": 2, "reason": "stolen"})
    write_trust(place, newer, ROOT)
    read_trust(old).allows(ADA.public.id, "builder")
    assert read_trust(old, remember=True).remembered
    assert code(read_trust(place, remember=True).allows, ADA.public.id, "builder") == "revoked-key"
    assert code(read_trust, old, remember=True) == "trust-rolled-back"
    assert not read_trust(old).remembered  # without memory nobody can know
    assert read_trust(place, remember=True).remembered  # the same again is no older one
    assert len(list(memory.iterdir())) == 1


def test_two_files_of_one_version_are_a_fork(place, tmp_path):
    write_trust(place, lab(), ROOT)
    read_trust(place, remember=True)
    write_trust(tmp_path / "b.json", lab(minimum={"m": "2"}), ROOT)
    assert code(read_trust, tmp_path / "b.json", remember=True) == "trust-forked"


def test_a_new_root_needs_the_old_ones_word(place, tmp_path):
    write_trust(place, lab(), ROOT)
    read_trust(place, remember=True)
    usurped = lab(
        version=9,
        root=(NEXT.public.id,),
        keys={**lab().keys, NEXT.public.id: TrustedKey(NEXT.public, "root", ())},
    )
    keys = {keyid: key for keyid, key in usurped.keys.items() if keyid != ROOT.public.id}
    usurped = replace(usurped, keys=keys)
    write_trust(tmp_path / "usurped.json", usurped, NEXT)
    assert read_trust(tmp_path / "usurped.json").version == 9  # on its own it looks like any other lab
    assert code(read_trust, tmp_path / "usurped.json", remember=True) == "root-changed"
    said = canonical({"lab": "Acme", "version": 9, "root": {NEXT.public.id: NEXT.public.pem}})
    forged = sign(said, trust.HANDOVER_TYPE, [NEXT])  # the new root's own word is nobody's
    write_trust(tmp_path / "forged.json", replace(usurped, handovers=(forged,)), NEXT)
    assert code(read_trust, tmp_path / "forged.json", remember=True) == "root-changed"
    borrowed = Envelope(trust.HANDOVER_TYPE, said, (Signature(ROOT.public.id, forged.signatures[0].sig),))
    write_trust(tmp_path / "borrowed.json", replace(usurped, handovers=(borrowed,)), NEXT)
    assert code(read_trust, tmp_path / "borrowed.json", remember=True) == "root-changed"


def test_a_root_hands_over_and_a_machine_that_missed_it_follows(place, tmp_path, monkeypatch):
    write_trust(place, lab(), ROOT)
    read_trust(place, remember=True)
    second = handover(lab(version=2), ROOT, NEXT.public)
    write_trust(tmp_path / "2.json", second, NEXT)
    third = handover(replace(second, version=3), NEXT, THIRD.public)
    write_trust(tmp_path / "3.json", third, THIRD)
    write_trust(tmp_path / "4.json", replace(third, version=4), THIRD)
    assert read_trust(tmp_path / "4.json", remember=True).version == 4  # from 1, over two roots
    # the first root, stolen later, cannot hand over again to those who know the newest
    stolen = handover(lab(version=7), ROOT, CY.public)
    write_trust(tmp_path / "7.json", stolen, CY)
    assert code(read_trust, tmp_path / "7.json", remember=True) == "root-changed"
    # nor sign as before
    write_trust(place, lab(version=8), ROOT)
    assert code(read_trust, place, remember=True) == "root-changed"
    # a handover of another lab with the same root is none of this one
    other = handover(lab(version=9, lab="Other"), ROOT, CY.public)
    swapped = replace(other, lab="Acme")
    with pytest.raises(Refused, match="not of this lab"):
        write_trust(tmp_path / "9.json", swapped, CY)


def test_demo_labs_are_not_remembered_but_cannot_pass_for_a_known_one(place, tmp_path, memory):
    first, second = make_demo(tmp_path / "a"), make_demo(tmp_path / "b")
    for path in (first, second, first):  # two roots, one name
        assert not read_trust(path, remember=True).remembered
    write_trust(place, lab(), ROOT)
    read_trust(place, remember=True)
    mine = lab(
        version=2, demo=True, root=(CY.public.id,), keys={CY.public.id: TrustedKey(CY.public, "r", ())}
    )
    write_trust(tmp_path / "c.json", mine, CY)
    assert code(read_trust, tmp_path / "c.json", remember=True) == "root-changed"


def test_a_home_that_cannot_be_written_is_told(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    write_trust(place, lab(), ROOT)
    assert read_trust(place, remember=True).remembered is False


def test_a_damaged_memory_is_told_with_what_to_do(place, memory):
    write_trust(place, lab(), ROOT)
    read_trust(place, remember=True)
    kept = next(memory.iterdir())
    for bad in ("{", "{}", '{"lab":"","root":{"a":1},"sha256":"","version":1}'):
        kept.write_text(bad)
        with pytest.raises(InputError, match="delete it to start anew"):
            read_trust(place, remember=True)


def test_an_expired_file_still_shows_that_older_ones_are_old(place, tmp_path):
    write_trust(place, lab(version=2, expires="2020-01-01T00:00:00Z"), ROOT)
    assert code(read_trust, place, remember=True) == "trust-expired"
    write_trust(tmp_path / "b.json", lab(version=1), ROOT)
    assert code(read_trust, tmp_path / "b.json", remember=True) == "trust-rolled-back"


def test_the_highest_version_wins_whoever_writes_at_once(tmp_path, memory):
    for version in range(1, 9):
        write_trust(tmp_path / f"{version}.json", lab(version=version), ROOT)
    paths = [tmp_path / f"{version}.json" for version in (8, 3, 5, 1, 7, 2, 6, 4)]
    with FORK.Pool(4) as pool:
        pool.map(look, paths)
    assert json.loads(next(memory.iterdir()).read_text())["version"] == 8


def look(path):
    try:
        return read_trust(path, remember=True).version
    except Refused as error:
        return error.code


def test_the_demo_lab_is_made_once(tmp_path):
    path = make_demo(tmp_path / "demo-trust")
    found = read_trust(path)
    assert found.demo and found.lab == "demo" and found.version == 1
    said = {(key.name, key.roles) for key in found.keys.values()}
    assert said == {
        ("root", ()),
        ("Ada Demo", ("builder",)),
        ("Bo Demo", ("evaluator",)),
        ("Cy Demo", ("approver",)),
        ("Di Demo", ("approver",)),
    }
    for name in ("builder", "evaluator", "approver-1", "approver-2", "root"):
        key = read_private(path.parent / "keys" / f"{name}.pem", trust.DEMO_PASSPHRASE)
        assert key.public.id in found.keys
    before = path.read_bytes()
    assert make_demo(tmp_path / "demo-trust") == path and path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["demo-trust"]


def test_a_demo_directory_that_is_something_else_is_told(tmp_path):
    make_demo(tmp_path / "demo")
    (tmp_path / "demo" / "keys" / "builder.pem").unlink()
    with pytest.raises(InputError, match=r"lacks keys/builder.pem; move it away"):
        make_demo(tmp_path / "demo")
    trust.found_lab(tmp_path / "real", "Acme", [], "secret")
    with pytest.raises(InputError, match="no demo"):
        make_demo(tmp_path / "real")


def test_four_processes_make_one_demo_lab(tmp_path):
    with FORK.Pool(4) as pool:
        made = pool.map(demo_of, [tmp_path / "demo"] * 4)
    assert len(set(made)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def demo_of(directory):
    return read_trust(make_demo(directory)).sha256


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_demo_lab_killed_half_way_is_not_there_or_whole(tmp_path, kills):
    whole = 0
    for number in range(kills):
        victim = FORK.Process(target=make_demo, args=(tmp_path / "demo",))
        victim.start()
        time.sleep(0.001 + 0.05 * number / kills)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        if (tmp_path / "demo").exists():
            whole += 1
            assert read_trust(tmp_path / "demo" / "trust.json").demo
        assert read_trust(make_demo(tmp_path / "demo")).demo
        remove_tree(tmp_path / "demo")
    assert whole < kills  # otherwise nothing was killed half way


def test_one_process_at_a_time(tmp_path):
    """`locked` is what keeps two changes of a trust file from becoming one version."""
    with seen.locked(tmp_path):
        other = FORK.Process(target=touch_locked, args=(tmp_path,))
        other.start()
        other.join(0.2)
        assert other.is_alive() and not (tmp_path / "touched").exists()
    other.join(5)
    assert (tmp_path / "touched").exists()


def touch_locked(directory):
    with seen.locked(directory):
        (directory / "touched").touch()
