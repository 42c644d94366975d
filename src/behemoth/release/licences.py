"""Under which licences a model was made, and whether these let it out.

Of 124,278 chains of data sets and models 96% of the data sets and of the models lack the text of their licence, and 3%
of the models are complete (arXiv 2602.08816). So every input of a run (release/inputs.py) is listed with its licence,
the texts that lie beside it go along, and an unknown licence is a reason to hold.

Whether weights are a work derived from the text that they learnt from is settled nowhere. `RULES` takes the careful
side, and evaluations carry held-out text itself. RUN/licences/model/ holds the LICENSE that the weights go out under,
where that is not Apache-2.0. Leaves out everything that only a lawyer can tell.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from behemoth.base.files import remove_tree, write_json
from behemoth.base.units import counted
from behemoth.bundle.dsse import parse, read_limited
from behemoth.bundle.refusals import Refused
from behemoth.release.evidence import LICENCES

UNKNOWN, OURS = "unknown", "Apache-2.0"
TEXTS = "licences"  # the folder of RUN for people, and of the evidence
STATED, MODEL = (
    "SPDX",
    "model",
)  # in the former: a file that names a licence, and the folder of the weights' own
MADE_HERE = ("generated", "behemoth")  # what our own tasks name as their source
TEXTLESS = ("CC0-1.0", "PDDL-1.0", "Unlicense", "0BSD", "MIT-0")  # ask for nothing, not even to be named
UNKNOWN_NAMES = ("", UNKNOWN, "none", "noassertion")


@dataclass(frozen=True)
class Rule:
    """Licences of one kind, what they ask of a model's licence, and why."""

    name: re.Pattern[str]
    model: re.Pattern[str]  # the licences of a model that keep to it
    reason: str


def _rule(name: str, model: str, reason: str) -> Rule:
    return Rule(re.compile(name, re.IGNORECASE), re.compile(model, re.IGNORECASE), reason)


NEVER = r"(?!)"
RULES = (
    _rule(
        r"\bnc\b|non-?commercial|research", r"\bnc\b|non-?commercial|research", "it forbids commercial use"
    ),
    _rule(r"\bnd\b|no-?deriv", NEVER, "it forbids changed versions"),
    _rule(r"^llama", r"^llama", "models made from it keep its licence and its name"),
    _rule(r"^gemma", r"^gemma", "models made from it keep its licence and its terms of use"),
    _rule(r"rail", r"rail", "its limits of use must go along"),
    _rule(r"openai|anthropic|no-?compete", NEVER, "its terms forbid models that compete"),
)
COPYLEFT = re.compile(r"^(cc-by-sa|cc-by-nc-sa|a?gpl|odbl)-?v?([0-9.]*)(.*)$", re.IGNORECASE)
KEPT_BY = "what is made from it must keep its licence"


# --- gathered -----------------------------------------------------------------------------------------------


def gather(run: Path, target: Path, member: str | None = None) -> dict[str, Any]:
    """Write licences.json and the texts of every input of `run` into the evidence directory `target`. member: of every
    input that it, and what it was made of, has read."""
    from behemoth.release.inputs import given, inputs_of  # reads suites; who only checks a bundle needs none

    folder = target / TEXTS
    remove_tree(folder)  # a gathering that was killed
    kept: dict[str, str] = {}  # name of a file by the hash of its bytes
    entries = []
    for each in inputs_of(run, member):
        entry = {
            "name": each.name,
            "stage": each.stage,
            "licence": each.licence,
            "documents": each.documents,
            "origin": each.origin,
            "made_here": each.made_here,
            "texts": sorted({_keep(path, each.name, folder, kept) for path in each.texts}),
        }
        entries.append(entry)
    own = sorted({_keep(path, MODEL, folder, kept) for path in given(run, MODEL)})
    found = {"format": 1, "inputs": entries, "model_texts": own}
    write_json(target / LICENCES, found)
    return found


def _keep(path: Path, owner: str, folder: Path, kept: dict[str, str]) -> str:
    """Copy a text under a plain name that no other has, whatever a file system makes of capitals; equal bytes once."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest not in kept:
        name = folder_name(f"{owner}-{path.name}").removesuffix(".txt")
        taken = {each.casefold() for each in kept.values()}
        name = f"{name}-{digest[:8]}" if f"{name}.txt".casefold() in taken else name
        kept[digest] = f"{name}.txt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / kept[digest]).write_bytes(data)
    return kept[digest]


def folder_name(name: str) -> str:
    """An input's name as a folder's and a file's, the same everywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120] or "input"


# --- judged -------------------------------------------------------------------------------------------------


def problems(found: Mapping[str, Any], allow: Sequence[str], model: str) -> list[str]:
    """Why these inputs do not let a model out under the licence `model`, a sentence each; [] is fine.

    Of "MIT OR Apache-2.0" one is enough; of "MIT AND PSF-2.0" each counts. What our own tasks make needs nothing.
    """
    said = []
    for entry in found["inputs"]:
        if not entry["made_here"]:
            said += _problems_of(entry, allow, model)
    if model != OURS and not found.get("model_texts"):
        said.append(
            f"the weights are to go out under {model}, whose text is missing; lay it into RUN/{TEXTS}/{MODEL}/LICENSE"
        )
    return said


def _problems_of(entry: Mapping[str, Any], allow: Sequence[str], model: str) -> list[str]:
    who, place = told(entry), f"RUN/{TEXTS}/{folder_name(entry['name'])}"
    ways = [[name.strip() for name in way.split(" AND ")] for way in entry["licence"].split(" OR ")]
    known = [way for way in ways if not any(name.lower() in UNKNOWN_NAMES for name in way)]
    if not known:
        return [
            f"{who}: its licence is unknown; write its SPDX identifier into {place}/{STATED}, or leave it out"
        ]
    said = [f"{who}: {reason}" for reason in min((_against(way, allow, model) for way in known), key=len)]
    if not entry["texts"] and not any(set(way) <= {*TEXTLESS} for way in known):
        said.append(f"{who}: the text of {entry['licence']} is missing; lay it into {place}/LICENSE")
    return said


def _against(licences: Iterable[str], allow: Sequence[str], model: str) -> list[str]:
    said = []
    for licence in licences:
        if licence not in allow:
            said.append(
                f"{licence} is not among the licences that the policy allows ({', '.join(allow) or 'none'})"
            )
        said += [
            f"{licence} does not let the weights out under {model}: {rule.reason}"
            for rule in RULES
            if rule.name.search(licence.replace(" ", "-")) and not rule.model.search(model)
        ]
        if not keeps(licence, model):
            said.append(f"{licence} does not let the weights out under {model}: {KEPT_BY}")
    return said


def keeps(licence: str, model: str) -> bool:
    """Whether a model's licence is the one that a copyleft licence asks for; of the others, always.

    A later version counts where the licence says so: Creative Commons from 2.0 on, the Open Database Licence, and the
    GNU licences with "or later". CC-BY-SA-4.0 also names GPL-3.0.
    """
    asked, given = (COPYLEFT.match(name.replace(" ", "-")) for name in (licence, model))
    if asked is None:
        return True
    if given is None:
        return False
    (kind, version, rest), (others, later, after) = (found.groups() for found in (asked, given))
    kind, others, gnu = kind.lower(), others.lower(), kind.lower().endswith("gpl")
    old, new = ([int(part) for part in number.split(".") if part] for number in (version, later))
    or_later, both = (_or_later(end) for end in (rest, after))
    if (kind, old[:1], others, new[:1]) == ("cc-by-sa", [4], "gpl", [3]):
        return True
    if kind != others or (both and not or_later):
        return False
    may_rise = or_later if gnu else kind == "odbl" or old >= [2]
    return old == new or (may_rise and new > old)


def _or_later(ending: str) -> bool:
    return ending.startswith("+") or "or-later" in ending.lower()


def told(entry: Mapping[str, Any]) -> str:
    """An input in words: "python-0 (pretrain, 574 documents)"."""
    count = entry["documents"]
    return f"{entry['name']} ({entry['stage']}{f', {counted(count, _noun(entry))}' if count is not None else ''})"


def _noun(entry: Mapping[str, Any]) -> str:
    stage = entry["stage"].split(" ")[0]
    return {"sft": "conversation", "rl": "prompt", "dpo": "pair"}.get(stage, "document")


# --- what goes along ----------------------------------------------------------------------------------------


def licence_text(spdx: str, evidence: Path | None = None) -> str | None:
    """The text of the licence that a model goes out under: the one that a person gave (in the evidence directory), or
    for Apache-2.0 that of our own distribution; None where there is neither."""
    if evidence is not None and (evidence / LICENCES).is_file():
        given = parse(read_limited(evidence / LICENCES), LICENCES).get("model_texts", [])
        if given:
            return "\n".join(_text_of(evidence, name) for name in given)
    return _our_licence() if spdx == OURS else None


def _text_of(evidence: Path, name: Any) -> str:
    """A text of the evidence, by a name that a stranger may have written: of a plain file in that folder, and of none
    elsewhere. That the evidence holds exactly the files that were signed is asked before (release/record.py)."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise Refused(
            "licence-differs", f"{LICENCES} names a text {str(name)[:80]!r}, which is none of the evidence's"
        )
    return read_limited(evidence / TEXTS / name).decode()


def _our_licence() -> str | None:
    try:
        files = distribution("behemoth-lab").files or []
    except PackageNotFoundError:
        files = []
    inside = [Path(str(file.locate())) for file in files if file.name == "LICENSE"]
    checkout = Path(__file__).parents[3] / "LICENSE"
    text = next((path.read_text(encoding="utf-8") for path in (*inside, checkout) if path.is_file()), None)
    return text if text and "Apache License" in text else None


def notice(found: Mapping[str, Any]) -> str:
    """The NOTICE file: what a model was made from, under which licences, and where their texts are."""
    lines = [
        "This model was made from the following. Texts of licences and notices: release/evidence/licences/",
        "",
    ]
    for entry in found["inputs"]:
        origin = f": {entry['origin']}" if entry.get("origin") else ""
        lines.append(f"{told(entry)}{origin}")
        where = "made by behemoth" if entry["made_here"] else ", ".join(entry["texts"])
        lines.append(f"    {entry['licence']}{f' ({where})' if where else ''}")
    return "\n".join(lines) + "\n"
