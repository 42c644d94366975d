"""What a verdict rests on: a directory of evaluations and receipts, whole or not believed.

    evidence/facts.json              what is judged, against what, under which policy
    evidence/evaluations/NAME/       every item that the candidate and each baseline were asked
    evidence/receipt.json            transformers' agreement with the exported weights
    evidence/doctor.json             the silent faults that were looked for
    evidence/tamper.json judge.json  where the policy asks for them
    evidence/licences.json           the inputs' licences, their texts in licences/
    evidence/provenance.json         what the weights were made from, by what, on what
    evidence/MANIFEST.json           size and SHA-256 of every file; its own hash is the digest that people sign

The same in a run (RUN/gate/evidence) and in a bundle (release/evidence). Nothing here needs torch: whoever has the
bundle can compute the verdict again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behemoth.base.errors import DamagedError
from behemoth.base.files import read_json, verify_manifest, write_manifest
from behemoth.evals.contamination import FILE, read_verdicts
from behemoth.evals.records import EVALUATION, Evaluation, read_evaluation

CANDIDATE = "candidate"
EVALUATIONS, FACTS = "evaluations", "facts.json"
RECEIPT, DOCTOR, TAMPER, JUDGE = "receipt.json", "doctor.json", "tamper.json", "judge.json"
LICENCES, PROVENANCE = "licences.json", "provenance.json"


@dataclass(frozen=True)
class Evidence:
    """facts: {"model": {"name", "sha256", "spec"}, "run", "policy_sha256", "baselines": {NAME: {"spec", "sha256"}},
    "tasks": {NAME: {"sha256", "items"}}, "earlier_looks", "finished", "parameters": {"all", "active"},
    "context_length", "turns"}.

    evaluations: by name, `CANDIDATE` and the baselines. marks: of those held against the training text, each item's
    verdict by task. None: that piece was not gathered.
    """

    sha256: str
    facts: Mapping[str, Any]
    evaluations: Mapping[str, Evaluation]
    marks: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    receipt: Mapping[str, Any] | None = None
    doctor: Mapping[str, Any] | None = None
    tamper: Mapping[str, Any] | None = None
    judge: Mapping[str, Any] | None = None
    licences: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


def seal(directory: Path) -> str:
    """List every file of a finished evidence directory in its manifest; the digest of it."""
    return str(write_manifest(directory)["sha256"])


def digest(directory: Path) -> str:
    """What people sign. DamagedError: a file was changed, added or taken away since."""
    return str(verify_manifest(directory)["sha256"])


def read_evidence(directory: Path) -> Evidence:
    """All of it, held to its manifest and every evaluation to its hashes. DamagedError, InputError: it is not whole."""
    sha256 = digest(directory)
    facts = read_json(directory / FACTS)
    evaluations, marks = {}, {}
    for place in sorted(path.parent for path in (directory / EVALUATIONS).glob(f"*/{EVALUATION}")):
        evaluations[place.name] = read_evaluation(place)
        if (place / FILE).exists():
            marks[place.name] = read_verdicts(place)
    judged = evaluations.get(CANDIDATE)
    if judged is None or judged.sha256 != facts["model"]["sha256"]:
        raise DamagedError(directory / EVALUATIONS, "holds no evaluation of the model in facts.json")
    pieces = {
        key: read_json(directory / name) if (directory / name).exists() else None
        for key, name in (
            ("receipt", RECEIPT),
            ("doctor", DOCTOR),
            ("tamper", TAMPER),
            ("judge", JUDGE),
            ("licences", LICENCES),
            ("provenance", PROVENANCE),
        )
    }
    return Evidence(sha256, facts, evaluations, marks, **pieces)
