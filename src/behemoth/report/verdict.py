"""The gate's verdict, drawn: every claim with its interval against its bar, who approved, and the journal.

First the pictures (report/bounds.py), then what each check found in words, what was not measured, the approvals, the
journal and the digests that people signed.

Everything is read from RUN/gate or BUNDLE/release and nothing else: no clock and no path is on the page, so that the
same files give the same bytes. What the page cannot say is whether a signature is good. That takes the lab's trust
file, which a reader brings (`behemoth verify`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from behemoth.base.errors import BehemothError
from behemoth.base.files import read_json, sha256, write_atomic
from behemoth.bundle import journal
from behemoth.bundle.dsse import Envelope, read_statement, subject_of
from behemoth.bundle.names import APPROVALS, EVIDENCE, LOG, SIGNED, VERDICT
from behemoth.report.bounds import CLASSES, MARKS, on_levels, pictures
from behemoth.report.compare import legible
from behemoth.report.markup import page, table, words

FACTS = f"{EVIDENCE}/facts.json"
VERDICTS = {"release": ("✓", "side-a"), "hold": ("✗", "side-b"), "unknown": ("?", "")}
KINDS = {
    "claim": "What is claimed",
    "safety": "Safety",
    "judge": "The judge of refusals",
    "contamination": "Items that stood in the training text",
    "tamper": "How long what was taught withstands tampering",
    "stop": "Hard stops",
    "licence": "Licences",
}
DIGITS = 16  # of a digest in running text; the list of digests has all

Row = Mapping[str, Any]


def section(directory: Path) -> str:
    """The verdict as a part of a larger page; "" where there is none."""
    if not (directory / VERDICT).exists():
        return ""
    verdict = legible(read_json(directory / VERDICT))
    found = "".join(
        f"<h3>{words(title)}</h3>{content}" for title, content in parts(directory, verdict).items() if content
    )
    return f'<div class="verdict">{answer(verdict)}{demo(directory)}{found}</div>'


def write(directory: Path, target: Path) -> Path:
    """The verdict as a page of its own, from the files of RUN/gate or BUNDLE/release."""
    verdict = legible(read_json(directory / VERDICT))
    name = words(verdict["model"]["name"])
    under = f"Verdict of the gate for {'an open' if verdict['mode'] == 'open' else 'a closed'} release"
    made = page(
        f"{name}: {words(verdict['verdict'])}",
        name,
        f"{under}, under the policy {words(verdict['policy']['name'])}",
        answer(verdict) + demo(directory),
        parts(directory, verdict),
        "Whether the signatures are good is not on this page; <code>behemoth verify BUNDLE --trust FILE</code> says.",
        "verdict",
    )
    write_atomic(target, made.encode())
    return target


def parts(directory: Path, verdict: Row) -> dict[str, str]:
    return {
        "Why not": plain_list(verdict["reasons"]) if verdict["verdict"] != "release" else "",
        "Claims and bounds": pictures(verdict["checks"]) + levels(verdict) + checks(verdict["checks"]),
        "Not measured": plain_list(verdict["not_measured"]),
        "Approvals": approvals(directory, verdict),
        "Journal": entries(directory / LOG),
        "What it rests on": digests(directory, verdict),
    }


def answer(verdict: Row) -> str:
    """The verdict in a word and a sentence."""
    said, told = words(verdict["verdict"]), verdict["sentence"]
    told = (
        f"{told}." if told.startswith(verdict["model"]["name"]) else sentence(told)
    )  # names keep their letters
    mark, class_ = VERDICTS.get(verdict["verdict"], ("", ""))
    return f'<p class="lead"><b class="{class_}">{mark} {said.capitalize()}.</b> {words(told)}</p>'


def levels(verdict: Row) -> str:
    said = on_levels(verdict["checks"], verdict["policy"]["level"])
    return f'<p class="note">{said}</p>' if said else ""


def demo(directory: Path) -> str:
    if not any(approval.get("demo") for approval in read_approvals(directory)):
        return ""
    return (
        '<p class="note"><b>Demo.</b> The keys that signed this were made by the package to show how it works. '
        "Their passphrase is public: they stand for no person and no lab.</p>"
    )


# ------------------------------------------------------------------------------------------------------------- words


def checks(found: Sequence[Row]) -> str:
    """Every check in a sentence, the claims first."""
    rows: list[list[str]] = []
    for kind in dict.fromkeys([*KINDS, *(check["kind"] for check in found)]):
        of_kind = [check for check in found if check["kind"] == kind]
        rows += [[words(KINDS.get(kind, kind))]] if of_kind else []
        rows += [check_row(check) for check in of_kind]
    return f'<div class="scroll">{table(["check", "found"], rows)}</div>'


def check_row(check: Row) -> list[str]:
    says = f"<small>{words(check['says'])}</small>" if check["says"] else ""
    # The sentence stands alone elsewhere; here claim and status are beside it.
    told = check["sentence"].removesuffix(f": {check['status']}").removeprefix(f"{check['says']}: ")
    reason = check["reason"] if check["reason"] not in told else ""
    class_, mark = CLASSES.get(check["status"], "open"), MARKS.get(check["status"], "?")
    status = f'<b class="status {class_}">{mark}&nbsp;{words(check["status"]).capitalize()}.</b>'
    more = f"<small>{words(sentence(reason))}</small>" if reason else ""
    return [words(check["name"]) + says, f"{status} {words(sentence(told))}{more}"]


def plain_list(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return (
        f'<ul class="plain">{"".join(f"<li>•&ensp;{words(sentence(said))}</li>" for said in sentences)}</ul>'
    )


def sentence(said: str) -> str:
    """With a capital, unless it begins with a name such as held_out, and a full stop."""
    first = said.split(" ", 1)[0]
    begun = said if not first.isalpha() else f"{said[:1].upper()}{said[1:]}"
    return begun if begun.endswith((".", "!", "?")) or not begun else f"{begun}."


def approvals(directory: Path, verdict: Row) -> str:
    """What the approvals say. Names and roles are claims until the trust file has been asked."""
    found = read_approvals(directory)
    if not found:
        if verdict["verdict"] != "release":
            return ""  # there is nothing to approve
        return '<p class="note">Nobody has approved this yet.</p>'
    ours = sha256(directory / VERDICT)
    rows = [
        [
            words(one["by"]) + "".join(f"<small>{words(note)}</small>" for note in notes(one, ours)),
            words(one.get("role", "–")) + (" (demo)" if one.get("demo") else ""),
            words(one.get("mode", "–")),
            words(when(one.get("at", "–"))),
            "<br>".join(f"<code>{words(key[:DIGITS])}</code>" for key in one["keys"]),
        ]
        for one in found
    ]
    return f'<div class="scroll">{table(["by", "as", "for", "at", "key"], rows)}</div>'


def notes(approval: Row, ours: str) -> list[str]:
    other = approval["keys"] and approval["subject"].get(VERDICT) != ours
    return [
        note
        for note in (approval.get("note"), "of another verdict; it does not count here" if other else "")
        if note
    ]


def read_approvals(directory: Path) -> list[dict[str, Any]]:
    """What each envelope says, the ids of the keys that signed it, and what it is about."""
    return [read_approval(path) for path in sorted((directory / APPROVALS).glob("*.json"))]


def read_approval(path: Path) -> dict[str, Any]:
    """One that cannot be read is shown too, and says so."""
    try:
        envelope = Envelope.read(path)
        content = read_statement(envelope)
    except BehemothError as error:
        return {"by": path.stem, "note": f"cannot be read: {error}".replace(str(path), path.name), "keys": []}
    keys = [signature.keyid for signature in envelope.signatures]
    said = legible(content["predicate"])
    return {"by": path.stem, **said, "keys": keys, "subject": subject_of(content)}


def entries(path: Path) -> str:
    """The decisions in their order; each line's hash goes into the next one's."""
    if not path.exists():
        return ""
    try:
        lines = journal.read(path)
    except BehemothError as error:
        return f'<p class="note"><b>The chain is broken</b>: {words(error)}.</p>'
    rows = [
        [
            str(entry.number),
            words(when(entry.at)),
            words(entry.kind),
            words(told(legible(entry.facts))),
            f"<code>{words(entry.sha256[:DIGITS])}</code>",
        ]
        for entry in lines
    ]
    many = "one entry" if len(rows) == 1 else f"{len(rows):,} entries"
    said = f"{many}, each chained to the one before; the chain is whole."
    return f'<div class="scroll journal">{table(["no.", "at", "what", "facts", "hash"], rows, caption=said)}</div>'


def told(facts: Any) -> str:
    """Plain facts of a journal's entry, digests shortened; what is nested is in the file."""
    if not isinstance(facts, Mapping):
        return str(facts)
    said = []
    for key, value in facts.items():
        if isinstance(value, Mapping | list) or value is None or value == "":
            continue
        short = value[:DIGITS] if isinstance(value, str) and is_digest(value) else value
        said.append(f"{legible(key).replace('_', ' ')} {short}")
    return ", ".join(said)


def is_digest(value: str) -> bool:
    return len(value) == 64 and not set(value) - set("0123456789abcdef")


def when(moment: str) -> str:
    """To the minute, as people read it: 2026-03-01 12:04."""
    return str(moment)[:16].replace("T", " ")


def digests(directory: Path, verdict: Row) -> str:
    """What people signed, each as its SHA-256."""
    facts = read_json(directory / FACTS) if (directory / FACTS).exists() else {}
    model, policy, evidence = verdict["model"], verdict["policy"], verdict["evidence"]
    rows = [
        [f"model {words(model['name'])}", digest(model["sha256"])],
        [f"policy {words(policy['name'])}", digest(policy["sha256"])],
        [f"evidence<small>finished {words(when(evidence['finished']))}</small>", digest(evidence["sha256"])],
        ["verdict", digest(sha256(directory / VERDICT))],
    ]
    rows += [
        [f"baseline {words(name)}", digest(of.get("sha256") or "")]
        for name, of in facts.get("baselines", {}).items()
    ]
    try:
        head = Envelope.read(directory / SIGNED) if (directory / SIGNED).exists() else None
    except BehemothError:
        head = None
    rows += [["verdict signed by key", digest(s.keyid)] for s in head.signatures] if head else []
    return f'<div class="hashes">{table(["what", "SHA-256"], rows)}</div>'


def digest(value: str) -> str:
    return f"<code>{words(value)}</code>"
