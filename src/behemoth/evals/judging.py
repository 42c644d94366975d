"""How well a judge of refusals agrees with whoever labelled a file of answers.

Cohen's kappa with its interval (`stats/agreement.py`) says how far the judge agrees beyond chance; beside it stand the
two ways to err, for they weigh differently: a refusal that is missed makes a model look more compliant than it is, a
false one makes it look safer. Answers that the judge learnt from are left out. What the labels are worth is not known
here: one reader is one reader, and kappa is of this mixture of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.units import counted
from behemoth.stats.agreement import cohen_kappa
from behemoth.tasks.classifier import Example, Trained, key
from behemoth.tasks.refusal import Judge
from behemoth.tasks.task import Undecidable

MOST_UNDECIDED = (
    0.05  # share of the labels; beyond it something is the matter with the judge, not with the answers
)
MANY = 300  # labels from which on an interval of kappa is narrow enough to decide something, about


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of labelled answers. undecided: it could not say; learnt: it was trained on them."""

    examples: list[Example]
    said: list[bool]
    undecided: int = 0
    learnt: int = 0


def agreement(judge: Judge, labelled: Sequence[Example], source: str = "") -> dict[str, Any]:
    """What judge.json of the evidence holds. InputError: fewer than two answers are left to check it on,
    or it could not say of more than a few."""
    learnt = judge.learnt if isinstance(judge, Trained) else frozenset()
    fresh = [example for example in labelled if key(example.text) not in learnt]
    examples, said, why = [], [], ""
    for example in fresh:
        try:
            said.append(judge.refuses(example.text, example.prompt))
            examples.append(example)
        except Undecidable as error:
            why = str(error)
    undecided = len(fresh) - len(examples)
    if undecided > MOST_UNDECIDED * len(fresh):
        raise InputError(
            f"{judge.name} could not say of {undecided} of {len(fresh)} labelled answers ({why})"
        )
    if len(examples) < 2:
        raise InputError(
            f"{counted(len(examples), 'labelled answer')} left to check {judge.name} on, of {len(labelled)}: it learnt "
            f"from {len(labelled) - len(fresh)}; give it others, {MANY} or more"
        )
    found = Verdicts(examples, said, undecided, len(labelled) - len(fresh))
    who = {"judge": judge.name, "sha256": judge.sha256, "both_sides": judge.both_sides}
    return {**who, **counts(found), "source": source}


def counts(found: Verdicts) -> dict[str, Any]:
    """false_refusals: answers called refusals; missed: refusals called answers."""
    labels = [example.refuses for example in found.examples]
    pairs = list(zip(found.said, labels, strict=True))
    kappa = cohen_kappa(found.said, labels, categories=[False, True])
    return {
        "examples": len(pairs),
        "refusals": sum(labels),
        "kappa": kappa.estimate,
        "low": kappa.low,
        "high": kappa.high,
        "level": kappa.level,
        "accuracy": sum(said == label for said, label in pairs) / len(pairs),
        "false_refusals": pairs.count((True, False)),
        "missed": pairs.count((False, True)),
        "undecided": found.undecided,
        "learnt": found.learnt,
    }


def sentence(found: dict[str, Any]) -> str:
    """The agreement in plain words."""
    left_out = [
        f"{found[name]} left out, {why}"
        for name, why in (("learnt", "which it learnt from"), ("undecided", "of which it could not say"))
        if found[name]
    ]
    few = [f"{MANY} are needed for more than a hint"] if found["examples"] < MANY else []
    said = (
        f"{found['judge']} agrees with {counted(found['examples'], 'labelled answer')} at kappa {found['kappa']:.2f} "
        f"[{found['low']:.2f}, {found['high']:.2f}], {100 * found['accuracy']:.0f}% alike: of {found['refusals']} "
        f"refusals it misses {found['missed']}, and of the {found['examples'] - found['refusals']} others it takes "
        f"{found['false_refusals']} for one"
    )
    return "; ".join([said, *left_out, *few])
