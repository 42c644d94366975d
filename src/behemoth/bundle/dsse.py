"""Signed statements: DSSE envelopes, in-toto statements inside, and JSON that is read strictly.

DSSE (secure-systems-lab/dsse, protocol v1.0.2) signs PAE(type, payload), the payload's exact bytes with their type and
both lengths in front, so that nothing has to be parsed before the signature is known to be good and a statement cannot
be taken for one of another type. The payload is an in-toto Statement v1: what it is about by SHA-256, and what is said
of it.

What comes from a stranger is read with limits (size, depth, one value per key, no NaN, no field we do not know):
whatever two readers could understand differently is refused as malformed, so base64 in its URL spelling too, which
DSSE would let through. A keyid in an envelope is a hint of its writer; who signed is known only after `signed_by` with
a key from the trust file.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behemoth.base.files import write_atomic
from behemoth.bundle.keys import PrivateKey, PublicKey
from behemoth.bundle.refusals import Refused

IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
MOST_BYTES = 32 << 20  # of any JSON that is read here; a model of 10,000 files signs about two million
MOST_SIGNATURES = 16
MOST_NESTED = 100
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signature:
    keyid: str
    sig: bytes


@dataclass(frozen=True)
class Envelope:
    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": one.keyid, "sig": base64.b64encode(one.sig).decode()} for one in self.signatures
            ],
        }

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.as_dict(), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Envelope:
        """The envelope of a file. Refused "malformed": not exactly an envelope; nothing is known of its signer yet."""
        return envelope(parse(read_limited(path), str(path)), str(path))

    def signed_by(self, key: PublicKey) -> bool:
        """Whether this key signed these bytes. A signature that names another key is not asked; one without may be."""
        data = pae(self.payload_type, self.payload)
        return any(key.verify(one.sig, data) for one in self.signatures if one.keyid in ("", key.id))


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, keys: Sequence[PrivateKey]) -> Envelope:
    assert keys, "an envelope that nobody signs"
    data = pae(payload_type, payload)
    return Envelope(payload_type, payload, tuple(Signature(key.public.id, key.sign(data)) for key in keys))


def envelope(value: Any, where: str) -> Envelope:
    """The envelope that a parsed JSON value is."""
    exactly(value, {"payload", "payloadType", "signatures"}, where)
    kind, signatures = value["payloadType"], value["signatures"]
    if not isinstance(kind, str) or not re.fullmatch(r"[!-~]{1,200}", kind):
        raise Refused("malformed", f"{where}: payloadType is not a media type")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MOST_SIGNATURES:
        raise Refused("malformed", f"{where}: has to have 1 to {MOST_SIGNATURES} signatures")
    found = []
    for one in signatures:
        exactly(one, {"keyid", "sig"}, f"{where}: a signature", optional={"keyid"})
        keyid = one.get("keyid", "")
        if not isinstance(keyid, str) or len(keyid) > 200:
            raise Refused("malformed", f"{where}: a keyid is not a short string")
        found.append(Signature(keyid, _unbase64(one["sig"], where)))
    named = [one.keyid for one in found if one.keyid]
    if len(set(named)) < len(named):
        raise Refused("malformed", f"{where}: signed twice with one key")
    return Envelope(kind, _unbase64(value["payload"], where), tuple(found))


def statement(predicate_type: str, subject: Mapping[str, str], predicate: Mapping[str, Any]) -> bytes:
    """An in-toto Statement v1, canonical: what is said (`predicate`) of named files by SHA-256 (`subject`)."""
    assert subject and all(SHA256.fullmatch(digest) for digest in subject.values()), subject
    return canonical(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": subject[name]}} for name in sorted(subject)],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def read_statement(signed: Envelope, where: str = "the statement") -> dict[str, Any]:
    """The statement of an envelope, as JSON; `subject_of` has its subject. Refused "malformed": it is not one."""
    if signed.payload_type != IN_TOTO:
        raise Refused("malformed", f"{where}: of type {signed.payload_type}, not {IN_TOTO}")
    found = parse(signed.payload, where)
    exactly(found, {"_type", "subject", "predicateType", "predicate"}, where)
    if found["_type"] != STATEMENT:
        raise Refused("malformed", f"{where}: its _type is not {STATEMENT}")
    if not isinstance(found["predicateType"], str) or not isinstance(found["predicate"], dict):
        raise Refused("malformed", f"{where}: predicateType has to be a string, predicate an object")
    if not isinstance(found["subject"], list) or not found["subject"]:
        raise Refused("malformed", f"{where}: is about nothing")
    names = set()
    for one in found["subject"]:
        exactly(one, {"name", "digest"}, f"{where}: a subject")
        digest = one["digest"].get("sha256") if isinstance(one["digest"], dict) else None
        if not isinstance(one["name"], str) or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise Refused("malformed", f"{where}: a subject is not a name with its SHA-256")
        names.add(one["name"])
    if len(names) < len(found["subject"]):
        raise Refused("malformed", f"{where}: names one subject twice")
    return dict(found)


def subject_of(found: Mapping[str, Any]) -> dict[str, str]:
    """name -> SHA-256, of what `read_statement` returned."""
    return {one["name"]: one["digest"]["sha256"] for one in found["subject"]}


def canonical(value: Any) -> bytes:
    """JSON in one spelling: sorted keys, no spaces, UTF-8. ValueError for what JSON does not have (NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def read_limited(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a plain file of bounded size. Refused "malformed": missing, a link, a pipe, or too large."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused("malformed", f"{path}: cannot be read as a plain file ({reason})") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Refused("malformed", f"{path}: is not a plain file")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(most_bytes + 1)
    finally:
        os.close(handle)
    if len(data) > most_bytes:
        raise Refused("malformed", f"{path}: larger than {most_bytes:,} bytes, which nothing of its kind is")
    return data


def parse(data: bytes, where: str) -> Any:
    """JSON that has one meaning: UTF-8, no key twice, finite numbers, whole characters, bounded depth."""
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
        )
        _shallow(value)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused("malformed", f"{where}: not the JSON that is read here ({reason[:200]})") from None
    return value


def exactly(value: Any, known: set[str], where: str, optional: set[str] | None = None) -> None:
    """An object with exactly these fields, or it is malformed."""
    if not isinstance(value, dict):
        raise Refused("malformed", f"{where}: is not a JSON object")
    missing, extra = known - set(value) - (optional or set()), set(value) - known
    if missing or extra:
        what = (
            f"lacks {min(missing)!r}" if missing else f"has a field {min(extra)[:50]!r} that does not belong"
        )
        raise Refused("malformed", f"{where}: {what}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the largest number")
    return value


def _shallow(value: Any) -> None:
    """No nesting that a later reader could fall over, no half of a surrogate pair that cannot be written."""
    layer, depth = [value], 0
    while layer:
        depth += 1
        if depth > MOST_NESTED:
            raise RecursionError
        for item in layer:
            for text in (item,) if isinstance(item, str) else item if isinstance(item, dict) else ():
                text.encode()
        layer = [
            child
            for item in layer
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]


def _unbase64(text: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:  # one spelling only: the last bits count too
        raise Refused("malformed", f"{where}: a field is not standard base64")
    return data
