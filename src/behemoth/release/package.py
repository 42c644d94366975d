"""A run that was judged and approved becomes a bundle: files that prove by themselves what they are.

    README.md LICENSE NOTICE config.json model.safetensors ...   a Hugging Face repository (open)
    sealed/...                                                   the same, encrypted (closed; LICENSE and NOTICE stay)
    release/                                                     policy, evidence, verdict, approvals, log, trust file
    release/manifest.json  model.sig                             every file listed, and signed by the builder

Nothing is decided here. The record of the run is held to the same questions that a stranger will ask of it
(release/record.py), the files are laid out, listed and signed, and the finished directory is verified as a stranger
would before it gets its name. Everything in it comes from the run and its evidence and nothing from the clock, so two
builds are the same bytes. A closed bundle is encrypted at rest: whoever holds its key and the files can copy the
model.

Staged is closed now and open later: a closed bundle, beside it what the open one would hold, sealed too, and
staged.json, which says what is missing. Left out: hardware that keeps the key, and a bundle that is changed once it
is made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.files import publish_directory, read_json, remove_tree, sha256, write_atomic, write_json
from behemoth.bundle import journal, manifest, oms, seal
from behemoth.bundle.keys import PrivateKey
from behemoth.bundle.refusals import Refused, refused
from behemoth.bundle.trust import BUILDER, Trust, read_trust
from behemoth.model.identity import RECEIPT
from behemoth.release import card, licences
from behemoth.release.approvals import OURS
from behemoth.release.gate import decide
from behemoth.release.policy import Mode
from behemoth.release.publish import alone_in, cleared
from behemoth.release.record import (
    APPROVALS,
    EVIDENCE,
    LOG,
    POLICY,
    SIGNED,
    VERDICT,
    Findings,
    Record,
    check_record,
    read_record,
)
from behemoth.release.verify import (
    CARD,
    GGUF,
    GGUF_RECEIPT,
    LICENSE,
    NOTICE,
    OPEN_ALWAYS,
    RELEASE,
    SEALED,
    STAGED,
    TRUST,
    card_facts,
    verify,
)

GATE = "gate"


def build(
    run: Path,
    mode: Mode,
    out: Path,
    *,
    key: PrivateKey,
    trust: Path,
    model: Path,
    seal_key: bytes | None = None,
    gguf: Path | None = None,
) -> dict[str, Any]:
    """Write the bundle of RUN/gate's verdict to the new directory `out`, whole or not at all; what it is.

    key: the builder's. trust: the trust file. model: the exported directory that was judged. gguf: the file
    that the evidence's gguf-receipt.json is of. Where `out` is this bundle already, nothing is
    done. Refused, with everything that is wrong: no verdict of release for this mode, a changed policy, other evidence
    than the log's, no signature, too few approvals, the builder's own, a key that may not. InputError: `out` is there.
    """
    lab = read_trust(trust)
    record = ready(run / GATE, mode, key, lab)
    if mode == "closed" and seal_key is None:
        raise InputError("a closed bundle is encrypted: give --seal-key FILE, 32 random bytes as base64")
    if out.exists():
        return already(out, record, lab, seal_key, gguf)
    with building(out) as temporary:
        _fill(temporary, record, mode, lab, trust, model, seal_key if mode == "closed" else None, gguf)
        found = _finish(temporary, key, lab, seal_key)
        publish_directory(temporary, out)
    return found | {"bundle": str(out)}


def stage(
    run: Path,
    out: Path,
    *,
    key: PrivateKey,
    trust: Path,
    model: Path,
    seal_key: bytes,
    gguf: Path | None = None,
) -> dict[str, Any]:
    """Write OUT/closed, a closed bundle, OUT/open, an open one as far as it goes, and staged.json: what it lacks."""
    lab = read_trust(trust)
    record = ready(run / GATE, "closed", key, lab)
    policy, evidence = record.policy, record.evidence
    assert policy is not None and evidence is not None
    if "open" not in policy.modes:
        raise Refused(
            "mode-not-allowed", f"the policy {policy.name} never lets it go out open, so nothing is staged"
        )
    if out.exists():
        closed = already(out / "closed", record, lab, seal_key, gguf) if (out / STAGED).exists() else None
        if closed is None:
            raise InputError(f"{out} already exists; a bundle is never overwritten, so choose another place")
        return dict(read_json(out / STAGED)) | {"bundle": str(out)}
    with building(out) as temporary:
        _fill(temporary / "closed", record, "closed", lab, trust, model, seal_key, gguf)
        closed = _finish(temporary / "closed", key, lab, seal_key)
        verdict = decide(policy, "open", evidence)
        prepared = Record(record.directory, policy, evidence, verdict, "", [], record.entries)
        _fill(temporary / "open", prepared, "open", lab, trust, model, seal_key, gguf)
        staged = _staged(closed, verdict, policy.approvals_of("open"))
        write_json(temporary / STAGED, staged)
        publish_directory(temporary, out)
    return staged | {"bundle": str(out)}


def ready(gate: Path, mode: Mode, key: PrivateKey, trust: Trust) -> Record:
    """The record of a run, where nothing stands against a release by this builder. Refused: everything that does."""
    found = Findings()
    record = read_record(gate, found)
    check_record(record, mode, trust, found, under=trust.version)
    with found.refusing("unknown-key", "the builder's key"):
        trust.allows(key.public.id, BUILDER, under=trust.version)
    if found.refusals:
        raise refused(found.refusals)
    return record


def already(
    out: Path, record: Record, trust: Trust, seal_key: bytes | None, gguf: Path | None
) -> dict[str, Any]:
    """What lies at `out`, where it is the bundle of this very verdict: a killed command goes on behind it."""
    same = (out / RELEASE / VERDICT).is_file() and sha256(out / RELEASE / VERDICT) == record.verdict_sha256
    with_file = any((place / GGUF).is_file() for place in (out, out / SEALED))
    if same and with_file is (gguf is None):
        how = "without" if gguf else "with"
        raise InputError(f"{out} already exists, {how} a file for llama.cpp; choose another place")
    if not same or not (found := verify(out, trust, seal_key=seal_key)).holds:
        raise InputError(f"{out} already exists; a bundle is never overwritten, so choose another place")
    return told(out, found.facts)


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A place beside `out` to fill; what a killed build left there goes first, and two builds take turns."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.building")
    with alone_in(out.parent):
        cleared(temporary)
        try:
            yield temporary
        finally:
            remove_tree(temporary)


# ------------------------------------------------------------------------------------------------------- laid out


def _fill(
    place: Path,
    record: Record,
    mode: Mode,
    trust: Trust,
    trust_file: Path,
    model: Path,
    seal_key: bytes | None,
    gguf: Path | None,
) -> None:
    """Every file of a bundle but the signature. seal_key: what the repository's files are encrypted with."""
    policy, evidence, verdict = record.policy, record.evidence, record.verdict
    assert policy is not None and evidence is not None and verdict is not None
    _record(place / RELEASE, record, trust_file)
    plain = place / SEALED if seal_key else place
    plain.mkdir(parents=True, exist_ok=True)
    sources = {name: model / name for name in (*(evidence.receipt or {}).get("files", {}), RECEIPT)}
    if gguf is not None:
        sources |= {GGUF: gguf, GGUF_RECEIPT: record.directory / EVIDENCE / GGUF_RECEIPT}
    for source in sources.values():
        if not source.is_file():
            raise InputError(f"{source}: not there, and it belongs to what was judged; export it again")
    text = licences.licence_text(policy.licences.model, record.directory / EVIDENCE)
    if text is None:
        raise Refused(
            "licence-differs",
            f"no text of {policy.licences.model}, which the weights go out under: put LICENSE into RUN/licences/model/ "
            "before the gate",
        )
    write_atomic(place / LICENSE, text)
    write_atomic(place / NOTICE, licences.notice(evidence.licences or {}))
    facts = {
        "name": verdict["model"]["name"],
        "version": policy.version,
        "mode": mode,
        "demo": trust.demo,
        "lab": trust.lab,
        "model": verdict["model"]["sha256"],
        "trust": {"version": trust.version, "sha256": trust.sha256},
        "behemoth": OURS,
    }
    names = dict.fromkeys((*sources, *OPEN_ALWAYS), "")
    receipt = read_json(sources[GGUF_RECEIPT]) if gguf is not None else None
    page = card.render(evidence, verdict, card_facts(facts, names, policy.licences.model, receipt))
    if seal_key is None:
        for name, source in sources.items():
            shutil.copyfile(source, place / name)
        write_atomic(place / CARD, page)
    else:
        facts["sealed"] = _seal(place, {**sources, CARD: page}, seal_key)
    manifest.write(place, facts)


def _record(place: Path, record: Record, trust_file: Path) -> None:
    """release/: the record of the run, its log up to the last of these approvals, and the trust file."""
    source = record.directory
    shutil.copytree(source / EVIDENCE, place / EVIDENCE)
    shutil.copyfile(source / POLICY, place / POLICY)
    shutil.copyfile(trust_file, place / TRUST)
    for one in record.approvals or ():
        (place / APPROVALS).mkdir(exist_ok=True)
        shutil.copyfile(source / APPROVALS / one.file, place / APPROVALS / one.file)
    if record.verdict_sha256:
        shutil.copyfile(source / VERDICT, place / VERDICT)
        shutil.copyfile(source / SIGNED, place / SIGNED)
    else:  # one that nobody has signed yet
        write_atomic(place / VERDICT, json.dumps(record.verdict, indent=1, ensure_ascii=False) + "\n")
    given = {one.sha256 for one in record.approvals or ()}
    last = max(
        (entry.number for entry in record.entries or () if entry.facts.get("sha256") in given),
        default=len(record.entries or ()),
    )
    write_atomic(place / LOG, journal.up_to(source / LOG, last))


def _seal(place: Path, sources: Mapping[str, Path | str], seal_key: bytes) -> dict[str, dict[str, Any]]:
    """Encrypt each file into sealed/; what each of them holds, by size and SHA-256."""
    sealed = {}
    page = place / f".{CARD}"  # in the clear for a moment, in a place that has no name yet
    for name, source in sources.items():
        if isinstance(source, str):
            write_atomic(page, source)
        path = page if isinstance(source, str) else source
        seal.seal(path, place / SEALED / name, seal_key, name)
        sealed[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    page.unlink(missing_ok=True)
    return sealed


def _finish(place: Path, key: PrivateKey, trust: Trust, seal_key: bytes | None) -> dict[str, Any]:
    """Sign what is listed, and look at it as a stranger would. Refused: it does not verify."""
    record = read_json(place / manifest.MANIFEST)
    oms.sign(place, key, name=record["name"], hashes=manifest.hashes(place, record))
    found = verify(place, trust, seal_key=seal_key)
    if not found.holds:
        raise refused(found.refusals)
    return told(place, found.facts)


def told(place: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle is, in a few words."""
    files = read_json(place / manifest.MANIFEST)["files"]
    kept = ("name", "version", "mode", "demo", "lab", "model", "sha256", "builder")
    size = sum(entry["bytes"] for entry in files.values())
    return {"bundle": str(place), **{key: facts[key] for key in kept}, "files": len(files), "bytes": size}


def _staged(closed: Mapping[str, Any], verdict: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    """What would make it open: every check that does not hold in that mode, and who has to sign."""
    open_checks = [check for check in verdict["checks"] if check["status"] != "holds"]
    lacks = [f"{check['sentence']}: {check['reason']}".removesuffix(": ") for check in open_checks]
    if open_checks:
        lacks.append("new evidence in which these hold, judged again (behemoth gate --mode open)")
    lacks.append(
        "the verdict for open, signed by an evaluator (behemoth gate --mode open --as NAME --key FILE)"
    )
    roles = [f"{count} of {role}" for role in ("evaluator", "approver") if (count := getattr(asked, role))]
    lacks.append(
        f"approvals for open: {', '.join(roles)}, by {asked.people} people or more (behemoth approve)"
    )
    lacks.append("a builder's signature (behemoth release --open)")
    told = {key: closed[key] for key in ("name", "version", "demo", "lab", "model", "builder")}
    return {
        "format": 1,
        **told,
        "closed": {"sha256": closed["sha256"]},
        "open": {"verdict": verdict["verdict"], "sentence": verdict["sentence"], "lacks": lacks},
    }
