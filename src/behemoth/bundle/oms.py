"""The OpenSSF model signature (OMS v1.0): one signature over every file, which anybody's tool can check.

    model.sig    Sigstore bundle v0.3 (JSON) > DSSE envelope > in-toto statement > predicate: SHA-256 of each file

Source: sigstore/model-transparency, whose `model_signing verify key` takes what is written here; what its
`sign key` writes with a P-256 key is read here. Our check is stricter than that of the released tool: it lets anything
pass that is named .git or .gitattributes, any path that the signature itself lists as ignored, links where the
signature allows them, and empty directories. Here the signed set has to be the set of all files but model.sig, and the
only path that our own signature ignores is itself.

Three questions in order: whose key does it claim (`Signed.keyid`, `Signed.claims`), did that key sign it
(`Signed.check`), and are these the files (`Signed.compare`). Left out: certificates, Sigstore's keyless signatures and
its log, shards, other hashes than SHA-256, other curves than P-256, spellings before 1.1. Nothing here says when it
was signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from behemoth.base.files import write_atomic
from behemoth.bundle import dsse
from behemoth.bundle.dsse import IN_TOTO, Envelope
from behemoth.bundle.keys import PrivateKey, PublicKey
from behemoth.bundle.manifest import SIGNATURE, files_of, hash_files, shown
from behemoth.bundle.refusals import Refusal, Refused, refused

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://model_signing/signature/v1.0"
IGNORED = {SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"}  # what their tool always writes


@dataclass(frozen=True)
class Signed:
    """A model.sig as it was read; nothing of it is believed before `check`.

    keyid: of the DSSE signature, "" where a tool wrote none. hint: hex SHA-256 of the public key's PEM.
    """

    keyid: str
    hint: str
    name: str
    hashes: Mapping[str, str]
    envelope: Envelope

    def claims(self, key: PublicKey) -> bool:
        """Whether it says of itself that this key signed it."""
        return self.hint == hint_of(key) and self.keyid in ("", key.id)

    def check(self, key: PublicKey) -> None:
        """Refused "bad-signature": not what this key signed."""
        if not self.claims(key) or not self.envelope.signed_by(key):
            raise Refused("bad-signature", f"{SIGNATURE}: not signed by key {key.id[:16]}, or changed since")

    def compare(self, hashes: Mapping[str, str]) -> list[Refusal]:
        """Every difference between what was signed and all files but model.sig, by name and SHA-256."""
        said = []
        for name in sorted({*self.hashes, *hashes}):
            if name not in hashes:
                said.append(Refusal("signed-file-missing", f"{shown(name)}: signed, and not there"))
            elif name not in self.hashes:
                said.append(Refusal("unsigned-file", f"{shown(name)}: there, and not signed"))
            elif hashes[name] != self.hashes[name]:
                said.append(Refusal("signed-file-changed", f"{shown(name)}: not the bytes that were signed"))
        return said


def sign(
    directory: Path, key: PrivateKey, *, name: str = "model", hashes: Mapping[str, str] | None = None
) -> None:
    """Write model.sig over every other file of `directory`; the same bytes for the same files, key and name.

    name: of the model, for people. hashes: of all files but model.sig, where they are known (manifest.hashes).
    """
    hashes = _hashes(directory) if hashes is None else hashes
    ordered = sorted(hashes, key=PurePosixPath)  # as their tool sorts: by parts, not by letters
    predicate = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [SIGNATURE],
        },
        "resources": [{"name": file, "algorithm": "sha256", "digest": hashes[file]} for file in ordered],
    }
    payload = dsse.statement(PREDICATE, {name: _root([hashes[file] for file in ordered])}, predicate)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint_of(key.public)}, "tlogEntries": []},
        "dsseEnvelope": dsse.sign(payload, IN_TOTO, [key]).as_dict(),
    }
    write_atomic(directory / SIGNATURE, _spelled(bundle))


def verify(directory: Path, key: PublicKey, hashes: Mapping[str, str] | None = None) -> Signed:
    """All three questions: this key signed exactly these files. Refused, with all that is wrong."""
    signed = read(directory / SIGNATURE)
    signed.check(key)
    if wrong := signed.compare(_hashes(directory) if hashes is None else hashes):
        raise refused(wrong)
    return signed


def read(path: Path) -> Signed:
    """A model.sig, strictly, of ours or of `model_signing sign key`.

    Refused: "signature-missing"; "malformed"; "signature-kind"; "signature-leaves-out": it ignores paths of its own
    choice or allows links; "signature-inconsistent".
    """
    if not path.exists() and not path.is_symlink():
        raise Refused("signature-missing", f"{path.name}: not there, so nobody answers for these files")
    where = path.name
    data = dsse.read_limited(path)
    found = dsse.parse(data, where)
    dsse.exactly(found, {"mediaType", "verificationMaterial", "dsseEnvelope"}, where)
    if (
        _spelled(found) != data
    ):  # no signature covers this file, so a space more would be a change that passes
        raise Refused("malformed", f"{where}: written with other spaces than a signature has")
    if found["mediaType"] != MEDIA_TYPE:
        raise Refused(
            "signature-kind", f"{where}: of type {str(found['mediaType'])[:80]!r}, not {MEDIA_TYPE}"
        )
    hint = _hint(found["verificationMaterial"], where)
    envelope = dsse.envelope(found["dsseEnvelope"], where)
    if len(envelope.signatures) != 1:
        raise Refused("malformed", f"{where}: {len(envelope.signatures)} signatures, where there is one")
    said = dsse.read_statement(envelope, where)
    if said["predicateType"] != PREDICATE:
        raise Refused("signature-kind", f"{where}: says {said['predicateType'][:80]!r}, not {PREDICATE}")
    subject = dsse.subject_of(said)
    hashes = _resources(said["predicate"], where)
    if list(subject.values()) != [_root(list(hashes.values()))]:
        raise Refused(
            "signature-inconsistent", f"{where}: its subject is not the digest of the files it lists"
        )
    return Signed(envelope.signatures[0].keyid, hint, next(iter(subject)), hashes, envelope)


def hint_of(key: PublicKey) -> str:
    """How a signature of this format names its key: by the hash of the PEM."""
    return hashlib.sha256(key.pem.encode()).hexdigest()


def _hint(material: Any, where: str) -> str:
    if not isinstance(material, dict) or not {"publicKey"} <= set(material) <= {"publicKey", "tlogEntries"}:
        raise Refused("signature-kind", f"{where}: not signed with a plain key (a certificate, or keyless)")
    key, log = material["publicKey"], material.get("tlogEntries", [])
    if not isinstance(key, dict) or set(key) != {"hint"} or not isinstance(key["hint"], str) or log != []:
        raise Refused("malformed", f"{where}: does not name its key by a hint alone")
    return key["hint"]


def _resources(predicate: Mapping[str, Any], where: str) -> dict[str, str]:
    """name -> SHA-256 in the order in which they are listed."""
    how, listed = predicate.get("serialization"), predicate.get("resources")
    if (
        set(predicate) != {"serialization", "resources"}
        or not isinstance(how, dict)
        or not isinstance(listed, list)
    ):
        raise Refused("malformed", f"{where}: not the predicate of a model signature")
    if how.get("method") != "files" or how.get("hash_type") != "sha256":
        raise Refused("signature-kind", f"{where}: not of whole files by SHA-256")
    ignored = how.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(one, str) for one in ignored):
        raise Refused("malformed", f"{where}: ignore_paths is not a list of names")
    if other := set(ignored) - IGNORED:
        raise Refused("signature-leaves-out", f"{where}: leaves out {shown(min(other))}")
    if how.get("allow_symlinks") is not False:
        raise Refused("signature-leaves-out", f"{where}: allows links, and so leaves out what they lead to")
    hashes: dict[str, str] = {}
    for one in listed:
        if not isinstance(one, dict) or set(one) != {"name", "algorithm", "digest"}:
            raise Refused("malformed", f"{where}: a file is not listed by name, algorithm and digest")
        name, digest = one["name"], one["digest"]
        plain = isinstance(name, str) and isinstance(digest, str) and dsse.SHA256.fullmatch(digest)
        if not plain or one["algorithm"] != "sha256" or name in hashes:
            raise Refused("malformed", f"{where}: a file is listed twice, or not by a SHA-256")
        hashes[name] = digest
    return hashes


def _spelled(bundle: Mapping[str, Any]) -> bytes:
    """The bytes that their tool writes for it, too."""
    return json.dumps(bundle, separators=(",", ":")).encode()


def _root(digests: list[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _hashes(directory: Path) -> dict[str, str]:
    files = files_of(directory, leave_out=(SIGNATURE,))
    return hash_files({name: (path, path.stat().st_size) for name, path in files.items()})
