"""`behemoth release`, `behemoth verify` and `behemoth publish`: the last steps of a model on its way out.

What a bundle is, is written in release/package.py, what is checked of one in release/verify.py. Checking starts without
torch; only making a file for llama.cpp needs it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import read_json, write_json
from behemoth.base.logs import say, table
from behemoth.base.units import counted
from behemoth.bundle import journal
from behemoth.bundle.keys import PrivateKey, read_private
from behemoth.bundle.manifest import MANIFEST, SIGNATURE
from behemoth.bundle.seal import read_seal_key
from behemoth.bundle.trust import Trust, read_trust
from behemoth.release import package
from behemoth.release import verify as checking
from behemoth.release.evidence import FACTS
from behemoth.release.policy import Mode
from behemoth.release.publish import Plan
from behemoth.release.publish import publish as publishing
from behemoth.release.record import EVIDENCE, LOG, plain
from behemoth.release.verify import GGUF, GGUF_RECEIPT, Verification, is_staged

SHOWN = 40  # lines of one kind; a bundle can be wrong in a hundred thousand places


def release(
    run: str,
    open_: Path | None,
    closed: Path | None,
    staged: Path | None,
    as_: str,
    key: Path,
    trust: Path,
    seal_key: Path | None,
    as_json: bool,
) -> None:
    """Build one bundle, and say what it is."""
    asked = {"open": open_, "closed": closed, "staged": staged}
    given = {way: place for way, place in asked.items() if place is not None}
    if len(given) != 1:
        raise InputError("give one of --open DIR, --closed DIR and --staged DIR, and not several")
    (way, out), private = next(iter(given.items())), read_private(key)
    lab = read_trust(trust, remember=True)
    if lab.key(private.public.id).name != as_:
        raise InputError(
            f"--as {as_}: the key in {key} is {lab.key(private.public.id).name}'s; sign as yourself"
        )
    if way == "open" and seal_key is not None:
        raise InputError(
            "--seal-key is for --closed and --staged; an open bundle holds nothing that is encrypted"
        )
    if way != "open" and seal_key is None:
        raise InputError(
            f"--{way} needs --seal-key FILE: 32 random bytes as base64 (openssl rand -base64 32)"
        )
    directory = Path(run) if Path(run).exists() else Path(run.rpartition(":")[0])
    secret = read_seal_key(seal_key) if seal_key else None
    found = released(directory, way, out, private, trust, secret)
    if as_json:
        print(json.dumps(found))
        return
    demo = " (demo)" if found["demo"] else ""
    say(f"{out}: {found['name']} {found['version']}{demo}, {way}")
    if way == "staged":
        print("to make it open:", *(f"  {what}" for what in found["open"]["lacks"]), sep="\n")
    else:
        print(
            f"{counted(found['files'], 'file')}, {found['bytes']:,} bytes, SHA-256 of the manifest {found['sha256']}"
        )
        print(f"check it: behemoth verify {out} --trust {trust}")


def released(
    run: Path,
    way: str,
    out: Path,
    key: PrivateKey,
    trust: Path,
    seal_key: bytes | None = None,
) -> dict[str, Any]:
    """Build the bundle and note it in the log, once. way: open, closed or staged."""
    gate = run / package.GATE
    facts = gate / EVIDENCE / FACTS
    if not facts.is_file():
        raise InputError(f"{run} has no verdict to release on; make one: behemoth gate {run} --policy FILE")
    model = run / "export" / str(read_json(facts)["model"]["member"])
    mode: Mode = "open" if way == "open" else "closed"
    package.ready(gate, mode, key, read_trust(trust))  # before minutes are spent on a file for llama.cpp
    gguf = (
        gate / EVIDENCE / GGUF_RECEIPT
    ).is_file()  # as the policy asks; nobody else answers for such a file
    with tempfile.TemporaryDirectory(prefix="behemoth-gguf-") as aside:
        file = write_gguf(model, Path(aside)) if gguf else None
        if way == "staged":
            assert seal_key is not None
            found = package.stage(run, out, key=key, trust=trust, model=model, seal_key=seal_key, gguf=file)
        else:
            found = package.build(
                run, mode, out, key=key, trust=trust, model=model, seal_key=seal_key, gguf=file
            )
    told = {key: found[key] for key in ("name", "version", "builder")} | {"way": way}
    told["sha256"] = found["closed"]["sha256"] if way == "staged" else found["sha256"]
    if not any(entry.kind == "release" and entry.facts == told for entry in journal.read(gate / LOG)):
        journal.append(gate / LOG, "release", told)
    return found


def write_gguf(model: Path, directory: Path) -> Path:
    """model.gguf and its receipt in `directory`: the same bytes each time, so that evidence keeps the receipt alone."""
    from behemoth.export import gguf
    from behemoth.model.open import open_model

    write_json(directory / GGUF_RECEIPT, gguf.write_gguf(open_model(model), directory / GGUF))
    return directory / GGUF


def verify(bundle: Path, trust: Path, seal_key: Path | None, as_json: bool) -> None:
    """Say what is established and what is not, and leave with 1 where anything is refused."""
    found = checked(bundle, read_trust(trust, remember=True), read_seal_key(seal_key) if seal_key else None)
    if trust.resolve().is_relative_to(bundle.resolve()):
        found.not_established.insert(
            0, "that this is the lab's trust file: it came with the bundle, so the bundle vouches for itself"
        )
    if as_json:
        refusals = [{"code": one.code, "message": one.message} for one in found.refusals]
        told = {
            "established": found.established,
            "not_established": found.not_established,
            "facts": found.facts,
        }
        print(json.dumps({"bundle": str(bundle), "holds": found.holds, "refusals": refusals, **told}))
        sys.exit(0 if found.holds else AnswerIsNo.exit_code)
    show(bundle, found)
    if not found.holds:
        raise AnswerIsNo(
            f"{bundle} is refused: {counted(len(found.refusals), 'reason')}, the gravest first above"
        )


def checked(bundle: Path, trust: Trust, seal_key: bytes | None = None) -> Verification:
    """InputError: there is no such bundle."""
    if not bundle.is_dir():
        raise InputError(f"{bundle}: no such directory; give one that behemoth release made")
    if not (bundle / MANIFEST).exists() and any(bundle.glob("*/checkpoints")):
        raise InputError(f"{bundle} is a run; of a demo run the bundle is {bundle / 'release'}")
    return checking.verify(bundle, trust, seal_key=seal_key)


def show(bundle: Path, found: Verification) -> None:
    if found.facts:
        name, version, mode = (plain(found.facts[key])[:120] for key in ("name", "version", "mode"))
        print(f"{name} {version}, {mode}{', demo' if found.facts['demo'] else ''}: {bundle}")
        if "sha256" in found.facts:
            print(f"SHA-256 of the manifest {found.facts['sha256']}")
    for title, lines in (
        ("refused", [f"{one.code}: {one.message}" for one in found.refusals]),
        ("established", found.established),
        ("not established", found.not_established),
    ):
        if lines:
            print(f"\n{title}")
            print("\n".join(f"  {line}" for line in lines[:SHOWN]))
        if len(lines) > SHOWN:
            print(f"  and {len(lines) - SHOWN:,} more (--json)")


def publish(bundle: Path, to: str, trust: Path, really: bool, as_json: bool) -> None:
    """Verify, then say what would go where; with `really` do it."""
    if is_staged(bundle):
        raise InputError(f"{bundle} is staged; publish {bundle / 'closed'}, or make it open first")
    found = checked(bundle, read_trust(trust, remember=True))
    if not found.holds:
        show(bundle, found)
        raise AnswerIsNo(f"{bundle} does not verify, so it is not published")
    verified = {MANIFEST: found.facts["sha256"], SIGNATURE: found.facts["signature"]}
    plan = publishing(bundle, to, really=really, verified=verified)
    if as_json:
        print(json.dumps(plan.as_dict() | {"published": really}))
    else:
        tell(plan, really)
    if plan.problems:
        raise AnswerIsNo("\n".join(plan.problems))


def tell(plan: Plan, really: bool) -> None:
    rows = [[file.state, f"{file.bytes:,}", file.name] for file in plan.files]
    rows += [["removed", "", name] for name in plan.removed]
    table(f"{plan.name} {plan.version}, {plan.mode}, to {plan.to}: {plan.there}", ["", "bytes", "file"], rows)
    if really:
        print("all of it was there already" if plan.done else f"published: {plan.bytes:,} bytes")
    elif not plan.problems:
        print("nothing was done; --really does it")
