"""The record of a decision, read and held against itself: the same in a run (gate/) and in a bundle (release/).

    policy.toml  evidence/  verdict.json  verdict.dsse.json  approvals/*.json  log.jsonl

Whoever builds a bundle and whoever receives one ask the same questions of it: is every file one that has a single
meaning; did the policy come first; is the evidence the one that was logged; does the verdict follow from both, computed
again here; did an evaluator and enough people put their names to this very verdict. Everything that is wrong is told
at once, and nothing that a hostile file does to its reader is more than a refusal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behemoth.base.files import MANIFEST
from behemoth.bundle import journal
from behemoth.bundle.dsse import Envelope, parse, read_limited
from behemoth.bundle.names import APPROVALS, EVIDENCE, LOG, POLICY, SIGNED, VERDICT
from behemoth.bundle.refusals import Refusal, Refused
from behemoth.bundle.trust import Trust
from behemoth.release.approvals import Approval, check, check_verdict, read_approvals
from behemoth.release.evidence import Evidence, read_evidence
from behemoth.release.gate import decide
from behemoth.release.policy import Mode, Policy, load_policy

MOST_BYTES = 1 << 30  # of all of a record
MOST_POLICY = 64 << 10  # hundreds of claims; each of them is computed again
MOST_LINE = 16 << 20  # of one line of JSON
MOST_LINES = 1_000_000  # of all of a record: answers to questions
MOST_WORK = 2_000_000  # claims times the items of their tasks; each is drawn from again ten thousand times
MOST_TEXT = 32 << 20  # of any other file of it
CLOSE = 1e-9  # relative: two machines add in another order
STORY = {
    "verdict": VERDICT,
    "evidence": EVIDENCE,
    "policy": POLICY,
}  # an entry's kind, and what its voiding names
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass
class Findings:
    """What is established, in sentences; what is not; and why the answer is no."""

    established: list[str] = field(default_factory=list)
    not_established: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, code: str, message: str) -> None:
        self.refusals.append(Refusal(code, plain(message)))

    @contextmanager
    def refusing(self, code: str, what: str) -> Iterator[None]:
        """Whatever goes wrong inside is a fault of what is read, and refused: with its own code where it has one."""
        try:
            yield
        except Refused as error:
            for one in error.refusals:
                self.refuse(one.code, f"{what}: {one.message}")
        except Exception as error:  # a hostile file reaches readers that were written for our own
            said = str(error) or type(error).__name__
            self.refuse(code, f"{what}: {said.splitlines()[0][:300]}")

    @contextmanager
    def establishing(self, code: str, sentence: str) -> Iterator[None]:
        """`refusing`, and `sentence` is established where nothing was refused meanwhile."""
        before = len(self.refusals)
        with self.refusing(code, sentence):
            yield
        if len(self.refusals) == before:
            self.established.append(sentence)


def plain(text: str) -> str:
    """A stranger's text as a terminal may show it: what is not seen, or moves what is, becomes its number."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@dataclass
class Record:
    """What could be read of it; None for what could not, and the findings say why."""

    directory: Path
    policy: Policy | None = None
    evidence: Evidence | None = None
    verdict: dict[str, Any] | None = None
    verdict_sha256: str = ""
    approvals: list[Approval] | None = None
    entries: list[journal.Entry] | None = None


def read_record(directory: Path, found: Findings) -> Record:
    """Read the files, each strictly. Links must have been ruled out before."""
    record = Record(directory)
    for name in (POLICY, f"{EVIDENCE}/{MANIFEST}", VERDICT, LOG):
        if not (directory / name).is_file():
            found.refuse("no-record", f"{name}: not there; it is written by behemoth gate")
    if not bounded(directory, found) or not unambiguous(directory, found):
        return record
    with found.refusing("malformed", POLICY):
        record.policy = load_policy(directory / POLICY)
    with found.refusing("malformed", VERDICT):
        data = read_limited(directory / VERDICT)
        record.verdict, record.verdict_sha256 = (
            _verdict(parse(data, VERDICT)),
            hashlib.sha256(data).hexdigest(),
        )
    with found.refusing("evidence-damaged", EVIDENCE):
        listed_within(directory / EVIDENCE)
        record.evidence = read_evidence(directory / EVIDENCE)
    with found.refusing("log-broken", LOG):
        record.entries = journal.read(directory / LOG)
    with found.refusing("approval-malformed", APPROVALS):
        record.approvals = read_approvals(directory / APPROVALS)
    return record


def files_in(directory: Path) -> list[Path]:
    """The files of a record; what else lies in RUN/gate is no part of it."""
    single = [directory / name for name in (POLICY, VERDICT, SIGNED, LOG)]
    inside = [path for name in (EVIDENCE, APPROVALS) for path in sorted((directory / name).rglob("*"))]
    return [path for path in (*single, *inside) if path.is_file()]


def bounded(directory: Path, found: Findings) -> bool:
    """Whether nothing in it is larger than a reader can bear."""
    sizes = {path: path.stat().st_size for path in files_in(directory)}
    for path, size in sizes.items():
        most = {".jsonl": MOST_BYTES, ".toml": MOST_POLICY}.get(path.suffix, MOST_TEXT)
        if size > most:
            found.refuse("too-large", f"{path.relative_to(directory)}: {size:,} bytes")
    if sum(sizes.values()) > MOST_BYTES:
        found.refuse(
            "too-large", f"the record has {sum(sizes.values()):,} bytes; {MOST_BYTES:,} are the most"
        )
    return not any(refusal.code == "too-large" for refusal in found.refusals)


def unambiguous(directory: Path, found: Findings) -> bool:
    """Whether every JSON file means the same to every reader: no key twice, no NaN, not nested without end."""
    before, lines = len(found.refusals), 0
    for path in files_in(directory):
        name = str(path.relative_to(directory))
        with found.refusing("malformed", name):
            if path.suffix == ".json":
                parse(read_limited(path), name)
            elif path.suffix == ".jsonl" and name != LOG:  # read line by line by its own reader
                for line in _lines(path):
                    if (lines := lines + 1) > MOST_LINES:
                        raise Refused("too-large", f"the record has more than {MOST_LINES:,} lines")
                    parse(line, name)
    return len(found.refusals) == before


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while line := file.readline(MOST_LINE):
            if not line.endswith(b"\n"):
                raise Refused("malformed", "a line that does not end, or is too long")
            yield line


def listed_within(directory: Path) -> None:
    """Refused unless the evidence's manifest lists exactly the files that lie in it, by names that stay inside."""
    listed = parse(read_limited(directory / MANIFEST), MANIFEST)["files"]
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if wrong := {*listed, MANIFEST} ^ there:
        raise Refused("evidence-damaged", f"{ascii(min(wrong))[:120]}: listed or there, and not both")


def _verdict(value: Any) -> dict[str, Any]:
    """The parts that everything else rests on, of the kind they have to be."""
    model, policy, evidence = value["model"], value["policy"], value["evidence"]
    texts = [model["name"], model["sha256"], policy["sha256"], evidence["sha256"], evidence["finished"]]
    if not all(isinstance(text, str) for text in (value["verdict"], value["mode"], *texts)):
        raise Refused("malformed", "a name, a digest or a time is not text")
    return dict(value)


# ---------------------------------------------------------------------------------------------- held against itself


def check_record(
    record: Record,
    mode: Mode,
    trust: Trust,
    found: Findings,
    under: int | None = None,
) -> None:
    """Every question that policy, evidence, verdict, log and approvals answer among themselves, and under `trust`."""
    verdict, policy, evidence = record.verdict, record.policy, record.evidence
    if verdict is None:
        return
    if policy is not None:
        with found.establishing("malformed", f"the policy is the one judged by: {policy.sha256[:16]}"):
            check_policy(policy, verdict, evidence, found)
    if evidence is not None and evidence.sha256 != verdict["evidence"]["sha256"]:
        found.refuse(
            "evidence-changed", f"the evidence is {evidence.sha256[:16]}, and the verdict rests on another"
        )
    if verdict["mode"] != mode:
        found.refuse(
            "verdict-of-another-mode", f"the verdict is for mode {verdict['mode'][:20]!r}, and this is {mode}"
        )
    if verdict["verdict"] != "release":
        found.refuse(
            "not-released", f"the verdict is {verdict['verdict'][:20]}: {_first(verdict.get('reasons'))}"
        )
    if record.entries is not None:
        with found.establishing(
            "log-differs", "the log: first the policy, then the evidence, then this verdict"
        ):
            check_log(record.entries, verdict, record.verdict_sha256, evidence, found)
        with found.establishing("verdict-unsigned", "an evaluator signed the verdict, and the log up to it"):
            check_signed(record, mode, trust, found, under)
    worded = all(
        refusal.code != "other-wording" for refusal in found.refusals
    )  # else sentences are nothing to compare
    if policy is not None and evidence is not None and worded:
        with found.establishing(
            "verdict-differs", "the verdict follows from policy and evidence, computed again"
        ):
            bearable(policy, mode, evidence)
            if wrong := next(differences(verdict, decide(policy, mode, evidence)), None):
                found.refuse("verdict-differs", f"computed again, {wrong}")
    if policy is not None and record.approvals is not None:
        people = ", ".join(f"{one.said['by']} ({one.said['role']})" for one in record.approvals)
        with found.establishing("approval-malformed", f"approved by {people or 'nobody'}"):
            given = record.approvals
            found.refusals += check(policy, mode, verdict, record.verdict_sha256, given, trust, under)
            since = since_verdict(record.entries or ())
            logged = {entry.facts.get("sha256") for entry in since if entry.kind == "approval"}
            for one in given:
                if one.sha256 not in logged:
                    found.refuse(
                        "approval-not-logged", f"approval {one.file} is not in the log of this verdict"
                    )


def check_policy(policy: Policy, verdict: dict[str, Any], evidence: Evidence | None, found: Findings) -> None:
    if policy.sha256 != verdict["policy"]["sha256"]:
        found.refuse(
            "policy-changed", f"the policy is {policy.sha256[:16]}, and the verdict was reached under another"
        )
    if evidence is not None and policy.sha256 != evidence.facts["policy_sha256"]:
        found.refuse("policy-changed", "the evidence was gathered under another policy")


def bearable(policy: Policy, mode: Mode, evidence: Evidence) -> None:
    """Refused: computing the verdict again would take a reader minutes; no policy asks for so much."""
    items = [
        max((len(one.tasks[claim.task].records) for one in evidence.evaluations.values() if claim.task in one.tasks),
            default=0)
        for claim in policy.claims_of(mode)
    ]  # fmt: skip
    if sum(items) > MOST_WORK:
        raise Refused(
            "too-large", f"{len(items):,} claims on {sum(items):,} items in all; {MOST_WORK:,} are the most"
        )


def check_log(
    entries: Sequence[journal.Entry],
    verdict: dict[str, Any],
    verdict_sha256: str,
    evidence: Evidence | None,
    found: Findings,
) -> None:
    """The story that the log has to tell: this policy with these questions, then this evidence, then this verdict, and
    none void since."""
    digests = [verdict_sha256, verdict["evidence"]["sha256"], verdict["policy"]["sha256"]]
    place = len(entries)
    for (kind, name), digest in zip(STORY.items(), digests, strict=True):
        last = next((n for n in reversed(range(place)) if entries[n].kind == kind), None)
        if last is None or entries[last].facts.get("sha256") != digest:
            found.refuse("log-differs", f"the log does not have this {kind} where it belongs")
            return
        place = last
        for entry in entries[place:]:
            another = entry.kind == kind and entry.facts.get("sha256") != digest
            if another or (entry.kind == "void" and name in entry.facts.get("what", [name])):
                found.refuse("log-differs", f"entry {entry.number} of the log made the {kind} void")
                return
    fixed = entries[place].facts["tasks"]  # the policy's, which is where the story begins
    if evidence is None:
        return
    for name in fixed:
        answered = [one.tasks[name].sha256 for one in evidence.evaluations.values() if name in one.tasks]
        if {fixed[name]} != {evidence.facts["tasks"].get(name, {}).get("sha256"), *answered}:
            found.refuse("log-differs", f"the log fixed other questions for {name!r} than were asked")


def since_verdict(entries: Sequence[journal.Entry]) -> Sequence[journal.Entry]:
    """The log from its last verdict on: what was said of an earlier one, even an equal one, was made void with it."""
    last = next((n for n in reversed(range(len(entries))) if entries[n].kind == "verdict"), len(entries))
    return entries[last:]


def check_signed(record: Record, mode: Mode, trust: Trust, found: Findings, under: int | None) -> None:
    """The evaluator's signature over the verdict and over the log as it was then."""
    assert record.verdict is not None and record.entries is not None
    if not (record.directory / SIGNED).is_file():
        found.refuse(
            "verdict-unsigned",
            f"{SIGNED}: not there; an evaluator signs with behemoth gate --as NAME --key FILE",
        )
        return
    with found.refusing("malformed", SIGNED):
        envelope = Envelope.read(record.directory / SIGNED)
        head = next((entry.sha256 for entry in since_verdict(record.entries)), "")
        said = record.verdict, record.verdict_sha256
        found.refusals += check_verdict(envelope, *said, trust, head, record.policy, mode, under)


def differences(one: Any, other: Any, where: str = "verdict") -> Iterator[str]:
    """Where two verdicts say something else; numbers may differ by rounding, also where a sentence tells them."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                yield f"{where}.{key} stands in one of the two only"
            else:
                yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where} has {len(other)} entries and not {len(one)}"
        else:
            for number, (a, b) in enumerate(zip(one, other, strict=True)):
                yield from differences(a, b, f"{where}.{number}")
    elif not _same(one, other):
        yield f"{where} is {str(other)[:120]!r} and not {str(one)[:120]!r}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other or (NUMBER.split(one) == NUMBER.split(other) and _tell_the_same(one, other))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if numbers:
        return abs(one - other) <= CLOSE * max(abs(one), abs(other))
    return type(one) is type(other) and one == other


def _tell_the_same(one: str, other: str) -> bool:
    """Whether the numbers in two sentences differ by one in the last place at most: a tie, rounded the other way."""
    for a, b in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True):
        places = len(a.partition(".")[2])
        if not places and a != b:
            return False
        if abs(float(a.replace(",", "")) - float(b.replace(",", ""))) > 1.5 * 10.0**-places:
            return False
    return True


def _first(reasons: Any) -> str:
    return str(reasons[0])[:300] if isinstance(reasons, list) and reasons else "no reason is given"
