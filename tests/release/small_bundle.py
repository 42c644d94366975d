"""A tiny run that was judged, approved and released, in about a second: real weights (drawn, not trained), a policy,
evidence with items made up on purpose, the gate's own verdict, real signatures, and bundles of it.

    make(directory, **more) -> Small      a run with a verdict and two approvals, and the lab that signed them
    copied(directory, **more) -> Small    the same, made once per session and copied
    released(directory, mode) -> Small    the same with a bundle of it
    resign(small)                         manifest and model.sig anew, by the builder: only the record can refuse it
"""

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from behemoth.base.files import sha256, write_json, write_manifest
from behemoth.bundle import dsse, journal, manifest, oms
from behemoth.bundle.keys import PrivateKey, generate
from behemoth.bundle.trust import Trust, TrustedKey, read_trust, write_trust
from behemoth.evals.records import Evaluation, TaskResult, write_evaluation
from behemoth.model.identity import digest, file_hashes
from behemoth.release import approvals, evidence, package, provenance
from behemoth.release.gate import decide
from behemoth.release.policy import load_policy

AT = "2026-03-01T12:00:00Z"
SEAL_KEY = bytes(range(32))
PEOPLE = {
    "builder": ("Ada", ("builder",)),
    "evaluator": ("Bo", ("evaluator",)),
    "cy": ("Cy", ("approver",)),
    "di": ("Di", ("approver",)),
    "both": ("Ada", ("approver",)),
    "old": ("Old", ("approver", "builder", "evaluator")),
}
POLICY = """
name = "small"
version = "1.0"
suite = "arithmetic"
[baselines]
base = "student"
[[claims]]
name = "sums"
says = "adds better than the model it was made from"
task = "sums"
is = "better"
than = "base"
margin = 0.1
items = 100
[[claims]]
name = "names"
says = "names things at least half of the time"
task = "names"
is = "at least"
bar = 0.5
[safety]
waived = "it adds numbers and says nothing else"
[tamper]
waived = "it was taught no restraint that could be undone"
[licences]
allow = ["CC0-1.0"]
model = "Apache-2.0"
[approvals.open]
approver = 2
people = 2
[approvals.closed]
approver = 1
"""

DIGESTS = {"sums": "5" * 64, "names": "e" * 64}  # of the questions
LOCK = {"sha256": "0" * 64, "distributions": []}
RECORD = {"begun": AT, "behemoth": "0.1.0", "commit": "c" * 40, "device": "cpu", "lock": LOCK}


@dataclass(frozen=True)
class Small:
    """run: with gate/ and export/. keys: by PEOPLE's words, and "root". trust: the file."""

    run: Path
    trust: Path
    keys: dict[str, PrivateKey]
    bundle: Path = Path()

    @property
    def gate(self) -> Path:
        return self.run / "gate"

    @property
    def model(self) -> Path:
        return self.run / "export" / "student"

    @property
    def lab(self) -> Trust:
        return read_trust(self.trust)

    def build(self, out: Path, mode="open", key="builder", **more) -> dict:
        """A bundle of the run as it now is."""
        seal_key = None if mode == "open" else SEAL_KEY
        more = {"key": self.keys[key], "trust": self.trust, "model": self.model, "seal_key": seal_key} | more
        return package.build(self.run, mode, out, **more)


# --------------------------------------------------------------------------------------------------------- the lab


@functools.cache
def private_keys() -> dict[str, PrivateKey]:
    return {name: generate() for name in (*PEOPLE, "root", "stranger")}


def make_lab(directory: Path, *, version: int = 1, **changes) -> Path:
    """trust.json in `directory`, signed by the root of the session's keys. changes: of `Trust`; keys: {ID: changes}."""
    keys = private_keys()
    known = {keys["root"].public.id: TrustedKey(keys["root"].public, "root", ())}
    known |= {keys[word].public.id: TrustedKey(keys[word].public, *facts) for word, facts in PEOPLE.items()}
    for word, change in changes.pop("people", {}).items():
        known[keys[word].public.id] = replace(known[keys[word].public.id], **change)
    trust = Trust("lab", version, AT, False, (keys["root"].public.id,), known)
    directory.mkdir(parents=True, exist_ok=True)
    write_trust(directory / "trust.json", replace(trust, **changes), keys["root"])
    return directory / "trust.json"


# --------------------------------------------------------------------------------------------------------- the run


def make(
    directory: Path,
    *,
    mode="open",
    policy=POLICY,
    right=0.9,
    seed=0,
    approvers=("cy", "di"),
    evaluator="evaluator",
    export: Path | None = None,
    gguf: Path | bool = False,
) -> Small:
    """A run in `directory`/run, judged for `mode`; right: how many of its sums the candidate has right.

    export: a real exported directory to take instead of weights that nobody can load. gguf: a file
    for llama.cpp whose receipt is to be evidence too; True: one made up.
    """
    run = directory / "run"
    small = Small(run, make_lab(directory / "lab"), private_keys())
    make_model(small.model, seed) if export is None else shutil.copytree(export, small.model)
    (run / "gate").mkdir(parents=True)
    (run / "gate" / "policy.toml").write_text(policy)
    log = run / "gate" / "log.jsonl"
    rules = load_policy(run / "gate" / "policy.toml")
    fixed = {"name": rules.name, "sha256": rules.sha256, "asked_before": [], "tasks": DIGESTS}
    journal.append(log, "policy", fixed, at=AT)
    found = make_evidence(small, rules.sha256, right, make_gguf(small) if gguf is True else gguf)
    told = {"sha256": found, "model": digest(file_hashes(small.model)), "policy": rules.sha256}
    journal.append(log, "evidence", told, at=AT)
    judge(small, mode, evaluator)
    for who in approvers:
        approve(small, who)
    return small


def make_model(place: Path, seed: int) -> None:
    """The files of an export. Nobody loads these weights here: their bytes are what matters."""
    place.mkdir(parents=True)
    write_json(place / "config.json", {"model_type": "llama", "hidden_size": 8, "behemoth": {"turns": 0}})
    write_json(place / "tokenizer.json", {"model": {"vocab": {}}})
    draws = np.random.default_rng(seed).standard_normal((64, 8)).astype(np.float32)
    save_file({"model.embed_tokens.weight": draws}, place / "model.safetensors")
    files = {path.name: sha256(path) for path in sorted(place.iterdir())}
    checks = [{"name": "tensors", "value": 0, "limit": 0, "ok": True, "note": "1 tensors, bit for bit"}]
    versions = {"python": "3.11", "torch": "2.11", "transformers": "5.17", "tokenizers": "0.22"}
    receipt = {"verdict": "match", "checks": checks, "files": files, "versions": versions}
    write_json(place / "receipt.json", receipt)


def make_evidence(small: Small, policy_sha256: str, right: float, gguf: Path | bool = False) -> str:
    """What `gating` gathers, with answers made up: the digest of it."""
    place, sha = small.gate / "evidence", digest(file_hashes(small.model))
    base = "b" * 64
    tasks = {}
    for name, shares in (("candidate", (right, 0.8)), ("base", (0.3, 0.3))):
        model = sha if name == "candidate" else base
        answered = {
            task: task_of(task, share, model) for task, share in zip(("sums", "names"), shares, strict=True)
        }
        kept = Evaluation(
            name, model, name, "small", answered, "behemoth", "bf16", "cpu", "chat", "0.1.0", AT
        )
        write_evaluation(place / "evaluations" / name, kept)
        tasks = {task: {"sha256": one.sha256, "items": len(one.records)} for task, one in answered.items()}
    finding = {
        "check": "weights are numbers",
        "looked_at": "512 weights",
        "number": 0.0,
        "limit": "at most 0",
    }
    finding |= {"verdict": "ok", "meaning": "weights that are nan", "todo": "", "model": "student"}
    write_json(place / "doctor.json", {"name": "student", "findings": [finding], "seconds": 0.1, "notes": []})
    shutil.copyfile(small.model / "receipt.json", place / "receipt.json")
    text = {"name": "text", "stage": "pretrain", "licence": "CC0-1.0", "documents": 12, "origin": "text",
            "made_here": False, "texts": []}  # fmt: skip
    write_json(place / "licences.json", {"format": 1, "inputs": [text], "model_texts": []})
    if gguf:
        shutil.copyfile(gguf.with_name("gguf-receipt.json"), place / "gguf-receipt.json")
    told = {"name": "run", "member": "student", "sha256": sha}
    write_json(small.run / "record.json", RECORD)
    make_checkpoint(small)
    write_json(place / "provenance.json", provenance.gather(small.run, told))
    facts = {
        "model": {"name": "run-student", "member": "student", "sha256": sha},
        "run": "run",
        "policy_sha256": policy_sha256,
        "baselines": {"base": {"spec": "student", "sha256": base}},
        "tasks": tasks,
        "earlier_looks": [],
        "finished": AT,
        "parameters": {"all": 512, "active": 512},
        "context_length": 64,
        "turns": 0,
    }
    write_json(place / "facts.json", facts)
    return evidence.seal(place)


def make_gguf(small: Small) -> Path:
    """Bytes in the place of a file for llama.cpp: what counts here is whose word stands for them."""
    place = small.run / "export" / "gguf"
    place.mkdir()
    (place / "model.gguf").write_bytes(b"GGUF" + bytes(200))
    limits = {"architecture": "llama", "context": 32, "of": 64, "reasons": ["chunks"], "said": "up to 32"}
    receipt = {
        "verdict": "match",
        "checks": [],
        "limits": limits,
        "files": {"model.gguf": sha256(place / "model.gguf")},
    }
    receipt |= {"source": {"name": "student", "sha256": digest(file_hashes(small.model))}, "versions": {}}
    write_json(place / "gguf-receipt.json", receipt)
    return place / "model.gguf"


def make_checkpoint(small: Small) -> None:
    """The weights as training left them, where provenance looks for them."""
    save = small.run / "pretrain" / "checkpoints" / "step-000010"
    weights = save / "weights" / "student"
    weights.mkdir(parents=True)
    for path in small.model.glob("*.safetensors*"):
        shutil.copyfile(path, weights / path.name)
    write_manifest(save, step=10)
    (small.run / "pretrain" / "metrics.jsonl").write_text("")


def task_of(name: str, share: float, model: str, items: int = 100) -> TaskResult:
    """The first `share` of the items right."""
    records = [
        {
            "item": f"{name} {n}", "cluster": "", "model": model, "prompt": f"What is {n}?", "output": str(n),
            "answer": str(n), "read": str(n), "score": float(n < share * items), "metrics": {}, "why": "", "error": "",
            "seconds": 0.001, "tokens": 2, "truncated": False, "attempts": 1, "finish": "stop",
        }
        for n in range(items)
    ]  # fmt: skip
    return TaskResult(
        name, "exact_match", "generate", DIGESTS[name], records, source="generated", licence="CC0-1.0"
    )


def judge(
    small: Small, mode="open", evaluator: str | None = "evaluator", verdict: dict | None = None
) -> dict:
    """verdict.json, its entry in the log, and the evaluator's signature; verdict: another one than the gate's."""
    gate = small.gate
    found = verdict or decide(
        load_policy(gate / "policy.toml"), mode, evidence.read_evidence(gate / "evidence")
    )
    write_json(gate / "verdict.json", found)
    facts = {"sha256": sha256(gate / "verdict.json"), "verdict": found["verdict"], "mode": found["mode"]}
    entry = journal.append(gate / "log.jsonl", "verdict", facts, at=AT)
    if evaluator:
        told = approvals.verdict_statement(found, facts["sha256"], entry.sha256, small.lab.demo)
        dsse.sign(told, dsse.IN_TOTO, [small.keys[evaluator]]).write(gate / "verdict.dsse.json")
    return found


def approve(small: Small, who: str, *, file="", log=True, **said) -> Path:
    """An approval by `who` of PEOPLE. said: what it says otherwise than it should."""
    gate, by = small.gate, PEOPLE.get(who, (who,))[0]
    verdict = json.loads((gate / "verdict.json").read_text())
    facts = {
        "by": by,
        "role": "approver",
        "mode": verdict["mode"],
        "note": "",
        "at": AT,
        "demo": small.lab.demo,
    }
    facts |= {"verdict_sha256": sha256(gate / "verdict.json")} | said
    told = approvals.approval_statement(verdict, **facts)
    path = gate / "approvals" / f"{file or who}.json"
    dsse.sign(told, dsse.IN_TOTO, [small.keys[who]]).write(path)
    if log:
        journal.append(
            gate / "log.jsonl", "approval", {"by": by, "role": facts["role"], "sha256": sha256(path)}, at=AT
        )
    return path


# ------------------------------------------------------------------------------------------------------ the bundle


@functools.cache
def _once(mode: str, bundled: bool, **more) -> Small:
    place = Path(tempfile.mkdtemp(prefix="behemoth-small-bundle-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    small = make(place, mode=mode, **more)
    if bundled:
        file = small.run / "export" / "gguf" / "model.gguf"
        small.build(place / "bundle", mode, gguf=file if file.exists() else None)
    return replace(small, bundle=place / "bundle")


def copied(directory: Path, mode="open", bundled=False, **more) -> Small:
    """As `make`, made once and copied into `directory`."""
    made = _once(mode, bundled, **more)
    shutil.copytree(made.run.parent, directory, dirs_exist_ok=True)
    return replace(
        made, run=directory / "run", trust=directory / "lab" / "trust.json", bundle=directory / "bundle"
    )


def released(directory: Path, mode="open", **more) -> Small:
    """A run and its bundle, to do with as one likes."""
    return copied(directory, mode, bundled=True, **more)


def resign(small: Small, key="builder", **facts) -> None:
    """List and sign the bundle's files as they now are: an attack by whoever has the builder's key."""
    record = json.loads((small.bundle / manifest.MANIFEST).read_text())
    kept = {name: value for name, value in record.items() if name not in ("format", "files")}
    record = manifest.write(small.bundle, kept | facts)
    hashes = manifest.hashes(small.bundle, record)
    oms.sign(small.bundle, small.keys[key], name=(kept | facts)["name"], hashes=hashes)
