"""All checks in order, one patient at a time; and how the outcome is shown.

A check that finds its material missing says "not checked" and why; one that cannot finish at all is a fault, with
what it raised: a model that cannot be examined is not well.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from behemoth.base.logs import table
from behemoth.doctor import adapters, attention, files, learning, routing, weights
from behemoth.doctor.patient import Check, Finding, NotChecked, Patient

CHECKS: dict[str, Check] = {
    **weights.CHECKS,
    **routing.CHECKS,
    **attention.CHECKS,
    **learning.CHECKS,
    **adapters.CHECKS,
    **files.CHECKS,
}


@dataclass(frozen=True)
class Examination:
    """Every finding about one model, or about the models of a recipe."""

    name: str
    findings: list[Finding]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "fault"]


def examine_patient(patient: Patient, checks: Mapping[str, Check] = CHECKS) -> list[Finding]:
    return [finding for name, check in checks.items() for finding in findings_of(name, check, patient)]


def findings_of(name: str, check: Check, patient: Patient) -> list[Finding]:
    """What one check says of one patient."""
    try:
        found = check(patient)
    except NotChecked as why:
        found = Finding(name, "", None, "", "not checked", str(why))
    except Exception as error:  # transformers and all of the house are called: anything may come
        said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        todo = "mend what it stumbled over, then ask again"
        found = Finding(name, "", None, "", "fault", f"the check could not finish: {said}", todo)
    several = found if isinstance(found, list) else [found]
    return [replace(one, check=one.check or name, model=patient.name) for one in several]


def timed(name: str, patients: Sequence[Patient], notes: Sequence[str] = ()) -> Examination:
    began = time.perf_counter()
    findings = [finding for patient in patients for finding in examine_patient(patient)]
    return Examination(name, findings, time.perf_counter() - began, tuple(notes))


def as_json(examination: Examination) -> dict[str, Any]:
    """For programs; `ok` is the verdict on all."""
    return dataclasses.asdict(examination) | {"ok": not examination.faults}


def show(examination: Examination) -> None:
    """A table of all checks, then what was found wrong, with what to do."""
    several = len({finding.model for finding in examination.findings}) > 1
    columns = [*(["model"] if several else []), "check", "verdict", "number", "limit", "looked at"]
    rows = [
        [
            *([f.model] if several else []),
            f.check,
            f.verdict,
            "" if f.number is None else f"{f.number:.3g}",
            f.limit,
            f.looked_at or f.meaning,
        ]
        for f in examination.findings
    ]
    table(f"{examination.name}: {verdict(examination)}", columns, rows)
    for finding in examination.findings:
        if finding.verdict in ("fault", "warning"):
            which = f"{finding.model}: " if several else ""
            print(f"{finding.verdict}: {which}{finding.check}\n  {finding.meaning}\n  {finding.todo}")
    for note in examination.notes:
        print(f"note: {note}")


def verdict(examination: Examination) -> str:
    """One line: how many checks, and what they came to."""
    counts = {
        kind: sum(finding.verdict == kind for finding in examination.findings)
        for kind in ("ok", "warning", "fault", "not checked")
    }
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{said} in {examination.seconds:.0f} s"
