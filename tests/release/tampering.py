"""Ways to tamper with a bundle, as functions of a copy of it: what can be done with files alone, or with keys."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import small_bundle
from small_bundle import AT, Small, approve, judge, task_of

from behemoth.base.files import sha256, write_json
from behemoth.bundle import dsse, journal, oms
from behemoth.bundle.keys import PrivateKey
from behemoth.bundle.manifest import MANIFEST, SIGNATURE
from behemoth.bundle.trust import Trust, TrustedKey, write_trust
from behemoth.evals.records import read_evaluation, write_evaluation
from behemoth.release import approvals, evidence
from behemoth.release.gate import decide
from behemoth.release.policy import load_policy
from behemoth.release.verify import verify

CY, DI = "release/approvals/cy.json", "release/approvals/di.json"


@dataclass
class World:
    """A copy of a good bundle, to be spoilt, and what the verifier brings."""

    small: Small
    trust: Trust
    seal_key: bytes | None = None

    @property
    def bundle(self) -> Path:
        return self.small.bundle

    def __truediv__(self, name: str) -> Path:
        return self.bundle / name

    def key(self, name: str) -> PrivateKey:
        return self.small.keys[name]

    def codes(self) -> tuple[str, ...]:
        """What it is refused with, the gravest first, each once."""
        found = verify(self.bundle, self.trust, seal_key=self.seal_key)
        return tuple(dict.fromkeys(refusal.code for refusal in found.refusals))


Change = Callable[[World], object]


def continued(name: str, more: str) -> Change:
    """Something behind the last byte of a file."""

    def change(world: World) -> None:
        with open(world / name, "a") as file:
            file.write(more)

    return change


def both(*changes: Change) -> Change:
    return lambda world: [change(world) for change in changes]


# --- by files alone


def flipped(name: str, place: int = -2) -> Change:
    """One bit of one byte of a file."""

    def change(world: World) -> None:
        data = bytearray((world / name).read_bytes())
        data[place] ^= 1
        (world / name).write_bytes(data)

    return change


def edited(name: str, old: str, new: str) -> Change:
    """Some text of a file, once."""

    def change(world: World) -> None:
        text = (world / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (world / name).write_text(text.replace(old, new, 1))

    return change


def valued(name: str, key: str, value: Any) -> Change:
    """A value of a JSON file; key: names and numbers with dots between."""

    def change(world: World) -> None:
        whole = json.loads((world / name).read_text())
        place, (*path, last) = whole, [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in path:
            place = place[part]
        assert place[last] != value
        place[last] = value
        (world / name).write_text(json.dumps(whole))

    return change


def signature_flipped(name: str) -> Change:
    """One bit of the signature in a DSSE envelope, by itself or in a Sigstore bundle."""

    def change(world: World) -> None:
        text = (world / name).read_text()
        whole = json.loads(text)
        sig = whole.get("dsseEnvelope", whole)["signatures"][0]["sig"]
        data = bytearray(base64.b64decode(sig))
        data[-1] ^= 1
        (world / name).write_text(text.replace(sig, base64.b64encode(data).decode()))

    return change


def added(name: str, data: bytes = b"x") -> Change:
    def change(world: World) -> None:
        path = os.path.join(os.fsencode(world.bundle), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    return change


def removed(name: str) -> Change:
    return lambda world: (world / name).unlink()


def moved(name: str, to: str) -> Change:
    return lambda world: (world / name).rename(world / to)


def copied(name: str, to: str) -> Change:
    return lambda world: shutil.copyfile(world / name, world / to)


def swapped(one: str, other: str) -> Change:
    return both(moved(one, f"{one}.x"), moved(other, one), moved(f"{one}.x", other))


def linked(name: str) -> Change:
    """The same file or directory, outside, and a link to it."""

    def change(world: World) -> None:
        (world / name).rename(world.bundle.parent / "outside")
        (world / name).symlink_to(world.bundle.parent / "outside")

    return change


def sized(name: str, size: int) -> Change:
    return lambda world: os.truncate(world / name, size)


def listing(change: Callable[[dict[str, Any]], object]) -> Change:
    """The manifest itself."""

    def tampered(world: World) -> None:
        record = json.loads((world / MANIFEST).read_text())
        change(record)
        write_json(world / MANIFEST, record)

    return tampered


# --- by who signs for the files


def resigned(*changes: Change, by: str = "builder", **facts: Any) -> Change:
    """Changes, then everything is listed and signed again by somebody of the lab. facts: what the manifest says."""

    def tampered(world: World) -> None:
        for change in changes:
            change(world)
        small_bundle.resign(world.small, by, **facts)

    return tampered


def stranger(world: World) -> None:
    """A signature by a key that nobody knows."""
    signed = oms.read(world / SIGNATURE)
    oms.sign(world.bundle, world.key("stranger"), name=signed.name, hashes=signed.hashes)


def as_if_by_the_builder(world: World) -> None:
    """A stranger's signature that claims the builder's key."""
    stranger(world)
    public, bundle = world.key("builder").public, json.loads((world / SIGNATURE).read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = oms.hint_of(public)
    bundle["dsseEnvelope"]["signatures"][0]["keyid"] = public.id
    (world / SIGNATURE).write_bytes(oms._spelled(bundle))


def under_another_name(world: World) -> None:
    oms.sign(world.bundle, world.key("builder"), name="other", hashes=oms.read(world / SIGNATURE).hashes)


def of_another_bundle(world: World) -> None:
    """The good signature of another bundle of the same lab."""
    other = world.bundle.parent / "other"
    shutil.copytree(world.bundle, other)
    resigned(edited("README.md", "#", "##"))(replace(world, small=replace(world.small, bundle=other)))
    shutil.copyfile(other / SIGNATURE, world / SIGNATURE)


def stating(change: Callable[[dict[str, Any]], object]) -> Change:
    """The builder's signature of a model, of another statement."""

    def tampered(world: World) -> None:
        bundle = json.loads((world / SIGNATURE).read_text())
        said = dsse.read_statement(dsse.envelope(bundle["dsseEnvelope"], ""))
        change(said)
        signed = dsse.sign(dsse.canonical(said), dsse.IN_TOTO, [world.key("builder")])
        (world / SIGNATURE).write_bytes(oms._spelled(bundle | {"dsseEnvelope": signed.as_dict()}))

    return tampered


# --- by what the lab says later


def trusting(**changes: Any) -> Change:
    """The verifier's trust file, with something else in it, signed by root."""

    def tampered(world: World) -> None:
        trust = replace(world.trust, **({"version": 2} | changes))
        world.trust = write_trust(world.bundle.parent / "trust.json", trust, world.key("root"))

    return tampered


def saying_of(who: str, **changes: Any) -> Change:
    """The next trust file, with something else said of somebody's key."""

    def tampered(world: World) -> None:
        keyid = world.key(who).public.id
        keys = {**world.trust.keys, keyid: replace(world.trust.keys[keyid], **changes)}
        trusting(keys=keys)(world)

    return tampered


def withdrawn(world: World) -> None:
    """The lab took this very bundle back."""
    trusting(withdrawn={sha256(world / MANIFEST): "it leaks"})(world)


def trusting_a_stranger(world: World) -> None:
    """The trust file inside, an earlier one by its number, from somebody who says to be this lab's root."""
    root = world.key("stranger").public
    keys = {key: value for key, value in world.trust.keys.items() if value.roles}
    theirs = replace(world.trust, root=(root.id,), keys={**keys, root.id: TrustedKey(root, "root", ())})
    trusting()(world)
    made = write_trust(world / "release/trust.json", theirs, world.key("stranger"))
    small_bundle.resign(world.small, trust={"version": made.version, "sha256": made.sha256})


# --- by people of the lab, in the record


@contextmanager
def as_run(world: World) -> Iterator[Small]:
    """The bundle's record in the place that it has in a run."""
    run = world.bundle.parent / "again"
    run.mkdir()
    (world / "release").rename(run / "gate")
    yield replace(world.small, run=run)
    (run / "gate").rename(world / "release")
    run.rmdir()


def resealed(world: World) -> None:
    """The evidence's own list, made again over what is there now."""
    evidence.seal(world / "release/evidence")


def scored(right: float) -> Change:
    """The candidate's sums, another share of them right, in records that are whole."""

    def tampered(world: World) -> None:
        place = world / "release/evidence/evaluations/candidate"
        found = read_evaluation(place)
        write_evaluation(
            place, replace(found, tasks={**found.tasks, "sums": task_of("sums", right, found.sha256)})
        )
        resealed(world)

    return tampered


def rejudged(world: World) -> None:
    """verdict.json, computed from what is there now."""
    place = world / "release"
    found = decide(load_policy(place / "policy.toml"), "open", evidence.read_evidence(place / "evidence"))
    write_json(place / "verdict.json", found)


def verdict_signed(by: str, head: str | None = None, **said: Any) -> Change:
    """The verdict that is there, signed by somebody, on the log's verdict or on another head."""

    def change(world: World) -> None:
        place = world / "release"
        last = next(one for one in reversed(journal.read(place / "log.jsonl")) if one.kind == "verdict")
        verdict, whole = json.loads((place / "verdict.json").read_text()), sha256(place / "verdict.json")
        signed = approvals.verdict_statement(verdict, whole, head or last.sha256, world.trust.demo, **said)
        dsse.sign(signed, dsse.IN_TOTO, [world.key(by)]).write(place / "verdict.dsse.json")

    return change


def decided_anew(world: World) -> None:
    """Everybody but the builder does it again from what is there: evidence, log, verdict, approvals, all signed."""
    digest = evidence.digest(world / "release/evidence")
    chained(lambda entries: [entries[0], ("evidence", {"sha256": digest})])(world)
    with as_run(world) as small:
        judge(small)
        for who in ("cy", "di"):
            approve(small, who)


def chained(change: Callable[[list[tuple[str, Any]]], list[tuple[str, Any]]]) -> Change:
    """The log with other entries, its chain whole."""

    def tampered(world: World) -> None:
        path = world / "release/log.jsonl"
        entries = [(entry.kind, dict(entry.facts)) for entry in journal.read(path)]
        path.unlink()
        for kind, facts in change(entries):
            journal.append(path, kind, facts, at=AT)

    return tampered


def judged_twice(entries: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The verdict was made void, and then the very same one was reached: what was signed before counts no more."""
    verdict = next(entry for entry in entries if entry[0] == "verdict")
    void = "void", {"why": "doubts", "what": ["verdict.json", "verdict.dsse.json", "approvals"]}
    return [*entries, void, verdict]


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    """The log's lines, as they are."""

    def tampered(world: World) -> None:
        path = world / "release/log.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return tampered


def approving(who: str, *, file: str = "cy", **said: Any) -> Change:
    """Somebody's approval in the place of Cy's, logged; said: what it says otherwise than it should."""

    def change(world: World) -> None:
        with as_run(world) as small:
            approve(small, who, file=file, **said)

    return change


def approving_of(part: str) -> Change:
    """Cy's own approval, of another evidence or model."""

    def change(world: World) -> None:
        said = dsse.read_statement(dsse.Envelope.read(world / CY))
        for subject in said["subject"]:
            subject["digest"] = {"sha256": "0" * 64} if subject["name"] == part else subject["digest"]
        dsse.sign(dsse.canonical(said), dsse.IN_TOTO, [world.key("cy")]).write(world / CY)
        logged(CY)(world)

    return change


def altered_approval(world: World) -> None:
    """A note put into an approval after it was signed."""
    envelope = dsse.Envelope.read(world / CY)
    said = dsse.read_statement(envelope)
    said["predicate"]["note"] = "unreservedly"
    replace(envelope, payload=dsse.canonical(said)).write(world / CY)


def logged(name: str) -> Change:
    def change(world: World) -> None:
        facts = {"by": "Cy", "role": "approver", "sha256": sha256(world / name)}
        journal.append(world / "release/log.jsonl", "approval", facts, at=AT)

    return change
