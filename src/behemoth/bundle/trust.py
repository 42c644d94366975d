"""Who may say what: a lab's trust file, signed by its root key.

The idea is TUF's (Samuel et al. 2010, theupdateframework.io), cut down to one small file. A root key, kept offline,
signs the list of keys with their people and roles, what was revoked, which bundles were withdrawn and the oldest
version of a model that the lab still stands behind. The file has a version that only grows and, where the lab wants
one, an end. Whoever verifies brings their own copy: the copy in a bundle is for reading.

Two things are held against what this machine saw before (`remember`, seen.py): the version, so that an old file cannot
bring a revoked key back, and the root, which may only change when the known root signed the change (a handover,
carried in the file from then on). A machine that sees a lab for the first time believes the file it was given.

Left out: thresholds of several root keys (one of them suffices), delegation, time stamps by a third party. Offline,
nobody can know whether a newer file exists.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.files import publish_directory, remove_tree
from behemoth.bundle.dsse import SHA256, Envelope, canonical, envelope, exactly, parse, sign
from behemoth.bundle.journal import now
from behemoth.bundle.keys import PrivateKey, PublicKey, generate, write_private
from behemoth.bundle.refusals import Refused
from behemoth.bundle.seen import Seen, held

FORMAT = 1
TRUST_TYPE = "application/vnd.behemoth.trust+json"
HANDOVER_TYPE = "application/vnd.behemoth.handover+json"
BUILDER, EVALUATOR, APPROVER = ROLES = ("builder", "evaluator", "approver")
FILE, KEYS = "trust.json", "keys"
DEMO_PASSPHRASE = "demo"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}")
MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class TrustedKey:
    """revoked: no signature of this key counts. retired: it was replaced in that version of the trust file, and counts
    for what was signed before. Each None, or {"version", "reason"}."""

    public: PublicKey
    name: str
    roles: tuple[str, ...]
    revoked: Mapping[str, Any] | None = None
    retired: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Trust:
    """root: ids among `keys`; they have no other role. withdrawn: SHA-256 of a bundle -> reason. minimum: of a model.

    sha256: of the signed bytes. remembered: this file was held against the ones seen here before, and kept.
    """

    lab: str
    version: int
    issued: str
    demo: bool
    root: tuple[str, ...]
    keys: Mapping[str, TrustedKey]
    expires: str | None = None
    withdrawn: Mapping[str, str] = field(default_factory=dict)
    minimum: Mapping[str, str] = field(default_factory=dict)
    handovers: tuple[Envelope, ...] = ()
    sha256: str = ""
    remembered: bool = False

    def key(self, keyid: str) -> TrustedKey:
        found = self.keys.get(keyid)
        if found is None:
            raise Refused(
                "unknown-key",
                f"key {keyid[:16]} is not in the trust file of {self.lab}, version {self.version}",
            )
        return found

    def allows(self, keyid: str, role: str, *, under: int | None = None) -> None:
        """Refused unless the key may say what `role` says: unknown-key, revoked-key, wrong-role, retired-key.

        under: the version of the trust file that it was signed under, as the bundle claims; a key counts until it was
        retired. This file's own for a signature made now; None: not asked.
        """
        key = self.key(keyid)
        who = f"the key {keyid[:16]} of {key.name}"
        if key.revoked:
            raise Refused("revoked-key", f"{who} was revoked: {key.revoked['reason']}")
        if role not in key.roles:
            roles = " and ".join(key.roles) or "root"
            raise Refused("wrong-role", f"{who} is trusted as {roles}, not as {role}")
        if key.retired and under is not None and under >= key.retired["version"]:
            raise Refused(
                "retired-key", f"{who} was replaced in version {key.retired['version']}; use the newer key"
            )

    def allows_bundle(self, sha256: str, name: str, version: str) -> None:
        """Refused: withdrawn, below-minimum-version."""
        if sha256 in self.withdrawn:
            raise Refused("withdrawn", f"{self.lab} withdrew this bundle: {self.withdrawn[sha256]}")
        least = self.least(name)
        if least is not None and (not VERSION.fullmatch(version) or order(version) < order(least)):
            raise Refused(
                "below-minimum-version",
                f"version {version[:50]} of {name[:50]}: {self.lab} stands behind {least} and later only",
            )

    def least(self, model: str) -> str | None:
        """The oldest version of a model that still counts, however its name is typed; None: the lab took none back."""
        told = [version for name, version in self.minimum.items() if spelling(name) == spelling(model)]
        return max(told, key=order, default=None)

    def payload(self) -> bytes:
        """What root signs."""
        return canonical(
            {
                "format": FORMAT,
                "lab": self.lab,
                "version": self.version,
                "issued": self.issued,
                "expires": self.expires,
                "demo": self.demo,
                "root": list(self.root),
                "keys": {
                    keyid: {
                        "public": key.public.pem,
                        "name": key.name,
                        "roles": list(key.roles),
                        "revoked": key.revoked,
                        "retired": key.retired,
                    }
                    for keyid, key in self.keys.items()
                },
                "withdrawn": [
                    {"bundle": b, "reason": reason} for b, reason in sorted(self.withdrawn.items())
                ],
                "minimum": dict(self.minimum),
                "handovers": [one.as_dict() for one in self.handovers],
            }
        )


def read_trust(path: Path, *, remember: bool = False, at: str | None = None) -> Trust:
    """The trust file, held to its root's signature, to what was seen here before (`remember`), and to the clock.

    at: the time it is for; "" is before all, so that a file that ran out can be renewed. None: now.
    A demo file is never kept in memory, since every demo lab has the same name, but is held to what is there.
    """
    signed = Envelope.read(path)
    trust = _trust(signed, str(path))
    if not any(signed.signed_by(trust.keys[keyid].public) for keyid in trust.root):
        raise Refused("bad-root-signature", f"{path}: not signed by a root key that it names; do not use it")
    if remember:
        roots = [trust.keys[keyid].public for keyid in trust.root]
        seen = Seen(trust.lab, trust.version, trust.sha256, roots)
        trust = replace(trust, remembered=held(seen, signed, trust.handovers, path, keep=not trust.demo))
    if trust.expires and (now() if at is None else at) >= trust.expires:
        raise Refused("trust-expired", f"{path}: ran out on {trust.expires}; ask {trust.lab} for a newer one")
    return trust


def write_trust(path: Path, trust: Trust, root: PrivateKey) -> Trust:
    """Sign and write it; what `read_trust` returns. The checks of reading are made before anything is written."""
    signed = sign(trust.payload(), TRUST_TYPE, [root])
    found = _trust(signed, str(path))
    if root.public.id not in trust.root:
        raise Refused(
            "bad-root-signature", f"{path}: this key is not a root of {trust.lab}; use the root key"
        )
    signed.write(path)
    return found


def handover(trust: Trust, old: PrivateKey, new: PublicKey) -> Trust:
    """The next file's content with another root: the old one signs that it hands over, and is retired."""
    said = {"lab": trust.lab, "version": trust.version, "root": {new.id: new.pem}}
    keys = {key: value for key, value in trust.keys.items() if key not in trust.root}
    return replace(
        trust,
        root=(new.id,),
        keys={**keys, new.id: TrustedKey(new, "root", ())},
        handovers=(*trust.handovers, sign(canonical(said), HANDOVER_TYPE, [old])),
    )


@dataclass(frozen=True)
class Newcomer:
    """Somebody who gets a key in a new lab. file: of the private key, in keys/."""

    name: str
    roles: tuple[str, ...]
    file: str
    passphrase: str = field(repr=False)


def found_lab(
    directory: Path,
    lab: str,
    people: Sequence[Newcomer],
    root_passphrase: str,
    *,
    demo: bool = False,
    expires: str | None = None,
) -> Trust:
    """Make keys/ and trust.json of a new lab, as a whole or not at all. InputError: `directory` exists."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(8)}.tmp")
    try:
        root = generate()
        write_private(temporary / KEYS / "root.pem", root, root_passphrase)
        keys = {root.public.id: TrustedKey(root.public, "root", ())}
        for one in people:
            key = generate()
            write_private(temporary / KEYS / one.file, key, one.passphrase)
            keys[key.public.id] = TrustedKey(key.public, one.name, one.roles)
        trust = Trust(lab, 1, now(), demo, (root.public.id,), keys, expires)
        trust = write_trust(temporary / FILE, trust, root)
        try:
            publish_directory(temporary, directory)
        except OSError:
            if not directory.exists():
                raise
            raise InputError(f"{directory} already exists; a lab's keys are never overwritten") from None
    finally:
        remove_tree(temporary)
    return trust


def make_demo(directory: Path) -> Path:
    """The keys of a lab called "demo" (once), under a passphrase that everybody knows; the path of its trust file.

    What they sign proves nothing but how signing works, and says "demo" wherever it is shown.
    """
    people = [
        Newcomer("Ada Demo", (BUILDER,), "builder.pem", DEMO_PASSPHRASE),
        Newcomer("Bo Demo", (EVALUATOR,), "evaluator.pem", DEMO_PASSPHRASE),
        Newcomer("Cy Demo", (APPROVER,), "approver-1.pem", DEMO_PASSPHRASE),
        Newcomer("Di Demo", (APPROVER,), "approver-2.pem", DEMO_PASSPHRASE),
    ]
    if not directory.exists():
        try:
            found_lab(directory, "demo", people, DEMO_PASSPHRASE, demo=True)
        except InputError:
            if not directory.exists():
                raise
    trust = read_trust(directory / FILE)
    missing = [one.file for one in people if not (directory / KEYS / one.file).exists()]
    if not trust.demo or missing:
        what = f"lacks {KEYS}/{missing[0]}" if trust.demo else f"belongs to {trust.lab}, which is no demo"
        raise InputError(f"{directory} {what}; move it away, and demo keys are made anew")
    return directory / FILE


def spelling(name: str) -> str:
    """What two names of one person have in common however they are typed."""
    return unicodedata.normalize("NFKC", name).casefold()


def order(version: str) -> tuple[int, ...]:
    """Where a version stands among others; 1 is 1.0."""
    parts = [int(part) for part in version.split(".")]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def is_text(value: Any) -> bool:
    """What a terminal and a page can show."""
    return isinstance(value, str) and 0 < len(value) <= 500 and value.isprintable()


def is_name(value: Any) -> bool:
    """A name in one spelling, short."""
    return (
        is_text(value)
        and len(value) <= 100
        and value == value.strip()
        and unicodedata.is_normalized("NFC", value)
    )


def is_time(value: Any) -> bool:
    if not isinstance(value, str) or not TIME.fullmatch(value):
        return False
    with suppress(ValueError):
        return bool(datetime.fromisoformat(value).tzinfo == UTC)
    return False


def _trust(signed: Envelope, where: str) -> Trust:
    """What the envelope says, strictly: every field, and no spelling but the one we write."""
    _need(signed.payload_type == TRUST_TYPE, where, f"is no trust file but {signed.payload_type}")
    _need(len(signed.payload) <= MOST_BYTES, where, "is too large")
    found = parse(signed.payload, where)
    fields = {"format", "lab", "version", "issued", "expires", "demo", "root", "keys", "withdrawn", "minimum"}
    exactly(found, {*fields, "handovers"}, where)
    _need(type(found["format"]) is int and found["format"] == FORMAT, where, f"is not of format {FORMAT}")
    _need(is_name(found["lab"]), where, "lab has to be a name")
    _need(
        type(found["version"]) is int and 1 <= found["version"] < 1 << 31, where, "version has to be a count"
    )
    _need(is_time(found["issued"]), where, "issued has to be a time in UTC, such as 2026-01-31T12:00:00Z")
    _need(
        found["expires"] is None or is_time(found["expires"]),
        where,
        "expires has to be a time in UTC, or null",
    )
    _need(type(found["demo"]) is bool, where, "demo has to be true or false")
    keys = _keys(found["keys"], where)
    root = found["root"]
    _need(
        isinstance(root, list) and bool(root) and all(isinstance(one, str) for one in root),
        where,
        "names no root",
    )
    _need(
        len(set(root)) == len(root) and {*root} == {one for one, key in keys.items() if not key.roles},
        where,
        "root has to be exactly the keys without a role",
    )
    trust = Trust(
        found["lab"],
        found["version"],
        found["issued"],
        found["demo"],
        tuple(root),
        keys,
        found["expires"],
        _withdrawn(found["withdrawn"], where),
        _minimum(found["minimum"], where),
        _handovers(found["handovers"], found["lab"], where),
        hashlib.sha256(signed.payload).hexdigest(),
    )
    _need(trust.payload() == signed.payload, where, "is not in the one spelling that is signed")
    return trust


def _keys(found: Any, where: str) -> dict[str, TrustedKey]:
    _need(isinstance(found, dict), where, "keys has to be an object")
    keys: dict[str, TrustedKey] = {}
    for keyid, one in found.items():
        exactly(one, {"public", "name", "roles", "revoked", "retired"}, f"{where}: a key")
        _need(isinstance(one["public"], str) and is_name(one["name"]), where, "a key needs public and name")
        public = PublicKey(one["public"])
        _need(public.id == keyid, where, "a key stands under an id that is not its own")
        roles = one["roles"]
        known = isinstance(roles, list) and all(isinstance(role, str) and role in ROLES for role in roles)
        _need(known and len(set(roles)) == len(roles), where, f"roles are of {', '.join(ROLES)}")
        for ended in (one["revoked"], one["retired"]):
            if ended is not None:
                exactly(ended, {"version", "reason"}, f"{where}: revoked or retired")
                whole = type(ended["version"]) is int and is_text(ended["reason"])
                _need(whole, where, "revoked and retired have a version and a reason")
        keys[keyid] = TrustedKey(public, one["name"], tuple(roles), one["revoked"], one["retired"])
    typed: dict[str, str] = {}
    for key in keys.values():
        _need(
            typed.setdefault(spelling(key.name), key.name) == key.name,
            where,
            "two names differ only in how they are typed; people are counted by name",
        )
    return keys


def _withdrawn(found: Any, where: str) -> dict[str, str]:
    _need(isinstance(found, list), where, "withdrawn has to be a list")
    for one in found:
        exactly(one, {"bundle", "reason"}, f"{where}: withdrawn")
        whole = isinstance(one["bundle"], str) and SHA256.fullmatch(one["bundle"])
        _need(
            bool(whole) and isinstance(one["reason"], str),
            where,
            "withdrawn names a bundle's SHA-256 and why",
        )
    return {one["bundle"]: one["reason"] for one in found}


def _minimum(found: Any, where: str) -> dict[str, str]:
    whole = isinstance(found, dict) and all(
        isinstance(version, str) and VERSION.fullmatch(version) for version in found.values()
    )
    _need(whole, where, "minimum has a version such as 1.2 for each model")
    return dict(found)


def _handovers(found: Any, lab: str, where: str) -> tuple[Envelope, ...]:
    _need(isinstance(found, list) and len(found) <= 100, where, "handovers has to be a list")
    signed = tuple(envelope(one, f"{where}: a handover") for one in found)
    for one in signed:
        _need(one.payload_type == HANDOVER_TYPE, where, "a handover is of another type")
        said = parse(one.payload, f"{where}: a handover")
        exactly(said, {"lab", "version", "root"}, f"{where}: a handover")
        new = said["root"]
        whole = (
            said["lab"] == lab and isinstance(new, dict) and all(isinstance(pem, str) for pem in new.values())
        )
        _need(whole, where, "a handover is not of this lab's root")
        _need(
            all(PublicKey(pem).id == keyid for keyid, pem in new.items()),
            where,
            "a handover's key has another id",
        )
    return signed


def _need(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise Refused("malformed", f"{where}: {what}")
