"""Every word of a bundle, checked offline by whoever has the bundle and the lab's trust file.

In order: are these files what the manifest lists and nothing else; did a builder sign exactly them; does the record
hold (release/record.py: policy, evidence, the verdict computed again, signatures, log); are these the weights that were
judged, the files that the receipt is of, the card that follows from the evidence. All refusals are collected, each with
a code of its own, and a hostile bundle is refused and never crashes its reader. What nobody of the lab signed is
hashed and not opened.

A file for llama.cpp is believed because its hash lies in the evidence, which the evaluator and the approvers signed:
whoever gathered it wrote that file and read it back (export/gguf.py). It is not read here.

The reader brings the trust file; the copy in the bundle is for reading. Nothing here asks a network, a clock or a
model: what therefore cannot be known is told beside what is established. Not covered: a directory that changes while
it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from behemoth.base.errors import InputError
from behemoth.bundle import manifest, oms, seal
from behemoth.bundle.dsse import SHA256, parse, read_limited
from behemoth.bundle.manifest import MANIFEST, SIGNATURE, shown
from behemoth.bundle.refusals import CODES, Refusal, Refused, refused
from behemoth.bundle.trust import BUILDER, Trust, read_trust
from behemoth.model.identity import CONFIG, RECEIPT, digest
from behemoth.release import card, licences
from behemoth.release.approvals import OURS
from behemoth.release.evidence import PROVENANCE
from behemoth.release.policy import Mode
from behemoth.release.record import (
    APPROVALS,
    EVIDENCE,
    LOG,
    MOST_TEXT,
    POLICY,
    SIGNED,
    VERDICT,
    Findings,
    Record,
    check_record,
    plain,
    read_record,
)

RELEASE, TRUST, SEALED, STAGED = "release", "trust.json", "sealed", "staged.json"
CARD, LICENSE, NOTICE = "README.md", "LICENSE", "NOTICE"
GGUF, GGUF_RECEIPT = "model.gguf", "gguf-receipt.json"
BESIDE = {CARD, LICENSE, NOTICE, RECEIPT, GGUF, GGUF_RECEIPT}  # what lies beside the files of the export
WEIGHTS = ".safetensors"
OPEN_ALWAYS = (LICENSE, NOTICE)  # in a closed bundle too
RECORD = {f"{RELEASE}/{name}" for name in (POLICY, VERDICT, SIGNED, LOG, TRUST)} | {MANIFEST}
CONTENT = {  # the refusals of files after which the rest can still be read safely
    *("manifest-missing", "missing-file", "renamed-file", "extra-file", "swapped-file", "cut-file"),
    *("longer-file", "changed-file", "malformed"),
}


@dataclass(frozen=True)
class Verification:
    """established and not_established are sentences; facts: name, version, mode, demo, lab, and digests."""

    established: list[str]
    not_established: list[str]
    refusals: list[Refusal]
    facts: dict[str, Any]

    @property
    def holds(self) -> bool:
        return not self.refusals


def verify(bundle: Path, trust: Trust, *, seal_key: bytes | None = None) -> Verification:
    """Check `bundle` against `trust`. seal_key: of a closed bundle, to look inside.

    InputError: there is no such directory, or it is a staged release, which holds bundles. All else is in the answer.
    """
    if is_staged(bundle):
        raise InputError(
            f"{bundle} is a staged release; verify {bundle / 'closed'}, which is what may be served"
        )
    found = Findings()
    examined = manifest.examine(bundle)
    found.refusals += examined.refusals
    facts = _facts(examined, trust, found)
    if all(refusal.code in CONTENT for refusal in examined.refusals):  # no links, nothing that leads outside
        if not examined.refusals:
            found.established.append(
                f"the files are the {len(examined.hashes)} that the manifest lists, byte for byte"
            )
        signer = _signature(bundle, examined.hashes, facts, trust, found)
        if signer is None:
            found.not_established.append(
                "anything of what the files say: nobody of the lab signed these very files"
            )
        elif facts:
            facts["builder"] = signer
            with found.refusing("malformed", "the bundle"):
                _contents(bundle, examined.hashes, facts, trust, seal_key, found)
    _limits(facts, trust, found)
    order = list(CODES)
    refusals = sorted(dict.fromkeys(found.refusals), key=lambda refusal: order.index(refusal.code))
    said, unsaid = ([plain(line) for line in lines] for lines in (found.established, found.not_established))
    return Verification(said, unsaid, refusals, facts)


def is_staged(directory: Path) -> bool:
    """A staged release is no bundle; a bundle with such a file in it is one that was tampered with."""
    return (directory / STAGED).exists() and not (directory / manifest.MANIFEST).exists()


# ------------------------------------------------------------------------------------------------- what it says it is


def _facts(examined: manifest.Examined, trust: Trust, found: Findings) -> dict[str, Any]:
    """The manifest's own words, held to the trust file; {} where there is nothing to go on with."""
    record = examined.record
    if not record:
        return {}
    with found.refusing("malformed", MANIFEST):
        texts = all(
            isinstance(record[key], str) for key in ("name", "version", "mode", "lab", "model", "behemoth")
        )
        under = record["trust"]
        kinds = isinstance(record["demo"], bool) and type(under["version"]) is int
        digests = [under["sha256"], *(entry["sha256"] for entry in record.get("sealed", {}).values())]
        kinds = kinds and all(SHA256.fullmatch(one) for one in digests)
        known = {"format", "name", "version", "mode", "demo", "lab", "model", "trust", "behemoth", "files"}
        if record["mode"] == "closed":
            known |= {"sealed"}
        if not texts or not kinds or set(record) != known or record["mode"] not in get_args(Mode):
            raise Refused("malformed", "says something of another kind than a bundle does")
        if under["version"] > trust.version:
            message = f"built under version {under['version']} of the trust file, and this is {trust.version}"
            found.refuse("trust-too-old", f"{message}; get the lab's newest")
        if under["version"] == trust.version and under["sha256"] != trust.sha256:
            found.refuse(
                "trust-forked", f"built under another trust file of the same version {trust.version}"
            )
        if record["demo"] is not trust.demo:
            found.refuse("demo-differs", f"demo is {record['demo']}, and of the trust file {trust.demo}")
        if record["lab"] != trust.lab:
            found.refuse(
                "facts-differ",
                f"a bundle of the lab {record['lab'][:80]!r}, and the trust file is {trust.lab}'s",
            )
        facts = {key: record[key] for key in sorted(known - {"files", "format"})}
        facts["sha256"] = examined.hashes[MANIFEST]
        with found.refusing("withdrawn", "the lab's word on this bundle"):
            trust.allows_bundle(facts["sha256"], facts["name"], facts["version"])
        return facts
    return {}


def _signature(
    bundle: Path, hashes: Mapping[str, str], facts: dict[str, Any], trust: Trust, found: Findings
) -> str | None:
    """The builder who signed all of it; None where that is refused."""
    with found.refusing("malformed", SIGNATURE):
        signed = oms.read(bundle / SIGNATURE)
        facts |= {"signature": hashlib.sha256(read_limited(bundle / SIGNATURE)).hexdigest()} if facts else {}
        key = next((key for key in trust.keys.values() if signed.claims(key.public)), None)
        if key is None:
            raise Refused("unknown-key", f"signed with a key that is not in the trust file of {trust.lab}")
        trust.allows(key.public.id, BUILDER, under=facts["trust"]["version"] if facts else None)
        signed.check(key.public)
        if wrong := signed.compare(hashes):
            raise refused(wrong)
        if facts and signed.name != facts["name"]:
            found.refuse(
                "facts-differ",
                f"signed as {shown(signed.name)}, and the manifest says {shown(facts['name'])}",
            )
        found.established.append(f"signed by {key.name} (builder), every file but {SIGNATURE} itself")
        return key.name
    return None


# ------------------------------------------------------------------------------------------------------- what it holds


def _contents(
    bundle: Path,
    hashes: Mapping[str, str],
    facts: dict[str, Any],
    trust: Trust,
    seal_key: bytes | None,
    found: Findings,
) -> None:
    """The record, and what the record is about."""
    mode: Mode = facts["mode"]
    record = read_record(bundle / RELEASE, found)
    if record.entries is not None and (bundle / RELEASE / LOG).stat().st_size != sum(
        len(entry.line()) for entry in record.entries
    ):
        found.refuse("log-broken", f"{LOG}: something stands behind the last entry")
    check_record(record, mode, trust, found, under=facts["trust"]["version"])
    with found.refusing("facts-differ", f"{RELEASE}/{TRUST}"):
        _trust_inside(
            read_trust(bundle / RELEASE / TRUST, at="0"), facts, trust, found
        )  # it may have run out since
    plain = _plain(hashes, facts, found)
    if record.verdict is None:
        return
    verdict, policy = record.verdict, record.policy
    said = {"name": verdict["model"]["name"], "model": verdict["model"]["sha256"], "mode": verdict["mode"]}
    said |= {"version": policy.version} if policy else {}
    for key, value in said.items():
        if facts[key] != value:
            found.refuse(
                "facts-differ",
                f"{key} is {facts[key][:80]!r} in the manifest, and {value[:80]!r} in the record",
            )
    read = _read_card(bundle, facts, plain, seal_key, found)
    told = "" if read is not None else ", by the builder's word (sealed)"
    with found.establishing(
        "model-differs", f"the weights are those that were judged: {facts['model'][:16]}{told}"
    ):
        weights = {name: sha for name, sha in plain.items() if name.endswith(WEIGHTS)}
        if digest({CONFIG: plain[CONFIG], **weights}) != verdict["model"]["sha256"]:
            found.refuse(
                "model-differs", "config.json and weights are another model than the one that was judged"
            )
    if record.evidence is None:
        return
    with found.establishing(
        "receipt-differs", f"the model's files are those that the export's receipt is of{told}"
    ):
        _receipt(plain, record, hashes, found)
    if record.evidence.provenance is not None:
        with found.refusing("provenance-differs", PROVENANCE):
            _provenance(record.evidence.provenance, verdict["model"]["sha256"], plain, told, found)
    gguf = _gguf(bundle, facts, hashes, plain, told, found)
    if any(refusal.code == "other-wording" for refusal in found.refusals):
        return  # what a page has to say is not known here
    if read is not None and policy is not None:
        sentence = f"{CARD} is what follows from the evidence, written again"
        with found.establishing("card-differs", sentence):
            said = card_facts(facts, plain, policy.licences.model, gguf)
            if read != card.render(record.evidence, verdict, said).encode():
                message = f"{CARD} is not what behemoth {OURS} writes from evidence, verdict and manifest"
                found.refuse("card-differs", message)
    with found.establishing("licence-differs", "NOTICE and LICENSE are what follows from the evidence"):
        _licence(bundle, record, found)


def _trust_inside(theirs: Trust, facts: Mapping[str, Any], trust: Trust, found: Findings) -> None:
    """The trust file in the bundle, which is for reading, is an earlier one of the same lab."""
    if (theirs.version, theirs.sha256) != (facts["trust"]["version"], facts["trust"]["sha256"]):
        found.refuse("facts-differ", f"{RELEASE}/{TRUST} is not the trust file that the manifest names")
    known = set(trust.root)
    for (
        one
    ) in trust.handovers:  # the first root is known by what it signed, each later one by what is handed over
        said = parse(one.payload, "a handover")["root"]
        known |= {*said, *(signature.keyid for signature in one.signatures)}
    if theirs.lab != trust.lab or not known.issuperset(theirs.root):
        found.refuse("facts-differ", f"{RELEASE}/{TRUST} is of another root than the lab's")


def _plain(hashes: Mapping[str, str], facts: Mapping[str, Any], found: Findings) -> dict[str, str]:
    """The files of the repository by name and SHA-256 of their content, sealed or not; and nothing strange beside."""
    plain: dict[str, str] = {}
    sealed = facts.get("sealed", {})
    for name, sha256 in hashes.items():
        place, _, rest = name.partition("/")
        if not rest and (facts["mode"] == "open" or name in OPEN_ALWAYS):
            plain[name] = sha256
        elif place == SEALED and rest in sealed and rest not in OPEN_ALWAYS:
            plain[rest] = sealed[rest]["sha256"]
        elif not (name in RECORD or name.startswith(f"{RELEASE}/{EVIDENCE}/") or _is_approval(name)):
            found.refuse("foreign-file", f"{shown(name)}: belongs to no {facts['mode']} bundle")
    for name in sorted(set(sealed) - set(plain)):
        found.refuse("facts-differ", f"{shown(name)}: sealed, says the manifest, and not there")
    return plain


def _is_approval(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == f"{RELEASE}/{APPROVALS}" and file.endswith(".json")


def _receipt(plain: Mapping[str, str], record: Record, hashes: Mapping[str, str], found: Findings) -> None:
    assert record.evidence is not None
    if record.evidence.receipt is None or plain.get(RECEIPT) != hashes.get(f"{RELEASE}/{EVIDENCE}/{RECEIPT}"):
        found.refuse("receipt-differs", f"{RECEIPT} is not the one in the evidence")
        return
    promised = record.evidence.receipt["files"]
    for name in sorted({*promised, *plain}):
        if name not in plain:
            found.refuse("receipt-differs", f"{shown(name)}: in the receipt, and not there")
        elif name in promised and promised[name] != plain[name]:
            found.refuse("receipt-differs", f"{shown(name)}: not the bytes that transformers was asked about")
        elif name not in promised and name not in BESIDE:
            found.refuse("foreign-file", f"{shown(name)}: not in the receipt, and no file of a bundle")


def _provenance(
    made: Mapping[str, Any], model: str, plain: Mapping[str, str], told: str, found: Findings
) -> None:
    """What is told of the making is told of these weights: the checkpoint's are the export's, bit for bit."""
    if made["model"]["sha256"] != model:
        found.refuse("provenance-differs", f"{PROVENANCE} is of another model")
    if made["checkpoint"] is None:
        found.not_established.append("which checkpoint the weights are: the evidence names none")
        return
    saved = {name: sha for name, sha in made["checkpoint"]["files"].items() if name.endswith(WEIGHTS)}
    if not saved or saved != {name: sha for name, sha in plain.items() if name.endswith(WEIGHTS)}:
        found.refuse("provenance-differs", f"{PROVENANCE} tells of the making of other weights than these")
    else:
        found.established.append(
            f"the weights are bit for bit the checkpoint that the evidence tells of{told}"
        )


def _gguf(
    bundle: Path,
    facts: Mapping[str, Any],
    hashes: Mapping[str, str],
    plain: Mapping[str, str],
    told: str,
    found: Findings,
) -> dict[str, Any] | None:
    """The receipt of the file for llama.cpp, where there is one: both are those of the evidence."""
    if GGUF not in plain and GGUF_RECEIPT not in plain:
        return None
    place = f"{RELEASE}/{EVIDENCE}/{GGUF_RECEIPT}"
    with found.establishing(
        "gguf-differs", f"{GGUF} is the file whose hash lies in the signed evidence{told}"
    ):
        if place not in hashes:
            raise Refused(
                "gguf-differs", f"the evidence has no {GGUF_RECEIPT}: {GGUF} is the builder's word alone"
            )
        receipt = dict(parse(read_limited(bundle / place), GGUF_RECEIPT))
        if plain.get(GGUF_RECEIPT) != hashes[place]:
            raise Refused("gguf-differs", f"{GGUF_RECEIPT} is not the one in the evidence")
        if receipt["files"] != {GGUF: plain.get(GGUF)}:
            raise Refused("gguf-differs", f"{GGUF} is not the file that was read back")
        if receipt["source"]["sha256"] != facts["model"] or receipt["verdict"] != "match":
            raise Refused("gguf-differs", f"{GGUF} was made of another model, or did not match it")
        return receipt
    return None


def _read_card(
    bundle: Path, facts: dict[str, Any], plain: Mapping[str, str], seal_key: bytes | None, found: Findings
) -> bytes | None:
    """The card; None where it is sealed and there is no key, or the files do not open. What is sealed is opened whole,
    and held to what the manifest says of it."""
    if facts["mode"] == "open":
        with found.refusing("malformed", "the card"):
            return read_limited(bundle / CARD)
        return b""
    if seal_key is None:
        return None
    before, page = len(found.refusals), bytearray()
    with found.establishing("sealed-file-changed", "the sealed files open, and are what the manifest says"):
        for name in sorted(set(facts["sealed"]) & set(plain)):  # those that are there
            seen = hashlib.sha256()
            for piece in seal.open_sealed(bundle / SEALED / name, seal_key, name):
                seen.update(piece)
                if name == CARD and len(page) < MOST_TEXT:
                    page += piece
            if seen.hexdigest() != plain[name]:
                found.refuse("facts-differ", f"{shown(name)}: holds something else than the manifest says")
    facts["opened"] = len(found.refusals) == before
    return bytes(page) if facts["opened"] else None


def card_facts(
    facts: Mapping[str, Any], plain: Mapping[str, str], licence: str, gguf: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the card may say beside evidence and verdict."""
    told = {key: facts[key] for key in ("name", "version", "mode", "demo")}
    return told | {"licence": licence, "gguf": gguf, "files": sorted({*plain, CARD})}


def _licence(bundle: Path, record: Record, found: Findings) -> None:
    assert record.evidence is not None
    if record.evidence.licences is None:
        found.refuse("licence-differs", "the evidence says nothing of licences")
        return
    if read_limited(bundle / NOTICE) != licences.notice(record.evidence.licences).encode():
        found.refuse("licence-differs", f"{NOTICE} is not what follows from the evidence")
    spdx = record.policy.licences.model if record.policy else ""
    text = licences.licence_text(spdx, bundle / RELEASE / EVIDENCE)
    if text is None:
        found.not_established.append(
            f"that LICENSE is the text of {spdx}: there is none here to compare it with"
        )
    elif read_limited(bundle / LICENSE) != text.encode():
        found.refuse("licence-differs", f"{LICENSE} is not the text of {spdx}")


# ------------------------------------------------------------------------------------------------ what nobody can know


def _limits(facts: Mapping[str, Any], trust: Trust, found: Findings) -> None:
    """What no check of these files can say."""
    said = found.not_established
    said.append(
        f"that nothing was revoked or withdrawn since {trust.issued}, when version {trust.version} of the trust file "
        "was issued: ask the lab for its newest"
    )
    said.append("when any of it was made: the times in it are claims")
    if trust.demo:
        said.append("that anybody stands behind it: demo keys are public, and prove only how the checks work")
    if not facts:
        return
    said.append(
        "that the evaluations were run as their records say: the evaluator's signature stands for that"
    )
    if facts["mode"] == "closed" and not facts.get("opened"):
        said.append(
            "what the sealed files hold, and the card among them: that takes the key (--seal-key FILE)"
        )
    if facts["mode"] == "closed":
        said.append("that the weights stay closed: whoever holds the key and the files can copy them")
